//! The network devices that a container is given, and netlink, which whoever describes a pod's network speaks too.

mod devices;
pub mod netlink;

pub use devices::NetDeviceError;
pub(crate) use devices::move_devices;
