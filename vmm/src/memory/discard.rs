//! Guest memory that goes back to the host.

use std::io;

use rustix::mm::Advice;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap};

use super::layout::{page_down, page_up};

/// Why memory is still the guest's.
#[derive(Debug, thiserror::Error)]
pub enum DiscardError {
    /// Not all of it is the guest's.
    #[error("finding {bytes} bytes of the guest's memory at {address:#x}")]
    Outside {
        /// Its guest address.
        address: u64,
        /// How many bytes.
        bytes: u64,
        /// The cause.
        #[source]
        source: GuestMemoryError,
    },
    /// The host keeps it, for one because it is locked.
    #[error("giving back {bytes} bytes of the guest's memory at {address:#x}")]
    Keep {
        /// Its guest address.
        address: u64,
        /// How many bytes.
        bytes: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Gives the whole pages among the `bytes` bytes from guest address `address` back to the host. They cost it nothing
/// until the guest touches them again, and then hold what they held before the machine ran: zeros, or the bytes of the
/// file that is [mapped](super::file) there or of the [snapshot](crate::snapshot) the machine goes on from. All guest
/// memory is mapped privately, so that nobody else sees anything of it.
///
/// # Errors
/// When not all of it is guest memory, or the host keeps it. Nothing has changed then.
pub fn discard(memory: &GuestMemoryMmap, address: u64, bytes: u64) -> Result<(), DiscardError> {
    let length = usize::try_from(bytes).unwrap_or(usize::MAX);
    let outside = |source| DiscardError::Outside {
        address,
        bytes,
        source,
    };
    memory.get_slice(GuestAddress(address), length).map_err(outside)?;
    // The sum is an address of the guest, or the first after it.
    let end = page_down(address.saturating_add(bytes));
    let Some(start) = page_up(address).filter(|start| *start < end) else {
        return Ok(());
    };
    let pages = memory
        .get_slice(GuestAddress(start), (end - start) as usize)
        .map_err(outside)?;
    // SAFETY: The pages lie inside one mapping that `memory` owns. They stay mapped, readable and writable; only what
    // they hold changes, and no reference to guest memory exists: all access to it is volatile.
    unsafe {
        rustix::mm::madvise(
            pages.ptr_guard_mut().as_ptr().cast(),
            pages.len(),
            Advice::LinuxDontNeed,
        )
    }
    .map_err(|source| DiscardError::Keep {
        address,
        bytes,
        source: source.into(),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use vm_memory::Bytes;

    use super::*;
    use crate::memory::{layout, reserve};

    const PAGE: u64 = layout::PAGE_BYTES;
    const MIB: u64 = 1 << 20;

    /// How many pages from `address` on the host holds for this process. The highest bit of a page's entry says that it
    /// is there (the kernel's Documentation/admin-guide/mm/pagemap.rst).
    pub(crate) fn resident_pages(memory: &GuestMemoryMmap, address: u64, bytes: u64) -> usize {
        let slice = memory.get_slice(GuestAddress(address), bytes as usize).unwrap();
        let page = slice.ptr_guard().as_ptr() as u64 / PAGE;
        let mut entries = vec![0; (bytes / PAGE) as usize * 8];
        File::open("/proc/self/pagemap")
            .unwrap()
            .read_exact_at(&mut entries, page * 8)
            .unwrap();
        entries.chunks(8).filter(|entry| entry[7] & 0x80 != 0).count()
    }

    fn fill(memory: &GuestMemoryMmap, address: u64, bytes: u64) {
        memory
            .write_slice(&vec![0xa5; bytes as usize], GuestAddress(address))
            .unwrap();
    }

    fn first_byte(memory: &GuestMemoryMmap, address: u64) -> u8 {
        memory.read_obj(GuestAddress(address)).unwrap()
    }

    #[test]
    fn anonymous_pages_leave_the_host_and_come_back_as_zeros() {
        let memory = reserve(4 * MIB).unwrap();
        fill(&memory, 0, 4 * MIB);
        assert_eq!(resident_pages(&memory, 0, 4 * MIB), 1024);
        discard(&memory, MIB, 2 * MIB).unwrap();
        assert_eq!(resident_pages(&memory, MIB, 2 * MIB), 0);
        assert_eq!(resident_pages(&memory, 0, MIB), 256);
        assert_eq!(resident_pages(&memory, 3 * MIB, MIB), 256);
        assert_eq!(first_byte(&memory, MIB), 0);
        assert_eq!(first_byte(&memory, MIB - 1), 0xa5);
        assert_eq!(first_byte(&memory, 3 * MIB), 0xa5);
    }

    #[test]
    fn pages_of_a_snapshot_leave_the_host_and_come_back_as_they_were_in_it() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![0x11; 2 * MIB as usize]).unwrap();
        let memory = crate::snapshot::memory::map(&file, 2 * MIB).unwrap();
        fill(&memory, 0, 2 * MIB);
        discard(&memory, 0, MIB).unwrap();
        assert_eq!(resident_pages(&memory, 0, MIB), 0);
        assert_eq!(first_byte(&memory, 0), 0x11);
        assert_eq!(first_byte(&memory, MIB), 0xa5);
        let mut byte = [0];
        file.read_exact_at(&mut byte, MIB).unwrap();
        assert_eq!(byte, [0x11], "the file is what it was");
    }

    #[test]
    fn a_page_of_which_only_a_part_is_given_back_stays() {
        let memory = reserve(MIB).unwrap();
        fill(&memory, 0, MIB);
        for (address, bytes) in [(0, 0), (0, PAGE - 1), (1, PAGE - 1), (1, PAGE), (PAGE - 1, PAGE)] {
            discard(&memory, address, bytes).unwrap();
        }
        assert_eq!(resident_pages(&memory, 0, MIB), 256);
        discard(&memory, PAGE - 1, PAGE + 1).unwrap();
        assert_eq!(resident_pages(&memory, 0, MIB), 255);
        assert_eq!(first_byte(&memory, PAGE - 1), 0xa5);
        assert_eq!(first_byte(&memory, PAGE), 0);
    }

    #[test]
    fn what_is_not_all_the_guests_is_refused_and_stays() {
        let memory = GuestMemoryMmap::from_ranges(&[
            (GuestAddress(0), MIB as usize),
            (GuestAddress(2 * MIB), MIB as usize),
        ])
        .unwrap();
        fill(&memory, 0, MIB);
        fill(&memory, 2 * MIB, MIB);
        for (address, bytes) in [
            (0, MIB + 1),
            (0, 3 * MIB),
            (MIB, PAGE),
            (3 * MIB, PAGE),
            (3 * MIB - PAGE, 2 * PAGE),
            (0, u64::MAX),
            (u64::MAX, 1),
            (u64::MAX - PAGE, 2 * PAGE),
            (PAGE, u64::MAX),
        ] {
            let refused = discard(&memory, address, bytes);
            assert!(
                matches!(refused, Err(DiscardError::Outside { .. })),
                "{address:#x} {bytes:#x}: {refused:?}"
            );
        }
        assert_eq!(resident_pages(&memory, 0, MIB), 256);
        assert_eq!(resident_pages(&memory, 2 * MIB, MIB), 256);
    }
}
