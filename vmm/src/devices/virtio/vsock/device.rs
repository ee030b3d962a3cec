//! The device: three queues, one thread.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_vsock::packet::{PKT_HEADER_SIZE, VsockPacket};
use vm_memory::VolatileSlice;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::credit::Granted;
use super::muxer::Muxer;
use super::packet::{GuestHeader, MAX_DATA};
use super::unix_path::{UnixPath, VsockSocketError};
use crate::devices::virtio::device::{
    ActivateError, Activation, DeviceState, Pausable, SaveError, VirtioDevice, read_config_space,
};
use crate::devices::virtio::device_queue::{DeviceQueue, EVENT_IDX, QueueError};
use crate::devices::virtio::worker::{self, Worker, WorkerError};

/// The queues, named as the driver sees them.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const EVENT: usize = 2;
const QUEUE_COUNT: usize = 3;

/// Linux fills the receive queue with buffers of 4 KiB, so this is half a megabyte under way to the guest.
const QUEUE_SIZES: [u16; QUEUE_COUNT] = [256, 256, 16];

/// The one event there is: all connections are gone (virtio 1.2, section 5.10.6.7: `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`,
/// a little-endian number).
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

/// The number of the stop event in the poller. The queues have theirs, streams have greater ones.
const STOP: u64 = QUEUE_COUNT as u64;

/// A virtio socket device.
pub struct Vsock {
    guest_cid: u64,
    path: Arc<UnixPath>,
    listener: UnixListener,
    worker: Option<Worker<Service>>,
}

impl Vsock {
    /// A device for the guest `guest_cid` whose host side is the unix socket `socket`. Clients may connect at once;
    /// they are served when the guest's driver is there.
    ///
    /// # Errors
    /// When `socket` exists or cannot be made.
    pub fn new(guest_cid: u64, socket: &Path) -> Result<Self, VsockSocketError> {
        let (path, listener) = UnixPath::listen(socket)?;
        Ok(Self {
            guest_cid,
            path: Arc::new(path),
            listener,
            worker: None,
        })
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn name(&self) -> &'static str {
        "vsock"
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn offered_features(&self) -> u64 {
        // Without a feature bit for a type of socket, streams are understood.
        1 << VIRTIO_F_VERSION_1 | EVENT_IDX
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_space(&self.guest_cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.start(activation, Reset::Done, None)
    }

    fn reset(&mut self) {
        self.worker = None;
    }

    fn worker(&mut self) -> Option<&mut dyn Pausable> {
        self.worker.as_mut().map(|worker| worker as &mut dyn Pausable)
    }

    fn save(&self) -> Result<DeviceState, SaveError> {
        let Some(service) = self.worker.as_ref().and_then(Worker::paused) else {
            return Ok(DeviceState::Stateless);
        };
        Ok(DeviceState::Vsock {
            connected: service.is_known_to_guest(),
            next_client_port: service.muxer.next_client_port(),
        })
    }

    fn restore(&mut self, activation: Activation, state: &DeviceState) -> Result<(), ActivateError> {
        match *state {
            DeviceState::Vsock {
                connected,
                next_client_port,
            } => {
                let reset = if connected { Reset::Due } else { Reset::Done };
                self.start(activation, reset, Some(next_client_port))
            }
            _ => Err(ActivateError::ForeignState { device: self.name() }),
        }
    }
}

impl Vsock {
    fn start(
        &mut self,
        mut activation: Activation,
        reset: Reset,
        next_client_port: Option<u32>,
    ) -> Result<(), ActivateError> {
        let device = self.name();
        let failed = |source| ActivateError::Thread { device, source };
        let queues = DeviceQueue::take_all(device, &mut activation)?;
        let listener = self.listener.try_clone().map_err(failed)?;
        let mut muxer = Muxer::new(self.guest_cid, listener, Arc::clone(&self.path)).map_err(failed)?;
        if let Some(port) = next_client_port {
            muxer.set_next_client_port(port);
        }
        self.worker = Some(Worker::start(
            device,
            activation.interrupt,
            activation.failures,
            Service {
                guest_cid: self.guest_cid,
                queues,
                muxer,
                reset,
                is_watching: false,
            },
        )?);
        Ok(())
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.reset();
        self.path.remove();
    }
}

/// How far the guest knows that the connections it had are gone. Until it does, it is sent nothing: what it took for a
/// new connection would be ended with the old ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reset {
    /// It knows, or had none.
    Done,
    /// It must be told.
    Due,
    /// It was told when it had made so many buffers available. Linux gives the buffer back when it has ended its
    /// connections.
    Announced(u16),
}

/// What the device's thread works on.
struct Service {
    guest_cid: u64,
    queues: Vec<DeviceQueue>,
    muxer: Muxer,
    reset: Reset,
    /// Whether the poller knows the queues.
    is_watching: bool,
}

impl worker::Service for Service {
    fn serve(&mut self, stop: &EventFd) -> Result<(), WorkerError> {
        self.watch(stop)?;
        let mut more = true;
        loop {
            let events = self
                .muxer
                .poller()
                .wait(self.patience(more))
                .map_err(WorkerError::host("waiting for events"))?;
            let now = Instant::now();
            let mut stopping = false;
            for (token, events) in events {
                match token {
                    STOP => stopping = true,
                    token if token < STOP => self.take_notification(token as usize)?,
                    token => self.muxer.handle_event(token, events, now),
                }
            }
            self.muxer.expire(now);
            more = self.receive_round().map_err(WorkerError::queue(TRANSMIT))?;
            let congested = self.muxer.is_congested();
            if self.announce_reset().map_err(WorkerError::queue(EVENT))? == Reset::Done {
                more |= self.transmit_round().map_err(WorkerError::queue(RECEIVE))?;
            }
            more |= congested && !self.muxer.is_congested();
            if stopping {
                return Ok(());
            }
        }
    }

    /// Even when the guest broke a ring, what it had sent before is its clients' to read.
    fn finish(self) -> Result<(), WorkerError> {
        self.muxer
            .finish()
            .map_err(WorkerError::host("ending the connections"))
    }

    fn queues(&self) -> &[DeviceQueue] {
        &self.queues
    }
}

impl Service {
    /// Watches the queues and `stop`, once.
    fn watch(&mut self, stop: &EventFd) -> Result<(), WorkerError> {
        if self.is_watching {
            return Ok(());
        }
        let poller = self.muxer.poller();
        poller
            .add(stop, EventSet::IN, STOP)
            .map_err(WorkerError::host("watching the stop event"))?;
        for (index, queue) in self.queues.iter().enumerate() {
            poller
                .add(queue.notification(), EventSet::IN, index as u64)
                .map_err(WorkerError::host("watching a notification"))?;
        }
        self.is_watching = true;
        Ok(())
    }

    /// How long to wait for the next event.
    fn patience(&self, more: bool) -> Option<Duration> {
        if more {
            return Some(Duration::ZERO);
        }
        let deadline = self.muxer.next_deadline()?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }

    fn take_notification(&self, queue: usize) -> Result<(), WorkerError> {
        self.queues
            .get(queue)
            .map_or(Ok(()), DeviceQueue::take_notification)
            .map_err(WorkerError::queue(queue))
    }

    /// Takes at most one ring full of packets from the guest. Returns whether there may be more.
    fn receive_round(&mut self) -> Result<bool, QueueError> {
        let Some(queue) = self.queues.get_mut(TRANSMIT) else {
            return Ok(false);
        };
        let memory = Arc::clone(queue.memory());
        queue.pause_notifications()?;
        for _ in 0..queue.size() {
            if self.muxer.is_congested() {
                // It goes on when the guest gave buffers for our answers.
                queue.interrupt_if_wanted()?;
                return Ok(false);
            }
            let Some(mut chain) = queue.pop()? else {
                queue.interrupt_if_wanted()?;
                return queue.resume_notifications();
            };
            // A packet that is not one is given back unread.
            if let Ok(packet) = VsockPacket::from_tx_virtq_chain(&*memory, &mut chain, Granted::BUFFER_SIZE) {
                self.muxer.receive(&GuestHeader::of(&packet), packet.data_slice());
            }
            queue.complete(chain.head_index(), 0)?;
        }
        queue.interrupt_if_wanted()?;
        Ok(true)
    }

    /// Fills at most one ring full of the guest's buffers. Returns whether there may be more to send.
    fn transmit_round(&mut self) -> Result<bool, QueueError> {
        let Some(queue) = self.queues.get_mut(RECEIVE) else {
            return Ok(false);
        };
        let memory = Arc::clone(queue.memory());
        let mut budget = queue.size();
        queue.pause_notifications()?;
        while self.muxer.has_packets() {
            let Some(mut chain) = queue.pop()? else {
                queue.interrupt_if_wanted()?;
                // Only now does it matter when the guest adds buffers.
                if queue.resume_notifications()? {
                    continue;
                }
                return Ok(false);
            };
            let Some(left) = budget.checked_sub(1) else {
                queue.put_back();
                queue.interrupt_if_wanted()?;
                return Ok(true);
            };
            budget = left;
            let Ok(mut packet) = VsockPacket::from_rx_virtq_chain(&*memory, &mut chain, MAX_DATA) else {
                queue.complete(chain.head_index(), 0)?;
                continue;
            };
            let mut nothing = [];
            let mut buffer = match packet.data_slice() {
                Some(slice) => *slice,
                None => VolatileSlice::from(nothing.as_mut_slice()),
            };
            let Some(header) = self.muxer.transmit(&mut buffer) else {
                queue.put_back();
                break;
            };
            let bytes = header.to_wire(self.guest_cid);
            // It fails only for a header of another size.
            let written = match packet.set_header_from_raw(&bytes) {
                Ok(()) => PKT_HEADER_SIZE as u32 + header.data_length,
                Err(_) => 0,
            };
            queue.complete(chain.head_index(), written)?;
        }
        queue.interrupt_if_wanted()?;
        Ok(false)
    }

    /// Whether the guest believes in connections, so that it must be told when there is another device.
    fn is_known_to_guest(&self) -> bool {
        self.reset != Reset::Done || self.muxer.is_known_to_guest()
    }

    /// Tells the guest, once it has given a buffer for that, that its connections are gone, and sees whether it knows.
    fn announce_reset(&mut self) -> Result<Reset, QueueError> {
        let Some(queue) = self.queues.get_mut(EVENT) else {
            return Ok(self.reset);
        };
        while self.reset == Reset::Due {
            let Some(chain) = queue.pop()? else {
                if queue.resume_notifications()? {
                    continue;
                }
                return Ok(self.reset);
            };
            let written = chain
                .clone()
                .writer(chain.memory())
                .ok()
                .and_then(|mut writer| writer.write_all(&TRANSPORT_RESET).ok());
            // A buffer that cannot hold it is given back empty.
            let length = written.map_or(0, |()| TRANSPORT_RESET.len() as u32);
            let available = queue.available_index()?;
            queue.complete(chain.head_index(), length)?;
            if written.is_some() {
                queue.notify_beyond(available)?;
                queue.interrupt_if_wanted()?;
                self.reset = Reset::Announced(available);
            }
        }
        if let Reset::Announced(available) = self.reset
            && queue.available_index()? != available
        {
            self.reset = Reset::Done;
        }
        Ok(self.reset)
    }
}
