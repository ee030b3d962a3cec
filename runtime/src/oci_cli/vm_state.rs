//! What is told of the virtual machine of a container behind the microVM wall, by `state` and in the log.

use serde::Serialize;

use crate::oci_pod::machine_end::EndedMachine;
use crate::oci_pod::sandbox_record::PodSandbox;
use crate::start_record::{Origin, StartRecord};

/// The name of the object, which is a member of the state and of the log's entry. The runtime specification calls what
/// concerns a virtual machine so in a configuration.
#[cfg(feature = "microvm")]
pub(super) const NAME: &str = "vm";

/// The virtual machine of a container's sandbox.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct VmState {
    /// The container that founded the sandbox.
    sandbox: String,
    /// Its VMM, which may have ended.
    pid: i32,
    vcpus: u8,
    /// Bytes.
    memory: u64,
    /// None while it runs, and where it was meant to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<EndedMachine>,
    /// None while it is being started.
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<StartState>,
}

/// How it was started.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StartState {
    origin: &'static str,
    /// What it is a clone of.
    #[serde(skip_serializing_if = "Option::is_none")]
    template: Option<String>,
    /// Whether the template was built for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    template_built: Option<bool>,
    /// Why it was not cloned.
    #[serde(skip_serializing_if = "Option::is_none")]
    fallback_reason: Option<String>,
    /// In their order.
    phases: Vec<PhaseState>,
}

#[derive(Serialize)]
struct PhaseState {
    name: String,
    microseconds: u64,
}

impl VmState {
    pub(super) fn of(sandbox: PodSandbox, founder: &str, end: Option<EndedMachine>) -> VmState {
        VmState {
            sandbox: founder.to_owned(),
            pid: sandbox.machine.pid,
            vcpus: sandbox.vcpus,
            memory: u64::from(sandbox.memory_mib) << 20,
            end,
            start: sandbox.start.has_begun().then(|| sandbox.start.into()),
        }
    }
}

impl From<StartRecord> for StartState {
    fn from(record: StartRecord) -> StartState {
        let phases = record.phases.into_iter();
        let mut state = StartState {
            origin: "boot",
            template: None,
            template_built: None,
            fallback_reason: None,
            phases: phases
                .map(|(name, microseconds)| PhaseState { name, microseconds })
                .collect(),
        };
        match record.origin {
            Origin::Boot => {}
            Origin::BootInsteadOfClone { reason } => state.fallback_reason = Some(reason),
            Origin::Clone { template, built } => {
                state.origin = "template";
                state.template = Some(template);
                state.template_built = Some(built);
            }
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use container::ProcessIdentity;
    use serde_json::{Value, json};

    use super::*;

    fn told(origin: Origin, phases: &[(&str, u64)]) -> Value {
        let sandbox = PodSandbox {
            machine: ProcessIdentity::of(std::process::id().cast_signed()).unwrap(),
            of_a_pod: true,
            memory_mib: 256,
            vcpus: 2,
            start: StartRecord {
                origin,
                phases: phases
                    .iter()
                    .map(|(name, time)| ((*name).to_owned(), *time))
                    .collect(),
            },
        };
        serde_json::to_value(VmState::of(sandbox, "pod", None)).unwrap()
    }

    #[test]
    fn a_machine_is_told_with_what_its_start_took() {
        let origin = Origin::Clone {
            template: "t".to_owned(),
            built: false,
        };
        let expected = json!({
            "sandbox": "pod", "pid": std::process::id(), "vcpus": 2, "memory": 268_435_456,
            "start": {
                "origin": "template", "template": "t", "templateBuilt": false,
                "phases": [{ "name": "template", "microseconds": 5 }, { "name": "clone", "microseconds": 7 }]
            }
        });
        assert_eq!(told(origin, &[("template", 5), ("clone", 7)]), expected);
        let reason = "no room".to_owned();
        let start = told(Origin::BootInsteadOfClone { reason }, &[("boot", 9)])["start"].take();
        let expected = json!({
            "origin": "boot", "fallbackReason": "no room", "phases": [{ "name": "boot", "microseconds": 9 }]
        });
        assert_eq!(start, expected);
    }

    #[test]
    fn nothing_is_told_of_a_start_that_is_under_way() {
        assert_eq!(told(Origin::Boot, &[]).get("start"), None);
    }
}
