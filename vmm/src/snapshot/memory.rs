//! The `memory` file: the guest's RAM, one range after the other, with a hole where a page is zero.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use vm_memory::{
    Bytes, GuestMemory, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress,
};

use super::raw::Raw;
use crate::memory::file::{PlaceError, map_pages};
use crate::memory::{MemoryError, layout, reserve};

const PAGE: usize = layout::PAGE_BYTES as usize;
/// How much is looked at at a time.
const CHUNK: usize = 1 << 20;
/// A hole that is not worth two mappings, in bytes.
const SHORT_HOLE: u64 = 64 << 10;
static ZEROS: [u8; PAGE] = [0; PAGE];

/// What a memory file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryDigest {
    /// Its size in bytes.
    pub bytes: u64,
    /// The pages that are not zero.
    pub pages: u64,
    /// SHA-256 over each of them in order: its number, as 8 little-endian bytes, and its contents.
    pub sha256: Raw<[u8; 32]>,
}

/// Why guest memory cannot be written to a file, or read from one.
#[derive(Debug, thiserror::Error)]
pub enum MemoryFileError {
    /// The file is not there, or the host does not read or write it.
    #[error("{0} the memory file")]
    File(&'static str, #[source] io::Error),
    /// The guest's memory cannot be read.
    #[error("reading the guest's memory")]
    Guest(#[source] GuestMemoryError),
    /// The file is not as large as the machine's memory.
    #[error("the memory file has {bytes} bytes where it should have {expected}")]
    Size {
        /// Its size.
        bytes: u64,
        /// The size of the memory.
        expected: u64,
    },
    /// The file was changed.
    #[error("the memory file is damaged: its checksum is wrong")]
    Checksum,
    /// The host gives no memory for it.
    #[error(transparent)]
    Reserve(MemoryError),
    /// The host does not map it.
    #[error("mapping the memory file")]
    Map(#[source] PlaceError),
}

/// Sums up pages as they come.
#[derive(Default)]
struct Summary {
    hash: Sha256,
    pages: u64,
}

impl Summary {
    fn add(&mut self, number: u64, page: &[u8]) {
        self.pages += 1;
        self.hash.update(number.to_le_bytes());
        self.hash.update(page);
    }

    fn of(self, bytes: u64) -> MemoryDigest {
        MemoryDigest {
            bytes,
            pages: self.pages,
            sha256: Raw(self.hash.finalize().into()),
        }
    }
}

/// Writes `memory`, which nobody changes meanwhile, to `file`, which is empty.
///
/// # Errors
/// When the file cannot be written.
pub fn write(memory: &GuestMemoryMmap, file: &File) -> Result<MemoryDigest, MemoryFileError> {
    let bytes: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
    file.set_len(bytes)
        .map_err(|error| MemoryFileError::File("sizing", error))?;
    let mut summary = Summary::default();
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    for region in memory.iter() {
        let mut address = 0;
        while address < region.len() {
            let length = (region.len() - address).min(CHUNK as u64);
            let (chunk, _) = buffer.split_at_mut(length as usize);
            region
                .read_slice(chunk, MemoryRegionAddress(address))
                .map_err(MemoryFileError::Guest)?;
            write_chunk(chunk, offset + address, file, &mut summary)?;
            address += length;
        }
        offset += region.len();
    }
    file.sync_data()
        .map_err(|error| MemoryFileError::File("flushing", error))?;
    Ok(summary.of(bytes))
}

/// Writes the pages of `chunk` that are not zero, neighbours together.
fn write_chunk(chunk: &[u8], offset: u64, file: &File, summary: &mut Summary) -> Result<(), MemoryFileError> {
    let pages: Vec<&[u8]> = chunk.chunks(PAGE).collect();
    let mut number = offset / layout::PAGE_BYTES;
    let mut start = 0;
    for run in pages.chunk_by(|page, next| is_zero(page) == is_zero(next)) {
        let end = start + run.len() * PAGE;
        let first = number;
        number += run.len() as u64;
        let bytes = chunk.get(start..end).unwrap_or_default();
        start = end;
        if run.first().is_none_or(|page| is_zero(page)) {
            continue;
        }
        for (number, page) in (first..).zip(run) {
            summary.add(number, page);
        }
        file.write_all_at(bytes, first * layout::PAGE_BYTES)
            .map_err(|error| MemoryFileError::File("writing", error))?;
    }
    Ok(())
}

fn is_zero(page: &[u8]) -> bool {
    page == ZEROS
}

/// Checks that `file` has `expected` bytes.
///
/// # Errors
/// When it has not.
pub fn check_size(file: &File, expected: u64) -> Result<(), MemoryFileError> {
    let bytes = file
        .metadata()
        .map_err(|error| MemoryFileError::File("looking at", error))?
        .len();
    if bytes != expected {
        return Err(MemoryFileError::Size { bytes, expected });
    }
    Ok(())
}

/// Checks that `file` holds what `digest` says. It reads all pages that are there.
///
/// # Errors
/// When it does not, or cannot be read.
pub fn verify(file: &File, digest: &MemoryDigest) -> Result<(), MemoryFileError> {
    check_size(file, digest.bytes)?;
    let mut summary = Summary::default();
    let mut buffer = vec![0; CHUNK];
    let mut position = 0;
    while let Some(data) = next_data(file, position)? {
        // File systems keep data in blocks of their own size.
        let start = layout::page_down(data).max(position);
        let length = (digest.bytes.saturating_sub(start)).min(CHUNK as u64);
        if length == 0 {
            break;
        }
        let (chunk, _) = buffer.split_at_mut(length as usize);
        file.read_exact_at(chunk, start)
            .map_err(|error| MemoryFileError::File("reading", error))?;
        for (number, page) in (start / layout::PAGE_BYTES..).zip(chunk.chunks(PAGE)) {
            if !is_zero(page) {
                summary.add(number, page);
            }
        }
        position = start + length;
    }
    if summary.of(digest.bytes) != *digest {
        return Err(MemoryFileError::Checksum);
    }
    Ok(())
}

/// Where the file's next data is, from `position` on.
fn next_data(file: &File, position: u64) -> Result<Option<u64>, MemoryFileError> {
    match seek(file, SeekFrom::Data(position)) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(MemoryFileError::File("looking for data in", error.into())),
    }
}

/// A guest's memory of `bytes`, which is what `file` holds until the guest writes to it. Nothing is read before it is
/// needed, and what is written stays in this process.
///
/// Where the file has holes the memory is nobody's: mapped from the file, a first write there would have the file's
/// system keep a page of zeros, which on a tmpfs is memory that stays, of one that may be full.
///
/// A file that is cut short later takes the guest's pages away: snapshots are replaced, not rewritten.
///
/// # Errors
/// When the file has another size, or the host refuses the mapping.
pub fn map(file: &File, bytes: u64) -> Result<GuestMemoryMmap, MemoryFileError> {
    check_size(file, bytes)?;
    let memory = reserve(bytes).map_err(MemoryFileError::Reserve)?;
    let mut offset = 0;
    for range in layout::ram(bytes) {
        let length = range.end - range.start;
        for data in stretches_of_data(file, offset..offset + length)? {
            let address = range.start + (data.start - offset);
            map_pages(&memory, file, data, address).map_err(MemoryFileError::Map)?;
        }
        offset += length;
    }
    Ok(memory)
}

/// The parts of `range` in which the file has data, in whole pages. Holes shorter than [`SHORT_HOLE`] belong to the data
/// around them: each part takes the host a mapping, of which a process may have some 65,000.
fn stretches_of_data(file: &File, range: Range<u64>) -> Result<Vec<Range<u64>>, MemoryFileError> {
    let mut stretches: Vec<Range<u64>> = Vec::new();
    let mut position = range.start;
    while let Some(data) = next_data(file, position)?.filter(|data| *data < range.end) {
        let hole = seek(file, SeekFrom::Hole(data))
            .map_err(|error| MemoryFileError::File("looking for holes in", error.into()))?;
        // File systems keep data in blocks of their own size.
        let start = layout::page_down(data).max(range.start);
        let end = hole.next_multiple_of(layout::PAGE_BYTES).min(range.end);
        match stretches.last_mut() {
            Some(last) if start - last.end < SHORT_HOLE => last.end = end,
            _ => stretches.push(start..end),
        }
        position = end;
    }
    Ok(stretches)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use rustix::fs::{MemfdFlags, memfd_create};
    use vm_memory::GuestAddress;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn written(memory: &GuestMemoryMmap) -> (File, MemoryDigest) {
        let file = tempfile::tempfile().unwrap();
        let digest = write(memory, &file).unwrap();
        (file, digest)
    }

    /// 8 MiB with four pages that are not zero: the first, two neighbours across a chunk's end, and the last.
    fn guest() -> GuestMemoryMmap {
        let memory = crate::memory::reserve(8 * MIB).unwrap();
        for address in [0, MIB - 1, MIB, 8 * MIB - 8] {
            memory.write_slice(b"!", GuestAddress(address)).unwrap();
        }
        memory
    }

    fn contents(memory: &GuestMemoryMmap) -> Vec<u8> {
        let mut bytes = vec![0; 8 * MIB as usize];
        memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }

    #[test]
    fn only_pages_that_are_not_zero_are_written() {
        let (file, digest) = written(&guest());
        assert_eq!((digest.bytes, digest.pages), (8 * MIB, 4));
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), 8 * MIB);
        assert!(metadata.blocks() * 512 < MIB, "{} blocks", metadata.blocks());
        verify(&file, &digest).unwrap();
    }

    #[test]
    fn a_mapped_file_is_the_memory_that_was_written() {
        let memory = guest();
        let (file, _) = written(&memory);
        assert!(contents(&map(&file, 8 * MIB).unwrap()) == contents(&memory));
    }

    #[test]
    fn what_one_machine_writes_neither_another_nor_the_file_sees() {
        let (file, digest) = written(&guest());
        let (first, second) = (map(&file, 8 * MIB).unwrap(), map(&file, 8 * MIB).unwrap());
        first.write_slice(b"mine", GuestAddress(MIB)).unwrap();
        assert!(contents(&second) == contents(&guest()));
        verify(&file, &digest).unwrap();
    }

    /// A file of the kernel's own tmpfs.
    #[test]
    fn a_write_to_what_was_zero_takes_nothing_of_the_files_system() {
        let file = File::from(memfd_create("memory", MemfdFlags::CLOEXEC).unwrap());
        write(&guest(), &file).unwrap();
        let blocks = file.metadata().unwrap().blocks();
        let memory = map(&file, 8 * MIB).unwrap();
        for address in (2 * MIB..7 * MIB).step_by(PAGE) {
            memory.write_slice(b"new", GuestAddress(address)).unwrap();
        }
        assert_eq!(file.metadata().unwrap().blocks(), blocks);
    }

    #[test]
    fn data_is_mapped_in_stretches_and_short_holes_with_it() {
        const FIRST: u64 = MIB;
        const PAGE: u64 = layout::PAGE_BYTES;
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 * MIB).unwrap();
        for page in [FIRST, FIRST + SHORT_HOLE, FIRST + PAGE + 2 * SHORT_HOLE + PAGE] {
            file.write_all_at(b"!", page).unwrap();
        }
        let third = FIRST + 2 * PAGE + 2 * SHORT_HOLE;
        assert_eq!(
            stretches_of_data(&file, 0..8 * MIB).unwrap(),
            [FIRST..FIRST + SHORT_HOLE + PAGE, third..third + PAGE]
        );
        // What lies outside of the range is not told.
        let [inside] = stretches_of_data(&file, FIRST + SHORT_HOLE..third)
            .unwrap()
            .try_into()
            .unwrap();
        assert_eq!(inside, FIRST + SHORT_HOLE..FIRST + SHORT_HOLE + PAGE);
        assert!(stretches_of_data(&file, 4 * MIB..8 * MIB).unwrap().is_empty());
    }

    #[test]
    fn memory_in_two_ranges_is_written_as_one_file() {
        let ranges = [(GuestAddress(0), 2 * PAGE), (GuestAddress(1 << 32), 3 * PAGE)];
        let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        memory.write_slice(b"low", GuestAddress(PAGE as u64)).unwrap();
        memory
            .write_slice(b"high", GuestAddress((1 << 32) + PAGE as u64))
            .unwrap();
        let (file, digest) = written(&memory);
        assert_eq!((digest.bytes, digest.pages), (5 * PAGE as u64, 2));
        let at = |page: usize, length: usize| {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, (page * PAGE) as u64).unwrap();
            bytes
        };
        assert_eq!((at(1, 3), at(3, 4)), (b"low".to_vec(), b"high".to_vec()));
        verify(&file, &digest).unwrap();
    }

    #[test]
    fn memory_of_zeros_has_no_pages() {
        let (file, digest) = written(&crate::memory::reserve(2 * MIB).unwrap());
        assert_eq!(digest.pages, 0);
        verify(&file, &digest).unwrap();
    }

    #[test]
    fn a_file_of_another_size_is_neither_mapped_nor_verified() {
        let (file, digest) = written(&guest());
        for bytes in [0, 8 * MIB - 1, 8 * MIB - PAGE as u64, 8 * MIB + 1] {
            file.set_len(bytes).unwrap();
            let message = format!("the memory file has {bytes} bytes where it should have 8388608");
            assert_eq!(map(&file, 8 * MIB).unwrap_err().to_string(), message);
            assert_eq!(verify(&file, &digest).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn a_changed_byte_a_lost_page_and_a_new_page_are_found() {
        let changes: [&dyn Fn(&File); 4] = [
            &|file| file.write_all_at(b"?", MIB).unwrap(),
            &|file| file.write_all_at(&[0; PAGE], 0).unwrap(),
            &|file| file.write_all_at(b"x", 5 * MIB).unwrap(),
            // The same page elsewhere.
            &|file| {
                file.write_all_at(&[0; PAGE], 0).unwrap();
                file.write_all_at(b"!", PAGE as u64).unwrap();
            },
        ];
        for change in changes {
            let (file, digest) = written(&guest());
            change(&file);
            assert!(matches!(verify(&file, &digest), Err(MemoryFileError::Checksum)));
        }
    }

    #[test]
    fn zeros_that_are_written_out_are_as_good_as_holes() {
        let (file, digest) = written(&guest());
        file.write_all_at(&[0; 3 * PAGE], 4 * MIB).unwrap();
        verify(&file, &digest).unwrap();
    }
}
