//! Instructions that kvm-pvm cannot emulate, executed by flat guests under real KVM.
//!
//! The tests look at what the instruction did, not at who did it: with hardware virtualization they pass without the
//! completion module being called once. On kvm-pvm each also makes sure that it was.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test an unwrap is an assertion"
)]

mod flat_guest;

#[path = "completion/control.rs"]
mod control;
#[path = "completion/exceptions.rs"]
mod exceptions;
#[path = "completion/page_faults.rs"]
mod page_faults;
#[path = "completion/runner.rs"]
mod runner;
#[path = "completion/scalar.rs"]
mod scalar;
#[path = "completion/xsave.rs"]
mod xsave;
