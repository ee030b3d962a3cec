//! The annotations that have a meaning here. Every one of ours begins alike, and an unknown one is an error, so that a
//! misspelt wall is never a weaker wall.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use crate::isolation::{Isolation, UnknownIsolation};
use crate::sizing::MOST_VCPUS;

/// How every annotation of ours begins.
pub const ANNOTATION_PREFIX: &str = "dev.bulkhead.";

/// The annotation that chooses the wall.
pub const ISOLATION_ANNOTATION: &str = "dev.bulkhead.isolation";

/// The annotation that names the container whose sandbox another one joins.
pub const SANDBOX_ANNOTATION: &str = "dev.bulkhead.sandbox";

/// The annotation that names the disk, an image or a block device, that is a container's root behind the microVM wall.
pub const ROOT_SOURCE_ANNOTATION: &str = "dev.bulkhead.root.source";

/// The annotation that names the file system on it.
pub const ROOT_TYPE_ANNOTATION: &str = "dev.bulkhead.root.type";

/// The annotation that says the memory of the pod's machine in MiB, its kernel's included.
pub const MACHINE_MEMORY_ANNOTATION: &str = "dev.bulkhead.machine.memory_mib";

/// The annotation that says the virtual processors of the pod's machine.
pub const MACHINE_VCPUS_ANNOTATION: &str = "dev.bulkhead.machine.vcpus";

/// The annotation that says how many bytes of frames a second each of the pod's interfaces receives at most.
pub const NETWORK_RECEIVE_ANNOTATION: &str = "dev.bulkhead.network.receive_bytes_per_second";

/// The same of what it transmits.
pub const NETWORK_TRANSMIT_ANNOTATION: &str = "dev.bulkhead.network.transmit_bytes_per_second";

/// All of ours.
const ANNOTATIONS: [&str; 8] = [
    ISOLATION_ANNOTATION,
    SANDBOX_ANNOTATION,
    ROOT_SOURCE_ANNOTATION,
    ROOT_TYPE_ANNOTATION,
    MACHINE_MEMORY_ANNOTATION,
    MACHINE_VCPUS_ANNOTATION,
    NETWORK_RECEIVE_ANNOTATION,
    NETWORK_TRANSMIT_ANNOTATION,
];

/// Those that are numbers, and which: of less than 64 MiB no guest gets to its agent.
const NUMBERS: [(&str, RangeInclusive<u64>); 4] = [
    (MACHINE_MEMORY_ANNOTATION, 64..=(1 << 24)),
    (MACHINE_VCPUS_ANNOTATION, 1..=MOST_VCPUS as u64),
    (NETWORK_RECEIVE_ANNOTATION, 1..=u64::MAX),
    (NETWORK_TRANSMIT_ANNOTATION, 1..=u64::MAX),
];

/// Those that only a machine can do, and what to do without one. How large a machine would be harms none that is not
/// there.
const MICRO_VM_ONLY: [(&str, &str); 4] = [
    (ROOT_SOURCE_ANNOTATION, INSTEAD_OF_A_DISK),
    (ROOT_TYPE_ANNOTATION, INSTEAD_OF_A_DISK),
    (NETWORK_RECEIVE_ANNOTATION, INSTEAD_OF_A_RATE),
    (NETWORK_TRANSMIT_ANNOTATION, INSTEAD_OF_A_RATE),
];
const INSTEAD_OF_A_DISK: &str = "mount the disk, and name the folder as root.path";
const INSTEAD_OF_A_RATE: &str = "limit the interface, as CNI's bandwidth plugin does";

/// Why annotations were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    /// An annotation in our namespace that has no meaning.
    #[error("unknown annotation {name:?}: there are {}", ANNOTATIONS.join(", "))]
    Unknown {
        /// Its name.
        name: String,
    },
    /// A value that is no such number.
    #[error("annotation {name}: {value:?} is no number from {} to {}", .range.start(), .range.end())]
    Number {
        /// The annotation.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        range: RangeInclusive<u64>,
    },
    /// An annotation that means nothing behind the other wall.
    #[error(
        "annotation {name}: only a virtual machine can do that: {instead}, or choose `--isolation microvm`"
    )]
    MicroVmOnly {
        /// The annotation.
        name: &'static str,
        /// The other wall's way.
        instead: &'static str,
    },
    /// A wall that does not exist.
    #[error("reading annotation {ISOLATION_ANNOTATION}")]
    Isolation(#[from] UnknownIsolation),
}

/// Refuses those of ours that there are not, and values that are none.
///
/// # Errors
/// With the first of them.
pub fn check(annotations: &HashMap<String, String>) -> Result<(), AnnotationError> {
    let unknown = annotations
        .keys()
        .find(|name| name.starts_with(ANNOTATION_PREFIX) && !ANNOTATIONS.contains(&name.as_str()));
    if let Some(name) = unknown {
        return Err(AnnotationError::Unknown { name: name.clone() });
    }
    for (name, range) in NUMBERS {
        let Some(value) = annotations.get(name) else {
            continue;
        };
        if !value.parse().is_ok_and(|number| range.contains(&number)) {
            return Err(AnnotationError::Number {
                name,
                value: value.clone(),
                range,
            });
        }
    }
    Ok(())
}

/// Refuses annotations that mean nothing behind this wall.
///
/// # Errors
/// With the annotation.
pub fn check_behind(
    isolation: Isolation,
    annotations: Option<&HashMap<String, String>>,
) -> Result<(), AnnotationError> {
    let said = |name: &str| annotations.is_some_and(|annotations| annotations.contains_key(name));
    match MICRO_VM_ONLY.into_iter().find(|(name, _)| said(name)) {
        Some((name, instead)) if isolation == Isolation::SharedKernel => {
            Err(AnnotationError::MicroVmOnly { name, instead })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(name: &str, value: &str) -> HashMap<String, String> {
        HashMap::from([(name.to_owned(), value.to_owned())])
    }

    #[test]
    fn foreign_annotations_are_left_alone() {
        assert_eq!(check(&annotations("io.kubernetes.cri.sandbox-id", "x")), Ok(()));
    }

    #[test]
    fn an_unknown_one_of_ours_is_an_error_that_names_those_there_are() {
        let error = check(&annotations("dev.bulkhead.isolatoin", "microvm"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("dev.bulkhead.isolatoin"), "{error}");
        assert!(ANNOTATIONS.iter().all(|name| error.contains(name)), "{error}");
    }

    #[test]
    fn a_number_is_one_in_its_range() {
        for (name, range) in NUMBERS {
            assert_eq!(check(&annotations(name, &range.start().to_string())), Ok(()));
            assert_eq!(check(&annotations(name, &range.end().to_string())), Ok(()));
            for value in ["", "0", "-1", "1.5", "64m", "18446744073709551616"] {
                let error = check(&annotations(name, value)).unwrap_err().to_string();
                assert!(
                    error.contains(name) && error.contains(&format!("{value:?}")),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn what_only_a_machine_can_do_is_refused_behind_the_other_wall() {
        for (name, _) in MICRO_VM_ONLY {
            let annotations = annotations(name, "1");
            assert_eq!(check_behind(Isolation::MicroVm, Some(&annotations)), Ok(()));
            let error = check_behind(Isolation::SharedKernel, Some(&annotations)).unwrap_err();
            assert!(error.to_string().contains("--isolation microvm"), "{error}");
        }
        let sized = annotations(MACHINE_VCPUS_ANNOTATION, "2");
        assert_eq!(check_behind(Isolation::SharedKernel, Some(&sized)), Ok(()));
    }
}
