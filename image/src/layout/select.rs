//! Which of a layout's images is meant: by tag, then by platform through nested indexes.

use std::collections::BTreeSet;

use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, Os};

use super::{Layout, LayoutError, parse};
use crate::blob::Promise;
use crate::digest::Digest;
use crate::limits::Limits;
use crate::media_type::{self, Node};

/// Annotation that carries the tag (image-spec, `annotations.md`).
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation in which containerd and Docker keep the full name beside it.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// The tag taken when none is given.
const DEFAULT_TAG: &str = "latest";

/// Indexes below index.json at most. Builders write one.
const DEEPEST: usize = 4;

impl Layout {
    /// The descriptor of the manifest that `tag` and the host's platform choose.
    pub(super) fn select(&self, tag: Option<&str>, limits: &Limits) -> Result<Descriptor, LayoutError> {
        let candidates = self.tagged(tag)?;
        let place = format!("{}", self.path.display());
        let mut chosen = choose(&candidates, &place)?.clone();
        for _ in 0..=DEEPEST {
            let media_type = chosen.media_type().as_ref();
            match media_type::node(media_type) {
                Some(Node::Manifest) => return Ok(chosen),
                Some(Node::Index) => {}
                None => {
                    return Err(LayoutError::MediaType {
                        place: format!("the image {} in {}", chosen.digest(), self.path.display()),
                        media_type: media_type.escape_debug().to_string(),
                        expected: "an OCI or Docker image manifest or index",
                    });
                }
            }
            let document = || format!("index {}", chosen.digest());
            let promise = Promise::of(&chosen).map_err(|source| LayoutError::Blob {
                document: document(),
                source,
            })?;
            let content = self.read_blob(promise, limits, document)?;
            let index: ImageIndex = parse(&content, document)?;
            let candidates: Vec<&Descriptor> = index.manifests().iter().collect();
            let place = document();
            chosen = choose(&candidates, &place)?.clone();
        }
        Err(LayoutError::TooDeep {
            path: self.path.clone(),
            limit: DEEPEST,
        })
    }

    /// The entries of index.json with `tag`. Without a tag: the only image, or the one tagged `latest`.
    fn tagged(&self, tag: Option<&str>) -> Result<Vec<&Descriptor>, LayoutError> {
        let all = self.index.manifests();
        if all.is_empty() {
            return Err(LayoutError::Empty {
                path: self.path.clone(),
            });
        }
        let distinct: BTreeSet<&str> = all
            .iter()
            .map(|descriptor| descriptor.digest().as_ref())
            .collect();
        if tag.is_none() && distinct.len() == 1 {
            return Ok(all.iter().collect());
        }
        let wanted = tag.unwrap_or(DEFAULT_TAG);
        let found: Vec<&Descriptor> = all
            .iter()
            .filter(|entry| names(entry).any(|n| n == wanted))
            .collect();
        let path = self.path.clone();
        match (found.is_empty(), tag) {
            (true, Some(tag)) => Err(LayoutError::NoSuchTag {
                path,
                tag: tag.to_owned(),
                present: tags(all),
            }),
            (true, None) => Err(LayoutError::TagNeeded {
                path,
                present: tags(all),
            }),
            (false, _) => {
                // Several entries may share a tag if each is for a platform of its own.
                let distinct: BTreeSet<&str> = found.iter().map(|entry| entry.digest().as_ref()).collect();
                if distinct.len() > 1 && found.iter().any(|entry| entry.platform().is_none()) {
                    return Err(LayoutError::AmbiguousTag {
                        path,
                        tag: wanted.to_owned(),
                    });
                }
                Ok(found)
            }
        }
    }
}

fn names(descriptor: &Descriptor) -> impl Iterator<Item = &str> {
    let annotations = descriptor.annotations().iter();
    annotations.flat_map(|map| {
        [REF_NAME, CONTAINERD_NAME]
            .into_iter()
            .filter_map(|key| map.get(key).map(String::as_str))
    })
}

/// The tags in an index, for a message: bounded, because the index is not ours.
fn tags(all: &[Descriptor]) -> String {
    const SHOWN: usize = 20;
    let tags: BTreeSet<String> = all
        .iter()
        .flat_map(names)
        .map(|tag| tag.escape_debug().to_string())
        .collect();
    if tags.is_empty() {
        return "only images without a tag".to_owned();
    }
    let shown = tags
        .iter()
        .take(SHOWN)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    if tags.len() > SHOWN {
        format!("{shown} and {} more", tags.len() - SHOWN)
    } else {
        shown
    }
}

/// The entry for this platform, or the first that states none: a lone manifest's platform is in its configuration.
fn choose<'a>(candidates: &[&'a Descriptor], place: &str) -> Result<&'a Descriptor, LayoutError> {
    let matching = |entry: &&&'a Descriptor| {
        entry
            .platform()
            .as_ref()
            .is_some_and(|platform| is_host(platform.os(), platform.architecture()))
    };
    let unstated = |entry: &&&'a Descriptor| entry.platform().is_none();
    candidates
        .iter()
        .find(matching)
        .or_else(|| candidates.iter().find(unstated))
        .copied()
        .ok_or_else(|| {
            let platforms = candidates.iter().filter_map(|entry| entry.platform().as_ref());
            let present: BTreeSet<String> = platforms
                .map(|platform| {
                    format!("{}/{}", platform.os(), platform.architecture())
                        .escape_debug()
                        .to_string()
                })
                .take(20)
                .collect();
            let present = if present.is_empty() {
                "none at all".to_owned()
            } else {
                present.into_iter().collect::<Vec<_>>().join(", ")
            };
            LayoutError::NoPlatform {
                place: place.to_owned(),
                wanted: host_platform(),
                present,
            }
        })
}

/// Refuses a configuration made for another kernel or processor.
pub(super) fn check_platform(config: &ImageConfiguration, manifest: Digest) -> Result<(), LayoutError> {
    if is_host(config.os(), config.architecture()) {
        return Ok(());
    }
    Err(LayoutError::NoPlatform {
        place: format!("manifest {manifest}"),
        wanted: host_platform(),
        present: format!("{}/{}", config.os(), config.architecture())
            .escape_debug()
            .to_string(),
    })
}

fn is_host(os: &Os, architecture: &Arch) -> bool {
    *os == Os::Linux && *architecture == Arch::default()
}

fn host_platform() -> String {
    format!("linux/{}", Arch::default())
}
