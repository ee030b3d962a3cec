//! Finds the folder an entry belongs into, and makes what is missing on the way.

use std::io;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::entry_name::shown;
use super::metadata::{self, failed};
use super::{Destination, LayerError};
use crate::tar_stream::{Entry, LONGEST_NAME, Time};

/// Symbolic links on one path at most, as in the kernel (`MAXSYMLINKS`).
const MOST_LINKS: usize = 40;

/// A folder that no entry described when something below it was unpacked, and the times it shall have.
pub(super) type Implied = (Vec<u8>, Time);

/// Opens `folders`, following links inside the layer; `Ok(None)` if something on the way is missing or in the way.
pub(super) fn open_existing(
    root: BorrowedFd<'_>,
    folders: &[&[u8]],
    entry: &Entry,
) -> Result<Option<OwnedFd>, LayerError> {
    let path = if folders.is_empty() {
        b".".to_vec()
    } else {
        folders.join(&b'/')
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
        Ok(folder) => Ok(Some(folder)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(failed(entry, "opening its folder")(errno)),
    }
}

/// What a layer itself has under a path, links not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Literal {
    Folder,
    /// The path leads through a symbolic link, or ends in one.
    Link,
    /// Something else than a folder stands on the path.
    Other,
    Missing,
}

/// Looks `folders` up without following links.
pub(super) fn find_literal(
    root: BorrowedFd<'_>,
    folders: &[&[u8]],
    entry: &Entry,
) -> Result<Literal, LayerError> {
    let path = if folders.is_empty() {
        b".".to_vec()
    } else {
        folders.join(&b'/')
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
        Ok(_) => Ok(Literal::Folder),
        Err(Errno::LOOP) => Ok(Literal::Link),
        Err(Errno::NOTDIR) => Ok(Literal::Other),
        Err(Errno::NOENT) => Ok(Literal::Missing),
        Err(errno) => Err(failed(entry, "looking at a folder on its path")(errno)),
    }
}

/// A folder, and where it lies below the layer's root, free of links.
pub(super) struct Resolved {
    pub(super) folder: OwnedFd,
    pub(super) path: Vec<Vec<u8>>,
}

/// Opens `folders` component by component and makes the missing ones, whose paths and times go to `implied`.
pub(super) fn open_or_make(
    destination: &Destination<'_>,
    folders: &[&[u8]],
    entry: &Entry,
    implied: &mut Vec<Implied>,
) -> Result<Resolved, LayerError> {
    let root = destination.root();
    // The next component is the last.
    let mut pending: Vec<Vec<u8>> = folders.iter().rev().map(|folder| folder.to_vec()).collect();
    // Where `here` lies below the root, free of links: what `..` in a link's target goes back on.
    let mut resolved: Vec<Vec<u8>> = Vec::new();
    let mut here = open_resolved(root, &resolved, entry)?;
    let mut links = 0;
    while let Some(component) = pending.pop() {
        match &component[..] {
            b"" | b"." => continue,
            b".." => {
                resolved.pop();
                here = open_resolved(root, &resolved, entry)?;
                continue;
            }
            _ => {}
        }
        let found = stat(&here, &component).map_err(failed(entry, "looking at a folder on its path"))?;
        match found.as_ref().map(file_type) {
            Some(FileType::Directory) => {}
            Some(FileType::Symlink) => {
                links += 1;
                if links > MOST_LINKS {
                    let reason = "its path leads through more than 40 symbolic links";
                    return Err(LayerError::Unreachable {
                        entry: shown(&entry.name),
                        reason,
                    });
                }
                let target = rustix::fs::readlinkat(&here, &component[..], Vec::new())
                    .map_err(failed(entry, "reading a link on its path"))?
                    .into_bytes();
                if target.starts_with(b"/") {
                    resolved.clear();
                    here = open_resolved(root, &resolved, entry)?;
                }
                pending.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                continue;
            }
            Some(_) if found.as_ref().is_some_and(is_whiteout) => {
                rustix::fs::unlinkat(&here, &component[..], AtFlags::empty())
                    .map_err(failed(entry, "replacing a whiteout on its path"))?;
                let folder = make(&here, &component, entry)?;
                let time = metadata::set_folder_defaults(&folder)
                    .and_then(|time| metadata::set_opaque(&folder).map(|()| time))
                    .map_err(failed(entry, "making a folder on its path"))?;
                implied.push((join(&resolved, &component), time));
            }
            Some(_) => {
                let obstacle = shown(&join(&resolved, &component));
                return Err(LayerError::NotAFolder {
                    entry: shown(&entry.name),
                    obstacle,
                });
            }
            None => {
                let folder = make(&here, &component, entry)?;
                let path = join(&resolved, &component);
                let time = match folder_below(destination.below, &path)
                    .map_err(failed(entry, "looking for its folder in the layers below"))?
                {
                    Some(lower) => metadata::copy_folder_metadata(lower, &folder),
                    None => metadata::set_folder_defaults(&folder),
                };
                implied.push((path, time.map_err(failed(entry, "making a folder on its path"))?));
            }
        }
        here = open_child(&here, &component, OFlags::PATH)
            .map_err(failed(entry, "opening a folder on its path"))?;
        resolved.push(component);
        if resolved.iter().map(|part| part.len() + 1).sum::<usize>() > LONGEST_NAME {
            let reason = "it lies deeper than a path can be long";
            return Err(LayerError::Unreachable {
                entry: shown(&entry.name),
                reason,
            });
        }
    }
    Ok(Resolved {
        folder: here,
        path: resolved,
    })
}

/// What stands under `name` in `folder`, itself and not what it links to.
pub(super) fn stat(folder: impl AsFd, name: &[u8]) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

pub(super) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Whether it is overlayfs's mark of a deleted name: a character device 0:0.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    file_type(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Opens a folder in `parent`, not following a link.
pub(super) fn open_child(parent: impl AsFd, name: &[u8], access: OFlags) -> Result<OwnedFd, Errno> {
    let flags = access | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

fn make(parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<OwnedFd, LayerError> {
    rustix::fs::mkdirat(parent, name, Mode::RWXU)
        .and_then(|()| open_child(parent, name, OFlags::RDONLY))
        .map_err(failed(entry, "making a folder on its path"))
}

/// Gives the layer's root the metadata it has if the layer does not describe it: that of the layer below.
pub(super) fn prepare_root(destination: &Destination<'_>) -> io::Result<Time> {
    match destination.below.first() {
        Some(below) => metadata::copy_folder_metadata(below, destination.root()),
        None => metadata::set_folder_defaults(destination.root()),
    }
}

fn open_resolved(root: BorrowedFd<'_>, resolved: &[Vec<u8>], entry: &Entry) -> Result<OwnedFd, LayerError> {
    let path = if resolved.is_empty() {
        b".".to_vec()
    } else {
        resolved.join(&b'/')
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
        .map_err(failed(entry, "opening a folder on its path"))
}

pub(super) fn join(folders: &[Vec<u8>], name: &[u8]) -> Vec<u8> {
    let parts: Vec<&[u8]> = folders.iter().map(Vec::as_slice).chain([name]).collect();
    parts.join(&b'/')
}

/// The folder `path` as the layers below show it.
fn folder_below(below: &[OwnedFd], path: &[u8]) -> io::Result<Option<OwnedFd>> {
    match find_below(below, path)? {
        Some((found, stat)) if file_type(&stat) == FileType::Directory => Ok(Some(found)),
        _ => Ok(None),
    }
}

/// Whether the layers below show anything as `path` to a layer that has the folders on the way.
pub(super) fn shows(destination: &Destination<'_>, path: &[u8]) -> io::Result<bool> {
    if hides_below(destination.root(), path)? {
        return Ok(false);
    }
    Ok(find_below(destination.below, path)?.is_some_and(|(_, stat)| !is_whiteout(&stat)))
}

/// What the topmost layer that has `path` has there, unless one above it hides it.
fn find_below(below: &[OwnedFd], path: &[u8]) -> io::Result<Option<(OwnedFd, Stat)>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for layer in below {
        match rustix::fs::openat2(layer, path, flags, Mode::empty(), resolve) {
            Ok(found) => {
                let stat = rustix::fs::fstat(&found)?;
                return Ok(Some((found, stat)));
            }
            Err(Errno::NOENT) if hides_below(layer.as_fd(), path)? => return Ok(None),
            Err(Errno::NOENT) => {}
            // A file, link or whiteout stands on the way.
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(None)
}

/// Whether a folder of `layer` on the way to `path` is opaque.
fn hides_below(layer: BorrowedFd<'_>, path: &[u8]) -> io::Result<bool> {
    let mut here = open_child(layer, b".", OFlags::PATH)?;
    for component in path.split(|byte| *byte == b'/') {
        if metadata::is_opaque(&here)? {
            return Ok(true);
        }
        here = match open_child(&here, component, OFlags::PATH) {
            Ok(folder) => folder,
            Err(_) => return Ok(false),
        };
    }
    Ok(false)
}
