//! `bulkhead-oci start`

use container::ContainerId;

use super::log::Log;
use super::{GlobalOptions, OciError, load};

#[derive(Debug, clap::Args)]
pub(super) struct StartArguments {
    /// The container
    #[arg(value_name = "ID")]
    pub(super) id: ContainerId,
}

impl StartArguments {
    pub(super) fn run(&self, global: &GlobalOptions, log: &Log) -> Result<(), OciError> {
        load(global, &self.id)?.start()?;
        log.debug(|| format!("started container {}", self.id));
        Ok(())
    }
}
