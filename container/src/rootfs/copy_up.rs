//! `tmpcopyup`: a tmpfs that begins with what the image has in its place.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps, XattrFlags, chmodat, chownat, fchmod,
    fchown, fgetxattr, flistxattr, fsetxattr, fstat, futimens, mkdirat, mknodat, openat, readlinkat,
    sendfile, statat, symlinkat, utimensat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

/// As deep as folders may be in each other. Each level needs descriptors.
const DEPTH_LIMIT: u32 = 128;
/// The longest value of an extended attribute and the longest list of their names (`<linux/limits.h>`).
const XATTR_LIMIT: usize = 64 << 10;

/// Copies what is in the folder `from`, and its owner, to the folder `to`.
pub(super) fn copy_up(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    copy_entries(from, to, 0)?;
    let to = open_folder(to, c".")?;
    let stat = fstat(from)?;
    let (uid, gid) = owner(&stat);
    set_owner(fchown(&to, Some(uid), Some(gid)))
}

fn copy_entries(from: &OwnedFd, to: &OwnedFd, depth: u32) -> Result<(), Errno> {
    if depth > DEPTH_LIMIT {
        return Err(Errno::NAMETOOLONG);
    }
    let from = open_folder(from, c".")?;
    for entry in Dir::read_from(&from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            copy_entry(&from, to, name, depth)?;
        }
    }
    Ok(())
}

fn copy_entry(from: &OwnedFd, to: &OwnedFd, name: &CStr, depth: u32) -> Result<(), Errno> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            mkdirat(to, name, Mode::RWXU)?;
            let (from, to) = (open_folder(from, name)?, open_folder(to, name)?);
            copy_entries(&from, &to, depth + 1)?;
            copy_attributes(&from, &to, &stat)
        }
        FileType::RegularFile => copy_file(from, to, name),
        FileType::Symlink => {
            let target = readlinkat(from, name, Vec::new())?;
            symlinkat(&target, to, name)?;
            copy_owner_and_times(to, name, &stat)
        }
        kind => {
            mknodat(to, name, kind, mode(&stat), stat.st_rdev)?;
            copy_owner_and_times(to, name, &stat)?;
            chmodat(to, name, mode(&stat), AtFlags::empty())
        }
    }
}

fn copy_file(from: &OwnedFd, to: &OwnedFd, name: &CStr) -> Result<(), Errno> {
    // Whatever has come there meanwhile, it is not waited for.
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let from = openat(from, name, read, Mode::empty())?;
    let stat = fstat(&from)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::AGAIN);
    }
    let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let to = openat(to, name, write, Mode::RUSR | Mode::WUSR)?;
    loop {
        match sendfile(&to, &from, None, 1 << 30) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    copy_attributes(&from, &to, &stat)
}

fn copy_attributes(from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> Result<(), Errno> {
    let (uid, gid) = owner(stat);
    set_owner(fchown(to, Some(uid), Some(gid)))?;
    fchmod(to, mode(stat))?;
    // After the owner, whose change takes a file's capabilities away.
    copy_extended_attributes(from, to)?;
    futimens(to, &times(stat))
}

fn copy_extended_attributes(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    let mut names = Vec::with_capacity(XATTR_LIMIT);
    match flistxattr(from, rustix::buffer::spare_capacity(&mut names)) {
        Ok(_) => {}
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(errno) => return Err(errno),
    }
    for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let name = CString::new(name).map_err(|_| Errno::INVAL)?;
        let mut value = Vec::with_capacity(XATTR_LIMIT);
        fgetxattr(from, &name, rustix::buffer::spare_capacity(&mut value))?;
        match fsetxattr(to, &name, &value, XattrFlags::empty()) {
            // Older kernels have no attributes of users on a tmpfs, and root of a user namespace may not set trusted
            // ones; neither gives anybody rights.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn copy_owner_and_times(folder: impl AsFd, name: &CStr, stat: &Stat) -> Result<(), Errno> {
    let (uid, gid) = owner(stat);
    set_owner(chownat(
        &folder,
        name,
        Some(uid),
        Some(gid),
        AtFlags::SYMLINK_NOFOLLOW,
    ))?;
    utimensat(&folder, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)
}

/// Who has no id in the container's user namespace cannot own its files: they stay root's.
fn set_owner(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::INVAL | Errno::PERM) => Ok(()),
        result => result,
    }
}

fn open_folder(folder: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(folder, name, flags, Mode::empty())
}

fn owner(stat: &Stat) -> (Uid, Gid) {
    (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid))
}

fn mode(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode & 0o7777)
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime,
            tv_nsec: stat.st_atime_nsec as _,
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec as _,
        },
    }
}
