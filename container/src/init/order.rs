//! The order of the system calls between the fork and the program, as this is what a container's safety depends on. The
//! whole way is gone, with calls that are recorded and succeed without being made: no root, and no container.

use std::io::{Read as _, Write as _};
use std::os::fd::{IntoRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::bundle::Bundle;
use crate::cgroup::Hierarchies;
use crate::kernel::calls::{Order, Record, recorded};
use crate::process::channel::channel;

/// What a container with all that matters here and these changes to its configuration, by JSON pointers, does from its birth
/// to its `execve`, which fails.
fn order_of(changes: &[(&str, Value)]) -> Order {
    order_with(changes, CgroupEntrances::Open(Vec::new()))
}

fn order_with(changes: &[(&str, Value)], entrances: CgroupEntrances) -> Order {
    let folder = tempfile::tempdir().unwrap();
    for path in ["rootfs/proc", "rootfs/sys/firmware", "rootfs/etc", "rootfs/work"] {
        std::fs::create_dir_all(folder.path().join(path)).unwrap();
    }
    std::fs::create_dir(folder.path().join("volume")).unwrap();
    let mut config = config();
    for (pointer, value) in changes {
        *config.pointer_mut(pointer).unwrap() = value.clone();
    }
    let bundle = Bundle::new(folder.path().to_owned(), serde_json::from_value(config).unwrap());
    let plan = Plan::new(&bundle, &"order".parse().unwrap()).unwrap();
    recorded(|record| run(&plan, folder.path(), entrances, record))
}

fn config() -> Value {
    json!({
        "ociVersion": "1.2.1",
        "hostname": "box",
        "root": { "path": "rootfs", "readonly": true },
        "process": {
            "user": { "uid": 1000, "gid": 1001, "additionalGids": [5] },
            "args": ["/bin/sh"],
            "cwd": "/work",
            "noNewPrivileges": true,
            "apparmorProfile": "",
            "capabilities": {
                "bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"],
                "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"],
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "bind", "source": "volume", "options": ["bind", "ro"] },
        ],
        "linux": {
            "namespaces": [
                { "type": "pid" }, { "type": "mount" }, { "type": "uts" }, { "type": "network" }, { "type": "cgroup" },
            ],
            "maskedPaths": ["/sys/firmware"],
            "readonlyPaths": ["/etc"],
            "seccomp": { "defaultAction": "SCMP_ACT_ALLOW" },
        },
    })
}

/// As `create` prepares it in the caller and `Init::run` goes on in its child, up to the execution that fails.
fn run(plan: &Plan, folder: &Path, cgroup_entrances: CgroupEntrances, record: &Record) {
    let listener = UnixListener::bind(folder.join("start")).unwrap();
    let starter = std::thread::spawn({
        let path = folder.join("start");
        move || {
            let mut socket = UnixStream::connect(path).unwrap();
            socket.write_all(b"!").unwrap();
            let mut answer = Vec::new();
            // It closes with the execution, or tells why there is none.
            let _ = socket.read_to_end(&mut answer);
        }
    });
    let spare = || {
        UnixStream::pair()
            .map(|(one, _)| OwnedFd::from(one).into_raw_fd())
            .unwrap()
    };
    let cgroup = Cgroup::locate(&Hierarchies::at(Vec::new()), Path::new("/order")).unwrap();
    let (caller, own) = channel().unwrap();
    if let CgroupEntrances::BeingMade = cgroup_entrances {
        caller.let_go_on().unwrap();
    }
    let (sources, mut waiting) = Sources::open(plan).unwrap();
    let init = Init {
        plan,
        cgroup: &cgroup,
        sources,
        cgroup_entrances,
        joined: JoinedNamespaces::open(&plan.namespaces).unwrap(),
        stdio: None,
        channel: own,
        state: OciState {
            oci_version: "1.2.1".to_owned(),
            id: "order".to_owned(),
            status: Status::Creating,
            pid: None,
            bundle: folder.to_owned(),
            annotations: Default::default(),
        },
        start: StartSocket::Listening(listener.into()),
        preserved: Vec::new(),
        keyring: Keyring::New,
        made: None,
        not_ours: vec![spare(), spare()],
    };
    std::thread::scope(|scope| {
        // As the caller does it.
        let hears = scope.spawn(|| {
            loop {
                match caller.receive().unwrap() {
                    Some((Report::AwaitsSources { first }, _)) => {
                        let trees = record.also(|| waiting.copy_in_turn(plan, first).unwrap());
                        caller.hand_over_if_there(&trees).unwrap();
                    }
                    Some((Report::IsInNamespaces, _)) => {}
                    heard => return heard.map(|(report, _)| report),
                }
            }
        });
        let code = init.set_up_and_become();
        drop(init);
        let heard = hears.join().unwrap();
        assert_eq!((code, heard), (127, Some(Report::Ready { warnings: Vec::new() })));
    });
    starter.join().unwrap();
}

#[test]
fn nothing_of_the_callers_mounts_is_left_when_the_program_begins() {
    let order = order_of(&[]);
    // The mounts are private before anything is changed in them, and the old root is gone before the program's
    // privileges are settled.
    order.is(&[
        "mount_change /",
        "move_mount",
        "pivot_root . .",
        "unmount . DETACH",
        "chdir /",
        "setsid",
        "execve",
    ]);
    assert!(order.calls()[order.first("mount_change /")].contains("REC"));
    assert!(!order.has("chroot"));
}

#[test]
fn what_protects_comes_after_the_mounts_and_before_the_root_is_entered() {
    let order = order_of(&[]);
    order.is(&[
        "move_mount /proc",
        "move_mount /dev",
        "move_mount /etc",
        "move_mount /sys/firmware",
        "pivot_root",
    ]);
    // Nothing is mounted after what hides.
    assert_eq!(order.last("move_mount"), order.first("move_mount /sys/firmware"));
}

#[test]
fn a_read_only_mount_is_never_in_its_place_without_being_read_only() {
    let order = order_of(&[]);
    assert!(
        order.first("mount_setattr RDONLY") < order.first("move_mount /dev"),
        "{:#?}",
        order.calls()
    );
}

#[test]
fn groups_go_before_the_group_and_the_group_before_the_user() {
    let order = order_of(&[]);
    order.is(&[
        "setgroups",
        "setresgid 1001",
        "prctl SET_KEEPCAPS",
        "setresuid 1000",
        "capset",
    ]);
}

#[test]
fn capabilities_go_when_nothing_needs_them_any_more() {
    let order = order_of(&[]);
    order.is(&[
        "unmount",
        "setrlimit",
        "prctl CAPBSET_DROP",
        "setresuid",
        "capset 0x20",
        "prctl CAP_AMBIENT_RAISE",
    ]);
    assert_eq!(
        order.last("capset"),
        order.first("capset 0x20"),
        "they are set once"
    );
}

#[test]
fn with_no_new_privileges_the_filter_is_the_last_call_but_the_execution() {
    let order = order_of(&[]);
    order.is(&[
        "capset 0x20",
        "prctl SET_NO_NEW_PRIVS",
        "close_range CLOSE",
        "seccomp",
        "execve",
    ]);
    assert_eq!(order.first("seccomp") + 1, order.first("execve"));
}

#[test]
fn without_them_it_is_loaded_before_the_capabilities_go() {
    let order = order_of(&[("/process/noNewPrivileges", json!(false))]);
    order.is(&["setresuid 1000", "seccomp", "capset 0x20", "execve"]);
    // The privilege to load it is in effect, and only then.
    order.is(&["setresuid 1000", "capset 0x1ffffffffff", "seccomp"]);
    assert!(!order.has("prctl SET_NO_NEW_PRIVS"));
}

#[test]
fn nobody_can_look_into_the_process_once_it_has_the_containers_user() {
    let order = order_of(&[]);
    // A change of user may take it back, so it is said again after that.
    order.is(&["setsid", "prctl SET_DUMPABLE 0"]);
    let again = order.last("prctl SET_DUMPABLE 0");
    assert!(order.last("setresuid") < again && again < order.first("capset 0x20"));
    assert!(!order.has("prctl SET_DUMPABLE 1"));
}

#[test]
fn descriptors_are_closed_before_the_wait_and_marked_before_anything_else() {
    let order = order_of(&[]);
    let first = order.calls().iter().find(|call| {
        !["open_tree", "mount_setattr"]
            .iter()
            .any(|own| call.starts_with(own))
    });
    assert_eq!(
        first.map(String::as_str),
        Some("close_range CLOEXEC"),
        "after the caller opened the sources"
    );
    order.is(&["capset 0x20", "close_range CLOSE", "seccomp"]);
}

#[test]
fn the_working_folder_is_entered_with_the_rights_of_root_and_within_the_new_root() {
    let order = order_of(&[]);
    order.is(&["unmount . DETACH", "fchdir /work", "setgroups"]);
}

#[test]
fn the_program_is_labelled_while_the_callers_proc_is_there_and_privileges_too() {
    let order = order_of(&[("/process/apparmorProfile", json!("docker-default"))]);
    let label = "write self/attr/apparmor/exec exec docker-default";
    order.is(&[label, "pivot_root . .", "setresuid 1000", "execve"]);
}

#[test]
fn names_are_set_before_the_root_is_made_and_the_cgroup_namespace_is_made_first() {
    let order = order_of(&[]);
    order.is(&[
        "unshare NEWCGROUP",
        "ioctl SIOCSIFFLAGS lo",
        "sethostname",
        "mount_change",
    ]);
}

#[test]
fn while_the_cgroups_are_made_nothing_is_changed_but_the_processs_own_namespaces() {
    let order = order_with(&[], CgroupEntrances::BeingMade);
    let own = "unshare NEWNET|NEWNS|NEWUTS";
    order.is(&["close_range CLOEXEC", "sigprocmask", own, "unshare NEWCGROUP"]);
    assert_eq!(order.first(own) + 1, order.first("unshare NEWCGROUP"));
}

#[test]
fn without_a_mount_namespace_the_callers_mounts_keep_their_propagation() {
    let kinds = json!([{ "type": "pid" }]);
    let order = order_of(&[
        ("/linux/namespaces", kinds),
        ("/linux/maskedPaths", json!([])),
        ("/linux/readonlyPaths", json!([])),
        ("/hostname", json!("")),
        (
            "/mounts",
            json!([{ "destination": "/dev", "type": "bind", "source": "volume", "options": ["bind", "ro"] }]),
        ),
    ]);
    order.is(&["move_mount", "fchdir /", "chroot .", "setgroups", "execve"]);
    assert!(!order.has("pivot_root") && !order.has("unmount") && !order.has("mount_change"));
}
