//! What reads strangers' bytes, as functions of any bytes. Each panics where a promise is broken: nothing panics below it,
//! what is refused is refused with its place, and what is accepted means the same when it is written and read again.
//!
//! `cargo test -p fuzz` runs a fixed number of [mutants](mutation) of each target's seeds; `fuzz/run` gives a target to
//! libFuzzer, which looks for inputs that take new ways through the code, for as long as one likes.

mod configuration;
mod layer;
pub mod mutation;
mod snapshot;
mod template;

/// One function of any bytes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// What it is called by.
    pub name: &'static str,
    /// The function. It panics where a promise is broken.
    pub run: fn(&[u8]),
    /// Inputs to begin with, all of which are accepted.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Whether its inputs are JSON documents.
    pub is_json: bool,
    /// What it may allocate at a time, in bytes, beside a hundred times the input's size.
    pub memory: usize,
}

/// All targets.
pub const TARGETS: [Target; 6] = [
    configuration::TARGET,
    layer::TARGET,
    snapshot::FRAME,
    snapshot::DESCRIPTION,
    snapshot::MACHINE,
    template::TARGET,
];

/// The target of this name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}
