//! Machines booted through the real program: flat guests of a few bytes, and the real kernel.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "in tests an unwrap is an assertion"
)]

mod bad_input;
mod balloon;
mod cpio;
mod disk;
mod flat_guest;
mod hostile;
mod kernel_boot;
mod kernel_network;
mod kernel_queues;
mod kernel_snapshot;
#[path = "../flat_guest/machine_code.rs"]
mod machine_code;
mod own_root;
mod program;
mod snapshot;
mod stopping;
mod virtio_guest;
