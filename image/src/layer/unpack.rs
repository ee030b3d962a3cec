//! Makes what a layer's entries describe.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::entry_name::{self, Meaning, shown};
use super::folder_resolution::{self as folders, Implied, Literal, Resolved, file_type, is_whiteout};
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
    /// Folders that no entry described, made for whiteouts to lie in: inodes, and paths free of links.
    for_whiteouts: HashMap<u64, Vec<u8>>,
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
            for_whiteouts: HashMap::new(),
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
        self.remove_deleted_folders()?;
        self.set_folder_times()
    }

    /// Hides what the layers below have in a folder.
    fn hide_all(&mut self, path: &[&[u8]], entry: &Entry) -> Result<(), LayerError> {
        if folders::find_literal(self.destination.root(), path, entry)? == Literal::Link {
            return Ok(());
        }
        let parent = folders::open_or_make(self.destination, path, entry, &mut self.times)?;
        self.described(&parent.folder, entry)?;
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
        let parent = self.folder_for_whiteouts(path, entry)?;
        match folders::stat(&parent.folder, hidden).map_err(failed(entry, action))? {
            None => {
                make_whiteout(&parent.folder, hidden).map_err(failed(entry, action))?;
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

    /// The folder a whiteout goes into.
    fn folder_for_whiteouts(&mut self, path: &[&[u8]], entry: &Entry) -> Result<Resolved, LayerError> {
        let before = self.times.len();
        let parent = folders::open_or_make(self.destination, path, entry, &mut self.times)?;
        for (made, _) in self.times.iter().skip(before) {
            let stat = rustix::fs::statat(self.destination.root(), &made[..], AtFlags::SYMLINK_NOFOLLOW)
                .map_err(failed(entry, "looking at a folder on its path"))?;
            self.for_whiteouts.insert(stat.st_ino, made.clone());
        }
        Ok(parent)
    }

    /// Notes that an entry is about this folder, which is there for its own sake then.
    fn described(&mut self, folder: impl AsFd, entry: &Entry) -> Result<(), LayerError> {
        let stat = rustix::fs::fstat(folder).map_err(failed(entry, "looking at the folder"))?;
        self.for_whiteouts.remove(&stat.st_ino);
        Ok(())
    }

    /// Removes folders that were made for whiteouts and are deleted by others, whichever came first.
    fn remove_deleted_folders(&self) -> Result<(), LayerError> {
        let mut folders: Vec<(&u64, &Vec<u8>)> = self.for_whiteouts.iter().collect();
        // What lies in a folder comes before it.
        folders.sort_by_key(|(_, path)| std::cmp::Reverse(path.len()));
        for (inode, path) in folders {
            self.remove_if_deleted(*inode, path)
                .map_err(|source| LayerError::Unpack {
                    entry: shown(path),
                    action: "removing a deleted folder",
                    source,
                })?;
        }
        Ok(())
    }

    fn remove_if_deleted(&self, inode: u64, path: &[u8]) -> io::Result<()> {
        let Some((parent, name)) = self.open_parent(path)? else {
            return Ok(());
        };
        let folder = match folders::open_child(&parent, name, OFlags::RDONLY) {
            Ok(folder) => folder,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        // Another may have taken its place.
        if rustix::fs::fstat(&folder)?.st_ino != inode {
            return Ok(());
        }
        let hides = folders::shows(self.destination, path)?;
        if hides && !metadata::is_opaque(&folder)? {
            return Ok(());
        }
        match rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR) {
            // The layer has something in it.
            Err(Errno::NOTEMPTY) => Ok(()),
            Err(errno) => Err(errno.into()),
            Ok(()) if hides => Ok(make_whiteout(&parent, name)?),
            Ok(()) => Ok(()),
        }
    }

    /// Opens the folder in which the layer itself has `path`; `Ok(None)` if a later entry replaced it.
    fn open_parent<'p>(&self, path: &'p [u8]) -> io::Result<Option<(OwnedFd, &'p [u8])>> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut parts = path.rsplitn(2, |byte| *byte == b'/');
        let name = parts.next().unwrap_or_default();
        let folder = parts.next().unwrap_or(b".");
        match rustix::fs::openat2(self.destination.root(), folder, flags, Mode::empty(), resolve) {
            Ok(parent) => Ok(Some((parent, name))),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes whiteouts that hide nothing. In a folder that no layer below has, overlayfs does not look for
    /// whiteouts but lists them, as names that cannot be opened.
    fn remove_needless_whiteouts(&self) -> Result<(), LayerError> {
        for path in &self.whiteouts {
            let failed = |source| LayerError::Unpack {
                entry: shown(path),
                action: "looking at what the whiteout hides",
                source,
            };
            let Some((parent, name)) = self.open_parent(path).map_err(failed)? else {
                continue;
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
        self.described(&folder, entry)?;
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

/// Makes overlayfs's mark of a deleted name.
fn make_whiteout(parent: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    let device = rustix::fs::makedev(0, 0);
    rustix::fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), device)
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
