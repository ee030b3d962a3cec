//! How many machines were started from what, for whoever watches a host: a file in the text format of Prometheus, where
//! its node exporter looks for such files (`--collector.textfile.directory`).
//!
//! There is no daemon to ask, so each start adds itself to the file.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::start_record::{Origin, StartRecord};

/// The file in the folder of metrics.
const FILE: &str = "bulkhead_machines.prom";
const LOCK: &str = ".bulkhead_machines.lock";
const NEXT: &str = ".bulkhead_machines.next";

const STARTS: &str = "bulkhead_machine_starts_total";
const SECONDS: &str = "bulkhead_machine_start_seconds_total";

/// The values of the label `origin`.
const ORIGINS: [&str; 4] = ["clone", "clone_of_new_template", "boot", "boot_instead_of_clone"];

/// Why a start was not counted.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// A file could not be read or written.
    #[error("{action} {}", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file holds what nothing of ours writes.
    #[error("{} has a line that is none of its metrics: {line:?}; remove the file to begin anew", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The line.
        line: String,
    },
}

/// Adds a start to the file in `folder`, which is made if it is missing.
///
/// # Errors
/// When the file cannot be read or written, or is not ours.
pub fn count(folder: &Path, start: &StartRecord) -> Result<(), MetricsError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| MetricsError::Io { action, path, source }
    };
    fs::create_dir_all(folder).map_err(failed("making the folder of metrics", folder))?;
    let path = folder.join(FILE);
    let lock = folder.join(LOCK);
    // Given back when the file closes, also by a process that is killed.
    let _lock = File::create(&lock)
        .and_then(|file| {
            flock(&file, FlockOperation::LockExclusive)
                .map(|()| file)
                .map_err(Into::into)
        })
        .map_err(failed("locking", &lock))?;
    let mut counts = match fs::read_to_string(&path) {
        Ok(text) => Counts::parse(&text).map_err(|line| MetricsError::Foreign {
            path: path.clone(),
            line,
        })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Counts::default(),
        Err(error) => return Err(failed("reading", &path)(error)),
    };
    counts.add(start);
    let next = folder.join(NEXT);
    fs::write(&next, counts.text())
        .and_then(|()| fs::rename(&next, &path))
        .map_err(failed("writing", &path))
}

/// Starts and the time they took, by their origin.
#[derive(Debug, Default, PartialEq)]
struct Counts([(u64, f64); ORIGINS.len()]);

impl Counts {
    fn add(&mut self, start: &StartRecord) {
        let origin = match &start.origin {
            Origin::Clone { built: false, .. } => 0,
            Origin::Clone { built: true, .. } => 1,
            Origin::Boot => 2,
            Origin::BootInsteadOfClone { .. } => 3,
        };
        let microseconds = start
            .phases
            .iter()
            .fold(0_u64, |sum, (_, time)| sum.saturating_add(*time));
        let (starts, seconds) = &mut self.0[origin];
        *starts = starts.saturating_add(1);
        *seconds += Duration::from_micros(microseconds).as_secs_f64();
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut metric = |name: &str, help: &str, value: fn(&(u64, f64)) -> String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
            for (origin, counted) in ORIGINS.iter().zip(&self.0) {
                let _ = writeln!(text, "{name}{{origin=\"{origin}\"}} {}", value(counted));
            }
        };
        metric(
            STARTS,
            "Virtual machines started, by what they were started from.",
            |(starts, _)| starts.to_string(),
        );
        metric(
            SECONDS,
            "What their starts took, until the agent served.",
            |(_, seconds)| format!("{seconds:.6}"),
        );
        text
    }

    /// The first line that is none of ours is the error.
    fn parse(text: &str) -> Result<Counts, String> {
        let mut counts = Counts::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            counts.take(line).ok_or_else(|| line.to_owned())?;
        }
        Ok(counts)
    }

    fn take(&mut self, line: &str) -> Option<()> {
        let (name, rest) = line.split_once("{origin=\"")?;
        let (origin, value) = rest.split_once("\"} ")?;
        let place = ORIGINS.iter().position(|known| *known == origin)?;
        let (starts, seconds) = &mut self.0[place];
        match name {
            STARTS => *starts = value.parse().ok()?,
            SECONDS => *seconds = value.parse().ok()?,
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(origin: Origin, microseconds: u64) -> StartRecord {
        StartRecord {
            origin,
            phases: vec![("template".into(), 500_000), ("clone".into(), microseconds)],
        }
    }

    #[test]
    fn starts_add_up_by_their_origin() {
        let folder = tempfile::tempdir().unwrap();
        let metrics = folder.path().join("metrics");
        let reason = "no space".to_owned();
        count(&metrics, &start(Origin::Boot, 0)).unwrap();
        for _ in 0..3 {
            let origin = Origin::BootInsteadOfClone {
                reason: reason.clone(),
            };
            count(&metrics, &start(origin, 1)).unwrap();
        }
        let text = fs::read_to_string(metrics.join(FILE)).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            lines,
            [
                "bulkhead_machine_starts_total{origin=\"clone\"} 0",
                "bulkhead_machine_starts_total{origin=\"clone_of_new_template\"} 0",
                "bulkhead_machine_starts_total{origin=\"boot\"} 1",
                "bulkhead_machine_starts_total{origin=\"boot_instead_of_clone\"} 3",
                "bulkhead_machine_start_seconds_total{origin=\"clone\"} 0.000000",
                "bulkhead_machine_start_seconds_total{origin=\"clone_of_new_template\"} 0.000000",
                "bulkhead_machine_start_seconds_total{origin=\"boot\"} 0.500000",
                "bulkhead_machine_start_seconds_total{origin=\"boot_instead_of_clone\"} 1.500003",
            ]
        );
    }

    #[test]
    fn many_at_once_are_all_counted() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..10 {
                        count(folder.path(), &start(Origin::Boot, 0)).unwrap();
                    }
                });
            }
        });
        let text = fs::read_to_string(folder.path().join(FILE)).unwrap();
        assert!(
            text.contains("bulkhead_machine_starts_total{origin=\"boot\"} 80\n"),
            "{text}"
        );
    }

    #[test]
    fn a_file_of_somebody_else_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        for foreign in [
            "else_total 3\n",
            "bulkhead_machine_starts_total{origin=\"boot\"} many\n",
        ] {
            fs::write(&path, foreign).unwrap();
            let error = count(folder.path(), &start(Origin::Boot, 0)).unwrap_err();
            assert!(
                error
                    .to_string()
                    .contains(foreign.trim_end().split('"').next().unwrap()),
                "{error}"
            );
            assert_eq!(fs::read_to_string(&path).unwrap(), foreign);
        }
    }
}
