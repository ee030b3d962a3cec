//! What a container sees of the machine, and what the machine keeps.

use std::fs;

use container::Stdio;
use serde_json::json;

use crate::bundle::{TestBundle, chain, files, wait, wait_until};
use crate::cgroup_files::GO_TO_CGROUP;
use crate::wall::Container;
use crate::watcher;

crate::tests!(
    a_container_is_alone_with_its_own_names,
    loopback_is_up_in_a_new_network,
    the_cgroup_namespace_begins_at_the_containers_cgroup,
    an_existing_network_is_joined,
    an_existing_pid_namespace_is_joined_and_the_caller_keeps_its_own,
    a_container_that_begins_among_others_has_nothing_to_take,
    a_container_that_begins_among_others_lacks_nothing,
    a_namespace_that_does_not_exist_is_named,
    nothing_is_set_in_a_namespace_of_the_callers,
    a_file_that_is_another_namespace_or_none_is_named,
    an_existing_user_namespace_is_joined_with_what_belongs_to_it,
    an_existing_user_namespace_gets_namespaces_of_its_own,
    mappings_other_than_those_of_a_joined_user_namespace_are_refused,
    a_new_user_namespace_and_a_network_of_the_hosts_go_together,
    a_namespace_that_cannot_be_joined_is_reported_from_between,
    an_existing_time_namespace_is_joined,
    an_existing_mount_namespace_is_joined,
    a_joined_uts_namespace_takes_the_host_name,
    cgroups_are_bound_where_their_namespace_is_of_other_users,
    without_a_mount_namespace_the_root_is_changed_and_unmounted_again,
    a_creation_without_a_mount_namespace_that_fails_leaves_no_mount,
    without_a_mount_namespace_nothing_can_be_hidden,
    a_user_namespace_maps_root_to_somebody_else,
    root_of_a_user_namespace_is_somebody_else_on_the_host,
    a_time_namespace_has_its_own_clocks,
    sysctls_stay_in_the_container,
);

fn a_container_is_alone_with_its_own_names() {
    let mut bundle =
        TestBundle::shell("hostname; echo $$; ps | grep -c '[0-9]'; cat /proc/sys/kernel/domainname");
    bundle.config["domainname"] = "example.org".into();
    let before = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    // The shell, ps, grep.
    assert_eq!(bundle.output(), "bulkhead\n1\n3\nexample.org\n");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), before);
}

fn loopback_is_up_in_a_new_network() {
    let output = TestBundle::shell("ip addr show; ls /sys/class/net").output();
    assert!(
        output.contains("LOOPBACK,UP") && output.contains("127.0.0.1/8"),
        "{output}"
    );
    assert!(output.ends_with("\nlo\n"), "{output}");
}

fn the_cgroup_namespace_begins_at_the_containers_cgroup() {
    let output = TestBundle::command(&["cat", "/proc/self/cgroup"]).output();
    assert!(
        !output.is_empty() && output.lines().all(|line| line.ends_with(":/")),
        "{output}"
    );
}

/// Runs a container that sleeps, and gives another's configuration a namespace of it.
fn beside_a_sleeper(kind: &str, script: &str, check: impl Fn(i32, &TestBundle)) {
    let sleeper = TestBundle::named("-sleeper", &["sleep", "600"]);
    let mut sleeping = sleeper.create(Stdio::Inherit).unwrap();
    sleeping.start().unwrap();
    let pid = sleeping.pid().unwrap();
    let file = if kind == "network" { "net" } else { kind };
    let mut bundle = TestBundle::shell(script);
    for namespace in bundle.config["linux"]["namespaces"].as_array_mut().unwrap() {
        if namespace["type"] == kind {
            namespace["path"] = format!("/proc/{pid}/ns/{file}").into();
        }
    }
    check(pid, &bundle);
    sleeping.delete(true).unwrap();
    wait(&sleeping);
}

fn an_existing_network_is_joined() {
    beside_a_sleeper("network", "readlink /proc/self/ns/net", |pid, bundle| {
        let theirs = fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        assert_eq!(bundle.output().trim(), theirs.to_str().unwrap());
    });
}

fn an_existing_pid_namespace_is_joined_and_the_caller_keeps_its_own() {
    let own = fs::read_link("/proc/self/ns/pid_for_children").unwrap();
    beside_a_sleeper("pid", "ps", |_, bundle| {
        let output = bundle.output();
        assert!(output.contains("sleep 600"), "{output}");
    });
    assert_eq!(fs::read_link("/proc/self/ns/pid_for_children").unwrap(), own);
}

/// Gives another container's configuration the pid namespace of a running one.
fn among_those_of(container: &Container, bundle: &mut TestBundle) {
    for namespace in bundle.config["linux"]["namespaces"].as_array_mut().unwrap() {
        if namespace["type"] == "pid" {
            namespace["path"] = format!("/proc/{}/ns/pid", container.pid().unwrap()).into();
        }
    }
}

fn can_show_processes_of_others() -> bool {
    let context = rustix::mount::fsopen("proc", rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    let own = fs::File::open("/proc/self/ns/pid").unwrap();
    let can = rustix::mount::fsconfig_set_fd(&context, "pidns", own).is_ok();
    if !can {
        println!("SKIPPED: this kernel's proc shows the processes of its maker's namespace only");
    }
    can
}

/// Whoever is there already, with CAP_SYS_PTRACE and the users of the host, can look into any process that it sees.
fn a_container_that_begins_among_others_has_nothing_to_take() {
    if !can_show_processes_of_others() {
        return;
    }
    let watching = watcher::bundle("-watching");
    let (stdio, _output) = files(&watching.folder);
    let mut container = watching.create(stdio).unwrap();
    container.start().unwrap();
    let mut bundle = TestBundle::command(&["/bin/true"]);
    among_those_of(&container, &mut bundle);
    for set in ["bounding", "permitted", "effective"] {
        bundle.config["process"]["capabilities"][set] = json!(["CAP_KILL"]);
    }
    for _ in 0..100 {
        assert_eq!(bundle.run().code, 0);
        if watcher::seen(&watching) == [watcher::EARLY] {
            break;
        }
    }
    for _ in 0..20 {
        assert_eq!(bundle.run().code, 0);
    }
    assert_eq!(watcher::seen(&watching), [watcher::EARLY]);
    container.delete(true).unwrap();
    wait(&container);
}

/// It is made in another way than others are.
fn a_container_that_begins_among_others_lacks_nothing() {
    let (stdio, sleeper) = (Stdio::Inherit, TestBundle::named("-sleeper", &["sleep", "600"]));
    let mut sleeping = sleeper.create(stdio).unwrap();
    sleeping.start().unwrap();
    let script = "ps | grep -c '[s]leep 60'; hostname; echo $$; read pid name state parent group session rest \
                  < /proc/$$/stat; echo $pid $session";
    let mut bundle = TestBundle::named("-first", &["/bin/sh", "-c", script]);
    among_those_of(&sleeping, &mut bundle);
    let output = bundle.output();
    let lines: Vec<_> = output.lines().collect();
    assert_eq!(lines[..2], ["1", "bulkhead"], "{output}");
    assert_eq!(
        lines[3],
        format!("{0} {0}", lines[2]),
        "a session of its own: {output}"
    );

    bundle = TestBundle::named("-second", &["/bin/sh", "-c", "tty; exit 3"]);
    among_those_of(&sleeping, &mut bundle);
    bundle.config["process"]["terminal"] = true.into();
    bundle.config["process"]["noNewPrivileges"] = false.into();
    bundle.config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        { "names": ["mkdir"], "action": "SCMP_ACT_ERRNO" }
    ]});
    let mut container = bundle
        .create(Stdio::Terminal)
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    let mut terminal = fs::File::from(container.take_terminal().unwrap());
    container.start().unwrap();
    let mut shown = Vec::new();
    let mut buffer = [0; 256];
    // The last user's leaving is an error to the other end (pty(7)).
    while let Ok(length) = std::io::Read::read(&mut terminal, &mut buffer) {
        shown.extend_from_slice(&buffer[..length]);
    }
    assert_eq!(String::from_utf8(shown).unwrap(), "/dev/pts/0\r\n");
    assert_eq!(wait(&container), 3);
    container.delete(false).unwrap();

    for (suffix, program) in [("-third", "/none"), ("-fourth", "/etc/passwd")] {
        let mut bundle = TestBundle::named(suffix, &[program]);
        among_those_of(&sleeping, &mut bundle);
        let error = bundle.create(Stdio::Inherit).unwrap_err();
        assert!(error.command_failure().is_some(), "{}", chain(&error));
    }
    sleeping.delete(true).unwrap();
    wait(&sleeping);
}

fn a_namespace_that_does_not_exist_is_named() {
    let mut bundle = TestBundle::command(&["true"]);
    bundle.config["linux"]["namespaces"][1]["path"] = "/no/such/namespace".into();
    let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
    assert!(
        message.contains("linux.namespaces") && message.contains("/no/such/namespace"),
        "{message}"
    );
}

fn a_file_that_is_another_namespace_or_none_is_named() {
    let mut bundle = TestBundle::command(&["true"]);
    let fifo = bundle.folder.join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    for (path, found) in [
        (
            "/proc/self/ns/uts",
            "is a uts namespace, and not a network namespace",
        ),
        (
            "/proc/self/ns/pid",
            "is a pid namespace, and not a network namespace",
        ),
        ("/etc/passwd", "is no namespace, and not a network namespace"),
        ("/dev/tty", "linux.namespaces[1].path: "),
        (
            fifo.to_str().unwrap(),
            "is no namespace, and not a network namespace",
        ),
    ] {
        bundle.config["linux"]["namespaces"][1]["path"] = path.into();
        let error = bundle.create(Stdio::Inherit).unwrap_err();
        let message = chain(&error);
        assert!(
            error.is(
                |error| matches!(error, container::CreateError::Namespace(_)),
                "linux.namespaces[1].path: "
            ) && message.contains(path)
                && message.contains(found),
            "{message}"
        );
    }
}

/// Gives a container root that is somebody else on the host, and files that this somebody may reach.
fn map_root(bundle: &mut TestBundle, host: u32) {
    let mapping = json!([{ "containerID": 0, "hostID": host, "size": 65_536 }]);
    bundle.config["linux"]["uidMappings"] = mapping.clone();
    bundle.config["linux"]["gidMappings"] = mapping;
    std::os::unix::fs::chown(bundle.rootfs(), Some(host), Some(host)).unwrap();
    for folder in bundle.rootfs().ancestors().take(3) {
        fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
}

fn add_namespace(bundle: &mut TestBundle, namespace: serde_json::Value) {
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|present| present["type"] != namespace["type"]);
    namespaces.push(namespace);
}

/// Runs a container that sleeps in a user namespace of its own.
fn beside_a_sleeper_with_users(check: impl Fn(i32)) {
    let mut sleeper = TestBundle::named("-sleeper", &["sleep", "600"]);
    add_namespace(&mut sleeper, json!({ "type": "user" }));
    map_root(&mut sleeper, 200_000);
    let mut sleeping = sleeper
        .create(Stdio::Inherit)
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    sleeping.start().unwrap();
    check(sleeping.pid().unwrap());
    sleeping.delete(true).unwrap();
    wait(&sleeping);
}

fn an_existing_user_namespace_is_joined_with_what_belongs_to_it() {
    beside_a_sleeper_with_users(|pid| {
        let mut bundle = TestBundle::shell(
            "id -u; cat /proc/self/uid_map /proc/self/oom_score_adj; ps | grep -c 'sleep 6[0]'; \
             for file in user net ipc; do readlink /proc/self/ns/$file; done",
        );
        bundle.config["process"]["oomScoreAdj"] = 77.into();
        map_root(&mut bundle, 200_000);
        for (kind, file) in [
            ("user", "user"),
            ("network", "net"),
            ("ipc", "ipc"),
            ("pid", "pid"),
        ] {
            let path = format!("/proc/{pid}/ns/{file}");
            add_namespace(&mut bundle, json!({ "type": kind, "path": path }));
        }
        let output = bundle.output();
        let lines: Vec<&str> = output.lines().collect();
        assert_eq!(lines[0], "0");
        let map: Vec<&str> = lines[1].split_whitespace().collect();
        assert_eq!(map, ["0", "200000", "65536"]);
        assert_eq!(lines[2..4], ["77", "1"], "{output}");
        for (line, file) in lines[4..].iter().zip(["user", "net", "ipc"]) {
            let theirs = fs::read_link(format!("/proc/{pid}/ns/{file}")).unwrap();
            assert_eq!(*line, theirs.to_str().unwrap());
        }
    });
}

fn an_existing_user_namespace_gets_namespaces_of_its_own() {
    beside_a_sleeper_with_users(|pid| {
        // The namespaces are the user namespace's, so that its root rules them; and there is nobody else in them.
        let mut bundle = TestBundle::shell(
            "echo $$; hostname; hostname other && hostname; ip link set lo down && echo ruled; cat /proc/uptime; \
             touch /new && stat -c %u:%g /new",
        );
        bundle.config["root"]["readonly"] = false.into();
        for set in ["bounding", "permitted", "effective"] {
            let set = bundle.config["process"]["capabilities"][set]
                .as_array_mut()
                .unwrap();
            set.extend(["CAP_SYS_ADMIN".into(), "CAP_NET_ADMIN".into()]);
        }
        let path = format!("/proc/{pid}/ns/user");
        add_namespace(&mut bundle, json!({ "type": "user", "path": path }));
        add_namespace(&mut bundle, json!({ "type": "time" }));
        bundle.config["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 1_000_000_000 } });
        map_root(&mut bundle, 200_000);
        // Not needed for a namespace that has them.
        bundle.config["linux"]["uidMappings"] = json!(null);
        bundle.config["linux"]["gidMappings"] = json!(null);
        let output = bundle.output();
        let lines: Vec<&str> = output.lines().collect();
        assert_eq!(lines[..4], ["1", "bulkhead", "other", "ruled"], "{output}");
        assert!(lines[4].starts_with("10000"), "{output}");
        assert_eq!(lines[5], "0:0");
    });
}

fn mappings_other_than_those_of_a_joined_user_namespace_are_refused() {
    beside_a_sleeper_with_users(|pid| {
        let mut bundle = TestBundle::command(&["true"]);
        add_namespace(
            &mut bundle,
            json!({ "type": "user", "path": format!("/proc/{pid}/ns/user") }),
        );
        map_root(&mut bundle, 300_000);
        let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
        assert!(
            message.contains("linux.uidMappings: cannot map ids otherwise"),
            "{message}"
        );
    });
}

fn a_new_user_namespace_and_a_network_of_the_hosts_go_together() {
    beside_a_sleeper(
        "network",
        "readlink /proc/self/ns/net; id -u; ls -d /sys/class",
        |pid, bundle| {
            let mut with_users = TestBundle::named("-users", &["true"]);
            with_users.config = bundle.config.clone();
            add_namespace(&mut with_users, json!({ "type": "user" }));
            map_root(&mut with_users, 200_000);
            let theirs = fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
            assert_eq!(
                with_users.output(),
                format!("{}\n0\n/sys/class\n", theirs.display())
            );
        },
    );
}

fn a_namespace_that_cannot_be_joined_is_reported_from_between() {
    beside_a_sleeper_with_users(|pid| {
        let mut bundle = TestBundle::command(&["true"]);
        map_root(&mut bundle, 200_000);
        let path = format!("/proc/{pid}/ns/user");
        add_namespace(&mut bundle, json!({ "type": "user", "path": path }));
        // A mount namespace is entered by those who may change their root.
        let mut own = rustix::thread::capabilities(None).unwrap();
        own.permitted.remove(rustix::thread::CapabilitySet::SYS_CHROOT);
        own.effective.remove(rustix::thread::CapabilitySet::SYS_CHROOT);
        rustix::thread::set_capabilities(None, own).unwrap();
        add_namespace(
            &mut bundle,
            json!({ "type": "mount", "path": format!("/proc/{pid}/ns/mnt") }),
        );
        let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
        assert!(
            message.contains("linux.namespaces[6].path: cannot join /proc/")
                && message.contains("not permitted"),
            "{message}"
        );
    });
}

fn an_existing_time_namespace_is_joined() {
    let mut sleeper = TestBundle::named("-sleeper", &["sleep", "600"]);
    add_namespace(&mut sleeper, json!({ "type": "time" }));
    sleeper.config["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 2_000_000_000 } });
    let mut sleeping = sleeper.create(Stdio::Inherit).unwrap();
    sleeping.start().unwrap();
    let mut bundle = TestBundle::shell("cat /proc/uptime");
    let path = format!("/proc/{}/ns/time", sleeping.pid().unwrap());
    add_namespace(&mut bundle, json!({ "type": "time", "path": path }));
    assert!(bundle.output().starts_with("20000"));
    bundle.config["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 1 } });
    let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
    assert!(message.contains("linux.timeOffsets"), "{message}");
    sleeping.delete(true).unwrap();
    wait(&sleeping);
}

/// A process in a mount namespace of its own, as unshare(1) makes one.
fn in_another_mount_namespace() -> std::process::Child {
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new(crate::bundle::BUSYBOX);
    // SAFETY: unshare and prctl are system calls, safe between fork and exec.
    unsafe {
        command.args(["sleep", "600"]).pre_exec(|| {
            rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS)?;
            Ok(rustix::process::set_parent_process_death_signal(Some(
                rustix::process::Signal::KILL,
            ))?)
        });
    }
    command.spawn().unwrap()
}

fn an_existing_mount_namespace_is_joined() {
    let mut other = in_another_mount_namespace();
    let own = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut bundle =
        TestBundle::shell("readlink /proc/self/ns/mnt; ls /bin/busybox; cat /proc/self/mountinfo");
    let path = format!("/proc/{}/ns/mnt", other.id());
    add_namespace(&mut bundle, json!({ "type": "mount", "path": path }));
    let theirs = fs::read_link(path).unwrap();
    let output = bundle.output();
    assert!(
        output.starts_with(&format!("{}\n/bin/busybox\n", theirs.display())),
        "{output}"
    );
    assert!(!output.contains(" /sys/kernel/"), "{output}");
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), own);
    other.kill().unwrap();
    other.wait().unwrap();
}

fn a_joined_uts_namespace_takes_the_host_name() {
    beside_a_sleeper("uts", "hostname", |_, bundle| {
        let mut named = TestBundle::named("-named", &["true"]);
        named.config = bundle.config.clone();
        named.config["hostname"] = "another".into();
        assert_eq!(named.output(), "another\n");
        named.config["hostname"] = json!(null);
        assert_eq!(named.output(), "another\n");
    });
}

fn cgroups_are_bound_where_their_namespace_is_of_other_users() {
    beside_a_sleeper(
        "cgroup",
        &format!("{GO_TO_CGROUP}; cat pids.max; id -u"),
        |_, bundle| {
            let mut with_users = TestBundle::named("-users", &["true"]);
            with_users.config = bundle.config.clone();
            with_users.config["linux"]["resources"]["pids"] = json!({ "limit": 55 });
            add_namespace(&mut with_users, json!({ "type": "user" }));
            map_root(&mut with_users, 200_000);
            assert_eq!(with_users.output(), "55\n0\n");
        },
    );
}

/// A container with the namespaces of this test.
fn without_namespaces(suffix: &str, arguments: &[&str]) -> TestBundle {
    let mut bundle = TestBundle::named(suffix, arguments);
    bundle.config["linux"]["namespaces"] = json!([]);
    bundle.config["linux"]["maskedPaths"] = json!([]);
    bundle.config["linux"]["readonlyPaths"] = json!([]);
    bundle.config["hostname"] = json!(null);
    bundle
}

fn without_a_mount_namespace_the_root_is_changed_and_unmounted_again() {
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let script = "ls -d /bin /usr /proc/self; readlink /proc/self/ns/mnt; touch /x; sleep 600";
    let bundle = without_namespaces("", &["sh", "-c", script]);
    for unmounted_by_others in [false, true] {
        let (stdio, output) = files(&bundle.folder);
        let mut container = bundle
            .create(stdio)
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert!(
            container
                .take_warnings()
                .join(" ")
                .contains("linux.namespaces: without a mount namespace")
        );
        container.start().unwrap();
        wait_until(|| output.outcome(0).stderr.contains("Read-only file system"));
        let own = fs::read_link("/proc/self/ns/mnt").unwrap();
        let outcome = output.outcome(0);
        assert_eq!(
            outcome.stdout,
            format!("/bin\n/proc/self\n{}\n", own.display()),
            "{outcome:?}"
        );
        assert!(outcome.stderr.contains("/usr: No such file"), "{outcome:?}");

        // What joins the container has its root too.
        let mut process = container.configured_process().unwrap();
        process.set_args(Some(["sh", "-c", "ls /; pwd"].map(String::from).to_vec()));
        let (stdio, output) = files(&bundle.folder);
        let executed = container.exec(&process, stdio).unwrap();
        assert_eq!(executed.wait().unwrap(), 0);
        assert!(
            output.outcome(0).stdout.starts_with("bin\ndev\netc\nproc\n"),
            "{:?}",
            output.outcome(0)
        );

        if unmounted_by_others {
            rustix::mount::unmount(bundle.rootfs(), rustix::mount::UnmountFlags::DETACH).unwrap();
        }
        container.delete(true).unwrap();
        wait(&container);
        assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    }
}

fn a_creation_without_a_mount_namespace_that_fails_leaves_no_mount() {
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let bundle = without_namespaces("", &["/no/such/program"]);
    bundle.create(Stdio::Inherit).unwrap_err();
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
}

fn without_a_mount_namespace_nothing_can_be_hidden() {
    for field in ["maskedPaths", "readonlyPaths"] {
        let mut bundle = without_namespaces(field, &["true"]);
        bundle.config["linux"][field] = json!(["/proc/keys"]);
        let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
        assert!(
            message.contains(&format!("linux.{field}: needs a mount namespace")),
            "{message}"
        );
    }
}

fn a_user_namespace_maps_root_to_somebody_else() {
    let mut bundle = TestBundle::shell(
        "id -u; cat /proc/self/uid_map; echo x >/dev/null && stat -c %F /dev/null; sleep 600",
    );
    bundle.in_a_user_namespace();
    let (stdio, output) = files(&bundle.folder);
    let mut container = bundle
        .create(stdio)
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    container.start().unwrap();
    wait_until(|| {
        assert_eq!(
            container.status().unwrap(),
            container::Status::Running,
            "{:?}",
            output.outcome(0)
        );
        output.outcome(0).stdout.lines().count() == 3
    });
    let seen = output.outcome(0).stdout;
    let words: Vec<&str> = seen.split_whitespace().collect();
    assert_eq!(
        words,
        ["0", "0", "200000", "65536", "character", "special", "file"]
    );
    container.delete(true).unwrap();
    wait(&container);
}

fn root_of_a_user_namespace_is_somebody_else_on_the_host() {
    let mut bundle = TestBundle::command(&["true"]);
    bundle.in_a_user_namespace();
    let mut container = bundle.create(Stdio::Inherit).unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", container.pid().unwrap())).unwrap();
    assert!(
        status.contains("Uid:\t200000\t200000\t200000\t200000"),
        "{status}"
    );
    container.delete(true).unwrap();
    wait(&container);
}

fn a_time_namespace_has_its_own_clocks() {
    let mut bundle = TestBundle::shell("cat /proc/uptime");
    bundle.config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "type": "time" }));
    bundle.config["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 1_000_000_000 } });
    let uptime: f64 = bundle.output().split(' ').next().unwrap().parse().unwrap();
    assert!(uptime > 1_000_000_000.0, "{uptime}");
}

fn sysctls_stay_in_the_container() {
    let file = "/proc/sys/net/ipv4/ip_forward";
    let before = fs::read_to_string(file).unwrap();
    let other = if before.trim() == "1" { "0" } else { "1" };
    let mut bundle = TestBundle::shell(&format!("cat {file} /proc/sys/kernel/shm_rmid_forced"));
    bundle.config["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": other, "kernel.shm_rmid_forced": "1" });
    assert_eq!(bundle.output(), format!("{other}\n1\n"));
    assert_eq!(fs::read_to_string(file).unwrap(), before);
}

fn nothing_is_set_in_a_namespace_of_the_callers() {
    let hostname = || fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let before = hostname();
    for (kind, file) in [("uts", "uts"), ("network", "net")] {
        let mut bundle = TestBundle::named(kind, &["/bin/true"]);
        bundle.config["linux"]["sysctl"] = json!({ "net.ipv4.ip_default_ttl": "63" });
        let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
        let namespace = namespaces.iter_mut().find(|namespace| namespace["type"] == kind);
        namespace.unwrap()["path"] = format!("/proc/self/ns/{file}").into();
        let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
        assert!(
            message.contains("linux.namespaces[") && message.contains("the caller's own"),
            "{message}"
        );
    }
    assert_eq!(hostname(), before);
}
