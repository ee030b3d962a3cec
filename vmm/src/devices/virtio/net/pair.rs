//! One pair of queues, and its thread.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::configuration::Configuration;
use super::counters::NetCounters;
use super::features::Agreed;
use super::pace::SharedLimit;
use super::queue_pairs::QueuePairs;
use super::receive::{Received, Receiver};
use super::tap::Port;
use super::transmit::{Transmitted, Transmitter};
use crate::devices::virtio::device_queue::{DeviceQueue, QueueError};
use crate::devices::virtio::interrupt::Interrupt;
use crate::devices::virtio::worker::{Poller, Service, WorkerError};

/// The queues of a pair, in the order the driver sees them.
pub(super) const RECEIVE: usize = 0;
pub(super) const TRANSMIT: usize = 1;
pub(super) const QUEUES_PER_PAIR: usize = 2;

/// The numbers of the other events in the poller. The queues have theirs.
const STOP: u64 = QUEUES_PER_PAIR as u64;
const PORT: u64 = STOP + 1;

/// What all pairs of a device have in common.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) agreed: Agreed,
    pub(super) receive_limit: SharedLimit,
    pub(super) transmit_limit: SharedLimit,
    pub(super) pairs: Arc<QueuePairs>,
    pub(super) configuration: Arc<Configuration>,
    pub(super) interrupt: Arc<Interrupt>,
    pub(super) counters: Arc<NetCounters>,
}

/// What a pair's thread works on.
pub(super) struct Pair {
    /// Its place among the pairs.
    index: u16,
    queues: [DeviceQueue; QUEUES_PER_PAIR],
    /// Nothing while there is no link.
    port: Option<Arc<dyn Port>>,
    receiver: Receiver,
    transmitter: Transmitter,
    shared: Shared,
    poller: Poller,
    /// Whether the poller has the stop event.
    knows_stop: bool,
}

/// The events of a tap, each told once: what is behind one is looked at again only after the next, or after the reason
/// to leave it is gone.
fn edges() -> EventSet {
    EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED
}

impl Pair {
    /// The pair at `index`. Of an error it is said what was being done.
    pub(super) fn new(
        index: u16,
        queues: [DeviceQueue; QUEUES_PER_PAIR],
        shared: Shared,
    ) -> Result<Self, (&'static str, io::Error)> {
        let failed = |doing| move |source| (doing, source);
        let ports = match shared.configuration.link_is_up() {
            true => shared.pairs.ports(),
            false => &[],
        };
        let port = ports.get(usize::from(index)).cloned();
        let poller = Poller::new().map_err(failed("creating an epoll set"))?;
        for (token, queue) in (0..).zip(&queues) {
            poller
                .add(queue.notification(), EventSet::IN, token)
                .map_err(failed("watching a notification"))?;
        }
        if let Some(port) = &port {
            poller
                .add(&port.as_fd(), edges(), PORT)
                .map_err(failed("watching the tap"))?;
        }
        Ok(Self {
            index,
            queues,
            port,
            receiver: Receiver::new(shared.agreed, shared.receive_limit.clone()),
            transmitter: Transmitter::new(shared.agreed, shared.transmit_limit.clone()),
            shared,
            poller,
            knows_stop: false,
        })
    }

    /// How long to wait for the next event.
    fn patience(&self, more: bool) -> Option<Duration> {
        if more {
            return Some(Duration::ZERO);
        }
        // Without a tap nothing waits.
        self.port.as_ref()?;
        let ends = [self.receiver.rests_until(), self.transmitter.rests_until()];
        let first = ends.into_iter().flatten().min()?;
        Some(first.saturating_duration_since(Instant::now()))
    }

    fn take_port_event(&mut self, events: EventSet) {
        // An error is told by the next read.
        if events.intersects(EventSet::IN | EventSet::ERROR | EventSet::HANG_UP) {
            self.receiver.set_readable();
        }
        if events.contains(EventSet::OUT) {
            self.transmitter.set_writable();
        }
    }

    fn take_notification(&self, queue: usize) -> Result<(), WorkerError> {
        self.queues
            .get(queue)
            .map_or(Ok(()), DeviceQueue::take_notification)
            .map_err(self.queue_error(queue))
    }

    /// For `map_err`: an error of one of the queues, which is told by its index among the device's.
    fn queue_error(&self, queue: usize) -> impl Fn(QueueError) -> WorkerError + use<> {
        WorkerError::queue(usize::from(self.index) * QUEUES_PER_PAIR + queue)
    }

    /// A turn of the transmit queue. Returns whether there may be more at once. What a driver puts into a pair that is not
    /// in use goes nowhere: the host's kernel complains of frames from a detached queue, for the whole host to see.
    fn transmit(&mut self, now: Instant) -> Result<bool, WorkerError> {
        let in_use = self.shared.pairs.hold_in_use();
        let port = self.port.as_deref().filter(|_| self.index < *in_use);
        let transmitted = self
            .transmitter
            .turn(&mut self.queues[TRANSMIT], port, now, &self.shared.counters)
            .map_err(self.queue_error(TRANSMIT))?;
        if let (Transmitted::Full, Some(port)) = (transmitted, port) {
            // A tap tells of room only those who asked after it was full; it may have some already.
            self.poller
                .modify(&port.as_fd(), edges(), PORT)
                .map_err(WorkerError::host("watching the tap for room"))?;
        }
        Ok(transmitted == Transmitted::More)
    }

    /// A turn of the receive queue. Returns whether there may be more at once.
    fn receive(&mut self, now: Instant) -> Result<bool, WorkerError> {
        let queue_error = self.queue_error(RECEIVE);
        let queue = &mut self.queues[RECEIVE];
        let counters = &self.shared.counters;
        let in_use = self.shared.pairs.hold_in_use();
        if self.index >= *in_use {
            self.receiver.give_up(queue, counters);
            return Ok(false);
        }
        let Some(port) = self.port.as_deref() else {
            return Ok(false);
        };
        let received = self
            .receiver
            .turn(queue, port, now, counters)
            .map_err(queue_error)?;
        if received == Received::Gone {
            self.receiver.put_back(queue);
            self.port = None;
            // Each pair finds out; the driver is told once.
            if self.shared.configuration.take_link_down() {
                self.shared
                    .interrupt
                    .signal_config_change()
                    .map_err(WorkerError::host("raising the interrupt"))?;
            }
        }
        // What the tap had no room for goes nowhere now.
        Ok(received != Received::Idle)
    }

    /// Leaves the queues between two frames.
    fn leave(&mut self) {
        self.receiver.put_back(&mut self.queues[RECEIVE]);
    }
}

impl Service for Pair {
    fn serve(&mut self, stop: &EventFd) -> Result<(), WorkerError> {
        if !self.knows_stop {
            self.poller
                .add(stop, EventSet::IN, STOP)
                .map_err(WorkerError::host("watching the stop event"))?;
            self.knows_stop = true;
        }
        let mut more = true;
        loop {
            let events = self
                .poller
                .wait(self.patience(more))
                .map_err(WorkerError::host("waiting for events"))?;
            let mut stopping = false;
            for (token, events) in events {
                match token {
                    STOP => stopping = true,
                    PORT => self.take_port_event(events),
                    queue => self.take_notification(queue as usize)?,
                }
            }
            let now = Instant::now();
            more = self.transmit(now)?;
            more |= self.receive(now)?;
            if stopping {
                self.leave();
                return Ok(());
            }
        }
    }

    fn queues(&self) -> &[DeviceQueue] {
        &self.queues
    }
}
