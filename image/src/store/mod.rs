//! The content-addressed store: images unpacked once, shared by all containers.
//!
//! ```text
//! ROOT/version                               the format of what follows
//! ROOT/layers/sha256/CHAIN-ID/fs             a layer, unpacked; it exists if and only if it is complete
//! ROOT/layers/sha256/CHAIN-ID/layer.json     what it was made from
//! ROOT/layers/sha256/CHAIN-ID/incoming       a layer being unpacked, while the folder above is locked
//! ROOT/manifests/sha256/DIGEST               an image's manifest, byte for byte, and …
//! ROOT/configs/sha256/DIGEST                 … its configuration
//! ROOT/containers/ID/{upper,work}            a container's writable layer
//! ROOT/containers/ID/container.json          the layers below it
//! ROOT/discarded                             trees on their way out
//! ```
//!
//! A layer is known by its *chain id*, the digest of its diff id and all those below it (image-spec, `config.md`,
//! "Layer ChainID"), because folders it does not describe take their metadata from the layers below: the same
//! archive on another base can be another folder.
//!
//! **Crashes.** A layer is unpacked into `incoming`, flushed to disk with one syncfs(2), and then renamed to `fs`,
//! after which its folder is flushed: a name never appears before what it names. A process killed half-way leaves
//! an `incoming` that the next import throws away; its lock went with it.
//!
//! **Access.** Layers hold setuid programs and device nodes of strangers, so everything lies below folders that only
//! root may enter.

mod documents;
mod layers;

use std::io;
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;

use crate::digest::Digest;
use crate::discard::Discard;
use crate::layer::LayerError;
use crate::layout::{Layout, LayoutError};
use crate::limits::Limits;
use crate::reference::Reference;

/// The format of the store. A store of another format is refused, not guessed at.
const VERSION: &str = "1\n";

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store's own folders cannot be made or opened.
    #[error("opening the image store {}", path.display())]
    Open {
        /// The store's root.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The store was written by a version of this program that uses another format.
    #[error("the image store {} has the format {found}, this program uses {}: use another folder or remove it", path.display(), VERSION.trim())]
    Version {
        /// The store's root.
        path: PathBuf,
        /// The format found.
        found: String,
    },
    /// The image cannot be found or read.
    #[error("resolving {reference}")]
    Layout {
        /// The image.
        reference: Reference,
        /// The cause.
        #[source]
        source: Box<LayoutError>,
    },
    /// A layer cannot be unpacked.
    #[error("importing layer {number} of {count} ({blob}) of {reference}")]
    Layer {
        /// The image.
        reference: Reference,
        /// The layer's place, from 1 for the lowest.
        number: usize,
        /// Layers in the image.
        count: usize,
        /// The layer's blob.
        blob: Digest,
        /// The cause.
        #[source]
        source: Box<LayerError>,
    },
    /// The store's file system refused.
    #[error("{action} {}", path.display())]
    Write {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// What an import is doing, for whoever waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Another process is unpacking this layer; its result will be used.
    Waiting {
        /// The layer's place, from 1 for the lowest.
        number: usize,
        /// Layers in the image.
        count: usize,
    },
    /// A layer is being read and unpacked. Comes about once a mebibyte.
    Unpacking {
        /// The layer's place, from 1 for the lowest.
        number: usize,
        /// Layers in the image.
        count: usize,
        /// Bytes of the blob read so far.
        read: u64,
        /// Bytes of the blob.
        size: u64,
    },
    /// A layer was added to the store.
    Unpacked {
        /// The layer's place, from 1 for the lowest.
        number: usize,
        /// Layers in the image.
        count: usize,
        /// Entries in the layer.
        entries: u64,
        /// Bytes of the layer once decompressed.
        bytes: u64,
    },
}

/// An image whose layers are in the store.
#[derive(Debug, Clone)]
pub struct Image {
    /// The digest of its manifest, by which it is known everywhere.
    pub digest: Digest,
    /// Its configuration: command, environment, user, …
    pub config: ImageConfiguration,
    /// The folders of its layers, from the lowest to the topmost.
    pub layers: Vec<PathBuf>,
    pub(crate) chain: Vec<Digest>,
}

/// An opened store. Any number of processes may use one at a time.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    limits: Limits,
    discard: Discard,
}

impl Store {
    /// Opens the store in the folder `root`, which is made if it does not exist, with the default [`Limits`].
    ///
    /// # Errors
    /// [`StoreError::Open`] and [`StoreError::Version`].
    pub fn open(root: impl AsRef<Path>) -> Result<Store, StoreError> {
        Store::open_with(root, Limits::default())
    }

    /// Opens the store with limits of the caller's.
    ///
    /// # Errors
    /// [`StoreError::Open`] and [`StoreError::Version`].
    pub fn open_with(root: impl AsRef<Path>, limits: Limits) -> Result<Store, StoreError> {
        let given = root.as_ref();
        let failed = |source| StoreError::Open {
            path: given.to_owned(),
            source,
        };
        let root = std::path::absolute(given).map_err(failed)?;
        match std::fs::read_to_string(root.join("version")) {
            Ok(found) if found == VERSION => {}
            Ok(found) => {
                let found = found
                    .trim()
                    .chars()
                    .take(20)
                    .collect::<String>()
                    .escape_debug()
                    .to_string();
                return Err(StoreError::Version { path: root, found });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => make(&root).map_err(failed)?,
            Err(error) => return Err(failed(error)),
        }
        let discard = Discard::new(root.join(DISCARDED));
        Ok(Store {
            root,
            limits,
            discard,
        })
    }

    /// Finds the image `reference` names and unpacks those of its layers the store does not have.
    ///
    /// The image's index, manifest and configuration are read and verified every time; layers only once.
    /// `progress` is told of each step of an import, and of nothing when there is none.
    ///
    /// # Errors
    /// [`StoreError::Layout`] and [`StoreError::Layer`] when the image is at fault, [`StoreError::Write`] when the
    /// store's file system is. Whatever was complete stays; nothing incomplete does.
    pub fn resolve(
        &self,
        reference: &Reference,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Image, StoreError> {
        let failed = |error| StoreError::Layout {
            reference: reference.clone(),
            source: Box::new(error),
        };
        let layout = Layout::open(reference, &self.limits).map_err(failed)?;
        let found = layout.image(reference.tag(), &self.limits).map_err(failed)?;
        let chain = layers::chain_ids(found.layers.iter().map(|layer| layer.diff_id));
        if !self.documents_are_kept(&found) || !chain.iter().all(|id| self.layer_is_ready(id)) {
            self.import_layers(reference, &layout, &found, &chain, progress)?;
            self.keep_documents(&found)?;
        }
        let layers = chain.iter().map(|id| self.layer_folder(id)).collect();
        Ok(Image {
            digest: found.digest,
            config: found.config,
            layers,
            chain,
        })
    }

    /// The folder everything lies in.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn discard(&self) -> &Discard {
        &self.discard
    }
}

/// Trees on their way out.
const DISCARDED: &str = "discarded";
/// Folder of the containers' writable layers.
pub(crate) const CONTAINERS: &str = "containers";

/// Makes the store's folders. Running twice at once does no harm: the version comes last and whole.
fn make(root: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    for folder in [
        "layers/sha256",
        "manifests/sha256",
        "configs/sha256",
        CONTAINERS,
        DISCARDED,
    ] {
        builder.create(root.join(folder))?;
    }
    documents::write_whole(root, "version", VERSION.as_bytes())
}
