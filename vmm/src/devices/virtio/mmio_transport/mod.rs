//! The virtio-mmio transport, version 2 (virtio 1.2, section 4.2.2): the registers through which a driver finds a
//! device, agrees on features, places its queues and starts it.
//!
//! The other side is a guest kernel that may be anything. Registers are accessed in any order and width; what is
//! out of turn is ignored, which the driver can see by reading back, and nothing here depends on the driver being
//! sane.

mod queue_registers;
mod state;
#[cfg(test)]
mod tests;

pub use self::state::{RestoreError, TransportState};

use std::error::Error;
use std::sync::Arc;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as register;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use self::queue_registers::{Area, Half, QueueRegisters};
use super::device::{ActivateError, Activation, ActiveQueue, QueuePosition, VirtioDevice};
use super::device_queue::EVENT_IDX;
use super::failure::{DeviceFailure, FailureHandler};
use super::interrupt::Interrupt;
use super::net::NetCounts;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// The version of the transport; 1 is the legacy one.
const VERSION: u32 = 2;
/// "BLKH", little-endian: who made the device. Drivers do not look at it.
const VENDOR: u32 = 0x484b_4c42;
/// The length and base of a shared memory region that does not exist (virtio 1.2, section 4.2.2).
const NO_SHARED_MEMORY: u32 = u32::MAX;

/// One virtio device on the memory bus.
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    memory: Arc<GuestMemoryMmap>,
    interrupt: Arc<Interrupt>,
    notifications: Vec<EventFd>,
    failures: FailureHandler,
    status: u32,
    driver_features: u64,
    device_features_page: u32,
    driver_features_page: u32,
    selected_queue: u32,
    queues: Vec<QueueRegisters>,
}

impl MmioTransport {
    /// Puts `device` on the bus. `notifications` has one event for each queue, in order; the machine may register
    /// each as an ioeventfd on the QueueNotify register with the queue's index as its value.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: Arc<GuestMemoryMmap>,
        interrupt: Arc<Interrupt>,
        notifications: Vec<EventFd>,
    ) -> Self {
        let queues = device
            .queue_sizes()
            .iter()
            .copied()
            .map(QueueRegisters::new)
            .collect();
        Self {
            device,
            memory,
            interrupt,
            notifications,
            failures: Arc::new(|failure| {
                let cause = failure.source.source().map(|cause| format!(": {cause}"));
                eprintln!("{failure}: {}{}", failure.source, cause.unwrap_or_default());
            }),
            status: 0,
            driver_features: 0,
            device_features_page: 0,
            driver_features_page: 0,
            selected_queue: 0,
            queues,
        }
    }

    /// Sends the device's failures to `handler`; without one they are only printed.
    #[must_use]
    pub fn on_failure(mut self, handler: FailureHandler) -> Self {
        self.failures = handler;
        self
    }

    /// The device's name.
    pub fn name(&self) -> &'static str {
        self.device.name()
    }

    /// What became of the device's frames, if it is one for a network.
    pub fn network_counts(&self) -> Option<NetCounts> {
        self.device.network_counts()
    }

    /// Answers the guest's read of `data.len()` bytes at `offset` from the transport's base. Registers are 32 bits
    /// wide and aligned; any other access to them reads zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(u64::from(register::VIRTIO_MMIO_CONFIG)) {
            return self.device.read_config(offset, data);
        }
        data.fill(0);
        if let (Ok(data), Ok(offset)) = (<&mut [u8; 4]>::try_from(data), u32::try_from(offset)) {
            *data = self.read_register(offset).to_le_bytes();
        }
    }

    /// Carries out the guest's write of `data` at `offset`. Registers are 32 bits wide and aligned; any other access
    /// is ignored, and so is one to the configuration space, because no device here has anything to write in it.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Ok(data), Ok(offset)) = (<[u8; 4]>::try_from(data), u32::try_from(offset)) {
            self.write_register(offset, u32::from_le_bytes(data));
        }
    }

    /// Stops the device and forgets its driver.
    pub fn reset(&mut self) {
        self.device.reset();
        // Nobody raises the interrupt any more, so what is cleared stays clear.
        self.interrupt.clear();
        self.status = 0;
        self.driver_features = 0;
        self.device_features_page = 0;
        self.driver_features_page = 0;
        self.selected_queue = 0;
        for queue in &mut self.queues {
            *queue = QueueRegisters::new(queue.max_size());
        }
    }

    fn read_register(&self, offset: u32) -> u32 {
        match offset {
            register::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            register::VIRTIO_MMIO_VERSION => VERSION,
            register::VIRTIO_MMIO_DEVICE_ID => self.device.device_type(),
            register::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            register::VIRTIO_MMIO_DEVICE_FEATURES => {
                page(self.device.offered_features(), self.device_features_page)
            }
            register::VIRTIO_MMIO_QUEUE_NUM_MAX => {
                self.selected().map_or(0, |queue| u32::from(queue.max_size()))
            }
            register::VIRTIO_MMIO_QUEUE_READY => {
                u32::from(self.selected().is_some_and(QueueRegisters::is_ready))
            }
            register::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            register::VIRTIO_MMIO_STATUS => self.status(),
            register::VIRTIO_MMIO_SHM_LEN_LOW
            | register::VIRTIO_MMIO_SHM_LEN_HIGH
            | register::VIRTIO_MMIO_SHM_BASE_LOW
            | register::VIRTIO_MMIO_SHM_BASE_HIGH => NO_SHARED_MEMORY,
            register::VIRTIO_MMIO_CONFIG_GENERATION => self.device.config_generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        match offset {
            register::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_page = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_page = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES => self.accept_features(value),
            register::VIRTIO_MMIO_QUEUE_SEL => self.selected_queue = value,
            register::VIRTIO_MMIO_QUEUE_NUM => self.configure_queue(|queue, _| queue.set_size(value)),
            register::VIRTIO_MMIO_QUEUE_READY => {
                self.configure_queue(|queue, memory| queue.set_ready(value == 1, memory));
            }
            register::VIRTIO_MMIO_QUEUE_NOTIFY => self.notify(value),
            register::VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            register::VIRTIO_MMIO_STATUS => self.set_status(value),
            register::VIRTIO_MMIO_QUEUE_DESC_LOW => self.place(Area::DescriptorTable, Half::Low, value),
            register::VIRTIO_MMIO_QUEUE_DESC_HIGH => self.place(Area::DescriptorTable, Half::High, value),
            register::VIRTIO_MMIO_QUEUE_AVAIL_LOW => self.place(Area::AvailableRing, Half::Low, value),
            register::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => self.place(Area::AvailableRing, Half::High, value),
            register::VIRTIO_MMIO_QUEUE_USED_LOW => self.place(Area::UsedRing, Half::Low, value),
            register::VIRTIO_MMIO_QUEUE_USED_HIGH => self.place(Area::UsedRing, Half::High, value),
            _ => {}
        }
    }

    fn status(&self) -> u32 {
        if self.interrupt.needs_reset() {
            self.status | NEEDS_RESET
        } else {
            self.status
        }
    }

    /// Moves the driver's side of the negotiation on (virtio 1.2, section 3.1.1). A driver only ever adds bits, in
    /// their order; zero resets the device.
    fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        if self.status & FAILED != 0 || value & self.status != self.status {
            return;
        }
        let adds = |bit: u32, status: u32| value & bit != 0 && status & bit == 0;

        self.status |= value & (FAILED | ACKNOWLEDGE);
        if adds(DRIVER, self.status) && self.has(ACKNOWLEDGE) {
            self.status |= DRIVER;
        }
        if adds(FEATURES_OK, self.status) && self.has(DRIVER) && self.features_are_acceptable() {
            self.status |= FEATURES_OK;
        }
        if adds(DRIVER_OK, self.status) && self.has(FEATURES_OK) && !self.has(FAILED) {
            self.status |= DRIVER_OK;
            self.activate();
        }
    }

    fn has(&self, bit: u32) -> bool {
        self.status & bit != 0
    }

    fn features_are_acceptable(&self) -> bool {
        let modern = self.driver_features & (1 << VIRTIO_F_VERSION_1) != 0;
        let offered = self.driver_features & !self.device.offered_features() == 0;
        modern && offered
    }

    fn accept_features(&mut self, value: u32) {
        if !self.has(DRIVER) || self.has(FEATURES_OK) {
            return;
        }
        let value = u64::from(value);
        match self.driver_features_page {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | value,
            1 => self.driver_features = self.driver_features & 0xffff_ffff | value << 32,
            _ => {}
        }
    }

    fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::try_from(self.selected_queue).ok()?)
    }

    /// Changes the selected queue, which is allowed between FEATURES_OK and DRIVER_OK.
    fn configure_queue(&mut self, change: impl FnOnce(&mut QueueRegisters, &GuestMemoryMmap)) {
        if !self.has(FEATURES_OK) || self.has(DRIVER_OK) {
            return;
        }
        let selected = usize::try_from(self.selected_queue).ok();
        if let Some(queue) = selected.and_then(|index| self.queues.get_mut(index)) {
            change(queue, &self.memory);
        }
    }

    fn place(&mut self, area: Area, half: Half, value: u32) {
        self.configure_queue(|queue, _| queue.set_address(area, half, value));
    }

    /// A notification that the machine's ioeventfds did not catch.
    fn notify(&self, queue: u32) {
        if !self.has(DRIVER_OK) {
            return;
        }
        let notification = usize::try_from(queue)
            .ok()
            .and_then(|index| self.notifications.get(index));
        if let Some(notification) = notification {
            // An eventfd refuses a write only when its counter is full, and then it is readable already.
            let _ = notification.write(1);
        }
    }

    fn activate(&mut self) {
        if let Err(error) = self.try_activate() {
            self.give_up(error);
        }
    }

    /// Tells the driver that its device does no more, and the machine why, unless that is the driver's fault.
    fn give_up(&self, error: ActivateError) {
        let asked = self.interrupt.request_reset();
        if let Err(source) = asked {
            self.report(Box::new(source));
        }
        if !matches!(error, ActivateError::QueueNotReady { .. }) {
            self.report(Box::new(error));
        }
    }

    fn report(&self, source: Box<dyn Error + Send + Sync>) {
        (self.failures)(DeviceFailure {
            device: self.device.name(),
            source,
        });
    }

    fn try_activate(&mut self) -> Result<(), ActivateError> {
        let start = vec![QueuePosition::default(); self.queues.len()];
        let activation = self.activation(&start)?;
        self.device.activate(activation)
    }

    /// What has been agreed on, with queues that go on from `positions`.
    fn activation(&self, positions: &[QueuePosition]) -> Result<Activation, ActivateError> {
        let device = self.device.name();
        let event_index = self.driver_features & EVENT_IDX != 0;
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, (registers, position)) in self.queues.iter().zip(positions).enumerate() {
            let not_ready = ActivateError::QueueNotReady { device, index };
            let Ok(queue) = registers.build(event_index, *position) else {
                return Err(not_ready);
            };
            let Some(notification) = self.notifications.get(index) else {
                return Err(not_ready);
            };
            let notification = notification
                .try_clone()
                .map_err(|source| ActivateError::Thread { device, source })?;
            queues.push(ActiveQueue { queue, notification });
        }
        Ok(Activation {
            memory: Arc::clone(&self.memory),
            queues,
            interrupt: Arc::clone(&self.interrupt),
            features: self.driver_features,
            failures: Arc::clone(&self.failures),
        })
    }
}

impl Drop for MmioTransport {
    fn drop(&mut self) {
        self.device.reset();
    }
}

/// One of the two 32-bit pages of a set of feature bits.
fn page(features: u64, page: u32) -> u32 {
    match page {
        0 => (features & 0xffff_ffff) as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}
