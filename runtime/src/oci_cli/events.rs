//! `bulkhead-oci events`

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use container::{Container, ContainerId, OutOfMemoryWatch, Statistics, Status};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Serialize;

use super::{GlobalOptions, OciError, load, print};

#[derive(Debug, clap::Args)]
pub(super) struct EventsArguments {
    /// The container
    #[arg(value_name = "ID")]
    pub(super) id: ContainerId,
    /// How often to tell what is used, as in 500ms, 5s or 1m30s
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_interval)]
    pub(super) interval: Duration,
    /// Tell once what is used, and end
    #[arg(long)]
    pub(super) stats: bool,
}

#[derive(Serialize)]
struct Event<'a, S: Serialize> {
    r#type: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Data<S>>,
}

/// What runc tells. The last two members are what it tells without Intel RDT and with a network it did not make.
#[derive(Serialize)]
struct Data<S: Serialize> {
    #[serde(flatten)]
    statistics: S,
    intel_rdt: serde_json::Map<String, serde_json::Value>,
    network_interfaces: Option<()>,
}

impl EventsArguments {
    pub(super) fn run(&self, global: &GlobalOptions) -> Result<(), OciError> {
        let container = load(global, &self.id)?;
        if let status @ (Status::Stopped | Status::Creating) = container.status()? {
            return Err(OciError::NotRunning {
                id: self.id.clone(),
                status,
            });
        }
        if self.stats {
            return self.tell_use(&container);
        }
        let watch = container.watch_memory()?;
        match container.pidfd().map_err(OciError::Wait)? {
            Some(process) => self.follow(&container, watch, &process),
            None => Ok(()),
        }
    }

    /// Tells events until the container ends.
    fn follow(
        &self,
        container: &Container,
        mut watch: Option<OutOfMemoryWatch>,
        process: &OwnedFd,
    ) -> Result<(), OciError> {
        let mut due = Instant::now() + self.interval;
        loop {
            let ended = wait(
                process,
                watch.as_ref(),
                due.saturating_duration_since(Instant::now()),
            )?;
            // What memory the end was for want of comes before the end.
            if let Some(watch) = &mut watch {
                for _ in 0..watch.take().map_err(container::ProcessError::from)? {
                    tell_out_of_memory(&self.id)?;
                }
            }
            if ended {
                return Ok(());
            }
            if Instant::now() >= due {
                self.tell_use(container)?;
                due = Instant::now() + self.interval;
            }
        }
    }

    fn tell_use(&self, container: &Container) -> Result<(), OciError> {
        tell_use(&self.id, container.statistics()?)
    }
}

/// Tells what a container uses: the engine's statistics, or the same as an agent tells them.
pub(super) fn tell_use(id: &ContainerId, statistics: impl Serialize) -> Result<(), OciError> {
    let data = Data {
        statistics,
        intel_rdt: serde_json::Map::new(),
        network_interfaces: None,
    };
    tell(id, "stats", Some(data))
}

/// Tells that the kernel has ended a process of the container for want of memory.
pub(super) fn tell_out_of_memory(id: &ContainerId) -> Result<(), OciError> {
    tell::<Statistics>(id, "oom", None)
}

fn tell<S: Serialize>(id: &ContainerId, r#type: &'static str, data: Option<Data<S>>) -> Result<(), OciError> {
    let event = Event {
        r#type,
        id: id.as_str(),
        data,
    };
    let mut line = serde_json::to_vec(&event).map_err(|error| OciError::Output(error.into()))?;
    line.push(b'\n');
    print(&line)
}

/// Waits for an event, but no longer than `left`. True when the container's process has ended.
fn wait(process: &OwnedFd, watch: Option<&OutOfMemoryWatch>, left: Duration) -> Result<bool, OciError> {
    let left = Timespec {
        tv_sec: left.as_secs() as i64,
        tv_nsec: i64::from(left.subsec_nanos()),
    };
    let mut descriptors = vec![PollFd::new(process, PollFlags::IN)];
    descriptors.extend(watch.map(|watch| PollFd::new(watch, watch.poll_flags())));
    match poll(&mut descriptors, Some(&left)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => return Err(OciError::Wait(errno.into())),
    }
    Ok(descriptors
        .first()
        .is_some_and(|process| !process.revents().is_empty()))
}

/// Numbers, each with a unit: h, m, s, ms, us or ns.
fn parse_interval(text: &str) -> Result<Duration, String> {
    let invalid = || format!("`{text}` is not a time such as 500ms, 5s or 1m30s");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let number_ends = rest
            .find(|character: char| !character.is_ascii_digit() && character != '.')
            .ok_or_else(invalid)?;
        let (number, after) = rest.split_at(number_ends);
        let unit_ends = after
            .find(|character: char| character.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_ends);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(invalid()),
        };
        let number: f64 = number.parse().map_err(|_| invalid())?;
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| invalid())?;
        total = total.checked_add(part).ok_or_else(invalid)?;
        rest = after;
    }
    // Also what would overflow a clock.
    if total.is_zero() || total > Duration::from_secs(1 << 32) {
        return Err(invalid());
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_sums_of_numbers_with_units() {
        for (text, milliseconds) in [
            ("5s", 5_000),
            ("100ms", 100),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
        ] {
            assert_eq!(
                parse_interval(text).unwrap(),
                Duration::from_millis(milliseconds),
                "{text}"
            );
        }
        for text in ["", "5", "s", "-1s", "0s", "1x", "99999999999999h"] {
            assert!(parse_interval(text).is_err(), "{text}");
        }
    }
}
