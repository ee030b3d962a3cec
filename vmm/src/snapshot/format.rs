//! The frame of the `state` file: what is between it and the disk's or a stranger's bytes.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `BHSNAPST` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | length of the first document |
//! | 16 | 8 | length of both |
//! | 24 | 32 | SHA-256 of the first 24 bytes and both documents |
//! | 56 | | two JSON documents: what the snapshot depends on, and the machine's state |
//!
//! Numbers are little-endian. The documents are apart because the first one can be read by every build of this
//! version, the second one only by the build that wrote it.

use std::fs::File;
use std::io::{self, Read};

use sha2::{Digest, Sha256};

const MAGIC: [u8; 8] = *b"BHSNAPST";
/// The version that is written, and the only one that is read.
pub const VERSION: u32 = 1;
const VERSION_AT: usize = 8;
const FIRST_LENGTH_AT: usize = 12;
const LENGTH_AT: usize = 16;
const CHECKSUM_AT: usize = 24;
const HEADER_BYTES: usize = 56;
/// No state is larger. The greatest machine's is a megabyte.
const MAX_BYTES: u64 = 16 << 20;

/// Why bytes are not a state.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The file cannot be read.
    #[error("reading it")]
    Read(#[source] io::Error),
    /// It is too large.
    #[error("it has {bytes} bytes, more than any snapshot's state")]
    TooLong {
        /// Its size.
        bytes: u64,
    },
    /// It is something else.
    #[error("it is no snapshot's state")]
    Magic,
    /// It was written by a program with another format.
    #[error("it has format version {version}, and this program reads version {VERSION}")]
    Version {
        /// Its version.
        version: u32,
    },
    /// Bytes are missing or too many.
    #[error("it has {bytes} bytes where it should have {expected}")]
    Length {
        /// Its size.
        bytes: u64,
        /// What its header says.
        expected: u64,
    },
    /// It was damaged.
    #[error("it is damaged: its checksum is wrong")]
    Checksum,
}

/// The two documents of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Documents<'a> {
    /// What the snapshot depends on.
    pub description: &'a [u8],
    /// The machine's state.
    pub machine: &'a [u8],
}

/// The file that holds `documents`, which have less than 4 GiB.
pub fn encode(documents: Documents<'_>) -> Vec<u8> {
    let Documents { description, machine } = documents;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + description.len() + machine.len());
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((description.len() as u32).to_le_bytes());
    bytes.extend(((description.len() + machine.len()) as u64).to_le_bytes());
    let checksum = checksum(&bytes, [description, machine].concat().as_slice());
    bytes.extend(checksum);
    bytes.extend(description);
    bytes.extend(machine);
    bytes
}

/// Reads all of `file`, unless it is larger than any state.
///
/// # Errors
/// When it is, or cannot be read.
pub fn read(file: &File) -> Result<Vec<u8>, FormatError> {
    let length = file.metadata().map_err(FormatError::Read)?.len();
    if length > MAX_BYTES {
        return Err(FormatError::TooLong { bytes: length });
    }
    let mut bytes = Vec::with_capacity(length as usize + 1);
    // It may grow meanwhile.
    file.take(MAX_BYTES)
        .read_to_end(&mut bytes)
        .map_err(FormatError::Read)?;
    Ok(bytes)
}

/// The documents in `bytes`.
///
/// # Errors
/// When they are not exactly what [`encode`] makes.
pub fn decode(bytes: &[u8]) -> Result<Documents<'_>, FormatError> {
    if !bytes.starts_with(&MAGIC) {
        return Err(FormatError::Magic);
    }
    let too_short = FormatError::Length {
        bytes: bytes.len() as u64,
        expected: HEADER_BYTES as u64,
    };
    let Some((header, payload)) = bytes.split_at_checked(HEADER_BYTES) else {
        return Err(too_short);
    };
    let (checked, expected) = header.split_at(CHECKSUM_AT);
    let version = u32::from_le_bytes(field(checked, VERSION_AT));
    if version != VERSION {
        return Err(FormatError::Version { version });
    }
    let length = u64::from_le_bytes(field(checked, LENGTH_AT));
    if length != payload.len() as u64 {
        return Err(FormatError::Length {
            bytes: bytes.len() as u64,
            expected: length.saturating_add(HEADER_BYTES as u64),
        });
    }
    if checksum(checked, payload) != expected {
        return Err(FormatError::Checksum);
    }
    let first = u32::from_le_bytes(field(checked, FIRST_LENGTH_AT)) as usize;
    let (description, machine) = payload.split_at_checked(first).ok_or(FormatError::Checksum)?;
    Ok(Documents { description, machine })
}

fn checksum(header: &[u8], payload: &[u8]) -> [u8; 32] {
    Sha256::new_with_prefix(header)
        .chain_update(payload)
        .finalize()
        .into()
}

/// The bytes of the header from `offset`, one of the constants above.
fn field<const N: usize>(header: &[u8], offset: usize) -> [u8; N] {
    let mut field = [0; N];
    for (to, from) in field.iter_mut().zip(header.iter().skip(offset)) {
        *to = *from;
    }
    field
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    const DOCUMENTS: Documents<'static> = Documents {
        description: b"{\"build\":\"of today\"}",
        machine: b"{\"registers\":[1,2,3]}",
    };

    /// With the checksum that fits the rest.
    fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
        let checksum = checksum(&bytes[..CHECKSUM_AT], &bytes[HEADER_BYTES..]);
        bytes[CHECKSUM_AT..HEADER_BYTES].copy_from_slice(&checksum);
        bytes
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(decode(&encode(DOCUMENTS)).unwrap(), DOCUMENTS);
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let whole = encode(DOCUMENTS);
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn every_truncation_and_a_byte_too_many_are_found() {
        let whole = encode(DOCUMENTS);
        for length in 0..whole.len() {
            assert!(decode(&whole[..length]).is_err(), "{length} bytes");
        }
        assert!(matches!(
            decode(&[whole, vec![0]].concat()),
            Err(FormatError::Length { .. })
        ));
    }

    #[test]
    fn a_newer_version_is_named_even_when_all_else_changed() {
        let mut bytes = encode(DOCUMENTS);
        bytes[VERSION_AT] = 2;
        bytes.truncate(HEADER_BYTES);
        let error = decode(&bytes).unwrap_err();
        assert_eq!(
            error.to_string(),
            "it has format version 2, and this program reads version 1"
        );
    }

    #[test]
    fn absurd_lengths_with_a_checksum_that_fits_are_refused() {
        for length in [0, 1, u64::MAX, u64::MAX - 55, 1 << 32] {
            let mut bytes = encode(DOCUMENTS);
            bytes[LENGTH_AT..CHECKSUM_AT].copy_from_slice(&length.to_le_bytes());
            assert!(decode(&with_checksum(bytes)).is_err(), "{length}");
        }
        let mut bytes = encode(DOCUMENTS);
        bytes[FIRST_LENGTH_AT..LENGTH_AT].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(decode(&with_checksum(bytes)).is_err());
    }

    #[test]
    fn a_huge_file_is_refused_without_being_read() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&encode(DOCUMENTS)).unwrap();
        file.set_len(1 << 40).unwrap();
        assert!(matches!(read(&file), Err(FormatError::TooLong { .. })));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes);
            let _ = decode(&[&MAGIC[..], &VERSION.to_le_bytes(), &bytes].concat());
        }
    }
}
