//! An OCI bundle: a folder with a `config.json` and, usually, the root file system beside it.

use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Process, Spec};

use crate::configuration_text::{Misfit, read_configuration};

/// A bundle that was read. Nothing in it was judged yet: [`create`](crate::create) refuses what it cannot honour.
#[derive(Clone, Debug)]
pub struct Bundle {
    directory: PathBuf,
    spec: Spec,
    /// What was left out of it that the specification allows to be.
    warnings: Vec<String>,
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
        match read_configuration(text) {
            Ok((spec, warnings)) => Ok(Bundle {
                directory,
                spec,
                warnings,
            }),
            Err(Misfit { field, source }) => Err(BundleError::Parse { path, field, source }),
        }
    }

    /// A bundle whose configuration did not come from `config.json`. `directory` is what relative paths in it are
    /// relative to.
    pub fn new(directory: PathBuf, spec: Spec) -> Bundle {
        Bundle {
            directory,
            spec,
            warnings: Vec::new(),
        }
    }

    /// The bundle's folder, absolute.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The process of the configuration, to be changed before a container is made of it; none where it has none.
    pub fn process_mut(&mut self) -> Option<&mut Process> {
        self.spec.process_mut().as_mut()
    }

    /// What was left out of the configuration when it was read.
    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The configuration.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }
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
    fn capabilities_that_nobody_knows_are_left_out_with_a_warning() {
        let bundle = load(
            r#"{"ociVersion":"1.0.2","process":{"user":{},"cwd":"/","capabilities":
                {"bounding":["CAP_KILL","CAP_X","CAP_OF_TOMORROW","CAP_X"],"ambient":["CAP_\u001b[2J"],"effective":["kill"]}}}"#,
        )
        .unwrap();
        let capabilities = bundle.spec().process().as_ref().unwrap().capabilities();
        let bounding = capabilities.as_ref().unwrap().bounding().as_ref().unwrap();
        assert_eq!(bounding.len(), 1);
        assert_eq!(
            bundle.warnings(),
            [
                "process.capabilities.ambient: ignoring unknown or unavailable capabilities: [CAP_\\u{1b}[2J]",
                "process.capabilities.bounding: ignoring unknown or unavailable capabilities: [CAP_OF_TOMORROW CAP_X]",
            ]
        );
        // What else is wrong is told as ever.
        let error = load(
            r#"{"ociVersion":"1.0.2","process":{"capabilities":{"bounding":["CAP_OF_TOMORROW"]},
                "user":{"uid":"root"},"cwd":"/"}}"#,
        );
        let error = error.unwrap_err().to_string();
        assert!(error.contains("process.user.uid"), "{error}");
        let error =
            load(r#"{"ociVersion":"1.0.2","process":{"user":{},"cwd":"/","capabilities":{"bounding":[7]}}}"#);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("process.capabilities.bounding[0]"), "{error}");
    }

    #[test]
    fn unknown_properties_are_ignored_as_the_specification_demands() {
        assert!(load(r#"{"ociVersion":"1.0.2","futureThing":{"a":1}}"#).is_ok());
    }
}
