//! A device that a disk can be put into, and taken out of, while its driver works with it.
//!
//! It is there from the beginning, because there is no way to tell a guest of another virtio-mmio device later, and has no
//! sectors until it is given a disk; Linux takes the new capacity over when it is told that the configuration changed
//! (virtio 1.2, section 5.2.5). What the driver settles when it finds the device cannot depend on the disk: every slot
//! offers to flush, discard and clear, and answers what its disk cannot do as unsupported; that a disk is read-only is
//! enforced here, and for the guest's software to know from elsewhere.
//!
//! An empty slot has no thread. Whoever waits for the machine waits for the slot's notification, too, and
//! [wakes](DiskSlot::wake) it: a driver that asks an empty slot for its name is answered like any other.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::SECTOR;
use super::backing::{Backing, BackingError};
use super::device::{CONFIG_BYTES, Disk, DiskService, Geometry, Limits, QUEUE_SIZES, config};
use crate::config::{InvalidDisk, check_disk};
use crate::devices::rate_limiter::RateLimit;
use crate::devices::virtio::device::{
    ActivateError, Activation, DeviceState, Pausable, QueuePosition, SaveError, VirtioDevice,
    read_config_space,
};
use crate::devices::virtio::device_queue::EVENT_IDX;
use crate::devices::virtio::interrupt::Interrupt;
use crate::devices::virtio::worker::Worker;

/// What every disk is said to write at once: the host's page cache takes any sector, whole pages are cheaper.
const PHYSICAL_BLOCK: u32 = 4096;

/// What a disk is to be in its slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewDisk {
    /// The name the guest can know it by, as in a [description](crate::config::BlockDevice).
    pub id: String,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// How fast it is read at most.
    #[serde(default)]
    pub read_limit: Option<RateLimit>,
    /// How fast it is written, discarded and cleared at most.
    #[serde(default)]
    pub write_limit: Option<RateLimit>,
}

/// Why a disk is not in a slot, or not out of it.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// There is one already.
    #[error("the disk {id:?} is in it")]
    Occupied {
        /// What the guest knows it by.
        id: String,
    },
    /// What is said of it cannot be.
    #[error(transparent)]
    Invalid(#[from] InvalidDisk),
    /// It is none.
    #[error(transparent)]
    Backing(#[from] BackingError),
    /// The driver could not be told.
    #[error("telling the driver")]
    Tell(#[source] io::Error),
    /// There is no thread to serve it.
    #[error(transparent)]
    Start(#[from] ActivateError),
    /// It does not say that it has all that was written to it.
    #[error("making durable what the guest wrote to the disk {id:?}")]
    Flush {
        /// What the guest knows it by.
        id: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// A virtio block device with or without a disk.
#[derive(Default)]
pub struct DiskSlot {
    disk: Option<(Arc<Disk>, Limits)>,
    /// How often the capacity has changed.
    generation: u32,
    /// Whether it has ever had something to do: only then it has a thread.
    awake: bool,
    driver: Option<Driver>,
}

/// While there is one.
struct Driver {
    interrupt: Arc<Interrupt>,
    worker: Worker<DiskService>,
}

impl Driver {
    /// Whether it has asked something of a slot that sleeps, which nobody has come to hear of yet.
    fn has_asked(&self) -> bool {
        self.worker.paused().is_some_and(DiskService::is_notified)
    }
}

impl DiskSlot {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts in the disk that `descriptor` is of, and tells the driver. Gives its size in sectors.
    ///
    /// # Errors
    /// When it is no disk, or there is one already.
    pub fn attach(&mut self, disk: &NewDisk, descriptor: OwnedFd) -> Result<u64, SlotError> {
        if let Some((disk, _)) = &self.disk {
            return Err(SlotError::Occupied { id: disk.id() });
        }
        for limit in [&disk.read_limit, &disk.write_limit] {
            check_disk(&disk.id, limit.as_ref())?;
        }
        let backing = Backing::inherit(descriptor, disk.read_only)?;
        let new = Arc::new(Disk::new(&disk.id, backing));
        let sectors = new.sectors();
        self.awake = true;
        let limits = Limits {
            both: None,
            read: disk.read_limit,
            write: disk.write_limit,
        };
        self.exchange(Some((new, limits)))?;
        Ok(sectors)
    }

    /// Takes the disk out, if there is one, when all that was written to it is on the host's disk.
    ///
    /// # Errors
    /// When that fails; the disk is out all the same.
    pub fn detach(&mut self) -> Result<(), SlotError> {
        let Some((disk, _)) = self.disk.clone() else {
            return Ok(());
        };
        let exchanged = self.exchange(None);
        disk.make_durable().map_err(|source| SlotError::Flush {
            id: disk.id(),
            source,
        })?;
        exchanged
    }

    /// Serves another disk from between two requests on.
    fn exchange(&mut self, disk: Option<(Arc<Disk>, Limits)>) -> Result<(), SlotError> {
        self.disk = disk;
        self.generation = self.generation.wrapping_add(1);
        let Some(driver) = &mut self.driver else {
            return Ok(());
        };
        driver.worker.pause();
        // Without a service the driver has broken its queue, and gets the disk when it has reset the device.
        if let Some(service) = driver.worker.paused_mut() {
            service.put_in(self.disk.clone());
        }
        driver.worker.resume()?;
        driver.interrupt.signal_config_change().map_err(SlotError::Tell)
    }

    /// Whether somebody is to wait for the device's notification, and then to [wake](Self::wake) it.
    pub fn is_dormant(&self) -> bool {
        !self.awake
    }

    /// Starts serving a driver that has asked something of the empty slot.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn wake(&mut self) -> Result<(), ActivateError> {
        self.awake = true;
        self.resume()
    }
}

impl VirtioDevice for DiskSlot {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn name(&self) -> &'static str {
        "blk slot"
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn offered_features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | EVENT_IDX
            | 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_TOPOLOGY
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_DISCARD
            | 1 << VIRTIO_BLK_F_WRITE_ZEROES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space: [u8; CONFIG_BYTES] = config(&Geometry {
            sectors: self.disk.as_ref().map_or(0, |(disk, _)| disk.sectors()),
            logical_block: SECTOR as u32,
            physical_block: PHYSICAL_BLOCK,
            zeroes_by_discarding: true,
        });
        read_config_space(&space, offset, data);
    }

    fn config_generation(&self) -> u32 {
        self.generation
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let mut service = DiskService::new(self.name(), &mut activation)?;
        service.put_in(self.disk.clone());
        let interrupt = Arc::clone(&activation.interrupt);
        let worker = Worker::new(self.name(), activation.interrupt, activation.failures, service)?;
        self.driver = Some(Driver { interrupt, worker });
        self.resume()
    }

    fn reset(&mut self) {
        self.driver = None;
    }

    fn worker(&mut self) -> Option<&mut dyn Pausable> {
        Some(self)
    }

    fn disk_slot(&mut self) -> Option<&mut DiskSlot> {
        Some(self)
    }

    fn save(&self) -> Result<DeviceState, SaveError> {
        match &self.disk {
            None => Ok(DeviceState::DiskSlot {
                awake: self.awake || self.driver.as_ref().is_some_and(Driver::has_asked),
            }),
            Some((disk, _)) => Err(SaveError::Attached { id: disk.id() }),
        }
    }

    fn restore(&mut self, activation: Activation, state: &DeviceState) -> Result<(), ActivateError> {
        let DeviceState::DiskSlot { awake } = *state else {
            return Err(ActivateError::ForeignState { device: self.name() });
        };
        self.awake |= awake;
        self.activate(activation)
    }
}

/// The thread of a slot that sleeps is paused all the time.
impl Pausable for DiskSlot {
    fn pause(&mut self) {
        if let Some(driver) = &mut self.driver {
            driver.worker.pause();
        }
    }

    fn resume(&mut self) -> Result<(), ActivateError> {
        match &mut self.driver {
            Some(driver) if self.awake => driver.worker.resume(),
            _ => Ok(()),
        }
    }

    fn queue_positions(&self) -> Option<Vec<QueuePosition>> {
        self.driver.as_ref()?.worker.queue_positions()
    }
}
