//! A layout in an uncompressed tar file, read where it lies: the headers are walked once to learn where each file
//! begins, and blobs are then read by offset. Nothing is unpacked.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{LayoutError, LayoutFiles};
use crate::blob::{BlobError, BlobSource, OpenedBlob};
use crate::digest::Digest;
use crate::tar_stream::{Kind, Skip, TarStream};

/// Files in an archive at most. An image has a blob per layer and a handful of documents.
const MOST_FILES: usize = 65_536;

/// Where a file's content lies in the archive.
#[derive(Clone, Copy)]
struct Span {
    offset: u64,
    size: u64,
}

pub(super) struct Archive {
    file: File,
    files: HashMap<String, Span>,
}

impl Archive {
    pub(super) fn open(path: &Path) -> Result<Archive, LayoutError> {
        let not_opened = |source| LayoutError::Open {
            path: path.to_owned(),
            source,
        };
        // Not blocking, because a FIFO would wait for its writer.
        let flags = rustix::fs::OFlags::RDONLY
            | rustix::fs::OFlags::CLOEXEC
            | rustix::fs::OFlags::NONBLOCK
            | rustix::fs::OFlags::NOCTTY;
        let file = rustix::fs::open(path, flags, rustix::fs::Mode::empty())
            .map_err(|errno| not_opened(errno.into()))?;
        let file = File::from(file);
        let metadata = file.metadata().map_err(not_opened)?;
        if !metadata.is_file() {
            return Err(not_opened(io::Error::other(
                "it is not a regular file (a layout in a folder is written oci:DIR)",
            )));
        }
        let mut magic = [0; 6];
        let length = file.read_at(&mut magic, 0).map_err(not_opened)?;
        if let Some(compression) = compression(magic.get(..length).unwrap_or_default()) {
            return Err(LayoutError::CompressedArchive {
                path: path.to_owned(),
                compression,
            });
        }
        let files = walk(&file, metadata.len(), path)?;
        Ok(Archive { file, files })
    }

    fn cursor(&self, span: Span) -> Cursor<'_> {
        Cursor {
            file: &self.file,
            position: span.offset,
            end: span.offset.saturating_add(span.size),
        }
    }
}

fn compression(magic: &[u8]) -> Option<&'static str> {
    match magic {
        [0x1f, 0x8b, ..] => Some("gzip"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("zstd"),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Some("xz"),
        [b'B', b'Z', b'h', ..] => Some("bzip2"),
        _ => None,
    }
}

fn walk(file: &File, size: u64, path: &Path) -> Result<HashMap<String, Span>, LayoutError> {
    let broken = |source| LayoutError::Archive {
        path: path.to_owned(),
        source,
    };
    let mut stream = TarStream::new(Cursor {
        file,
        position: 0,
        end: size,
    });
    let mut files = HashMap::new();
    while let Some(entry) = stream.next_entry().map_err(broken)? {
        let Ok(name) = String::from_utf8(entry.name) else {
            continue;
        };
        if entry.kind != Kind::File {
            continue;
        }
        if files.len() == MOST_FILES {
            return Err(LayoutError::CrowdedArchive {
                path: path.to_owned(),
                limit: MOST_FILES,
            });
        }
        let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
        // A later entry of the same name replaces an earlier one, as unpacking would.
        files.insert(
            name,
            Span {
                offset: entry.content_offset,
                size: entry.size,
            },
        );
    }
    Ok(files)
}

impl LayoutFiles for Archive {
    fn read_file(&self, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(span) = self.files.get(name) else {
            return Ok(None);
        };
        if span.size > limit {
            let size = span.size;
            return Err(io::Error::other(format!(
                "it has {size} bytes, more than the {limit} allowed"
            )));
        }
        let mut content = Vec::new();
        self.cursor(*span).read_to_end(&mut content)?;
        Ok(Some(content))
    }
}

impl BlobSource for Archive {
    fn open(&self, digest: &Digest) -> Result<OpenedBlob<'_>, BlobError> {
        match self.files.get(&format!("blobs/sha256/{}", digest.hex())) {
            Some(span) => Ok(OpenedBlob {
                content: Box::new(self.cursor(*span)),
                size: Some(span.size),
            }),
            None => Err(BlobError::Missing { digest: *digest }),
        }
    }
}

/// Reads a part of a file at its own position.
struct Cursor<'a> {
    file: &'a File,
    position: u64,
    end: u64,
}

impl Read for Cursor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.end.saturating_sub(self.position);
        let room = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let (buffer, _) = buffer.split_at_mut(room);
        let count = self.file.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Skip for Cursor<'_> {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        match self.position.checked_add(count) {
            Some(position) if position <= self.end => {
                self.position = position;
                Ok(())
            }
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}
