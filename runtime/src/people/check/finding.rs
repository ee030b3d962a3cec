//! What a check has found.

use serde::Serialize;

use crate::isolation::Isolation;

/// The answer of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// What was looked at.
    pub(super) check: &'static str,
    pub(super) status: Status,
    /// The only wall that it matters to; none for both.
    pub(super) only_for: Option<Isolation>,
    /// What was found.
    pub(super) detail: String,
    /// What to do about it.
    pub(super) advice: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    /// It is as it should be.
    Ok,
    /// It can be done without, or will be slow or short.
    Warning,
    /// Nothing goes without it behind the wall it matters to.
    Missing,
}

impl Status {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Missing => "missing",
        }
    }
}

impl Finding {
    pub(super) fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self {
            check,
            status: Status::Ok,
            only_for: None,
            detail: detail.into(),
            advice: None,
        }
    }

    pub(super) fn warning(check: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            status: Status::Warning,
            advice: Some(advice.into()),
            ..Self::ok(check, detail)
        }
    }

    pub(super) fn missing(check: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            status: Status::Missing,
            advice: Some(advice.into()),
            ..Self::ok(check, detail)
        }
    }

    /// The same where it matters to one wall alone.
    pub(super) fn only_for(self, wall: Isolation) -> Self {
        Self {
            only_for: Some(wall),
            ..self
        }
    }

    /// The same where it can be done without.
    pub(super) fn at_most_a_warning(self) -> Self {
        Self {
            status: self.status.min(Status::Warning),
            ..self
        }
    }

    /// Whether nothing goes behind this wall.
    pub(super) fn forbids(&self, wall: Isolation) -> bool {
        self.status == Status::Missing && self.only_for.is_none_or(|only| only == wall)
    }
}

/// An error with all its causes.
pub(super) fn causes(error: impl Into<anyhow::Error>) -> String {
    format!("{:#}", error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_forbids_the_wall_it_matters_to() {
        let both = Finding::missing("x", "", "");
        assert!(both.forbids(Isolation::MicroVm) && both.forbids(Isolation::SharedKernel));
        let one = both.only_for(Isolation::MicroVm);
        assert!(one.forbids(Isolation::MicroVm) && !one.forbids(Isolation::SharedKernel));
    }

    #[test]
    fn a_warning_forbids_nothing() {
        let warning = Finding::missing("x", "", "").at_most_a_warning();
        assert_eq!(warning, Finding::warning("x", "", ""));
        assert!(!warning.forbids(Isolation::MicroVm));
        assert_eq!(Finding::ok("x", "").at_most_a_warning().status, Status::Ok);
    }
}
