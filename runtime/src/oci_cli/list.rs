//! `bulkhead-oci list`

use std::path::PathBuf;

use container::ContainerId;
use serde::Serialize;

use super::log::{Log, chain};
use super::ps::Format;
use super::state::{ContainerState, owner_name};
use super::{GlobalOptions, OciError, print};
use crate::oci_pod::folder::Folder;
use crate::oci_pod::record::GuestContainer;
use crate::printable::printable;

#[derive(Debug, clap::Args)]
pub(super) struct ListArguments {
    /// How they are shown
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = Format::Table)]
    format: Format,
    /// Show only ids
    #[arg(short, long)]
    quiet: bool,
}

/// A container in a list.
#[derive(Serialize)]
#[serde(untagged)]
enum Listed {
    Known(Box<ContainerState>),
    /// Its record cannot be read; it can be deleted by hand.
    Damaged {
        #[serde(rename = "ociVersion")]
        oci_version: &'static str,
        id: String,
        pid: i32,
        status: &'static str,
        bundle: PathBuf,
        owner: String,
    },
}

impl ListArguments {
    pub(super) fn run(&self, global: &GlobalOptions, log: &Log) -> Result<(), OciError> {
        let containers = container::list(&global.root).map_err(|source| OciError::List {
            root: global.root.clone(),
            source,
        })?;
        if self.quiet {
            let ids: String = containers.iter().map(|(id, _)| format!("{id}\n")).collect();
            return print(ids.as_bytes());
        }
        let mut listed = Vec::with_capacity(containers.len());
        for (id, loaded) in containers {
            let state = match GuestContainer::read(&Folder::of(&global.root, &id)) {
                Ok(Some(container)) => ContainerState::of_guest(&container),
                Ok(None) => loaded
                    .and_then(|container| ContainerState::of(&container))
                    .map_err(OciError::from),
                Err(error) => Err(error.into()),
            };
            match state {
                Ok(state) => listed.push(Listed::Known(Box::new(state))),
                Err(error) => {
                    log.warning(&format!("container `{id}`: {}", chain(&error)));
                    listed.push(damaged(global, &id));
                }
            }
        }
        match self.format {
            Format::Json => {
                let mut text = serde_json::to_vec(&listed).map_err(|error| OciError::Output(error.into()))?;
                text.push(b'\n');
                print(&text)
            }
            Format::Table => {
                let rows: Vec<[String; 6]> = listed.iter().map(Listed::row).collect();
                print(table(&rows).as_bytes())
            }
        }
    }
}

fn damaged(global: &GlobalOptions, id: &ContainerId) -> Listed {
    let owner = std::fs::metadata(global.root.join(id))
        .map(|folder| owner_name(std::os::unix::fs::MetadataExt::uid(&folder)))
        .unwrap_or_default();
    Listed::Damaged {
        oci_version: "",
        id: id.to_string(),
        pid: 0,
        status: "unknown",
        bundle: PathBuf::new(),
        owner,
    }
}

impl Listed {
    /// Names of folders are strangers' words too.
    fn row(&self) -> [String; 6] {
        let cells = match self {
            Listed::Known(container) => [
                container.state.id.clone(),
                container.state.pid.unwrap_or(0).to_string(),
                container.state.status.to_string(),
                container.state.bundle.display().to_string(),
                container.created.clone(),
                container.owner.clone(),
            ],
            Listed::Damaged {
                id, status, owner, ..
            } => [
                id.clone(),
                "0".to_owned(),
                (*status).to_owned(),
                String::new(),
                String::new(),
                owner.clone(),
            ],
        };
        cells.map(|cell| printable(&cell))
    }
}

/// Columns as wide as their widest cell and three spaces, at least 12.
fn table(rows: &[[String; 6]]) -> String {
    let heading = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let rows: Vec<&[String; 6]> = std::iter::once(&heading).chain(rows).collect();
    let mut widths = [12; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row.iter()) {
            *width = (*width).max(cell.chars().count() + 3);
        }
    }
    let mut text = String::new();
    for row in rows {
        let line: String = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_cells_and_never_touch() {
        let row = [
            "a-rather-long-name",
            "7",
            "running",
            "/b",
            "2026-01-01T00:00:00Z",
            "root",
        ]
        .map(str::to_owned);
        let text = table(&[row]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].find("PID"), lines[1].find('7'));
        assert!(lines[0].starts_with("ID                   PID         STATUS"));
    }
}
