//! OCI images: found, verified, unpacked once, and made into root file systems and bundles.
//!
//! A synchronous library without a daemon. The way of an image:
//!
//! 1. [`Reference`]: what a person wrote, `oci:DIR[:TAG]` or `oci-archive:FILE[:TAG]`.
//! 2. [`Store::resolve`]: the layout's index, manifest and configuration, every byte verified against its digest;
//!    layers that the store lacks are unpacked into it, all others are not even looked into.
//! 3. [`Store::create_container`]: a private writable layer; [`ContainerLayer::mount_at`] joins it with the image's
//!    layers to a root file system.
//! 4. [`bundle::create`]: the OCI bundle that a runtime starts, from the image's configuration and the user's wishes.

mod blob;
pub mod bundle;
mod digest;
mod discard;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod layer;
mod layout;
mod limits;
mod media_type;
mod reference;
mod rootfs;
mod store;
mod tar_stream;

pub use blob::BlobError;
pub use digest::{Digest, DigestError};
pub use layer::LayerError;
pub use layout::LayoutError;
pub use limits::Limits;
pub use reference::{Reference, ReferenceError};
pub use rootfs::{ContainerLayer, RootfsError, RootfsMount};
pub use store::{Image, Progress, Store, StoreError};
pub use tar_stream::TarError;
