//! The configuration's `hooks`.

use std::path::PathBuf;

use oci_spec::runtime::{Hook as ConfiguredHook, Spec};
use serde::{Deserialize, Serialize};

use super::SpecError;

/// Every list, in the order of a life.
pub(crate) const HOOKS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// The programs to run along the container's life, each list in its order.
#[derive(Debug, Default)]
pub(crate) struct HookPlan {
    /// `prestart` and then `createRuntime`: the same moment, in the caller's namespaces.
    pub(crate) create_runtime: Vec<Hook>,
    /// In the container's namespaces, before its root is entered; paths are the caller's.
    pub(crate) create_container: Vec<Hook>,
    /// In the container, before the program.
    pub(crate) start_container: Vec<Hook>,
    /// In the caller's namespaces, when the program runs.
    pub(crate) poststart: Vec<Hook>,
    /// In the caller's namespaces, when the container is gone.
    pub(crate) poststop: Vec<Hook>,
}

/// One program. The last two kinds are written down with the container's state, for whoever starts and deletes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hook {
    /// Its JSON path.
    pub(crate) field: String,
    pub(crate) path: PathBuf,
    /// With the program's name for itself; may be empty.
    pub(crate) arguments: Vec<String>,
    /// None where the configuration does not say.
    pub(crate) environment: Option<Vec<String>>,
    /// Seconds it may take.
    pub(crate) timeout: Option<u64>,
}

impl HookPlan {
    // `prestart` is deprecated in the specification, but configurations still have it.
    #[allow(deprecated)]
    pub(crate) fn new(spec: &Spec) -> Result<HookPlan, SpecError> {
        let Some(hooks) = spec.hooks() else {
            return Ok(HookPlan::default());
        };
        let mut create_runtime = list("hooks.prestart", hooks.prestart())?;
        create_runtime.append(&mut list("hooks.createRuntime", hooks.create_runtime())?);
        Ok(HookPlan {
            create_runtime,
            create_container: list("hooks.createContainer", hooks.create_container())?,
            start_container: list("hooks.startContainer", hooks.start_container())?,
            poststart: list("hooks.poststart", hooks.poststart())?,
            poststop: list("hooks.poststop", hooks.poststop())?,
        })
    }

    /// Whether the container's process has to stop on its way for hooks.
    pub(crate) fn interrupt_creation(&self) -> bool {
        !self.create_runtime.is_empty() || !self.create_container.is_empty()
    }
}

fn list(field: &str, hooks: &Option<Vec<ConfiguredHook>>) -> Result<Vec<Hook>, SpecError> {
    let hooks = hooks.as_deref().unwrap_or_default();
    hooks
        .iter()
        .enumerate()
        .map(|(index, configured)| hook(format!("{field}[{index}]"), configured))
        .collect()
}

fn hook(field: String, configured: &ConfiguredHook) -> Result<Hook, SpecError> {
    if !configured.path().is_absolute() {
        let problem = format!("`{}` is not an absolute path", configured.path().display());
        return Err(SpecError::invalid(format!("{field}.path"), problem));
    }
    let timeout = match configured.timeout() {
        None => None,
        Some(seconds) => match u64::try_from(seconds) {
            Ok(seconds) if seconds > 0 => Some(seconds),
            _ => {
                return Err(SpecError::invalid(
                    format!("{field}.timeout"),
                    "must be above zero",
                ));
            }
        },
    };
    let environment = configured.env().clone();
    if let Some(index) = environment
        .iter()
        .flatten()
        .position(|variable| !variable.contains('=') || variable.starts_with('='))
    {
        return Err(SpecError::invalid(
            format!("{field}.env[{index}]"),
            "is not of the form NAME=VALUE",
        ));
    }
    Ok(Hook {
        path: configured.path().clone(),
        arguments: configured.args().clone().unwrap_or_default(),
        environment,
        timeout,
        field,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(hooks: &str) -> Result<HookPlan, SpecError> {
        let spec = format!(r#"{{"ociVersion":"1.0.2","hooks":{hooks}}}"#);
        HookPlan::new(&serde_json::from_str(&spec).unwrap())
    }

    #[test]
    fn prestart_hooks_come_before_those_that_replace_them() {
        let plan = plan(r#"{"createRuntime":[{"path":"/b"}],"prestart":[{"path":"/a"}]}"#).unwrap();
        let fields: Vec<_> = plan.create_runtime.iter().map(|hook| &hook.field).collect();
        assert_eq!(fields, ["hooks.prestart[0]", "hooks.createRuntime[0]"]);
    }

    #[test]
    fn mistakes_are_refused_by_their_place() {
        for (hooks, field) in [
            (
                r#"{"poststop":[{"path":"/a"},{"path":"b"}]}"#,
                "hooks.poststop[1].path",
            ),
            (
                r#"{"poststart":[{"path":"/a","timeout":0}]}"#,
                "hooks.poststart[0].timeout",
            ),
            (
                r#"{"prestart":[{"path":"/a","timeout":-1}]}"#,
                "hooks.prestart[0].timeout",
            ),
            (
                r#"{"startContainer":[{"path":"/a","env":["A=","B"]}]}"#,
                "hooks.startContainer[0].env[1]",
            ),
        ] {
            assert_eq!(plan(hooks).unwrap_err().field(), field);
        }
    }
}
