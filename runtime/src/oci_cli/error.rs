//! Why a verb failed.

use container::{BundleError, CreateError, DeleteError, KillError, StartError, StateError};

use crate::isolation::{AnnotationError, ISOLATION_ANNOTATION};

/// What a verb of the OCI command line ends with when it fails.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// The bundle cannot be read.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The bundle's annotations ask for what is not there.
    #[error("config.json: annotations")]
    Annotations(#[from] AnnotationError),
    /// The microVM wall was asked for, or nothing was said and it is the default.
    #[error(
        "this command line cannot make a container behind the microvm wall yet: `--isolation shared-kernel`, or the \
         annotation {ISOLATION_ANNOTATION}=shared-kernel, chooses the host's kernel"
    )]
    MicroVm,
    /// The container could not be created.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The container could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The signal could not be sent.
    #[error(transparent)]
    Kill(#[from] KillError),
    /// The container could not be deleted.
    #[error(transparent)]
    Delete(#[from] DeleteError),
    /// The container's state could not be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// The answer could not be written.
    #[error("cannot write to standard output")]
    Output(#[source] std::io::Error),
}
