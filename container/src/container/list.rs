//! Which containers there are, and what is known of each beside its state.

use std::io;
use std::path::Path;
use std::time::SystemTime;

use super::Container;
use crate::id::ContainerId;
use crate::state::StateError;

/// The containers with their state below `state_root`, in the order of their ids. One whose record is damaged is an
/// error in the list and does not hide the others.
pub fn list(state_root: &Path) -> io::Result<Vec<(ContainerId, Result<Container, StateError>)>> {
    let entries = match std::fs::read_dir(state_root) {
        Ok(entries) => entries,
        // No container was made there yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut ids: Vec<ContainerId> = Vec::new();
    for entry in entries {
        let entry = entry?;
        // What cannot be a container's name is not ours.
        let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let (Some(id), true) = (id, entry.file_type()?.is_dir()) {
            ids.push(id);
        }
    }
    ids.sort_unstable();
    let load = |id: ContainerId| {
        let loaded = Container::load(state_root, &id);
        // It was deleted after the folder was read.
        let gone = matches!(loaded, Err(StateError::NotFound { .. }));
        (!gone).then_some((id, loaded))
    };
    Ok(ids.into_iter().filter_map(load).collect())
}

impl Container {
    /// When it was created; unknown if its creation was cut short early.
    pub fn created(&self) -> Option<SystemTime> {
        self.record.created
    }

    /// The folder of its root file system, as the host sees it.
    pub fn rootfs(&self) -> &Path {
        &self.record.rootfs
    }

    /// Who created it: the user that its state belongs to.
    pub fn owner(&self) -> io::Result<u32> {
        Ok(rustix::fs::fstat(&self.directory)?.st_uid)
    }
}
