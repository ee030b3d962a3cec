//! `bulkhead-oci delete`

use container::{Container, ContainerId, StateError, delete_damaged};

use super::log::Log;
use super::{GlobalOptions, OciError};

#[derive(Debug, clap::Args)]
pub(super) struct DeleteArguments {
    /// The container
    #[arg(value_name = "ID")]
    pub(super) id: ContainerId,
    /// Kill a container that is created or running first; one that does not exist is no error
    #[arg(short, long)]
    pub(super) force: bool,
}

impl DeleteArguments {
    pub(super) fn run(&self, global: &GlobalOptions, log: &Log) -> Result<(), OciError> {
        let warnings = match Container::load(&global.root, &self.id) {
            Err(StateError::NotFound { .. }) if self.force => return Ok(()),
            Err(StateError::Damaged { .. }) if self.force => delete_damaged(&global.root, &self.id)?,
            container => {
                let mut container = container?;
                container.delete(self.force)?;
                container.take_warnings()
            }
        };
        for warning in warnings {
            log.warning(&warning);
        }
        log.debug(|| format!("deleted container {}", self.id));
        Ok(())
    }
}
