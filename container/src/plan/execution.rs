//! `linux.personality` and `linux.memoryPolicy`: what every process of the container executes under.

use oci_spec::runtime::{
    Linux, LinuxMemoryPolicy, LinuxPersonality, LinuxPersonalityDomain, MemoryPolicyFlagType,
    MemoryPolicyModeType,
};

use super::{SpecError, number_list};
use crate::kernel::memory_policy::{MOST_NODES, MemoryPolicy};

/// What every process of the container executes under.
#[derive(Debug)]
pub(crate) struct ExecutionPlan {
    /// As `personality(2)` takes it.
    pub(crate) personality: Option<libc::c_ulong>,
    pub(crate) memory_policy: Option<MemoryPolicy>,
}

impl ExecutionPlan {
    pub(crate) fn new(linux: &Linux) -> Result<ExecutionPlan, SpecError> {
        Ok(ExecutionPlan {
            personality: linux.personality().as_ref().map(personality).transpose()?,
            memory_policy: linux.memory_policy().as_ref().map(memory_policy).transpose()?,
        })
    }
}

fn personality(personality: &LinuxPersonality) -> Result<libc::c_ulong, SpecError> {
    if let Some(flag) = personality.flags().iter().flatten().next() {
        return Err(SpecError::invalid(
            "linux.personality.flags[0]",
            format!("`{flag}`: the specification knows no flags"),
        ));
    }
    // `PER_LINUX` and `PER_LINUX32` of `<linux/personality.h>`.
    Ok(match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    })
}

fn memory_policy(policy: &LinuxMemoryPolicy) -> Result<MemoryPolicy, SpecError> {
    use MemoryPolicyModeType as Mode;
    const NODES: &str = "linux.memoryPolicy.nodes";

    // `<linux/mempolicy.h>`.
    let mode = match policy.mode() {
        Mode::MpolDefault => 0,
        Mode::MpolPreferred => 1,
        Mode::MpolBind => 2,
        Mode::MpolInterleave => 3,
        Mode::MpolLocal => 4,
        Mode::MpolPreferredMany => 5,
        Mode::MpolWeightedInterleave => 6,
    };
    let flags = policy.flags().iter().flatten().fold(0, |flags, flag| {
        flags
            | match flag {
                MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
                MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
                MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
            }
    });
    let nodes = match policy.nodes().as_deref() {
        None | Some("") => Vec::new(),
        Some(text) => number_list::parse(NODES, text, MOST_NODES)?,
    };
    let takes_no_nodes = matches!(policy.mode(), Mode::MpolDefault | Mode::MpolLocal);
    // Preferring no node is preferring the local one.
    let needs_nodes = !takes_no_nodes && policy.mode() != Mode::MpolPreferred;
    if takes_no_nodes && !nodes.is_empty() {
        return Err(SpecError::invalid(NODES, format!("{} takes none", policy.mode())));
    }
    if needs_nodes && nodes.is_empty() {
        return Err(SpecError::invalid(
            NODES,
            format!("{} needs at least one", policy.mode()),
        ));
    }
    if flags >> 14 == 0b11 || takes_no_nodes && flags != 0 {
        let problem = match takes_no_nodes {
            true => format!("{} takes none", policy.mode()),
            false => "nodes are static or relative, not both".to_owned(),
        };
        return Err(SpecError::invalid("linux.memoryPolicy.flags", problem));
    }
    Ok(MemoryPolicy::new(mode | flags, nodes.into_iter().flatten()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn plan(field: &str, value: Value) -> Result<ExecutionPlan, SpecError> {
        ExecutionPlan::new(&serde_json::from_value(json!({ field: value })).unwrap())
    }

    #[test]
    fn mistakes_are_refused_by_their_place() {
        for (field, value, place) in [
            (
                "personality",
                json!({ "domain": "LINUX", "flags": ["X"] }),
                "personality.flags[0]",
            ),
            (
                "memoryPolicy",
                json!({ "mode": "MPOL_BIND" }),
                "memoryPolicy.nodes",
            ),
            (
                "memoryPolicy",
                json!({ "mode": "MPOL_BIND", "nodes": "x" }),
                "memoryPolicy.nodes",
            ),
            (
                "memoryPolicy",
                json!({ "mode": "MPOL_BIND", "nodes": "1024" }),
                "memoryPolicy.nodes",
            ),
            (
                "memoryPolicy",
                json!({ "mode": "MPOL_LOCAL", "nodes": "0" }),
                "memoryPolicy.nodes",
            ),
            (
                "memoryPolicy",
                json!({ "mode": "MPOL_DEFAULT", "flags": ["MPOL_F_STATIC_NODES"] }),
                "memoryPolicy.flags",
            ),
            (
                "memoryPolicy",
                json!({ "mode": "MPOL_BIND", "nodes": "0",
                        "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"] }),
                "memoryPolicy.flags",
            ),
        ] {
            assert_eq!(plan(field, value).unwrap_err().field(), format!("linux.{place}"));
        }
    }

    #[test]
    fn a_policy_has_the_kernels_numbers() {
        let policy =
            json!({ "mode": "MPOL_INTERLEAVE", "nodes": "0,64-65", "flags": ["MPOL_F_STATIC_NODES"] });
        let policy = plan("memoryPolicy", policy).unwrap().memory_policy.unwrap();
        assert_eq!(policy, MemoryPolicy::new(3 | 1 << 15, [0, 64, 65]));
        let preferred = plan("memoryPolicy", json!({ "mode": "MPOL_PREFERRED" })).unwrap();
        assert_eq!(preferred.memory_policy, Some(MemoryPolicy::new(1, [])));
        let personality = |domain: &str| {
            plan("personality", json!({ "domain": domain }))
                .unwrap()
                .personality
        };
        assert_eq!((personality("LINUX"), personality("LINUX32")), (Some(0), Some(8)));
    }
}
