//! A layer's way from blob to folder: verified, decompressed, verified again, unpacked.
//!
//! What decompresses to a file system is a stranger's archive handled by root. Every path in it is resolved by the
//! kernel inside the layer's folder (`openat2` with `RESOLVE_IN_ROOT`), through descriptors that were opened before.
//!
//! Where the specification leaves room, we do as containerd does on overlayfs:
//! - A path may lead through a symbolic link **of the same layer**; the link is followed inside the layer's root, so
//!   `x -> /etc` and `x/passwd` make `etc/passwd` of the layer. A link in a layer **below** is not seen: the entry's
//!   folders are made in this layer and hide it.
//! - Folders an entry needs and the layer does not list take owner, mode, attributes and times from the layers
//!   below, so that `tmp/x` does not turn a world-writable `/tmp` into a private one.
//! - A whiteout hides only what the layers below have; one that hides nothing is not kept.
//! - A later entry of one name replaces an earlier one; two folders of one name become one.
//!
//! Stricter than containerd: names that are absolute or contain `..` are refused instead of being bent into the
//! layer, and so are the attributes that steer overlayfs itself.

mod decompress;
mod entry_name;
mod folder_resolution;
mod metadata;
mod unpack;

use std::io::{self, Read};

use rustix::fd::{BorrowedFd, OwnedFd};
use sha2::Digest as _;

use crate::blob::{self, BlobError, BlobSource};
use crate::digest::Digest;
use crate::discard::Discard;
use crate::layout::LayerBlob;
use crate::limits::Limits;
use crate::tar_stream::{Skip, TarError, TarStream};

pub(crate) use decompress::Compression;
pub(crate) use metadata::{copy_folder_metadata, is_opaque};
use unpack::Unpacker;

/// Why a layer could not be unpacked. Entry names are shown escaped: they are not ours.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The blob is missing or damaged.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The stream is no tar, or broke off, or met a limit.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The decompressed layer is not the one the image's configuration names.
    #[error(
        "the layer unpacks to {actual}, the image's configuration says {expected}: the image is malformed"
    )]
    DiffId {
        /// The diff id in the configuration.
        expected: Digest,
        /// The digest of what was decompressed.
        actual: Digest,
    },
    /// More entries than allowed.
    #[error("the layer has more than the {limit} entries allowed")]
    TooManyEntries {
        /// The limit.
        limit: u64,
    },
    /// A name that points outside of the layer.
    #[error("entry `{entry}` climbs out of the layer: {reason}")]
    Climbs {
        /// The entry's name.
        entry: String,
        /// What makes it climb.
        reason: &'static str,
    },
    /// A hard link to a name outside of the layer.
    #[error("entry `{entry}` climbs out of the layer: it is a hard link to `{target}`")]
    TargetClimbs {
        /// The entry's name.
        entry: String,
        /// The link's target.
        target: String,
    },
    /// A name no file can have.
    #[error("entry `{entry}` has no valid name: {reason}")]
    Name {
        /// The entry's name.
        entry: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Something that is no folder stands where the entry's path leads.
    #[error("entry `{entry}` lies below `{obstacle}`, which is not a folder")]
    NotAFolder {
        /// The entry's name.
        entry: String,
        /// The part of its path that is no folder.
        obstacle: String,
    },
    /// Symbolic links that lead in circles, or folders nested beyond reason.
    #[error("entry `{entry}` cannot be reached: {reason}")]
    Unreachable {
        /// The entry's name.
        entry: String,
        /// Why.
        reason: &'static str,
    },
    /// A hard link to something the layer does not hold.
    #[error("entry `{entry}` is a hard link to `{target}`, which this layer does not hold")]
    HardLinkTarget {
        /// The entry's name.
        entry: String,
        /// The link's target.
        target: String,
    },
    /// A type of entry no file system has.
    #[error("entry `{entry}` has the type `{kind}`, which is not understood")]
    Kind {
        /// The entry's name.
        entry: String,
        /// The type flag.
        kind: char,
    },
    /// An attribute by which a layer would steer overlayfs.
    #[error("entry `{entry}` carries the attribute `{name}`, which is reserved for overlayfs itself")]
    ReservedAttribute {
        /// The entry's name.
        entry: String,
        /// The attribute's name.
        name: String,
    },
    /// The file system refused.
    #[error("unpacking entry `{entry}`: {action}")]
    Unpack {
        /// The entry's name.
        entry: String,
        /// What was being done.
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The folder that becomes the layer cannot be prepared.
    #[error("preparing the layer's root")]
    Root(#[source] io::Error),
    /// Reading what follows the archive's end failed.
    #[error("reading the layer's end")]
    Tail(#[source] io::Error),
}

/// What a layer came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Unpacked {
    /// Entries in the archive.
    pub(crate) entries: u64,
    /// Bytes of the archive once decompressed.
    pub(crate) bytes: u64,
}

/// Where a layer is unpacked.
pub(crate) struct Destination<'a> {
    /// The empty folder that becomes the layer.
    pub(crate) root: OwnedFd,
    /// The layers below, the topmost first.
    pub(crate) below: &'a [OwnedFd],
    /// Where replaced folders go.
    pub(crate) discard: &'a Discard,
}

impl Destination<'_> {
    fn root(&self) -> BorrowedFd<'_> {
        rustix::fd::AsFd::as_fd(&self.root)
    }
}

/// Unpacks `layer` into an empty folder. On an error the folder holds a part of it and is worth nothing.
pub(crate) fn unpack(
    blobs: &dyn BlobSource,
    layer: &LayerBlob,
    destination: &Destination<'_>,
    limits: &Limits,
    progress: &mut dyn FnMut(u64),
) -> Result<Unpacked, LayerError> {
    let mut blob = blob::open_verified(blobs, layer.promise)?;
    let unpacked = unpack_stream(&mut blob, layer, destination, limits, progress);
    // A damaged blob usually trips the decoder first; that it is damaged is the better answer.
    match (blob.finish(), unpacked) {
        (Err(error), _) => Err(error.into()),
        (Ok(()), unpacked) => unpacked,
    }
}

fn unpack_stream(
    blob: &mut blob::VerifiedBlob<'_>,
    layer: &LayerBlob,
    destination: &Destination<'_>,
    limits: &Limits,
    progress: &mut dyn FnMut(u64),
) -> Result<Unpacked, LayerError> {
    let compressed = Reported {
        blob,
        progress,
        reported: 0,
    };
    let mut stream = TarStream::new(decompressed(layer.compression, compressed, limits.layer_bytes));
    let mut unpacker = Unpacker::new(destination)?;
    let mut entries = 0;
    while let Some(entry) = stream.next_entry()? {
        entries += 1;
        if entries > limits.layer_entries {
            return Err(LayerError::TooManyEntries {
                limit: limits.layer_entries,
            });
        }
        unpacker.unpack(&entry, &mut stream)?;
    }
    unpacker.finish()?;
    let mut plain = stream.into_inner();
    io::copy(&mut plain, &mut io::sink()).map_err(LayerError::Tail)?;
    let bytes = plain.read;
    let actual = Digest::finish(plain.hasher);
    if actual != layer.diff_id {
        return Err(LayerError::DiffId {
            expected: layer.diff_id,
            actual,
        });
    }
    Ok(Unpacked { entries, bytes })
}

/// What `blob` decompresses to, up to `limit` bytes.
pub(crate) fn decompressed<'a>(
    compression: Compression,
    blob: impl Read + 'a,
    limit: u64,
) -> Plain<Box<dyn Read + 'a>> {
    Plain {
        content: decompress::decoder(compression, blob),
        hasher: sha2::Sha256::new(),
        read: 0,
        limit,
    }
}

/// Reports how much of the blob was read, once a mebibyte.
struct Reported<'a, 'b> {
    blob: &'a mut blob::VerifiedBlob<'b>,
    progress: &'a mut dyn FnMut(u64),
    reported: u64,
}

impl Read for Reported<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        const STEP: u64 = 1 << 20;
        let count = self.blob.read(buffer)?;
        let position = self.blob.position();
        if position - self.reported >= STEP {
            self.reported = position;
            (self.progress)(position);
        }
        Ok(count)
    }
}

/// The decompressed layer: hashed for the diff id, and ended by an error when it outgrows its limit.
pub(crate) struct Plain<R> {
    content: R,
    hasher: sha2::Sha256,
    read: u64,
    limit: u64,
}

impl<R: Read> Read for Plain<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.content.read(buffer)?;
        let passed = buffer
            .get(..count)
            .ok_or_else(|| io::Error::other("a decoder claimed more than it wrote"))?;
        self.hasher.update(passed);
        self.read += count as u64;
        if self.read > self.limit {
            let limit = self.limit;
            return Err(io::Error::other(format!(
                "the layer unpacks to more than the {limit} bytes allowed"
            )));
        }
        Ok(count)
    }
}

impl<R: Read> Skip for Plain<R> {}
