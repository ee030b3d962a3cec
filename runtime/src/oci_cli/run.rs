//! `bulkhead-oci run`

use container::Container;

use super::create::{Creation, Until};
use super::foreground::Foreground;
use super::log::{Log, chain};
use super::{GlobalOptions, OciError, guest};
use crate::isolation::Isolation;

#[derive(Debug, clap::Args)]
pub(super) struct RunArguments {
    #[command(flatten)]
    pub(super) creation: Creation,
    /// Do not wait: the container runs on by itself, and is left to delete
    #[arg(short, long)]
    pub(super) detach: bool,
    /// Leave the container to delete when its program has ended
    #[arg(long)]
    pub(super) keep: bool,
    /// Accepted for runc's sake: orphans of the container go to the caller's reaper in any case
    #[arg(long, hide = true)]
    no_subreaper: bool,
}

impl RunArguments {
    /// The exit code of the program, or 0 for a container that was detached.
    pub(super) fn run(&self, global: &GlobalOptions, log: &Log) -> Result<i32, OciError> {
        let (bundle, wall) = self.creation.load(global)?;
        if wall == Isolation::MicroVm {
            return guest::run_container(self, &bundle, global, log);
        }
        let (foreground, until) = if self.detach {
            (None, Until::Started)
        } else {
            (Some(Foreground::begin()?), Until::Ended)
        };
        let mut container = self.creation.create(bundle, global, log, until)?;
        let ran = self.start_and_wait(&mut container, foreground);
        if ran.is_ok() && (self.detach || self.keep) {
            return ran;
        }
        let deleted = container.delete(true);
        for warning in container.take_warnings() {
            log.warning(&warning);
        }
        match (ran, deleted) {
            (Ok(code), Ok(())) => Ok(code),
            (Ok(_), Err(error)) => Err(error.into()),
            (Err(error), deleted) => {
                if let Err(left) = deleted {
                    log.warning(&chain(&left));
                }
                Err(error)
            }
        }
    }

    fn start_and_wait(
        &self,
        container: &mut Container,
        foreground: Option<Foreground>,
    ) -> Result<i32, OciError> {
        let process = container.pidfd().map_err(OciError::Wait)?;
        let terminal = container.take_terminal();
        container.start()?;
        match (foreground, process) {
            (Some(foreground), Some(process)) => foreground.wait(&process, terminal),
            _ => Ok(0),
        }
    }
}
