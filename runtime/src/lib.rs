//! Pods behind either wall, and the command lines that make them.
//!
//! [`sandbox::Sandbox`] is the one interface; [`sandbox::shared_kernel`] and [`micro_vm`] are its two walls. The OCI
//! command line uses the engine directly and is built without the feature `people`.

pub mod isolation;
pub mod oci_cli;

#[cfg(feature = "people")]
pub mod configuration;
#[cfg(feature = "people")]
pub mod kvm;
#[cfg(feature = "people")]
pub mod micro_vm;
#[cfg(feature = "people")]
pub mod people;
#[cfg(feature = "people")]
pub mod sandbox;
#[cfg(feature = "people")]
pub mod sizing;
pub mod terminal;
