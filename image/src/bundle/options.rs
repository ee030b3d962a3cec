//! The user's wishes, as data.

use super::{Bind, ByteSize, CpuCount, PidsLimit, UserName, Variable};

/// What a user may ask of a container beyond what its image says. The default asks for nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BundleOptions {
    /// The container's host name, usually the first twelve digits of its id.
    pub hostname: String,
    /// Replaces the image's command; empty keeps it. The image's entry point stays in front.
    pub command: Vec<String>,
    /// Replaces the image's entry point, and drops its command, as under Docker.
    pub entrypoint: Option<Vec<String>>,
    /// Added to the image's environment, replacing variables of the same name.
    pub env: Vec<Variable>,
    /// Whether the process gets a terminal.
    pub tty: bool,
    /// Rows and columns of that terminal.
    pub terminal_size: Option<(u16, u16)>,
    /// Replaces the image's user.
    pub user: Option<UserName>,
    /// Replaces the image's working directory. Absolute.
    pub working_directory: Option<String>,
    /// Folders and files of the host.
    pub binds: Vec<Bind>,
    /// Most memory.
    pub memory: Option<ByteSize>,
    /// Most processor time.
    pub cpus: Option<CpuCount>,
    /// Most processes.
    pub pids_limit: Option<PidsLimit>,
    /// Whether the root file system may not be written to.
    pub read_only: bool,
}
