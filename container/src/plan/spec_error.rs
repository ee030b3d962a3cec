//! What is wrong with a configuration, and where in it.

use std::ffi::CString;

/// A configuration that cannot be honoured. Each names the place in `config.json`, as in `linux.resources.cpu.quota`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    /// The field means something that this engine does not do yet; ignoring it would make a weaker container.
    #[error("config.json: {field}: is not supported yet: remove it")]
    Unsupported {
        /// The JSON path.
        field: String,
    },
    /// The value makes no sense.
    #[error("config.json: {field}: {problem}")]
    Invalid {
        /// The JSON path.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl SpecError {
    pub(crate) fn unsupported(field: impl Into<String>) -> SpecError {
        SpecError::Unsupported { field: field.into() }
    }

    pub(crate) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> SpecError {
        SpecError::Invalid {
            field: field.into(),
            problem: problem.into(),
        }
    }

    pub(crate) fn missing(field: impl Into<String>) -> SpecError {
        SpecError::invalid(field, "is required")
    }

    /// The JSON path of the field.
    pub fn field(&self) -> &str {
        match self {
            SpecError::Unsupported { field } | SpecError::Invalid { field, .. } => field,
        }
    }
}

/// `text` as the kernel takes it.
pub(super) fn c_string(
    field: impl FnOnce() -> String,
    text: impl Into<Vec<u8>>,
) -> Result<CString, SpecError> {
    CString::new(text).map_err(|_| SpecError::invalid(field(), "holds a NUL character"))
}
