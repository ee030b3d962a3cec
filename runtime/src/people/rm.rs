//! `bulkhead rm`: removes what ended containers left, whoever ended them.

use std::time::Duration;

use anyhow::Context as _;
use container::{Container, StateError};
use image::Store;

use crate::configuration::Configuration;
use crate::kill_process::kill_and_wait;
use crate::sandbox::directory::{self, DirectoryError, SandboxDirectory};
use crate::sandbox::record::SandboxRecord;

/// How long a killed process may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// Options of `rm`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// End containers that still run
    #[arg(long, short)]
    force: bool,
    /// The containers, by id
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

/// Removes each container named; says of each that cannot be removed why, and goes on.
pub(crate) fn rm(configuration: &Configuration, arguments: &Arguments) -> anyhow::Result<u8> {
    let mut failed = false;
    for id in &arguments.ids {
        match remove(configuration, id, arguments.force) {
            Ok(()) => println!("{id}"),
            Err(error) => {
                eprintln!("bulkhead: removing {id}: {error:#}");
                failed = true;
            }
        }
    }
    Ok(u8::from(failed))
}

fn remove(configuration: &Configuration, id: &str, force: bool) -> anyhow::Result<()> {
    let run_root = &configuration.run_root;
    let store = Store::open(&configuration.root)?;
    let layer_left = store.containers()?.iter().any(|left| left == id);
    if force && let Ok(record) = SandboxRecord::read(&directory::path_of(run_root, id)) {
        // The virtual machine ends with it.
        kill_and_wait(record.supervisor, KILL_PATIENCE).context("ending its supervisor")?;
    }
    match SandboxDirectory::take_over(run_root, id) {
        Ok(directory) => clean_up(directory, id, force)?,
        // After a reboot, say: the run root is gone and the layer is not.
        Err(DirectoryError::Missing { .. }) if layer_left => {}
        Err(error) => return Err(error.into()),
    }
    if layer_left {
        store.remove_container(id)?;
    }
    Ok(())
}

/// Ends what the sandbox's supervisor may have left running, and removes the sandbox's folder.
fn clean_up(directory: SandboxDirectory, id: &str, force: bool) -> anyhow::Result<()> {
    let containers = directory.containers();
    if containers.exists() {
        match Container::load(&containers, &id.parse()?) {
            Ok(mut container) => container.delete(force)?,
            Err(StateError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    directory.remove()?;
    Ok(())
}
