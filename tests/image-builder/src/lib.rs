//! Writes OCI images for tests and the demo: sound ones, and ones damaged in a chosen way.
//!
//! It shares no code with the crate that reads images, so that neither's mistake hides the other's. What it writes
//! is deterministic: the same calls make the same bytes.
//!
//! ```no_run
//! use image_builder::{Compression, Entry, Image, Layout};
//!
//! let image = Image::new()
//!     .layer(Compression::Gzip, [Entry::folder("etc"), Entry::file("etc/motd", "hello\n").mode(0o600)])
//!     .layer(Compression::None, [Entry::whiteout("etc/motd")])
//!     .cmd(["/bin/sh"]);
//! Layout::new().add(&image, "latest").write_folder("out".as_ref()).unwrap();
//! ```

pub mod busybox;
mod content;
mod damage;
mod entry;
mod image;
mod layout;

pub use content::{Blob, Compression, digest};
pub use damage::Damage;
pub use entry::Entry;
pub use image::{Image, Written};
pub use layout::Layout;
