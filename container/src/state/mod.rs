//! What is known of a container on disk: enough for any process to find it, end it and remove all it left.

mod directory;
mod process;
mod record;

pub use directory::{StateDirectory, StateError};
pub use record::{OciState, Status};

pub(crate) use process::ProcessIdentity;
pub(crate) use record::Record;
