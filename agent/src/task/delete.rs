//! `Delete`: nothing of the container remains.

use std::fs;
use std::io;
use std::path::Path;

use ttrpc::Result;

use super::{BUNDLES, TaskService, failed};

pub(super) fn delete(service: &TaskService, id: &str, force: bool) -> Result<()> {
    service.with_container(id, |kept| {
        kept.container
            .delete(force)
            .map_err(|error| failed("deleting the container", error))
    })?;
    service.containers().remove(id);
    match fs::remove_dir_all(Path::new(BUNDLES).join(id)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing the bundle", error)),
        _ => Ok(()),
    }
}
