//! The shapes of the files that statistics are read from.

use std::collections::BTreeMap;
use std::path::Path;

use rustix::io::Errno;

use super::super::{CgroupError, read};

/// A file's text; empty when there is no such file, or the kernel was started without what it is for.
pub(super) fn text(folder: &Path, file: &str) -> Result<String, CgroupError> {
    let path = folder.join(file);
    match read(&path) {
        Ok(text) => Ok(text),
        Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => Ok(String::new()),
        Err(errno) => Err(CgroupError::io("read", &path, errno)),
    }
}

/// A file that holds one number, or `max`.
pub(super) fn number(folder: &Path, file: &str) -> Result<Option<u64>, CgroupError> {
    let text = text(folder, file)?;
    Ok(match text.trim() {
        "max" => Some(u64::MAX),
        text => text.parse().ok(),
    })
}

/// A file of `name number` lines.
pub(super) fn named(folder: &Path, file: &str) -> Result<BTreeMap<String, u64>, CgroupError> {
    Ok(text(folder, file)?
        .lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        })
        .collect())
}

/// A file of numbers with spaces between them.
pub(super) fn numbers(folder: &Path, file: &str) -> Result<Vec<u64>, CgroupError> {
    let text = text(folder, file)?;
    Ok(text
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect())
}

/// A list of numbers and ranges, as in `0-2,7`.
pub(super) fn list(folder: &Path, file: &str) -> Result<Vec<u16>, CgroupError> {
    let text = text(folder, file)?;
    let range = |part: &str| -> Option<std::ops::RangeInclusive<u16>> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    Ok(text.trim().split(',').filter_map(range).flatten().collect())
}

/// `major:minor` as two numbers.
pub(super) fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The sizes of huge pages on this machine, as the names of cgroup files have them.
pub(super) fn hugepage_sizes() -> Vec<String> {
    let folders = std::fs::read_dir("/sys/kernel/mm/hugepages")
        .into_iter()
        .flatten();
    folders
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let kilobytes = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?;
            Some(hugepage_size(kilobytes.parse().ok()?))
        })
        .collect()
}

fn hugepage_size(kilobytes: u64) -> String {
    match kilobytes {
        kilobytes if kilobytes >= 1 << 20 => format!("{}GB", kilobytes >> 20),
        kilobytes if kilobytes >= 1 << 10 => format!("{}MB", kilobytes >> 10),
        kilobytes => format!("{kilobytes}KB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_ranges_and_sizes_are_read() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("cpus"), "0-2,7\n").unwrap();
        std::fs::write(folder.path().join("none"), "\n").unwrap();
        assert_eq!(list(folder.path(), "cpus").unwrap(), [0, 1, 2, 7]);
        assert!(list(folder.path(), "none").unwrap().is_empty());
        assert_eq!([64, 2048, 1 << 20].map(hugepage_size), ["64KB", "2MB", "1GB"]);
    }
}
