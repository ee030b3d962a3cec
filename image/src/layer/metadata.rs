//! Owner, mode, extended attributes and times of what a layer unpacks to.
//!
//! The order matters: chown(2) clears setuid bits and file capabilities, so it comes first.

use std::io;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::LayerError;
use super::entry_name::shown;
use crate::tar_stream::{Entry, Kind, Time};

/// Marks a folder that hides what the layers below have in it (Documentation/filesystems/overlayfs.rst,
/// "whiteouts and opaque directories").
const OPAQUE: &str = "trusted.overlay.opaque";
/// Attributes by which overlayfs is steered: a layer that brings its own could point into other layers.
const RESERVED: &[u8] = b"trusted.overlay.";
/// A label of the machine that packed the layer. The host's policy labels its own files.
const SELINUX: &[u8] = b"security.selinux";

/// Mode of a folder no layer says anything about.
const FOLDER_MODE: u32 = 0o755;

/// Sets an open file's metadata from its entry.
pub(super) fn set_on_file(file: impl AsFd, entry: &Entry) -> Result<(), LayerError> {
    set_owner_mode_attributes(file.as_fd(), entry)?;
    rustix::fs::futimens(&file, &timestamps(entry.mtime)).map_err(failed(entry, "setting its times"))
}

/// Sets an open folder's metadata from its entry, its times excepted: they change until the last entry is in it.
pub(super) fn set_on_folder(folder: impl AsFd, entry: &Entry) -> Result<(), LayerError> {
    set_owner_mode_attributes(folder.as_fd(), entry)
}

fn set_owner_mode_attributes(fd: BorrowedFd<'_>, entry: &Entry) -> Result<(), LayerError> {
    let (uid, gid) = owner(entry);
    rustix::fs::fchown(fd, uid, gid).map_err(failed(entry, "setting its owner"))?;
    rustix::fs::fchmod(fd, mode(entry)).map_err(failed(entry, "setting its mode"))?;
    for (name, value) in attributes(entry)? {
        rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty())
            .map_err(failed(entry, "setting an extended attribute"))?;
    }
    Ok(())
}

/// Sets the metadata of a link, device or FIFO, which must not be opened: it is named in its folder.
pub(super) fn set_by_name(parent: BorrowedFd<'_>, base: &[u8], entry: &Entry) -> Result<(), LayerError> {
    let (uid, gid) = owner(entry);
    rustix::fs::chownat(parent, base, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(failed(entry, "setting its owner"))?;
    if entry.kind != Kind::Symlink {
        // Follows links, but what stands there was made a moment ago and is none.
        rustix::fs::chmodat(parent, base, mode(entry), AtFlags::empty())
            .map_err(failed(entry, "setting its mode"))?;
    }
    for (name, value) in attributes(entry)? {
        // There is no setxattrat(2) before Linux 6.13; the descriptor's link in /proc stands in for its folder.
        let path = [format!("/proc/self/fd/{}/", raw(parent)).as_bytes(), base].concat();
        rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
            .map_err(failed(entry, "setting an extended attribute"))?;
    }
    rustix::fs::utimensat(parent, base, &timestamps(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(failed(entry, "setting its times"))
}

/// The attributes to set, checked.
fn attributes(entry: &Entry) -> Result<impl Iterator<Item = (&[u8], &[u8])>, LayerError> {
    if let Some((name, _)) = entry.xattrs.iter().find(|(name, _)| name.starts_with(RESERVED)) {
        return Err(LayerError::ReservedAttribute {
            entry: shown(&entry.name),
            name: shown(name),
        });
    }
    let wanted = entry.xattrs.iter().filter(|(name, _)| name != SELINUX);
    Ok(wanted.map(|(name, value)| (&name[..], &value[..])))
}

/// Makes `to` look like `from`, a folder of another layer, and returns the times to set when it is complete.
pub(crate) fn copy_folder_metadata(from: impl AsFd, to: impl AsFd) -> io::Result<Time> {
    let (from, to) = (reopen(from)?, to.as_fd());
    let stat = rustix::fs::fstat(&from)?;
    rustix::fs::fchown(
        to,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    for name in attribute_names(&from)? {
        if !name.starts_with(RESERVED) && name != SELINUX {
            let value = attribute(&from, &name)?;
            rustix::fs::fsetxattr(to, &name[..], &value, XattrFlags::empty())?;
        }
    }
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or_default();
    Ok(Time {
        seconds: stat.st_mtime,
        nanoseconds,
    })
}

/// Gives a folder that no layer describes its metadata: root's, and old, so that two unpackings are the same.
pub(super) fn set_folder_defaults(folder: impl AsFd) -> io::Result<Time> {
    rustix::fs::fchown(&folder, Some(Uid::ROOT), Some(Gid::ROOT))?;
    rustix::fs::fchmod(&folder, Mode::from_raw_mode(FOLDER_MODE))?;
    Ok(Time::default())
}

/// Hides what the layers below have in `folder`.
pub(super) fn set_opaque(folder: impl AsFd) -> io::Result<()> {
    rustix::fs::fsetxattr(reopen(folder)?, OPAQUE, b"y", XattrFlags::empty())?;
    Ok(())
}

/// Whether `folder` hides what the layers below have in it.
pub(crate) fn is_opaque(folder: impl AsFd) -> io::Result<bool> {
    let mut value = [0; 8];
    match rustix::fs::fgetxattr(reopen(folder)?, OPAQUE, &mut value) {
        Ok(length) => Ok(value.get(..length) == Some(b"y")),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Sets a folder's times.
pub(super) fn set_times(folder: impl AsFd, time: Time) -> io::Result<()> {
    Ok(rustix::fs::futimens(folder, &timestamps(time))?)
}

/// A descriptor for reading, of a folder that may have been opened as a path only.
fn reopen(folder: impl AsFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(folder, ".", flags, Mode::empty())?)
}

fn attribute_names(fd: impl AsFd) -> io::Result<Vec<Vec<u8>>> {
    let mut list = Vec::with_capacity(4096);
    match rustix::fs::flistxattr(fd, rustix::buffer::spare_capacity(&mut list)) {
        Ok(_) => {}
        Err(Errno::OPNOTSUPP) => {}
        Err(errno) => return Err(errno.into()),
    }
    Ok(list
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect())
}

fn attribute(fd: impl AsFd, name: &[u8]) -> io::Result<Vec<u8>> {
    // The kernel's XATTR_SIZE_MAX.
    let mut value = Vec::with_capacity(65_536);
    rustix::fs::fgetxattr(fd, name, rustix::buffer::spare_capacity(&mut value))?;
    Ok(value)
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
}

fn mode(entry: &Entry) -> Mode {
    Mode::from_raw_mode(entry.mode)
}

fn timestamps(time: Time) -> Timestamps {
    let time = Timespec {
        tv_sec: time.seconds,
        tv_nsec: time.nanoseconds.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

fn raw(fd: BorrowedFd<'_>) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(&fd)
}

/// Turns a failed call into an error that names the entry.
pub(super) fn failed<'a, E: Into<io::Error>>(
    entry: &'a Entry,
    action: &'static str,
) -> impl Fn(E) -> LayerError + 'a {
    move |error| LayerError::Unpack {
        entry: shown(&entry.name),
        action,
        source: error.into(),
    }
}
