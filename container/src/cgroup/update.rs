//! Changing the limits of a container in use.

use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value};

use super::resources::Resources;
use super::{Cgroup, CgroupError, read, setting};
use crate::plan::SpecError;

/// Members for which 0 is a value, not a word for "as it is".
const ZERO_COUNTS: [&str; 3] = ["burst", "idle", "swappiness"];
/// What tells the elements of a list apart.
const IDENTITIES: [&str; 4] = ["major", "minor", "pageSize", "name"];

/// New limits, and what is to be recorded of them.
#[derive(Debug)]
pub(crate) struct LimitChange {
    resources: Resources,
    pub(crate) recorded: LinuxResources,
    /// What is accepted and has no effect.
    pub(crate) warnings: Vec<String>,
}

/// What is recorded of a new container's limits: all but the devices, which no update changes.
pub(crate) fn recorded(resources: Option<&LinuxResources>) -> LinuxResources {
    let mut recorded = resources.cloned().unwrap_or_default();
    recorded.set_devices(None);
    recorded
}

impl LimitChange {
    /// Judges `changes` together with what is `present`: the kernel checks limits against each other.
    pub(crate) fn new(present: &LinuxResources, changes: &LinuxResources) -> Result<LimitChange, SpecError> {
        let not_json = |error: serde_json::Error| SpecError::invalid("linux.resources", error.to_string());
        let mut merged = match serde_json::to_value(recorded(Some(present))).map_err(not_json)? {
            Value::Object(members) => members,
            _ => Map::new(),
        };
        // They were the kernel's own values then, or are it by now.
        for (parent, member, default) in [
            ("memory", "disableOOMKiller", Value::from(false)),
            ("memory", "checkBeforeUpdate", Value::from(true)),
            ("cpu", "burst", 0.into()),
            ("cpu", "idle", 0.into()),
        ] {
            if let Some(Value::Object(parent)) = merged.get_mut(parent)
                && parent.get(member) == Some(&default)
            {
                parent.remove(member);
            }
        }
        let Value::Object(changed) = serde_json::to_value(recorded(Some(changes))).map_err(not_json)? else {
            return Err(SpecError::invalid("linux.resources", "is no object"));
        };
        merge(&mut merged, changed);
        let mut recorded: LinuxResources = serde_json::from_value(Value::Object(merged)).map_err(not_json)?;
        lift_swap_with_memory(&mut recorded, changes);
        let mut resources = Resources::new(&recorded)?;
        let names_shares = changes
            .cpu()
            .as_ref()
            .is_some_and(|cpu| cpu.shares().unwrap_or(0) != 0);
        if resources.cpu_idle == Some(1) && !names_shares {
            // An idle cgroup has no share, and the kernel takes none. It comes back with `idle` 0.
            resources.cpu_shares = None;
        }
        Ok(LimitChange {
            resources,
            recorded,
            warnings: super::resources::ignored(changes),
        })
    }
}

/// Who lifts the limit of memory without a word on swap does not mean to keep the limit of both together.
fn lift_swap_with_memory(recorded: &mut LinuxResources, changes: &LinuxResources) {
    let Some(memory) = changes.memory() else { return };
    if memory.limit() == Some(-1)
        && memory.swap().unwrap_or(0) == 0
        && let Some(recorded) = recorded.memory_mut()
    {
        recorded.set_swap(Some(-1));
    }
}

/// Puts `changes` over `present`. Zero and the empty word leave a value as it is.
fn merge(present: &mut Map<String, Value>, changes: Map<String, Value>) {
    for (member, change) in changes {
        let is_unset = change.as_i64() == Some(0) || change.as_str() == Some("");
        if is_unset && !ZERO_COUNTS.contains(&member.as_str()) {
            continue;
        }
        match (present.get_mut(&member), change) {
            (Some(Value::Object(present)), Value::Object(change)) => merge(present, change),
            (Some(Value::Array(present)), Value::Array(change)) => merge_list(present, change),
            (_, change) => {
                present.insert(member, change);
            }
        }
    }
}

/// Elements for what the list has already replace it, member by member.
fn merge_list(present: &mut Vec<Value>, changes: Vec<Value>) {
    for change in changes {
        let is_same = |known: &&mut Value| IDENTITIES.iter().all(|name| known.get(name) == change.get(name));
        match (present.iter_mut().find(is_same), change) {
            (Some(Value::Object(known)), Value::Object(change)) => known.extend(change),
            (_, change) => present.push(change),
        }
    }
}

impl Cgroup {
    /// Sets new limits, all or none.
    pub(crate) fn update(&self, change: &LimitChange) -> Result<(), CgroupError> {
        self.set_limits(&change.resources)
    }

    /// Sets those limits that there are in `resources`, all or none.
    pub(super) fn set_limits(&self, resources: &Resources) -> Result<(), CgroupError> {
        let settings = self.settings(resources)?;
        if resources.check_memory_in_use {
            self.refuse_less_memory_than_in_use(resources)?;
        }
        let applied = setting::apply_or_take_back(&settings);
        if applied.as_ref().is_err_and(is_of_memory_in_use) {
            self.refuse_less_memory_than_in_use(resources)?;
        }
        applied
    }

    fn refuse_less_memory_than_in_use(&self, resources: &Resources) -> Result<(), CgroupError> {
        let Some(limit) = resources.memory_limit.filter(|&limit| limit > 0) else {
            return Ok(());
        };
        let file = match (self.version1("memory"), self.unified()) {
            (Some(folder), _) => folder.join("memory.usage_in_bytes"),
            (None, Some(member)) => member.path.join("memory.current"),
            (None, None) => return Ok(()),
        };
        let text = read(&file).map_err(|errno| CgroupError::io("read", &file, errno))?;
        match text.trim().parse::<u64>() {
            Ok(usage) if usage > limit.unsigned_abs() => Err(CgroupError::MemoryInUse {
                field: MEMORY_LIMIT.to_owned(),
                limit,
                usage,
            }),
            _ => Ok(()),
        }
    }
}

pub(super) const MEMORY_LIMIT: &str = "linux.resources.memory.limit";

/// Version 1 takes no limit below what is in use, if it cannot reclaim enough, and says no more than "busy".
fn is_of_memory_in_use(error: &CgroupError) -> bool {
    matches!(error, CgroupError::Setting { field, source, .. }
        if field == MEMORY_LIMIT && source.raw_os_error() == Some(libc::EBUSY))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(present: &str, changes: &str) -> Result<LimitChange, SpecError> {
        LimitChange::new(
            &serde_json::from_str(present).unwrap(),
            &serde_json::from_str(changes).unwrap(),
        )
    }

    fn recorded_json(present: &str, changes: &str) -> Value {
        serde_json::to_value(change(present, changes).unwrap().recorded).unwrap()
    }

    #[test]
    fn what_a_change_does_not_name_or_names_zero_stays() {
        let present = r#"{"memory":{"limit":4096,"swap":8192},"cpu":{"shares":512,"cpus":"0","burst":5},
                          "pids":{"limit":7},"devices":[{"allow":false}]}"#;
        let changes = r#"{"memory":{"limit":6144,"swap":0},"cpu":{"shares":0,"cpus":"","quota":1000,"burst":0},
                          "pids":{"limit":0},"devices":[{"allow":true}]}"#;
        assert_eq!(
            recorded_json(present, changes),
            serde_json::json!({
                "memory": { "limit": 6144, "swap": 8192 },
                "cpu": { "shares": 512, "cpus": "0", "quota": 1000, "burst": 0 },
                "pids": { "limit": 7 }
            })
        );
    }

    #[test]
    fn elements_of_lists_are_replaced_by_what_they_are_for() {
        let present = r#"{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1},{"major":8,"minor":1,"rate":2}]},
                          "hugepageLimits":[{"pageSize":"2MB","limit":5}]}"#;
        let changes = r#"{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":1,"rate":0},{"major":9,"minor":1,"rate":3}]},
                          "hugepageLimits":[{"pageSize":"2MB","limit":0},{"pageSize":"1GB","limit":1}]}"#;
        assert_eq!(
            recorded_json(present, changes),
            serde_json::json!({
                "blockIO": { "throttleReadBpsDevice": [
                    { "major": 8, "minor": 0, "rate": 1 }, { "major": 8, "minor": 1, "rate": 0 },
                    { "major": 9, "minor": 1, "rate": 3 }
                ]},
                "hugepageLimits": [{ "pageSize": "2MB", "limit": 0 }, { "pageSize": "1GB", "limit": 1 }]
            })
        );
    }

    #[test]
    fn a_change_that_contradicts_what_is_there_is_refused_by_its_place() {
        let error = change(
            r#"{"memory":{"limit":4096,"swap":8192}}"#,
            r#"{"memory":{"limit":10000}}"#,
        );
        assert_eq!(error.unwrap_err().field(), "linux.resources.memory.swap");
    }

    #[test]
    fn lifting_the_limit_of_memory_lifts_that_of_swap() {
        let lifted = change(
            r#"{"memory":{"limit":4096,"swap":8192}}"#,
            r#"{"memory":{"limit":-1}}"#,
        )
        .unwrap();
        assert_eq!(lifted.resources.memory_and_swap_limit, Some(-1));
        assert_eq!(lifted.resources.memory_limit, Some(-1));
    }

    #[test]
    fn an_idle_container_is_asked_for_no_share_until_it_is_idle_no_longer() {
        let idle = change(r#"{"cpu":{"shares":512}}"#, r#"{"cpu":{"idle":1}}"#).unwrap();
        assert_eq!(
            (idle.resources.cpu_idle, idle.resources.cpu_shares),
            (Some(1), None)
        );
        let present = serde_json::to_string(&idle.recorded).unwrap();
        let busy = change(&present, r#"{"cpu":{"idle":0}}"#).unwrap();
        assert_eq!(
            (busy.resources.cpu_idle, busy.resources.cpu_shares),
            (Some(0), Some(512))
        );
    }
}
