//! The reader of layers, for the fuzz targets: from a blob to its entries, without a file.

use std::io::{self, Read};

use crate::layer::{Compression, LayerError, decompressed};
use crate::tar_stream::TarStream;

fn compression(number: u8) -> Compression {
    match number % 3 {
        0 => Compression::None,
        1 => Compression::Gzip,
        _ => Compression::Zstd,
    }
}

/// What is known of an entry when its content has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name, unchecked.
    pub name: Vec<u8>,
    /// Everything its header and extensions say, in words.
    pub header: String,
    /// Where its content begins, in bytes of the decompressed stream.
    pub content_offset: u64,
    /// How much content its header promises, in bytes.
    pub size: u64,
    /// How much there was.
    pub read: u64,
}

/// Hands each entry of a layer's blob to `visit`. `number` says how the blob is compressed, modulo 3: not at all, by gzip
/// or by zstd. It is read in pieces of `piece` bytes at most, one at least, and
/// may decompress to `limit` bytes.
///
/// # Errors
/// When it is no layer, or has more than `limit` bytes.
pub fn read_entries(
    number: u8,
    blob: &[u8],
    piece: usize,
    limit: u64,
    visit: &mut dyn FnMut(Entry),
) -> Result<(), LayerError> {
    let pieces = Pieces { blob, piece };
    let mut stream = TarStream::new(decompressed(compression(number), pieces, limit));
    let mut buffer = vec![0; 4096];
    while let Some(entry) = stream.next_entry()? {
        let mut read = 0;
        loop {
            match stream.read_content(&mut buffer)? {
                0 => break,
                count => read += count as u64,
            }
        }
        visit(Entry {
            header: format!("{entry:?}"),
            content_offset: entry.content_offset,
            size: entry.size,
            name: entry.name,
            read,
        });
    }
    // What follows the archive's end can be damaged too.
    io::copy(&mut stream.into_inner(), &mut io::sink()).map_err(LayerError::Tail)?;
    Ok(())
}

/// A source that gives little at a time, as a pipe may.
struct Pieces<'a> {
    blob: &'a [u8],
    piece: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(self.piece.max(1));
        let (room, _) = buffer.split_at_mut(length);
        self.blob.read(room)
    }
}
