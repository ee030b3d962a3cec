//! The order of the system calls of a process that joins, from its fork to its program. The whole way is gone, with calls
//! that are recorded and succeed without being made: no root, and no container.

use std::os::fd::IntoRawFd as _;
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use super::*;
use crate::kernel::calls::{Order, recorded};
use crate::process::channel::{Report, channel};

/// What a process with all that matters here and these changes to it, by JSON pointers, does until its `execve`, which fails.
fn order_of(changes: &[(&str, Value)]) -> Order {
    order_in(changes, ALL, json!({ "defaultAction": "SCMP_ACT_ALLOW" }))
}

const ALL: &[&str] = &["pid", "mount", "uts", "network", "ipc", "cgroup", "user"];

fn order_in(changes: &[(&str, Value)], namespaces: &[&str], filter: Value) -> Order {
    let mut process = json!({
        "user": { "uid": 1000, "gid": 1001, "additionalGids": [5] },
        "args": ["/bin/sh"],
        "cwd": "/etc",
        "noNewPrivileges": true,
        "apparmorProfile": "docker-default",
        "capabilities": {
            "bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"],
            "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"],
        },
        "rlimits": [
            { "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 },
            { "type": "RLIMIT_NPROC", "hard": 8, "soft": 8 },
        ],
        "execCPUAffinity": { "final": "0" },
    });
    for (pointer, value) in changes {
        *process.pointer_mut(pointer).unwrap() = value.clone();
    }
    let kinds: Vec<Value> = namespaces.iter().map(|kind| json!({ "type": kind })).collect();
    let mapping = json!([{ "containerID": 0, "hostID": 200_000, "size": 65_536 }]);
    let mut linux = json!({ "namespaces": kinds });
    if namespaces.contains(&"user") {
        linux["uidMappings"] = mapping.clone();
        linux["gidMappings"] = mapping;
    }
    let filter = SeccompPlan::new(&serde_json::from_value(filter).unwrap()).unwrap();
    let process = ProcessPlan::new(&serde_json::from_value(process).unwrap()).unwrap();
    let linux = serde_json::from_value(linux).unwrap();
    let (namespaces, execution) = (
        NamespacePlan::new(&linux).unwrap(),
        ExecutionPlan::new(&linux).unwrap(),
    );
    recorded(|_| run(&process, &namespaces, &execution, &filter))
}

/// As `exec` prepares it in the caller and `Joining::run` goes on in its child, and in the child of that.
fn run(process: &ProcessPlan, namespaces: &NamespacePlan, execution: &ExecutionPlan, filter: &SeccompPlan) {
    let folder = tempfile::tempdir().unwrap();
    let entrance = std::fs::File::create(folder.path().join("cgroup.procs")).unwrap();
    let root = std::fs::File::open("/").unwrap();
    let spare = || {
        UnixStream::pair()
            .map(|(one, _)| OwnedFd::from(one).into_raw_fd())
            .unwrap()
    };
    let (caller, own) = channel().unwrap();
    // As soon as the program's process has reported, and that nobody tells here.
    caller.let_go_on().unwrap();
    let made = PidSlot::new().unwrap();
    let joining = Joining {
        process,
        namespaces,
        // Nobody goes anywhere, so there are none that it would have to be in.
        identities: &NamespaceIdentities::default(),
        filter: Some(filter),
        execution,
        container: root.as_fd(),
        root: (!namespaces.isolates(Namespace::Mount)).then(|| root.try_clone().unwrap().into()),
        cgroup_entrances: vec![entrance.into()],
        stdio: None,
        channel: own,
        made: &made,
        preserved: Vec::new(),
        not_ours: vec![spare(), spare()],
    };
    let code = joining.make_process();
    assert!(matches!(code, Ok(127)), "{:?}", code.err());
    let heard = || caller.receive().unwrap().map(|(report, _)| report);
    for _ in ["the one outside", "the program's"] {
        assert_eq!(heard(), Some(Report::Ready { warnings: Vec::new() }));
    }
    assert!(matches!(heard(), Some(Report::Failed { failure: Some(_), .. })));
}

/// The calls of the process that the container's others see.
fn inside(order: &Order) -> Vec<&str> {
    let made = order.first("clone PARENT");
    assert_eq!(made, order.last("clone PARENT"), "one process makes one");
    order.calls()[made + 1..].iter().map(String::as_str).collect()
}

#[test]
fn what_the_hosts_privileges_are_for_comes_before_the_container_is_entered() {
    let order = order_of(&[]);
    assert_eq!(order.first("close_range CLOEXEC"), 0);
    order.is(&["close_range CLOEXEC", "sched_setaffinity", "setns"]);
    order.is(&["write self/attr/apparmor/exec", "setns"]);
    let entered = order
        .calls()
        .iter()
        .position(|call| call.ends_with("/cgroup.procs"));
    assert!(entered.is_some_and(|entered| entered < order.first("setns")));
}

#[test]
fn nobody_in_the_container_can_look_into_the_process_that_enters_it() {
    let order = order_of(&[]);
    assert!(order.first("prctl SET_DUMPABLE 0") < order.first("setns"));
    // Each change of user may take it back, and another user of the container may be the first to look.
    let calls = order.calls();
    for (place, _) in calls
        .iter()
        .enumerate()
        .filter(|(_, call)| call.starts_with("setresuid"))
    {
        let then = calls.iter().skip(place).find(|call| !call.starts_with("setres"));
        assert_eq!(
            then.map(String::as_str),
            Some("prctl SET_DUMPABLE 0"),
            "{calls:#?}"
        );
    }
    assert!(!order.has("prctl SET_DUMPABLE 1"));
}

#[test]
fn all_namespaces_are_entered_at_once_and_the_user_namespaces_root_is_taken_first() {
    let order = order_of(&[]);
    let entered = order.first("setns");
    let mut names: Vec<&str> = order.calls()[entered]
        .trim_start_matches("setns ")
        .split('|')
        .collect();
    names.sort_unstable();
    // As `rustix` calls them.
    let all = [
        "CONTROL_GROUP",
        "HOST_NAME_AND_NIS_DOMAIN_NAME",
        "INTER_PROCESS_COMMUNICATION",
        "MOUNT",
        "NETWORK",
        "PROCESS_ID",
        "USER",
    ];
    assert_eq!(names, all);
    assert_eq!(entered, order.last("setns"));
    order.is(&["setns", "setresgid 0", "setresuid 0", "setgroups"]);
}

#[test]
fn a_root_without_a_mount_namespace_is_entered_before_anything_is_looked_up_in_it() {
    let order = order_in(&[], &["pid"], json!({ "defaultAction": "SCMP_ACT_ALLOW" }));
    order.is(&["setns", "fchdir /", "chroot .", "fchdir /etc", "setgroups"]);
    assert!(!order_of(&[]).has("chroot"));
}

#[test]
fn the_process_that_is_seen_is_made_with_nothing_that_it_is_not_to_have() {
    let order = order_of(&[]);
    order.is(&[
        "setgroups",
        "setresgid 1001",
        "setresuid 1000",
        "close_range CLOSE",
    ]);
    order.is(&[
        "prctl CAPBSET_DROP",
        "close_range CLOSE",
        "forget the environment",
        "capset 0x20",
        "prctl SET_NO_NEW_PRIVS",
        "clone PARENT",
    ]);
    assert_eq!(
        order.first("capset"),
        order.first("capset 0x20"),
        "they only shrink"
    );
    // Its own session, the limit that would have counted its maker, the filter, the program, and no call more.
    assert_eq!(
        inside(&order),
        ["setsid", "setrlimit", "seccomp", "execve /bin/sh"]
    );
}

#[test]
fn a_filter_that_needs_privilege_is_loaded_outside_before_the_privilege_goes() {
    let order = order_of(&[("/noNewPrivileges", json!(false))]);
    order.is(&[
        "setresuid 1000",
        "close_range CLOSE",
        "capset 0x1ffffffffff",
        "seccomp",
        "capset 0x20",
        "clone PARENT",
    ]);
    assert_eq!(inside(&order), ["setsid", "setrlimit", "execve /bin/sh"]);
    assert!(!order.has("prctl SET_NO_NEW_PRIVS"));
}

#[test]
fn only_a_filter_that_forbids_what_is_left_keeps_one_capability_for_itself() {
    let forbids_clone = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["clone"], "action": "SCMP_ACT_ERRNO" }],
    });
    let order = order_in(&[("/noNewPrivileges", json!(false))], ALL, forbids_clone);
    order.is(&[
        "close_range CLOSE",
        "capset 0x200020",
        "clone PARENT",
        "seccomp",
        "capset 0x20",
        "execve",
    ]);
    let calls = inside(&order);
    assert_eq!(calls[..2], ["setsid", "setrlimit"]);
    assert_eq!(calls.last(), Some(&"execve /bin/sh"));
}
