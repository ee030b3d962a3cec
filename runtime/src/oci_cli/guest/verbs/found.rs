//! A container that exists, and its machine.

use std::time::Duration;

use container::{ContainerId, OciState, Status};
use rustix::io::Errno;

use super::GuestError;
use crate::kill_process::{ends_within, kill_and_wait};
use crate::micro_vm::machine_files::MachineFiles;
use crate::micro_vm::{MicroVm, standstill};
use crate::oci_cli::GlobalOptions;
use crate::oci_pod::folder::{Folder, FolderLock};
use crate::oci_pod::record::GuestContainer;
use crate::oci_pod::sandbox::{PodSandbox, machine_files};

/// How long an attendant that was killed may take to be gone.
pub(super) const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// How long an attendant may take to follow its process, which has ended or is about to: the agent has yet to reap it, and
/// its output to be handed on.
pub(super) const LAST_MOMENTS: Duration = Duration::from_secs(3);

/// What is written down of a container.
pub(super) struct Found {
    pub(super) id: ContainerId,
    pub(super) folder: Folder,
    pub(super) container: GuestContainer,
    /// The folder of the first container of its pod.
    pub(super) sandbox_folder: Folder,
}

impl Found {
    /// The container as it is, while others may work on it.
    pub(super) fn look(global: &GlobalOptions, id: &ContainerId) -> Result<Self, GuestError> {
        let folder = Folder::of(&global.root, id);
        let Some(container) = GuestContainer::read(&folder)? else {
            return Err(GuestError::Gone(id.clone()));
        };
        Ok(Self {
            id: id.clone(),
            sandbox_folder: Folder::of_named(&global.root, &container.sandbox),
            folder,
            container,
        })
    }

    /// The container, which nobody else changes while the lock is held.
    pub(super) fn lock(global: &GlobalOptions, id: &ContainerId) -> Result<(Self, FolderLock), GuestError> {
        let lock = Folder::of(&global.root, id).lock()?;
        Ok((Self::look(global, id)?, lock))
    }

    pub(super) fn status(&self) -> Result<Status, GuestError> {
        self.container.status().map_err(looking)
    }

    pub(super) fn state(&self) -> Result<OciState, GuestError> {
        self.container.state().map_err(looking)
    }

    /// Kills the attendant, if it lives. Its process in the guest is killed by its leash.
    pub(super) fn end_attendant(&self) -> Result<(), GuestError> {
        let ended = self
            .container
            .attendant
            .map_or(Ok(()), |attendant| kill_and_wait(attendant, KILL_PATIENCE));
        ended.map_err(|source| GuestError::Process { doing: "end", source })
    }

    /// Whether the container has ended, or does within this time.
    pub(super) fn ends_within(&self, patience: Duration) -> Result<bool, GuestError> {
        let ends = self
            .container
            .attendant
            .map_or(Ok(true), |attendant| ends_within(attendant, patience));
        ends.map_err(|source| GuestError::Process {
            doing: "wait for",
            source,
        })
    }

    /// The processes on the host that stand for those of the container: one for its first, and one for each that was added
    /// to it and has not ended. Beside them only the VMM is in the container's cgroup, if it founded its sandbox.
    pub(super) fn attendants(&self) -> Result<Vec<i32>, GuestError> {
        let machine = PodSandbox::read(&self.folder)?.map(|sandbox| sandbox.machine.pid);
        let mut processes = self.container.cgroup.processes()?;
        processes.retain(|&pid| Some(pid) != machine);
        processes.sort_unstable();
        Ok(processes)
    }

    /// Ends a container whose agent does not: to whoever waits for it at once, and with its machine if nobody else is in it. A
    /// pod's machine is for the pod's first container to end.
    pub(super) fn end_from_outside(&self) -> Result<(), GuestError> {
        self.end_attendant()?;
        match PodSandbox::read(&self.folder)? {
            Some(sandbox)
                if !sandbox.of_a_pod
                    && !GuestContainer::others_live(&self.sandbox_folder, self.id.as_str()) =>
            {
                Ok(sandbox.kill()?)
            }
            _ => Ok(()),
        }
    }

    /// Fails unless the container is in one of these states.
    pub(super) fn require(&self, states: &[Status], needed: &'static str) -> Result<(), GuestError> {
        let status = self.status()?;
        if states.contains(&status) {
            return Ok(());
        }
        Err(GuestError::Status {
            id: self.id.clone(),
            status,
            needed,
        })
    }

    /// The sandbox it is in.
    pub(super) fn sandbox(&self) -> Result<PodSandbox, GuestError> {
        let sandbox = PodSandbox::read(&self.sandbox_folder)?;
        sandbox.ok_or_else(|| GuestError::Gone(self.id.clone()))
    }

    /// Speaks to the agent.
    pub(super) async fn machine(&self) -> Result<MicroVm, GuestError> {
        Ok(MicroVm::join(self.sandbox()?.machine, &self.machine_files()).await?)
    }

    /// Has the agent do something. A machine that stands still goes on for as long; the container stays frozen.
    pub(super) async fn call<T, E: From<GuestError>>(
        &self,
        work: impl AsyncFnOnce(&MicroVm) -> Result<T, E>,
    ) -> Result<T, E> {
        let stands_still = self.status()? == Status::Paused && self.is_alone();
        if stands_still {
            self.go_on().await?;
        }
        let done = async { work(&self.machine().await?).await }.await;
        if stands_still {
            let stands_again = self.stand_still().await;
            let done = done?;
            stands_again?;
            return Ok(done);
        }
        done
    }

    /// Whether its machine is there for it alone, and is to stand still with it.
    pub(super) fn is_alone(&self) -> bool {
        let root = self.folder.path().parent();
        // Where that cannot be told, the machine goes on for whoever else there may be.
        self.container.sandbox == self.id.as_str()
            && root
                .is_some_and(|root| GuestContainer::is_alone(root, &self.container.sandbox).unwrap_or(false))
    }

    /// Keeps the container's machine from doing anything.
    pub(super) async fn stand_still(&self) -> Result<(), GuestError> {
        Ok(standstill::begin(&self.machine_files()).await?)
    }

    /// Lets it go on.
    pub(super) async fn go_on(&self) -> Result<(), GuestError> {
        Ok(standstill::end(&self.machine_files()).await?)
    }

    fn machine_files(&self) -> MachineFiles {
        machine_files(&self.sandbox_folder)
    }
}

fn looking(errno: Errno) -> GuestError {
    GuestError::Process {
        doing: "look at",
        source: errno.into(),
    }
}
