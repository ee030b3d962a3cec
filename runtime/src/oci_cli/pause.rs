//! `bulkhead-oci pause`

use container::ContainerId;

use super::log::Log;
use super::{GlobalOptions, OciError, load};

#[derive(Debug, clap::Args)]
pub(super) struct PauseArguments {
    /// The container
    #[arg(value_name = "ID")]
    pub(super) id: ContainerId,
}

impl PauseArguments {
    pub(super) fn run(&self, global: &GlobalOptions, log: &Log) -> Result<(), OciError> {
        load(global, &self.id)?.pause()?;
        log.debug(|| format!("paused container {}", self.id));
        Ok(())
    }
}
