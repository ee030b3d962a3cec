//! A whole machine in two files, from which others go on.
//!
//! `<directory>/memory` is the guest's memory, [sparse](memory); `<directory>/state` is everything else, in a
//! [frame](mod@format) that is checked before anything in it is believed. `state` gets its name last: a directory without
//! it holds no snapshot. `docs/snapshots.md` says what is kept, in which order it is put back, and why.

pub mod description;
pub mod format;
pub mod memory;
pub mod raw;
mod time_stamp_counter;
pub mod vcpu;
pub mod vm;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vm_memory::GuestMemoryMmap;

use self::description::{Dependencies, Description, Mismatch};
use self::format::{Documents, FormatError};
use self::memory::MemoryFileError;
use self::vcpu::VcpuState;
use self::vm::VmState;
use crate::bus::BusState;

/// The names of the files in a snapshot's directory, and of the state before it is whole.
const MEMORY: &str = "memory";
const STATE: &str = "state";
const UNFINISHED_STATE: &str = "state.unfinished";

/// Why there is no snapshot, or none that can be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The directory is not one that a snapshot can be written to.
    #[error("the directory {} is not empty", .path.display())]
    NotEmpty {
        /// Its path.
        path: PathBuf,
    },
    /// The host does not do its part.
    #[error("{doing} {}", .path.display())]
    File {
        /// What it should have done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The state is not one.
    #[error("the state of the snapshot {} cannot be used", .path.display())]
    Format {
        /// The snapshot's directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: FormatError,
    },
    /// The state is whole, but says something else than it should.
    #[error("the state of the snapshot {} makes no sense", .path.display())]
    Document {
        /// The snapshot's directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// The memory is not the snapshot's.
    #[error("the memory of the snapshot {} cannot be used", .path.display())]
    Memory {
        /// The snapshot's directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: MemoryFileError,
    },
    /// The snapshot is another machine's.
    #[error("the snapshot {} does not fit", .path.display())]
    Mismatch {
        /// Its directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Mismatch,
    },
}

/// The second document of a state.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineState {
    /// The machine in KVM.
    pub vm: VmState,
    /// Its vCPUs in the order of their numbers.
    pub vcpus: Vec<VcpuState>,
    /// Its devices.
    pub bus: BusState,
}

/// A snapshot that fits a machine, ready to be used.
#[derive(Debug)]
pub struct Snapshot {
    /// Everything but the memory.
    pub machine: MachineState,
    /// The memory file; it has the right size.
    pub memory: File,
}

/// Writes a snapshot to `directory`, which exists and is empty. Nothing of the machine changes meanwhile.
///
/// # Errors
/// When the directory is not empty or a file cannot be written. The directory is then as before.
pub fn write(
    directory: &Path,
    dependencies: &Dependencies,
    machine: &MachineState,
    guest_memory: &GuestMemoryMmap,
) -> Result<(), SnapshotError> {
    let failed = |doing| file_error(doing, directory);
    let handle = File::open(directory).map_err(failed("opening the directory"))?;
    let mut entries = fs::read_dir(directory).map_err(failed("reading the directory"))?;
    if entries.next().is_some() {
        return Err(SnapshotError::NotEmpty {
            path: directory.to_owned(),
        });
    }
    let written = write_files(directory, dependencies, machine, guest_memory).and_then(|()| {
        // The names are on the disk when what they name is.
        handle.sync_all().map_err(failed("flushing the directory"))
    });
    if written.is_err() {
        for name in [STATE, UNFINISHED_STATE, MEMORY] {
            // Some were not made, and of the others there is nothing better to do.
            let _ = fs::remove_file(directory.join(name));
        }
    }
    written
}

fn write_files(
    directory: &Path,
    dependencies: &Dependencies,
    machine: &MachineState,
    guest_memory: &GuestMemoryMmap,
) -> Result<(), SnapshotError> {
    let memory_file = create(&directory.join(MEMORY))?;
    let memory = memory::write(guest_memory, &memory_file).map_err(|source| SnapshotError::Memory {
        path: directory.to_owned(),
        source,
    })?;
    let description = Description {
        dependencies: dependencies.clone(),
        memory,
    };
    let document = |source| SnapshotError::Document {
        path: directory.to_owned(),
        source,
    };
    let state = format::encode(Documents {
        description: &serde_json::to_vec(&description).map_err(document)?,
        machine: &serde_json::to_vec(machine).map_err(document)?,
    });
    let unfinished = directory.join(UNFINISHED_STATE);
    let mut file = create(&unfinished)?;
    file.write_all(&state)
        .and_then(|()| file.sync_all())
        .map_err(file_error("writing", &unfinished))?;
    fs::rename(&unfinished, directory.join(STATE)).map_err(file_error("renaming", &unfinished))
}

/// What is in guest memory is nobody else's to read.
fn create(path: &Path) -> Result<File, SnapshotError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(file_error("creating", path))
}

impl Snapshot {
    /// Opens the snapshot in `directory` for a machine with `dependencies`. The memory is not read.
    ///
    /// # Errors
    /// When there is none, it is damaged, or it is another machine's.
    pub fn open(directory: &Path, dependencies: &Dependencies) -> Result<Self, SnapshotError> {
        let state = read_state(directory)?;
        let (description, machine) = parse(directory, &state)?;
        dependencies
            .check(&description.dependencies)
            .map_err(|source| SnapshotError::Mismatch {
                path: directory.to_owned(),
                source,
            })?;
        let machine = serde_json::from_slice(machine).map_err(|source| SnapshotError::Document {
            path: directory.to_owned(),
            source,
        })?;
        let memory = open_memory(directory)?;
        memory::check_size(&memory, description.memory.bytes).map_err(memory_error(directory))?;
        Ok(Self { machine, memory })
    }
}

/// Checks that the snapshot in `directory` is whole: that its state is what was written, and that its memory is. It
/// need not fit this build or this host.
///
/// # Errors
/// When it is not.
pub fn verify(directory: &Path) -> Result<(), SnapshotError> {
    let state = read_state(directory)?;
    let (description, _) = parse(directory, &state)?;
    memory::verify(&open_memory(directory)?, &description.memory).map_err(memory_error(directory))
}

fn read_state(directory: &Path) -> Result<Vec<u8>, SnapshotError> {
    let path = directory.join(STATE);
    let file = File::open(&path).map_err(file_error("opening", &path))?;
    format::read(&file).map_err(|source| SnapshotError::Format {
        path: directory.to_owned(),
        source,
    })
}

/// The description in `state`, and the document after it.
fn parse<'a>(directory: &Path, state: &'a [u8]) -> Result<(Description, &'a [u8]), SnapshotError> {
    let Documents { description, machine } =
        format::decode(state).map_err(|source| SnapshotError::Format {
            path: directory.to_owned(),
            source,
        })?;
    let description = serde_json::from_slice(description).map_err(|source| SnapshotError::Document {
        path: directory.to_owned(),
        source,
    })?;
    Ok((description, machine))
}

fn open_memory(directory: &Path) -> Result<File, SnapshotError> {
    let path = directory.join(MEMORY);
    File::open(&path).map_err(file_error("opening", &path))
}

fn memory_error(directory: &Path) -> impl FnOnce(MemoryFileError) -> SnapshotError {
    move |source| SnapshotError::Memory {
        path: directory.to_owned(),
        source,
    }
}

fn file_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    move |source| SnapshotError::File {
        doing,
        path: path.to_owned(),
        source,
    }
}
