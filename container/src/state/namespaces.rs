//! Which namespaces a container has, so that they are known again.

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, statat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::plan::{Namespace, NamespacePlan};

/// The inode numbers of the namespaces that are the container's own, by the configuration's words for their kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct NamespaceIdentities(BTreeMap<String, u64>);

impl NamespaceIdentities {
    /// Those of a new container's process. None are known to a caller that may not look into it.
    pub(crate) fn of(pid: i32, plan: &NamespacePlan) -> Result<NamespaceIdentities, Errno> {
        let look = || -> Result<BTreeMap<String, u64>, Errno> {
            let links = open(&format!("/proc/{pid}/ns"))?;
            let kinds = Namespace::ALL.into_iter();
            kinds
                .filter(|kind| plan.isolates(*kind))
                .map(|kind| {
                    let stat = statat(&links, kind.file_name(), AtFlags::empty())?;
                    Ok((kind.name().to_owned(), stat.st_ino))
                })
                .collect()
        };
        match look() {
            Ok(identities) => Ok(NamespaceIdentities(identities)),
            // CAP_SYS_PTRACE, without which nobody can join either.
            Err(Errno::ACCESS | Errno::PERM) => Ok(NamespaceIdentities::default()),
            Err(errno) => Err(errno),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A kind of which a process that is yet to make one in the pid namespace has another namespace. `links` is its folder
    /// of links to its own.
    pub(crate) fn find_other(&self, links: BorrowedFd<'_>) -> Result<Option<Namespace>, Errno> {
        for kind in Namespace::ALL {
            let Some(&expected) = self.0.get(kind.name()) else {
                continue;
            };
            let file = match kind {
                Namespace::Pid => "pid_for_children",
                kind => kind.file_name(),
            };
            if statat(links, file, AtFlags::empty())?.st_ino != expected {
                return Ok(Some(kind));
            }
        }
        Ok(None)
    }
}

/// The folder of links to this process's own namespaces, which they can be looked up in from wherever it goes.
pub(crate) fn own_links() -> Result<OwnedFd, Errno> {
    open("/proc/self/ns")
}

fn open(folder: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(folder, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_kind_that_is_another_is_named() {
        let linux = r#"{"namespaces":[{"type":"network"},{"type":"pid"},{"type":"mount"}]}"#;
        let plan = NamespacePlan::new(&serde_json::from_str(linux).unwrap()).unwrap();
        let own = NamespaceIdentities::of(std::process::id() as i32, &plan).unwrap();
        assert_eq!(own.0.len(), 3);
        let links = own_links().unwrap();
        assert_eq!(own.find_other(links.as_fd()).unwrap(), None);
        for (word, kind) in [("network", Namespace::Network), ("pid", Namespace::Pid)] {
            let mut other = own.clone();
            *other.0.get_mut(word).unwrap() += 1;
            assert_eq!(other.find_other(links.as_fd()).unwrap(), Some(kind));
        }
    }
}
