//! `process.rlimits`.

use oci_spec::runtime::{PosixRlimit, PosixRlimitType};
use rustix::process::{Resource, Rlimit};

use super::SpecError;

/// One limit of a process (setrlimit(2)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResourceLimit {
    /// The name the configuration gives it.
    pub(crate) name: String,
    pub(crate) resource: Resource,
    pub(crate) limit: Rlimit,
}

pub(super) fn plan(limits: &[PosixRlimit]) -> Result<Vec<ResourceLimit>, SpecError> {
    let mut plans: Vec<ResourceLimit> = Vec::with_capacity(limits.len());
    for (index, limit) in limits.iter().enumerate() {
        let field = || format!("process.rlimits[{index}]");
        let resource = resource(limit.typ());
        if plans.iter().any(|plan| plan.resource == resource) {
            return Err(SpecError::invalid(
                format!("{}.type", field()),
                format!("{} is listed twice", limit.typ()),
            ));
        }
        if limit.soft() > limit.hard() {
            let problem = format!(
                "the soft limit {} is above the hard limit {}",
                limit.soft(),
                limit.hard()
            );
            return Err(SpecError::invalid(format!("{}.soft", field()), problem));
        }
        // RLIM_INFINITY is the largest number in the configuration and none for rustix.
        let bound = |value: u64| if value == u64::MAX { None } else { Some(value) };
        let limits = Rlimit {
            current: bound(limit.soft()),
            maximum: bound(limit.hard()),
        };
        plans.push(ResourceLimit {
            name: limit.typ().to_string(),
            resource,
            limit: limits,
        });
    }
    Ok(plans)
}

fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_json(limits: &str) -> Result<Vec<ResourceLimit>, SpecError> {
        plan(&serde_json::from_str::<Vec<PosixRlimit>>(limits).unwrap())
    }

    #[test]
    fn the_largest_number_means_no_limit() {
        let plan = plan_json(r#"[{"type":"RLIMIT_CORE","hard":18446744073709551615,"soft":0}]"#).unwrap();
        assert_eq!(
            plan[0].limit,
            Rlimit {
                current: Some(0),
                maximum: None
            }
        );
    }

    #[test]
    fn a_soft_limit_above_the_hard_one_and_a_doubled_type_are_refused() {
        let above = plan_json(r#"[{"type":"RLIMIT_NOFILE","hard":1,"soft":2}]"#).unwrap_err();
        assert_eq!(above.field(), "process.rlimits[0].soft");
        let twice = plan_json(
            r#"[{"type":"RLIMIT_NOFILE","hard":1,"soft":1},{"type":"RLIMIT_NOFILE","hard":1,"soft":1}]"#,
        );
        assert_eq!(twice.unwrap_err().field(), "process.rlimits[1].type");
    }
}
