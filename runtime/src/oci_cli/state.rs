//! `bulkhead-oci state`

use std::io::Write;

use container::ContainerId;

use super::{GlobalOptions, OciError, load};

/// Print the state of a container as JSON
#[derive(Debug, clap::Args)]
pub(super) struct StateArguments {
    /// The container
    #[arg(value_name = "ID")]
    id: ContainerId,
}

impl StateArguments {
    pub(super) fn run(&self, global: &GlobalOptions) -> Result<(), OciError> {
        let state = load(global, &self.id)?.state()?;
        let mut text = serde_json::to_vec_pretty(&state).map_err(|error| OciError::Output(error.into()))?;
        text.push(b'\n');
        std::io::stdout().write_all(&text).map_err(OciError::Output)
    }
}
