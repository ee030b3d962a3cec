//! The verbs for containers behind the microVM wall.
//!
//! `bulkhead-oci` has none of them: it executes `bulkhead-attendant`, which is this same command line with them. So what
//! a container on the host's kernel never needs is no part of its start.

#[cfg(not(feature = "microvm"))]
mod hand_over;
#[cfg(not(feature = "microvm"))]
pub(super) use hand_over::{configured_isolation, create, hand_over, run, run_container};

#[cfg(feature = "microvm")]
mod verbs;
#[cfg(feature = "microvm")]
pub use verbs::{GuestError, main};
#[cfg(feature = "microvm")]
pub(super) use verbs::{configured_isolation, create, run, run_container};
