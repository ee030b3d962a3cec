//! `process.capabilities`: five sets of bits.

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

/// The five capability sets of a process, a bit for each capability (capabilities(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CapabilityPlan {
    pub(crate) bounding: u64,
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
    pub(crate) ambient: u64,
}

/// Every capability by its number, as `<linux/capability.h>` counts them.
pub(crate) const CAPABILITIES: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

impl CapabilityPlan {
    /// A configuration without capabilities gives none.
    pub(super) fn new(capabilities: Option<&LinuxCapabilities>) -> CapabilityPlan {
        let Some(capabilities) = capabilities else {
            return CapabilityPlan::default();
        };
        CapabilityPlan {
            bounding: bits(capabilities.bounding()),
            effective: bits(capabilities.effective()),
            permitted: bits(capabilities.permitted()),
            inheritable: bits(capabilities.inheritable()),
            ambient: bits(capabilities.ambient()),
        }
    }
}

fn bits(set: &Option<Capabilities>) -> u64 {
    let Some(set) = set else { return 0 };
    CAPABILITIES
        .iter()
        .enumerate()
        .filter(|(_, capability)| set.contains(capability))
        .fold(0, |bits, (number, _)| bits | 1 << number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_take_the_numbers_of_the_kernel() {
        let set = [
            Capability::Chown,
            Capability::SysAdmin,
            Capability::CheckpointRestore,
        ];
        assert_eq!(bits(&Some(set.into_iter().collect())), 1 | 1 << 21 | 1 << 40);
    }

    #[test]
    fn every_capability_stands_once_in_the_table() {
        let unique: std::collections::HashSet<_> = CAPABILITIES.iter().collect();
        assert_eq!(unique.len(), CAPABILITIES.len());
    }

    #[test]
    fn without_a_section_there_are_none() {
        assert_eq!(CapabilityPlan::new(None), CapabilityPlan::default());
    }
}
