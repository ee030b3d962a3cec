//! `bulkhead-oci create`

use std::path::PathBuf;

use container::{Bundle, ContainerId, CreateOptions};

use super::log::Log;
use super::{GlobalOptions, OciError};
use crate::isolation::Isolation;

/// Create a container from a bundle; its program waits for start
#[derive(Debug, clap::Args)]
pub(super) struct CreateArguments {
    /// A name that no other container has
    #[arg(value_name = "ID")]
    id: ContainerId,
    /// The folder of the bundle
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// A file that gets the pid of the container's process
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// A socket that gets the terminal, for a configuration that has one
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
}

impl CreateArguments {
    pub(super) fn run(&self, global: &GlobalOptions, log: &Log) -> Result<(), OciError> {
        let bundle = Bundle::load(&self.bundle)?;
        let annotation = match bundle.spec().annotations() {
            Some(annotations) => Isolation::from_annotations(annotations)?,
            None => None,
        };
        match Isolation::choose(global.isolation, annotation, None) {
            Isolation::SharedKernel => {}
            Isolation::MicroVm => return Err(OciError::MicroVm),
        }
        let options = CreateOptions::new(&global.root, &self.id, &bundle)
            .pid_file(self.pid_file.as_deref())
            .console_socket(self.console_socket.as_deref());
        let container = container::create(options)?;
        for warning in container.warnings() {
            log.warning(warning);
        }
        log.debug(|| {
            format!(
                "created container {} with process {}",
                self.id,
                container.pid().unwrap_or(0)
            )
        });
        Ok(())
    }
}
