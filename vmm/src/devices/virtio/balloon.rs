//! Memory that the guest does not need (virtio 1.2, section 5.5): by free page reporting, which Linux does by itself,
//! and by the balloon proper, whose target stays zero.
//!
//! **What is reported.** Linux looks at its free lists two seconds after it has the device, and two seconds after a large
//! block was freed, and reports blocks of 2 MiB and more that are free and were not reported since. So a guest that frees
//! much gives it back within seconds and in large pieces, each of which costs the host one call; memory that is free in
//! small pieces only, or holds files that the guest may want again, stays.
//!
//! **What becomes of it.** [`discard`] takes the pages away from this process. A page that the guest uses again is zero,
//! or is again what the machine's snapshot has there, if it came from one: its own copy is gone, and until the guest
//! writes to it, it reads the page that all copies of the snapshot share in the host's page cache. So a guest can read
//! in a free page what was there before. It must not mind: a reported page is uninitialized memory until the driver
//! writes to it, unless VIRTIO_BALLOON_F_PAGE_POISON was agreed on, which is not offered (sections 5.5.6.6 and
//! 5.5.6.7). Linux keeps to that: a kernel that relies on the contents of free pages (`page_poison`, `init_on_free`)
//! refuses free page reporting from a device that does not offer that feature, and one that clears pages when they are
//! allocated (`init_on_alloc`) does so whatever they hold. Nor does a page show the guest what is not its own: a
//! snapshot's memory was the same guest's, before it was copied.

use std::io::Read;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vmm_sys_util::eventfd::EventFd;

use super::device::{ActivateError, Activation, Pausable, VirtioDevice};
use super::device_queue::{Chain, DeviceQueue, EVENT_IDX};
use super::worker::{Service, Worker, WorkerError, serve_numbered_queues};
use crate::memory::discard::discard;

/// VIRTIO_BALLOON_F_DEFLATE_ON_OOM: the guest may take pages back when it has no others.
const DEFLATE_ON_OOM: u64 = 1 << 2;
/// VIRTIO_BALLOON_F_PAGE_REPORTING.
const PAGE_REPORTING: u64 = 1 << 5;

/// Pages the guest does not use any more.
const INFLATE: usize = 0;
/// Free pages. Its index is that of the specification less two for the queues of features that are not offered, because
/// Linux numbers the queues that there are.
const REPORTING: usize = 2;

/// Linux has one buffer of page numbers under way, and refuses to report with fewer than 32 descriptors. More would be
/// more for the guest to set up.
const QUEUE_SIZES: [u16; 3] = [16, 16, 32];

/// The unit of page numbers (virtio 1.2, section 5.5.6), whatever the guest's pages are.
const BALLOON_PAGE: u64 = 4096;
/// The most page numbers taken from one buffer: each may cost a call, and a pause waits for them. Linux sends 256. Pages
/// beyond are the guest's loss: it may not use them, and they stay.
const MAX_PAGES: usize = 4096;

/// A virtio memory balloon device.
#[derive(Default)]
pub struct Balloon {
    worker: Option<Worker<Returns>>,
}

/// What its thread works on.
struct Returns {
    queues: Vec<DeviceQueue>,
}

impl Service for Returns {
    fn serve(&mut self, stop: &EventFd) -> Result<(), WorkerError> {
        serve_numbered_queues(&mut self.queues, stop, |index, chain| {
            match index {
                INFLATE => take_pages(chain),
                REPORTING => take_blocks(chain),
                // Pages that leave the balloon come back when they are touched.
                _ => {}
            }
            // Nothing is ever written to the guest's buffers.
            0
        })
    }

    fn queues(&self) -> &[DeviceQueue] {
        &self.queues
    }
}

impl Balloon {
    /// A device without a driver.
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn name(&self) -> &'static str {
        "balloon"
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn offered_features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | EVENT_IDX | DEFLATE_ON_OOM | PAGE_REPORTING
    }

    /// The target is no pages. How many there are is the driver's to write, and nobody's to read.
    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let queues = DeviceQueue::take_all(self.name(), &mut activation)?;
        self.worker = Some(Worker::start(
            self.name(),
            activation.interrupt,
            activation.failures,
            Returns { queues },
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

/// Takes the free blocks that the writable buffers of `chain` are. The driver gives away only what it lets the device
/// write to.
fn take_blocks(chain: &Chain) {
    // A chain has no more buffers but by an indirect table, which is not offered.
    let most = QUEUE_SIZES.get(REPORTING).copied().unwrap_or_default();
    for block in chain.clone().writable().take(usize::from(most)) {
        take(chain, block.addr().0, u64::from(block.len()));
    }
}

/// Takes the pages whose numbers are in the readable buffers of `chain`, runs of them at once.
fn take_pages(chain: &Chain) {
    let Ok(reader) = chain.clone().reader(chain.memory()) else {
        return;
    };
    let mut bytes = Vec::new();
    // Reading from memory that was found to be there cannot fail.
    if reader.take(4 * MAX_PAGES as u64).read_to_end(&mut bytes).is_err() {
        return;
    }
    let (numbers, _) = bytes.as_chunks();
    let mut pages = numbers.iter().copied().map(u32::from_le_bytes).map(u64::from);
    let Some(first) = pages.next() else { return };
    let mut run = first..first + 1;
    for page in pages {
        if page == run.end {
            run.end += 1;
        } else {
            take(
                chain,
                run.start * BALLOON_PAGE,
                (run.end - run.start) * BALLOON_PAGE,
            );
            run = page..page + 1;
        }
    }
    take(
        chain,
        run.start * BALLOON_PAGE,
        (run.end - run.start) * BALLOON_PAGE,
    );
}

/// Gives memory back to the host.
fn take(chain: &Chain, address: u64, bytes: u64) {
    // There is no word for a refusal, and none is needed: what is not the guest's it cannot give, and what the host
    // keeps, because it is locked, is as good to the guest as what comes back.
    let _ = discard(chain.memory(), address, bytes);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use vm_memory::GuestMemoryMmap;

    use super::*;
    use crate::devices::virtio::test_driver::{Buffer, TestDriver};
    use crate::memory::discard::tests::resident_pages;

    const MIB: u64 = 1 << 20;
    const DEFLATE: usize = 1;
    /// Where the blocks are that are given away: behind the rings and the data of all queues.
    const BLOCK: u64 = 32 * MIB;

    struct Guest<'m> {
        memory: &'m Arc<GuestMemoryMmap>,
        driver: TestDriver<'m>,
        balloon: Balloon,
    }

    impl<'m> Guest<'m> {
        fn new(memory: &'m Arc<GuestMemoryMmap>) -> Self {
            let driver = TestDriver::new(memory, &QUEUE_SIZES);
            let mut balloon = Balloon::new();
            driver.activate(&mut balloon);
            driver.write(BLOCK, &vec![0xa5; 8 * MIB as usize]);
            Self {
                memory,
                driver,
                balloon,
            }
        }

        fn resident(&self, address: u64, bytes: u64) -> usize {
            resident_pages(self.memory, address, bytes)
        }

        fn report(&mut self, buffers: &[Buffer]) {
            self.driver.add(REPORTING, buffers);
            assert_eq!(self.driver.wait_for_used(REPORTING).1, 0);
        }

        fn tell(&mut self, queue: usize, pages: &[u32]) {
            let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
            let data = self.driver.data(queue);
            self.driver.write(data, &bytes);
            let buffer = Buffer::readable(data, bytes.len() as u32);
            self.driver.add(queue, &[buffer]);
            assert_eq!(self.driver.wait_for_used(queue).1, 0);
        }

        /// Nothing but what was given away has changed.
        fn assert_kept(&self, address: u64, bytes: u64) {
            assert!(self.driver.read(address, bytes as usize) == vec![0xa5; bytes as usize]);
        }
    }

    #[test]
    fn the_queues_are_enough_for_linux_and_no_pages_are_asked_for() {
        let balloon = Balloon::new();
        assert!(balloon.queue_sizes()[REPORTING] >= 32);
        let mut config = [0xff; 16];
        balloon.read_config(0, &mut config);
        assert_eq!(config, [0; 16]);
    }

    #[test]
    fn reported_blocks_leave_the_host() {
        let memory = TestDriver::memory();
        let mut guest = Guest::new(&memory);
        assert_eq!(guest.resident(BLOCK, 8 * MIB), 2048);
        guest.report(&[
            Buffer::writable(BLOCK, 2 * MIB as u32),
            Buffer::writable(BLOCK + 4 * MIB, 2 * MIB as u32),
        ]);
        assert_eq!(guest.resident(BLOCK, 2 * MIB), 0);
        assert_eq!(guest.resident(BLOCK + 2 * MIB, 2 * MIB), 512);
        assert_eq!(guest.resident(BLOCK + 4 * MIB, 2 * MIB), 0);
        guest.assert_kept(BLOCK + 2 * MIB, 2 * MIB);
        guest.assert_kept(BLOCK + 6 * MIB, 2 * MIB);
        assert_eq!(guest.driver.read(BLOCK, 4096), [0; 4096]);
    }

    #[test]
    fn a_full_report_of_32_blocks_is_taken() {
        let memory = TestDriver::memory();
        let mut guest = Guest::new(&memory);
        let blocks: Vec<Buffer> = (0..32)
            .map(|block| Buffer::writable(BLOCK + block * (MIB / 4), MIB as u32 / 4))
            .collect();
        guest.report(&blocks);
        assert_eq!(guest.resident(BLOCK, 8 * MIB), 0);
    }

    #[test]
    fn pages_in_the_balloon_leave_the_host_and_those_out_of_it_do_not() {
        let memory = TestDriver::memory();
        let mut guest = Guest::new(&memory);
        let first = (BLOCK / BALLOON_PAGE) as u32;
        guest.tell(DEFLATE, &[first, first + 1]);
        assert_eq!(guest.resident(BLOCK, 8 * MIB), 2048);
        guest.tell(INFLATE, &[first, first + 1, first + 2, first + 9, first + 8]);
        assert_eq!(guest.resident(BLOCK, 3 * BALLOON_PAGE), 0);
        assert_eq!(guest.resident(BLOCK + 3 * BALLOON_PAGE, 5 * BALLOON_PAGE), 5);
        assert_eq!(guest.resident(BLOCK + 8 * BALLOON_PAGE, 2 * BALLOON_PAGE), 0);
        assert_eq!(guest.resident(BLOCK + 10 * BALLOON_PAGE, MIB), 256);
        guest.assert_kept(BLOCK + 3 * BALLOON_PAGE, 5 * BALLOON_PAGE);
    }

    #[test]
    fn what_a_report_may_not_give_stays() {
        let memory = TestDriver::memory();
        let mut guest = Guest::new(&memory);
        let end = guest.driver.memory_end();
        guest.driver.write(end - MIB, &vec![0xa5; MIB as usize]);
        for buffer in [
            Buffer::readable(BLOCK, 2 * MIB as u32),
            Buffer::writable(BLOCK, 0),
            Buffer::writable(BLOCK + 1, 4096),
            Buffer::writable(end - MIB, 2 * MIB as u32),
            Buffer::writable(end, 4096),
            Buffer::writable(u64::MAX - 4095, 4096),
            Buffer::writable(u64::MAX, u32::MAX),
            Buffer::writable(BLOCK, u32::MAX),
        ] {
            guest.report(&[buffer]);
        }
        guest.assert_kept(BLOCK, 8 * MIB);
        guest.assert_kept(end - MIB, MIB);
        assert_eq!(guest.resident(BLOCK, 8 * MIB), 2048);
    }

    #[test]
    fn page_numbers_that_are_none_of_the_guests_are_passed_over() {
        let memory = TestDriver::memory();
        let mut guest = Guest::new(&memory);
        let end = (guest.driver.memory_end() / BALLOON_PAGE) as u32;
        let first = (BLOCK / BALLOON_PAGE) as u32;
        guest.tell(
            INFLATE,
            &[u32::MAX, end, u32::MAX, u32::MAX - 1, first, end, end + 1],
        );
        assert_eq!(guest.resident(BLOCK, BALLOON_PAGE), 0);
        guest.assert_kept(BLOCK + BALLOON_PAGE, MIB);
        // A number cut off, none at all, and a buffer the device may not read.
        let data = guest.driver.data(INFLATE);
        guest.driver.write(data, &(first + 1).to_le_bytes());
        for buffer in [
            Buffer::readable(data, 3),
            Buffer::readable(data, 0),
            Buffer::writable(data, 4),
            Buffer::readable(u64::MAX - 1, 4),
        ] {
            guest.driver.add(INFLATE, &[buffer]);
            guest.driver.wait_for_used(INFLATE);
        }
        guest.assert_kept(BLOCK + BALLOON_PAGE, MIB);
    }

    #[test]
    fn no_more_page_numbers_are_taken_than_the_limit() {
        let memory = TestDriver::memory();
        let mut guest = Guest::new(&memory);
        let first = (BLOCK / BALLOON_PAGE) as u32;
        let mut pages = vec![first; MAX_PAGES];
        pages.push(first + 1);
        guest.tell(INFLATE, &pages);
        assert_eq!(guest.resident(BLOCK, 2 * BALLOON_PAGE), 1);
        // Gigabytes of them do not take long.
        guest
            .driver
            .add_loop(INFLATE, Buffer::readable(0, 32 * MIB as u32));
        guest.driver.wait_for_used(INFLATE);
    }

    #[test]
    fn a_loop_of_descriptors_ends() {
        let memory = TestDriver::memory();
        let mut guest = Guest::new(&memory);
        for queue in [INFLATE, DEFLATE, REPORTING] {
            guest
                .driver
                .add_loop(queue, Buffer::writable(BLOCK, 2 * MIB as u32));
            assert_eq!(guest.driver.wait_for_used(queue).1, 0);
        }
        assert_eq!(guest.resident(BLOCK, 2 * MIB), 0);
        assert!(guest.driver.failure().is_none());
    }

    #[test]
    fn a_driver_that_gives_away_its_own_rings_is_asked_for_a_reset_or_goes_on() {
        let memory = TestDriver::memory();
        let mut guest = Guest::new(&memory);
        guest
            .driver
            .add(REPORTING, &[Buffer::writable(0, 32 * MIB as u32)]);
        guest.balloon.worker().unwrap().pause();
        guest.balloon.worker().unwrap().resume().unwrap();
        guest.balloon.reset();
        assert!(guest.driver.failure().is_none());
        guest.assert_kept(BLOCK, 8 * MIB);
    }

    #[test]
    fn a_broken_ring_asks_for_a_reset() {
        let memory = TestDriver::memory();
        for queue in [INFLATE, DEFLATE, REPORTING] {
            let mut guest = Guest::new(&memory);
            guest.driver.offer_head(queue, 99);
            guest.driver.wait_for_reset_request();
            assert!(guest.driver.failure().is_none());
        }
    }

    #[test]
    fn another_device_takes_what_was_reported_to_the_first() {
        let memory = TestDriver::memory();
        let mut guest = Guest::new(&memory);
        guest.report(&[Buffer::writable(BLOCK, MIB as u32)]);
        guest.balloon.worker().unwrap().pause();
        guest
            .driver
            .add(REPORTING, &[Buffer::writable(BLOCK + MIB, MIB as u32)]);
        let mut second = Balloon::new();
        guest.driver.move_over(&mut guest.balloon, &mut second);
        guest.driver.wait_for_used(REPORTING);
        assert_eq!(guest.driver.take_used(REPORTING), None);
        assert_eq!(guest.resident(BLOCK, 2 * MIB), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever is reported, exactly the whole pages inside it go.
        #[test]
        fn a_report_takes_the_whole_pages_inside_it(
            offset in 0..4 * MIB,
            length in prop_oneof![0..20_000_u64, 0..4 * MIB],
        ) {
            let memory = TestDriver::memory();
            let mut guest = Guest::new(&memory);
            guest.report(&[Buffer::writable(BLOCK + offset, length as u32)]);
            let start = offset.next_multiple_of(4096);
            let end = (offset + length) / 4096 * 4096;
            let taken = end.saturating_sub(start) / 4096;
            prop_assert_eq!(guest.resident(BLOCK, 8 * MIB) as u64, 2048 - taken);
            guest.assert_kept(BLOCK, start.min(8 * MIB));
            guest.assert_kept(BLOCK + end.max(start), 8 * MIB - end.max(start));
        }
    }
}
