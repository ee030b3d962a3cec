//! What of the runtime specification the engine recognizes, for those who ask before they configure ("Features").

use oci_spec::runtime::{
    Apparmor, Arch, Cgroup, Features, IDMap, IntelRdt, LinuxFeature, LinuxNamespaceType, LinuxSeccompAction,
    MemoryPolicy, MountExtensions, NetDevices, Seccomp, Selinux,
};

use crate::kernel::seccomp::takes_filter_flags;
use crate::plan::{CAPABILITIES, HOOKS, Namespace, mount_option_words};

/// The latest version of the runtime specification that the engine knows.
pub const OCI_VERSION: &str = "1.3.0";
const OLDEST_OCI_VERSION: &str = "1.0.0";

/// What the engine recognizes, read from the tables it works with. Whether this host's kernel has it too is another
/// matter, but for the flags of system call filters, of which the specification wants to know that too.
pub fn features() -> Features {
    let mut cgroup = Cgroup::default();
    cgroup
        .set_v1(Some(true))
        .set_v2(Some(true))
        .set_systemd(Some(false))
        .set_systemd_user(Some(false))
        .set_rdma(Some(true));
    let mut id_map = IDMap::default();
    id_map.set_enabled(Some(true));
    let mut mount_extensions = MountExtensions::default();
    mount_extensions.set_idmap(Some(id_map));
    let mut net_devices = NetDevices::default();
    net_devices.set_enabled(Some(true));
    let (mut apparmor, mut selinux) = (Apparmor::default(), Selinux::default());
    apparmor.set_enabled(Some(true));
    selinux.set_enabled(Some(true));
    let mut intel_rdt = IntelRdt::default();
    intel_rdt.set_enabled(Some(false));
    let mut linux = LinuxFeature::default();
    linux
        .set_namespaces(Some(namespaces()))
        .set_capabilities(Some(
            CAPABILITIES
                .iter()
                .map(|capability| format!("CAP_{capability}"))
                .collect(),
        ))
        .set_cgroup(Some(cgroup))
        .set_seccomp(Some(seccomp()))
        .set_apparmor(Some(apparmor))
        .set_selinux(Some(selinux))
        .set_intel_rdt(Some(intel_rdt))
        .set_memory_policy(Some(memory_policy()))
        .set_net_devices(Some(net_devices))
        .set_mount_extensions(Some(mount_extensions));
    let mut features = Features::default();
    features
        .set_oci_version_min(OLDEST_OCI_VERSION.to_owned())
        .set_oci_version_max(OCI_VERSION.to_owned())
        .set_hooks(Some(HOOKS.map(str::to_owned).to_vec()))
        .set_mount_options(Some(mount_option_words()))
        .set_linux(Some(linux));
    features
}

/// The flags that a profile may have, as the kernel takes each.
const FILTER_FLAGS: [(&str, libc::c_ulong); 4] = [
    ("TSYNC", libc::SECCOMP_FILTER_FLAG_TSYNC),
    ("LOG", libc::SECCOMP_FILTER_FLAG_LOG),
    ("SPEC_ALLOW", libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW),
    (
        "WAIT_KILLABLE_RECV",
        libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
    ),
];

/// Every action, comparison and flag of the specification; the system call tables of one kernel.
fn seccomp() -> Seccomp {
    use LinuxSeccompAction::*;
    let comparisons = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
    let name = |flag: &str| format!("SECCOMP_FILTER_FLAG_{flag}");
    let flags = FILTER_FLAGS.map(|(flag, _)| name(flag));
    let supported = FILTER_FLAGS
        .iter()
        .filter(|(_, bits)| takes_filter_flags(*bits))
        .map(|(flag, _)| name(flag))
        .collect();
    let mut seccomp = Seccomp::default();
    seccomp
        .set_enabled(Some(true))
        .set_actions(Some(vec![
            ScmpActKill,
            ScmpActKillProcess,
            ScmpActKillThread,
            ScmpActTrap,
            ScmpActErrno,
            ScmpActNotify,
            ScmpActTrace,
            ScmpActLog,
            ScmpActAllow,
        ]))
        .set_operators(Some(
            comparisons
                .map(|comparison| format!("SCMP_CMP_{comparison}"))
                .to_vec(),
        ))
        .set_archs(Some(vec![
            Arch::ScmpArchX86_64,
            Arch::ScmpArchX32,
            Arch::ScmpArchX86,
        ]))
        .set_known_flags(Some(flags.to_vec()))
        .set_supported_flags(Some(supported));
    seccomp
}

/// Every mode and flag of the specification.
fn memory_policy() -> MemoryPolicy {
    let modes = [
        "DEFAULT",
        "BIND",
        "INTERLEAVE",
        "WEIGHTED_INTERLEAVE",
        "PREFERRED",
        "PREFERRED_MANY",
        "LOCAL",
    ];
    let flags = ["NUMA_BALANCING", "RELATIVE_NODES", "STATIC_NODES"];
    let mut policy = MemoryPolicy::default();
    policy
        .set_modes(Some(modes.map(|mode| format!("MPOL_{mode}")).to_vec()))
        .set_flags(Some(flags.map(|flag| format!("MPOL_F_{flag}")).to_vec()));
    policy
}

/// Both sides know all kinds by the same names.
fn namespaces() -> Vec<LinuxNamespaceType> {
    let kinds = Namespace::ALL.iter();
    kinds
        .filter_map(|kind| LinuxNamespaceType::try_from(kind.name()).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::bundle::Bundle;
    use crate::plan::Plan;

    /// Whether a configuration with this member is accepted.
    fn is_accepted(pointer: &str, value: Value) -> bool {
        let mut configuration = json!({
            "ociVersion": OCI_VERSION,
            "process": { "user": { "uid": 0, "gid": 0 }, "args": ["true"], "cwd": "/" },
            "root": { "path": "rootfs" },
            "mounts": [{ "destination": "/x", "type": "tmpfs", "options": [] }],
            "hooks": {},
            "linux": { "namespaces": [{ "type": "mount" }, { "type": "network" }] }
        });
        let (parent, member) = pointer.rsplit_once('/').unwrap();
        configuration.pointer_mut(parent).unwrap()[member] = value;
        let bundle = Bundle::new("/bundle".into(), serde_json::from_value(configuration).unwrap());
        Plan::new(&bundle, &"box".parse().unwrap()).is_ok()
    }

    fn claims() -> Value {
        serde_json::to_value(features()).unwrap()
    }

    #[test]
    fn each_part_is_claimed_exactly_if_a_configuration_may_use_it() {
        let linux = &claims()["linux"];
        for (part, pointer, value) in [
            (
                "seccomp",
                "/linux/seccomp",
                json!({ "defaultAction": "SCMP_ACT_ALLOW" }),
            ),
            ("apparmor", "/process/apparmorProfile", json!("unconfined-x")),
            ("selinux", "/process/selinuxLabel", json!("a:b:c:d")),
            ("intelRdt", "/linux/intelRdt", json!({ "closID": "x" })),
            (
                "netDevices",
                "/linux/netDevices",
                json!({ "eth0": { "name": "eth1" } }),
            ),
        ] {
            assert_eq!(
                linux[part]["enabled"],
                is_accepted(pointer, value),
                "linux.{part} and {pointer}"
            );
        }
    }

    #[test]
    fn every_claimed_part_of_a_seccomp_profile_is_accepted() {
        let seccomp = &claims()["linux"]["seccomp"];
        let list = |name: &str| seccomp[name].as_array().unwrap().clone();
        for action in list("actions") {
            let profile = json!({
                "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/agent",
                "syscalls": [{ "names": ["getcwd"], "action": action }]
            });
            assert!(is_accepted("/linux/seccomp", profile), "{action}");
        }
        for operator in list("operators") {
            let args = json!([{ "index": 0, "value": 1, "valueTwo": 1, "op": operator }]);
            let profile = json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{ "names": ["getcwd"], "action": "SCMP_ACT_ERRNO", "args": args }]
            });
            assert!(is_accepted("/linux/seccomp", profile), "{operator}");
        }
        let profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": list("archs"), "flags": list("knownFlags"),
            "syscalls": [{ "names": ["getcwd"], "action": "SCMP_ACT_ERRNO" }]
        });
        assert!(is_accepted("/linux/seccomp", profile));
    }

    #[test]
    fn a_flag_that_this_kernel_does_not_know_is_not_supported() {
        assert!(takes_filter_flags(libc::SECCOMP_FILTER_FLAG_TSYNC));
        assert!(!takes_filter_flags(1 << 20));
        let seccomp = &claims()["linux"]["seccomp"];
        let known = seccomp["knownFlags"].as_array().unwrap();
        for flag in seccomp["supportedFlags"].as_array().unwrap() {
            assert!(known.contains(flag), "{flag}");
        }
    }

    #[test]
    fn every_claimed_memory_policy_is_accepted() {
        let policy = &claims()["linux"]["memoryPolicy"];
        for mode in policy["modes"].as_array().unwrap() {
            let takes_nodes = mode != "MPOL_DEFAULT" && mode != "MPOL_LOCAL";
            let nodes = if takes_nodes { "0" } else { "" };
            let policy = json!({ "mode": mode, "nodes": nodes });
            assert!(is_accepted("/linux/memoryPolicy", policy), "{mode}");
        }
        for flag in policy["flags"].as_array().unwrap() {
            let policy = json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": [flag] });
            assert!(is_accepted("/linux/memoryPolicy", policy), "{flag}");
        }
    }

    #[test]
    fn every_claimed_hook_and_namespace_is_accepted() {
        let claims = claims();
        for hook in claims["hooks"].as_array().unwrap() {
            let pointer = format!("/hooks/{}", hook.as_str().unwrap());
            assert!(is_accepted(&pointer, json!([{ "path": "/bin/true" }])), "{hook}");
        }
        for namespace in claims["linux"]["namespaces"].as_array().unwrap() {
            let others = json!([{ "type": "mount" }, { "type": namespace }]);
            let namespaces = if namespace == "mount" {
                json!([{ "type": "mount" }])
            } else {
                others
            };
            // A user namespace also needs maps.
            if namespace != "user" {
                assert!(is_accepted("/linux/namespaces", namespaces), "{namespace}");
            }
        }
    }

    #[test]
    fn names_are_those_of_the_specification() {
        let claims = claims();
        let holds = |list: &Value, word: &str| list.as_array().unwrap().iter().any(|known| known == word);
        assert!(holds(&claims["linux"]["capabilities"], "CAP_SYS_ADMIN"));
        assert!(holds(&claims["linux"]["namespaces"], "network"));
        for word in [
            "ro",
            "rro",
            "rbind",
            "rprivate",
            "idmap",
            "nosymfollow",
            "tmpcopyup",
        ] {
            assert!(holds(&claims["mountOptions"], word), "{word}");
        }
        assert!(!holds(&claims["mountOptions"], "rbindable"));
        assert!(!holds(&claims["mountOptions"], "rbind-x"));
    }
}
