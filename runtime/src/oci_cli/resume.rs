//! `bulkhead-oci resume`

use container::ContainerId;

use super::log::Log;
use super::{GlobalOptions, OciError, load};

#[derive(Debug, clap::Args)]
pub(super) struct ResumeArguments {
    /// The container
    #[arg(value_name = "ID")]
    pub(super) id: ContainerId,
}

impl ResumeArguments {
    pub(super) fn run(&self, global: &GlobalOptions, log: &Log) -> Result<(), OciError> {
        load(global, &self.id)?.resume()?;
        log.debug(|| format!("resumed container {}", self.id));
        Ok(())
    }
}
