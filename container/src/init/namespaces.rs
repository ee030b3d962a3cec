//! Entering and furnishing namespaces.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::clocks;
use crate::kernel::calls::{bring_loopback_up, sethostname, unshare_unsafe};
use crate::kernel::namespace_kind::namespace_kind;
use crate::plan::{JoinedNamespace, Namespace, NamespacePlan, Plan, parse_id_map, sysctl_kind};
use crate::process::SetUpError;

/// A namespace of `linux.namespaces` that cannot be joined.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The file cannot be opened.
    #[error("config.json: linux.namespaces[{index}].path: cannot open {}", path.display())]
    Open {
        /// Its place in the list.
        index: usize,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The file is some other.
    #[error("config.json: linux.namespaces[{index}].path: {} is {found}, and not a {wanted} namespace", path.display())]
    OtherKind {
        /// Its place in the list.
        index: usize,
        /// The file.
        path: PathBuf,
        /// What the file is.
        found: String,
        /// What the configuration says it is.
        wanted: &'static str,
    },
    /// The file is the caller's own namespace, and something is to be set in it.
    #[error(
        "config.json: linux.namespaces[{index}].path: {} is the caller's own namespace, in which nothing may be set: \
         remove hostname, domainname, linux.sysctl and linux.netDevices of it",
        path.display()
    )]
    Callers {
        /// Its place in the list.
        index: usize,
        /// The file.
        path: PathBuf,
    },
}

/// Whether the file is of the namespace that this process is in.
fn is_callers(kind: Namespace, file: &OwnedFd) -> Result<bool, Errno> {
    let own = rustix::fs::stat(format!("/proc/self/ns/{}", kind.file_name()))?;
    let other = rustix::fs::fstat(file)?;
    Ok((own.st_dev, own.st_ino) == (other.st_dev, other.st_ino))
}

/// Existing namespaces, opened by the caller before anything changed.
pub(crate) struct JoinedNamespaces<'a>(Vec<(&'a JoinedNamespace, OwnedFd)>);

impl JoinedNamespaces<'_> {
    pub(crate) fn open(plan: &NamespacePlan) -> Result<JoinedNamespaces<'_>, NamespaceError> {
        let open = |joined| open(joined).map(|fd| (joined, fd));
        plan.joined
            .iter()
            .map(open)
            .collect::<Result<_, _>>()
            .map(JoinedNamespaces)
    }

    /// A path may also lead to a namespace of the caller's. That is shared like one that is not listed, and nothing in it
    /// may be set, but for parameters of a network that is the containers' alone.
    pub(crate) fn check_settings(&self, plan: &Plan, sets_own_network: bool) -> Result<(), NamespaceError> {
        for (joined, fd) in &self.0 {
            let is_set = match joined.kind {
                Namespace::Uts => plan.hostname.is_some() || plan.domainname.is_some(),
                Namespace::Network => !plan.net_devices.is_empty(),
                _ => false,
            };
            let may_be_set = sets_own_network && joined.kind == Namespace::Network;
            let mut parameters = plan.sysctl.iter().map(|(path, _)| sysctl_kind(path));
            let has_parameters = !may_be_set && parameters.any(|kind| kind == Some(joined.kind));
            if (is_set || has_parameters) && is_callers(joined.kind, fd).unwrap_or(true) {
                return Err(NamespaceError::Callers {
                    index: joined.index,
                    path: joined.path.clone(),
                });
            }
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The pid namespace to join. A process cannot change its own, only that of the children it makes next, so this
    /// one is the business of whoever makes the container's process.
    pub(crate) fn pid(&self) -> Option<&OwnedFd> {
        self.of_kind(Namespace::Pid).map(|(_, fd)| fd)
    }

    /// The network namespace to join.
    pub(crate) fn network(&self) -> Option<&OwnedFd> {
        self.of_kind(Namespace::Network).map(|(_, fd)| fd)
    }

    fn of_kind(&self, kind: Namespace) -> Option<&(&JoinedNamespace, OwnedFd)> {
        self.0.iter().find(|(joined, _)| joined.kind == kind)
    }

    /// Enters all that belong to the process itself, save a user namespace.
    pub(super) fn enter(&self) -> Result<(), SetUpError> {
        // The mount namespace last, because it also changes what paths mean.
        for kind in [
            Namespace::Network,
            Namespace::Uts,
            Namespace::Ipc,
            Namespace::Cgroup,
            Namespace::Time,
            Namespace::Mount,
        ] {
            self.enter_one(kind)?;
        }
        Ok(())
    }

    /// Enters the pid namespace for the child of this process.
    pub(super) fn enter_for_child(&self) -> Result<(), SetUpError> {
        self.enter_one(Namespace::Pid)
    }

    /// Enters the user namespace and, for the children of this process, the pid namespace.
    pub(super) fn enter_for_children(&self) -> Result<(), SetUpError> {
        self.enter_one(Namespace::Pid)?;
        self.enter_one(Namespace::User)
    }

    fn enter_one(&self, kind: Namespace) -> Result<(), SetUpError> {
        let Some((joined, fd)) = self.of_kind(kind) else {
            return Ok(());
        };
        let kind = match kind {
            Namespace::Network => LinkNameSpaceType::Network,
            Namespace::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
            Namespace::Ipc => LinkNameSpaceType::InterProcessCommunication,
            Namespace::Cgroup => LinkNameSpaceType::ControlGroup,
            Namespace::Time => LinkNameSpaceType::Time,
            Namespace::Mount => LinkNameSpaceType::Mount,
            Namespace::User => LinkNameSpaceType::User,
            Namespace::Pid => LinkNameSpaceType::ProcessID,
        };
        move_into_link_name_space(fd.as_fd(), Some(kind)).map_err(SetUpError::field(
            format!("linux.namespaces[{}].path", joined.index),
            format!("join {}", joined.path.display()),
        ))
    }
}

/// Whether a container can be given the network namespace at this path, which is that of `linux.namespaces[index]`.
///
/// # Errors
/// When there is no such file, or it is some other.
pub fn check_network_namespace(path: &Path, index: usize) -> Result<(), NamespaceError> {
    let joined = JoinedNamespace {
        index,
        kind: Namespace::Network,
        path: path.to_owned(),
    };
    open(&joined).map(drop)
}

fn open(joined: &JoinedNamespace) -> Result<OwnedFd, NamespaceError> {
    let look = || -> Result<_, Errno> {
        // Whatever it is, it is not waited for.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&joined.path, flags, Mode::empty())?;
        let kind = namespace_kind(&fd)?;
        Ok((fd, kind))
    };
    let (fd, found) = look().map_err(|errno| NamespaceError::Open {
        index: joined.index,
        path: joined.path.clone(),
        source: errno.into(),
    })?;
    if found == Some(joined.kind as u64) {
        return Ok(fd);
    }
    let found = found.map(|found| Namespace::ALL.into_iter().find(|kind| *kind as u64 == found));
    Err(NamespaceError::OtherKind {
        index: joined.index,
        path: joined.path.clone(),
        found: match found {
            None => "no namespace".to_owned(),
            Some(None) => "a namespace of an unknown kind".to_owned(),
            Some(Some(kind)) => format!("a {} namespace", kind.name()),
        },
        wanted: joined.kind.name(),
    })
}

/// Makes those that [`may_be_made_inside`](NamespacePlan::may_be_made_inside) and do not depend on the cgroups.
pub(super) fn make_meanwhile(plan: &NamespacePlan) -> Result<(), SetUpError> {
    let flags = plan.clone_flags() & !(Namespace::Pid as u64);
    // SAFETY: new namespaces touch no descriptors.
    unsafe { unshare_unsafe(UnshareFlags::from_bits_retain(flags as u32)) }
        .map_err(SetUpError::step("make the container's namespaces"))
}

/// Makes the cgroup and time namespaces, of which others are made with the process.
pub(super) fn make(plan: &NamespacePlan) -> Result<(), SetUpError> {
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

/// Refuses mappings in the configuration that are not those of the user namespace that was joined.
pub(super) fn check_mappings(plan: &NamespacePlan) -> Result<(), SetUpError> {
    for (file, field, configured) in [
        ("uid_map", "linux.uidMappings", &plan.uid_mappings),
        ("gid_map", "linux.gidMappings", &plan.gid_mappings),
    ] {
        if configured.is_empty() {
            continue;
        }
        let map = crate::procfs::read(format!("self/{file}")).map_err(SetUpError::field(
            field,
            "read the mappings of the user namespace",
        ))?;
        let (mut configured, mut actual) = (configured.clone(), parse_id_map(&map));
        for mappings in [&mut configured, &mut actual] {
            mappings.sort_unstable_by_key(|mapping| mapping.container);
        }
        if configured != actual {
            return Err(SetUpError::Field {
                field: field.to_owned(),
                doing: "map ids otherwise than the user namespace that is joined does".to_owned(),
                source: Errno::INVAL.into(),
            });
        }
    }
    Ok(())
}

/// Gives new namespaces what they lack: a loopback interface that is up, a host name, a domain name.
pub(super) fn furnish(plan: &Plan) -> Result<(), SetUpError> {
    if plan.namespaces.creates(Namespace::Network) {
        bring_loopback_up().map_err(SetUpError::step("bring the loopback interface up"))?;
    }
    if let Some(hostname) = &plan.hostname {
        sethostname(hostname.as_bytes())
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
