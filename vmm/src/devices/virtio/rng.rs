//! Entropy for the guest (virtio 1.2, section 5.4).

use std::io::Write;

use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use vmm_sys_util::eventfd::EventFd;

use super::device::{ActivateError, Activation, Pausable, VirtioDevice};
use super::device_queue::{Chain, DeviceQueue, EVENT_IDX};
use super::worker::{Service, Worker, WorkerError, serve_queues};

/// Linux asks for at most a page at a time and has one request under way.
const QUEUE_SIZES: [u16; 1] = [16];

/// The greatest number of bytes one request is given, whatever it asks for. The driver learns how many it got.
const MAX_REQUEST: usize = 4096;

/// A virtio entropy device fed by the host's `getrandom`.
#[derive(Default)]
pub struct Rng {
    worker: Option<Worker<Entropy>>,
}

/// What its thread works on.
struct Entropy {
    queues: Vec<DeviceQueue>,
}

impl Service for Entropy {
    fn serve(&mut self, stop: &EventFd) -> Result<(), WorkerError> {
        serve_queues(&mut self.queues, stop, fill_with_entropy)
    }

    fn queues(&self) -> &[DeviceQueue] {
        &self.queues
    }
}

impl Rng {
    /// A device without a driver.
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn name(&self) -> &'static str {
        "rng"
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn offered_features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | EVENT_IDX
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let queues = DeviceQueue::take_all(self.name(), &mut activation)?;
        self.worker = Some(Worker::start(
            self.name(),
            activation.interrupt,
            activation.failures,
            Entropy { queues },
        )?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }

    fn worker(&mut self) -> Option<&mut dyn Pausable> {
        self.worker.as_mut().map(|worker| worker as &mut dyn Pausable)
    }
}

/// Fills the writable part of `chain`, up to [`MAX_REQUEST`] bytes, and returns how many that were. A chain outside
/// the guest's memory gets none.
fn fill_with_entropy(chain: &Chain) -> u32 {
    let Ok(mut writer) = chain.clone().writer(chain.memory()) else {
        return 0;
    };
    let mut entropy = [0u8; MAX_REQUEST];
    let wanted = writer.available_bytes().min(MAX_REQUEST);
    let mut filled = 0;
    while let Some(rest @ [_, ..]) = entropy.get_mut(filled..wanted) {
        match getrandom(&mut *rest, GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            // The call cannot fail otherwise with this buffer and these flags; if it does, the driver gets what there is.
            Err(_) => break,
        }
    }
    let entropy = entropy.get(..filled).unwrap_or_default();
    match writer.write_all(entropy) {
        Ok(()) => u32::try_from(filled).unwrap_or(0),
        Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::test_driver::{Buffer, TestDriver};

    #[test]
    fn writable_buffers_are_filled_and_differ() {
        let memory = TestDriver::memory();
        let mut driver = TestDriver::new(&memory, &QUEUE_SIZES);
        let mut rng = Rng::new();
        driver.activate(&mut rng);

        let data = driver.data(0);
        driver.add(0, &[Buffer::writable(data, 64), Buffer::writable(data + 64, 64)]);
        assert_eq!(driver.wait_for_used(0).1, 128);

        let bytes = driver.read(data, 128);
        assert_ne!(bytes[..64], [0; 64]);
        assert_ne!(bytes[..64], bytes[64..]);
        rng.reset();
    }

    #[test]
    fn a_huge_request_gets_no_more_than_the_limit() {
        let memory = TestDriver::memory();
        let mut driver = TestDriver::new(&memory, &QUEUE_SIZES);
        let mut rng = Rng::new();
        driver.activate(&mut rng);

        driver.add(0, &[Buffer::writable(driver.data(0), 1 << 20)]);
        assert_eq!(driver.wait_for_used(0).1 as usize, MAX_REQUEST);
    }

    #[test]
    fn read_only_empty_and_outside_buffers_come_back_empty() {
        let memory = TestDriver::memory();
        let mut driver = TestDriver::new(&memory, &QUEUE_SIZES);
        let mut rng = Rng::new();
        driver.activate(&mut rng);

        for buffer in [
            Buffer::readable(driver.data(0), 64),
            Buffer::writable(driver.data(0), 0),
            Buffer::writable(u64::MAX - 8, 64),
            Buffer::writable(driver.memory_end() - 8, 64),
            Buffer::writable(driver.data(0), u32::MAX),
        ] {
            driver.add(0, &[buffer]);
            assert_eq!(driver.wait_for_used(0).1, 0, "{buffer:?}");
        }
    }

    #[test]
    fn a_descriptor_loop_ends() {
        let memory = TestDriver::memory();
        let mut driver = TestDriver::new(&memory, &QUEUE_SIZES);
        let mut rng = Rng::new();
        driver.activate(&mut rng);

        driver.add_loop(0, Buffer::writable(driver.data(0), 64));
        assert_eq!(driver.wait_for_used(0).1, 16 * 64);
    }

    #[test]
    fn an_available_index_beyond_the_ring_asks_for_a_reset_and_the_device_works_after_it() {
        let memory = TestDriver::memory();
        let mut driver = TestDriver::new(&memory, &QUEUE_SIZES);
        let mut rng = Rng::new();
        driver.activate(&mut rng);

        driver.set_available_index(0, 1000);
        driver.wait_for_reset_request();
        rng.reset();

        let mut driver = TestDriver::new(&memory, &QUEUE_SIZES);
        driver.activate(&mut rng);
        driver.add(0, &[Buffer::writable(driver.data(0), 8)]);
        assert_eq!(driver.wait_for_used(0).1, 8);
    }

    #[test]
    fn a_paused_device_leaves_requests_alone_until_it_goes_on() {
        let memory = TestDriver::memory();
        let mut driver = TestDriver::new(&memory, &QUEUE_SIZES);
        let mut rng = Rng::new();
        driver.activate(&mut rng);
        driver.add(0, &[Buffer::writable(driver.data(0), 8)]);
        driver.wait_for_used(0);

        rng.worker().unwrap().pause();
        driver.add(0, &[Buffer::writable(driver.data(0), 16)]);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(driver.take_used(0), None);
        rng.worker().unwrap().resume().unwrap();
        assert_eq!(driver.wait_for_used(0).1, 16);
    }

    #[test]
    fn another_device_serves_what_the_first_one_left_and_nothing_twice() {
        let memory = TestDriver::memory();
        let mut driver = TestDriver::new(&memory, &QUEUE_SIZES);
        let (mut first, mut second) = (Rng::new(), Rng::new());
        driver.activate(&mut first);
        for _ in 0..20 {
            driver.add(0, &[Buffer::writable(driver.data(0), 8)]);
            driver.wait_for_used(0);
        }
        first.worker().unwrap().pause();
        driver.add(0, &[Buffer::writable(driver.data(0), 24)]);
        driver.move_over(&mut first, &mut second);
        assert_eq!(driver.wait_for_used(0).1, 24);
        assert_eq!(driver.take_used(0), None);
    }
}
