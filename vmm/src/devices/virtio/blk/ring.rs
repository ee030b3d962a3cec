//! Reads and writes that are under way at the same time, by a ring of the kernel's (io_uring(7)): a disk that is asked for
//! several things does them in the order it likes, and several at once if it can.
//!
//! All that is begun here has ended before the guest is answered, the thread pauses, or the guest's memory goes: the
//! kernel never moves bytes for requests that nobody knows of any more.

use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use io_uring::{IoUring, opcode, types};

use super::backing::{Backing, Vectors};
use super::segments::Segments;

/// Transfers that are under way at most.
pub(super) const DEPTH: usize = 32;

/// How often it is looked whether the kernel is ready where it cannot be waited for.
const STEP: Duration = Duration::from_millis(1);

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the disk.
    Read,
    /// To the disk.
    Write,
}

/// Bytes that are to be moved.
#[derive(Debug)]
pub(super) struct Transfer<'m> {
    pub(super) direction: Direction,
    /// Where on the disk, in bytes.
    pub(super) offset: u64,
    /// Where in the guest.
    pub(super) segments: Segments<'m>,
}

/// The kernel's ring, made when it is needed first.
#[derive(Default)]
pub(super) enum Ring {
    #[default]
    NotNeeded,
    Made(Box<IoUring>),
    /// This host has none for us, as where io_uring is forbidden. Transfers are made one after the other then.
    Refused,
}

/// How a transfer that was begun ended: bytes, or a negative error; none if it was not begun.
type Outcome = Option<i32>;

impl Ring {
    /// Makes all transfers, of which there are [`DEPTH`] at most. Gives how each ended, in their order.
    pub(super) fn carry_out(
        &mut self,
        backing: &Backing,
        mut transfers: Vec<Transfer<'_>>,
    ) -> Vec<io::Result<()>> {
        let outcomes = match transfers.len() {
            // One system call either way.
            0 | 1 => Vec::new(),
            _ => self.make_at_once(backing, &transfers),
        };
        let mut outcomes = outcomes.into_iter();
        transfers
            .drain(..)
            .map(|transfer| finish(backing, transfer, outcomes.next().flatten()))
            .collect()
    }

    fn make_at_once(&mut self, backing: &Backing, transfers: &[Transfer<'_>]) -> Vec<Outcome> {
        if let Ring::NotNeeded = self {
            *self = IoUring::new(DEPTH as u32).map_or(Ring::Refused, |ring| Ring::Made(Box::new(ring)));
        }
        let Ring::Made(ring) = self else {
            return Vec::new();
        };
        let (outcomes, is_empty) = submit_and_wait(ring, backing, transfers);
        if !is_empty {
            // What it was not given to do must not be done later.
            *self = Ring::Refused;
        }
        outcomes
    }
}

/// Has the ring make the transfers, and waits for all that it began. Also gives whether it has begun all that it was
/// given.
fn submit_and_wait(
    ring: &mut IoUring,
    backing: &Backing,
    transfers: &[Transfer<'_>],
) -> (Vec<Outcome>, bool) {
    let vectors: Vec<Vectors> = transfers
        .iter()
        .map(|transfer| Vectors::of(&transfer.segments))
        .collect();
    let file = types::Fd(backing.as_raw_fd());
    let mut given = 0;
    for (index, (transfer, vectors)) in transfers.iter().zip(&vectors).enumerate() {
        let (pointer, count) = (vectors.as_ptr(), vectors.count());
        let entry = match transfer.direction {
            Direction::Read => opcode::Readv::new(file, pointer, count)
                .offset(transfer.offset)
                .build(),
            Direction::Write => opcode::Writev::new(file, pointer, count)
                .offset(transfer.offset)
                .build(),
        };
        // SAFETY: the vectors outlive this function, which returns when all that was begun has ended, and the ring is
        // never given to begin what is left of it then. They are stretches of the guest's memory, which is mapped as long
        // as the segments live, and to which nobody holds a reference: that the guest sees it change is what it asked for.
        if unsafe { ring.submission().push(&entry.user_data(index as u64)) }.is_err() {
            break;
        }
        given += 1;
    }
    let mut outcomes = vec![None; transfers.len()];
    let (mut begun, mut ended) = (0, 0);
    while ended < given {
        match ring.submit_and_wait(given - ended) {
            Ok(submitted) => begun += submitted,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // It can begin no more.
            Err(_) if begun == ended => break,
            Err(_) => thread::sleep(STEP),
        }
        for completion in ring.completion() {
            ended += 1;
            let index = usize::try_from(completion.user_data()).unwrap_or(usize::MAX);
            if let Some(outcome) = outcomes.get_mut(index) {
                *outcome = Some(completion.result());
            }
        }
    }
    (outcomes, begun == given)
}

/// Does what is left to do of a transfer.
fn finish(backing: &Backing, transfer: Transfer<'_>, outcome: Outcome) -> io::Result<()> {
    let Transfer {
        direction,
        offset,
        mut segments,
    } = transfer;
    let moved = match outcome {
        None => 0,
        Some(error) if error < 0 => match io::Error::from_raw_os_error(-error) {
            // The kernel may say of either that it is to be tried again.
            error if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => 0,
            error => return Err(error),
        },
        Some(moved) => usize::try_from(moved).unwrap_or(0),
    };
    segments.advance(moved);
    let offset = offset + moved as u64;
    match direction {
        Direction::Read => backing.read(segments, offset),
        Direction::Write => backing.write(segments, offset),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;
    use tempfile::NamedTempFile;
    use vm_memory::VolatileSlice;

    use super::*;

    const BYTES: usize = 64 << 10;

    fn segments(memory: &mut [u8]) -> Segments<'_> {
        let mut segments = Segments::default();
        // Several stretches, as a guest has them.
        for part in memory.chunks_mut(1000) {
            segments.push(VolatileSlice::from(part));
        }
        segments
    }

    fn disk() -> (NamedTempFile, Backing) {
        let file = NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..BYTES).map(|place| (place / 512) as u8).collect();
        file.as_file().write_all_at(&bytes, 0).unwrap();
        let backing = Backing::open(file.path(), false).unwrap();
        (file, backing)
    }

    proptest! {
        /// Reads and writes of places of their own, at once, are those one after the other.
        #[test]
        fn at_once_is_as_one_by_one(kinds in prop::collection::vec(any::<bool>(), 0..DEPTH), with_ring in any::<bool>()) {
            const EACH: usize = 2048;
            let (file, backing) = disk();
            let before = std::fs::read(file.path()).unwrap();
            let mut memory: Vec<Vec<u8>> = kinds.iter().map(|_| vec![0xee; EACH]).collect();
            let transfers = memory.iter_mut().zip(&kinds).enumerate();
            let transfers = transfers.map(|(place, (memory, is_write))| Transfer {
                direction: if *is_write { Direction::Write } else { Direction::Read },
                offset: (place * EACH) as u64,
                segments: segments(memory),
            });
            let mut ring = if with_ring { Ring::NotNeeded } else { Ring::Refused };
            let outcomes = ring.carry_out(&backing, transfers.collect());
            prop_assert_eq!(outcomes.len(), kinds.len());
            prop_assert!(outcomes.iter().all(Result::is_ok), "{:?}", outcomes);
            let after = std::fs::read(file.path()).unwrap();
            for (place, is_write) in kinds.iter().enumerate() {
                let range = place * EACH..(place + 1) * EACH;
                if *is_write {
                    prop_assert_eq!(&after[range], &[0xee; EACH][..]);
                } else {
                    prop_assert_eq!(&memory[place], &before[range.clone()]);
                    prop_assert_eq!(&after[range.clone()], &before[range]);
                }
            }
            prop_assert_eq!(&after[kinds.len() * EACH..], &before[kinds.len() * EACH..]);
        }
    }

    #[test]
    fn this_host_makes_rings() {
        // Where it does not, the tests above have not tried one.
        let (_file, backing) = disk();
        let mut memory = vec![0; 1024];
        let (one, other) = memory.split_at_mut(512);
        let transfers = [one, other].map(|memory| Transfer {
            direction: Direction::Read,
            offset: 512,
            segments: segments(memory),
        });
        let mut ring = Ring::default();
        ring.carry_out(&backing, transfers.into());
        if let Ring::Refused = ring {
            println!("SKIPPED: this host refuses io_uring; transfers at once were not tested");
        }
        assert!(memory.iter().all(|byte| *byte == 1));
    }

    #[test]
    fn one_that_fails_leaves_the_others() {
        let (_file, backing) = disk();
        let mut memory = vec![0xee; 3 * 512];
        let (first, rest) = memory.split_at_mut(512);
        let (second, third) = rest.split_at_mut(512);
        let transfers =
            [(0, first), (BYTES as u64, second), (1024, third)].map(|(offset, memory)| Transfer {
                direction: Direction::Read,
                offset,
                segments: segments(memory),
            });
        let outcomes = Ring::default().carry_out(&backing, transfers.into());
        let ended: Vec<Option<ErrorKind>> = outcomes
            .iter()
            .map(|outcome| outcome.as_ref().err().map(io::Error::kind))
            .collect();
        // Behind the end there is nothing to read.
        assert_eq!(ended, [None, Some(ErrorKind::UnexpectedEof), None]);
        assert!(memory[..512].iter().all(|byte| *byte == 0) && memory[1024..].iter().all(|byte| *byte == 2));
    }
}
