//! The folder of templates:
//!
//! ```text
//! <templates>/
//!     <name>/             a template, complete: its name is the hash of its inputs
//!         inputs.json         what it was made from; its time is that of the last use
//!         snapshot/           the machine, as the VMM wrote it
//!     <name>.building/    a template in the making, worth nothing once its builder has gone
//!         machine/            the files of the machine that boots for it
//!     <name>.lock         held by whoever builds or removes it
//! ```
//!
//! A template appears by being renamed, so it is there whole or not at all. A machine that was cloned keeps the files it
//! has mapped: its template may be removed at any time.

use std::fs::{self, DirBuilder, File, FileTimes};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::inputs::{TemplateInputs, is_name};
use crate::sandbox::remove_tree::remove_tree;

const INPUTS: &str = "inputs.json";
const SNAPSHOT: &str = "snapshot";
const MACHINE: &str = "machine";
const LOCK: &str = "lock";
const BUILDING: &str = "building";

/// The unit of a file's size on disk, in bytes (stat(2)).
const BLOCK: u64 = 512;

/// How often a held lock is tried again.
const LOCK_STEP: Duration = Duration::from_millis(20);

/// Where templates are kept.
#[derive(Debug, Clone)]
pub struct TemplateStore {
    directory: PathBuf,
    /// What they may take together, in bytes on disk.
    limit: u64,
}

/// A complete template.
#[derive(Debug, Clone)]
pub struct Template {
    /// Its name.
    pub name: String,
    path: PathBuf,
    /// Device and inode of its folder: another template of the same name has another.
    identity: (u64, u64),
}

impl Template {
    /// What the VMM restores from.
    pub fn snapshot(&self) -> PathBuf {
        self.path.join(SNAPSHOT)
    }
}

/// A template and what is known of it.
#[derive(Debug)]
pub struct TemplateSummary {
    /// Which.
    pub template: Template,
    /// What it was made from; an error where that cannot be read.
    pub inputs: Result<TemplateInputs, StoreError>,
    /// What it takes on disk, in bytes.
    pub bytes: u64,
    /// When a machine was last cloned from it.
    pub used: SystemTime,
}

/// Why the folder of templates could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or folder could not be read, made or removed.
    #[error("{action} {}", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The description of a template is none.
    #[error("parsing {}", .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// Others could put templates there, and with them whole guests.
    #[error(
        "the folder of templates {} belongs to user {owner} and has mode {mode:03o}: it must be ours and writable by nobody else",
        .path.display()
    )]
    Exposed {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Its permissions.
        mode: u32,
    },
    /// Somebody else has been building it for too long.
    #[error("template {name} is still being built by another process after {} s", .waited.as_secs())]
    Busy {
        /// Which.
        name: String,
        /// How long was waited.
        waited: Duration,
    },
    /// There is none of that name.
    #[error("no template's name begins with {name:?}; `bulkhead template list` names them")]
    Missing {
        /// The name.
        name: String,
    },
    /// There are several.
    #[error("the names of {count} templates begin with {name:?}; give more of it")]
    Ambiguous {
        /// The beginning.
        name: String,
        /// How many.
        count: usize,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { action, path, source }
}

impl TemplateStore {
    /// The store at `directory`, made when the first template is. Its templates together take at most `limit` bytes,
    /// but for the one used last.
    pub fn new(directory: PathBuf, limit: u64) -> Self {
        Self { directory, limit }
    }

    /// The template of that name, if it is there.
    pub fn find(&self, name: &str) -> Option<Template> {
        if !is_name(name) {
            return None;
        }
        let path = self.directory.join(name);
        let identity = identity(&path).ok()?;
        path.join(INPUTS).is_file().then(|| Template {
            name: name.to_owned(),
            path,
            identity,
        })
    }

    /// Whether the very template is still there; removed, and also built anew, it is not.
    pub fn holds(&self, template: &Template) -> bool {
        identity(&template.path).is_ok_and(|now| now == template.identity)
    }

    /// The template whose name begins so.
    ///
    /// # Errors
    /// When there is not exactly one.
    pub fn find_by_beginning(&self, beginning: &str) -> Result<TemplateSummary, StoreError> {
        let mut found = self.list()?;
        found.retain(|summary| summary.template.name.starts_with(beginning));
        let count = found.len();
        let name = beginning.to_owned();
        match (found.pop(), count) {
            (Some(one), 1) => Ok(one),
            (None, _) => Err(StoreError::Missing { name }),
            (Some(_), count) => Err(StoreError::Ambiguous { name, count }),
        }
    }

    /// Every template, the one used last first.
    ///
    /// # Errors
    /// When the folder cannot be read; one that does not exist has none.
    pub fn list(&self) -> Result<Vec<TemplateSummary>, StoreError> {
        let mut found = Vec::new();
        for name in self.names()? {
            let Some(template) = self.find(&name) else {
                continue;
            };
            let summary = summary(template);
            // Removed while we looked, it is not there; anything else that is wrong with it is told.
            if summary.inputs.is_ok() || self.find(&name).is_some() {
                found.push(summary);
            }
        }
        found.sort_by_key(|summary| std::cmp::Reverse(summary.used));
        Ok(found)
    }

    /// What it says that it was made from.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn inputs_of(&self, template: &Template) -> Result<TemplateInputs, StoreError> {
        read_inputs(&template.path.join(INPUTS))
    }

    /// Notes that a machine is cloned from it now.
    ///
    /// # Errors
    /// When it has just been removed, or the folder is read-only.
    pub fn touch(&self, template: &Template) -> Result<(), StoreError> {
        let path = template.path.join(INPUTS);
        let now = FileTimes::new().set_modified(SystemTime::now());
        File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_times(now))
            .map_err(io_error("noting the use of", &path))
    }

    /// Waits for the right to build or remove the template of that name, for `patience` at most.
    ///
    /// # Errors
    /// When another process keeps it, or the folder cannot be made.
    pub async fn lock(&self, name: &str, patience: Duration) -> Result<TemplateLock, StoreError> {
        let begun = Instant::now();
        loop {
            if let Some(lock) = self.try_lock(name)? {
                return Ok(lock);
            }
            if begun.elapsed() >= patience {
                return Err(StoreError::Busy {
                    name: name.to_owned(),
                    waited: patience,
                });
            }
            tokio::time::sleep(LOCK_STEP).await;
        }
    }

    fn try_lock(&self, name: &str) -> Result<Option<TemplateLock>, StoreError> {
        create_directory(&self.directory)?;
        self.refuse_exposed()?;
        let path = self.directory.join(name).with_extension(LOCK);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_error("opening", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(errno) => return Err(io_error("locking", &path)(errno.into())),
        }
        // Whoever held it before may have removed the file: then this lock is nobody else's.
        let ours = file.metadata().map_err(io_error("examining", &path))?;
        let named = match fs::metadata(&path) {
            Ok(named) => named,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("examining", &path)(error)),
        };
        if (ours.dev(), ours.ino()) != (named.dev(), named.ino()) {
            return Ok(None);
        }
        Ok(Some(TemplateLock {
            path: self.directory.join(name),
            name: name.to_owned(),
            lock: path,
            _file: file,
        }))
    }

    fn refuse_exposed(&self) -> Result<(), StoreError> {
        const OTHERS_WRITE: u32 = 0o022;
        let status = fs::metadata(&self.directory).map_err(io_error("examining", &self.directory))?;
        let mode = status.mode() & 0o777;
        if status.uid() == rustix::process::geteuid().as_raw() && mode & OTHERS_WRITE == 0 {
            return Ok(());
        }
        Err(StoreError::Exposed {
            path: self.directory.clone(),
            owner: status.uid(),
            mode,
        })
    }

    /// Removes a template that no machine can be cloned from. One that somebody builds anew just now is left.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn discard(&self, name: &str) -> Result<(), StoreError> {
        self.try_lock(name)?.map_or(Ok(()), TemplateLock::remove)
    }

    /// Removes templates: every one if `all`, else those whose inputs have changed and those that exceed the limit,
    /// the longest unused first. One that is being built stays. Returns the names of the removed.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn prune(&self, all: bool) -> Result<Vec<String>, StoreError> {
        let mut removed = Vec::new();
        let mut kept = 0;
        for (index, summary) in self.list()?.into_iter().enumerate() {
            let stale = summary.inputs.map_or(true, |inputs| inputs.staleness().is_some());
            let too_large = index > 0 && kept + summary.bytes > self.limit;
            if !(all || stale || too_large) {
                kept += summary.bytes;
                continue;
            }
            if let Some(lock) = self.try_lock(&summary.template.name)? {
                lock.remove()?;
                removed.push(summary.template.name);
            }
        }
        for entry in self.names()? {
            // What builders left that were killed, or failed. What is not ours is left alone.
            let ours = entry
                .rsplit_once('.')
                .filter(|(name, kind)| is_name(name) && [LOCK, BUILDING].contains(kind));
            if let Some((name, _)) = ours
                && self.find(name).is_none()
                && let Some(lock) = self.try_lock(name)?
                && self.find(name).is_none()
            {
                lock.remove()?;
            }
        }
        Ok(removed)
    }

    fn names(&self) -> Result<Vec<String>, StoreError> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(io_error("listing", &self.directory))?,
        };
        entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<_>>()
            .map_err(io_error("listing", &self.directory))
    }
}

/// The right to build or remove one template. It ends with the value, or with the process.
#[derive(Debug)]
pub struct TemplateLock {
    path: PathBuf,
    name: String,
    lock: PathBuf,
    _file: File,
}

impl TemplateLock {
    /// Makes room for a template.
    ///
    /// # Errors
    /// When there is none, or what a killed builder left cannot be removed.
    pub fn begin(&self) -> Result<BuildSite, StoreError> {
        let building = self.building();
        remove(&building)?;
        let snapshot = building.join(SNAPSHOT);
        create_directory(&snapshot)?;
        let machine = building.join(MACHINE);
        Ok(BuildSite { machine, snapshot })
    }

    /// Makes what was built the template. The snapshot must be on disk already.
    ///
    /// # Errors
    /// When its description cannot be written or it cannot be renamed.
    pub fn finish(&self, inputs: &TemplateInputs) -> Result<Template, StoreError> {
        let building = self.building();
        remove(&building.join(MACHINE))?;
        let description = building.join(INPUTS);
        let text = serde_json::to_vec_pretty(inputs).map_err(|source| StoreError::Parse {
            path: description.clone(),
            source,
        })?;
        fs::write(&description, text)
            .and_then(|()| File::open(&description)?.sync_all())
            .map_err(io_error("writing", &description))?;
        remove(&self.path)?;
        let identity = identity(&building).map_err(io_error("examining", &building))?;
        fs::rename(&building, &self.path).map_err(io_error("renaming", &building))?;
        Ok(Template {
            name: self.name.clone(),
            path: self.path.clone(),
            identity,
        })
    }

    /// Removes what was built.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn abandon(&self) -> Result<(), StoreError> {
        remove(&self.building())
    }

    /// Removes the template, if it is there, and the lock.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(self) -> Result<(), StoreError> {
        self.abandon()?;
        // Under another name first: it is never seen half removed.
        match fs::rename(&self.path, self.building()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result.map_err(io_error("renaming", &self.path))?,
        }
        self.abandon()?;
        fs::remove_file(&self.lock).map_err(io_error("removing", &self.lock))
    }

    fn building(&self) -> PathBuf {
        self.path.with_extension(BUILDING)
    }
}

/// Where a template is built.
#[derive(Debug)]
pub struct BuildSite {
    /// The folder of the machine that boots for it, to be made.
    pub machine: PathBuf,
    /// The empty folder for its snapshot.
    pub snapshot: PathBuf,
}

fn identity(folder: &Path) -> io::Result<(u64, u64)> {
    let status = fs::metadata(folder)?;
    Ok((status.dev(), status.ino()))
}

/// What is known of a template. One of which a part is missing has an error in place of its inputs: nothing can be cloned
/// from it, and whoever prunes removes it.
fn summary(template: Template) -> TemplateSummary {
    let description = template.path.join(INPUTS);
    let used = fs::metadata(&description).and_then(|status| status.modified());
    let bytes = bytes_on_disk(&template.snapshot());
    let inputs = read_inputs(&description);
    let (inputs, bytes) = match (inputs, bytes) {
        (Ok(_), Err(error)) => (Err(error), 0),
        (inputs, bytes) => (inputs, bytes.unwrap_or(0)),
    };
    TemplateSummary {
        template,
        inputs,
        bytes,
        used: used.unwrap_or(SystemTime::UNIX_EPOCH),
    }
}

fn read_inputs(description: &Path) -> Result<TemplateInputs, StoreError> {
    let text = fs::read(description).map_err(io_error("reading", description))?;
    serde_json::from_slice(&text).map_err(|source| StoreError::Parse {
        path: description.to_owned(),
        source,
    })
}

fn bytes_on_disk(snapshot: &Path) -> Result<u64, StoreError> {
    let mut bytes = 0;
    for entry in fs::read_dir(snapshot).map_err(io_error("listing", snapshot))? {
        let status = entry
            .and_then(|entry| entry.metadata())
            .map_err(io_error("examining", snapshot))?;
        bytes += status.blocks() * BLOCK;
    }
    Ok(bytes)
}

/// Only for whoever runs us: a guest's memory is nobody else's to read.
fn create_directory(path: &Path) -> Result<(), StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io_error("creating", path))
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match remove_tree(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(io_error("removing", path)),
    }
}

#[cfg(test)]
mod tests;
