//! Asking a file which kind of namespace it stands for (ioctl_nsfs(2)).

use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::fstatfs;
use rustix::io::Errno;

use super::checked;

/// `NSFS_MAGIC` of `<linux/magic.h>`.
const NSFS_MAGIC: i64 = 0x6e73_6673;
/// `NS_GET_NSTYPE` of `<linux/nsfs.h>`.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// The CLONE_NEW flag of the namespace; none for a file that is not one.
pub(crate) fn namespace_kind(file: impl AsFd) -> Result<Option<u64>, Errno> {
    let file = file.as_fd();
    // To other files, devices above all, the request could mean anything.
    if fstatfs(file)?.f_type != NSFS_MAGIC {
        return Ok(None);
    }
    // SAFETY: the request takes no argument and changes nothing.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    match checked(kind.into()) {
        Ok(kind) => Ok(Some(kind as u64)),
        // A file of this file system that is not a namespace, as a pidfd is in newer kernels.
        Err(Errno::NOTTY) => Ok(None),
        Err(errno) => Err(errno),
    }
}
