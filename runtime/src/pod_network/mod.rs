//! The network that a pod already has, carried into its virtual machine: whoever made the pod's network namespace (CNI,
//! netavark, a person) has put interfaces there, with addresses and routes. Each is described, for the guest to have the
//! same, and tied to a tap: what arrives at the interface is sent out of the tap, into the guest, and the other way
//! round.

mod description;
mod redirection;
mod tap;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use container::netlink::Netlink;
use protocol::sandbox::NetworkRequest;
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use vmm::config::NetworkRateLimit;

use self::redirection::Redirection;

/// The network namespace of whoever runs this.
const OUR_NAMESPACE: &str = "/proc/self/ns/net";

/// The first three bytes of the addresses that the guest's devices have until they get the pod's. The second lowest bit
/// of the first says that nobody was assigned it.
const DEVICE_PREFIX: [u8; 3] = [0x02, 0x62, 0x68];

/// What of a pod's network a machine is given.
#[derive(Debug, Default)]
pub struct PodNetwork {
    /// What the guest's network is to be; its interfaces are in the order of the taps.
    pub description: NetworkRequest,
    /// How fast each of its machine's network devices may be.
    pub rates: NetworkRateLimit,
    devices: usize,
    taps: Vec<Vec<OwnedFd>>,
    redirections: Option<Redirections>,
}

/// What ends with the taps on one side only.
#[derive(Debug)]
struct Redirections {
    namespace: OwnedFd,
    made: Vec<Redirection>,
}

/// Why a pod's network cannot be carried into its machine.
#[derive(Debug, thiserror::Error)]
pub enum PodNetworkError {
    /// The namespace is not there, or is none.
    #[error("entering the network namespace {}", .path.display())]
    Namespace {
        /// Its path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is the host's.
    #[error(
        "the network namespace {} is the host's own, which a virtual machine cannot be given: give the pod a network of \
         its own, or choose `--isolation shared-kernel`",
        .path.display()
    )]
    HostNetwork {
        /// Its path.
        path: PathBuf,
    },
    /// The thread that enters it cannot be had.
    #[error("starting a thread for the pod's network")]
    Thread(#[source] io::Error),
    /// What is in it cannot be read.
    #[error("reading the {what} of the pod's network")]
    Read {
        /// What.
        what: &'static str,
        /// The cause.
        #[source]
        source: Errno,
    },
    /// An interface that no Ethernet device in the guest can stand for.
    #[error(
        "the pod's interface {name} is no Ethernet device, which is all that a virtual machine can have: take it down, or \
         choose `--isolation shared-kernel`"
    )]
    NotEthernet {
        /// The interface.
        name: String,
    },
    /// A route that is not carried over.
    #[error(
        "the pod's route to {destination} has several next hops, which are not carried into a virtual machine: choose \
         `--isolation shared-kernel`"
    )]
    Multipath {
        /// Where it leads.
        destination: String,
    },
    /// What a pod's network takes cannot even be tried.
    #[error("{doing} to try what a pod's network takes")]
    Trial {
        /// What was being done.
        doing: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// An interface and its tap could not be tied together.
    #[error("{doing} for the pod's interface {interface}")]
    Step {
        /// What was being done.
        doing: &'static str,
        /// The interface.
        interface: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl PodNetwork {
    /// Ties the interfaces of this namespace to new taps, each of which has so many queues. The taps and their side of the
    /// redirection live as long as their descriptors do, in whichever process.
    ///
    /// # Errors
    /// With the interface and the step; then everything is as it was.
    pub fn of(namespace: &Path, queues: u8) -> Result<Self, PodNetworkError> {
        let failed = |source| PodNetworkError::Namespace {
            path: namespace.to_owned(),
            source,
        };
        let file = File::open(namespace).map_err(failed)?;
        let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let theirs = file.metadata().map(identity).map_err(failed)?;
        let ours = std::fs::metadata(OUR_NAMESPACE).map(identity).map_err(failed)?;
        if theirs == ours {
            return Err(PodNetworkError::HostNetwork {
                path: namespace.to_owned(),
            });
        }
        let namespace_of = PathBuf::from(namespace);
        let descriptor = OwnedFd::from(file);
        inside(move || {
            move_into_link_name_space(descriptor.as_fd(), Some(LinkNameSpaceType::Network)).map_err(
                |errno| PodNetworkError::Namespace {
                    path: namespace_of,
                    source: errno.into(),
                },
            )?;
            connect(descriptor, queues)
        })?
    }

    /// That of a machine to be saved: this many devices, and nothing at their other ends.
    pub fn without_taps(devices: usize) -> Self {
        let mut network = Self::default();
        network.devices = devices;
        network
    }

    /// The taps, in the order of the interfaces, each with the descriptors of its queues.
    pub fn taps(&self) -> &[Vec<OwnedFd>] {
        &self.taps
    }

    /// How many network devices its machine has: one for each interface.
    pub fn devices(&self) -> usize {
        self.devices.max(self.taps.len())
    }

    /// Leaves the redirections to the machine, which has the taps now.
    pub fn hand_over(mut self) {
        self.redirections = None;
    }
}

impl Drop for PodNetwork {
    fn drop(&mut self) {
        let Some(Redirections { namespace, made }) = self.redirections.take() else {
            return;
        };
        // There is nobody to tell: what is left of a failure goes with the namespace, and the next start replaces it.
        let _ = inside(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            let mut netlink = Netlink::open()?;
            for redirection in &made {
                let _ = redirection.undo(&mut netlink);
            }
            Ok::<_, Errno>(())
        });
    }
}

/// The address that the guest's device of this place has until it gets its interface's.
pub fn device_mac(index: usize) -> [u8; 6] {
    let [a, b, c] = DEVICE_PREFIX;
    let [.., d, e, f] = (index as u64).to_be_bytes();
    [a, b, c, d, e, f]
}

/// Runs something on a thread of its own, which may change its namespaces: it ends with them.
fn inside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, PodNetworkError> {
    let thread = thread::Builder::new().name("pod-network".to_owned());
    let joined = thread.spawn(work).map_err(PodNetworkError::Thread)?.join();
    joined.map_err(|_| PodNetworkError::Thread(io::Error::other("it has panicked")))
}

/// Does all that is done within the namespace, which this thread is in.
fn connect(namespace: OwnedFd, queues: u8) -> Result<PodNetwork, PodNetworkError> {
    let mut netlink = Netlink::open().map_err(|source| PodNetworkError::Read {
        what: "devices",
        source,
    })?;
    let (description, indices) = description::read(&mut netlink)?;
    // From here on what is made is undone by dropping it.
    let mut network = PodNetwork {
        description,
        rates: NetworkRateLimit::default(),
        devices: 0,
        taps: Vec::new(),
        redirections: Some(Redirections {
            namespace,
            made: Vec::new(),
        }),
    };
    for (interface, index) in network.description.interfaces.iter().zip(indices) {
        let made = network
            .redirections
            .as_mut()
            .map(|redirections| &mut redirections.made);
        let tap = tie(&mut netlink, &interface.name, index, interface.mtu, queues, made)?;
        network.taps.push(tap);
    }
    Ok(network)
}

/// Ties the device of this name and number to a new tap, and adds to `made` what does not end with that.
fn tie(
    netlink: &mut Netlink,
    interface: &str,
    index: u32,
    mtu: u32,
    queues: u8,
    made: Option<&mut Vec<Redirection>>,
) -> Result<Vec<OwnedFd>, PodNetworkError> {
    let step = |doing| {
        let interface = interface.to_owned();
        move |source| PodNetworkError::Step {
            doing,
            interface,
            source,
        }
    };
    let (tap, name) = tap::make(queues).map_err(step("making a tap by /dev/net/tun"))?;
    let tap_index = netlink
        .index_of(&name)
        .map_err(io::Error::from)
        .map_err(step("finding the tap"))?;
    tap::bring_up(netlink, tap_index, mtu, queues)
        .map_err(io::Error::from)
        .map_err(step("bringing the tap up"))?;
    let inwards = Redirection {
        from: index,
        to: tap_index,
    };
    let outwards = Redirection {
        from: tap_index,
        to: index,
    };
    // That of the tap ends with it.
    outwards
        .make(netlink)
        .map_err(io::Error::from)
        .map_err(step("redirecting what the tap sends"))?;
    if let Some(made) = made {
        made.push(inwards);
    }
    inwards
        .make(netlink)
        .map_err(io::Error::from)
        .map_err(step("redirecting what arrives"))?;
    Ok(tap)
}

/// Does what carrying a pod's network takes, in a network namespace that is there for this alone, with a tap for the pod's
/// interface. The kernel loads what modules it has for that.
///
/// # Errors
/// With the step that this kernel, or whoever runs this, cannot do.
pub fn try_out() -> Result<(), PodNetworkError> {
    const MTU: u32 = 1500;
    inside(|| {
        let failed = |doing| move |source| PodNetworkError::Trial { doing, source };
        // SAFETY: the thread stops sharing its network alone, and ends with this.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
            .map_err(io::Error::from)
            .map_err(failed("making a network namespace"))?;
        let (_tap, name) = tap::make(1).map_err(failed("making a tap by /dev/net/tun"))?;
        let mut netlink = Netlink::open()
            .map_err(io::Error::from)
            .map_err(failed("asking for network devices"))?;
        let index = netlink
            .index_of(&name)
            .map_err(io::Error::from)
            .map_err(failed("finding the tap"))?;
        tie(&mut netlink, &name, index, MTU, 1, None).map(drop)
    })?
}

#[cfg(test)]
mod tests;
