//! The network devices that a container is given.

mod devices;
mod netlink;

pub use devices::NetDeviceError;
pub(crate) use devices::move_devices;
