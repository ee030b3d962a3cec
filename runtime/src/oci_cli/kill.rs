//! `bulkhead-oci kill`

use container::{ContainerId, Signal};

use super::log::Log;
use super::{GlobalOptions, OciError, load};

/// Send a signal to the first process of a container
#[derive(Debug, clap::Args)]
pub(super) struct KillArguments {
    /// The container
    #[arg(value_name = "ID")]
    id: ContainerId,
    /// A name, with or without SIG, or a number
    #[arg(value_name = "SIGNAL", default_value = "TERM")]
    signal: Signal,
}

impl KillArguments {
    pub(super) fn run(&self, global: &GlobalOptions, log: &Log) -> Result<(), OciError> {
        load(global, &self.id)?.kill(self.signal)?;
        log.debug(|| format!("sent {} to container {}", self.signal, self.id));
        Ok(())
    }
}
