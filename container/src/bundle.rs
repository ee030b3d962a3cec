//! An OCI bundle: a folder with a `config.json` and, usually, the root file system beside it.

use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Process, Spec};

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
        let text = std::fs::read(&path).map_err(|source| BundleError::Read {
            path: path.clone(),
            source,
        })?;
        match serde_json::from_slice(&text) {
            Ok(spec) => Ok(Bundle { directory, spec }),
            // The document is read again only to say where it is wrong.
            Err(source) => {
                let mut document = serde_json::Deserializer::from_slice(&text);
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
    fn unknown_properties_are_ignored_as_the_specification_demands() {
        assert!(load(r#"{"ociVersion":"1.0.2","futureThing":{"a":1}}"#).is_ok());
    }
}
