//! The threads of a device that has several.

use crate::devices::virtio::device::{ActivateError, Pausable, QueuePosition};
use crate::devices::virtio::worker::{Service, Worker};

/// The threads, which stop and go on together.
pub(super) struct Workers {
    /// How many queues the device has, with those that none serves.
    queue_count: usize,
    /// Each with the index of the first of its queues; the others follow.
    workers: Vec<(usize, Box<dyn Pausable + Send>)>,
}

impl Workers {
    /// None yet, of a device of `queue_count` queues.
    pub(super) fn new(queue_count: usize) -> Self {
        Self {
            queue_count,
            workers: Vec::new(),
        }
    }

    /// Adds one whose queues begin at the index `first`.
    pub(super) fn add<S: Service>(&mut self, first: usize, worker: Worker<S>) {
        self.workers.push((first, Box::new(worker)));
    }
}

impl Pausable for Workers {
    fn pause(&mut self) {
        for (_, worker) in &mut self.workers {
            worker.pause();
        }
    }

    fn resume(&mut self) -> Result<(), ActivateError> {
        self.workers
            .iter_mut()
            .try_for_each(|(_, worker)| worker.resume())
    }

    /// A queue that none serves is where it began.
    fn queue_positions(&self) -> Option<Vec<QueuePosition>> {
        let mut positions = vec![QueuePosition::default(); self.queue_count];
        for (first, worker) in &self.workers {
            let places = positions.iter_mut().skip(*first);
            for (place, position) in places.zip(worker.queue_positions()?) {
                *place = position;
            }
        }
        Some(positions)
    }
}
