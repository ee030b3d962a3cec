//! Containers of the OCI command line behind the microVM wall, without a daemon.
//!
//! ```text
//! <root>/<id>/            a container's folder, beside those of the containers on the host's kernel
//!     container.json          what is known of it: its sandbox, its attendant, where it is in its life
//!     config.json             its configuration as it was when it was created, but for limits that were changed since
//!     sandbox.json, vm/       if it was the first of its pod: the virtual machine
//!     disks.json, disks.lock  the disks that containers have brought into it, if they have
//!     end.json                why the machine ended, if nobody meant it to
//!     owed-<id>               a container that is gone, of which the guest could not be told yet
//! ```
//!
//! Two kinds of processes outlive the command that made them. The **VMM** is the pod's virtual machine. An **attendant**
//! stands on the host for one process in it: it holds that process's standard streams or its terminal, hands on the
//! signals it gets, and exits as the process does, so that whoever called the command line can wait for it. When one of
//! them dies the others notice: an attendant by the VMM's pidfd, the agent by the leash, a stream that carries nothing.

/// The folder of the containers' states where no other is named.
pub const DEFAULT_ROOT: &str = "/run/bulkhead-oci";

pub mod folder;
pub mod machine_end;
pub mod record;
pub mod sandbox_record;

#[cfg(feature = "microvm")]
pub mod attendant;
#[cfg(feature = "microvm")]
pub mod disks;
#[cfg(feature = "microvm")]
pub mod guest_configuration;
#[cfg(feature = "microvm")]
pub mod membership;
#[cfg(feature = "microvm")]
pub mod new_limits;
#[cfg(feature = "microvm")]
pub mod owed;
#[cfg(feature = "microvm")]
pub mod sandbox;
