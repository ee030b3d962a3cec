//! `bulkhead rm`: removes what ended containers left, whoever ended them.

use std::io;

use anyhow::Context as _;
use container::{Container, StateError};
use image::Store;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::configuration::Configuration;
use crate::sandbox::directory::{self, DirectoryError, SandboxDirectory};
use crate::sandbox::record::{ProcessIdentity, SandboxRecord};

/// How long a killed process may take to be gone.
const KILL_DEADLINE_SECONDS: i64 = 5;

/// Options of `rm`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// End containers that still run
    #[arg(long, short)]
    force: bool,
    /// The containers, by id
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

/// Removes each container named; says of each that cannot be removed why, and goes on.
pub(crate) fn rm(configuration: &Configuration, arguments: &Arguments) -> anyhow::Result<u8> {
    let mut failed = false;
    for id in &arguments.ids {
        match remove(configuration, id, arguments.force) {
            Ok(()) => println!("{id}"),
            Err(error) => {
                eprintln!("bulkhead: removing {id}: {error:#}");
                failed = true;
            }
        }
    }
    Ok(u8::from(failed))
}

fn remove(configuration: &Configuration, id: &str, force: bool) -> anyhow::Result<()> {
    let run_root = &configuration.run_root;
    let store = Store::open(&configuration.root)?;
    let layer_left = store.containers()?.iter().any(|left| left == id);
    if force && let Ok(record) = SandboxRecord::read(&directory::path_of(run_root, id)) {
        end(record.supervisor).context("ending its supervisor")?;
    }
    match SandboxDirectory::take_over(run_root, id) {
        Ok(directory) => clean_up(directory, id, force)?,
        // After a reboot, say: the run root is gone and the layer is not.
        Err(DirectoryError::Missing { .. }) if layer_left => {}
        Err(error) => return Err(error.into()),
    }
    if layer_left {
        store.remove_container(id)?;
    }
    Ok(())
}

/// Ends the process that waits for the container, and with it the virtual machine.
fn end(supervisor: ProcessIdentity) -> io::Result<()> {
    let Some(pid) = i32::try_from(supervisor.pid).ok().and_then(Pid::from_raw) else {
        return Ok(());
    };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(()),
        pidfd => pidfd?,
    };
    // The descriptor is of the process that has the number now; only then can it be told apart from a successor.
    if !supervisor.is_alive() {
        return Ok(());
    }
    pidfd_send_signal(&pidfd, Signal::KILL)?;
    let deadline = Timespec {
        tv_sec: KILL_DEADLINE_SECONDS,
        tv_nsec: 0,
    };
    match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&deadline))? {
        0 => Err(io::Error::other(format!(
            "it still lives {KILL_DEADLINE_SECONDS} s after SIGKILL"
        ))),
        _ => Ok(()),
    }
}

/// Ends what the sandbox's supervisor may have left running, and removes the sandbox's folder.
fn clean_up(directory: SandboxDirectory, id: &str, force: bool) -> anyhow::Result<()> {
    let containers = directory.containers();
    if containers.exists() {
        match Container::load(&containers, &id.parse()?) {
            Ok(mut container) => container.delete(force)?,
            Err(StateError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    directory.remove()?;
    Ok(())
}
