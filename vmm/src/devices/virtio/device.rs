//! What every virtio device is to the transport that carries it.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::blk::DiskSlot;
use super::failure::FailureHandler;
use super::interrupt::Interrupt;
use super::net::NetCounts;
use crate::config::MacAddress;

/// A virtio device. The transport calls it from a vCPU thread, one call at a time; the device does its work on a
/// thread of its own between [`activate`](Self::activate) and [`reset`](Self::reset).
pub trait VirtioDevice: Send {
    /// The device's number (virtio 1.2, section 5).
    fn device_type(&self) -> u32;

    /// A short name for threads, logs and errors, such as `vsock`.
    fn name(&self) -> &'static str;

    /// The greatest size of each queue; their count is the device's number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// The feature bits offered to the driver.
    fn offered_features(&self) -> u64;

    /// Fills `data` with the configuration space from `offset`; bytes beyond its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// A number that is another after the configuration space has changed.
    fn config_generation(&self) -> u32 {
        0
    }

    /// Takes the driver over the queues; called once between two resets, when the driver sets DRIVER_OK.
    ///
    /// # Errors
    /// Why the device cannot start; the transport then sets DEVICE_NEEDS_RESET.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops the device's thread and forgets the driver. Called also on devices that are not active.
    fn reset(&mut self);

    /// The device's thread, while it has a driver.
    fn worker(&mut self) -> Option<&mut dyn Pausable> {
        None
    }

    /// What became of its frames, if it is a network device.
    fn network_counts(&self) -> Option<NetCounts> {
        None
    }

    /// The device itself, if disks can be put into it.
    fn disk_slot(&mut self) -> Option<&mut DiskSlot> {
        None
    }

    /// What a snapshot must say of the device beside its queues. Its thread is paused, if it has one.
    ///
    /// # Errors
    /// Why the device cannot be in a snapshot.
    fn save(&self) -> Result<DeviceState, SaveError> {
        Ok(DeviceState::Stateless)
    }

    /// Takes the driver over like [`activate`](Self::activate), but one that has worked with a device like this before:
    /// the queues go on where they were, and `state` is what that device [saved](Self::save).
    ///
    /// # Errors
    /// Why the device cannot start.
    fn restore(&mut self, activation: Activation, _state: &DeviceState) -> Result<(), ActivateError> {
        self.activate(activation)
    }
}

/// A device's thread as the transport sees it.
pub trait Pausable {
    /// Ends the thread between two requests; its queues and connections stay as they are.
    fn pause(&mut self);

    /// Lets a paused thread go on.
    ///
    /// # Errors
    /// When there is no thread to be had; the driver then has no device any more.
    fn resume(&mut self) -> Result<(), ActivateError>;

    /// How far each queue was served, in order; `None` unless the thread is paused.
    fn queue_positions(&self) -> Option<Vec<QueuePosition>>;
}

/// How far a queue was served (virtio 1.2, section 2.7): both count modulo 2^16.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueuePosition {
    /// Entries taken from the available ring.
    pub next_available: u16,
    /// Entries put into the used ring.
    pub next_used: u16,
}

/// What a snapshot says of a device beside its queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum DeviceState {
    /// Nothing.
    Stateless,
    /// Of the vsock device.
    Vsock {
        /// Whether the guest knows of connections, which are not carried over.
        connected: bool,
        /// The port of the next client. Those before it may still mean a connection to the guest.
        next_client_port: u32,
    },
    /// Of a disk.
    Blk {
        /// Its size, in sectors of 512 bytes.
        sectors: u64,
    },
    /// Of an empty slot for disks.
    DiskSlot {
        /// Whether its driver has asked something of it.
        awake: bool,
    },
    /// Of a network device: what its driver may have read.
    Net {
        /// Its address.
        mac: MacAddress,
        /// Whether it had a link.
        link_up: bool,
        /// How often that had changed.
        generation: u32,
        /// How many of its pairs of queues the driver used.
        pairs_in_use: u16,
    },
}

/// Why a device cannot be in a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The guest holds files of the host.
    #[error(
        "the guest has mounted the shared directory {tag:?}, and what it has open there cannot be carried over"
    )]
    Mounted {
        /// The directory's tag.
        tag: String,
    },
    /// A slot for disks is not empty.
    #[error(
        "the disk {id:?} was attached while the machine ran, and cannot be carried over: detach it first"
    )]
    Attached {
        /// What the guest knows it by.
        id: String,
    },
    /// A disk does not say that it has all that was written to it.
    #[error("making durable what the guest wrote to the disk {id:?}")]
    Flush {
        /// What the guest knows it by.
        id: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// What a driver has agreed on with the device.
pub struct Activation {
    /// The guest's memory.
    pub memory: Arc<GuestMemoryMmap>,
    /// All queues in the order of their indices, each with the event the driver's notifications raise. Those that
    /// are ready lie in the guest's memory; a queue the driver left out is not ready.
    pub queues: Vec<ActiveQueue>,
    /// The device's way to interrupt the guest.
    pub interrupt: Arc<Interrupt>,
    /// The feature bits both sides accepted.
    pub features: u64,
    /// Where the device reports that it can no longer work.
    pub failures: FailureHandler,
}

/// Copies the bytes of a configuration space from `offset` on; bytes beyond its end are zero.
pub(crate) fn read_config_space(space: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let rest = usize::try_from(offset).ok().and_then(|start| space.get(start..));
    for (to, from) in data.iter_mut().zip(rest.unwrap_or_default()) {
        *to = *from;
    }
}

/// One queue and the event that its notifications raise.
pub struct ActiveQueue {
    /// The queue's rings.
    pub queue: Queue,
    /// Readable when the driver has made buffers available.
    pub notification: EventFd,
}

/// Why a device could not start.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver left a queue unconfigured that the device cannot do without.
    #[error("queue {index} of {device} is not ready")]
    QueueNotReady {
        /// The device's name.
        device: &'static str,
        /// The queue's index.
        index: usize,
    },
    /// The driver knows another disk.
    #[error("the disk has {here} sectors of 512 bytes, and its driver knows one that has {known}")]
    DiskSize {
        /// The size the driver knows.
        known: u64,
        /// This disk's.
        here: u64,
    },
    /// A snapshot says of the device what can only be said of another.
    #[error("the saved state of {device} is another device's")]
    ForeignState {
        /// The device's name.
        device: &'static str,
    },
    /// The host does not give what the device works with.
    #[error("{doing} for {device}")]
    Host {
        /// The device's name.
        device: &'static str,
        /// What was being done.
        doing: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The worker thread could not be started.
    #[error("starting the {device} thread")]
    Thread {
        /// The device's name.
        device: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}
