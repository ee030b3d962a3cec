//! What a person writes to name an image.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// An image's name: where it lies and which of the images there is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reference {
    /// `oci:DIR[:TAG]`: an OCI image layout in a folder.
    Layout {
        /// The folder that holds `oci-layout` and `index.json`.
        folder: PathBuf,
        /// The tag, when one was given.
        tag: Option<String>,
    },
    /// `oci-archive:FILE[:TAG]`: an OCI image layout in an uncompressed tar file.
    Archive {
        /// The tar file.
        file: PathBuf,
        /// The tag, when one was given.
        tag: Option<String>,
    },
}

/// Why a text names no image.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReferenceError {
    /// None of the forms.
    #[error(
        "`{0}` names no image that can be read: the forms are oci:DIR[:TAG] and oci-archive:FILE[:TAG] \
         (images are not pulled from registries yet: `skopeo copy docker://NAME oci:DIR:TAG` makes a folder of one)"
    )]
    UnknownForm(String),
    /// A form's prefix with nothing behind it.
    #[error("`{0}` does not say where the image is: write {1}PATH or {1}PATH:TAG")]
    NoPath(String, &'static str),
    /// A tag outside the specification's grammar.
    #[error(
        "tag `{tag}` in `{reference}` is malformed: letters and digits, with one of - . _ : @ + / between them \
         (the path ends at the first colon)"
    )]
    MalformedTag {
        /// The whole text.
        reference: String,
        /// What stood where a tag was expected.
        tag: String,
    },
}

const LAYOUT: &str = "oci:";
const ARCHIVE: &str = "oci-archive:";

impl Reference {
    /// The folder or file the image lies in.
    pub fn path(&self) -> &Path {
        match self {
            Reference::Layout { folder: path, .. } | Reference::Archive { file: path, .. } => path,
        }
    }

    /// The tag, when one was given.
    pub fn tag(&self) -> Option<&str> {
        match self {
            Reference::Layout { tag, .. } | Reference::Archive { tag, .. } => tag.as_deref(),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        if let Some(rest) = text.strip_prefix(LAYOUT) {
            let (folder, tag) = split(text, rest, LAYOUT)?;
            Ok(Reference::Layout { folder, tag })
        } else if let Some(rest) = text.strip_prefix(ARCHIVE) {
            let (file, tag) = split(text, rest, ARCHIVE)?;
            Ok(Reference::Archive { file, tag })
        } else {
            Err(ReferenceError::UnknownForm(text.escape_debug().to_string()))
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = match self {
            Reference::Layout { .. } => LAYOUT,
            Reference::Archive { .. } => ARCHIVE,
        };
        write!(f, "{prefix}{}", self.path().display())?;
        match self.tag() {
            Some(tag) => write!(f, ":{tag}"),
            None => Ok(()),
        }
    }
}

/// Splits `PATH[:TAG]` at the first colon, as podman and skopeo do: a tag may hold colons (a full image name is
/// one), a path may not.
fn split(whole: &str, rest: &str, prefix: &'static str) -> Result<(PathBuf, Option<String>), ReferenceError> {
    let (path, tag) = match rest.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (rest, None),
    };
    if path.is_empty() || path.contains('\0') {
        return Err(ReferenceError::NoPath(whole.escape_debug().to_string(), prefix));
    }
    match tag {
        Some(tag) if !is_ref_name(tag) => Err(ReferenceError::MalformedTag {
            reference: whole.escape_debug().to_string(),
            tag: tag.escape_debug().to_string(),
        }),
        _ => Ok((PathBuf::from(path), tag.map(str::to_owned))),
    }
}

/// Whether `name` follows the grammar of `org.opencontainers.image.ref.name` (image-spec, `annotations.md`):
/// components between slashes, each letters and digits with single separators (or `--`) between.
fn is_ref_name(name: &str) -> bool {
    name.split('/').all(|component| {
        let alphanumeric = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric());
        component
            .replace("--", "-")
            .split(['-', '.', '_', ':', '@', '+'])
            .all(alphanumeric)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn folder_without_tag_has_none() {
        let reference: Reference = "oci:images/busybox".parse().unwrap();
        assert_eq!(
            reference,
            Reference::Layout {
                folder: "images/busybox".into(),
                tag: None
            }
        );
    }

    #[test]
    fn archive_with_tag_keeps_both() {
        let reference: Reference = "oci-archive:/a/b.tar:1.36".parse().unwrap();
        assert_eq!(
            reference,
            Reference::Archive {
                file: "/a/b.tar".into(),
                tag: Some("1.36".into())
            }
        );
    }

    #[test]
    fn a_full_image_name_is_a_tag() {
        let reference: Reference = "oci:dir:docker.io/library/busybox:1.36".parse().unwrap();
        assert_eq!(reference.path(), Path::new("dir"));
        assert_eq!(reference.tag(), Some("docker.io/library/busybox:1.36"));
    }

    #[test]
    fn other_forms_are_refused_with_the_known_ones_named() {
        for text in [
            "",
            "busybox",
            "busybox:latest",
            "docker://busybox",
            "OCI:dir",
            "/dir",
            "oci",
        ] {
            let error = text.parse::<Reference>().unwrap_err();
            assert!(matches!(error, ReferenceError::UnknownForm(_)), "{text}: {error}");
            assert!(error.to_string().contains("oci:DIR[:TAG]"));
            assert!(error.to_string().contains("oci-archive:FILE[:TAG]"));
        }
    }

    #[test]
    fn a_missing_path_is_refused() {
        for text in ["oci:", "oci::tag", "oci-archive:", "oci-archive::x"] {
            assert!(
                matches!(text.parse::<Reference>(), Err(ReferenceError::NoPath(..))),
                "{text}"
            );
        }
    }

    #[test]
    fn malformed_tags_are_refused() {
        for tag in [
            "", "-a", "a-", "a..b", "a b", "a\n", "/a", "a/", "a//b", "é", "a---b",
        ] {
            let text = format!("oci:dir:{tag}");
            assert!(
                matches!(
                    text.parse::<Reference>(),
                    Err(ReferenceError::MalformedTag { .. })
                ),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_parses_back_to_the_same(
            archive: bool,
            path in "[a-z/. _-]{1,40}",
            tag in proptest::option::of("[a-z0-9]{1,9}([-._:@+/][A-Za-z0-9]{1,9}){0,3}"),
        ) {
            let reference = if archive {
                Reference::Archive { file: path.into(), tag }
            } else {
                Reference::Layout { folder: path.into(), tag }
            };
            prop_assert_eq!(reference.to_string().parse::<Reference>(), Ok(reference));
        }

        #[test]
        fn any_text_parses_or_is_refused_without_panic(text in "\\PC{0,60}") {
            let _ = text.parse::<Reference>();
            let _ = format!("oci:{text}").parse::<Reference>();
        }
    }
}
