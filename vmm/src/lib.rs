//! `bulkhead-vmm`: one process, one KVM microVM. Knows nothing of containers.
//!
//! [`config`] is what a machine is described by, [`status`] what it says on its standard output, [`control`] what it
//! can be asked. [`machine`] opens, builds and runs it; [`snapshot`] is what it can be kept as.

pub mod boot;
pub mod bus;
pub mod capabilities;
pub mod completion;
pub mod config;
pub mod console_ring;
pub mod control;
pub mod devices;
pub mod exit;
pub mod kernel_mode;
pub mod machine;
pub mod memory;
pub mod own_root;
pub mod snapshot;
pub mod status;
pub mod stop;
pub mod vcpu;
