//! Reading configurations. What the types for them do not take, and yet is right or customary, is put into words that they
//! do take.

use std::collections::BTreeSet;

use oci_spec::runtime::{Capability, LinuxResources, Process, Spec};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A text that is not what it should be.
#[derive(Debug, thiserror::Error)]
#[error("{field}")]
pub struct Misfit {
    /// Where in the document, as in `process.user.uid`.
    pub field: String,
    /// What does not fit there.
    #[source]
    pub source: serde_json::Error,
}

/// Reads a configuration. The texts are of what was left out of it that the specification allows to be.
pub(crate) fn read_configuration(text: &[u8]) -> Result<(Spec, Vec<String>), Misfit> {
    read(text, |document, warnings| {
        let without_seccomp = drop_empty_seccomp(document);
        let with_flags = match document.get_mut("process") {
            Some(process) => relax_process(process, warnings),
            None => false,
        };
        without_seccomp || with_flags
    })
}

/// Reads a process as a configuration has it, from a text of its own. The texts are of what was left out of it that the
/// specification allows to be.
///
/// # Errors
/// When that is no process.
pub fn read_process(text: &[u8]) -> Result<(Process, Vec<String>), Misfit> {
    read(text, relax_process)
}

/// Reads limits as a configuration has them in `linux.resources`, from a document of their own.
///
/// # Errors
/// When those are no limits.
pub fn read_resources(document: &Value) -> Result<LinuxResources, Misfit> {
    read_naming_places(&text_of(document)?)
}

/// `relax` changes what the types do not take, and returns whether there was anything.
fn read<T: DeserializeOwned>(
    text: &[u8],
    relax: impl FnOnce(&mut Value, &mut Vec<String>) -> bool,
) -> Result<(T, Vec<String>), Misfit> {
    if let Ok(read) = serde_json::from_slice(text) {
        return Ok((read, Vec::new()));
    }
    let mut warnings = Vec::new();
    if let Ok(mut document) = serde_json::from_slice::<Value>(text)
        && relax(&mut document, &mut warnings)
    {
        return Ok((read_naming_places(&text_of(&document)?)?, warnings));
    }
    // It is read again only to say where it is wrong.
    Ok((read_naming_places(text)?, warnings))
}

/// Always from a text: for documents in memory all of the types' readers would be in the program once more.
fn read_naming_places<T: DeserializeOwned>(text: &[u8]) -> Result<T, Misfit> {
    let mut document = serde_json::Deserializer::from_slice(text);
    let read = serde_path_to_error::deserialize(&mut document).map_err(|error| Misfit {
        field: error.path().to_string(),
        source: error.into_inner(),
    })?;
    // What follows is no part of it.
    document.end().map_err(whole)?;
    Ok(read)
}

fn text_of(document: &Value) -> Result<Vec<u8>, Misfit> {
    serde_json::to_vec(document).map_err(whole)
}

fn whole(source: serde_json::Error) -> Misfit {
    Misfit {
        field: ".".to_owned(),
        source,
    }
}

fn relax_process(process: &mut Value, warnings: &mut Vec<String>) -> bool {
    let with_flags = respell_scheduler_flags(process);
    let without_capabilities = drop_unknown_capabilities(process, warnings);
    with_flags || without_capabilities
}

/// Capabilities that are not known are left out with a warning, as the specification wants ("Linux Process"), in the words
/// in which runc warns. True if there was one.
fn drop_unknown_capabilities(process: &mut Value, warnings: &mut Vec<String>) -> bool {
    let before = warnings.len();
    let sets = process.get_mut("capabilities").and_then(Value::as_object_mut);
    for (set, names) in sets.into_iter().flatten() {
        let Some(names) = names.as_array_mut() else {
            continue;
        };
        let mut unknown = BTreeSet::new();
        names.retain(|name| {
            let is_known = !name.is_string() || serde_json::from_value::<Capability>(name.clone()).is_ok();
            if !is_known {
                unknown.insert(name.as_str().unwrap_or_default().escape_debug().to_string());
            }
            is_known
        });
        if !unknown.is_empty() {
            let names = Vec::from_iter(unknown).join(" ");
            warnings.push(format!(
                "process.capabilities.{set}: ignoring unknown or unavailable capabilities: [{names}]"
            ));
        }
    }
    warnings.len() > before
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

/// Two flags of a process's `scheduler` that the types spell unlike the specification. True if there was one.
fn respell_scheduler_flags(process: &mut Value) -> bool {
    let flags = process.pointer_mut("/scheduler/flags");
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
