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
mod kernel_boot;
mod kernel_network;
mod kernel_snapshot;
mod own_root;
mod program;
mod snapshot;
mod stopping;
mod virtio_guest;
