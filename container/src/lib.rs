//! The container engine of Bulkhead: OCI containers out of namespaces, cgroups and mounts, the same on a host and in
//! a microVM's guest.
//!
//! A synchronous library: no daemon, no async runtime, no global state. A container is a folder of state, a cgroup and
//! a process, and any process with the privilege can take it up from there:
//!
//! ```no_run
//! use std::path::Path;
//! use container::{Bundle, Container, CreateOptions, Signal, Stdio};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let id = "web".parse()?;
//! let states = Path::new("/run/bulkhead-oci");
//! let bundle = Bundle::load(Path::new("/bundles/web"))?;
//! let created = container::create(CreateOptions::new(states, &id, &bundle).stdio(Stdio::Inherit))?;
//! created.start()?;
//!
//! let mut found = Container::load(states, &id)?;
//! println!("{}", serde_json::to_string(&found.state()?)?);
//! found.kill(Signal::TERM)?;
//! found.delete(true)?;
//! # Ok(())
//! # }
//! ```
//!
//! # What a caller must provide
//! - **One thread.** [`create`] forks, and the child allocates before it executes the program; with a second thread it
//!   could inherit a lock that nobody will release. `create` refuses to run otherwise. A current-thread async runtime
//!   is one thread.
//! - **Root's privileges**, `/proc`, and cgroups mounted, usually on `/sys/fs/cgroup`.
//! - **A root file system that is a mount on another.** pivot_root(2) cannot leave an initramfs: what runs from one
//!   mounts a tmpfs, moves it to `/` and changes its root there (as switch_root(8) does) once, at boot.
//! - **The wait.** The container's process is a child of the caller of `create`, who reaps it; the engine itself waits
//!   for it only when `create` fails.

mod bundle;
mod cgroup;
mod configuration_text;
mod container;
mod features;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod hook;
mod host_hooks;
mod id;
mod init;
mod join;
mod kernel;
mod network;
mod own_program;
mod plan;
mod process;
mod procfs;
mod rootfs;
mod seccomp;
mod signal;
mod state;

pub use bundle::{Bundle, BundleError};
pub use cgroup::{
    BlockIoEntry, BlockIoStatistics, CgroupError, CpuStatistics, CpuUsage, CpusetStatistics,
    HugepageStatistics, MemoryStatistics, MemoryUse, MountedCgroups, OutOfMemoryWatch, PodCgroup, PodLimits,
    Pressure, PressureData, ProcessStatistics, Statistics, Throttling, mounted_cgroups, pass_on_controllers,
};
pub use configuration_text::{Misfit, read_process, read_resources};
pub use container::{
    ConsoleSocketError, Container, CreateError, CreateOptions, DeleteError, ExecError, ExecOptions, Executed,
    InitFailure, KillError, PauseError, PidFileError, ProcessError, SeccompAgentError, StartError, Stdio,
    UpdateError, create, delete_damaged, list, send_terminal, write_pid_file,
};
pub use features::{OCI_VERSION, features};
pub use hook::HookError;
pub use host_hooks::HostHooks;
pub use id::{ContainerId, InvalidContainerId};
pub use init::{NamespaceError, check_network_namespace};
pub use kernel::{
    bring_loopback_up, close_on_exec_all_but_stdio_and, make_mounts_inert, make_mounts_private,
    set_read_only, set_read_only_recursively,
};
pub use network::{NetDeviceError, netlink};
pub use own_program::{ProgramError, keep_own_program_out_of_reach, own_program_path};
pub use plan::SpecError;
pub use process::CommandFailure;
pub use signal::{Signal, UnknownSignal};
pub use state::{OciState, ProcessIdentity, StateDirectory, StateError, Status};
