//! `bulkhead-oci kill`

use container::{ContainerId, Signal};

use super::log::Log;
use super::{GlobalOptions, OciError, load};

#[derive(Debug, clap::Args)]
pub(super) struct KillArguments {
    /// The container
    #[arg(value_name = "ID")]
    pub(super) id: ContainerId,
    /// A name, with or without SIG, or a number
    #[arg(value_name = "SIGNAL", default_value = "TERM")]
    pub(super) signal: Signal,
    /// Send it to every process of the container, also when its first process has ended
    #[arg(short, long)]
    pub(super) all: bool,
}

impl KillArguments {
    pub(super) fn run(&self, global: &GlobalOptions, log: &Log) -> Result<(), OciError> {
        let container = load(global, &self.id)?;
        if self.all {
            container.kill_all(self.signal)?;
        } else {
            container.kill(self.signal)?;
        }
        log.debug(|| format!("sent {} to container {}", self.signal, self.id));
        Ok(())
    }
}
