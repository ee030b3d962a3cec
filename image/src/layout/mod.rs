//! OCI image layouts (image-spec, `image-layout.md`): `oci-layout`, `index.json` and `blobs/`, in a folder or in a
//! tar file that is read where it lies.

mod archive;
mod folder;
mod select;

use std::io;
use std::path::PathBuf;

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest, OciLayout};
use serde::de::DeserializeOwned;

use crate::blob::{self, BlobError, BlobSource, Promise};
use crate::digest::{Digest, DigestError};
use crate::layer::Compression;
use crate::limits::Limits;
use crate::media_type;
use crate::reference::Reference;
use crate::tar_stream::TarError;

/// The version of the layout that is understood (image-spec, `image-layout.md`, "oci-layout file").
const LAYOUT_VERSION: &str = "1.0.0";

/// Why an image could not be found or read in a layout.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The folder or file cannot be opened.
    #[error("opening {}", path.display())]
    Open {
        /// The folder or file named in the reference.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file exists, but is no tar archive.
    #[error("reading {} as an OCI archive", path.display())]
    Archive {
        /// The file named in the reference.
        path: PathBuf,
        /// The cause.
        #[source]
        source: TarError,
    },
    /// The archive is compressed, so blobs cannot be read where they lie.
    #[error("{} is compressed with {compression}: decompress it first, its layers are compressed already", path.display())]
    CompressedArchive {
        /// The file named in the reference.
        path: PathBuf,
        /// `gzip`, `zstd`, …
        compression: &'static str,
    },
    /// The archive lists more files than any image has.
    #[error("{} holds more than {limit} files: it is no OCI archive", path.display())]
    CrowdedArchive {
        /// The file named in the reference.
        path: PathBuf,
        /// The limit.
        limit: usize,
    },
    /// A file every layout has is not there.
    #[error("{} is no OCI image layout: it has no {name}", path.display())]
    NotALayout {
        /// The folder or file named in the reference.
        path: PathBuf,
        /// The missing file.
        name: &'static str,
    },
    /// A file of the layout cannot be read.
    #[error("reading {name} of {}", path.display())]
    ReadFile {
        /// The folder or file named in the reference.
        path: PathBuf,
        /// The file in the layout.
        name: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// `oci-layout` names a version that is not understood.
    #[error("{} is an OCI image layout of version {version}, only {LAYOUT_VERSION} is understood", path.display())]
    Version {
        /// The folder or file named in the reference.
        path: PathBuf,
        /// The version found.
        version: String,
    },
    /// A document is not the JSON it should be.
    #[error("{document} is malformed")]
    Document {
        /// Which document.
        document: String,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A blob is missing, damaged or larger than allowed.
    #[error("reading {document}")]
    Blob {
        /// Which document, or what for.
        document: String,
        /// The cause.
        #[source]
        source: BlobError,
    },
    /// No image has the tag.
    #[error("{} holds no image tagged `{tag}`; there is {present}", path.display())]
    NoSuchTag {
        /// The folder or file named in the reference.
        path: PathBuf,
        /// The tag asked for.
        tag: String,
        /// What could have been asked for.
        present: String,
    },
    /// Several images, none of them `latest`, and no tag given.
    #[error("{} holds several images and none is tagged `latest`: add one of these tags: {present}", path.display())]
    TagNeeded {
        /// The folder or file named in the reference.
        path: PathBuf,
        /// What could be asked for.
        present: String,
    },
    /// Several images have the same tag.
    #[error("{} holds several different images tagged `{tag}`", path.display())]
    AmbiguousTag {
        /// The folder or file named in the reference.
        path: PathBuf,
        /// The tag.
        tag: String,
    },
    /// The layout's index is empty.
    #[error("{} holds no image: its index.json is empty", path.display())]
    Empty {
        /// The folder or file named in the reference.
        path: PathBuf,
    },
    /// No image for this host's kernel and processor.
    #[error("{place} has no image for {wanted}; there is {present}")]
    NoPlatform {
        /// The index or configuration.
        place: String,
        /// Operating system and architecture wanted.
        wanted: String,
        /// Those found.
        present: String,
    },
    /// Indexes that point to indexes without end.
    #[error("the indexes in {} are nested more than {limit} deep", path.display())]
    TooDeep {
        /// The folder or file named in the reference.
        path: PathBuf,
        /// The limit.
        limit: usize,
    },
    /// A media type that is not understood.
    #[error("{place} has the media type `{media_type}`, which is not understood; expected {expected}")]
    MediaType {
        /// What has the type, and where.
        place: String,
        /// The type found.
        media_type: String,
        /// What could have stood there.
        expected: &'static str,
    },
    /// Manifest and configuration disagree.
    #[error(
        "manifest {manifest} lists {layers} layers, its configuration {diff_ids} diff ids: the image is malformed"
    )]
    LayerCount {
        /// The manifest.
        manifest: Digest,
        /// Layers in the manifest.
        layers: usize,
        /// Diff ids in the configuration.
        diff_ids: usize,
    },
    /// No layers, or more than the kernel stacks.
    #[error("manifest {manifest} lists {layers} layers; a container needs between 1 and {limit}")]
    Layers {
        /// The manifest.
        manifest: Digest,
        /// Layers in the manifest.
        layers: usize,
        /// The limit.
        limit: usize,
    },
    /// A diff id that is no digest.
    #[error("reading the diff ids of manifest {manifest}")]
    DiffId {
        /// The manifest.
        manifest: Digest,
        /// The cause.
        #[source]
        source: DigestError,
    },
}

/// An image found in a layout: its documents verified, its layers not read yet.
pub(crate) struct LayoutImage {
    /// The manifest's digest: the image's identity.
    pub(crate) digest: Digest,
    pub(crate) manifest: Vec<u8>,
    pub(crate) config_digest: Digest,
    pub(crate) config_bytes: Vec<u8>,
    pub(crate) config: ImageConfiguration,
    /// From the lowest to the topmost.
    pub(crate) layers: Vec<LayerBlob>,
}

/// A layer as the manifest and the configuration describe it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LayerBlob {
    pub(crate) promise: Promise,
    pub(crate) compression: Compression,
    /// The digest of the layer once decompressed.
    pub(crate) diff_id: Digest,
}

/// A source of blobs that also holds the two files every layout begins with.
trait LayoutFiles: BlobSource {
    /// Reads a small file beside the blobs. `Ok(None)` if it does not exist, an error beyond `limit` bytes.
    fn read_file(&self, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>>;
}

/// An opened layout.
pub(crate) struct Layout {
    path: PathBuf,
    files: Box<dyn LayoutFiles>,
    index: ImageIndex,
}

impl Layout {
    /// Opens the folder or archive `reference` names and reads its index.
    pub(crate) fn open(reference: &Reference, limits: &Limits) -> Result<Layout, LayoutError> {
        let path = reference.path().to_owned();
        let files: Box<dyn LayoutFiles> = match reference {
            Reference::Layout { folder, .. } => Box::new(folder::Folder::open(folder)?),
            Reference::Archive { file, .. } => Box::new(archive::Archive::open(file)?),
        };
        let read = |name: &'static str| match files.read_file(name, limits.document_bytes) {
            Ok(Some(content)) => Ok(content),
            Ok(None) => Err(LayoutError::NotALayout {
                path: path.clone(),
                name,
            }),
            Err(source) => Err(LayoutError::ReadFile {
                path: path.clone(),
                name,
                source,
            }),
        };
        let header: OciLayout = parse(&read("oci-layout")?, || {
            format!("oci-layout of {}", path.display())
        })?;
        if header.image_layout_version() != LAYOUT_VERSION {
            let version = header.image_layout_version().escape_debug().to_string();
            return Err(LayoutError::Version { path, version });
        }
        let index = parse(&read("index.json")?, || {
            format!("index.json of {}", path.display())
        })?;
        Ok(Layout { path, files, index })
    }

    /// Where the layers' blobs are read.
    pub(crate) fn blobs(&self) -> &dyn BlobSource {
        &*self.files
    }

    /// Finds the image with `tag`, or the one meant by giving none, and reads its documents.
    pub(crate) fn image(&self, tag: Option<&str>, limits: &Limits) -> Result<LayoutImage, LayoutError> {
        let descriptor = self.select(tag, limits)?;
        let document = || "the image's manifest".to_owned();
        let promise = Promise::of(&descriptor).map_err(|source| LayoutError::Blob {
            document: document(),
            source,
        })?;
        let manifest_bytes = self.read_blob(promise, limits, document)?;
        let digest = promise.digest;
        let manifest: ImageManifest = parse(&manifest_bytes, || format!("manifest {digest}"))?;

        let config_type = manifest.config().media_type().as_ref();
        if !media_type::is_config(config_type) {
            return Err(LayoutError::MediaType {
                place: format!("the configuration in manifest {digest}"),
                media_type: config_type.escape_debug().to_string(),
                expected: media_type::CONFIG,
            });
        }
        let document = || format!("the configuration of manifest {digest}");
        let config_promise = Promise::of(manifest.config()).map_err(|source| LayoutError::Blob {
            document: document(),
            source,
        })?;
        let config_bytes = self.read_blob(config_promise, limits, document)?;
        let config: ImageConfiguration = parse(&config_bytes, document)?;
        select::check_platform(&config, digest)?;
        let layers = layers(&manifest, &config, digest, limits)?;
        let config_digest = config_promise.digest;
        Ok(LayoutImage {
            digest,
            manifest: manifest_bytes,
            config_digest,
            config_bytes,
            config,
            layers,
        })
    }

    fn read_blob(
        &self,
        promise: Promise,
        limits: &Limits,
        document: impl Fn() -> String,
    ) -> Result<Vec<u8>, LayoutError> {
        blob::read_document(self.blobs(), promise, limits.document_bytes).map_err(|source| {
            LayoutError::Blob {
                document: document(),
                source,
            }
        })
    }
}

fn parse<T: DeserializeOwned>(content: &[u8], document: impl Fn() -> String) -> Result<T, LayoutError> {
    serde_json::from_slice(content).map_err(|source| LayoutError::Document {
        document: document(),
        source,
    })
}

/// Pairs the manifest's layers with the configuration's diff ids.
fn layers(
    manifest: &ImageManifest,
    config: &ImageConfiguration,
    digest: Digest,
    limits: &Limits,
) -> Result<Vec<LayerBlob>, LayoutError> {
    let (blobs, diff_ids) = (manifest.layers(), config.rootfs().diff_ids());
    if blobs.len() != diff_ids.len() {
        let (layers, diff_ids) = (blobs.len(), diff_ids.len());
        return Err(LayoutError::LayerCount {
            manifest: digest,
            layers,
            diff_ids,
        });
    }
    if blobs.is_empty() || blobs.len() > limits.layers {
        let (layers, limit) = (blobs.len(), limits.layers);
        return Err(LayoutError::Layers {
            manifest: digest,
            layers,
            limit,
        });
    }
    let pair = |(index, (blob, diff_id)): (usize, (&Descriptor, &String))| {
        let place = format!("layer {} of {} in manifest {digest}", index + 1, blobs.len());
        let media_type = blob.media_type().as_ref();
        let compression =
            media_type::layer_compression(media_type).ok_or_else(|| LayoutError::MediaType {
                place: place.clone(),
                media_type: media_type.escape_debug().to_string(),
                expected: "an OCI or Docker layer: tar, tar+gzip or tar+zstd",
            })?;
        let promise = Promise::of(blob).map_err(|source| LayoutError::Blob {
            document: place.clone(),
            source,
        })?;
        let diff_id = diff_id.parse().map_err(|source| LayoutError::DiffId {
            manifest: digest,
            source,
        })?;
        Ok(LayerBlob {
            promise,
            compression,
            diff_id,
        })
    };
    blobs.iter().zip(diff_ids).enumerate().map(pair).collect()
}
