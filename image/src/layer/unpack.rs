//! Makes what a layer's entries describe.

use std::fs::File;
use std::io::Write;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::entry_name::{self, Meaning, shown};
use super::folder_resolution::{self as folders, Implied, Literal, file_type, is_whiteout};
use super::metadata::{self, failed};
use super::{Destination, LayerError};
use crate::tar_stream::{Entry, Kind, Skip, TarStream};

/// Bytes of a file written at once.
const CHUNK: usize = 128 << 10;

pub(super) struct Unpacker<'a> {
    destination: &'a Destination<'a>,
    /// Folders and the times they get at the end. A later record of the same folder counts.
    times: Vec<Implied>,
    /// Whiteouts made, as paths free of links.
    whiteouts: Vec<Vec<u8>>,
    /// The folder of the last entry: the next one usually lies beside it.
    last: Option<(Vec<u8>, OwnedFd)>,
    chunk: Vec<u8>,
}

impl<'a> Unpacker<'a> {
    pub(super) fn new(destination: &'a Destination<'a>) -> Result<Unpacker<'a>, LayerError> {
        let time = folders::prepare_root(destination).map_err(LayerError::Root)?;
        let times = vec![(Vec::new(), time)];
        Ok(Unpacker {
            destination,
            times,
            whiteouts: Vec::new(),
            last: None,
            chunk: vec![0; CHUNK],
        })
    }

    /// Makes one entry, whose content is read from `stream`.
    pub(super) fn unpack<R: Skip>(
        &mut self,
        entry: &Entry,
        stream: &mut TarStream<R>,
    ) -> Result<(), LayerError> {
        let path = entry_name::parse(&entry.name).map_err(|fault| fault.of(entry))?;
        let Some(base) = path.base else {
            return self.root(entry);
        };
        if path.folders.iter().any(|folder| entry_name::is_aufs(folder)) {
            return Ok(());
        }
        match entry_name::meaning(base).map_err(|fault| fault.of(entry))? {
            Meaning::Ignored => Ok(()),
            Meaning::Opaque => self.hide_all(&path.folders, entry),
            Meaning::Whiteout(hidden) => self.whiteout(&path.folders, hidden, entry),
            Meaning::Itself(base) => {
                self.folder(&path.folders, entry)?;
                // Taken out so that making the entry may change what `self` remembers.
                let Some((key, parent)) = self.last.take() else {
                    return Ok(());
                };
                let replaced = self.make(parent.as_fd(), &path.folders, base, entry, stream)?;
                // Where something was replaced, the same path may lead elsewhere now.
                if !replaced {
                    self.last = Some((key, parent));
                }
                Ok(())
            }
        }
    }

    /// Completes the layer after its last entry.
    pub(super) fn finish(self) -> Result<(), LayerError> {
        self.remove_needless_whiteouts()?;
        self.set_folder_times()
    }

    /// Hides what the layers below have in a folder.
    fn hide_all(&mut self, path: &[&[u8]], entry: &Entry) -> Result<(), LayerError> {
        if folders::find_literal(self.destination.root(), path, entry)? == Literal::Link {
            return Ok(());
        }
        let parent = folders::open_or_make(self.destination, path, entry, &mut self.times)?;
        metadata::set_opaque(parent.folder).map_err(failed(entry, "marking its folder opaque"))
    }

    /// Deletes the lower layers' `hidden` from a folder. What this layer itself has of that name stays, whichever
    /// comes first (image-spec, `layer.md`, "Whiteouts"): a whiteout acts on the layers below. For the same reason
    /// its path is taken literally: where this layer has something else than a folder on it, the folder below is
    /// replaced, and everything in it deleted, already.
    fn whiteout(&mut self, path: &[&[u8]], hidden: &[u8], entry: &Entry) -> Result<(), LayerError> {
        let action = "making a whiteout";
        match folders::find_literal(self.destination.root(), path, entry)? {
            Literal::Folder => {}
            Literal::Link | Literal::Other => return Ok(()),
            Literal::Missing => {
                let whole = [path, &[hidden]].concat().join(&b'/');
                if !folders::shows(self.destination, &whole).map_err(failed(entry, action))? {
                    return Ok(());
                }
            }
        }
        let parent = folders::open_or_make(self.destination, path, entry, &mut self.times)?;
        match folders::stat(&parent.folder, hidden).map_err(failed(entry, action))? {
            None => {
                let device = rustix::fs::makedev(0, 0);
                let kind = FileType::CharacterDevice;
                rustix::fs::mknodat(&parent.folder, hidden, kind, Mode::empty(), device)
                    .map_err(failed(entry, action))?;
                self.whiteouts.push(folders::join(&parent.path, hidden));
                Ok(())
            }
            Some(own) if file_type(&own) == FileType::Directory => {
                let own = folders::open_child(&parent.folder, hidden, OFlags::PATH)
                    .map_err(failed(entry, action))?;
                metadata::set_opaque(own).map_err(failed(entry, action))
            }
            Some(_) => Ok(()),
        }
    }

    /// Removes whiteouts that hide nothing. In a folder that no layer below has, overlayfs does not look for
    /// whiteouts but lists them, as names that cannot be opened.
    fn remove_needless_whiteouts(&self) -> Result<(), LayerError> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        for path in &self.whiteouts {
            let failed = |source| LayerError::Unpack {
                entry: shown(path),
                action: "looking at what the whiteout hides",
                source,
            };
            let split = path.iter().rposition(|byte| *byte == b'/');
            let (folder, name) = match split {
                Some(slash) => (path.get(..slash), path.get(slash + 1..)),
                None => (Some(&b"."[..]), Some(&path[..])),
            };
            let (Some(folder), Some(name)) = (folder, name) else {
                continue;
            };
            let parent =
                match rustix::fs::openat2(self.destination.root(), folder, flags, Mode::empty(), resolve) {
                    Ok(parent) => parent,
                    // A later entry replaced the folder.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                    Err(errno) => return Err(failed(errno.into())),
                };
            let found = folders::stat(&parent, name).map_err(|errno| failed(errno.into()))?;
            if found.as_ref().is_some_and(is_whiteout)
                && !folders::shows(self.destination, path).map_err(failed)?
            {
                rustix::fs::unlinkat(&parent, name, AtFlags::empty())
                    .map_err(|errno| failed(errno.into()))?;
            }
        }
        Ok(())
    }

    /// Sets the folders' times, now that nothing is added to them any more.
    fn set_folder_times(self) -> Result<(), LayerError> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for (path, time) in self.times {
            let name = if path.is_empty() { &b"."[..] } else { &path };
            let set = match rustix::fs::openat2(self.destination.root(), name, flags, Mode::empty(), resolve)
            {
                Ok(folder) => metadata::set_times(folder, time),
                // A later entry put something else in its place.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
                Err(errno) => Err(errno.into()),
            };
            set.map_err(|source| LayerError::Unpack {
                entry: shown(&path),
                action: "setting its times",
                source,
            })?;
        }
        Ok(())
    }

    /// The layer's own root, which a layer may describe as `./`.
    fn root(&mut self, entry: &Entry) -> Result<(), LayerError> {
        if entry.kind != Kind::Folder {
            let reason = "it names the layer's root and is no folder";
            return Err(LayerError::Name {
                entry: shown(&entry.name),
                reason,
            });
        }
        metadata::set_on_folder(self.destination.root(), entry)?;
        self.times.push((Vec::new(), entry.mtime));
        Ok(())
    }

    /// The folder of an entry, made if missing, kept for the next entry.
    fn folder(&mut self, path: &[&[u8]], entry: &Entry) -> Result<BorrowedFd<'_>, LayerError> {
        let key = path.join(&b'/');
        let folder = match self.last.take() {
            Some((last, folder)) if last == key => folder,
            _ => match folders::open_existing(self.destination.root(), path, entry)? {
                Some(folder) => folder,
                None => folders::open_or_make(self.destination, path, entry, &mut self.times)?.folder,
            },
        };
        Ok(self.last.insert((key, folder)).1.as_fd())
    }

    /// Makes the entry in its folder. Says whether something was replaced.
    fn make<R: Skip>(
        &mut self,
        parent: BorrowedFd<'_>,
        path: &[&[u8]],
        base: &[u8],
        entry: &Entry,
        stream: &mut TarStream<R>,
    ) -> Result<bool, LayerError> {
        if entry.kind == Kind::Folder {
            let replaced = self.make_folder(parent, base, entry)?;
            self.times
                .push(([path, &[base]].concat().join(&b'/'), entry.mtime));
            return Ok(replaced);
        }
        let mut replaced = false;
        loop {
            match self.try_make(parent, base, entry, stream) {
                Err(Made::InTheWay) if !replaced => {
                    self.displace(parent, base, entry)?;
                    replaced = true;
                }
                Err(Made::InTheWay) => {
                    return Err(failed(entry, "replacing an earlier entry of its name")(
                        Errno::EXIST,
                    ));
                }
                Err(Made::Failed(error)) => return Err(error),
                Ok(()) => return Ok(replaced),
            }
        }
    }

    fn try_make<R: Skip>(
        &mut self,
        parent: BorrowedFd<'_>,
        base: &[u8],
        entry: &Entry,
        stream: &mut TarStream<R>,
    ) -> Result<(), Made> {
        let node = |kind: FileType| {
            let (major, minor) = entry.device;
            let device = rustix::fs::makedev(major, minor);
            rustix::fs::mknodat(parent, base, kind, Mode::empty(), device)
                .map_err(Made::of(entry, "making a device or FIFO"))
        };
        match entry.kind {
            Kind::File | Kind::OldFile => return self.make_file(parent, base, entry, stream),
            Kind::HardLink => return self.make_hard_link(parent, base, entry),
            Kind::Symlink => rustix::fs::symlinkat(&entry.link[..], parent, base)
                .map_err(Made::of(entry, "making a symbolic link"))?,
            Kind::CharacterDevice => node(FileType::CharacterDevice)?,
            Kind::BlockDevice => node(FileType::BlockDevice)?,
            Kind::Fifo => node(FileType::Fifo)?,
            Kind::Unknown(flag) => {
                let entry = shown(&entry.name);
                return Err(Made::Failed(LayerError::Kind {
                    entry,
                    kind: char::from(flag),
                }));
            }
            // The stream's reader keeps extensions to itself, and folders are made by `make_folder`.
            Kind::Folder | Kind::PaxRecords | Kind::PaxGlobalRecords => return Ok(()),
            Kind::GnuLongName | Kind::GnuLongLink | Kind::GnuSparse => return Ok(()),
        }
        metadata::set_by_name(parent, base, entry).map_err(Made::Failed)
    }

    fn make_file<R: Skip>(
        &mut self,
        parent: BorrowedFd<'_>,
        base: &[u8],
        entry: &Entry,
        stream: &mut TarStream<R>,
    ) -> Result<(), Made> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(parent, base, flags, Mode::RUSR | Mode::WUSR)
            .map_err(Made::of(entry, "making a file"))?;
        let mut file = File::from(file);
        loop {
            let count = stream
                .read_content(&mut self.chunk)
                .map_err(|error| Made::Failed(error.into()))?;
            let Some(chunk) = self.chunk.get(..count).filter(|chunk| !chunk.is_empty()) else {
                break;
            };
            file.write_all(chunk)
                .map_err(|error| Made::Failed(failed(entry, "writing its content")(error)))?;
        }
        metadata::set_on_file(&file, entry).map_err(Made::Failed)
    }

    fn make_hard_link(&self, parent: BorrowedFd<'_>, base: &[u8], entry: &Entry) -> Result<(), Made> {
        let missing = || {
            let (entry, target) = (shown(&entry.name), shown(&entry.link));
            Made::Failed(LayerError::HardLinkTarget { entry, target })
        };
        let target = entry_name::parse(&entry.link).map_err(|fault| Made::Failed(fault.of_target(entry)))?;
        let name = target.base.ok_or_else(missing)?;
        let folder = folders::open_existing(self.destination.root(), &target.folders, entry)
            .map_err(Made::Failed)?
            .ok_or_else(missing)?;
        let stat = |folder: BorrowedFd<'_>, name: &[u8]| {
            folders::stat(folder, name)
                .map_err(|errno| Made::Failed(failed(entry, "looking at the link's target")(errno)))
        };
        let found = stat(folder.as_fd(), name)?.ok_or_else(missing)?;
        if file_type(&found) == FileType::Directory || is_whiteout(&found) {
            return Err(missing());
        }
        // A link to itself is there already; replacing it would lose it.
        if stat(parent, base)?.is_some_and(|own| (own.st_dev, own.st_ino) == (found.st_dev, found.st_ino)) {
            return Ok(());
        }
        rustix::fs::linkat(&folder, name, parent, base, AtFlags::empty())
            .map_err(Made::of(entry, "making a hard link"))
    }

    fn make_folder(
        &mut self,
        parent: BorrowedFd<'_>,
        base: &[u8],
        entry: &Entry,
    ) -> Result<bool, LayerError> {
        let found = folders::stat(parent, base).map_err(failed(entry, "looking for an earlier entry"))?;
        let keep = found
            .as_ref()
            .is_some_and(|stat| file_type(stat) == FileType::Directory);
        // A name the layer deletes and makes anew hides the folder of that name below.
        let opaque = found.as_ref().is_some_and(is_whiteout);
        let replaced = found.is_some() && !keep;
        if replaced {
            self.displace(parent, base, entry)?;
        }
        if !keep {
            rustix::fs::mkdirat(parent, base, Mode::RWXU).map_err(failed(entry, "making a folder"))?;
        }
        let folder = folders::open_child(parent, base, OFlags::RDONLY)
            .map_err(failed(entry, "opening the folder just made"))?;
        metadata::set_on_folder(&folder, entry)?;
        if opaque {
            metadata::set_opaque(&folder).map_err(failed(entry, "marking it opaque"))?;
        }
        Ok(replaced)
    }

    /// Removes what stands under `base`, whatever it is.
    fn displace(&self, parent: BorrowedFd<'_>, base: &[u8], entry: &Entry) -> Result<(), LayerError> {
        let removed = match rustix::fs::unlinkat(parent, base, AtFlags::empty()) {
            Err(Errno::ISDIR) => self.destination.discard.take(parent, base),
            Err(Errno::NOENT) | Ok(()) => Ok(()),
            Err(errno) => Err(errno.into()),
        };
        removed.map_err(failed(entry, "replacing an earlier entry of its name"))
    }
}

/// Why an entry was not made.
enum Made {
    /// Something has its name.
    InTheWay,
    Failed(LayerError),
}

impl Made {
    fn of(entry: &Entry, action: &'static str) -> impl Fn(Errno) -> Made {
        move |errno| match errno {
            Errno::EXIST => Made::InTheWay,
            errno => Made::Failed(failed(entry, action)(errno)),
        }
    }
}
