//! The guest's initial file system, an uncompressed cpio archive at the end of the RAM below the hole.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use vm_memory::GuestMemoryMmap;

use crate::memory::file::{PlaceError, place};
use crate::memory::layout;

/// The first bytes of a cpio archive in the "newc" format, without and with checksums
/// (Linux's Documentation/driver-api/early-userspace/buffer-format.rst).
const MAGICS: [&[u8; 6]; 2] = [b"070701", b"070702"];

/// What the guest's kernel needs beside its image and the initial file system to come as far as running it: page
/// structures, per-CPU areas, slabs, and the unpacked file system once more, which is counted apart.
const WORKING_MEMORY: u64 = 16 << 20;

/// The second page of the archive, where the content of its first file begins if `agent/make-initramfs` made it, is put
/// at a multiple of this: our guest kernel takes such content for the file's without copying it, and in pieces of this
/// size with a sixteenth of the work.
const CONTENT_ALIGNMENT: u64 = 64 << 10;
/// Where in the archive the content of its first file begins.
const CONTENT: u64 = 4 << 10;

/// Why there is no initial file system.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// It could not be read.
    #[error("reading the file")]
    Read(#[source] io::Error),
    /// It is something else.
    #[error(
        "the file is not an uncompressed cpio archive of the newc format (it begins with {beginning:02x?})"
    )]
    NotCpio {
        /// Its first bytes.
        beginning: Vec<u8>,
    },
    /// It is not in guest memory.
    #[error("loading it")]
    Load(#[source] PlaceError),
}

/// The guest has too little memory to boot.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{memory} MiB of memory are too few: the kernel ends at {kernel} MiB, the initramfs takes {initramfs} MiB packed \
     and as much unpacked, and the kernel works with {working} MiB more; give at least {needed} MiB",
    memory = .memory >> 20,
    kernel = mebibytes(*.kernel_end),
    initramfs = mebibytes(*.initramfs),
    working = WORKING_MEMORY >> 20,
    needed = mebibytes(*.needed),
)]
pub struct TooLittleMemory {
    /// The RAM below the hole in bytes.
    pub memory: u64,
    /// Where the kernel ends.
    pub kernel_end: u64,
    /// The bytes of the initial file system.
    pub initramfs: u64,
    /// The bytes that would do.
    pub needed: u64,
}

fn mebibytes(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// Checks that `file` is an archive and gives its length.
///
/// # Errors
/// When it is not, or cannot be read.
pub fn check(file: &File) -> Result<u64, InitramfsError> {
    let length = file.metadata().map_err(InitramfsError::Read)?.len();
    let mut beginning = vec![0; length.min(6) as usize];
    file.read_exact_at(&mut beginning, 0)
        .map_err(InitramfsError::Read)?;
    if !MAGICS.iter().any(|magic| beginning == *magic) {
        return Err(InitramfsError::NotCpio { beginning });
    }
    Ok(length)
}

/// Where an initial file system of `length` bytes goes in a guest of `memory` bytes whose kernel ends at `kernel_end`.
///
/// # Errors
/// When that guest could not boot.
pub fn locate(memory: u64, kernel_end: u64, length: u64) -> Result<Range<u64>, TooLittleMemory> {
    let below_hole = memory.min(layout::HOLE.start);
    let pages = layout::page_up(length).unwrap_or(u64::MAX);
    let needed = kernel_end
        .saturating_add(pages)
        .saturating_add(pages)
        .saturating_add(CONTENT_ALIGNMENT)
        .saturating_add(WORKING_MEMORY);
    if needed > below_hole {
        return Err(TooLittleMemory {
            memory: below_hole,
            kernel_end,
            initramfs: length,
            needed,
        });
    }
    let content = layout::page_down(below_hole) - pages + CONTENT;
    let start = content - content % CONTENT_ALIGNMENT - CONTENT;
    Ok(start..start + length)
}

/// Makes the archive guest memory at `range`.
///
/// # Errors
/// When it cannot be mapped.
pub fn load(file: &File, memory: &GuestMemoryMmap, range: &Range<u64>) -> Result<(), InitramfsError> {
    place(memory, file, 0..range.end - range.start, range.start).map_err(InitramfsError::Load)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn check_bytes(bytes: &[u8]) -> Result<u64, InitramfsError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        check(&file)
    }

    #[test]
    fn a_newc_archive_is_accepted_with_its_length() {
        assert_eq!(check_bytes(b"070701 and more").unwrap(), 15);
    }

    #[test]
    fn a_gzip_file_is_refused_with_its_first_bytes() {
        let error = check_bytes(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0])
            .unwrap_err()
            .to_string();
        assert!(error.contains("it begins with [1f, 8b, 08"), "{error}");
    }

    #[test]
    fn an_empty_file_is_refused() {
        assert!(matches!(check_bytes(b""), Err(InitramfsError::NotCpio { .. })));
    }

    #[test]
    fn the_archive_is_at_the_end_of_memory_with_its_second_page_aligned() {
        let range = locate(128 * MIB, 24 * MIB, 5000).unwrap();
        assert_eq!(range.end - range.start, 5000);
        assert_eq!((range.start + CONTENT) % CONTENT_ALIGNMENT, 0);
        assert!(range.end <= 128 * MIB, "{range:x?}");
        assert!(range.end + CONTENT_ALIGNMENT + 4096 > 128 * MIB, "{range:x?}");
    }

    #[test]
    fn the_archive_stays_below_the_hole_of_a_large_guest() {
        let range = locate(8192 * MIB, 24 * MIB, 4096).unwrap();
        assert_eq!(range, layout::HOLE.start - 4096..layout::HOLE.start);
        let range = locate(8192 * MIB, 24 * MIB, 4097).unwrap();
        assert!(range.end < layout::HOLE.start, "{range:x?}");
    }

    #[test]
    fn too_little_memory_is_refused_with_the_arithmetic() {
        let error = locate(32 * MIB, 24 * MIB, 3 * MIB).unwrap_err().to_string();
        assert_eq!(
            error,
            "32 MiB of memory are too few: the kernel ends at 24 MiB, the initramfs takes 3 MiB packed and as much \
             unpacked, and the kernel works with 16 MiB more; give at least 47 MiB"
        );
    }

    #[test]
    fn the_amount_the_refusal_names_is_enough() {
        locate(47 * MIB, 24 * MIB, 3 * MIB).unwrap();
    }
}
