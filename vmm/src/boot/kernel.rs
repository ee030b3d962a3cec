//! The guest's kernel: an ELF executable whose segments become guest memory.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use vm_memory::GuestMemoryMmap;

use crate::memory::file::{PlaceError, place};
use crate::memory::layout;

/// The size of the ELF header (System V ABI, "ELF Header", 64-bit class).
const HEADER_BYTES: usize = 64;
/// The size of a program header.
const PROGRAM_HEADER_BYTES: usize = 56;
/// More program headers than any kernel has.
const MAX_PROGRAM_HEADERS: u16 = 64;
/// Identification: the magic, 64-bit class, little endian, version 1.
const IDENTIFICATION: [u8; 7] = [0x7f, b'E', b'L', b'F', 2, 1, 1];
/// `EM_X86_64`.
const MACHINE_X86_64: u16 = 62;
/// `PT_LOAD`.
const SEGMENT_LOAD: u32 = 1;

/// Why a file is not a kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It could not be read.
    #[error("reading the file")]
    Read(#[source] io::Error),
    /// It ends before what its headers announce.
    #[error("the file is cut short: {what} ends at byte {needed}, the file at {length}")]
    CutShort {
        /// The missing part.
        what: &'static str,
        /// Where that part ends.
        needed: u64,
        /// Where the file ends.
        length: u64,
    },
    /// It is something else.
    #[error(
        "the file is not a 64-bit little-endian ELF file (it begins with {beginning:02x?}); an uncompressed vmlinux is needed, not a bzImage"
    )]
    NotElf {
        /// Its first bytes.
        beginning: [u8; 8],
    },
    /// It is for another processor.
    #[error("the file is for ELF machine {machine}, not for x86-64 (62)")]
    Machine {
        /// The machine's number.
        machine: u16,
    },
    /// Its headers contradict themselves.
    #[error("the file's ELF headers are damaged: {0}")]
    Headers(&'static str),
    /// A segment is to be loaded where the boot structures are.
    #[error(
        "a segment is to be loaded at {address:#x}, below the first usable address {:#x}",
        layout::HIGH_MEMORY
    )]
    TooLow {
        /// The segment's address.
        address: u64,
    },
    /// The segment is not in guest memory.
    #[error("loading the segment at {address:#x}")]
    Load {
        /// The segment's address.
        address: u64,
        /// The cause.
        #[source]
        source: PlaceError,
    },
}

/// A kernel's entry point and segments, checked against its file.
#[derive(Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The guest address of the first instruction.
    pub entry: u64,
    /// The end of the highest segment.
    pub end: u64,
    segments: Vec<Segment>,
}

#[derive(Debug, PartialEq, Eq)]
struct Segment {
    /// Where in the file it is.
    source: Range<u64>,
    /// Where in the guest it goes. What is longer than the file's part is zero, as fresh guest memory is.
    memory: Range<u64>,
}

impl Kernel {
    /// Reads the headers of `file` and checks that all they announce is there.
    ///
    /// # Errors
    /// When the file is no kernel, or not all of one.
    pub fn read(file: &File) -> Result<Self, KernelError> {
        let length = file.metadata().map_err(KernelError::Read)?.len();
        let header: [u8; HEADER_BYTES] = read_array(file, 0, length, "the ELF header")?;
        let mut beginning = [0; 8];
        beginning.copy_from_slice(&header[..8]);
        if !beginning.starts_with(&IDENTIFICATION) {
            return Err(KernelError::NotElf { beginning });
        }
        let machine = u16_at(&header, 18);
        if machine != MACHINE_X86_64 {
            return Err(KernelError::Machine { machine });
        }
        let entry = u64_at(&header, 24);
        let segments = read_segments(file, length, &header)?;
        if !segments.iter().any(|segment| segment.memory.contains(&entry)) {
            return Err(KernelError::Headers("the entry point is in no segment"));
        }
        let end = segments
            .iter()
            .map(|segment| segment.memory.end)
            .max()
            .unwrap_or(entry);
        Ok(Self { entry, end, segments })
    }

    /// Makes the segments guest memory. `file` is the one that was read.
    ///
    /// # Errors
    /// When the guest has no such memory, or the file cannot be mapped.
    pub fn load(&self, file: &File, memory: &GuestMemoryMmap) -> Result<(), KernelError> {
        for segment in &self.segments {
            let address = segment.memory.start;
            place(memory, file, segment.source.clone(), address)
                .map_err(|source| KernelError::Load { address, source })?;
        }
        Ok(())
    }
}

fn read_segments(file: &File, length: u64, header: &[u8; HEADER_BYTES]) -> Result<Vec<Segment>, KernelError> {
    let (table, entry_bytes, count) = (u64_at(header, 32), u16_at(header, 54), u16_at(header, 56));
    if usize::from(entry_bytes) != PROGRAM_HEADER_BYTES || count > MAX_PROGRAM_HEADERS {
        return Err(KernelError::Headers(
            "impossible number or size of program headers",
        ));
    }
    let mut segments: Vec<Segment> = Vec::new();
    for index in 0..u64::from(count) {
        let offset = table
            .checked_add(index * PROGRAM_HEADER_BYTES as u64)
            .ok_or(KernelError::Headers(
                "the program headers end beyond the address space",
            ))?;
        let program_header: [u8; PROGRAM_HEADER_BYTES] =
            read_array(file, offset, length, "a program header")?;
        let Some(segment) = parse_segment(&program_header, length)? else {
            continue;
        };
        if segments
            .iter()
            .any(|other| overlap(&other.memory, &segment.memory))
        {
            return Err(KernelError::Headers("two segments overlap"));
        }
        segments.push(segment);
    }
    Ok(segments)
}

fn parse_segment(header: &[u8; PROGRAM_HEADER_BYTES], length: u64) -> Result<Option<Segment>, KernelError> {
    let (offset, address) = (u64_at(header, 8), u64_at(header, 24));
    let (file_bytes, memory_bytes) = (u64_at(header, 32), u64_at(header, 40));
    if u32_at(header, 0) != SEGMENT_LOAD || memory_bytes == 0 {
        return Ok(None);
    }
    if file_bytes > memory_bytes {
        return Err(KernelError::Headers(
            "a segment is longer in the file than in memory",
        ));
    }
    let beyond = KernelError::Headers("a segment ends beyond the address space");
    let (Some(file_end), Some(memory_end)) =
        (offset.checked_add(file_bytes), address.checked_add(memory_bytes))
    else {
        return Err(beyond);
    };
    if file_end > length {
        return Err(KernelError::CutShort {
            what: "a segment",
            needed: file_end,
            length,
        });
    }
    if address < layout::HIGH_MEMORY {
        return Err(KernelError::TooLow { address });
    }
    Ok(Some(Segment {
        source: offset..file_end,
        memory: address..memory_end,
    }))
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

fn read_array<const N: usize>(
    file: &File,
    offset: u64,
    length: u64,
    what: &'static str,
) -> Result<[u8; N], KernelError> {
    let needed = offset.saturating_add(N as u64);
    if needed > length {
        return Err(KernelError::CutShort { what, needed, length });
    }
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, offset)
        .map_err(KernelError::Read)?;
    Ok(bytes)
}

/// The little-endian number at `offset`. Every caller's offset is a constant inside the header it reads.
fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from(u16_at(bytes, offset)) | u32::from(u16_at(bytes, offset + 2)) << 16
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from(u32_at(bytes, offset)) | u64::from(u32_at(bytes, offset + 4)) << 32
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A file with one program header that loads `code` at 2 MiB, where it is entered.
    fn elf(code: &[u8]) -> Vec<u8> {
        let mut file = vec![0; HEADER_BYTES + PROGRAM_HEADER_BYTES];
        file[..7].copy_from_slice(&IDENTIFICATION);
        file[18..20].copy_from_slice(&MACHINE_X86_64.to_le_bytes());
        file[24..32].copy_from_slice(&0x20_0000_u64.to_le_bytes());
        file[32..40].copy_from_slice(&(HEADER_BYTES as u64).to_le_bytes());
        file[54..56].copy_from_slice(&(PROGRAM_HEADER_BYTES as u16).to_le_bytes());
        file[56..58].copy_from_slice(&1_u16.to_le_bytes());
        let header = &mut file[HEADER_BYTES..];
        header[0..4].copy_from_slice(&SEGMENT_LOAD.to_le_bytes());
        header[8..16].copy_from_slice(&120_u64.to_le_bytes());
        header[24..32].copy_from_slice(&0x20_0000_u64.to_le_bytes());
        header[32..40].copy_from_slice(&(code.len() as u64).to_le_bytes());
        header[40..48].copy_from_slice(&0x1000_u64.to_le_bytes());
        file.extend_from_slice(code);
        file
    }

    fn read(bytes: &[u8]) -> Result<Kernel, KernelError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Kernel::read(&file)
    }

    fn refusal(bytes: &[u8]) -> String {
        read(bytes).unwrap_err().to_string()
    }

    #[test]
    fn a_segment_ends_where_its_memory_ends_not_its_bytes() {
        let kernel = read(&elf(b"code")).unwrap();
        assert_eq!(kernel.entry, 0x20_0000);
        assert_eq!(kernel.end, 0x20_1000);
        assert_eq!(
            kernel.segments,
            vec![Segment {
                source: 120..124,
                memory: 0x20_0000..0x20_1000
            }]
        );
    }

    #[test]
    fn a_text_file_is_refused_with_its_first_bytes() {
        let error = refusal("#!/bin/sh\n".repeat(20).as_bytes());
        assert!(
            error.contains("not a 64-bit little-endian ELF file (it begins with [23, 21"),
            "{error}"
        );
    }

    #[test]
    fn an_empty_file_is_cut_short() {
        assert_eq!(
            refusal(b""),
            "the file is cut short: the ELF header ends at byte 64, the file at 0"
        );
    }

    #[test]
    fn a_file_without_its_last_byte_is_cut_short() {
        let mut file = elf(b"code");
        file.pop();
        assert_eq!(
            refusal(&file),
            "the file is cut short: a segment ends at byte 124, the file at 123"
        );
    }

    #[test]
    fn another_processors_kernel_is_refused() {
        let mut file = elf(b"code");
        file[18] = 183;
        assert_eq!(
            refusal(&file),
            "the file is for ELF machine 183, not for x86-64 (62)"
        );
    }

    #[test]
    fn a_segment_below_1_mib_is_refused() {
        let mut file = elf(b"code");
        file[HEADER_BYTES + 24..HEADER_BYTES + 32].copy_from_slice(&0x7000_u64.to_le_bytes());
        assert!(refusal(&file).starts_with("a segment is to be loaded at 0x7000, below"));
    }

    #[test]
    fn a_segment_that_wraps_around_is_refused() {
        let mut file = elf(b"code");
        file[HEADER_BYTES + 24..HEADER_BYTES + 32].copy_from_slice(&(u64::MAX - 8).to_le_bytes());
        assert!(refusal(&file).ends_with("a segment ends beyond the address space"));
    }

    #[test]
    fn an_entry_point_outside_the_segments_is_refused() {
        let mut file = elf(b"code");
        file[24..32].copy_from_slice(&0x20_1000_u64.to_le_bytes());
        assert!(refusal(&file).ends_with("the entry point is in no segment"));
    }
}
