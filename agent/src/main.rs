//! `bulkhead-agent`: PID 1 of the guest and the only file of its initramfs. It mounts what a guest needs, reaps, and
//! makes containers with the same engine the host uses, on the host's orders over vsock.
//!
//! One thread, always: the engine's clone is safe only then.

mod connection_end;
mod disks;
mod entropy;
mod event_connection;
mod exit_status;
mod guest_mounts;
mod memory_settings;
mod network;
mod power;
mod process_table;
mod sandbox_service;
mod server;
mod stdio;
mod streams;
mod task;

use std::process::ExitCode;

use anyhow::Context as _;

use crate::event_connection::EventConnection;

fn main() -> ExitCode {
    if !rustix::process::getpid().is_init() {
        eprintln!("bulkhead-agent is the first process of a Bulkhead guest and does nothing elsewhere");
        return ExitCode::FAILURE;
    }
    let Err(error) = run();
    // The console reaches the host whatever else is broken; the kernel adds its own last words when PID 1 ends.
    eprintln!("bulkhead-agent: fatal: {error:#}");
    power::restart()
}

/// Serves until the host ends the machine; returns only when the agent cannot go on.
fn run() -> anyhow::Result<std::convert::Infallible> {
    guest_mounts::mount_all().context("preparing the guest's file systems")?;
    task::make_folders().context("making the containers' folders")?;
    memory_settings::apply().context("setting how memory is treated (/proc/sys/vm)")?;
    container::bring_loopback_up().context("bringing the pod's loopback interface up")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the event loop")?;
    runtime.block_on(async {
        let mut events = EventConnection::open().await.context("connecting to the host")?;
        match server::serve(&mut events).await {
            Ok(never) => match never {},
            Err(error) => {
                let error = anyhow::Error::new(error);
                // When the host cannot be told, the console still is.
                if let Err(unsent) = events.fatal(format!("{error:#}")).await {
                    eprintln!(
                        "bulkhead-agent: telling the host: {:#}",
                        anyhow::Error::new(unsent)
                    );
                }
                Err(error)
            }
        }
    })
}
