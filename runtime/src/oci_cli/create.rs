//! `bulkhead-oci create`

use std::path::PathBuf;

use container::{Bundle, Container, ContainerId, CreateOptions, Stdio};

use super::foreground::take_our_size;
use super::log::Log;
use super::{GlobalOptions, OciError, descriptors, guest};
use crate::annotations;
use crate::isolation::Isolation;

#[derive(Debug, clap::Args)]
pub(super) struct CreateArguments {
    #[command(flatten)]
    creation: Creation,
}

// What `create` and `run` are told alike. As a doc comment this would be their help.
#[derive(Debug, clap::Args)]
pub(super) struct Creation {
    /// A name that no other container has
    #[arg(value_name = "ID")]
    pub(super) id: ContainerId,
    /// The folder of the bundle
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(super) bundle: PathBuf,
    /// A file that gets the pid of the container's process
    #[arg(long, value_name = "FILE")]
    pub(super) pid_file: Option<PathBuf>,
    /// A socket that gets the terminal, for a configuration that has one
    #[arg(long, value_name = "SOCKET")]
    pub(super) console_socket: Option<PathBuf>,
    /// Let the program keep this many of the caller's descriptors after the standard streams; those of LISTEN_FDS come
    /// first
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub(super) preserve_fds: u32,
    /// Leave the program the caller's session keyring
    #[arg(long)]
    no_new_keyring: bool,
    /// Accepted for runc's sake: pivot_root is used in any case, since it alone leaves no way back
    #[arg(long, hide = true)]
    no_pivot: bool,
}

/// How far a command goes with the container it creates.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// Others start it.
    Created,
    /// It starts it.
    Started,
    /// It starts it, shows the terminal of one that has no console socket to send it to, and waits.
    Ended,
}

impl CreateArguments {
    pub(super) fn run(&self, global: &GlobalOptions, log: &Log) -> Result<(), OciError> {
        match self.creation.load(global)? {
            (bundle, Isolation::SharedKernel) => {
                let container = self.creation.create(bundle, global, log, Until::Created);
                container.map(|_| ())
            }
            (bundle, Isolation::MicroVm) => guest::create(&self.creation, &bundle, global, log),
        }
    }
}

impl Creation {
    /// The bundle, and the wall that the container is to stand behind.
    pub(super) fn load(&self, global: &GlobalOptions) -> Result<(Bundle, Isolation), OciError> {
        let bundle = Bundle::load(&self.bundle)?;
        let annotation = match bundle.spec().annotations() {
            Some(annotations) => Isolation::from_annotations(annotations)?,
            None => None,
        };
        let wall = Isolation::choose(global.isolation, annotation, guest::configured_isolation(global)?);
        annotations::check_behind(wall, bundle.spec().annotations().as_ref())?;
        Ok((bundle, wall))
    }

    /// Creates the container on this kernel.
    pub(super) fn create(
        &self,
        mut bundle: Bundle,
        global: &GlobalOptions,
        log: &Log,
        until: Until,
    ) -> Result<Container, OciError> {
        let preserved = descriptors::preserved(self.preserve_fds);
        let mut stdio = Stdio::Inherit;
        if let Some(process) = bundle.process_mut() {
            descriptors::tell_listeners(process);
            let has_terminal = process.terminal() == Some(true) && self.console_socket.is_none();
            if has_terminal && until == Until::Ended {
                take_our_size(process);
                stdio = Stdio::Terminal;
            }
        }
        let mut options = CreateOptions::new(&global.root, &self.id, &bundle)
            .stdio(stdio)
            .pid_file(self.pid_file.as_deref())
            .console_socket(self.console_socket.as_deref())
            .preserved_descriptors(preserved)
            .share_keyring(self.no_new_keyring);
        if until != Until::Created {
            options = options.started_by_creator();
        }
        let mut container = container::create(options)?;
        for warning in container.take_warnings() {
            log.warning(&warning);
        }
        log.debug(|| {
            format!(
                "created container {} with process {}",
                self.id,
                container.pid().unwrap_or(0)
            )
        });
        Ok(container)
    }
}
