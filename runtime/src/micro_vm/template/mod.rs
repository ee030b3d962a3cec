//! Templates: machines that have booted and reached an agent that serves, saved once, cloned for each sandbox. A clone
//! maps the saved memory privately, so clones share what they do not write, and nothing is copied on the way.
//!
//! A template holds no tenant's data: it is saved before the guest is told anything but to boot. What makes a clone
//! somebody of its own it is told afterwards, in the same call that a machine which has just booted gets
//! (`Sandbox.Prepare`).

pub mod inputs;
pub mod store;

use std::time::Duration;

use serde::Deserialize;
use vmm::control::Request;

use self::inputs::{InputError, TemplateInputs};
use self::store::{StoreError, Template, TemplateLock, TemplateStore};
use super::boot::{BootError, LOAD_DEADLINE};
use super::control::{self, ControlError};
use super::machine_files::MachineFiles;
use super::start::{self, Life, NewMachine};
use crate::configuration::MicroVmConfiguration;
use crate::pod_network::PodNetwork;
use crate::sizing::MachineSize;

/// Writing a guest's memory to a disk that is busy.
const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(60);

/// Whether machines are cloned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TemplatePolicy {
    /// Each machine boots.
    Never,
    /// Each is cloned, the template being built when it is missing; one that cannot be cloned boots, and says why.
    #[default]
    Auto,
    /// Each is cloned; one that cannot be is an error.
    Require,
}

/// Why there is no template.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// One of its inputs is not there.
    #[error(transparent)]
    Input(#[from] InputError),
    /// Its inputs cannot be written down.
    #[error("describing the template")]
    Describe(#[from] serde_json::Error),
    /// The folder of templates cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The machine did not boot.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The machine cloned from it does not come up.
    #[error("cloning a machine from template {template}")]
    Clone {
        /// The template's name.
        template: String,
        /// The cause.
        #[source]
        source: BootError,
    },
    /// Somebody replaced an input while the machine booted.
    #[error("the template was not kept: {reason} while it was built")]
    Changed {
        /// What has changed.
        reason: String,
    },
    /// The machine could not be saved.
    #[error("saving the machine that has booted for the template")]
    Snapshot(#[from] ControlError),
}

/// The template for machines of this size with so many network devices, and whether it had to be built. Whoever finds it missing builds it; others
/// that need it meanwhile wait.
///
/// # Errors
/// When it is missing and cannot be built.
pub async fn obtain(
    store: &TemplateStore,
    configuration: &MicroVmConfiguration,
    size: MachineSize,
    network_devices: usize,
) -> Result<(Template, bool), TemplateError> {
    let inputs = TemplateInputs::of(configuration, size, network_devices)?;
    let name = inputs.name()?;
    if let Some(template) = found(store, &name, &inputs) {
        return Ok((template, false));
    }
    let patience = configuration
        .boot_deadline
        .saturating_add(LOAD_DEADLINE + SNAPSHOT_DEADLINE);
    let lock = store.lock(&name, patience).await?;
    if let Some(template) = found(store, &name, &inputs) {
        return Ok((template, false));
    }
    // What is swept up now is room for the new one.
    prune(store);
    let built = match build(&lock, configuration, &inputs, size).await {
        Ok(()) => lock.finish(&inputs).map_err(TemplateError::from),
        Err(error) => Err(error),
    };
    if built.is_err() {
        // The reason why it was not built is the one to tell.
        let _ = lock.abandon();
    }
    let template = built?;
    prune(store);
    Ok((template, true))
}

/// The template of that name if it was made from these inputs, as its name alone does not prove: somebody may have
/// renamed or copied its folder.
fn found(store: &TemplateStore, name: &str, inputs: &TemplateInputs) -> Option<Template> {
    let template = store.find(name)?;
    match store.inputs_of(&template) {
        Ok(of) if of == *inputs => {}
        Ok(_) => return None,
        Err(error) => {
            eprintln!(
                "bulkhead: building template {name} anew: {:#}",
                anyhow::Error::new(error)
            );
            return None;
        }
    }
    // When it was used last decides only which template goes first.
    let _ = store.touch(&template);
    Some(template)
}

fn prune(store: &TemplateStore) {
    if let Err(error) = store.prune(false) {
        eprintln!(
            "bulkhead: removing old templates: {:#}",
            anyhow::Error::new(error)
        );
    }
}

async fn build(
    lock: &TemplateLock,
    configuration: &MicroVmConfiguration,
    inputs: &TemplateInputs,
    size: MachineSize,
) -> Result<(), TemplateError> {
    let site = lock.begin()?;
    let files = MachineFiles::of(&site.machine);
    start::create_folder(&files)?;
    let new = NewMachine {
        configuration,
        files: &files,
        size,
        network: &PodNetwork::without_taps(inputs.network_devices),
        life: Life::ToBeSaved,
        cgroup: None,
    };
    let _machine = start::boot(&new).await?;
    let save = Request::Snapshot {
        directory: site.snapshot.clone(),
    };
    control::ask(&files.control_socket(), &save, SNAPSHOT_DEADLINE).await?;
    // What was booted is what was named: files replaced meanwhile make another template.
    if let Some(reason) = inputs.staleness() {
        return Err(TemplateError::Changed { reason });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::inputs::tests::{folder, inputs};
    use super::*;

    #[test]
    fn a_template_in_anothers_place_is_not_taken_for_it() {
        let (parts, templates) = (folder(), tempfile::tempdir().unwrap());
        let wanted = inputs(parts.path());
        let mut other = wanted.clone();
        other.vcpus = 2;
        let store = TemplateStore::new(templates.path().to_owned(), 0);
        let name = wanted.name().unwrap();
        let path = templates.path().join(&name);
        fs::create_dir(&path).unwrap();
        for (made_from, is_it) in [(&other, false), (&wanted, true)] {
            fs::write(path.join("inputs.json"), serde_json::to_vec(made_from).unwrap()).unwrap();
            assert_eq!(found(&store, &name, &wanted).is_some(), is_it);
        }
        fs::write(path.join("inputs.json"), "").unwrap();
        assert!(found(&store, &name, &wanted).is_none());
    }
}
