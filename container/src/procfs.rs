//! The caller's `/proc`, used only where it is the kernel's.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, fstatfs, openat, openat2};
use rustix::io::Errno;

/// `PROC_SUPER_MAGIC` of `<linux/magic.h>`.
const PROC_MAGIC: i64 = 0x9fa0;
/// What the root folder of every proc file system is.
const ROOT_INODE: u64 = 1;

/// Whether a file is in a proc file system.
pub(crate) fn is_procfs(file: impl AsFd) -> Result<bool, Errno> {
    Ok(fstatfs(file)?.f_type == PROC_MAGIC)
}

/// Writes to the file at a path below `/proc`, in one write. `EXDEV` says that it is not the kernel's file: what is
/// written must reach the kernel, whatever has been put over the file or a folder on the way to it (CVE-2025-52881).
pub(crate) fn write(path: impl AsRef<Path>, value: &[u8]) -> Result<(), Errno> {
    let file = open_below(Path::new("/proc"), path.as_ref(), OFlags::WRONLY)?;
    rustix::io::write(&file, value).map(|_| ())
}

/// Reads the file at a path below `/proc`, whole, as text.
pub(crate) fn read(path: impl AsRef<Path>) -> Result<String, Errno> {
    let file = open_below(Path::new("/proc"), path.as_ref(), OFlags::RDONLY)?;
    let mut text = String::new();
    std::fs::File::from(file)
        .read_to_string(&mut text)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::ILSEQ))?;
    Ok(text)
}

fn open_below(proc: &Path, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = openat(CWD, proc, folder, Mode::empty())?;
    if !is_procfs(&proc)? || fstat(&proc)?.st_ino != ROOT_INODE {
        return Err(Errno::XDEV);
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
    openat2(&proc, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_opened_and_others_are_not() {
        let open = |proc: &str, path: &str| open_below(Path::new(proc), Path::new(path), OFlags::RDONLY);
        open("/proc", "self/oom_score_adj").unwrap();
        open("/proc", "sys/kernel/hostname").unwrap();
        for (proc, path, errno) in [
            // Something else in the place of it, or a part of it.
            ("/tmp", "self/oom_score_adj", Errno::XDEV),
            ("/proc/sys", "kernel/hostname", Errno::XDEV),
            ("/proc", "../etc/passwd", Errno::XDEV),
            ("/proc", "self/root/etc/passwd", Errno::LOOP),
        ] {
            assert_eq!(open(proc, path).unwrap_err(), errno, "{proc} {path}");
        }
    }
}
