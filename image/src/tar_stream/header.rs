//! The 512-byte block that begins a tar entry.

use std::ops::Range;

pub(super) const BLOCK: usize = 512;

/// What an entry is, from its type flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    /// Type flag NUL, from before POSIX: a file, or a folder if its name ends in a slash.
    OldFile,
    HardLink,
    Symlink,
    CharacterDevice,
    BlockDevice,
    Folder,
    Fifo,
    PaxRecords,
    PaxGlobalRecords,
    GnuLongName,
    GnuLongLink,
    GnuSparse,
    Unknown(u8),
}

/// A header whose checksum matched.
pub(super) struct Header([u8; BLOCK]);

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const TYPE_FLAG: usize = 156;
const LINK: Range<usize> = 157..257;
/// Magic and version: `ustar`, NUL, `00` in POSIX; GNU writes `ustar` and two spaces, and has no prefix field.
const MAGIC: Range<usize> = 257..265;
const MAJOR: Range<usize> = 329..337;
const MINOR: Range<usize> = 337..345;
const PREFIX: Range<usize> = 345..500;

impl Header {
    /// The header in `block`, or `None` if its checksum does not match.
    pub(super) fn parse(block: [u8; BLOCK]) -> Option<Header> {
        let counted = |index: usize, byte: u8| if CHECKSUM.contains(&index) { b' ' } else { byte };
        let bytes = || {
            block
                .iter()
                .enumerate()
                .map(|(index, byte)| counted(index, *byte))
        };
        // POSIX sums unsigned bytes; some early writers summed signed ones, and readers accept both.
        let unsigned: i64 = bytes().map(i64::from).sum();
        let signed: i64 = bytes().map(|byte| i64::from(byte as i8)).sum();
        let header = Header(block);
        let stored = octal(header.field(CHECKSUM))?;
        (stored == unsigned || stored == signed).then_some(header)
    }

    /// The bytes of a field. The ranges above lie within a block, so none is ever missing.
    fn field(&self, range: Range<usize>) -> &[u8] {
        self.0.get(range).unwrap_or_default()
    }

    pub(super) fn kind(&self) -> Kind {
        match self.0[TYPE_FLAG] {
            b'0' | b'7' => Kind::File,
            0 => Kind::OldFile,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharacterDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Folder,
            b'6' => Kind::Fifo,
            b'x' => Kind::PaxRecords,
            b'g' => Kind::PaxGlobalRecords,
            b'L' => Kind::GnuLongName,
            b'K' => Kind::GnuLongLink,
            b'S' => Kind::GnuSparse,
            other => Kind::Unknown(other),
        }
    }

    pub(super) fn name(&self) -> Vec<u8> {
        let name = text(self.field(NAME));
        let prefix = if self.field(MAGIC) == b"ustar\x0000" {
            text(self.field(PREFIX))
        } else {
            b""
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(self.field(LINK)).to_vec()
    }

    pub(super) fn mode(&self) -> Option<u64> {
        unsigned(self.field(MODE))
    }

    pub(super) fn uid(&self) -> Option<u64> {
        unsigned(self.field(UID))
    }

    pub(super) fn gid(&self) -> Option<u64> {
        unsigned(self.field(GID))
    }

    pub(super) fn size(&self) -> Option<u64> {
        unsigned(self.field(SIZE))
    }

    /// Seconds since the epoch.
    pub(super) fn mtime(&self) -> Option<i64> {
        number(self.field(MTIME))
    }

    /// Major and minor device number.
    pub(super) fn device(&self) -> (Option<u64>, Option<u64>) {
        (unsigned(self.field(MAJOR)), unsigned(self.field(MINOR)))
    }
}

fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn unsigned(field: &[u8]) -> Option<u64> {
    number(field).and_then(|value| u64::try_from(value).ok())
}

/// A numeric field: octal digits, or GNU's base 256, a big-endian two's complement number behind a set top bit.
fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 == 0 {
        return octal(field);
    }
    // The marker is bit 7, the sign is bit 6.
    let start = if first & 0x40 == 0 {
        i64::from(first & 0x3f)
    } else {
        i64::from(*first as i8)
    };
    rest.iter().try_fold(start, |value, byte| {
        value.checked_mul(256)?.checked_add(i64::from(*byte))
    })
}

/// Octal digits with spaces or NULs around them; nothing at all is zero.
fn octal(field: &[u8]) -> Option<i64> {
    let padding = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field
        .iter()
        .position(|byte| !padding(byte))
        .unwrap_or(field.len());
    let digits = field.get(start..)?;
    let digits = digits.split(padding).next().unwrap_or_default();
    digits.iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_fields_with_any_padding_are_read() {
        for field in [&b"0000644\0"[..], b"000644 \0", b"   644 \0", b"644"] {
            assert_eq!(number(field), Some(0o644));
        }
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
    }

    #[test]
    fn a_field_that_is_no_number_is_none() {
        for field in [&b"0000648\0"[..], b"-1\0\0\0\0\0\0", b"abc\0", b""] {
            assert_eq!(number(field), None, "{field:?}");
        }
    }

    #[test]
    fn base_256_fields_are_read_positive_and_negative() {
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]), Some(258));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(
            number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]),
            Some(-2)
        );
        assert_eq!(unsigned(&[0xff; 12]), None);
    }

    #[test]
    fn base_256_beyond_64_bits_is_none() {
        assert_eq!(
            number(&[
                0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff
            ]),
            None
        );
    }
}
