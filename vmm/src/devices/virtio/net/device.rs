//! The device: a pair of queues, one thread.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::configuration::Configuration;
use super::counters::{NetCounters, NetCounts};
use super::features::{Agreed, offered};
use super::receive::{Received, Receiver};
use super::tap::{Port, Tap, is_gone};
use super::transmit::{Transmitted, Transmitter};
use crate::config::{MacAddress, NetworkRateLimit};
use crate::devices::virtio::device::{
    ActivateError, Activation, DeviceState, Pausable, SaveError, VirtioDevice,
};
use crate::devices::virtio::device_queue::DeviceQueue;
use crate::devices::virtio::interrupt::Interrupt;
use crate::devices::virtio::worker::{Poller, Service, Worker, WorkerError};

/// The queues, named as the driver sees them.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const QUEUE_COUNT: usize = 2;

/// Linux fills the receive queue with buffers of about 1.5 KiB: these hold six of the longest frames.
const QUEUE_SIZES: [u16; QUEUE_COUNT] = [256, 256];

/// The numbers of the other events in the poller. The queues have theirs.
const STOP: u64 = QUEUE_COUNT as u64;
const PORT: u64 = STOP + 1;

/// A virtio network device.
pub struct Net {
    configuration: Arc<Configuration>,
    port: Option<Arc<dyn Port>>,
    limit: NetworkRateLimit,
    counters: Arc<NetCounters>,
    worker: Option<Worker<Frames>>,
}

impl Net {
    /// A device with the address `mac` that announces `mtu`, if there is one, and is connected to `tap`. Without a tap
    /// its link is down.
    pub fn new(mac: MacAddress, mtu: Option<u16>, tap: Option<Tap>, limit: NetworkRateLimit) -> Self {
        Self::connected(mac, mtu, tap.map(|tap| Arc::new(tap) as Arc<dyn Port>), limit)
    }

    /// Like [`new`](Self::new), with whatever frames come from.
    pub(super) fn connected(
        mac: MacAddress,
        mtu: Option<u16>,
        port: Option<Arc<dyn Port>>,
        limit: NetworkRateLimit,
    ) -> Self {
        Self {
            configuration: Arc::new(Configuration::new(mac, mtu, port.is_some())),
            port,
            limit,
            counters: Arc::default(),
            worker: None,
        }
    }

    fn start(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let device = self.name();
        let failed = |doing| {
            move |source| ActivateError::Host {
                device,
                doing,
                source,
            }
        };
        let queues = DeviceQueue::take_all(device, &mut activation)?;
        let agreed = Agreed(activation.features);
        let port = self
            .prepare_port(agreed)
            .map_err(failed("setting the offloads of the tap"))?;
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
        self.worker = Some(Worker::start(
            device,
            Arc::clone(&activation.interrupt),
            activation.failures,
            Frames {
                queues,
                port,
                receiver: Receiver::new(agreed, self.limit.receive),
                transmitter: Transmitter::new(agreed, self.limit.transmit),
                configuration: Arc::clone(&self.configuration),
                interrupt: activation.interrupt,
                counters: Arc::clone(&self.counters),
                poller,
                knows_stop: false,
            },
        )?);
        Ok(())
    }

    /// The port, if there is a link, leaving to the guest what was agreed on.
    fn prepare_port(&self, agreed: Agreed) -> io::Result<Option<Arc<dyn Port>>> {
        let port = self.port.as_ref().filter(|_| self.configuration.link_is_up());
        let Some(port) = port else {
            return Ok(None);
        };
        match port.set_offloads(agreed.offloads()) {
            Ok(()) => Ok(Some(Arc::clone(port))),
            Err(error) if is_gone(&error) => {
                self.configuration.take_link_down();
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// The events of a tap, each told once: what is behind one is looked at again only after the next, or after the reason
/// to leave it is gone.
fn edges() -> EventSet {
    EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn name(&self) -> &'static str {
        "net"
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn offered_features(&self) -> u64 {
        offered(self.configuration.mtu())
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.configuration.read(offset, data);
    }

    fn config_generation(&self) -> u32 {
        self.configuration.generation()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.start(activation)
    }

    fn reset(&mut self) {
        self.worker = None;
    }

    fn worker(&mut self) -> Option<&mut dyn Pausable> {
        self.worker.as_mut().map(|worker| worker as &mut dyn Pausable)
    }

    fn network_counts(&self) -> Option<NetCounts> {
        Some(self.counters.counts())
    }

    fn save(&self) -> Result<DeviceState, SaveError> {
        Ok(DeviceState::Net {
            mac: self.configuration.mac(),
            link_up: self.configuration.link_is_up(),
            generation: self.configuration.generation(),
        })
    }

    /// The driver is told if it would now read another address or another state of the link.
    fn restore(&mut self, activation: Activation, state: &DeviceState) -> Result<(), ActivateError> {
        let interrupt = Arc::clone(&activation.interrupt);
        let DeviceState::Net {
            mac,
            link_up,
            generation,
        } = *state
        else {
            return Err(ActivateError::ForeignState { device: self.name() });
        };
        let changed = mac != self.configuration.mac() || link_up != self.configuration.link_is_up();
        self.configuration
            .set_generation(generation.wrapping_add(u32::from(changed)));
        self.start(activation)?;
        if changed {
            interrupt
                .signal_config_change()
                .map_err(|source| ActivateError::Host {
                    device: self.name(),
                    doing: "raising the interrupt",
                    source,
                })?;
        }
        Ok(())
    }
}

/// What the device's thread works on.
struct Frames {
    queues: Vec<DeviceQueue>,
    /// Nothing while there is no link.
    port: Option<Arc<dyn Port>>,
    receiver: Receiver,
    transmitter: Transmitter,
    configuration: Arc<Configuration>,
    interrupt: Arc<Interrupt>,
    counters: Arc<NetCounters>,
    poller: Poller,
    /// Whether the poller has the stop event.
    knows_stop: bool,
}

impl Service for Frames {
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
                return self.leave();
            }
        }
    }

    fn queues(&self) -> &[DeviceQueue] {
        &self.queues
    }
}

impl Frames {
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
            .map_err(WorkerError::queue(queue))
    }

    /// A turn of the transmit queue. Returns whether there may be more at once.
    fn transmit(&mut self, now: Instant) -> Result<bool, WorkerError> {
        let Some(queue) = self.queues.get_mut(TRANSMIT) else {
            return Ok(false);
        };
        let port = self.port.as_deref();
        let transmitted = self
            .transmitter
            .turn(queue, port, now, &self.counters)
            .map_err(WorkerError::queue(TRANSMIT))?;
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
        let (Some(queue), Some(port)) = (self.queues.get_mut(RECEIVE), self.port.as_deref()) else {
            return Ok(false);
        };
        let received = self
            .receiver
            .turn(queue, port, now, &self.counters)
            .map_err(WorkerError::queue(RECEIVE))?;
        if received == Received::Gone {
            self.receiver.put_back(queue);
            self.port = None;
            self.configuration.take_link_down();
            self.interrupt
                .signal_config_change()
                .map_err(WorkerError::host("raising the interrupt"))?;
        }
        // What the tap had no room for goes nowhere now.
        Ok(received != Received::Idle)
    }

    /// Leaves the queues between two frames.
    fn leave(&mut self) -> Result<(), WorkerError> {
        if let Some(queue) = self.queues.get_mut(RECEIVE) {
            self.receiver.put_back(queue);
        }
        Ok(())
    }
}
