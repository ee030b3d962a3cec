//! An OCI bundle: a folder with a `config.json` and, usually, the root file system beside it.

use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Process, Spec};
use serde_json::Value;

/// A bundle that was read. Nothing in it was judged yet: [`create`](crate::create) refuses what it cannot honour.
#[derive(Clone, Debug)]
pub struct Bundle {
    directory: PathBuf,
    spec: Spec,
}

/// Why a bundle could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// There is no such folder.
    #[error("cannot open the bundle {}", path.display())]
    Directory {
        /// The folder.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The configuration cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The configuration is not what the runtime specification describes.
    #[error("{}: {field}: not an OCI runtime configuration", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where in the document, as in `process.user.uid`.
        field: String,
        /// What does not fit there.
        #[source]
        source: serde_json::Error,
    },
}

impl Bundle {
    /// Reads `config.json` in `directory`.
    pub fn load(directory: &Path) -> Result<Bundle, BundleError> {
        let directory = directory
            .canonicalize()
            .map_err(|source| BundleError::Directory {
                path: directory.to_owned(),
                source,
            })?;
        let path = directory.join("config.json");
        Self::read(directory, path)
    }

    /// Reads a configuration whatever its file is called. What is relative in it is so to the file's folder.
    pub fn load_file(path: &Path) -> Result<Bundle, BundleError> {
        let path = path.canonicalize().map_err(|source| BundleError::Read {
            path: path.to_owned(),
            source,
        })?;
        // Only the root has no parent, and that is no file.
        let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
        Self::read(directory, path)
    }

    fn read(directory: PathBuf, path: PathBuf) -> Result<Bundle, BundleError> {
        let text = std::fs::read(&path).map_err(|source| BundleError::Read {
            path: path.clone(),
            source,
        })?;
        Self::from_text(directory, path, &text)
    }

    /// `text` is what the file at `path` holds.
    pub(crate) fn from_text(directory: PathBuf, path: PathBuf, text: &[u8]) -> Result<Bundle, BundleError> {
        match parse(text) {
            Ok(spec) => Ok(Bundle { directory, spec }),
            // The document is read again only to say where it is wrong.
            Err(source) => {
                let mut document = serde_json::Deserializer::from_slice(text);
                let (field, source) = match serde_path_to_error::deserialize::<_, Spec>(&mut document) {
                    Err(error) => (error.path().to_string(), error.into_inner()),
                    Ok(_) => (".".to_owned(), source),
                };
                Err(BundleError::Parse { path, field, source })
            }
        }
    }

    /// A bundle whose configuration did not come from `config.json`. `directory` is what relative paths in it are
    /// relative to.
    pub fn new(directory: PathBuf, spec: Spec) -> Bundle {
        Bundle { directory, spec }
    }

    /// The bundle's folder, absolute.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The process of the configuration, to be changed before a container is made of it; none where it has none.
    pub fn process_mut(&mut self) -> Option<&mut Process> {
        self.spec.process_mut().as_mut()
    }

    /// The configuration.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }
}

/// Reads a configuration. What the types for it do not take, and yet is right or customary, is put into words that they
/// do take.
fn parse(text: &[u8]) -> Result<Spec, serde_json::Error> {
    serde_json::from_slice(text).or_else(|error| {
        let mut document: Value = serde_json::from_slice(text)?;
        let without_seccomp = drop_empty_seccomp(&mut document);
        let with_flags = respell_scheduler_flags(&mut document);
        match without_seccomp || with_flags {
            true => serde_json::from_value(document),
            false => Err(error),
        }
    })
}

/// A `linux.seccomp` that says nothing is none, as runc takes it: some writers leave an empty object there, which lacks
/// what the section has to have. True if there was one.
fn drop_empty_seccomp(document: &mut Value) -> bool {
    let is_empty = |value: Option<&Value>| match value {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Array(list)) => list.is_empty(),
        Some(_) => false,
    };
    let says_nothing = |seccomp: &Value| {
        seccomp.is_object() && is_empty(seccomp.get("defaultAction")) && is_empty(seccomp.get("syscalls"))
    };
    match document.get_mut("linux").and_then(Value::as_object_mut) {
        Some(linux) if linux.get("seccomp").is_some_and(says_nothing) => linux.remove("seccomp").is_some(),
        _ => false,
    }
}

/// Two flags of `process.scheduler` that the types spell unlike the specification. True if there was one.
fn respell_scheduler_flags(document: &mut Value) -> bool {
    let flags = document.pointer_mut("/process/scheduler/flags");
    let mut found = false;
    for flag in flags.and_then(Value::as_array_mut).into_iter().flatten() {
        let spelling = match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => "SCHED_RESET_ON_FORK",
            Some("SCHED_FLAG_DL_OVERRUN") => "SCHED_FLAG_D_L_OVERRUN",
            _ => continue,
        };
        *flag = spelling.into();
        found = true;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Bundle, BundleError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        Bundle::load(folder.path())
    }

    #[test]
    fn a_value_of_the_wrong_type_is_reported_with_its_place() {
        let error =
            load(r#"{"ociVersion":"1.0.2","process":{"user":{"uid":"root"},"cwd":"/"}}"#).unwrap_err();
        assert!(error.to_string().contains("process.user.uid"), "{error}");
    }

    #[test]
    fn a_cut_document_is_reported() {
        assert!(matches!(
            load(r#"{"ociVersion":"1.0"#),
            Err(BundleError::Parse { .. })
        ));
    }

    #[test]
    fn a_configuration_may_have_any_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.json");
        assert!(matches!(Bundle::load_file(&path), Err(BundleError::Read { .. })));
        std::fs::write(&path, r#"{"ociVersion":"1.0.2"}"#).unwrap();
        let bundle = Bundle::load_file(&path).unwrap();
        assert_eq!(bundle.directory(), folder.path().canonicalize().unwrap());
    }

    #[test]
    fn a_folder_without_configuration_and_a_missing_folder_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            Bundle::load(folder.path()),
            Err(BundleError::Read { .. })
        ));
        assert!(matches!(
            Bundle::load(&folder.path().join("none")),
            Err(BundleError::Directory { .. })
        ));
    }

    #[test]
    fn a_seccomp_section_that_says_nothing_is_none() {
        let load = |seccomp: &str| {
            load(&format!(
                r#"{{"ociVersion":"1.0.2","linux":{{"seccomp":{seccomp}}}}}"#
            ))
        };
        for empty in [
            "{}",
            r#"{"defaultAction":"","syscalls":[]}"#,
            r#"{"architectures":["SCMP_ARCH_X86"]}"#,
        ] {
            let bundle = load(empty).unwrap();
            assert!(
                bundle.spec().linux().as_ref().unwrap().seccomp().is_none(),
                "{empty}"
            );
        }
        let error = load(r#"{"syscalls":[{"names":["read"],"action":"SCMP_ACT_KILL"}]}"#).unwrap_err();
        assert!(error.to_string().contains("linux.seccomp"), "{error}");
        let error = load(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":
            "SCMP_ACT_KILL","args":[{"index":0,"value":1,"op":"SCMP_CMP_MAYBE"}]}]}"#,
        )
        .unwrap_err();
        assert!(
            error.to_string().contains("linux.seccomp.syscalls[0].args[0].op"),
            "{error}"
        );
    }

    #[test]
    fn every_flag_of_a_scheduler_is_read() {
        let flags = [
            "RESET_ON_FORK",
            "RECLAIM",
            "DL_OVERRUN",
            "KEEP_POLICY",
            "KEEP_PARAMS",
            "UTIL_CLAMP_MIN",
            "UTIL_CLAMP_MAX",
        ];
        for flag in flags {
            let bundle = load(&format!(
                r#"{{"ociVersion":"1.0.2","process":{{"user":{{}},"cwd":"/","scheduler":
                    {{"policy":"SCHED_OTHER","flags":["SCHED_FLAG_{flag}"]}}}}}}"#
            ));
            let bundle = bundle.unwrap_or_else(|error| panic!("{flag}: {error}"));
            let process = bundle.spec().process().as_ref().unwrap();
            assert_eq!(
                process
                    .scheduler()
                    .as_ref()
                    .unwrap()
                    .flags()
                    .as_ref()
                    .unwrap()
                    .len(),
                1
            );
        }
    }

    #[test]
    fn unknown_properties_are_ignored_as_the_specification_demands() {
        assert!(load(r#"{"ociVersion":"1.0.2","futureThing":{"a":1}}"#).is_ok());
    }
}
