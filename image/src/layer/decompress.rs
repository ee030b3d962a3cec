//! Decoders for compressed layers. All are Rust: root runs them on what strangers packed.

use std::io::{self, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::FrameDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};

/// How a layer's blob is compressed, from its media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Bytes read from the blob at once.
const READ_AHEAD: usize = 128 << 10;

/// The largest window a zstd frame may ask memory for, in bytes. RFC 8878 (3.1.1.1.2) recommends 8 MiB, to which
/// every level up to 19 keeps; the level above and `--long` reach 128 MiB.
const ZSTD_WINDOW: u64 = 128 << 20;

/// A reader of the decompressed stream. The `Read` below is buffered here, so hand over the bare source.
pub(super) fn decoder<'a>(compression: Compression, source: impl Read + 'a) -> Box<dyn Read + 'a> {
    let source = BufReader::with_capacity(READ_AHEAD, source);
    match compression {
        Compression::None => Box::new(source),
        // Several members: pigz and stargz write them, and gzip's format is their concatenation (RFC 1952, 2.2).
        Compression::Gzip => Box::new(BufReader::with_capacity(READ_AHEAD, MultiGzDecoder::new(source))),
        Compression::Zstd => Box::new(BufReader::with_capacity(READ_AHEAD, ZstdFrames::new(source))),
    }
}

/// Reads zstd frames one after the other and passes over skippable ones, in which zstd:chunked keeps its table of
/// contents (RFC 8878, 3).
struct ZstdFrames<R> {
    source: BufReader<R>,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: Read> ZstdFrames<R> {
    fn new(source: BufReader<R>) -> ZstdFrames<R> {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(ZSTD_WINDOW);
        ZstdFrames {
            source,
            decoder,
            in_frame: false,
        }
    }

    /// Begins the next frame that holds data; `false` at the stream's end.
    fn begin_frame(&mut self) -> io::Result<bool> {
        use std::io::BufRead as _;
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    let passed = io::copy(&mut self.source.by_ref().take(length), &mut io::sink())?;
                    if passed < length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
}

impl<R: Read> Read for ZstdFrames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use ruzstd::decoding::BlockDecodingStrategy::UptoBlocks;
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if self.in_frame && self.decoder.can_collect() > 0 {
                return self.decoder.read(buffer);
            }
            if self.in_frame && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.source, UptoBlocks(1))
                    .map_err(io::Error::other)?;
            } else {
                self.in_frame = self.begin_frame()?;
                if !self.in_frame {
                    return Ok(0);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    /// Two frames with a skippable one between, written by zstd 1.5.4: `printf 'hello ' | zstd`, then the magic
    /// number 0x184D2A50 with 4 bytes, then `printf 'hello hello …' | zstd -19`.
    const ZSTD_FRAMES: &[u8] = include_bytes!("../../tests/data/two-frames-and-a-skippable-one.zst");

    fn read(compression: Compression, source: &[u8]) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        decoder(compression, source).read_to_end(&mut content)?;
        Ok(content)
    }

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn plain_content_passes() {
        assert_eq!(read(Compression::None, b"hello").unwrap(), b"hello");
    }

    #[test]
    fn every_member_of_a_gzip_file_is_read() {
        let members = [gzip(b"hello "), gzip(b""), gzip(b"world")].concat();
        assert_eq!(read(Compression::Gzip, &members).unwrap(), b"hello world");
    }

    #[test]
    fn every_zstd_frame_is_read_and_skippable_ones_passed_over() {
        let content = read(Compression::Zstd, ZSTD_FRAMES).unwrap();
        assert_eq!(String::from_utf8(content).unwrap(), "hello ".repeat(1001));
    }

    #[test]
    fn truncated_streams_are_errors() {
        let gzip = gzip(&[7; 5000]);
        assert!(read(Compression::Gzip, &gzip[..gzip.len() - 9]).is_err());
        for length in [1, 5, ZSTD_FRAMES.len() - 5] {
            assert!(
                read(Compression::Zstd, &ZSTD_FRAMES[..length]).is_err(),
                "{length}"
            );
        }
    }

    #[test]
    fn what_is_not_compressed_is_refused() {
        assert!(read(Compression::Gzip, b"plain text, certainly").is_err());
        assert!(read(Compression::Zstd, b"plain text, certainly").is_err());
    }

    #[test]
    fn a_zstd_window_beyond_the_limit_is_refused_without_taking_the_memory() {
        // Magic, a descriptor without single segment, a window of 2^(10+31) bytes.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 31 << 3, 0x01, 0x00, 0x00];
        assert!(read(Compression::Zstd, &frame).is_err());
    }
}
