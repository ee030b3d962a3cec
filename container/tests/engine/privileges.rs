//! Whom a program runs as and what it may do.

use container::Stdio;
use serde_json::json;

use crate::bundle::{TestBundle, chain, files, pipes, wait};

crate::tests!(
    ids_groups_and_umask_are_the_configured_ones,
    the_five_capability_sets_are_the_configured_ones,
    without_a_section_there_are_no_capabilities,
    a_user_keeps_ambient_capabilities,
    what_cannot_be_granted_is_a_warning,
    a_capability_that_nobody_knows_is_a_warning,
    an_inheritable_capability_outside_the_bounding_set_is_a_warning,
    no_new_privileges_is_set_only_when_asked_for,
    limits_and_the_oom_score_are_set,
    home_comes_from_the_images_passwd_and_not_over_a_given_one,
    a_program_the_user_may_not_execute_is_126,
    pipes_are_the_users_who_opens_them_again,
);

fn ids_groups_and_umask_are_the_configured_ones() {
    let mut bundle = TestBundle::shell("id -u; id -g; grep Groups /proc/self/status; umask");
    bundle.config["process"]["user"] =
        json!({ "uid": 1000, "gid": 1001, "additionalGids": [5, 77], "umask": 0o027 });
    assert_eq!(bundle.output(), "1000\n1001\nGroups:\t5 77 \n0027\n");
}

/// The capability sets of a container's program: inheritable, permitted, effective, bounding, ambient.
fn sets(bundle: &TestBundle) -> Vec<u64> {
    let output = bundle.output();
    output
        .lines()
        .map(|line| u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap())
        .collect()
}

const SHOW: [&str; 3] = ["grep", "^Cap", "/proc/self/status"];
const CHOWN: u64 = 1;
const KILL: u64 = 1 << 5;
const NET_RAW: u64 = 1 << 13;

fn the_five_capability_sets_are_the_configured_ones() {
    let mut bundle = TestBundle::command(&SHOW);
    bundle.config["process"]["capabilities"] = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
        "permitted": ["CAP_CHOWN", "CAP_KILL"],
        "effective": ["CAP_CHOWN", "CAP_KILL"],
        "inheritable": ["CAP_KILL"],
        "ambient": ["CAP_KILL"]
    });
    bundle.config["process"]["noNewPrivileges"] = false.into();
    // execve gives root its inheritable and bounding capabilities (capabilities(7)), and clears no ambient ones for an
    // ordinary file.
    let all = CHOWN | KILL | NET_RAW;
    assert_eq!(sets(&bundle), [KILL, all, all, all, KILL]);
}

fn without_a_section_there_are_no_capabilities() {
    let mut bundle = TestBundle::command(&SHOW);
    bundle.config["process"]["capabilities"] = json!(null);
    assert_eq!(sets(&bundle), [0; 5]);
}

fn a_user_keeps_ambient_capabilities() {
    let mut bundle = TestBundle::command(&SHOW);
    bundle.config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    let sets_wanted = ["CAP_CHOWN"];
    bundle.config["process"]["capabilities"] = json!({
        "bounding": sets_wanted, "permitted": sets_wanted, "effective": sets_wanted, "inheritable": sets_wanted,
        "ambient": sets_wanted
    });
    assert_eq!(sets(&bundle), [CHOWN; 5]);
    bundle.config["process"]["capabilities"]["ambient"] = json!([]);
    assert_eq!(sets(&bundle), [CHOWN, 0, 0, CHOWN, 0]);
}

fn what_cannot_be_granted_is_a_warning() {
    let mut bundle = TestBundle::command(&SHOW);
    bundle.config["process"]["capabilities"] = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL"], "permitted": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_CHOWN"]
    });
    rustix::thread::remove_capability_from_bounding_set(rustix::thread::CapabilitySet::KILL).unwrap();
    let mut own = rustix::thread::capabilities(None).unwrap();
    own.permitted.remove(rustix::thread::CapabilitySet::KILL);
    own.effective.remove(rustix::thread::CapabilitySet::KILL);
    rustix::thread::set_capabilities(None, own).unwrap();
    let (stdio, output) = files(&bundle.folder);
    let mut container = bundle.create(stdio).unwrap();
    let warnings = container.take_warnings().join("\n");
    assert!(
        warnings.contains("process.capabilities.permitted") && warnings.contains("CAP_KILL"),
        "{warnings}"
    );
    container.start().unwrap();
    assert_eq!(wait(&container), 0);
    assert!(
        output.outcome(0).stdout.contains("CapBnd:\t0000000000000001"),
        "{:?}",
        output.outcome(0)
    );
    container.delete(true).unwrap();
}

fn a_capability_that_nobody_knows_is_a_warning() {
    let mut bundle = TestBundle::command(&SHOW);
    bundle.config["process"]["capabilities"] = json!({
        "bounding": ["CAP_KILL", "CAP_OF_TOMORROW"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"]
    });
    let (stdio, output) = files(&bundle.folder);
    let mut container = bundle.create(stdio).unwrap();
    let warnings = container.take_warnings().join("\n");
    assert!(
        warnings.contains(
            "process.capabilities.bounding: ignoring unknown or unavailable capabilities: [CAP_OF_TOMORROW]"
        ),
        "{warnings}"
    );
    container.start().unwrap();
    assert_eq!(wait(&container), 0);
    let outcome = output.outcome(0);
    assert!(
        outcome.stdout.contains("CapBnd:\t0000000000000020"),
        "{outcome:?}"
    );
    container.delete(true).unwrap();
}

/// The kernel does not let a process inherit what it may never have (capset(2)).
fn an_inheritable_capability_outside_the_bounding_set_is_a_warning() {
    let mut bundle = TestBundle::command(&SHOW);
    bundle.config["process"]["capabilities"] = json!({
        "bounding": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN", "CAP_KILL"], "inheritable": ["CAP_CHOWN", "CAP_KILL"]
    });
    let (stdio, output) = files(&bundle.folder);
    let mut container = bundle.create(stdio).unwrap();
    assert_eq!(
        container.take_warnings(),
        ["process.capabilities.inheritable: cannot be granted: CAP_KILL"]
    );
    container.start().unwrap();
    assert_eq!(wait(&container), 0);
    let outcome = output.outcome(0);
    assert!(
        outcome.stdout.contains("CapInh:\t0000000000000001"),
        "{outcome:?}"
    );
    container.delete(true).unwrap();
}

fn no_new_privileges_is_set_only_when_asked_for() {
    let mut bundle = TestBundle::command(&["grep", "NoNewPrivs", "/proc/self/status"]);
    assert_eq!(bundle.output(), "NoNewPrivs:\t1\n");
    bundle.config["process"]["noNewPrivileges"] = false.into();
    assert_eq!(bundle.output(), "NoNewPrivs:\t0\n");
}

fn limits_and_the_oom_score_are_set() {
    let mut bundle = TestBundle::shell("ulimit -Sn; ulimit -Hn; ulimit -Sc; cat /proc/self/oom_score_adj");
    bundle.config["process"]["rlimits"] = json!([
        { "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 }, { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }
    ]);
    bundle.config["process"]["oomScoreAdj"] = 500.into();
    assert_eq!(bundle.output(), "100\n200\n0\n500\n");
}

fn home_comes_from_the_images_passwd_and_not_over_a_given_one() {
    let mut bundle = TestBundle::shell("echo $HOME");
    assert_eq!(bundle.output(), "/root\n");
    bundle.config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    assert_eq!(bundle.output(), "/home/user\n");
    bundle.config["process"]["user"] = json!({ "uid": 4711, "gid": 0 });
    assert_eq!(bundle.output(), "/\n");
    bundle.config["process"]["env"]
        .as_array_mut()
        .unwrap()
        .push("HOME=/given".into());
    assert_eq!(bundle.output(), "/given\n");
}

fn a_program_the_user_may_not_execute_is_126() {
    let mut bundle = TestBundle::command(&["/bin/private"]);
    let path = bundle.rootfs().join("bin/private");
    std::fs::copy(crate::bundle::BUSYBOX, &path).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    bundle.config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    let error = bundle.create(Stdio::Inherit).unwrap_err();
    assert_eq!(
        error.command_failure().map(container::CommandFailure::exit_code),
        Some(126),
        "{}",
        chain(&error)
    );
}

/// What writes to `/dev/stdout` by that name opens it.
fn pipes_are_the_users_who_opens_them_again() {
    for (suffix, has_users_of_its_own) in [("", false), ("-mapped", true)] {
        let script = "cat /dev/stdin; echo out > /dev/stdout; echo err > /proc/self/fd/2";
        let mut bundle = TestBundle::named(suffix, &["/bin/sh", "-c", script]);
        bundle.config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        if has_users_of_its_own {
            bundle.in_a_user_namespace();
        }
        let (stdio, ends) = pipes();
        let mut container = bundle
            .create(stdio)
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        container.start().unwrap();
        assert_eq!(ends.converse("in\n"), ("in\nout\n".into(), "err\n".into()));
        assert_eq!(wait(&container), 0);
        container.delete(false).unwrap();
    }
}
