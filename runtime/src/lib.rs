//! Pods behind either wall, and the command lines that make them.
//!
//! [`sandbox::Sandbox`] is the one interface; [`sandbox::shared_kernel`] and [`micro_vm`] are its two walls. The OCI
//! command line uses the engine directly, and is built with neither feature; for a container behind the microVM wall it
//! executes `bulkhead-attendant`, the same command line with the feature `microvm` ([`oci_pod`]).

pub mod annotations;
pub mod isolation;
pub mod oci_cli;
pub mod oci_pod;
pub mod printable;
pub mod sizing;
pub mod start_record;
pub mod terminal;

#[cfg(feature = "microvm")]
pub mod configuration;
#[cfg(feature = "microvm")]
pub mod forwarded_signals;
#[cfg(feature = "microvm")]
pub mod kill_process;
#[cfg(feature = "microvm")]
pub mod kvm;
#[cfg(feature = "microvm")]
pub mod micro_vm;
#[cfg(feature = "people")]
pub mod people;
#[cfg(feature = "microvm")]
pub mod pod_network;
#[cfg(feature = "microvm")]
pub mod sandbox;
#[cfg(feature = "microvm")]
pub mod unused_name;
