//! Disks that are put into a running machine: the VMM gets the descriptor, then the guest's kernel finds the disk. They
//! leave the other way round.

use std::os::fd::BorrowedFd;

use protocol::sandbox::{AddDiskRequest, AddDiskResponse, RemoveDiskRequest};
use vmm::control::{Request, Response};
use vmm::devices::virtio::blk::NewDisk;

use super::task::CALL_DEADLINE;
use super::{MicroVm, control, deadline};
use crate::sandbox::SandboxError;

impl MicroVm {
    /// Puts an open disk into a slot. Gives its size in sectors of 512 bytes.
    ///
    /// # Errors
    /// When the VMM refuses it.
    pub async fn attach_disk(
        &self,
        slot: u8,
        disk: NewDisk,
        descriptor: BorrowedFd<'_>,
    ) -> Result<u64, SandboxError> {
        let request = Request::AttachDisk { slot, disk };
        let socket = self.files.control_socket();
        let action = || "giving the VMM the disk";
        let answer = control::ask_with(&socket, &request, Some(descriptor), CALL_DEADLINE).await;
        match answer.map_err(|error| SandboxError::new(action(), error))? {
            Response::Attached { sectors } => Ok(sectors),
            other => Err(SandboxError::new(action(), format!("it answered {other:?}"))),
        }
    }

    /// Takes the disk out of a slot, if there is one, when all that was written to it is with the host.
    ///
    /// # Errors
    /// When the VMM does not answer, or the host's disk fails.
    pub async fn detach_disk(&self, slot: u8) -> Result<(), SandboxError> {
        let request = Request::DetachDisk { slot };
        let answer = control::ask(&self.files.control_socket(), &request, CALL_DEADLINE).await;
        answer
            .map(drop)
            .map_err(|error| SandboxError::new(format!("taking the disk out of slot {slot}"), error))
    }

    /// Has the guest take a disk over that was put in.
    ///
    /// # Errors
    /// When its kernel does not find it or cannot mount it.
    pub async fn add_disk(&self, request: &AddDiskRequest) -> Result<AddDiskResponse, SandboxError> {
        let added = self.sandbox.add_disk(deadline(CALL_DEADLINE), request);
        self.call("taking the disk over in the guest".to_owned(), added)
            .await
    }

    /// Has the guest take leave of a disk that is about to be taken out.
    ///
    /// # Errors
    /// When somebody in the guest uses it still.
    pub async fn remove_disk(&self, id: &str) -> Result<(), SandboxError> {
        let request = RemoveDiskRequest {
            id: id.to_owned(),
            ..RemoveDiskRequest::default()
        };
        let removed = self.sandbox.remove_disk(deadline(CALL_DEADLINE), &request);
        self.call("taking leave of the disk in the guest".to_owned(), removed)
            .await
            .map(drop)
    }
}
