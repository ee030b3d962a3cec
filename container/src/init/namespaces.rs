//! Entering and furnishing namespaces.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::clocks;
use crate::kernel::bring_loopback_up;
use crate::plan::{Namespace, NamespacePlan, Plan};
use crate::process::SetUpError;

/// Existing namespaces, opened by the caller before anything changed.
pub(crate) struct JoinedNamespaces(Vec<(Namespace, PathBuf, OwnedFd)>);

impl JoinedNamespaces {
    pub(crate) fn open(plan: &NamespacePlan) -> Result<JoinedNamespaces, (PathBuf, Errno)> {
        let open = |(kind, path): &(Namespace, PathBuf)| {
            rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .map(|fd| (*kind, path.clone(), fd))
                .map_err(|errno| (path.clone(), errno))
        };
        plan.joined
            .iter()
            .map(open)
            .collect::<Result<_, _>>()
            .map(JoinedNamespaces)
    }

    /// The pid namespace to join. A process cannot change its own, only that of the children it makes next, so this
    /// one is the caller's business.
    pub(crate) fn pid(&self) -> Option<&OwnedFd> {
        self.0
            .iter()
            .find(|(kind, ..)| *kind == Namespace::Pid)
            .map(|(.., fd)| fd)
    }
}

/// Enters the existing namespaces, and makes the cgroup and time namespaces.
pub(super) fn enter(joined: &JoinedNamespaces, plan: &NamespacePlan) -> Result<(), SetUpError> {
    for (kind, path, fd) in &joined.0 {
        let kind = match kind {
            Namespace::Network => LinkNameSpaceType::Network,
            Namespace::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
            Namespace::Ipc => LinkNameSpaceType::InterProcessCommunication,
            Namespace::Cgroup => LinkNameSpaceType::ControlGroup,
            // The caller did it; the others are refused by the plan.
            Namespace::Pid | Namespace::Mount | Namespace::User | Namespace::Time => continue,
        };
        move_into_link_name_space(fd.as_fd(), Some(kind)).map_err(SetUpError::field(
            "linux.namespaces",
            format!("join the namespace {}", path.display()),
        ))?;
    }
    if plan.creates(Namespace::Cgroup) {
        // SAFETY: a new cgroup namespace touches no descriptors.
        unsafe { unshare_unsafe(UnshareFlags::NEWCGROUP) }
            .map_err(SetUpError::step("make the cgroup namespace"))?;
    }
    if plan.creates(Namespace::Time) {
        clocks::enter_time_namespace(&plan.time_offsets)?;
    }
    Ok(())
}

/// Gives new namespaces what they lack: a loopback interface that is up, a host name, a domain name.
pub(super) fn furnish(plan: &Plan) -> Result<(), SetUpError> {
    if plan.namespaces.creates(Namespace::Network) {
        bring_loopback_up().map_err(SetUpError::step("bring the loopback interface up"))?;
    }
    if let Some(hostname) = &plan.hostname {
        rustix::system::sethostname(hostname.as_bytes())
            .map_err(SetUpError::field("hostname", format!("set it to `{hostname}`")))?;
    }
    if let Some(domainname) = &plan.domainname {
        rustix::system::setdomainname(domainname.as_bytes()).map_err(SetUpError::field(
            "domainname",
            format!("set it to `{domainname}`"),
        ))?;
    }
    Ok(())
}
