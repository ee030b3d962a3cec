//! The log that a caller names with `--log`, as containerd and podman read it: one line for each message.

use std::cell::RefCell;
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::ValueEnum;

use super::moment::seconds;
use crate::printable::printable;

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

    /// What is worth knowing later, with `details` under a name of their own where entries have members. Nobody is told
    /// where there is no log.
    #[cfg(feature = "microvm")]
    pub(super) fn info(&self, message: &str, name: &str, details: &impl serde::Serialize) {
        if self.file.is_none() {
            return;
        }
        match serde_json::to_value(details) {
            Ok(details) => self.append("info", message, Some((name, &details))),
            Err(error) => eprintln!("bulkhead-oci: cannot write to the log: {error}"),
        }
    }

    /// What is done, if that was asked for.
    pub(super) fn debug(&self, message: impl FnOnce() -> String) {
        if self.debug {
            self.write("debug", &message());
        }
    }

    fn write(&self, level: &str, message: &str) {
        let message = &printable(message);
        match &self.file {
            Some(_) => self.append(level, message, None),
            // Errors are on standard error in any case.
            None if level == "error" => {}
            None => eprintln!("bulkhead-oci: {level}: {message}"),
        }
    }

    fn append(&self, level: &str, message: &str, details: Option<(&str, &serde_json::Value)>) {
        let Some(file) = &self.file else { return };
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = line(self.format, &seconds(since_epoch), level, message, details);
        if let Err(error) = file.borrow_mut().write_all(line.as_bytes()) {
            eprintln!("bulkhead-oci: cannot write to the log: {error}");
        }
    }
}

fn line(
    format: LogFormat,
    time: &str,
    level: &str,
    message: &str,
    details: Option<(&str, &serde_json::Value)>,
) -> String {
    match format {
        LogFormat::Text => format!("{time} {level} {message}\n"),
        LogFormat::Json => {
            let mut entry = serde_json::json!({ "level": level, "msg": message, "time": time });
            if let Some((name, details)) = details {
                entry[name] = details.clone();
            }
            format!("{entry}\n")
        }
    }
}

/// An error and its causes in one line that can be shown, whatever a configuration says.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    printable(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_printable_in_both_formats() {
        let folder = tempfile::tempdir().unwrap();
        for (format, expected) in [
            (LogFormat::Text, " warning a \\u{1b}[2Jb\n"),
            (LogFormat::Json, "\"a \\\\u{1b}[2Jb\""),
        ] {
            let path = folder.path().join(format!("{format:?}"));
            let log = Log::open(Some(&path), format, false).unwrap();
            log.warning("a\n\x1b[2Jb");
            let text = std::fs::read_to_string(path).unwrap();
            assert!(text.contains(expected), "{text}");
            assert_eq!(text.lines().count(), 1);
        }
    }

    #[test]
    fn a_message_stays_on_one_line_in_both_formats() {
        let details = serde_json::json!({ "c": "\n" });
        let details = Some(("details", &details));
        let text = line(LogFormat::Text, "T", "error", "a b", details);
        assert_eq!(text, "T error a b\n");
        let json = line(LogFormat::Json, "T", "error", "a\n\"b\"", details);
        assert_eq!(json.lines().count(), 1);
        let parsed: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(parsed["msg"], "a\n\"b\"");
        assert_eq!(parsed["details"]["c"], "\n");
    }
}
