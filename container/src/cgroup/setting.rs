//! One value for one file of a cgroup, and writing several that depend on each other.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::{CgroupError, read, write};

/// One value for one file of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) file: String,
    pub(super) value: String,
    /// The JSON path of what asked for it.
    pub(super) field: Cow<'static, str>,
    if_missing: IfMissing,
    /// What takes back a value in a file of one line for each device, where there was none for its device.
    reset: Option<&'static str>,
}

/// What a file's absence means.
#[derive(Clone, Debug, PartialEq, Eq)]
enum IfMissing {
    Refuse,
    /// The value is what the kernel does without the file.
    Ignore,
    /// Kernels have one file or the other.
    WriteInstead(&'static str, String),
}

impl Setting {
    pub(super) fn new(
        file: impl Into<String>,
        value: impl ToString,
        field: impl Into<Cow<'static, str>>,
    ) -> Setting {
        Setting {
            file: file.into(),
            value: value.to_string(),
            field: field.into(),
            if_missing: IfMissing::Refuse,
            reset: None,
        }
    }

    /// A value that the kernel has anyway where the file is missing.
    pub(super) fn dispensable(mut self) -> Setting {
        self.if_missing = IfMissing::Ignore;
        self
    }

    /// The file that other kernels have in place of the first.
    pub(super) fn or(mut self, file: &'static str, value: impl ToString) -> Setting {
        self.if_missing = IfMissing::WriteInstead(file, value.to_string());
        self
    }

    /// A file of one line for each device; `reset`, after the device, means no value.
    pub(super) fn of_a_device(mut self, reset: &'static str) -> Setting {
        self.reset = Some(reset);
        self
    }

    /// The file to write to and what; none when nothing needs to be written.
    fn target(&self, folder: &Path, first_is_missing: bool) -> Result<Option<(PathBuf, &str)>, CgroupError> {
        match (&self.if_missing, first_is_missing) {
            (_, false) => Ok(Some((folder.join(&self.file), &self.value))),
            (IfMissing::Ignore, true) => Ok(None),
            (IfMissing::WriteInstead(file, value), true) => Ok(Some((folder.join(file), value))),
            (IfMissing::Refuse, true) => Err(self.missing(folder)),
        }
    }

    fn missing(&self, folder: &Path) -> CgroupError {
        CgroupError::NoFile {
            field: self.field.to_string(),
            path: folder.join(&self.file),
        }
    }

    /// Writes the value, having noted in the journal what was there.
    fn write(&self, folder: &Path, journal: Option<&mut Journal>) -> Result<(), Refusal> {
        let mut target = self.target(folder, false)?;
        let mut first_is_missing = false;
        while let Some((path, value)) = target {
            // Without a value to go back to, there is nothing to take back.
            let present = journal
                .as_ref()
                .and_then(|_| self.present_value(&path, value).ok());
            match write_lines(&path, value) {
                Ok(()) => {
                    if let (Some(journal), Some(present)) = (journal, present) {
                        journal.push((path, present));
                    }
                    return Ok(());
                }
                Err(Errno::NOENT) if !first_is_missing => {
                    first_is_missing = true;
                    target = self.target(folder, true)?;
                }
                Err(Errno::NOENT) => return Err(self.missing(folder).into()),
                Err(Errno::INVAL) => return Err(Refusal::ForNow(self.refused(value, path, Errno::INVAL))),
                Err(errno) => return Err(self.refused(value, path, errno).into()),
            }
        }
        Ok(())
    }

    fn refused(&self, value: &str, path: PathBuf, errno: Errno) -> CgroupError {
        CgroupError::Setting {
            field: self.field.to_string(),
            value: value.to_owned(),
            path,
            source: errno.into(),
        }
    }

    /// What would make the file as it is now.
    fn present_value(&self, path: &Path, value: &str) -> Result<String, Errno> {
        let text = read(path)?;
        let Some(reset) = self.reset else {
            let line = text.lines().next().unwrap_or_default().trim();
            // Two files name the value that they take without its name.
            let line = line.strip_prefix("default ").unwrap_or(line);
            return Ok(line.strip_prefix("oom_kill_disable ").unwrap_or(line).to_owned());
        };
        let device = value.split(' ').next().unwrap_or_default();
        let of_device = |line: &&str| line.split(' ').next() == Some(device);
        Ok(text
            .lines()
            .find(of_device)
            .map_or_else(|| format!("{device} {reset}"), |line| line.trim().to_owned()))
    }
}

/// Why a value was not written.
enum Refusal {
    /// It contradicts another value, which may be about to change.
    ForNow(CgroupError),
    ForGood(CgroupError),
}

impl From<CgroupError> for Refusal {
    fn from(error: CgroupError) -> Refusal {
        Refusal::ForGood(error)
    }
}

/// A file and what was in it.
type Journal = Vec<(PathBuf, String)>;

/// Writes each setting into its folder. The kernel checks some values against others, in an order that depends on what
/// was there before: what it refuses is tried again after the rest, for as long as that gets any further.
pub(super) fn apply(settings: &[(PathBuf, Setting)]) -> Result<(), CgroupError> {
    apply_noting(settings, None)
}

/// The same to cgroups in use: all or nothing.
pub(super) fn apply_or_take_back(settings: &[(PathBuf, Setting)]) -> Result<(), CgroupError> {
    let mut journal = Vec::new();
    let Err(error) = apply_noting(settings, Some(&mut journal)) else {
        return Ok(());
    };
    let files = take_back(journal);
    if files.is_empty() {
        Err(error)
    } else {
        Err(CgroupError::NotTakenBack {
            files,
            source: Box::new(error),
        })
    }
}

fn apply_noting(
    settings: &[(PathBuf, Setting)],
    mut journal: Option<&mut Journal>,
) -> Result<(), CgroupError> {
    let mut pending: Vec<&(PathBuf, Setting)> = settings.iter().collect();
    while !pending.is_empty() {
        let mut refused = Vec::new();
        let mut first_refusal = None;
        for &entry in &pending {
            let (folder, setting) = entry;
            match setting.write(folder, journal.as_deref_mut()) {
                Ok(()) => {}
                Err(Refusal::ForNow(error)) => {
                    first_refusal.get_or_insert(error);
                    refused.push(entry);
                }
                Err(Refusal::ForGood(error)) => return Err(error),
            }
        }
        match first_refusal {
            Some(error) if refused.len() == pending.len() => return Err(error),
            _ => pending = refused,
        }
    }
    Ok(())
}

/// Writes back what was there, the last first, and names the files for which that failed.
fn take_back(journal: Journal) -> Vec<PathBuf> {
    let mut pending: Journal = journal.into_iter().rev().collect();
    loop {
        let before = pending.len();
        pending.retain(|(path, value)| write_lines(path, value).is_err());
        if pending.is_empty() || pending.len() == before {
            return pending.into_iter().map(|(path, _)| path).collect();
        }
    }
}

/// The kernel takes one line in each write.
fn write_lines(path: &Path, value: &str) -> Result<(), Errno> {
    if !value.contains('\n') {
        return write(path, value);
    }
    value
        .lines()
        .filter(|line| !line.is_empty())
        .try_for_each(|line| write(path, line))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (file, text) in files {
            fs::write(folder.path().join(file), text).unwrap();
        }
        folder
    }

    fn apply_in(folder: &Path, settings: Vec<Setting>) -> Result<(), CgroupError> {
        let settings: Vec<(PathBuf, Setting)> = settings
            .into_iter()
            .map(|setting| (folder.to_owned(), setting))
            .collect();
        apply_or_take_back(&settings)
    }

    #[test]
    fn the_file_that_the_kernel_has_is_written() {
        let folder = folder(&[("other", "")]);
        apply_in(
            folder.path(),
            vec![
                Setting::new("one", 1, "a").or("other", 2),
                Setting::new("none", 3, "b").dispensable(),
            ],
        )
        .unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("other")).unwrap(), "2");
    }

    #[test]
    fn a_file_that_no_kernel_of_this_kind_has_is_refused_by_its_place_and_the_rest_taken_back() {
        let folder = folder(&[("first", "8\n"), ("weight", "default 100\n8:0 7\n")]);
        let error = apply_in(
            folder.path(),
            vec![
                Setting::new("first", 9, "a"),
                Setting::new("weight", 50, "b"),
                Setting::new("missing", 1, "c.d"),
            ],
        )
        .unwrap_err();
        assert!(error.to_string().starts_with("c.d: "), "{error}");
        let text = |file: &str| fs::read_to_string(folder.path().join(file)).unwrap();
        assert!(text("first").starts_with('8'), "{}", text("first"));
        assert!(text("weight").starts_with("100"), "{}", text("weight"));
    }

    #[test]
    fn a_device_goes_back_to_its_own_line_or_to_none() {
        let folder = folder(&[("io.max", "8:0 rbps=5\n")]);
        let path = folder.path().join("io.max");
        let setting = Setting::new("io.max", "8:0 rbps=9", "a").of_a_device("rbps=max");
        assert_eq!(setting.present_value(&path, "8:0 rbps=9").unwrap(), "8:0 rbps=5");
        assert_eq!(
            setting.present_value(&path, "8:1 rbps=9").unwrap(),
            "8:1 rbps=max"
        );
    }
}
