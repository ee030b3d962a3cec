//! The log that a caller names with `--log`, as containerd and podman read it: one line for each message.

use std::cell::RefCell;
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::ValueEnum;

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// `time level message`
    Text,
    /// `{"level":…,"msg":…,"time":…}`
    Json,
}

/// Where messages go.
#[derive(Debug)]
pub(super) struct Log {
    file: Option<RefCell<File>>,
    format: LogFormat,
    debug: bool,
}

/// The log cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the log {}", path.display())]
pub(super) struct LogError {
    path: PathBuf,
    source: io::Error,
}

impl Log {
    pub(super) fn open(path: Option<&Path>, format: LogFormat, debug: bool) -> Result<Log, LogError> {
        let open = |path: &Path| {
            let opened = OpenOptions::new().append(true).create(true).open(path);
            opened.map(RefCell::new).map_err(|source| LogError {
                path: path.to_owned(),
                source,
            })
        };
        Ok(Log {
            file: path.map(open).transpose()?,
            format,
            debug,
        })
    }

    pub(super) fn error(&self, message: &str) {
        self.write("error", message);
    }

    pub(super) fn warning(&self, message: &str) {
        self.write("warning", message);
    }

    /// What is done, if that was asked for.
    pub(super) fn debug(&self, message: impl FnOnce() -> String) {
        if self.debug {
            self.write("debug", &message());
        }
    }

    fn write(&self, level: &str, message: &str) {
        let Some(file) = &self.file else {
            // Errors are on standard error in any case.
            if level != "error" {
                eprintln!("bulkhead-oci: {level}: {message}");
            }
            return;
        };
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = line(self.format, &timestamp(since_epoch.as_secs()), level, message);
        if let Err(error) = file.borrow_mut().write_all(line.as_bytes()) {
            eprintln!("bulkhead-oci: cannot write to the log: {error}");
        }
    }
}

fn line(format: LogFormat, time: &str, level: &str, message: &str) -> String {
    match format {
        LogFormat::Text => format!("{time} {level} {}\n", message.replace('\n', " ")),
        LogFormat::Json => format!(
            "{}\n",
            serde_json::json!({ "level": level, "msg": message, "time": time })
        ),
    }
}

/// Seconds since 1970 as RFC 3339 in UTC. The calendar is computed in eras of 400 years that begin in March, so that the
/// leap day is the last of a year.
fn timestamp(seconds: u64) -> String {
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let days_since_march_of_year_0 = days + 719_468;
    let (era, day_of_era) = (
        days_since_march_of_year_0 / 146_097,
        days_since_march_of_year_0 % 146_097,
    );
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second_of_day / 3_600, second_of_day / 60 % 60, second_of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// An error and its causes in one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(timestamp(seconds), text);
        }
    }

    #[test]
    fn a_message_stays_on_one_line_in_both_formats() {
        let text = line(LogFormat::Text, "T", "error", "a\nb");
        assert_eq!(text, "T error a b\n");
        let json = line(LogFormat::Json, "T", "error", "a\n\"b\"");
        assert_eq!(json.lines().count(), 1);
        let parsed: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(parsed["msg"], "a\n\"b\"");
    }
}
