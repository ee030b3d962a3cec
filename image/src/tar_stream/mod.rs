//! Reads a tar stream entry by entry, in constant memory.
//!
//! Root reads what strangers packed here, so the reader is our own: it bounds every extension before it is read,
//! takes PAX values by their length (a file capability may hold a newline, at which the `tar` crate splits), and
//! sees entries where Go's `archive/tar` sees them, so that no layer means one thing to containerd and another to
//! us. Formats: POSIX ustar and pax (IEEE 1003.1, "pax Interchange Format"), and GNU long names.

mod header;
mod pax;

use std::io::{self, Read};

pub(crate) use header::Kind;
use header::{BLOCK, Header};
use pax::Records;

/// A name longer than the kernel accepts (`PATH_MAX`, with its terminator) is never read into memory further.
pub(crate) const LONGEST_NAME: usize = 4095;

/// Bytes of one extension header at most, as in Go's `archive/tar` (`maxSpecialFileSize`).
const LONGEST_EXTENSION: u64 = 1 << 20;

/// Why a stream is no tar that can be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// Input, decompression, or a limit on the way.
    #[error("reading the tar stream at byte {offset}")]
    Read {
        /// Bytes into the stream.
        offset: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The stream ends inside an entry.
    #[error("the tar stream ends at byte {offset}, inside an entry")]
    Truncated {
        /// Bytes into the stream.
        offset: u64,
    },
    /// A block that should be a header is none.
    #[error("byte {offset} of the tar stream should begin an entry: {reason}")]
    Header {
        /// Bytes into the stream.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// A number that is no number or does not fit.
    #[error("the entry at byte {offset} of the tar stream has no valid {field}")]
    Number {
        /// Bytes into the stream.
        offset: u64,
        /// The header's field.
        field: &'static str,
    },
    /// A malformed PAX extension.
    #[error("the PAX extension at byte {offset} of the tar stream is malformed")]
    Pax {
        /// Bytes into the stream.
        offset: u64,
    },
    /// An extension or a name larger than any real one.
    #[error(
        "the entry at byte {offset} of the tar stream has a {what} of {size} bytes, more than the {limit} allowed"
    )]
    TooLong {
        /// Bytes into the stream.
        offset: u64,
        /// What is too long.
        what: &'static str,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// Sparse files are stored in a form of their own, which image builders do not write.
    #[error(
        "the entry at byte {offset} of the tar stream is a sparse file, which is not understood: pack it without -S"
    )]
    Sparse {
        /// Bytes into the stream.
        offset: u64,
    },
}

/// A stream that can pass over bytes, by reading them or in a better way.
pub(crate) trait Skip: Read + Sized {
    /// Passes over `count` bytes, all of which must exist.
    fn skip(&mut self, count: u64) -> io::Result<()> {
        let passed = io::copy(&mut self.by_ref().take(count), &mut io::sink())?;
        if passed < count {
            Err(io::ErrorKind::UnexpectedEof.into())
        } else {
            Ok(())
        }
    }
}

/// Seconds and nanoseconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// One entry's header, extensions applied. The names are as in the stream: unchecked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: Kind,
    /// What a hard or symbolic link points to.
    pub(crate) link: Vec<u8>,
    /// Permission bits with setuid, setgid and sticky: within 0o7777.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Bytes of content that follow; zero for everything but files.
    pub(crate) size: u64,
    pub(crate) mtime: Time,
    /// Major and minor number of a device.
    pub(crate) device: (u32, u32),
    /// Names and values of extended attributes.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the content begins, in bytes from the start of the stream.
    pub(crate) content_offset: u64,
}

/// The reader. After [`TarStream::next_entry`], [`TarStream::read_content`] yields that entry's content.
pub(crate) struct TarStream<R> {
    inner: R,
    position: u64,
    /// Content of the current entry not read yet.
    content: u64,
    /// Bytes from the content's end to the next block.
    padding: u64,
}

impl<R: Skip> TarStream<R> {
    pub(crate) fn new(inner: R) -> TarStream<R> {
        TarStream {
            inner,
            position: 0,
            content: 0,
            padding: 0,
        }
    }

    /// The stream below, to read what follows the archive's end.
    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    /// The next entry, or `None` at the archive's end. Content of the last one not read is passed over.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        self.pass(self.content)?;
        self.pass(self.padding)?;
        (self.content, self.padding) = (0, 0);
        let mut records = Records::default();
        let (mut long_name, mut long_link) = (None, None);
        loop {
            let offset = self.position;
            let Some(header) = self.header(offset)? else {
                return Ok(None);
            };
            let size = header.size().ok_or(TarError::Number {
                offset,
                field: "size",
            })?;
            match header.kind() {
                Kind::PaxRecords => {
                    records = Records::parse(&self.extension(offset, "PAX extension", size)?)
                        .ok_or(TarError::Pax { offset })?;
                }
                // Go and containerd read past them too: no builder relies on them.
                Kind::PaxGlobalRecords => self.pass_content(size)?,
                Kind::GnuLongName => long_name = Some(self.extension(offset, "name", size)?),
                Kind::GnuLongLink => long_link = Some(self.extension(offset, "link target", size)?),
                kind => {
                    return self
                        .entry(offset, &header, kind, records, long_name, long_link)
                        .map(Some);
                }
            }
        }
    }

    fn entry(
        &mut self,
        offset: u64,
        header: &Header,
        kind: Kind,
        records: Records,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, TarError> {
        if records.sparse || kind == Kind::GnuSparse {
            return Err(TarError::Sparse { offset });
        }
        let number = |value: Option<u64>, field| {
            // All bits set is no id: to chown(2) it means "leave it".
            let fits = value
                .and_then(|n| u32::try_from(n).ok())
                .filter(|n| *n != u32::MAX);
            fits.ok_or(TarError::Number { offset, field })
        };
        let name = records
            .path
            .or(long_name.map(until_nul))
            .unwrap_or_else(|| header.name());
        let link = records
            .link
            .or(long_link.map(until_nul))
            .unwrap_or_else(|| header.link());
        for (what, text) in [("name", &name), ("link target", &link)] {
            if text.len() > LONGEST_NAME {
                let (size, limit) = (text.len() as u64, LONGEST_NAME as u64);
                return Err(TarError::TooLong {
                    offset,
                    what,
                    size,
                    limit,
                });
            }
        }
        let kind = if kind == Kind::OldFile && name.ends_with(b"/") {
            Kind::Folder
        } else {
            kind
        };
        let kind = if kind == Kind::OldFile { Kind::File } else { kind };
        let declared = records.size.or(header.size()).ok_or(TarError::Number {
            offset,
            field: "size",
        })?;
        // As in Go: only these carry content, whatever the others' size field says.
        let size = if matches!(kind, Kind::File | Kind::Unknown(_)) {
            declared
        } else {
            0
        };
        let device = if matches!(kind, Kind::CharacterDevice | Kind::BlockDevice) {
            let (major, minor) = header.device();
            (
                number(major, "device major number")?,
                number(minor, "device minor number")?,
            )
        } else {
            (0, 0)
        };
        let entry = Entry {
            kind,
            name,
            link,
            mode: number(header.mode().map(|mode| mode & 0o7777), "mode")?,
            uid: number(records.uid.or(header.uid()), "user id")?,
            gid: number(records.gid.or(header.gid()), "group id")?,
            size,
            mtime: match (records.mtime, header.mtime()) {
                (Some(time), _) => time,
                (None, Some(seconds)) => Time {
                    seconds,
                    nanoseconds: 0,
                },
                (None, None) => {
                    return Err(TarError::Number {
                        offset,
                        field: "modification time",
                    });
                }
            },
            device,
            xattrs: records.xattrs,
            content_offset: self.position,
        };
        self.content = size;
        self.padding = padding(size);
        Ok(entry)
    }

    /// The next header block. One block of zeros or the stream's end where a header should be ends the archive.
    fn header(&mut self, offset: u64) -> Result<Option<Header>, TarError> {
        let Some(block) = self.block()? else {
            return Ok(None);
        };
        if block.iter().all(|byte| *byte == 0) {
            return match self.block()? {
                Some(second) if second.iter().any(|byte| *byte != 0) => Err(TarError::Header {
                    offset,
                    reason: "a single block of zeros stands there",
                }),
                _ => Ok(None),
            };
        }
        Header::parse(block).map(Some).ok_or(TarError::Header {
            offset,
            reason: "the header's checksum does not match",
        })
    }

    /// The next block, or `None` at the stream's very end.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while let Some(room) = block.get_mut(filled..).filter(|room| !room.is_empty()) {
            match self.inner.read(room) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => {
                    return Err(TarError::Truncated {
                        offset: self.position,
                    });
                }
                Ok(count) => {
                    filled += count;
                    self.position += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(TarError::Read {
                        offset: self.position,
                        source,
                    });
                }
            }
        }
        Ok(Some(block))
    }

    fn extension(&mut self, offset: u64, what: &'static str, size: u64) -> Result<Vec<u8>, TarError> {
        if size > LONGEST_EXTENSION {
            return Err(TarError::TooLong {
                offset,
                what,
                size,
                limit: LONGEST_EXTENSION,
            });
        }
        let mut content = Vec::new();
        let read = self.inner.by_ref().take(size).read_to_end(&mut content);
        self.position += content.len() as u64;
        read.map_err(|source| TarError::Read {
            offset: self.position,
            source,
        })?;
        if (content.len() as u64) < size {
            return Err(TarError::Truncated {
                offset: self.position,
            });
        }
        self.pass(padding(size))?;
        Ok(content)
    }

    fn pass_content(&mut self, size: u64) -> Result<(), TarError> {
        self.pass(size)?;
        self.pass(padding(size))
    }

    fn pass(&mut self, count: u64) -> Result<(), TarError> {
        match self.inner.skip(count) {
            Ok(()) => {
                self.position = self.position.saturating_add(count);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(TarError::Truncated {
                offset: self.position,
            }),
            Err(source) => Err(TarError::Read {
                offset: self.position,
                source,
            }),
        }
    }
}

impl<R: Skip> TarStream<R> {
    /// Reads some of the current entry's content; zero bytes mean its end.
    pub(crate) fn read_content(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let room = buffer
            .len()
            .min(usize::try_from(self.content).unwrap_or(usize::MAX));
        let (buffer, _) = buffer.split_at_mut(room);
        if buffer.is_empty() {
            return Ok(0);
        }
        let offset = self.position;
        let count = loop {
            match self.inner.read(buffer) {
                Ok(0) => return Err(TarError::Truncated { offset }),
                Ok(count) => break count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(TarError::Read { offset, source }),
            }
        };
        self.content = self.content.saturating_sub(count as u64);
        self.position += count as u64;
        Ok(count)
    }
}

/// Bytes from the end of `size` bytes of content to the next block.
fn padding(size: u64) -> u64 {
    let block = BLOCK as u64;
    (block - size % block) % block
}

fn until_nul(mut text: Vec<u8>) -> Vec<u8> {
    let length = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    text.truncate(length);
    text
}

#[cfg(test)]
mod tests;
