//! Paths inside a container's root, resolved by the kernel so that nothing in the image leads out of it.
//!
//! openat2(2) with RESOLVE_IN_ROOT takes the root's descriptor for `/`: absolute symbolic links and `..` stay inside,
//! whatever other processes rename meanwhile; magic links, as in `/proc/self/fd`, are not followed at all.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{self, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// As many symbolic links as the kernel itself follows in one path.
const LINK_LIMIT: u32 = 40;
/// A rename somewhere below the root can make the kernel give up on a path with `..`; it then succeeds soon.
const ATTEMPTS: u32 = 128;

/// The root of a container's file system.
#[derive(Debug)]
pub(crate) struct ContainerRoot(OwnedFd);

impl ContainerRoot {
    pub(crate) fn new(root: OwnedFd) -> ContainerRoot {
        ContainerRoot(root)
    }

    pub(super) fn into_descriptor(self) -> OwnedFd {
        self.0
    }

    /// Opens what `path` leads to, following symbolic links inside the root.
    pub(crate) fn open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.open_with(path, flags, ResolveFlags::empty())
    }

    /// Opens `path` if no part of it is a symbolic link.
    pub(crate) fn open_without_links(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.open_with(path, flags, ResolveFlags::NO_SYMLINKS)
    }

    fn open_with(&self, path: &Path, flags: OFlags, more: ResolveFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | more;
        for _ in 0..ATTEMPTS {
            match fs::openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
        Err(Errno::AGAIN)
    }

    /// The folder at `path`, made with its parents where it is missing.
    pub(crate) fn make_folder(&self, path: &Path) -> Result<OwnedFd, Errno> {
        match self.open(path, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => {}
            result => return result,
        }
        // Usually only the last part is missing.
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name())
            && let Ok(parent) = self.open(parent, OFlags::PATH | OFlags::DIRECTORY)
        {
            match fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                Ok(()) => return open_child(&parent, name, OFlags::DIRECTORY),
                // A symbolic link that leads nowhere yet.
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        self.walk(path)
    }

    /// The same, with no part of the path a symbolic link; `ELOOP` where one is.
    pub(crate) fn make_folder_without_links(&self, path: &Path) -> Result<OwnedFd, Errno> {
        match self.open_without_links(path, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => {}
            result => return result,
        }
        self.make_folder(path)?;
        self.open_without_links(path, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// The file at `path`, made empty, with its parents, where there is nothing.
    pub(crate) fn make_file(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let mut path = path.to_owned();
        for _ in 0..LINK_LIMIT {
            match self.open(&path, OFlags::PATH) {
                Err(Errno::NOENT) => {}
                result => return result,
            }
            let (parent, name) = self.make_parent(&path)?;
            match fs::mknodat(
                &parent,
                &name,
                FileType::RegularFile,
                Mode::from_raw_mode(0o644),
                0,
            ) {
                Ok(()) => return open_child(&parent, &name, OFlags::empty()),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
            // A symbolic link that leads nowhere yet: the file is made where it leads.
            match fs::readlinkat(&parent, &name, Vec::new()) {
                Ok(target) => {
                    path.pop();
                    path.push(OsStr::from_bytes(target.as_bytes()));
                }
                // Somebody else made something there meanwhile, or nothing is left of it.
                Err(Errno::INVAL | Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::LOOP)
    }

    /// The folder that `path` is in, made where it is missing, and the last part of `path`.
    pub(crate) fn make_parent(&self, path: &Path) -> Result<(OwnedFd, OsString), Errno> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        Ok((
            self.make_folder(path.parent().unwrap_or(Path::new("/")))?,
            name.to_owned(),
        ))
    }

    /// Walks part by part, makes what is missing, and follows a symbolic link to a target that is missing too.
    fn walk(&self, path: &Path) -> Result<OwnedFd, Errno> {
        // The folders from the root down to where the walk is; `..` goes back up, but never above the first.
        let mut above: Vec<OwnedFd> = Vec::new();
        let mut here = fs::openat(
            &self.0,
            ".",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let mut ahead = parts(path);
        let mut links = 0;
        while let Some(part) = ahead.pop() {
            match part {
                Part::Root => {
                    if let Some(root) = above.drain(..).next() {
                        here = root;
                    }
                }
                Part::Up => {
                    if let Some(parent) = above.pop() {
                        here = parent;
                    }
                }
                Part::Name(name) => {
                    let next = match open_child(&here, &name, OFlags::empty()) {
                        Err(Errno::NOENT) => {
                            match fs::mkdirat(&here, &name, Mode::from_raw_mode(0o755)) {
                                Ok(()) | Err(Errno::EXIST) => {}
                                Err(errno) => return Err(errno),
                            }
                            open_child(&here, &name, OFlags::empty())?
                        }
                        result => result?,
                    };
                    if FileType::from_raw_mode(fs::fstat(&next)?.st_mode) == FileType::Symlink {
                        links += 1;
                        if links > LINK_LIMIT {
                            return Err(Errno::LOOP);
                        }
                        let target = fs::readlinkat(&next, "", Vec::new())?;
                        ahead.extend(parts(Path::new(OsStr::from_bytes(target.as_bytes()))));
                    } else {
                        above.push(std::mem::replace(&mut here, next));
                    }
                }
            }
        }
        if FileType::from_raw_mode(fs::fstat(&here)?.st_mode) == FileType::Directory {
            Ok(here)
        } else {
            Err(Errno::NOTDIR)
        }
    }
}

impl AsFd for ContainerRoot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The path by which mount(2), which takes no descriptors, reaches what `fd` refers to.
pub(crate) fn path_of(fd: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

enum Part {
    Root,
    Up,
    Name(OsString),
}

/// The parts of a path, last first.
fn parts(path: &Path) -> Vec<Part> {
    let part = |component: Component<'_>| match component {
        Component::RootDir => Some(Part::Root),
        Component::ParentDir => Some(Part::Up),
        Component::Normal(name) => Some(Part::Name(name.to_owned())),
        Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(part).collect()
}

/// Opens an entry of a folder as it is: a symbolic link is opened itself.
fn open_child(folder: &OwnedFd, name: &OsStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    fs::openat(
        folder,
        name,
        flags | OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

#[cfg(test)]
mod tests {
    use std::fs as files;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    /// A root inside a folder, so that what is beside the root can be watched.
    fn root() -> (tempfile::TempDir, PathBuf, ContainerRoot) {
        let outside = tempfile::tempdir().unwrap();
        let inside = outside.path().join("root");
        files::create_dir(&inside).unwrap();
        let fd = fs::open(&inside, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        (outside, inside, ContainerRoot::new(fd))
    }

    fn is_same(fd: &OwnedFd, path: &Path) -> bool {
        let (stat, metadata) = (fs::fstat(fd).unwrap(), files::metadata(path).unwrap());
        (stat.st_dev, stat.st_ino) == (metadata.dev(), metadata.ino())
    }

    #[test]
    fn missing_folders_are_made_and_existing_ones_found() {
        let (_outside, inside, root) = root();
        let made = root.make_folder(Path::new("/a/b/c")).unwrap();
        assert!(is_same(&made, &inside.join("a/b/c")));
        let found = root.make_folder(Path::new("/a/b/c")).unwrap();
        assert!(is_same(&found, &inside.join("a/b/c")));
    }

    #[test]
    fn an_absolute_link_counts_from_the_containers_root() {
        let (_outside, inside, root) = root();
        symlink("/etc", inside.join("link")).unwrap();
        let made = root.make_folder(Path::new("/link/deep")).unwrap();
        assert!(is_same(&made, &inside.join("etc/deep")));
    }

    #[test]
    fn links_and_dots_that_climb_end_inside() {
        let (outside, inside, root) = root();
        symlink("../../../..", inside.join("up")).unwrap();
        symlink("../escape", inside.join("dangling")).unwrap();
        for path in ["/up/one", "/dangling", "/../../two", "/up/../../three"] {
            root.make_folder(Path::new(path)).unwrap();
        }
        let mut beside: Vec<_> = files::read_dir(outside.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(beside.pop().unwrap(), "root");
        assert!(beside.is_empty());
        for name in ["one", "escape", "two", "three"] {
            assert!(inside.join(name).is_dir(), "{name}");
        }
    }

    #[test]
    fn a_dangling_link_as_a_files_parent_is_followed_inside() {
        let (_outside, inside, root) = root();
        symlink("/run/real", inside.join("link")).unwrap();
        let made = root.make_file(Path::new("/link/file")).unwrap();
        assert!(is_same(&made, &inside.join("run/real/file")));
    }

    #[test]
    fn a_dangling_link_as_a_file_is_followed_inside() {
        let (outside, inside, root) = root();
        symlink("/run/first", inside.join("link")).unwrap();
        files::create_dir(inside.join("run")).unwrap();
        symlink("../../../second", inside.join("run/first")).unwrap();
        let made = root.make_file(Path::new("/link")).unwrap();
        assert!(is_same(&made, &inside.join("second")));
        assert_eq!(files::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn links_in_a_circle_and_files_in_the_way_are_errors() {
        let (_outside, inside, root) = root();
        symlink("b", inside.join("a")).unwrap();
        symlink("a", inside.join("b")).unwrap();
        assert_eq!(root.make_folder(Path::new("/a")).unwrap_err(), Errno::LOOP);
        files::write(inside.join("file"), "").unwrap();
        assert_eq!(root.make_folder(Path::new("/file/x")).unwrap_err(), Errno::NOTDIR);
        assert_eq!(root.make_folder(Path::new("/file")).unwrap_err(), Errno::NOTDIR);
    }

    #[test]
    fn a_link_is_refused_where_none_is_wanted() {
        let (_outside, inside, root) = root();
        files::create_dir(inside.join("real")).unwrap();
        symlink("real", inside.join("proc")).unwrap();
        assert_eq!(
            root.open_without_links(Path::new("/proc"), OFlags::PATH)
                .unwrap_err(),
            Errno::LOOP
        );
    }
}
