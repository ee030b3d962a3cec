//! A file's bytes as guest memory.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::mm::{MapFlags, ProtFlags};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap};

use super::layout::{PAGE_BYTES, page_down};

/// How many bytes are copied at a time.
const COPY_BYTES: usize = PAGE_BYTES as usize;

/// Why a file is not in guest memory.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The file could not be read.
    #[error("reading {bytes} bytes at offset {offset}")]
    Read {
        /// How many bytes.
        bytes: usize,
        /// From where.
        offset: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The guest has no such memory.
    #[error("writing to guest address {address:#x}")]
    Write {
        /// The guest's address.
        address: u64,
        /// The cause.
        #[source]
        source: GuestMemoryError,
    },
    /// The host refused the mapping.
    #[error("mapping {bytes} bytes at guest address {address:#x}")]
    Map {
        /// How many bytes.
        bytes: usize,
        /// The guest's address.
        address: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Makes the bytes `source` of `file` the guest's memory from `address`.
///
/// Whole pages are mapped privately, so that nothing is copied, pages the guest never touches are never read, and
/// machines with the same kernel share its pages; what the guest writes is its own. The bytes before the first and
/// after the last whole page are copied. Where the file and the address are not aligned alike, all are copied.
///
/// The caller has checked that the file has these bytes. A file that is cut short later takes the guest's pages away:
/// kernels and initial file systems are replaced, not rewritten.
///
/// # Errors
/// When the guest has no such memory, the file cannot be read, or the host refuses the mapping.
pub fn place(
    memory: &GuestMemoryMmap,
    file: &File,
    source: Range<u64>,
    address: u64,
) -> Result<(), PlaceError> {
    let pages = match source.start.checked_next_multiple_of(PAGE_BYTES) {
        Some(start) if source.start % PAGE_BYTES == address % PAGE_BYTES => {
            start..page_down(source.end).max(start)
        }
        _ => source.end..source.end,
    };
    if pages.is_empty() {
        return copy(memory, file, source, address);
    }
    let address_of = |offset: u64| address + (offset - source.start);
    copy(memory, file, source.start..pages.start, address)?;
    map_pages(memory, file, pages.clone(), address_of(pages.start))?;
    copy(memory, file, pages.end..source.end, address_of(pages.end))
}

/// Makes the whole pages `source` of `file` the guest's memory from `address`, of which the pages around keep what they
/// have. What the guest writes is its own.
pub(crate) fn map_pages(
    memory: &GuestMemoryMmap,
    file: &File,
    source: Range<u64>,
    address: u64,
) -> Result<(), PlaceError> {
    let bytes = (source.end - source.start) as usize;
    let slice = memory
        .get_slice(GuestAddress(address), bytes)
        .map_err(|source| PlaceError::Write { address, source })?;
    // SAFETY: The slice lies inside one mapping that `memory` owns, and begins and ends at a page of it: replacing
    // these pages changes what the guest reads, not which addresses are valid, and the mapping's owner unmaps them
    // with its own. No reference to guest memory exists; all access to it is volatile.
    unsafe {
        rustix::mm::mmap(
            slice.ptr_guard_mut().as_ptr().cast(),
            bytes,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE,
            file.as_fd(),
            source.start,
        )
    }
    .map(drop)
    .map_err(|source| PlaceError::Map {
        bytes,
        address,
        source: source.into(),
    })
}

fn copy(memory: &GuestMemoryMmap, file: &File, source: Range<u64>, address: u64) -> Result<(), PlaceError> {
    let mut buffer = [0; COPY_BYTES];
    let mut offset = source.start;
    while offset < source.end {
        let length = (source.end - offset).min(COPY_BYTES as u64) as usize;
        let (chunk, _) = buffer.split_at_mut(length);
        file.read_exact_at(chunk, offset)
            .map_err(|source| PlaceError::Read {
                bytes: length,
                offset,
                source,
            })?;
        let address = address + (offset - source.start);
        memory
            .write_slice(chunk, GuestAddress(address))
            .map_err(|source| PlaceError::Write { address, source })?;
        offset += length as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::memory::reserve;

    const BASE: u64 = 0x10_0000;

    fn numbered_file(bytes: usize) -> (File, Vec<u8>) {
        let contents: Vec<u8> = (0..bytes).map(|index| (index * 7 / 5) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&contents).unwrap();
        (file, contents)
    }

    fn placed(memory: &GuestMemoryMmap, address: u64, bytes: usize) -> Vec<u8> {
        let mut read = vec![0; bytes];
        memory.read_slice(&mut read, GuestAddress(address)).unwrap();
        read
    }

    #[test]
    fn an_aligned_file_is_placed_whole_and_the_page_after_it_stays_zero() {
        let memory = reserve(2 << 20).unwrap();
        let (file, contents) = numbered_file(3 * 4096 + 100);
        place(&memory, &file, 0..contents.len() as u64, BASE).unwrap();
        assert_eq!(placed(&memory, BASE, contents.len()), contents);
        assert_eq!(placed(&memory, BASE + contents.len() as u64, 3996), vec![0; 3996]);
    }

    #[test]
    fn what_follows_the_range_in_the_file_is_not_placed() {
        let memory = reserve(2 << 20).unwrap();
        let (file, contents) = numbered_file(4 * 4096);
        place(&memory, &file, 100..8292, BASE + 100).unwrap();
        assert_eq!(placed(&memory, BASE + 100, 8192), contents[100..8292]);
        assert_eq!(placed(&memory, BASE + 8292, 100), vec![0; 100]);
        assert_eq!(placed(&memory, BASE, 100), vec![0; 100]);
    }

    #[test]
    fn a_file_that_is_not_aligned_like_its_address_is_copied() {
        let memory = reserve(2 << 20).unwrap();
        let (file, contents) = numbered_file(3 * 4096);
        place(&memory, &file, 1..12288, BASE).unwrap();
        assert_eq!(placed(&memory, BASE, 12287), contents[1..]);
    }

    #[test]
    fn a_write_by_the_guest_does_not_reach_the_file() {
        let memory = reserve(2 << 20).unwrap();
        let (file, contents) = numbered_file(4096);
        place(&memory, &file, 0..4096, BASE).unwrap();
        memory.write_slice(b"written", GuestAddress(BASE)).unwrap();
        let mut read = vec![0; 4096];
        file.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(read, contents);
    }

    #[test]
    fn an_address_outside_the_guest_is_refused_by_its_number() {
        let memory = reserve(2 << 20).unwrap();
        let (file, _) = numbered_file(4096);
        let error = place(&memory, &file, 0..4096, 0x40_0000).unwrap_err();
        assert_eq!(error.to_string(), "writing to guest address 0x400000");
    }
}
