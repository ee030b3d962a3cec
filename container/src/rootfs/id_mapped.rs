//! Mounts whose files belong to others than on their file system (Linux 5.12).
//!
//! The kernel takes the mapping from a user namespace. One that exists for nothing else is made by a process that does
//! nothing but live until its maps are written.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::RootfsError;
use crate::kernel::clone3::{Forked, clone3};
use crate::kernel::mount_setattr::{MountAttributes, attribute, mount_setattr};
use crate::plan::{IdMapped, IdMapping, MappingOfMount, Namespace, id_map};
use crate::procfs;

/// The namespaces needed so far: mounts of one container mostly share one.
#[derive(Default)]
pub(super) struct Mappings(Vec<(MappingOfMount, OwnedFd)>);

impl Mappings {
    /// Maps the ids of a detached mount of `path`.
    pub(super) fn apply(
        &mut self,
        tree: &OwnedFd,
        path: &Path,
        wanted: &IdMapped,
    ) -> Result<(), RootfsError> {
        let namespace = self.namespace(&wanted.mapping)?;
        let attributes = MountAttributes {
            set: attribute::IDMAP,
            user_namespace: namespace.as_raw_fd() as u64,
            ..MountAttributes::default()
        };
        mount_setattr(tree, wanted.recursive, &attributes).map_err(|errno| {
            let doing = match errno {
                Errno::INVAL => "map the ids of (its file system may not be able to)",
                _ => "map the ids of",
            };
            RootfsError::path(doing, path, errno)
        })
    }

    fn namespace(&mut self, mapping: &MappingOfMount) -> Result<&OwnedFd, RootfsError> {
        let known = self.0.iter().position(|(known, _)| known == mapping);
        let index = match known {
            Some(index) => index,
            None => {
                let namespace = match mapping {
                    MappingOfMount::Namespace(path) => open(path)
                        .map_err(|errno| RootfsError::path("open the user namespace", path, errno))?,
                    MappingOfMount::Ids { uids, gids } => {
                        make(uids, gids).map_err(|(doing, source)| RootfsError::IdMapping {
                            doing,
                            mapping: describe(uids, gids),
                            source,
                        })?
                    }
                };
                self.0.push((mapping.clone(), namespace));
                self.0.len() - 1
            }
        };
        Ok(&self.0[index].1)
    }
}

fn describe(uids: &[IdMapping], gids: &[IdMapping]) -> String {
    let one_line = |mappings| id_map(mappings).trim_end().replace('\n', ", ");
    format!("uids {}; gids {}", one_line(uids), one_line(gids))
}

fn open(path: &Path) -> Result<OwnedFd, Errno> {
    openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// A user namespace with these maps, and nobody in it.
fn make(uids: &[IdMapping], gids: &[IdMapping]) -> Result<OwnedFd, (&'static str, io::Error)> {
    const MAKE: &str = "make a user namespace";
    let kernel = |errno: Errno| (MAKE, io::Error::from(errno));
    let (until_closed, close_to_end) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(kernel)?;
    // SAFETY: this process has one thread, which `create` demands before anything else, and the child only ever runs
    // `wait_for_the_end`, which does not come back.
    let forked = unsafe { clone3(Namespace::User as u64, None) }.map_err(kernel)?;
    let (pid, pidfd) = match forked {
        Forked::Child => wait_for_the_end(&until_closed, &close_to_end),
        Forked::Parent { pid, pidfd } => (pid, pidfd),
    };
    let write = |file: &str, mappings| {
        procfs::write(format!("{pid}/{file}"), id_map(mappings).as_bytes())
            .map_err(|errno| ("map the ids of a user namespace", errno.into()))
    };
    let made = write("uid_map", uids)
        .and_then(|()| write("gid_map", gids))
        .and_then(|()| {
            let namespace = File::open(format!("/proc/{pid}/ns/user"));
            namespace.map(OwnedFd::from).map_err(|source| (MAKE, source))
        });
    drop(close_to_end);
    loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Err(Errno::INTR) => {}
            // It is gone, whoever saw it.
            _ => return made,
        }
    }
}

/// Lives as long as the parent, or until the parent closes its end of the pipe.
fn wait_for_the_end(until_closed: &OwnedFd, close_to_end: &OwnedFd) -> ! {
    // SAFETY: this copy of the descriptor is used by nothing in this process, which drops nothing.
    unsafe { rustix::io::close(close_to_end.as_raw_fd()) };
    while rustix::io::read(until_closed, &mut [0]) == Err(Errno::INTR) {}
    // SAFETY: ends this process at once. Destructors and exit handlers are the parent's.
    unsafe { libc::_exit(0) }
}
