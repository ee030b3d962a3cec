//! What containers need of this kernel, found by trying or reading.

use std::io;
use std::path::Path;

use container::MountedCgroups;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, OpenTreeFlags, fsopen, open_tree};
use rustix::process::{PidfdFlags, geteuid, getpid, pidfd_open};

use super::finding::{Finding, causes};
use crate::isolation::Isolation;
use crate::pod_network::PodNetworkError;

/// The namespaces of every container, by their files in `/proc/self/ns`.
const NAMESPACES: [&str; 6] = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];

pub(super) fn release() -> Finding {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    Finding::ok("kernel", release)
}

pub(super) fn privilege() -> Finding {
    match geteuid().as_raw() {
        0 => Finding::ok("privilege", "root"),
        user => Finding::missing("privilege", format!("user {user}"), "run as root"),
    }
}

pub(super) fn cgroups() -> Finding {
    match container::mounted_cgroups() {
        Ok(mounted) => judge_cgroups(&mounted),
        Err(error) => Finding::missing("cgroups", causes(error), "mount cgroup2 on /sys/fs/cgroup"),
    }
}

/// Controllers in the order of what they limit first.
fn judge_cgroups(mounted: &[MountedCgroups]) -> Finding {
    const CHECK: &str = "cgroups";
    let has = |controller: &str| {
        mounted
            .iter()
            .any(|cgroups| cgroups.controllers.iter().any(|known| known == controller))
    };
    let has_unified = mounted.iter().any(|cgroups| cgroups.version == 2);
    // Version 2 limits devices by programs, and freezes, without a controller.
    let wanted: &[&str] = if mounted.iter().all(|cgroups| cgroups.version == 2) {
        &["memory", "cpu", "pids"]
    } else {
        &["memory", "cpu", "pids", "devices", "freezer"]
    };
    let lacking: Vec<&str> = wanted.iter().copied().filter(|wanted| !has(wanted)).collect();
    let has_version1 = mounted.iter().any(|cgroups| cgroups.version == 1);
    let versions = match (has_version1, has_unified) {
        (true, true) => "versions 1 and 2",
        (true, false) => "version 1",
        _ => "version 2",
    };
    let controllers: Vec<&str> = mounted
        .iter()
        .flat_map(|cgroups| cgroups.controllers.iter().map(String::as_str))
        .filter(|controller| !controller.starts_with("name="))
        .collect();
    let detail = format!("{versions} with {}", controllers.join(", "));
    if lacking.is_empty() {
        Finding::ok(CHECK, detail)
    } else {
        let advice = format!(
            "limits of {} are refused until there is such a controller: mount it, or switch it on at the kernel's \
             command line",
            lacking.join(", ")
        );
        Finding::warning(CHECK, format!("{detail}, without {}", lacking.join(", ")), advice)
    }
}

pub(super) fn namespaces() -> Finding {
    const CHECK: &str = "namespaces";
    let folder = Path::new("/proc/self/ns");
    let lacking: Vec<&str> = NAMESPACES
        .into_iter()
        .filter(|kind| !folder.join(kind).exists())
        .collect();
    if lacking.is_empty() {
        Finding::ok(CHECK, NAMESPACES.join(", "))
    } else {
        let detail = format!("without {} in {}", lacking.join(", "), folder.display());
        Finding::missing(
            CHECK,
            detail,
            "mount /proc, and use a kernel with these namespaces",
        )
    }
}

pub(super) fn user_namespaces() -> Finding {
    judge_user_namespaces(std::fs::read_to_string("/proc/sys/user/max_user_namespaces"))
}

fn judge_user_namespaces(limit: io::Result<String>) -> Finding {
    const CHECK: &str = "user namespaces";
    match limit {
        Ok(limit) if limit.trim() == "0" => Finding::warning(
            CHECK,
            "switched off",
            "for containers with users of their own set the sysctl user.max_user_namespaces",
        ),
        Ok(limit) => Finding::ok(CHECK, format!("up to {}", limit.trim())),
        Err(error) => Finding::warning(
            CHECK,
            format!("reading /proc/sys/user/max_user_namespaces: {error}"),
            "containers with users of their own need a kernel with user namespaces",
        ),
    }
}

/// As a container's mounts are made: a copy of one that nobody sees, changed, and here left to go.
pub(super) fn mounts() -> Finding {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let (call, tried) = match open_tree(CWD, "/", flags) {
        Ok(mount) => ("mount_setattr", container::set_read_only(&mount)),
        Err(errno) => ("open_tree", Err(errno)),
    };
    judge_call(
        "detached mounts",
        call,
        tried,
        "open_tree and mount_setattr",
        "5.12",
    )
}

pub(super) fn overlay() -> Finding {
    const CHECK: &str = "overlayfs";
    match fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        Err(Errno::NODEV) => Finding::missing(
            CHECK,
            "this kernel has none",
            "load the module overlay: images are shared between containers through it",
        ),
        tried => judge_call(CHECK, "fsopen", tried.map(drop), "overlayfs", "5.2"),
    }
}

pub(super) fn pidfd() -> Finding {
    let tried = pidfd_open(getpid(), PidfdFlags::empty()).map(drop);
    judge_call("pidfd", "pidfd_open", tried, "pidfd_open", "5.3")
}

/// What a call says that has to be there since a version of Linux.
fn judge_call(
    check: &'static str,
    call: &str,
    tried: Result<(), Errno>,
    works: &str,
    since: &str,
) -> Finding {
    match tried {
        Ok(()) => Finding::ok(check, format!("{works}: tried")),
        Err(Errno::NOSYS) => Finding::missing(
            check,
            format!("this kernel has no {call}"),
            format!("use Linux {since} or later"),
        ),
        Err(errno @ (Errno::PERM | Errno::ACCESS)) => Finding::missing(
            check,
            format!("{call}: {errno}"),
            "run as root, outside of containers that forbid the call",
        ),
        Err(errno) => Finding::missing(
            check,
            format!("{call}: {errno}"),
            "look what this kernel says in dmesg",
        ),
    }
}

pub(super) fn seccomp() -> Finding {
    judge_seccomp(std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail"))
}

fn judge_seccomp(actions: io::Result<String>) -> Finding {
    const CHECK: &str = "seccomp";
    match actions {
        Ok(actions) if actions.split_whitespace().any(|action| action == "user_notif") => {
            Finding::ok(CHECK, actions.trim())
        }
        Ok(actions) => Finding::warning(
            CHECK,
            format!("{}, without user_notif", actions.trim()),
            "profiles that hand system calls to an agent are refused; Linux 5.0 or later has it",
        ),
        Err(error) => Finding::warning(
            CHECK,
            format!("reading /proc/sys/kernel/seccomp/actions_avail: {error}"),
            "containers with a seccomp profile need a kernel with CONFIG_SECCOMP_FILTER",
        ),
    }
}

/// As a pod's network is tied to its machine's, in a network namespace that is gone again.
pub(super) fn pod_network() -> Finding {
    judge_pod_network(crate::pod_network::try_out()).only_for(Isolation::MicroVm)
}

fn judge_pod_network(tried: Result<(), PodNetworkError>) -> Finding {
    const CHECK: &str = "pod network";
    match tried {
        Ok(()) => Finding::ok(CHECK, "taps, and redirection by traffic control: tried"),
        Err(error) => Finding::warning(
            CHECK,
            causes(error),
            "machines have no network without it: run as root, with a kernel that has the modules tun, sch_ingress, \
             cls_u32 and act_mirred",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::*;

    fn mounted(version: u8, controllers: &[&str]) -> MountedCgroups {
        MountedCgroups {
            version,
            mount_point: "/sys/fs/cgroup".into(),
            controllers: controllers
                .iter()
                .map(|controller| (*controller).to_owned())
                .collect(),
        }
    }

    #[test]
    fn version_2_needs_no_controller_of_devices() {
        let finding = judge_cgroups(&[mounted(2, &["cpu", "memory", "pids"])]);
        assert_eq!(finding.status, Status::Ok);
        assert_eq!(finding.detail, "version 2 with cpu, memory, pids");
    }

    #[test]
    fn controllers_of_both_versions_count_together_and_missing_ones_are_named() {
        let finding = judge_cgroups(&[
            mounted(1, &["cpu", "cpuacct"]),
            mounted(1, &["name=systemd"]),
            mounted(1, &["devices"]),
            mounted(2, &["memory"]),
        ]);
        assert_eq!(finding.status, Status::Warning);
        assert!(
            finding.detail.starts_with("versions 1 and 2"),
            "{}",
            finding.detail
        );
        assert!(
            finding.detail.ends_with("without pids, freezer"),
            "{}",
            finding.detail
        );
        assert!(!finding.detail.contains("systemd"), "{}", finding.detail);
    }

    #[test]
    fn a_call_that_is_not_there_names_the_kernel_that_has_it() {
        let finding = judge_call("x", "open_tree", Err(Errno::NOSYS), "open_tree", "5.12");
        assert_eq!(finding.status, Status::Missing);
        assert_eq!(finding.advice.unwrap(), "use Linux 5.12 or later");
    }

    #[test]
    fn user_namespaces_that_are_switched_off_are_a_warning() {
        assert_eq!(
            judge_user_namespaces(Ok("0\n".to_owned())).status,
            Status::Warning
        );
        assert_eq!(judge_user_namespaces(Ok("7\n".to_owned())).status, Status::Ok);
        let absent = Err(io::ErrorKind::NotFound.into());
        assert_eq!(judge_user_namespaces(absent).status, Status::Warning);
    }

    #[test]
    fn a_pods_network_is_tried_and_a_step_that_fails_is_a_warning_with_what_it_takes() {
        let failed = PodNetworkError::Step {
            doing: "redirecting what arrives",
            interface: "bhtap0".to_owned(),
            source: io::ErrorKind::NotFound.into(),
        };
        let finding = judge_pod_network(Err(failed));
        assert_eq!(finding.status, Status::Warning);
        assert!(
            finding.detail.contains("redirecting what arrives"),
            "{}",
            finding.detail
        );
        assert!(finding.advice.unwrap().contains("act_mirred"));
        if geteuid().is_root() && Path::new("/dev/net/tun").exists() {
            assert_eq!(pod_network().status, Status::Ok, "{}", pod_network().detail);
        } else {
            println!("SKIPPED: taps need root and /dev/net/tun");
        }
    }

    #[test]
    fn seccomp_without_agents_is_a_warning() {
        assert_eq!(
            judge_seccomp(Ok("errno allow\n".to_owned())).status,
            Status::Warning
        );
        let all = Ok("errno user_notif allow\n".to_owned());
        assert_eq!(judge_seccomp(all).status, Status::Ok);
    }
}
