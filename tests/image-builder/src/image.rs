//! An image: layers, configuration, manifest.

use std::io;

use serde_json::{Value, json};

use crate::content::{Blob, Compression, digest};
use crate::damage::Damage;
use crate::entry::{Entry, archive};

/// An image to be written.
#[derive(Debug, Clone)]
pub struct Image {
    layers: Vec<Layer>,
    config: serde_json::Map<String, Value>,
    architecture: String,
    docker_types: bool,
    damage: Vec<Damage>,
}

#[derive(Debug, Clone)]
struct Layer {
    content: Content,
    compression: Compression,
}

#[derive(Debug, Clone)]
enum Content {
    Entries(Vec<Entry>),
    /// An archive made elsewhere, or something that is none.
    Raw(Vec<u8>),
}

/// An image's blobs, as they go into a layout.
#[derive(Debug, Clone)]
pub struct Written {
    /// The manifest, and the media type its descriptor has.
    pub manifest: Blob,
    pub(crate) manifest_type: String,
    /// The configuration.
    pub config: Blob,
    /// The layers, the lowest first.
    pub layers: Vec<Blob>,
    /// Digests of the layers once decompressed, as the configuration says.
    pub diff_ids: Vec<String>,
    pub(crate) architecture: String,
}

impl Default for Image {
    fn default() -> Image {
        Image::new()
    }
}

impl Image {
    /// An image without layers, for the processor this program runs on.
    pub fn new() -> Image {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Image {
            layers: Vec::new(),
            config: serde_json::Map::new(),
            architecture: architecture.to_owned(),
            docker_types: false,
            damage: Vec::new(),
        }
    }

    /// Adds a layer on top.
    pub fn layer(mut self, compression: Compression, entries: impl IntoIterator<Item = Entry>) -> Image {
        let content = Content::Entries(entries.into_iter().collect());
        self.layers.push(Layer { content, compression });
        self
    }

    /// Adds a layer whose uncompressed bytes are given.
    pub fn raw_layer(mut self, compression: Compression, content: impl Into<Vec<u8>>) -> Image {
        self.layers.push(Layer {
            content: Content::Raw(content.into()),
            compression,
        });
        self
    }

    /// Sets any key of the configuration's `config`: `Env`, `User`, `WorkingDir`, …
    pub fn config(mut self, key: &str, value: Value) -> Image {
        self.config.insert(key.to_owned(), value);
        self
    }

    /// Sets the command.
    pub fn cmd<const N: usize>(self, words: [&str; N]) -> Image {
        self.config("Cmd", json!(words.to_vec()))
    }

    /// Sets the entry point.
    pub fn entrypoint<const N: usize>(self, words: [&str; N]) -> Image {
        self.config("Entrypoint", json!(words.to_vec()))
    }

    /// Sets the environment, as `NAME=VALUE`.
    pub fn env<const N: usize>(self, variables: [&str; N]) -> Image {
        self.config("Env", json!(variables.to_vec()))
    }

    /// Sets the user.
    pub fn user(self, user: &str) -> Image {
        self.config("User", json!(user))
    }

    /// Sets the working directory.
    pub fn working_directory(self, path: &str) -> Image {
        self.config("WorkingDir", json!(path))
    }

    /// Makes it an image for another processor, in Go's name for it.
    pub fn architecture(self, architecture: &str) -> Image {
        Image {
            architecture: architecture.to_owned(),
            ..self
        }
    }

    /// Uses the media types of Docker's schema 2.
    pub fn docker_types(self) -> Image {
        Image {
            docker_types: true,
            ..self
        }
    }

    /// Breaks it.
    pub fn damage(mut self, damage: Damage) -> Image {
        self.damage.push(damage);
        self
    }

    /// Makes the image's blobs.
    ///
    /// # Errors
    /// Those of an archive's writer: a number that does not fit its field.
    pub fn write(&self) -> io::Result<Written> {
        let (mut layers, mut diff_ids, mut descriptors) = (Vec::new(), Vec::new(), Vec::new());
        for (index, layer) in self.layers.iter().enumerate() {
            let content = match &layer.content {
                Content::Entries(entries) => archive(entries)?,
                Content::Raw(content) => content.clone(),
            };
            let mut blob = Blob::of(layer.compression.apply(&content)?);
            let mut media_type = self.layer_type(layer.compression).to_owned();
            let mut diff_id = digest(&content);
            for damage in &self.damage {
                match damage {
                    Damage::LayerContent(at) if *at == index => blob.corrupt(),
                    Damage::LayerMissing(at) if *at == index => blob.content = None,
                    Damage::LayerSize(at, size) if *at == index => blob.size = *size,
                    Damage::LayerMediaType(at, wrong) if *at == index => media_type = (*wrong).to_owned(),
                    Damage::LayerDiffId(at) if *at == index => diff_id = digest(b"something else"),
                    _ => {}
                }
            }
            descriptors.push(descriptor(&media_type, &blob));
            layers.push(blob);
            diff_ids.push(diff_id);
        }
        let config = self.write_config(&diff_ids);
        let manifest = self.write_manifest(&config, &descriptors);
        let mut manifest_type = self.pick("oci.image.manifest.v1", "docker.distribution.manifest.v2");
        for damage in &self.damage {
            if let Damage::ManifestMediaType(wrong) = damage {
                manifest_type = (*wrong).to_owned();
            }
        }
        let architecture = self.architecture.clone();
        Ok(Written {
            manifest,
            manifest_type,
            config,
            layers,
            diff_ids,
            architecture,
        })
    }

    fn write_config(&self, diff_ids: &[String]) -> Blob {
        let missing = usize::from(self.damage.contains(&Damage::DiffIdMissing));
        let known: Vec<&String> = diff_ids.iter().skip(missing).collect();
        let document = json!({
            "architecture": self.architecture,
            "os": "linux",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": known },
            // Builders count a base image's layers by it.
            "history": known.iter().map(|_| json!({ "created_by": "image-builder" })).collect::<Vec<_>>(),
        });
        let mut blob = Blob::of(document.to_string().into_bytes());
        if self.damage.contains(&Damage::ConfigContent) {
            blob.corrupt();
        }
        blob
    }

    fn write_manifest(&self, config: &Blob, layers: &[Value]) -> Blob {
        let mut config_type = self.pick("oci.image.config.v1", "docker.container.image.v1");
        let mut text = None;
        for damage in &self.damage {
            match damage {
                Damage::ConfigMediaType(wrong) => config_type = (*wrong).to_owned(),
                Damage::ManifestText(wrong) => text = Some((*wrong).to_owned()),
                _ => {}
            }
        }
        let document = json!({
            "schemaVersion": 2,
            "mediaType": self.pick("oci.image.manifest.v1", "docker.distribution.manifest.v2"),
            "config": descriptor(&config_type, config),
            "layers": layers,
        });
        let mut blob = Blob::of(text.unwrap_or_else(|| document.to_string()).into_bytes());
        for damage in &self.damage {
            match damage {
                Damage::ManifestContent => blob.corrupt(),
                Damage::ManifestMissing => blob.content = None,
                Damage::ManifestSize(size) => blob.size = *size,
                _ => {}
            }
        }
        blob
    }

    fn pick(&self, oci: &str, docker: &str) -> String {
        format!(
            "application/vnd.{}+json",
            if self.docker_types { docker } else { oci }
        )
    }

    fn layer_type(&self, compression: Compression) -> &'static str {
        match (self.docker_types, compression) {
            (false, Compression::None) => "application/vnd.oci.image.layer.v1.tar",
            (false, Compression::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (false, Compression::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (true, Compression::None) => "application/vnd.docker.image.rootfs.diff.tar",
            (true, Compression::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (true, Compression::Zstd) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
        }
    }
}

pub(crate) fn descriptor(media_type: &str, blob: &Blob) -> Value {
    json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.size })
}
