//! How a virtual machine was started: kept for as long as it lives, for whoever asks what its start took.

use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How a machine was started, and what each part took.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartRecord {
    /// From what.
    pub origin: Origin,
    /// The parts in their order, and their times in microseconds.
    pub phases: Vec<(String, u64)>,
}

/// What a machine was started from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Origin {
    /// It booted, as it was asked to.
    #[default]
    Boot,
    /// It booted because it could not be cloned.
    BootInsteadOfClone {
        /// Why not.
        reason: String,
    },
    /// It is a clone.
    Clone {
        /// The template's name.
        template: String,
        /// Whether the template was built for it.
        built: bool,
    },
}

impl StartRecord {
    /// Notes that a part took from `begun` until now.
    pub fn phase(&mut self, name: &str, begun: Instant) {
        let microseconds = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.phases.push((name.to_owned(), microseconds));
    }

    /// Whether any part has been done.
    pub fn has_begun(&self) -> bool {
        !self.phases.is_empty()
    }
}

/// In one line, for people.
impl fmt::Display for StartRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Boot => write!(f, "booted")?,
            Origin::BootInsteadOfClone { reason } => {
                write!(f, "booted, because it could not be cloned ({reason})")?;
            }
            Origin::Clone { template, built } => {
                let built = if *built { ", which was built for it" } else { "" };
                write!(f, "cloned from template {template}{built}")?;
            }
        }
        for (index, (name, microseconds)) in self.phases.iter().enumerate() {
            let before = if index == 0 { ":" } else { "," };
            let milliseconds = Duration::from_micros(*microseconds).as_secs_f64() * 1000.0;
            write!(f, "{before} {name} {milliseconds:.1} ms")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_told_in_one_line() {
        let mut start = StartRecord {
            origin: Origin::Clone {
                template: "t".to_owned(),
                built: false,
            },
            phases: vec![("template".to_owned(), 1250), ("clone".to_owned(), 30_000)],
        };
        let told = "cloned from template t: template 1.2 ms, clone 30.0 ms";
        assert_eq!(start.to_string(), told);
        start.origin = Origin::BootInsteadOfClone {
            reason: "no room".to_owned(),
        };
        start.phases.truncate(1);
        let told = "booted, because it could not be cloned (no room): template 1.2 ms";
        assert_eq!(start.to_string(), told);
    }
}
