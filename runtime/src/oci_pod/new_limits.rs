//! New limits for a container whose machine runs: which of them the machine can follow, and what they change of what is
//! written down. A machine is as large as it was made.

use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};

use super::sandbox::PodSandbox;
use crate::annotations::{MACHINE_MEMORY_ANNOTATION, MACHINE_VCPUS_ANNOTATION};
use crate::sizing::{GUEST_OVERHEAD_MIB, PodLimits, TooLarge, machine_size};

/// Where the resources are in a configuration.
const RESOURCES: &str = "/linux/resources";

/// The limits that hold on the host too, below the resources; 0 leaves each as it is.
const ON_THE_HOST: [&str; 4] = ["/memory/limit", "/cpu/quota", "/cpu/period", "/cpu/shares"];

/// The kernel's period of processor time, in microseconds, where none is said.
const DEFAULT_PERIOD: u64 = 100_000;

/// Why a machine cannot follow.
#[derive(Debug, thiserror::Error)]
pub enum NewLimitsError {
    /// It has less memory.
    #[error(
        "linux.resources.memory.limit: {limit} bytes, and {GUEST_OVERHEAD_MIB} MiB for the guest, are more than the \
         {memory_mib} MiB of the container's microVM, which does not grow: make the sandbox anew with this limit, or with \
         more in annotation {MACHINE_MEMORY_ANNOTATION}"
    )]
    Memory {
        /// What was asked for.
        limit: u64,
        /// What the machine has.
        memory_mib: u32,
    },
    /// No machine has as much.
    #[error("linux.resources.memory.limit")]
    TooLarge(#[from] TooLarge),
    /// It has fewer processors.
    #[error(
        "linux.resources.cpu.quota: {quota} us in each {period} us are more than the {vcpus} {} of the container's microVM, \
         which gets no others: make the sandbox anew with this limit, or with more in annotation \
         {MACHINE_VCPUS_ANNOTATION}",
        if *vcpus == 1 { "vCPU" } else { "vCPUs" }
    )]
    Processors {
        /// Microseconds of processor time that were asked for in each period.
        quota: u64,
        /// The period in microseconds.
        period: u64,
        /// What the machine has.
        vcpus: u8,
    },
    /// What is named is the host's.
    #[error(
        "linux.resources.cpu.{member}: {value:?} counts the host's, of which the container's microVM has none: choose those \
         of the cgroup that the sandbox is in on the host, or `--isolation shared-kernel`"
    )]
    Set {
        /// `cpus` or `mems`.
        member: &'static str,
        /// What was asked for.
        value: String,
    },
}

/// The configuration with those in it of `changes`, a document of resources, that hold on the host too.
pub fn with_changes(config: &Value, changes: &Value) -> Value {
    let mut config = config.clone();
    for place in ON_THE_HOST {
        let change = changes.pointer(place).filter(|change| change.as_i64() != Some(0));
        if let Some(change) = change {
            set(&mut config, &format!("{RESOURCES}{place}"), change.clone());
        }
    }
    config
}

/// Sets what a JSON pointer names, and makes the objects on the way.
fn set(config: &mut Value, pointer: &str, value: Value) {
    let mut here = config;
    for name in pointer.split('/').skip(1) {
        if !here.is_object() {
            *here = json!({});
        }
        here = &mut here[name];
    }
    *here = value;
}

/// Fails unless the machine can follow `changes` of a container of its pod, whose configuration is `changed` then. That
/// there is no limit any more, it can always.
///
/// # Errors
/// With the limit, what the machine has, and what to do.
pub fn check(sandbox: &PodSandbox, changes: &LinuxResources, changed: &Value) -> Result<(), NewLimitsError> {
    if let Some(cpu) = changes.cpu() {
        for (member, value) in [("cpus", cpu.cpus()), ("mems", cpu.mems())] {
            if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
                return Err(NewLimitsError::Set {
                    member,
                    value: value.clone(),
                });
            }
        }
    }
    let memory = changes
        .memory()
        .as_ref()
        .and_then(|memory| positive(memory.limit()));
    if let Some(limit) = memory {
        memory_fits(sandbox, limit)?;
    }
    let changes_time = changes
        .cpu()
        .as_ref()
        .is_some_and(|cpu| positive(cpu.quota()).is_some() || cpu.period().is_some_and(|period| period > 0));
    if changes_time {
        processors_fit(sandbox, changed)?;
    }
    Ok(())
}

/// What a container with this configuration, which joins a machine that is there, is allowed and will not get.
pub fn out_of_reach(sandbox: &PodSandbox, config: &Value) -> Vec<NewLimitsError> {
    let memory = positive_at(config, "/memory/limit").map_or(Ok(()), |limit| memory_fits(sandbox, limit));
    let processors = processors_fit(sandbox, config);
    [memory, processors].into_iter().filter_map(Result::err).collect()
}

fn memory_fits(sandbox: &PodSandbox, limit: u64) -> Result<(), NewLimitsError> {
    let limits = PodLimits {
        memory: Some(limit),
        ..PodLimits::default()
    };
    if machine_size(&limits)?.memory_mib <= sandbox.memory_mib {
        return Ok(());
    }
    Err(NewLimitsError::Memory {
        limit,
        memory_mib: sandbox.memory_mib,
    })
}

fn processors_fit(sandbox: &PodSandbox, config: &Value) -> Result<(), NewLimitsError> {
    let Some(quota) = positive_at(config, "/cpu/quota") else {
        return Ok(());
    };
    let period = positive_at(config, "/cpu/period").unwrap_or(DEFAULT_PERIOD);
    if quota <= period.saturating_mul(sandbox.vcpus.into()) {
        return Ok(());
    }
    Err(NewLimitsError::Processors {
        quota,
        period,
        vcpus: sandbox.vcpus,
    })
}

/// A limit that the configuration has below its resources, where it limits anything.
fn positive_at(config: &Value, place: &str) -> Option<u64> {
    positive(config.pointer(&format!("{RESOURCES}{place}"))?.as_i64())
}

fn positive(limit: Option<i64>) -> Option<u64> {
    limit
        .and_then(|limit| u64::try_from(limit).ok())
        .filter(|&limit| limit > 0)
}

#[cfg(test)]
mod tests {
    use container::ProcessIdentity;

    use super::*;
    use crate::oci_pod::sandbox::MEMORY_ANNOTATION;
    use crate::sizing::HOST_OVERHEAD_MIB;
    use crate::start_record::StartRecord;

    const MIB: u64 = 1 << 20;

    fn sandbox() -> PodSandbox {
        PodSandbox {
            machine: ProcessIdentity::of(std::process::id().cast_signed()).unwrap(),
            of_a_pod: false,
            memory_mib: 128,
            vcpus: 1,
            start: StartRecord::default(),
        }
    }

    fn config() -> Value {
        json!({ "linux": { "resources": { "memory": { "limit": 64 * MIB }, "cpu": { "period": 50_000 } } } })
    }

    fn changed(config: &Value, changes: Value) -> Result<Value, String> {
        let changed = with_changes(config, &changes);
        let changes: LinuxResources = serde_json::from_value(changes).unwrap();
        match check(&sandbox(), &changes, &changed) {
            Ok(()) => Ok(changed),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn what_a_member_will_not_get_is_told_with_what_the_machine_has() {
        let config = json!({ "linux": { "resources": {
            "memory": { "limit": 65 * MIB }, "cpu": { "quota": 300_000, "cpus": "0" }
        } } });
        let told = out_of_reach(&sandbox(), &config);
        let told: Vec<String> = told.iter().map(ToString::to_string).collect();
        assert!(
            told.len() == 2 && told[0].contains("128 MiB") && told[1].contains("1 vCPU"),
            "{told:?}"
        );
        let config =
            json!({ "linux": { "resources": { "memory": { "limit": 64 * MIB }, "cpu": { "quota": -1 } } } });
        assert!(out_of_reach(&sandbox(), &config).is_empty());
    }

    #[test]
    fn what_the_machine_cannot_follow_is_refused_with_what_it_has() {
        for (changes, parts) in [
            (
                json!({ "memory": { "limit": 65 * MIB } }),
                ["memory.limit", "128 MiB"],
            ),
            (json!({ "memory": { "limit": i64::MAX } }), ["memory.limit", ""]),
            (json!({ "cpu": { "quota": 50_001 } }), ["cpu.quota", "1 vCPU "]),
            (
                json!({ "cpu": { "quota": 100_001, "period": 100_000 } }),
                ["cpu.quota", "100000 us"],
            ),
            (json!({ "cpu": { "cpus": "0" } }), ["cpu.cpus", "\"0\""]),
            (json!({ "cpu": { "mems": "0-1" } }), ["cpu.mems", "shared-kernel"]),
        ] {
            let refused = changed(&config(), changes.clone()).unwrap_err();
            assert!(
                parts.iter().all(|part| refused.contains(part)),
                "{changes}: {refused}"
            );
        }
    }

    #[test]
    fn what_it_has_and_no_limit_at_all_can_be_had() {
        for changes in [
            json!({ "memory": { "limit": 64 * MIB }, "cpu": { "quota": 50_000 } }),
            json!({ "memory": { "limit": -1 }, "cpu": { "quota": -1, "cpus": "", "mems": "" } }),
            json!({ "memory": { "limit": 0 }, "cpu": { "quota": 0, "period": 0, "shares": 0 } }),
            json!({ "pids": { "limit": 5 } }),
        ] {
            assert!(changed(&config(), changes.clone()).is_ok(), "{changes}");
        }
        // One that has more than the machine from its beginning may have other limits changed.
        let larger = json!({ "linux": { "resources": { "cpu": { "quota": 900_000 } } } });
        assert!(changed(&larger, json!({ "cpu": { "shares": 9 } })).is_ok());
    }

    #[test]
    fn the_hosts_limits_follow_and_those_of_a_pod_stay() {
        let on_host = |config: &Value| sandbox().new_limits_on_host(config).unwrap();
        let overhead = (GUEST_OVERHEAD_MIB + HOST_OVERHEAD_MIB) * MIB;
        let less = changed(
            &config(),
            json!({ "memory": { "limit": 16 * MIB }, "cpu": { "quota": 5_000, "shares": 7 } }),
        );
        let less = less.unwrap();
        let expected = container::PodLimits {
            memory: Some(16 * MIB + overhead),
            cpu_quota: Some(5_000),
            cpu_period: Some(50_000),
            cpu_shares: Some(7),
        };
        assert_eq!(on_host(&less), expected);
        let more = changed(&less, json!({ "memory": { "limit": 64 * MIB } })).unwrap();
        let expected = container::PodLimits {
            memory: Some(64 * MIB + overhead),
            ..expected
        };
        assert_eq!(on_host(&more), expected);
        // The machine is what limits it then.
        let unlimited = changed(
            &less,
            json!({ "memory": { "limit": -1 }, "cpu": { "quota": -1 } }),
        )
        .unwrap();
        let expected = container::PodLimits {
            memory: expected.memory,
            cpu_shares: Some(7),
            ..container::PodLimits::default()
        };
        assert_eq!(on_host(&unlimited), expected);
        let mut of_pod = config();
        of_pod["annotations"] = json!({ MEMORY_ANNOTATION: (32 * MIB).to_string() });
        let before = on_host(&of_pod);
        assert_eq!(before.memory, Some(32 * MIB + overhead));
        let after = changed(&of_pod, json!({ "memory": { "limit": 48 * MIB } })).unwrap();
        assert_eq!(on_host(&after), before);
    }
}
