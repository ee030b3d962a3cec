//! Which wall a pod stands behind, and the one way to say it.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

/// Every annotation of ours begins so; unknown ones are errors, so that a misspelt wall is never a weaker wall.
pub const ANNOTATION_PREFIX: &str = "dev.bulkhead.";

/// The annotation that chooses the wall.
pub const ISOLATION_ANNOTATION: &str = "dev.bulkhead.isolation";

/// The annotation that names the container whose sandbox another one joins.
pub const SANDBOX_ANNOTATION: &str = "dev.bulkhead.sandbox";

/// The annotation that names the disk, an image or a block device, that is a container's root behind the microVM wall.
pub const ROOT_SOURCE_ANNOTATION: &str = "dev.bulkhead.root.source";

/// The annotation that names the file system on it.
pub const ROOT_TYPE_ANNOTATION: &str = "dev.bulkhead.root.type";

/// The wall between a pod and its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// A KVM microVM of the pod's own.
    #[default]
    #[serde(rename = "microvm")]
    MicroVm,
    /// Namespaces and cgroups on the host's kernel.
    SharedKernel,
}

/// What decided on the wall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChosenBy {
    /// `--isolation`.
    Flag,
    /// The annotation [`ISOLATION_ANNOTATION`].
    Annotation,
    /// The configuration file.
    Configuration,
    /// Nobody said anything.
    Default,
}

/// A word that names no wall.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no isolation: say microvm or shared-kernel")]
pub struct UnknownIsolation(String);

/// Why annotations were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    /// An annotation in our namespace that has no meaning.
    #[error(
        "unknown annotation {name:?}: {ANNOTATION_PREFIX}* has {ISOLATION_ANNOTATION}, {SANDBOX_ANNOTATION}, \
         {ROOT_SOURCE_ANNOTATION} and {ROOT_TYPE_ANNOTATION}"
    )]
    Unknown {
        /// Its name.
        name: String,
    },
    /// An annotation that means nothing behind the other wall.
    #[error(
        "annotation {name:?}: only a virtual machine can be given a disk as a root; mount it, and name the folder as \
         root.path, or choose `--isolation microvm`"
    )]
    MicroVmOnly {
        /// Its name.
        name: String,
    },
    /// A wall that does not exist.
    #[error("reading annotation {ISOLATION_ANNOTATION}")]
    Isolation(#[from] UnknownIsolation),
}

impl Isolation {
    /// The word of annotations, flags and configuration files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MicroVm => "microvm",
            Self::SharedKernel => "shared-kernel",
        }
    }

    /// The wall that annotations ask for, if they do.
    ///
    /// # Errors
    /// When an annotation in our namespace is unknown or names no wall.
    pub fn from_annotations(annotations: &HashMap<String, String>) -> Result<Option<Self>, AnnotationError> {
        let mut isolation = None;
        for (name, value) in annotations
            .iter()
            .filter(|(name, _)| name.starts_with(ANNOTATION_PREFIX))
        {
            match name.as_str() {
                ISOLATION_ANNOTATION => isolation = Some(value.parse()?),
                SANDBOX_ANNOTATION | ROOT_SOURCE_ANNOTATION | ROOT_TYPE_ANNOTATION => {}
                _ => return Err(AnnotationError::Unknown { name: name.clone() }),
            }
        }
        Ok(isolation)
    }

    /// Refuses annotations that mean nothing behind this wall.
    ///
    /// # Errors
    /// With the annotation.
    pub fn check(self, annotations: Option<&HashMap<String, String>>) -> Result<(), AnnotationError> {
        let said = |name: &&str| annotations.is_some_and(|annotations| annotations.contains_key(*name));
        match [ROOT_SOURCE_ANNOTATION, ROOT_TYPE_ANNOTATION]
            .iter()
            .find(|name| said(name))
        {
            Some(name) if self == Self::SharedKernel => Err(AnnotationError::MicroVmOnly {
                name: (*name).to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// The flag wins over the annotation, the annotation over the configuration, and the microVM is the default.
    pub fn choose(flag: Option<Self>, annotation: Option<Self>, configured: Option<Self>) -> Self {
        Self::choose_and_tell(flag, annotation, configured).0
    }

    /// The same, and what decided.
    pub fn choose_and_tell(
        flag: Option<Self>,
        annotation: Option<Self>,
        configured: Option<Self>,
    ) -> (Self, ChosenBy) {
        let said = [
            (flag, ChosenBy::Flag),
            (annotation, ChosenBy::Annotation),
            (configured, ChosenBy::Configuration),
        ];
        said.into_iter()
            .find_map(|(wall, by)| Some((wall?, by)))
            .unwrap_or((Self::default(), ChosenBy::Default))
    }
}

impl FromStr for Isolation {
    type Err = UnknownIsolation;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        [Self::MicroVm, Self::SharedKernel]
            .into_iter()
            .find(|isolation| isolation.as_str() == word)
            .ok_or_else(|| UnknownIsolation(word.to_owned()))
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn nothing_said_is_a_microvm() {
        assert_eq!(Isolation::choose(None, None, None), Isolation::MicroVm);
    }

    #[test]
    fn the_flag_wins_over_annotation_and_configuration() {
        let chosen = Isolation::choose(
            Some(Isolation::SharedKernel),
            Some(Isolation::MicroVm),
            Some(Isolation::MicroVm),
        );
        assert_eq!(chosen, Isolation::SharedKernel);
    }

    #[test]
    fn what_decided_is_told() {
        let (micro_vm, shared) = (Some(Isolation::MicroVm), Some(Isolation::SharedKernel));
        for (flag, annotation, configured, by) in [
            (shared, micro_vm, micro_vm, ChosenBy::Flag),
            (None, shared, micro_vm, ChosenBy::Annotation),
            (None, None, shared, ChosenBy::Configuration),
        ] {
            let chosen = Isolation::choose_and_tell(flag, annotation, configured);
            assert_eq!(chosen, (Isolation::SharedKernel, by));
        }
        assert_eq!(Isolation::choose_and_tell(None, None, None).1, ChosenBy::Default);
    }

    #[test]
    fn the_annotation_wins_over_the_configuration() {
        let chosen = Isolation::choose(None, Some(Isolation::MicroVm), Some(Isolation::SharedKernel));
        assert_eq!(chosen, Isolation::MicroVm);
    }

    #[test]
    fn foreign_annotations_are_left_alone() {
        let annotations = annotations(&[("io.kubernetes.cri.sandbox-id", "x")]);
        assert_eq!(Isolation::from_annotations(&annotations), Ok(None));
    }

    #[test]
    fn the_annotation_names_the_wall() {
        let annotations = annotations(&[(ISOLATION_ANNOTATION, "shared-kernel")]);
        assert_eq!(
            Isolation::from_annotations(&annotations),
            Ok(Some(Isolation::SharedKernel))
        );
    }

    #[test]
    fn an_unknown_annotation_of_ours_is_an_error() {
        let annotations = annotations(&[("dev.bulkhead.isolatoin", "microvm")]);
        let error = Isolation::from_annotations(&annotations).unwrap_err();
        assert!(error.to_string().contains("dev.bulkhead.isolatoin"), "{error}");
    }

    #[test]
    fn an_unknown_wall_names_both_walls() {
        let error = "firecracker".parse::<Isolation>().unwrap_err();
        assert_eq!(
            error.to_string(),
            r#""firecracker" names no isolation: say microvm or shared-kernel"#
        );
    }
}
