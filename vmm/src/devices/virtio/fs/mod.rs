//! A directory of the host, shared with the guest (virtio 1.2, section 5.11; FUSE as in Linux's `fuse.h`).
//!
//! The server is fuse-backend-rs's passthrough file system, in this process. It answers whatever the guest's kernel is
//! made to ask, so it stands behind two more layers:
//! - `device` takes requests from the queues, of bounded size, and sees that each is answered;
//! - `guarded` is a file system around the library's. It allows no name that leads out of a directory, bounds what
//!   the guest makes this process hold, refuses writes to a read-only share, and decides what the guest may cache.
//!   `nodes` is its memory of the files the guest knows.
//!
//! # What the guest may cache
//!
//! The directory is laid out by its owner, one directory for each container, `<share>/<id>/`, and in it `rootfs`, the
//! mount of that container's own file system. Hence three places with different rules:
//!
//! | place | who changes it | the guest keeps names | and attributes |
//! |---|---|---|---|
//! | `<share>` and `<share>/<id>` | the owner, while the guest runs | not at all | not at all |
//! | `<share>/<id>/rootfs` and below | the guest; a client that copies files into it | ten seconds, absent names too | ten seconds |
//! | anything else, such as volumes | the guest and other processes | a second | a second |
//!
//! Writes are not held back in the guest: what a container wrote is in the host's file when `write` returns, and is
//! there when the machine is killed; and a file that others append to keeps its true size.

mod device;
mod guarded;
mod nodes;

#[cfg(test)]
mod fuse_guest;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod tests;

pub use self::device::{Fs, FsError};
