//! The engine's readers of what strangers write, for the fuzz targets: from bytes to a plan, without a system call.

use std::path::PathBuf;

use crate::plan::Plan;
use crate::{Bundle, BundleError, ContainerId, SpecError};

/// One instruction of a system call filter: code, jumps if a test holds and fails, and operand.
pub type Instruction = (u16, u8, u8, u32);

/// Everything that a configuration asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Planned {
    /// The plan in words, but for the filter's instructions.
    pub words: String,
    /// The filter, if it asks for one.
    pub filter: Option<Vec<Instruction>>,
}

/// The bundle whose `config.json` holds `text`.
///
/// # Errors
/// When that is no configuration.
pub fn read(text: &[u8]) -> Result<Bundle, BundleError> {
    let directory = PathBuf::from("/bundle");
    let path = directory.join("config.json");
    Bundle::from_text(directory, path, text)
}

/// Judges and translates the bundle's configuration as [`create`](crate::create) does.
///
/// # Errors
/// When it cannot be honoured.
pub fn plan(bundle: &Bundle, id: &ContainerId) -> Result<Planned, SpecError> {
    let plan = Plan::new(bundle, id)?;
    let filter = plan.seccomp.as_ref().map(|filter| {
        let instructions = filter.program().iter();
        instructions
            .map(|instruction| (instruction.code, instruction.jt, instruction.jf, instruction.k))
            .collect()
    });
    Ok(Planned {
        words: format!("{plan:?}"),
        filter,
    })
}
