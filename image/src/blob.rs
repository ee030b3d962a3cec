//! Blobs: content known by its digest and size, verified as it streams.

use std::io::{self, Read};

use oci_spec::image::Descriptor;
use sha2::Digest as _;

use crate::digest::{Digest, DigestError};

/// Why a blob could not be read as what its descriptor says.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The descriptor's digest is not one that can be verified.
    #[error("reading a descriptor")]
    Descriptor(#[source] DigestError),
    /// The image names a blob that is not there.
    #[error("blob {digest} is missing: the image is incomplete, copy it again")]
    Missing {
        /// The blob.
        digest: Digest,
    },
    /// The blob's place is taken by a folder, a device or something else that holds no bytes.
    #[error("blob {digest} is not a regular file")]
    NotAFile {
        /// The blob.
        digest: Digest,
    },
    /// Input or output.
    #[error("reading blob {digest}")]
    Read {
        /// The blob.
        digest: Digest,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The blob is longer or shorter than its descriptor says.
    #[error(
        "blob {digest} has {actual} bytes, its descriptor says {expected}: the image is damaged, copy it again"
    )]
    WrongSize {
        /// The blob.
        digest: Digest,
        /// The descriptor's size in bytes.
        expected: u64,
        /// The blob's size in bytes, or how much of it was read when it was seen to be too long.
        actual: u64,
    },
    /// The blob's content is not what its name says.
    #[error(
        "blob {expected} has the digest {actual}: the image is damaged or was tampered with, copy it again"
    )]
    WrongDigest {
        /// The digest in the descriptor, which is also the blob's name.
        expected: Digest,
        /// The digest of what was read.
        actual: Digest,
    },
    /// A document larger than the limit for documents.
    #[error("blob {digest} is a document of {size} bytes, more than the {limit} allowed")]
    DocumentTooLarge {
        /// The blob.
        digest: Digest,
        /// Its size in bytes, as its descriptor says.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
}

/// An opened blob whose content nothing has verified yet.
pub(crate) struct OpenedBlob<'a> {
    pub(crate) content: Box<dyn Read + 'a>,
    /// Size in bytes, where the source knows it before reading.
    pub(crate) size: Option<u64>,
}

/// Where an image's blobs come from: a folder, an archive, one day a registry.
pub(crate) trait BlobSource {
    /// Opens what the source keeps under `digest`. Nothing it yields may be trusted: callers go through
    /// [`open_verified`] or [`read_document`].
    fn open(&self, digest: &Digest) -> Result<OpenedBlob<'_>, BlobError>;
}

/// The digest and size a descriptor promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Promise {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

impl Promise {
    pub(crate) fn of(descriptor: &Descriptor) -> Result<Promise, BlobError> {
        let digest = descriptor
            .digest()
            .as_ref()
            .parse()
            .map_err(BlobError::Descriptor)?;
        Ok(Promise {
            digest,
            size: descriptor.size(),
        })
    }
}

/// Opens a blob for streaming. The caller must call [`VerifiedBlob::finish`] before it relies on what it read.
pub(crate) fn open_verified<'a>(
    source: &'a dyn BlobSource,
    promise: Promise,
) -> Result<VerifiedBlob<'a>, BlobError> {
    let Promise {
        digest,
        size: expected,
    } = promise;
    let opened = source.open(&digest)?;
    match opened.size {
        Some(actual) if actual != expected => Err(BlobError::WrongSize {
            digest,
            expected,
            actual,
        }),
        _ => Ok(VerifiedBlob {
            content: opened.content,
            promise,
            read: 0,
            hasher: sha2::Sha256::new(),
        }),
    }
}

/// Reads a whole small blob, verified, of at most `limit` bytes.
pub(crate) fn read_document(
    source: &dyn BlobSource,
    promise: Promise,
    limit: u64,
) -> Result<Vec<u8>, BlobError> {
    let Promise { digest, size } = promise;
    if size > limit {
        return Err(BlobError::DocumentTooLarge { digest, size, limit });
    }
    let mut blob = open_verified(source, promise)?;
    let mut content = Vec::new();
    if let Err(source) = (&mut blob).take(size).read_to_end(&mut content) {
        return Err(BlobError::Read { digest, source });
    }
    blob.finish()?;
    Ok(content)
}

/// A stream that hashes and counts what passes, and never yields more than its descriptor promised.
pub(crate) struct VerifiedBlob<'a> {
    content: Box<dyn Read + 'a>,
    promise: Promise,
    read: u64,
    hasher: sha2::Sha256,
}

impl VerifiedBlob<'_> {
    /// Bytes read so far.
    pub(crate) fn position(&self) -> u64 {
        self.read
    }

    /// Reads what is left and says whether the whole was what the descriptor promised.
    pub(crate) fn finish(mut self) -> Result<(), BlobError> {
        let Promise {
            digest,
            size: expected,
        } = self.promise;
        io::copy(&mut self, &mut io::sink()).map_err(|source| BlobError::Read { digest, source })?;
        let mut beyond = [0];
        let longer = self
            .content
            .read(&mut beyond)
            .map_err(|source| BlobError::Read { digest, source })?;
        if longer > 0 || self.read != expected {
            return Err(BlobError::WrongSize {
                digest,
                expected,
                actual: self.read + longer as u64,
            });
        }
        let actual = Digest::finish(self.hasher);
        if actual != digest {
            return Err(BlobError::WrongDigest {
                expected: digest,
                actual,
            });
        }
        Ok(())
    }
}

impl Read for VerifiedBlob<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.promise.size - self.read).unwrap_or(usize::MAX);
        let room = buffer.len().min(left);
        let (buffer, _) = buffer.split_at_mut(room);
        if buffer.is_empty() {
            return Ok(0);
        }
        let count = self.content.read(buffer)?;
        let passed = buffer
            .get(..count)
            .ok_or_else(|| io::Error::other("a reader claimed more than it read"))?;
        self.hasher.update(passed);
        self.read += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(&'static [u8], Option<u64>);

    impl BlobSource for Fixed {
        fn open(&self, _digest: &Digest) -> Result<OpenedBlob<'_>, BlobError> {
            Ok(OpenedBlob {
                content: Box::new(self.0),
                size: self.1,
            })
        }
    }

    fn promise(content: &[u8], size: u64) -> Promise {
        Promise {
            digest: Digest::of(content),
            size,
        }
    }

    #[test]
    fn matching_content_is_returned() {
        let content = read_document(&Fixed(b"hello", None), promise(b"hello", 5), 10).unwrap();
        assert_eq!(content, b"hello");
    }

    #[test]
    fn other_content_names_both_digests() {
        let error = read_document(&Fixed(b"hellO", None), promise(b"hello", 5), 10).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&Digest::of(b"hello").to_string()), "{text}");
        assert!(text.contains(&Digest::of(b"hellO").to_string()), "{text}");
    }

    #[test]
    fn a_longer_or_shorter_stream_is_a_wrong_size() {
        for (content, actual) in [(&b"hello!!"[..], 6), (&b"hell"[..], 4)] {
            let error = read_document(&Fixed(content, None), promise(b"hello", 5), 10).unwrap_err();
            assert!(
                matches!(error, BlobError::WrongSize { expected: 5, actual: seen, .. } if seen == actual),
                "{error}"
            );
        }
    }

    #[test]
    fn a_known_wrong_size_is_refused_before_reading() {
        let error = read_document(&Fixed(b"", Some(7)), promise(b"hello", 5), 10).unwrap_err();
        assert!(
            matches!(
                error,
                BlobError::WrongSize {
                    expected: 5,
                    actual: 7,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_document_over_the_limit_is_refused_before_reading() {
        let error = read_document(&Fixed(b"", None), promise(b"hello", u64::MAX), 10).unwrap_err();
        assert!(
            matches!(error, BlobError::DocumentTooLarge { limit: 10, .. }),
            "{error}"
        );
    }
}
