//! An OCI image layout, as a folder or as a tar file.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use crate::content::Blob;
use crate::entry::{Entry, archive};
use crate::image::{Image, descriptor};

/// Media type of an index.
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A layout to be written.
#[derive(Debug, Clone)]
pub struct Layout {
    version: String,
    index: Vec<Value>,
    blobs: BTreeMap<String, Vec<u8>>,
    missing: Vec<&'static str>,
    failure: Option<(io::ErrorKind, String)>,
}

impl Default for Layout {
    fn default() -> Layout {
        Layout::new()
    }
}

impl Layout {
    /// A layout without images.
    pub fn new() -> Layout {
        Layout {
            version: "1.0.0".to_owned(),
            index: Vec::new(),
            blobs: BTreeMap::new(),
            missing: Vec::new(),
            failure: None,
        }
    }

    /// Adds an image under a tag; an empty tag is none.
    pub fn add(mut self, image: &Image, tag: &str) -> Layout {
        if let Some(mut entry) = self.add_blobs(image) {
            tag_with(&mut entry, tag);
            self.index.push(entry);
        }
        self
    }

    /// Adds an index of images for several platforms under a tag, `depth` indexes deep: 1 is the usual.
    pub fn add_index(mut self, images: &[&Image], tag: &str, depth: usize) -> Layout {
        let mut entries: Vec<Value> = images
            .iter()
            .filter_map(|image| {
                let mut entry = self.add_blobs(image)?;
                entry["platform"] =
                    json!({ "os": "linux", "architecture": image.write().ok()?.architecture });
                Some(entry)
            })
            .collect();
        for _ in 0..depth {
            let document = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
            let blob = Blob::of(document.to_string().into_bytes());
            entries = vec![descriptor(INDEX, &blob)];
            self.keep(blob);
        }
        for entry in &mut entries {
            tag_with(entry, tag);
        }
        self.index.extend(entries);
        self
    }

    /// Leaves out `oci-layout` or `index.json`.
    pub fn without(mut self, file: &'static str) -> Layout {
        self.missing.push(file);
        self
    }

    /// Claims another version of the format.
    pub fn version(self, version: &str) -> Layout {
        Layout {
            version: version.to_owned(),
            ..self
        }
    }

    /// Writes the layout into a folder, which is made.
    ///
    /// # Errors
    /// Those of the file system, and of the images that were added.
    pub fn write_folder(&self, folder: &Path) -> io::Result<()> {
        std::fs::create_dir_all(folder.join("blobs/sha256"))?;
        for (name, content) in self.files()? {
            std::fs::write(folder.join(name), content)?;
        }
        Ok(())
    }

    /// Writes the layout into an uncompressed tar file.
    ///
    /// # Errors
    /// Those of the file system, and of the images that were added.
    pub fn write_archive(&self, file: &Path) -> io::Result<()> {
        let mut entries = vec![Entry::folder("blobs"), Entry::folder("blobs/sha256")];
        entries.extend(
            self.files()?
                .into_iter()
                .map(|(name, content)| Entry::file(name, content)),
        );
        std::fs::write(file, archive(&entries)?)
    }

    fn files(&self) -> io::Result<BTreeMap<String, Vec<u8>>> {
        if let Some((kind, text)) = &self.failure {
            return Err(io::Error::new(*kind, text.clone()));
        }
        let mut files = BTreeMap::from([
            (
                "oci-layout".to_owned(),
                json!({ "imageLayoutVersion": self.version })
                    .to_string()
                    .into_bytes(),
            ),
            (
                "index.json".to_owned(),
                json!({ "schemaVersion": 2, "manifests": self.index })
                    .to_string()
                    .into_bytes(),
            ),
        ]);
        files.retain(|name, _| !self.missing.contains(&name.as_str()));
        for (digest, content) in &self.blobs {
            files.insert(format!("blobs/{}", digest.replace(':', "/")), content.clone());
        }
        Ok(files)
    }

    fn add_blobs(&mut self, image: &Image) -> Option<Value> {
        match image.write() {
            Ok(written) => {
                let entry = descriptor(&written.manifest_type, &written.manifest);
                for blob in written
                    .layers
                    .into_iter()
                    .chain([written.config, written.manifest])
                {
                    self.keep(blob);
                }
                Some(entry)
            }
            Err(error) => {
                // Told when the layout is written, so that calls can be chained.
                self.failure = Some((error.kind(), error.to_string()));
                None
            }
        }
    }

    fn keep(&mut self, blob: Blob) {
        if let Some(content) = blob.content {
            self.blobs.insert(blob.digest, content);
        }
    }
}

fn tag_with(entry: &mut Value, tag: &str) {
    if !tag.is_empty() {
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
    }
}
