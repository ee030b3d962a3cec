//! The documents of imported images, kept byte for byte under their digests: they say which layers are in use, and
//! of which image.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Store, StoreError};
use crate::layout::LayoutImage;

const MANIFESTS: &str = "manifests/sha256";
const CONFIGS: &str = "configs/sha256";

impl Store {
    /// Whether an import of the image came to its end: the manifest is written last.
    pub(super) fn documents_are_kept(&self, image: &LayoutImage) -> bool {
        self.root.join(MANIFESTS).join(image.digest.hex()).is_file()
    }

    pub(super) fn keep_documents(&self, image: &LayoutImage) -> Result<(), StoreError> {
        for (folder, digest, content) in [
            (CONFIGS, image.config_digest, &image.config_bytes),
            (MANIFESTS, image.digest, &image.manifest),
        ] {
            let folder = self.root.join(folder);
            let name = digest.hex();
            let path = folder.join(&name);
            if !path.exists() {
                write_whole(&folder, &name, content).map_err(|source| StoreError::Write {
                    action: "writing",
                    path,
                    source,
                })?;
            }
        }
        Ok(())
    }
}

/// Writes a file that has either its whole content or does not exist, even after a power cut.
pub(super) fn write_whole(folder: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
    let incoming = folder.join(format!(".{name}.{}-{number}", std::process::id()));
    let written = File::create(&incoming).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&incoming, folder.join(name))
    });
    if let Err(error) = written {
        // The first failure is the one to report; this one only tidies up after it.
        let _ = std::fs::remove_file(&incoming);
        return Err(error);
    }
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_else_is_left() {
        let place = tempfile::tempdir().unwrap();
        write_whole(place.path(), "name", b"long content").unwrap();
        write_whole(place.path(), "name", b"short").unwrap();
        assert_eq!(std::fs::read(place.path().join("name")).unwrap(), b"short");
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir(place.path().join("name")).unwrap();
        write_whole(place.path(), "name", b"content").unwrap_err();
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
    }
}
