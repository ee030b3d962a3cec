//! What is known of a container on disk: enough for any process to find it, end it and remove all it left.

mod directory;
mod namespaces;
mod process;
mod record;
mod root_mount;

pub use directory::{StateDirectory, StateError};
pub use process::ProcessIdentity;
pub use record::{OciState, Status};

pub(crate) use namespaces::{NamespaceIdentities, own_links};
pub(crate) use record::Record;
pub(crate) use root_mount::RootMount;
