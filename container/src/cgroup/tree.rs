//! Walking a cgroup and all below it.
//!
//! What is below is the container's to make, as deep as it likes: the walk goes by descriptors and a list of names, so
//! that neither the length of a path nor the number of open files or stack frames bounds it.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::CgroupError;

/// A cgroup on the way, whose descendants were all visited.
pub(super) struct Node<'a> {
    pub(super) directory: BorrowedFd<'a>,
    /// The folder it is in and its name there; none for the one the walk began with.
    pub(super) above: Option<(BorrowedFd<'a>, &'a CStr)>,
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Visits every cgroup below `folder`, then `folder` itself. One that vanishes meanwhile is not visited.
pub(super) fn visit(
    folder: &Path,
    mut visitor: impl FnMut(Node<'_>) -> Result<(), CgroupError>,
) -> Result<(), CgroupError> {
    let failed = |errno| CgroupError::io("list", folder, errno);
    let mut current = match fs::open(folder, DIRECTORY, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(failed(errno)),
    };
    // For each cgroup from the first down to the current one: its name, and which of its children are still to come.
    let mut levels = vec![(None, children(&current).map_err(failed)?)];
    while let Some((name, to_come)) = levels.last_mut() {
        if let Some(child) = to_come.pop() {
            match fs::openat(&current, &child, DIRECTORY, Mode::empty()) {
                Ok(directory) => {
                    levels.push((Some(child), children(&directory).map_err(failed)?));
                    current = directory;
                }
                Err(Errno::NOENT | Errno::NODEV) => {}
                Err(errno) => return Err(failed(errno)),
            }
            continue;
        }
        let Some(name) = name.take() else {
            let directory = current.as_fd();
            return visitor(Node {
                directory,
                above: None,
            });
        };
        let parent = fs::openat(&current, c"..", DIRECTORY, Mode::empty()).map_err(failed)?;
        visitor(Node {
            directory: current.as_fd(),
            above: Some((parent.as_fd(), &name)),
        })?;
        current = parent;
        levels.pop();
    }
    Ok(())
}

/// The names of the cgroups directly below one. Its link count tells whether there are any, without listing all its
/// files.
fn children(directory: &OwnedFd) -> Result<Vec<CString>, Errno> {
    match fs::fstat(directory) {
        Ok(stat) if stat.st_nlink == 2 => return Ok(Vec::new()),
        Ok(_) => {}
        Err(errno) => return Err(errno),
    }
    let mut children = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = match entry {
            Ok(entry) => entry,
            Err(Errno::NOENT | Errno::NODEV) => break,
            Err(errno) => return Err(errno),
        };
        let name = entry.file_name();
        if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
            children.push(name.to_owned());
        }
    }
    Ok(children)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_below_is_visited_before_what_it_is_below() {
        let root = tempfile::tempdir().unwrap();
        for path in ["a/b", "a/c/d", "e"] {
            std::fs::create_dir_all(root.path().join(path)).unwrap();
        }
        let mut visited = Vec::new();
        visit(root.path(), |node| {
            let name = node
                .above
                .map_or(String::from("."), |(_, name)| name.to_string_lossy().into_owned());
            visited.push(name);
            Ok(())
        })
        .unwrap();
        let place = |name: &str| visited.iter().position(|visited| visited == name).unwrap();
        assert_eq!(visited.len(), 6);
        assert!(place("d") < place("c") && place("c") < place("a") && place("b") < place("a"));
        assert_eq!(place("."), 5);
    }

    #[test]
    fn a_depth_beyond_any_path_is_walked() {
        let root = tempfile::tempdir().unwrap();
        let mut folder = fs::open(root.path(), DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..3000 {
            fs::mkdirat(&folder, c"deeper", Mode::RWXU).unwrap();
            folder = fs::openat(&folder, c"deeper", DIRECTORY, Mode::empty()).unwrap();
        }
        let mut removed = 0;
        visit(root.path(), |node| {
            if let Some((parent, name)) = node.above {
                fs::unlinkat(parent, name, fs::AtFlags::REMOVEDIR).unwrap();
                removed += 1;
            }
            Ok(())
        })
        .unwrap();
        assert_eq!(removed, 3000);
    }

    #[test]
    fn a_folder_that_is_gone_has_nothing_to_visit() {
        visit(Path::new("/does/not/exist"), |_| panic!()).unwrap();
    }
}
