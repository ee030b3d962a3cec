//! The other side of a device in its tests: a driver that fills the rings and reads them back.
//!
//! It stands on the ring views of `virtio_queue::mock`, placed by hand: the mock's own queue lays the used ring over
//! the end of the available ring and does not wrap around.

use std::os::fd::AsRawFd;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::{AvailRing, DescriptorTable, UsedRing};
use virtio_queue::{Queue, QueueState};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::{ActivateError, Activation, ActiveQueue, QueuePosition, VirtioDevice};
use super::failure::DeviceFailure;
use super::interrupt::Interrupt;

/// How long a test waits for its device before it fails.
const PATIENCE: Duration = Duration::from_secs(20);
const MEMORY_SIZE: usize = 64 << 20;
/// Each queue gets a part of memory of this size for its rings and, after them, its data.
const QUEUE_STRIDE: u64 = 8 << 20;
const DATA_OFFSET: u64 = 1 << 20;

/// A buffer a driver offers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Buffer {
    address: u64,
    length: u32,
    writable: bool,
}

impl Buffer {
    pub(crate) fn readable(address: u64, length: u32) -> Self {
        Self {
            address,
            length,
            writable: false,
        }
    }

    pub(crate) fn writable(address: u64, length: u32) -> Self {
        Self {
            address,
            length,
            writable: true,
        }
    }
}

impl Buffer {
    /// Whether the rings of a queue are in it.
    pub(crate) fn reaches_rings(&self) -> bool {
        let into = self.address % QUEUE_STRIDE;
        self.address < MEMORY_SIZE as u64
            && (into < DATA_OFFSET || into + u64::from(self.length) > QUEUE_STRIDE)
    }
}

struct TestQueue<'m> {
    base: u64,
    size: u16,
    descriptors: DescriptorTable<'m, GuestMemoryMmap>,
    available: AvailRing<'m, GuestMemoryMmap>,
    used: UsedRing<'m, GuestMemoryMmap>,
    free: Vec<u16>,
    next_available: u16,
    next_used: u16,
    notification: EventFd,
    ready: bool,
}

impl<'m> TestQueue<'m> {
    fn new(memory: &'m GuestMemoryMmap, index: usize, size: u16) -> Self {
        let base = QUEUE_STRIDE * index as u64;
        let ring = |offset| GuestAddress(base + offset);
        Self {
            base,
            size,
            descriptors: DescriptorTable::new(memory, ring(0), size),
            available: AvailRing::new(memory, ring(0x4_0000), size),
            used: UsedRing::new(memory, ring(0x8_0000), size),
            free: (0..size).rev().collect(),
            next_available: 0,
            next_used: 0,
            notification: EventFd::new(EFD_NONBLOCK).unwrap(),
            ready: true,
        }
    }

    fn queue(&self, position: QueuePosition) -> Queue {
        Queue::try_from(QueueState {
            max_size: self.size,
            next_avail: position.next_available,
            next_used: position.next_used,
            event_idx_enabled: false,
            size: self.size,
            ready: self.ready,
            desc_table: self.base,
            avail_ring: self.base + 0x4_0000,
            used_ring: self.base + 0x8_0000,
        })
        .unwrap()
    }

    fn offer(&mut self, head: u16) {
        let slot = usize::from(self.next_available % self.size);
        self.available.ring().ref_at(slot).unwrap().store(head);
        self.next_available = self.next_available.wrapping_add(1);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        self.available.idx().store(self.next_available);
        self.notification.write(1).unwrap();
    }

    fn take_used(&mut self) -> Option<(u16, u32)> {
        if self.used.idx().load() == self.next_used {
            return None;
        }
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let slot = usize::from(self.next_used % self.size);
        let element = self.used.ring().ref_at(slot).unwrap().load();
        self.next_used = self.next_used.wrapping_add(1);
        let head = u16::try_from(element.id()).unwrap();
        let mut index = head;
        loop {
            let descriptor = Descriptor::from(self.descriptors.load(index).unwrap());
            if !self.free.contains(&index) {
                self.free.push(index);
            }
            if !descriptor.has_next() || descriptor.next() == head {
                break;
            }
            index = descriptor.next();
        }
        Some((head, element.len()))
    }
}

/// A driver for one device.
pub(crate) struct TestDriver<'m> {
    memory: &'m Arc<GuestMemoryMmap>,
    queues: Vec<TestQueue<'m>>,
    interrupt: Arc<Interrupt>,
    features: u64,
    failures: Receiver<DeviceFailure>,
    report: Arc<Mutex<mpsc::Sender<DeviceFailure>>>,
}

impl<'m> TestDriver<'m> {
    /// Memory large enough for the rings and the data of eight queues.
    pub(crate) fn memory() -> Arc<GuestMemoryMmap> {
        Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)]).unwrap())
    }

    /// A driver with empty rings of `sizes`.
    pub(crate) fn new(memory: &'m Arc<GuestMemoryMmap>, sizes: &[u16]) -> Self {
        let (report, failures) = mpsc::channel();
        let queues = sizes
            .iter()
            .enumerate()
            .map(|(index, size)| TestQueue::new(memory, index, *size))
            .collect();
        Self {
            memory,
            queues,
            interrupt: Arc::new(Interrupt::new(EventFd::new(EFD_NONBLOCK).unwrap())),
            features: 0,
            failures,
            report: Arc::new(Mutex::new(report)),
        }
    }

    /// Accepts `features`, of which none is needed.
    pub(crate) fn accept(&mut self, features: u64) {
        self.features = features;
    }

    /// Does not make `queue` ready.
    pub(crate) fn leave_out(&mut self, queue: usize) {
        self.queues[queue].ready = false;
    }

    /// Says DRIVER_OK.
    pub(crate) fn activate(&self, device: &mut dyn VirtioDevice) {
        self.try_activate(device).unwrap();
    }

    pub(crate) fn try_activate(&self, device: &mut dyn VirtioDevice) -> Result<(), ActivateError> {
        device.activate(self.activation(&vec![QueuePosition::default(); self.queues.len()]))
    }

    pub(crate) fn activation(&self, positions: &[QueuePosition]) -> Activation {
        let report = Arc::clone(&self.report);
        Activation {
            memory: Arc::clone(self.memory),
            queues: self
                .queues
                .iter()
                .zip(positions)
                .map(|(queue, position)| ActiveQueue {
                    queue: queue.queue(*position),
                    notification: queue.notification.try_clone().unwrap(),
                })
                .collect(),
            interrupt: Arc::clone(&self.interrupt),
            features: self.features,
            failures: Arc::new(move |failure| report.lock().unwrap().send(failure).unwrap()),
        }
    }

    /// Gives `to` the place of `from`, which stays paused, as a snapshot does.
    pub(crate) fn move_over(&self, from: &mut dyn VirtioDevice, to: &mut dyn VirtioDevice) {
        let worker = from.worker().unwrap();
        worker.pause();
        let positions = worker.queue_positions().unwrap();
        let state = from.save().unwrap();
        to.restore(self.activation(&positions), &state).unwrap();
    }

    /// Where the data of `queue` may lie.
    pub(crate) fn data(&self, queue: usize) -> u64 {
        self.queues[queue].base + DATA_OFFSET
    }

    /// The first address after the guest's memory.
    pub(crate) fn memory_end(&self) -> u64 {
        self.memory.last_addr().0 + 1
    }

    pub(crate) fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    /// Descriptors of `queue` that are not under way.
    pub(crate) fn free_descriptors(&self, queue: usize) -> usize {
        self.queues[queue].free.len()
    }

    /// Makes one chain of `buffers` available and notifies the device; returns the chain's head.
    pub(crate) fn add(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let queue = &mut self.queues[queue];
        let indices: Vec<u16> = buffers.iter().map(|_| queue.free.pop().unwrap()).collect();
        for (position, (buffer, index)) in buffers.iter().zip(&indices).enumerate() {
            let next = indices.get(position + 1).copied();
            queue.store(*index, *buffer, next);
        }
        queue.offer(indices[0]);
        indices[0]
    }

    /// Makes a chain available whose only descriptor is followed by itself.
    pub(crate) fn add_loop(&mut self, queue: usize, buffer: Buffer) {
        let queue = &mut self.queues[queue];
        let index = queue.free.pop().unwrap();
        queue.store(index, buffer, Some(index));
        queue.offer(index);
    }

    /// Offers a head that is no descriptor of the table.
    pub(crate) fn offer_head(&mut self, queue: usize, head: u16) {
        self.queues[queue].offer(head);
    }

    /// Claims that the available ring has got as far as `index`.
    pub(crate) fn set_available_index(&mut self, queue: usize, index: u16) {
        let queue = &mut self.queues[queue];
        queue.available.idx().store(index);
        queue.notification.write(1).unwrap();
    }

    /// The next chain the device gave back: its head and the bytes written.
    pub(crate) fn take_used(&mut self, queue: usize) -> Option<(u16, u32)> {
        self.queues[queue].take_used()
    }

    /// Like [`take_used`](Self::take_used), but waits.
    pub(crate) fn wait_for_used(&mut self, queue: usize) -> (u16, u32) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(used) = self.take_used(queue) {
                return used;
            }
            self.assert_waiting(deadline);
        }
    }

    /// Waits until the device asks for its reset.
    pub(crate) fn wait_for_reset_request(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.interrupt.needs_reset() {
            self.assert_waiting(deadline);
        }
    }

    /// What the device interrupts for.
    pub(crate) fn interrupt_status(&self) -> u32 {
        self.interrupt.status()
    }

    /// Waits until the device says that its configuration space changed.
    pub(crate) fn wait_for_config_change(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.interrupt.status() & 2 == 0 {
            self.assert_waiting(deadline);
        }
    }

    /// The device's failure, if it reported one.
    pub(crate) fn failure(&self) -> Option<DeviceFailure> {
        self.failures.try_recv().ok()
    }

    /// Sleeps until the device interrupts, a millisecond at most, and fails the test when the device failed or took
    /// too long.
    pub(crate) fn assert_waiting(&self, deadline: Instant) {
        assert!(Instant::now() < deadline, "the device did not answer");
        if let Some(failure) = self.failure() {
            panic!("{failure}: {}", failure.source);
        }
        let mut line = libc::pollfd {
            fd: self.interrupt.line().as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: `line` is one valid pollfd for the length of the call.
        unsafe { libc::poll(&mut line, 1, 1) };
        let _ = self.interrupt.line().read();
    }
}

impl TestQueue<'_> {
    fn store(&self, index: u16, buffer: Buffer, next: Option<u16>) {
        let mut flags = 0;
        if buffer.writable {
            flags |= VRING_DESC_F_WRITE;
        }
        if next.is_some() {
            flags |= VRING_DESC_F_NEXT;
        }
        let flags = u16::try_from(flags).unwrap();
        let descriptor = Descriptor::new(buffer.address, buffer.length, flags, next.unwrap_or(0));
        self.descriptors
            .store(index, RawDescriptor::from(descriptor))
            .unwrap();
    }
}
