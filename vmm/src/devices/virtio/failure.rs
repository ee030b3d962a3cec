//! How a device says that it can no longer work.

use std::error::Error;
use std::sync::Arc;

/// A device that stopped for a reason on the host's side. A guest that breaks the rules of its own driver is not one:
/// its device asks for a reset and waits.
#[derive(Debug, thiserror::Error)]
#[error("virtio device {device} failed")]
pub struct DeviceFailure {
    /// The device's name.
    pub device: &'static str,
    /// What it could not do.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

/// What takes a device's failure: called by the device's thread just before it ends, or by the vCPU whose driver could
/// not be given a thread. It must not reset the device itself, because a reset waits for that thread.
pub type FailureHandler = Arc<dyn Fn(DeviceFailure) + Send + Sync>;
