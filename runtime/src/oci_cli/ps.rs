//! `bulkhead-oci ps`

use std::fmt::Write;
use std::io::{ErrorKind, Read};
use std::process::{Command, Stdio};

use clap::ValueEnum;
use container::ContainerId;

use super::{GlobalOptions, OciError, load, print};

#[derive(Debug, clap::Args)]
pub(super) struct PsArguments {
    /// How they are shown
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = Format::Table)]
    pub(super) format: Format,
    /// The container
    #[arg(value_name = "ID")]
    pub(super) id: ContainerId,
    /// Passed on to ps(1), whose table must have a column PID; by default -ef
    #[arg(
        value_name = "PS OPTIONS",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(super) ps_arguments: Vec<String>,
}

/// How processes or containers are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// A line for each, under a heading
    Table,
    /// A JSON array
    Json,
}

/// Why the table of processes could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PsError {
    /// The kernel would not run it.
    #[error("cannot run ps")]
    Run(#[source] std::io::Error),
    /// Options for it cannot be honoured.
    #[error("ps is not installed, so its options mean nothing here")]
    Missing,
    /// It complained.
    #[error("ps ended with {status}: {said}")]
    Failed {
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said.
        said: String,
    },
    /// Its table does not say which process is which.
    #[error("the output of ps has no column PID")]
    NoColumn,
}

impl PsArguments {
    pub(super) fn run(&self, global: &GlobalOptions) -> Result<(), OciError> {
        let mut processes = load(global, &self.id)?.processes()?;
        processes.sort_unstable();
        match self.format {
            Format::Json => {
                let mut text =
                    serde_json::to_vec(&processes).map_err(|error| OciError::Output(error.into()))?;
                text.push(b'\n');
                print(&text)
            }
            Format::Table => print(self.table(&processes)?.as_bytes()),
        }
    }

    fn table(&self, processes: &[i32]) -> Result<String, PsError> {
        let mut ps = Command::new("ps");
        if self.ps_arguments.is_empty() {
            ps.arg("-ef");
        } else {
            ps.args(&self.ps_arguments);
        }
        match ps.stdin(Stdio::null()).output() {
            Ok(output) if output.status.success() => {
                filter(&String::from_utf8_lossy(&output.stdout), processes)
            }
            Ok(output) => Err(PsError::Failed {
                status: output.status,
                said: String::from_utf8_lossy(&output.stderr).trim().replace('\n', " "),
            }),
            Err(error) if error.kind() == ErrorKind::NotFound && self.ps_arguments.is_empty() => {
                Ok(own_table(processes))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Err(PsError::Missing),
            Err(error) => Err(PsError::Run(error)),
        }
    }
}

/// The heading, and the lines of these processes.
fn filter(table: &str, processes: &[i32]) -> Result<String, PsError> {
    let mut lines = table.lines();
    let heading = lines.next().unwrap_or_default();
    let column = heading
        .split_whitespace()
        .position(|name| name == "PID")
        .ok_or(PsError::NoColumn)?;
    let is_ours = |line: &&str| {
        let pid = line
            .split_whitespace()
            .nth(column)
            .and_then(|word| word.parse().ok());
        pid.is_some_and(|pid: i32| processes.contains(&pid))
    };
    let mut kept = format!("{heading}\n");
    for line in lines.filter(is_ours) {
        kept.push_str(line);
        kept.push('\n');
    }
    Ok(kept)
}

/// As much of a command is shown, in bytes.
const SHOWN: u64 = 4 << 10;

/// What /proc tells, for a host without ps. A process that has ended meanwhile is left out.
fn own_table(processes: &[i32]) -> String {
    let mut table = format!("{:<8}{:>8}{:>8} {:<5}CMD\n", "UID", "PID", "PPID", "STAT");
    for pid in processes {
        let read = |file: &str| read_some(&format!("/proc/{pid}/{file}"));
        let status = String::from_utf8_lossy(&read("status")).into_owned();
        let field = |name: &str| {
            let value = status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let word = value.and_then(|value| value.split_whitespace().next());
            word.unwrap_or_default().to_owned()
        };
        if status.is_empty() {
            continue;
        }
        // A process writes its own, and a terminal would obey what is in it.
        let mut command = String::from_utf8_lossy(&read("cmdline")).replace(char::is_control, " ");
        if command.is_empty() {
            command = format!("[{}]", field("Name"));
        }
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "{:<8}{pid:>8}{:>8} {:<5}{}",
            field("Uid"),
            field("PPid"),
            field("State"),
            command.trim_end()
        );
    }
    table
}

/// The beginning of a file; nothing of one that is gone.
fn read_some(path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        // What was read until the process went is what there is.
        let _ = file.take(SHOWN).read_to_end(&mut bytes);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_lines_of_the_containers_processes_are_kept() {
        let table =
            "UID          PID    PPID  CMD\nroot           1       0  init\nroot          12       1  a 1\n";
        assert_eq!(
            filter(table, &[12]).unwrap(),
            "UID          PID    PPID  CMD\nroot          12       1  a 1\n"
        );
        assert!(matches!(filter("USER CMD\n", &[12]), Err(PsError::NoColumn)));
    }

    #[test]
    fn without_ps_the_table_comes_from_proc() {
        let own = std::process::id() as i32;
        let table = own_table(&[own, i32::MAX]);
        assert_eq!(table.lines().count(), 2, "{table}");
        assert!(table.lines().nth(1).unwrap().contains(&own.to_string()));
    }
}
