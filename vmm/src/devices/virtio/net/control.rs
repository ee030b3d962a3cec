//! The control queue (virtio 1.2, section 5.1.6.5), which a device with several pairs of queues has. The one command it
//! knows is how many of them are to be used.

use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::areas::{self, Area, Direction};
use super::queue_pairs::QueuePairs;
use crate::devices::virtio::device_queue::{Chain, DeviceQueue};
use crate::devices::virtio::worker::{Service, WorkerError, serve_queues};

/// A command: its class, its number, and how many pairs (sections 5.1.6.5 and 5.1.6.5.6).
const COMMAND_BYTES: usize = 4;
const CLASS: u8 = VIRTIO_NET_CTRL_MQ as u8;
const SET_PAIRS: u8 = VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET as u8;

const DONE: u8 = VIRTIO_NET_OK as u8;
const REFUSED: u8 = VIRTIO_NET_ERR as u8;

/// What the control queue's thread works on.
pub(super) struct Control {
    queues: [DeviceQueue; 1],
    commands: Commands,
}

struct Commands {
    pairs: Arc<QueuePairs>,
    /// How many pairs the driver has made ready.
    ready: u16,
    areas: Vec<Area>,
}

impl Control {
    /// The service of `queue`, for a driver that has made the first `ready` of `pairs` ready.
    pub(super) fn new(queue: DeviceQueue, pairs: Arc<QueuePairs>, ready: u16) -> Self {
        Self {
            queues: [queue],
            commands: Commands {
                pairs,
                ready,
                areas: Vec::new(),
            },
        }
    }
}

impl Service for Control {
    fn serve(&mut self, stop: &EventFd) -> Result<(), WorkerError> {
        let limit = usize::from(self.queues[0].size());
        let commands = &mut self.commands;
        serve_queues(&mut self.queues, stop, |chain| commands.answer(chain, limit))
    }

    fn queues(&self) -> &[DeviceQueue] {
        &self.queues
    }
}

impl Commands {
    /// Carries out the command in `chain`, of at most `limit` descriptors, and writes the answer, if there is a place for
    /// it. Returns how much that is.
    fn answer(&mut self, chain: &Chain, limit: usize) -> u32 {
        let Some(place) = place_of_answer(chain, limit) else {
            return 0;
        };
        let command = self.command(chain, limit);
        let answer = match command.is_some_and(|command| self.carry_out(command)) {
            true => DONE,
            false => REFUSED,
        };
        match chain.memory().write_obj(answer, place) {
            Ok(()) => 1,
            // There is no memory of the guest's there.
            Err(_) => 0,
        }
    }

    /// The command; nothing if it is no known one's length.
    fn command(&mut self, chain: &Chain, limit: usize) -> Option<[u8; COMMAND_BYTES]> {
        let length = areas::collect(chain, Direction::FromGuest, limit, &mut self.areas)?;
        if length != COMMAND_BYTES {
            return None;
        }
        let areas = self.areas.iter().copied();
        let slices = areas::slices(chain.memory(), areas, 0, COMMAND_BYTES).ok()?;
        // Read once: the guest may change it meanwhile.
        let mut command = [0; COMMAND_BYTES];
        areas::gather(&slices, &mut command);
        Some(command)
    }

    /// Returns whether it could be done. What the host refuses is the driver's to hear of: it goes on as before.
    fn carry_out(&self, command: [u8; COMMAND_BYTES]) -> bool {
        let [CLASS, SET_PAIRS, low, high] = command else {
            return false;
        };
        let count = u16::from_le_bytes([low, high]);
        (1..=self.ready).contains(&count) && self.pairs.use_as_asked(count)
    }
}

/// The first byte that the device may write.
fn place_of_answer(chain: &Chain, limit: usize) -> Option<GuestAddress> {
    chain
        .clone()
        .take(limit)
        .find(|descriptor| descriptor.is_write_only() && descriptor.len() > 0)
        .map(|descriptor| descriptor.addr())
}
