//! The guest's console (virtio 1.2, section 5.3): one port, from the guest to the host.
//!
//! What the guest prints goes to a [`ConsoleRing`]; nothing is ever sent to it.

use std::io::Read;
use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use vmm_sys_util::eventfd::EventFd;

use super::device::{ActivateError, Activation, Pausable, VirtioDevice};
use super::device_queue::{Chain, DeviceQueue, EVENT_IDX};
use super::worker::{Service, Worker, WorkerError, serve_queues};
use crate::console_ring::ConsoleRing;

/// Index of the queue the guest's output arrives on; the other, 0, would carry input.
const TRANSMIT_QUEUE: usize = 1;

/// Linux keeps a page of input buffers ready and writes one buffer of output at a time.
const QUEUE_SIZES: [u16; 2] = [16, 16];

/// The greatest number of bytes taken from one chain. Linux splits what a process writes into 32 KiB.
const MAX_WRITE: usize = 64 << 10;

/// A virtio console that writes to a ring.
pub struct Console {
    ring: Arc<ConsoleRing>,
    worker: Option<Worker<Output>>,
}

/// What its thread works on.
struct Output {
    queues: Vec<DeviceQueue>,
    ring: Arc<ConsoleRing>,
}

impl Service for Output {
    fn serve(&mut self, stop: &EventFd) -> Result<(), WorkerError> {
        // The receive queue is accepted and then left alone.
        let transmit = self.queues.get_mut(TRANSMIT_QUEUE..).unwrap_or_default();
        serve_queues(transmit, stop, |chain| {
            append_output(chain, &self.ring);
            0
        })
    }

    fn queues(&self) -> &[DeviceQueue] {
        &self.queues
    }
}

impl Console {
    /// A device without a driver whose output goes to `ring`.
    pub fn new(ring: Arc<ConsoleRing>) -> Self {
        Self { ring, worker: None }
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn name(&self) -> &'static str {
        "console"
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn offered_features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | EVENT_IDX
    }

    /// The fields all belong to features that are not offered.
    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let queues = DeviceQueue::take_all(self.name(), &mut activation)?;
        self.worker = Some(Worker::start(
            self.name(),
            activation.interrupt,
            activation.failures,
            Output {
                queues,
                ring: Arc::clone(&self.ring),
            },
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

/// Appends the readable part of `chain`, up to [`MAX_WRITE`] bytes. A chain outside the guest's memory holds nothing.
fn append_output(chain: &Chain, ring: &ConsoleRing) {
    let Ok(reader) = chain.clone().reader(chain.memory()) else {
        return;
    };
    let mut output = Vec::new();
    // Reading from memory that was found to be there cannot fail.
    if reader.take(MAX_WRITE as u64).read_to_end(&mut output).is_ok() {
        ring.append(&output);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::test_driver::{Buffer, TestDriver};

    fn console() -> (tempfile::TempDir, Arc<ConsoleRing>, Console) {
        let directory = tempfile::tempdir().unwrap();
        let ring = ConsoleRing::create(&directory.path().join("console"), 1 << 16).unwrap();
        let ring = Arc::new(ring);
        let console = Console::new(Arc::clone(&ring));
        (directory, ring, console)
    }

    #[test]
    fn output_over_several_buffers_reaches_the_ring_in_order() {
        let (_directory, ring, mut console) = console();
        let memory = TestDriver::memory();
        let mut driver = TestDriver::new(&memory, &QUEUE_SIZES);
        driver.activate(&mut console);

        let data = driver.data(1);
        driver.write(data, b"hello ");
        driver.write(data + 0x1000, b"world\n");
        driver.add(
            1,
            &[Buffer::readable(data, 6), Buffer::readable(data + 0x1000, 6)],
        );
        assert_eq!(driver.wait_for_used(1).1, 0);
        assert_eq!(ring.tail(), b"hello world\n");
    }

    #[test]
    fn output_made_available_just_before_the_reset_is_kept() {
        let (_directory, ring, mut console) = console();
        let memory = TestDriver::memory();
        let mut driver = TestDriver::new(&memory, &QUEUE_SIZES);
        driver.activate(&mut console);

        let data = driver.data(1);
        for line in 0..10u64 {
            driver.write(data + line * 16, format!("line {line}\n").as_bytes());
            driver.add(1, &[Buffer::readable(data + line * 16, 7)]);
        }
        console.reset();
        assert_eq!(ring.last_lines(2), ["line 8", "line 9"]);
    }

    #[test]
    fn input_buffers_are_accepted_and_never_used() {
        let (_directory, ring, mut console) = console();
        let memory = TestDriver::memory();
        let mut driver = TestDriver::new(&memory, &QUEUE_SIZES);
        driver.activate(&mut console);

        driver.add(0, &[Buffer::writable(driver.data(0), 64)]);
        driver.add(1, &[Buffer::writable(driver.data(1), 64)]);
        driver.wait_for_used(1);
        assert_eq!(driver.take_used(0), None);
        assert!(ring.tail().is_empty());
    }

    #[test]
    fn hostile_chains_are_given_back_and_add_at_most_the_limit() {
        let (_directory, ring, mut console) = console();
        let memory = TestDriver::memory();
        let mut driver = TestDriver::new(&memory, &QUEUE_SIZES);
        driver.activate(&mut console);

        driver.add(1, &[Buffer::readable(u64::MAX - 4, 64)]);
        driver.wait_for_used(1);
        driver.add(1, &[Buffer::readable(driver.data(1), u32::MAX)]);
        driver.wait_for_used(1);
        assert!(ring.tail().is_empty());
        driver.add_loop(1, Buffer::readable(driver.data(1), 1 << 20));
        driver.wait_for_used(1);
        assert!(ring.tail().len() <= MAX_WRITE);
        driver.write(driver.data(1), b"still alive");
        driver.add(1, &[Buffer::readable(driver.data(1), 11)]);
        driver.wait_for_used(1);
        assert!(ring.tail().ends_with(b"still alive"));
    }

    #[test]
    fn a_head_outside_the_table_asks_for_a_reset() {
        let (_directory, _ring, mut console) = console();
        let memory = TestDriver::memory();
        let mut driver = TestDriver::new(&memory, &QUEUE_SIZES);
        driver.activate(&mut console);

        driver.offer_head(1, 99);
        driver.wait_for_reset_request();
        assert!(driver.failure().is_none());
    }
}
