//! How a virtio device is tied to its machine: a window of device memory, an interrupt line, and an event for each
//! queue, all of which KVM serves without leaving the kernel.

use std::io;
use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, VmFd};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::devices::virtio::device::VirtioDevice;
use crate::devices::virtio::failure::FailureHandler;
use crate::devices::virtio::interrupt::Interrupt;
use crate::devices::virtio::mmio_transport::MmioTransport;
use crate::memory::layout;
use crate::stop::FirstStop;

/// QueueNotify (virtio 1.2, section 4.2.2).
const QUEUE_NOTIFY: u64 = 0x50;

/// Why a device is not tied to its machine.
#[derive(Debug, thiserror::Error)]
pub enum WiringError {
    /// The host has no more events.
    #[error("making an event for {device}")]
    Event {
        /// The device's name.
        device: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// KVM does not take an event.
    #[error("giving KVM the {event} of {device}")]
    Register {
        /// What the event is for.
        event: &'static str,
        /// The device's name.
        device: &'static str,
        /// The cause.
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// The interrupt lines of `devices` devices, in order.
pub fn interrupt_lines(devices: usize) -> impl Iterator<Item = u32> {
    (layout::FIRST_GSI..=layout::LAST_GSI).take(devices)
}

/// Ties `devices` to `vm`, each to the next window and line. There are no more of them than lines.
///
/// # Errors
/// When the host or KVM runs out of something.
pub fn tie(
    vm: &VmFd,
    memory: &Arc<GuestMemoryMmap>,
    devices: Vec<Box<dyn VirtioDevice>>,
    first_stop: &Arc<FirstStop>,
) -> Result<Vec<MmioTransport>, WiringError> {
    let lines = interrupt_lines(devices.len());
    let first_stop = Arc::clone(first_stop);
    let failures: FailureHandler = Arc::new(move |failure| first_stop.report(failure.into()));
    (0..)
        .zip(devices)
        .zip(lines)
        .map(|((index, device), line)| {
            let window = layout::VIRTIO_MMIO + index * layout::VIRTIO_MMIO_BYTES;
            tie_one(vm, memory, device, window, line, Arc::clone(&failures))
        })
        .collect()
}

fn tie_one(
    vm: &VmFd,
    memory: &Arc<GuestMemoryMmap>,
    device: Box<dyn VirtioDevice>,
    window: u64,
    line: u32,
    failures: FailureHandler,
) -> Result<MmioTransport, WiringError> {
    let name = device.name();
    let event = || {
        EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)
            .map_err(|source| WiringError::Event { device: name, source })
    };
    let registered = |event: &'static str| {
        move |source| WiringError::Register {
            event,
            device: name,
            source,
        }
    };
    let interrupt = Interrupt::new(event()?);
    vm.register_irqfd(interrupt.line(), line)
        .map_err(registered("interrupt"))?;
    let notify = IoEventAddress::Mmio(window + QUEUE_NOTIFY);
    let mut notifications = Vec::new();
    for queue in (0_u32..).take(device.queue_sizes().len()) {
        let notification = event()?;
        vm.register_ioevent(&notification, &notify, queue)
            .map_err(registered("notification"))?;
        notifications.push(notification);
    }
    let transport = MmioTransport::new(device, Arc::clone(memory), Arc::new(interrupt), notifications);
    Ok(transport.on_failure(failures))
}
