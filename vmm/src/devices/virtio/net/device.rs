//! The device: pairs of queues, each with a thread, and the control queue if there are several.

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;

use super::configuration::Configuration;
use super::control::Control;
use super::counters::{NetCounters, NetCounts};
use super::features::{Agreed, offered};
use super::pace::SharedLimit;
use super::pair::{Pair, QUEUES_PER_PAIR, RECEIVE, Shared, TRANSMIT};
use super::queue_pairs::QueuePairs;
use super::tap::{Port, Tap, is_gone};
use super::workers::Workers;
use crate::config::{MacAddress, NetworkDevice, NetworkRateLimit};
use crate::devices::virtio::device::{
    ActivateError, Activation, DeviceState, Pausable, SaveError, VirtioDevice,
};
use crate::devices::virtio::device_queue::DeviceQueue;
use crate::devices::virtio::worker::Worker;

/// The size of the queues of frames. Linux fills the receive queue with buffers of about 1.5 KiB: these hold six of the
/// longest frames.
const QUEUE_SIZE: u16 = 256;
const CONTROL_QUEUE_SIZE: u16 = 64;

/// A virtio network device.
pub struct Net {
    queue_sizes: Vec<u16>,
    configuration: Arc<Configuration>,
    pairs: Arc<QueuePairs>,
    limit: NetworkRateLimit,
    counters: Arc<NetCounters>,
    workers: Option<Workers>,
}

/// The queues that a driver has made ready.
struct ReadyQueues {
    /// At least one pair, and no more than the driver has agreed on.
    pairs: Vec<[DeviceQueue; QUEUES_PER_PAIR]>,
    /// The control queue and its index.
    control: Option<(usize, DeviceQueue)>,
}

impl Net {
    /// The device that `config`, which is valid, describes, connected to `taps`: one for each pair of queues. Without any
    /// its link is down.
    pub fn new(config: &NetworkDevice, taps: Vec<Tap>) -> Self {
        let ports = taps.into_iter().map(|tap| Arc::new(tap) as Arc<dyn Port>);
        let queue_pairs = u16::from(config.queue_pairs);
        Self::connected(
            config.mac,
            config.mtu,
            queue_pairs,
            ports.collect(),
            config.rate_limit,
        )
    }

    /// Like [`new`](Self::new), with whatever frames come from.
    pub(super) fn connected(
        mac: MacAddress,
        mtu: Option<u16>,
        queue_pairs: u16,
        ports: Vec<Arc<dyn Port>>,
        limit: NetworkRateLimit,
    ) -> Self {
        let mut queue_sizes = vec![QUEUE_SIZE; usize::from(queue_pairs) * QUEUES_PER_PAIR];
        queue_sizes.extend((queue_pairs > 1).then_some(CONTROL_QUEUE_SIZE));
        Self {
            queue_sizes,
            configuration: Arc::new(Configuration::new(mac, mtu, queue_pairs, !ports.is_empty())),
            pairs: Arc::new(QueuePairs::new(ports)),
            limit,
            counters: Arc::default(),
            workers: None,
        }
    }

    /// Starts with the first `in_use` pairs in use.
    fn start(&mut self, mut activation: Activation, in_use: u16) -> Result<(), ActivateError> {
        let device = self.name();
        let failed = |(doing, source)| ActivateError::Host {
            device,
            doing,
            source,
        };
        let queue_count = activation.queues.len();
        let agreed = Agreed(activation.features);
        let ReadyQueues { pairs, control } = self.ready_queues(agreed, &mut activation)?;
        if !(1..=pairs.len()).contains(&usize::from(in_use)) {
            return Err(ActivateError::ForeignState { device });
        }
        self.prepare_ports(agreed, in_use).map_err(failed)?;
        let shared = Shared {
            agreed,
            receive_limit: SharedLimit::new(self.limit.receive),
            transmit_limit: SharedLimit::new(self.limit.transmit),
            pairs: Arc::clone(&self.pairs),
            configuration: Arc::clone(&self.configuration),
            interrupt: Arc::clone(&activation.interrupt),
            counters: Arc::clone(&self.counters),
        };
        let mut workers = Workers::new(queue_count);
        let mut ready = 0;
        for queues in pairs {
            let pair = Pair::new(ready, queues, shared.clone()).map_err(failed)?;
            workers.add(
                usize::from(ready) * QUEUES_PER_PAIR,
                Worker::start(
                    device,
                    Arc::clone(&activation.interrupt),
                    Arc::clone(&activation.failures),
                    pair,
                )?,
            );
            ready += 1;
        }
        if let Some((index, queue)) = control {
            let control = Control::new(queue, Arc::clone(&self.pairs), ready);
            workers.add(
                index,
                Worker::start(device, activation.interrupt, activation.failures, control)?,
            );
        }
        self.workers = Some(workers);
        Ok(())
    }

    /// Sorts the queues by what the driver has agreed on. It needs the first pair; others it may leave out, but then it
    /// cannot use them.
    fn ready_queues(
        &self,
        agreed: Agreed,
        activation: &mut Activation,
    ) -> Result<ReadyQueues, ActivateError> {
        let device = self.name();
        let mut queues = DeviceQueue::take_ready(activation).into_iter();
        let mut next = || queues.next().flatten();
        let first = |queue: Option<_>, index| queue.ok_or(ActivateError::QueueNotReady { device, index });
        let mut pairs = vec![[first(next(), RECEIVE)?, first(next(), TRANSMIT)?]];
        let count = agreed.queue_pairs(self.configuration.queue_pairs());
        let others: Vec<_> = (1..count).map(|_| (next(), next())).collect();
        pairs.extend(
            others
                .into_iter()
                .map_while(|(receive, transmit)| Some([receive?, transmit?])),
        );
        let control = next().filter(|_| agreed.has_control_queue());
        let index = usize::from(count) * QUEUES_PER_PAIR;
        Ok(ReadyQueues {
            pairs,
            control: control.map(|queue| (index, queue)),
        })
    }

    /// Leaves to the guest what was agreed on, if there is a link, and has frames come from the first `in_use` ports.
    fn prepare_ports(&self, agreed: Agreed, in_use: u16) -> Result<(), (&'static str, io::Error)> {
        // What is set of one queue of a tap is set of all.
        let port = self.pairs.ports().first();
        if let Some(port) = port.filter(|_| self.configuration.link_is_up()) {
            match port.set_offloads(agreed.offloads()) {
                Err(error) if is_gone(&error) => {
                    self.configuration.take_link_down();
                }
                result => result.map_err(|error| ("setting the offloads of the tap", error))?,
            }
        }
        self.pairs
            .use_first(in_use)
            .map_err(|error| ("attaching the queues of the tap", error))
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn name(&self) -> &'static str {
        "net"
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn offered_features(&self) -> u64 {
        offered(self.configuration.mtu(), self.configuration.queue_pairs())
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.configuration.read(offset, data);
    }

    fn config_generation(&self) -> u32 {
        self.configuration.generation()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        // A driver uses one pair until it says otherwise.
        self.start(activation, 1)
    }

    fn reset(&mut self) {
        self.workers = None;
    }

    fn worker(&mut self) -> Option<&mut dyn Pausable> {
        self.workers.as_mut().map(|workers| workers as &mut dyn Pausable)
    }

    fn network_counts(&self) -> Option<NetCounts> {
        Some(self.counters.counts())
    }

    fn save(&self) -> Result<DeviceState, SaveError> {
        Ok(DeviceState::Net {
            mac: self.configuration.mac(),
            link_up: self.configuration.link_is_up(),
            generation: self.configuration.generation(),
            pairs_in_use: *self.pairs.hold_in_use(),
        })
    }

    /// The driver is told if it would now read another address or another state of the link.
    fn restore(&mut self, activation: Activation, state: &DeviceState) -> Result<(), ActivateError> {
        let interrupt = Arc::clone(&activation.interrupt);
        let DeviceState::Net {
            mac,
            link_up,
            generation,
            pairs_in_use,
        } = *state
        else {
            return Err(ActivateError::ForeignState { device: self.name() });
        };
        let changed = mac != self.configuration.mac() || link_up != self.configuration.link_is_up();
        self.configuration
            .set_generation(generation.wrapping_add(u32::from(changed)));
        self.start(activation, pairs_in_use)?;
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
