//! Which pod a container belongs to.

use std::path::Path;

use container::{ContainerId, InvalidContainerId};
use serde_json::Value;

use super::folder::Folder;
use super::record::GuestContainer;
use crate::annotations::SANDBOX_ANNOTATION;

/// How those who make pods name a container's part in one, and the sandbox it belongs to.
const CONVENTIONS: [(&str, &str); 2] = [
    // containerd's CRI plugin
    ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"),
    // CRI-O, and podman after it
    (
        "io.kubernetes.cri-o.ContainerType",
        "io.kubernetes.cri-o.SandboxID",
    ),
];

/// The part of one that others join.
const SANDBOX: &str = "sandbox";
/// The part of one that joins.
const CONTAINER: &str = "container";

/// A container's place among pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Membership {
    /// It has a sandbox of its own, and others may join it there.
    Founder {
        /// Whether it is there to be joined: the sandbox then waits for others when it has ended.
        of_a_pod: bool,
    },
    /// It joins the sandbox of this container.
    Member(ContainerId),
}

/// Why a container's pod cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// An annotation does not name a container.
    #[error("annotation {annotation}")]
    Id {
        /// The annotation.
        annotation: &'static str,
        /// What is wrong.
        #[source]
        source: InvalidContainerId,
    },
    /// An annotation names a part that there is not.
    #[error("annotation {annotation}: {value:?} is neither \"{SANDBOX}\" nor \"{CONTAINER}\"")]
    Part {
        /// The annotation.
        annotation: &'static str,
        /// Its value.
        value: String,
    },
    /// A container of a pod that does not say which.
    #[error("annotation {annotation} is missing beside the one that makes this a container of a pod")]
    NoSandbox {
        /// The annotation.
        annotation: &'static str,
    },
    /// Two annotations that name different sandboxes.
    #[error("annotation {SANDBOX_ANNOTATION} does not name the sandbox that {annotation} does")]
    Contradiction {
        /// The other annotation.
        annotation: &'static str,
    },
}

impl Membership {
    /// The place of a container with this configuration, whose state is to be below `root`.
    ///
    /// # Errors
    /// When its annotations contradict themselves.
    pub fn of(config: &Value, root: &Path) -> Result<Self, MembershipError> {
        let annotation = |name: &str| config.get("annotations")?.get(name)?.as_str();
        let ours = annotation(SANDBOX_ANNOTATION);
        for (part, sandbox) in CONVENTIONS {
            // Who makes pods says which is which. An annotation that the pod's author may have written does not gainsay it.
            if annotation(part).is_some() && ours.is_some() && ours != annotation(sandbox) {
                return Err(MembershipError::Contradiction { annotation: sandbox });
            }
            match annotation(part) {
                None => {}
                Some(SANDBOX) => return Ok(Self::Founder { of_a_pod: true }),
                Some(CONTAINER) => {
                    return match annotation(sandbox) {
                        Some(id) => member(sandbox, id),
                        None => Err(MembershipError::NoSandbox { annotation: sandbox }),
                    };
                }
                Some(value) => {
                    return Err(MembershipError::Part {
                        annotation: part,
                        value: value.to_owned(),
                    });
                }
            }
        }
        if let Some(sandbox) = ours {
            return member(SANDBOX_ANNOTATION, sandbox);
        }
        // podman's pods: a container names the namespaces of the first by its process.
        let joined = namespaces(config).find_map(|(_, path)| attendant_of(path?));
        match joined.and_then(|pid| attended_by(root, pid)) {
            Some(container) => Ok(Self::Member(
                // Written down by us, who had it checked.
                container.sandbox.parse().map_err(|source| MembershipError::Id {
                    annotation: SANDBOX_ANNOTATION,
                    source,
                })?,
            )),
            None => Ok(Self::Founder { of_a_pod: false }),
        }
    }
}

fn member(annotation: &'static str, id: &str) -> Result<Membership, MembershipError> {
    match id.parse() {
        Ok(id) => Ok(Membership::Member(id)),
        Err(source) => Err(MembershipError::Id { annotation, source }),
    }
}

/// The kinds of the configuration's namespaces, and their paths where they have one.
pub fn namespaces(config: &Value) -> impl Iterator<Item = (&str, Option<&str>)> {
    config
        .pointer("/linux/namespaces")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|namespace| {
            let kind = namespace.get("type")?.as_str()?;
            Some((kind, namespace.get("path").and_then(Value::as_str)))
        })
}

/// The network namespace of the host that the configuration names. One without a name would be new, with nothing in it.
pub fn network_namespace(config: &Value) -> Option<&Path> {
    namespaces(config)
        .find(|(kind, _)| *kind == "network")
        .and_then(|(_, path)| path)
        .filter(|path| !path.is_empty())
        .map(Path::new)
}

/// The process whose namespace the path is.
pub fn attendant_of(path: &str) -> Option<i32> {
    let (pid, _) = path.strip_prefix("/proc/")?.split_once("/ns/")?;
    pid.parse().ok()
}

/// The container below `root` that the living process `pid` stands for. One whose record cannot be read is none to join.
pub fn attended_by(root: &Path, pid: i32) -> Option<GuestContainer> {
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(Ok(id)) = name.to_str().map(str::parse::<ContainerId>) else {
            continue;
        };
        let Ok(Some(container)) = GuestContainer::read(&Folder::of(root, &id)) else {
            continue;
        };
        let stands_for_it = |attendant: container::ProcessIdentity| {
            attendant.pid == pid && attendant.is_alive().unwrap_or(false)
        };
        if container.attendant.is_some_and(stands_for_it) {
            return Some(container);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(annotations: Value) -> Result<Membership, MembershipError> {
        Membership::of(&json!({ "annotations": annotations }), Path::new("/nonexistent"))
    }

    #[test]
    fn a_container_that_says_nothing_has_a_sandbox_of_its_own() {
        assert_eq!(of(json!({})).unwrap(), Membership::Founder { of_a_pod: false });
    }

    #[test]
    fn every_convention_names_sandboxes_and_their_containers() {
        for (part, sandbox) in CONVENTIONS {
            assert_eq!(
                of(json!({ part: "sandbox", sandbox: "pod" })).unwrap(),
                Membership::Founder { of_a_pod: true }
            );
            let member = of(json!({ part: "container", sandbox: "pod" })).unwrap();
            assert_eq!(member, Membership::Member("pod".parse().unwrap()));
            assert!(matches!(
                of(json!({ part: "container" })),
                Err(MembershipError::NoSandbox { .. })
            ));
            assert!(matches!(
                of(json!({ part: "other" })),
                Err(MembershipError::Part { .. })
            ));
        }
        let member = of(json!({ SANDBOX_ANNOTATION: "pod" })).unwrap();
        assert_eq!(member, Membership::Member("pod".parse().unwrap()));
    }

    #[test]
    fn a_pods_author_does_not_choose_another_pod() {
        for (part, sandbox) in CONVENTIONS {
            let contradiction = json!({ part: "container", sandbox: "mine", SANDBOX_ANNOTATION: "theirs" });
            assert!(matches!(
                of(contradiction),
                Err(MembershipError::Contradiction { .. })
            ));
        }
    }

    #[test]
    fn an_annotation_that_is_a_path_names_no_container() {
        let error = of(json!({ SANDBOX_ANNOTATION: "../pod" })).unwrap_err();
        assert!(error.to_string().contains(SANDBOX_ANNOTATION), "{error}");
    }

    #[test]
    fn the_process_of_a_namespace_is_told_by_its_path() {
        assert_eq!(attendant_of("/proc/42/ns/ipc"), Some(42));
        for path in ["/run/netns/x", "/proc/self/ns/ipc", "/proc/42/fd/3"] {
            assert_eq!(attendant_of(path), None, "{path}");
        }
    }
}
