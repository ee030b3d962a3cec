//! `events`: what a container uses, and when the guest's kernel ends a process for want of memory.

use std::time::{Duration, Instant};

use container::Status;
use serde_json::{Map, Value, json};
use tokio::time::{MissedTickBehavior, interval_at, sleep};

use super::found::{Found, LAST_MOMENTS};
use super::{GuestError, event_loop};
use crate::micro_vm::MicroVm;
use crate::oci_cli::events::{EventsArguments, tell_out_of_memory, tell_use};
use crate::oci_cli::{GlobalOptions, OciError};
use crate::oci_pod::machine_end::EndedMachine;
use crate::oci_pod::record::GuestContainer;

/// The member of the statistics that the host counts: the others are the guest's.
const HOST: &str = "host";

/// As many processes at most are told of that the guest says have been killed at once.
const MOST_TOLD_AT_ONCE: u64 = 1000;

pub(super) fn events(arguments: &EventsArguments, global: &GlobalOptions) -> Result<(), OciError> {
    let found = Found::look(global, &arguments.id)?;
    if let status @ (Status::Stopped | Status::Creating) = found.status()? {
        return Err(OciError::NotRunning {
            id: arguments.id.clone(),
            status,
        });
    }
    event_loop()?.block_on(async {
        if arguments.stats {
            return found
                .call(async |machine: &MicroVm| measure(machine, &found).await)
                .await;
        }
        // Nothing happens to one that is paused, and its machine may stand still.
        loop {
            match Found::look(global, &arguments.id)?.status()? {
                Status::Paused => sleep(arguments.interval).await,
                Status::Stopped => return Ok(()),
                _ => break,
            }
        }
        let machine = found.machine().await?;
        match follow(&machine, &found, arguments.interval).await {
            // The machine has ended, with its last container or before: its attendant knows in a moment. That is the last of
            // its events, and no failure.
            Err(_) if found.ends_within(LAST_MOMENTS)? => tell_of_end(&found),
            followed => followed,
        }
    })
}

/// Tells of a machine that has ended for want of memory, and all that was in it.
fn tell_of_end(found: &Found) -> Result<(), OciError> {
    match EndedMachine::read(&found.sandbox_folder).map_err(GuestError::from)? {
        Some(end) if end.out_of_memory => tell_out_of_memory(&found.id),
        _ => Ok(()),
    }
}

async fn measure(machine: &MicroVm, found: &Found) -> Result<(), OciError> {
    let statistics = machine
        .statistics(found.id.as_str())
        .await
        .map_err(GuestError::from)?;
    // The members, whatever they are: an object, which is all that can be made part of another.
    let mut statistics: Map<String, Value> =
        serde_json::from_slice(&statistics).map_err(GuestError::Statistics)?;
    if let Some(host) = measure_on_host(found)? {
        statistics.insert(HOST.to_owned(), host);
    }
    tell_use(&found.id, statistics)
}

/// What the host counts for the machine that the container is in: its guest with all its containers, the VMM, and those who
/// attend to the first one. `None` where no first one is written down any more.
fn measure_on_host(found: &Found) -> Result<Option<Value>, GuestError> {
    let Some(founder) = GuestContainer::read(&found.sandbox_folder)? else {
        return Ok(None);
    };
    let statistics = serde_json::to_value(founder.cgroup.statistics()?).map_err(GuestError::Statistics)?;
    let part = |name: &str| statistics.get(name).cloned().unwrap_or_default();
    Ok(Some(json!({
        "sandbox": founder.id,
        "cpu": part("cpu"),
        "memory": part("memory"),
    })))
}

async fn follow(machine: &MicroVm, found: &Found, interval: Duration) -> Result<(), OciError> {
    let mut ticks = interval_at((Instant::now() + interval).into(), interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = 0;
    loop {
        let watch = machine.wait_out_of_memory(found.id.as_str(), known);
        tokio::pin!(watch);
        loop {
            tokio::select! {
                biased;
                changed = &mut watch => {
                    let changed = changed.map_err(GuestError::from)?;
                    let news = changed.kills.saturating_sub(known);
                    // The number is the guest's word.
                    for _ in 0..news.min(MOST_TOLD_AT_ONCE) {
                        tell_out_of_memory(&found.id)?;
                    }
                    if changed.ended {
                        return Ok(());
                    }
                    if news == 0 {
                        return Err(GuestError::NoNews.into());
                    }
                    known = changed.kills;
                    break;
                }
                _ = ticks.tick() => {
                    let now = GuestContainer::read(&found.folder).map_err(GuestError::from)?;
                    if !now.is_some_and(|now| now.paused) {
                        measure(machine, found).await?;
                    }
                }
            }
        }
    }
}
