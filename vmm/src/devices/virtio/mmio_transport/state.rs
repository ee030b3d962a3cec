//! What a snapshot says of a device on the bus, and how another device is brought there.

use std::io;

use serde::{Deserialize, Serialize};

use vmm_sys_util::eventfd::EventFd;

use super::queue_registers::QueueRegisters;
use super::{DRIVER_OK, MmioTransport};
use crate::devices::virtio::blk::DiskSlot;
use crate::devices::virtio::device::{ActivateError, DeviceState, QueuePosition, SaveError};

/// A device's registers, and how far its queues were served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransportState {
    status: u32,
    driver_features: u64,
    device_features_page: u32,
    driver_features_page: u32,
    selected_queue: u32,
    interrupt_status: u32,
    needs_reset: bool,
    queues: Vec<QueueRegisters>,
    /// Nothing while the device has no driver, or one that broke a queue.
    positions: Option<Vec<QueuePosition>>,
    device: DeviceState,
}

/// Why a device cannot go on where another was.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The state is not one of such a device.
    #[error("the saved {what} of {device} cannot be those of this device")]
    Impossible {
        /// The device's name.
        device: &'static str,
        /// What is wrong.
        what: &'static str,
    },
    /// The interrupt could not be raised.
    #[error("raising the interrupt of {device}")]
    Interrupt {
        /// The device's name.
        device: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The device could not start.
    #[error(transparent)]
    Activate(#[from] ActivateError),
}

impl MmioTransport {
    /// Ends the device's thread between two requests.
    pub fn pause(&mut self) {
        if let Some(worker) = self.device.worker() {
            worker.pause();
        }
    }

    /// Lets a paused device go on. A driver whose device cannot is told so.
    pub fn resume(&mut self) {
        let resumed = self.device.worker().map_or(Ok(()), |worker| worker.resume());
        if let Err(error) = resumed {
            self.give_up(error);
        }
    }

    /// The device itself, if disks can be put into it.
    pub fn disk_slot(&mut self) -> Option<&mut DiskSlot> {
        self.device.disk_slot()
    }

    /// What is raised when the driver asks something of a device that has to be woken for it; `None` of all others.
    pub fn dormant(&mut self) -> Option<&EventFd> {
        let slot = self.device.disk_slot()?;
        slot.is_dormant().then_some(self.notifications.first())?
    }

    /// Wakes a device whose [notification](Self::dormant) was raised.
    pub fn wake_if_notified(&mut self) {
        // It is nonblocking: an error says that nobody has raised it.
        if self
            .dormant()
            .is_none_or(|notification| notification.read().is_err())
        {
            return;
        }
        let woken = self.device.disk_slot().map_or(Ok(()), DiskSlot::wake);
        if let Err(error) = woken {
            self.give_up(error);
        }
    }

    /// The device's state; it is paused.
    ///
    /// # Errors
    /// Why the device cannot be in a snapshot.
    pub fn save(&mut self) -> Result<TransportState, SaveError> {
        Ok(TransportState {
            status: self.status,
            driver_features: self.driver_features,
            device_features_page: self.device_features_page,
            driver_features_page: self.driver_features_page,
            selected_queue: self.selected_queue,
            interrupt_status: self.interrupt.status(),
            needs_reset: self.interrupt.needs_reset(),
            queues: self.queues.clone(),
            positions: self.device.worker().and_then(|worker| worker.queue_positions()),
            device: self.device.save()?,
        })
    }

    /// Brings a device that has no driver yet to `state`, and starts it if it had one. The guest's memory is what it
    /// was then.
    ///
    /// # Errors
    /// When the state is not one of such a device, or the host does not give what it needs.
    pub fn restore(&mut self, state: &TransportState) -> Result<(), RestoreError> {
        let device = self.device.name();
        let impossible = |what| RestoreError::Impossible { device, what };
        let sizes =
            |queues: &[QueueRegisters]| queues.iter().map(QueueRegisters::max_size).collect::<Vec<_>>();
        if sizes(&state.queues) != sizes(&self.queues) {
            return Err(impossible("queues"));
        }
        let valid = |queue: &QueueRegisters| !queue.is_ready() || queue.is_valid(&self.memory);
        if !state.queues.iter().all(valid) {
            return Err(impossible("queue addresses"));
        }
        if state.driver_features & !self.device.offered_features() != 0 {
            return Err(impossible("features"));
        }
        self.status = state.status;
        self.driver_features = state.driver_features;
        self.device_features_page = state.device_features_page;
        self.driver_features_page = state.driver_features_page;
        self.selected_queue = state.selected_queue;
        self.queues.clone_from(&state.queues);
        // Before the device starts, which may have more to announce.
        self.interrupt
            .restore(state.interrupt_status, state.needs_reset)
            .map_err(|source| RestoreError::Interrupt { device, source })?;
        if let Some(positions) = &state.positions {
            if !self.has(DRIVER_OK) || positions.len() != self.queues.len() {
                return Err(impossible("queue positions"));
            }
            let activation = self.activation(positions)?;
            self.device.restore(activation, &state.device)?;
        }
        Ok(())
    }
}
