//! The configuration space (virtio 1.2, section 5.1.4), which changes when the link does.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use virtio_bindings::virtio_net::VIRTIO_NET_S_LINK_UP;

use crate::config::MacAddress;
use crate::devices::virtio::device::read_config_space;

/// What the driver reads while the device's threads may change it.
#[derive(Debug)]
pub(super) struct Configuration {
    mac: MacAddress,
    mtu: Option<u16>,
    queue_pairs: u16,
    link_up: AtomicBool,
    generation: AtomicU32,
}

impl Configuration {
    pub(super) fn new(mac: MacAddress, mtu: Option<u16>, queue_pairs: u16, link_up: bool) -> Self {
        Self {
            mac,
            mtu,
            queue_pairs,
            link_up: AtomicBool::new(link_up),
            generation: AtomicU32::new(0),
        }
    }

    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let status = match self.link_is_up() {
            true => VIRTIO_NET_S_LINK_UP as u16,
            false => 0,
        };
        // Queue pairs and MTU mean something only with their features.
        let (pairs, mtu) = (self.queue_pairs, self.mtu.unwrap_or(0));
        let mut space = self.mac.octets().to_vec();
        space.extend([status, pairs, mtu].map(u16::to_le_bytes).as_flattened());
        read_config_space(&space, offset, data);
    }

    pub(super) fn mac(&self) -> MacAddress {
        self.mac
    }

    pub(super) fn mtu(&self) -> Option<u16> {
        self.mtu
    }

    pub(super) fn queue_pairs(&self) -> u16 {
        self.queue_pairs
    }

    pub(super) fn link_is_up(&self) -> bool {
        self.link_up.load(Ordering::SeqCst)
    }

    /// Says that nothing comes or goes any more; false if that has been said.
    pub(super) fn take_link_down(&self) -> bool {
        let was_up = self.link_up.swap(false, Ordering::SeqCst);
        if was_up {
            self.generation.fetch_add(1, Ordering::SeqCst);
        }
        was_up
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Goes on from another device's generation.
    pub(super) fn set_generation(&self, generation: u32) {
        self.generation.store(generation, Ordering::SeqCst);
    }
}
