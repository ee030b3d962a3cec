//! Which wall a pod stands behind, and the one way to say it.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use crate::annotations::{self, AnnotationError, ISOLATION_ANNOTATION};

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
    /// When an annotation of ours is unknown, or has a value that is none.
    pub fn from_annotations(annotations: &HashMap<String, String>) -> Result<Option<Self>, AnnotationError> {
        annotations::check(annotations)?;
        let wall = annotations.get(ISOLATION_ANNOTATION);
        Ok(wall.map(|wall| wall.parse()).transpose()?)
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
    fn the_annotation_names_the_wall() {
        let annotations = HashMap::from([(ISOLATION_ANNOTATION.to_owned(), "shared-kernel".to_owned())]);
        assert_eq!(
            Isolation::from_annotations(&annotations),
            Ok(Some(Isolation::SharedKernel))
        );
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
