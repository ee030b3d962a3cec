//! The hooks of a container that is made elsewhere: in a virtual machine, whose host has the programs.

use oci_spec::runtime::Spec;

use crate::hook::{self, DefaultEnvironment, HookError};
use crate::plan::{HookPlan, SpecError};
use crate::state::OciState;

/// The hooks that run in the caller's namespaces. Those that want the container's are not for the host to run.
#[derive(Debug)]
pub struct HostHooks(HookPlan);

impl HostHooks {
    /// Those of a configuration.
    ///
    /// # Errors
    /// With the hook that cannot be run.
    pub fn new(spec: &Spec) -> Result<HostHooks, SpecError> {
        HookPlan::new(spec).map(HostHooks)
    }

    /// Whether there is any of `prestart` and `createRuntime`.
    pub fn has_create_runtime(&self) -> bool {
        !self.0.create_runtime.is_empty()
    }

    /// Runs `prestart` and `createRuntime`, until one fails.
    ///
    /// # Errors
    /// When one fails.
    pub fn run_create_runtime(&self, state: &OciState) -> Result<(), HookError> {
        hook::run_all(&self.0.create_runtime, state, DefaultEnvironment::Inherited)
    }

    /// Runs `poststart`, until one fails.
    ///
    /// # Errors
    /// When one fails.
    pub fn run_poststart(&self, state: &OciState) -> Result<(), HookError> {
        hook::run_all(&self.0.poststart, state, DefaultEnvironment::Inherited)
    }

    /// Runs `poststop`, all of them, and returns what went wrong.
    pub fn run_poststop(&self, state: &OciState) -> Vec<HookError> {
        hook::run_each(&self.0.poststop, state)
    }
}
