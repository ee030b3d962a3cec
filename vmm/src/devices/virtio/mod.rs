//! Virtio devices over virtio-mmio (virtio 1.2, section 4.2).
//!
//! A device is a [`device::VirtioDevice`]: it names its features, queues and configuration space, and once a driver
//! is ready it serves the queues on a thread of its own. [`mmio_transport::MmioTransport`] stands between the two and
//! trusts neither the driver's order of register accesses nor its addresses. What every device shares lies in
//! `device_queue` (one queue, with the traps of a hostile driver handled once) and `worker` (the thread).

pub mod balloon;
pub mod blk;
pub mod console;
pub mod device;
mod device_queue;
pub mod failure;
pub mod fs;
pub mod interrupt;
pub mod mmio_transport;
pub mod net;
pub mod rng;
pub mod vsock;
mod worker;

#[cfg(test)]
mod test_driver;
