//! Bytes and their digests.

use std::io::{self, Write as _};

use sha2::Digest as _;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// As one gzip member.
    Gzip,
    /// As one zstd frame.
    Zstd,
}

impl Compression {
    pub(crate) fn apply(self, content: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Compression::None => Ok(content.to_vec()),
            Compression::Gzip => {
                // The header holds no name and no time unless it is told to.
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(content)?;
                encoder.finish()
            }
            Compression::Zstd => {
                let level = ruzstd::encoding::CompressionLevel::Fastest;
                Ok(ruzstd::encoding::compress_to_vec(content, level))
            }
        }
    }
}

/// Content and the name it goes by, which a test may have made differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// `sha256:…`, as descriptors say.
    pub digest: String,
    /// Bytes, as descriptors say.
    pub size: u64,
    /// What is stored, or `None` if the blob is to be missing.
    pub content: Option<Vec<u8>>,
}

impl Blob {
    pub(crate) fn of(content: Vec<u8>) -> Blob {
        Blob {
            digest: digest(&content),
            size: content.len() as u64,
            content: Some(content),
        }
    }

    /// Changes one byte in the middle of what is stored.
    pub(crate) fn corrupt(&mut self) {
        if let Some(content) = &mut self.content {
            let middle = content.len() / 2;
            if let Some(byte) = content.get_mut(middle) {
                *byte ^= 0x20;
            }
        }
    }
}

/// The `sha256:…` digest of some bytes.
pub fn digest(content: &[u8]) -> String {
    let digits: String = sha2::Sha256::digest(content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{digits}")
}
