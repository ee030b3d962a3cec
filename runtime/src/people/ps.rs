//! `bulkhead ps`: what runs, what has ended, what was abandoned.

use std::time::{SystemTime, UNIX_EPOCH};

use comfy_table::{Table, presets};
use image::Store;

use crate::configuration::Configuration;
use crate::sandbox::directory::{self, SandboxDirectory};
use crate::sandbox::record::SandboxRecord;

/// Options of `ps`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only print ids
    #[arg(long, short)]
    quiet: bool,
}

/// Lists every sandbox and every writable layer that is left.
pub(crate) fn ps(configuration: &Configuration, arguments: &Arguments) -> anyhow::Result<u8> {
    let run_root = &configuration.run_root;
    let ids = SandboxDirectory::list(run_root)?;
    let store = Store::open(&configuration.root)?;
    let layers: Vec<String> = store
        .containers()?
        .into_iter()
        .filter(|id| !ids.contains(id))
        .collect();
    if arguments.quiet {
        ids.iter().chain(&layers).for_each(|id| println!("{id}"));
        return Ok(0);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["ID", "ISOLATION", "STATUS", "CREATED", "IMAGE", "COMMAND"]);
    for id in ids {
        match SandboxRecord::read(&directory::path_of(run_root, &id)) {
            Ok(record) => {
                let status = status(&record);
                let created = age(record.created_at);
                let command = record.command.join(" ");
                table.add_row([
                    &id,
                    record.isolation.as_str(),
                    &status,
                    &created,
                    &record.image,
                    &command,
                ]);
            }
            Err(error) => {
                let status = format!("broken: {:#}", anyhow::Error::new(error));
                table.add_row([&id, "", &status, "", "", ""]);
            }
        }
    }
    for id in layers {
        table.add_row([id.as_str(), "", "only its writable layer is left", "", "", ""]);
    }
    println!("{table}");
    Ok(0)
}

fn status(record: &SandboxRecord) -> String {
    match record.exit_status {
        Some(status) => format!("exited ({status})"),
        // What `/proc` does not tell is taken for running: nothing is removed on a guess.
        None if record.supervisor.is_alive().unwrap_or(true) => "running".to_owned(),
        None => format!("abandoned by process {}", record.supervisor.pid),
    }
}

/// How long ago a moment in seconds since the epoch was.
pub(super) fn age(created_at: u64) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let seconds = now.saturating_sub(created_at);
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_the_largest_unit_that_fits() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(age(now - 3 * 86400 - 5), "3 d ago");
        assert_eq!(age(now - 7200), "2 h ago");
    }

    #[test]
    fn a_clock_that_went_back_is_no_panic() {
        assert_eq!(age(u64::MAX), "0 s ago");
    }
}
