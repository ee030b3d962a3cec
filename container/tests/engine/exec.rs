//! More processes in a container that runs.

use std::fs;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use container::{CommandFailure, ExecError, ExecOptions, Stdio};
use oci_spec::runtime::Process;
use serde_json::{Value, json};

use crate::bundle::{Outcome, TestBundle, chain, files, pipes, wait, wait_until};
use crate::cgroup_files::{is_cgroup2_alone, lines_of_mounted, own_cgroup, show_cgroup2_alone};
use crate::wall::{Container, Refusal, Wall};
use crate::watcher;

crate::tests!(
    a_process_joins_all_that_makes_the_container,
    a_process_gets_what_it_asks_for_and_no_more,
    the_containers_configuration_is_that_of_its_creation,
    a_process_joins_a_container_with_users_of_its_own,
    a_process_joins_a_container_that_was_not_started,
    a_container_that_stopped_cannot_be_joined,
    what_cannot_be_executed_is_told_as_a_shell_would,
    a_label_that_would_confine_nothing_is_refused,
    a_working_directory_cannot_lead_out,
    a_process_has_a_terminal,
    descriptors_are_kept_only_where_that_is_asked_for,
    a_process_cannot_be_looked_into_before_it_is_the_program,
    a_hundred_processes_one_after_the_other,
    a_process_that_is_looked_into_has_nothing_to_take,
    limits_of_processes_count_the_program_alone,
    a_container_that_left_its_namespaces_is_not_followed,
    a_container_with_as_many_processes_as_it_may_have_takes_none,
    a_process_is_put_into_cgroups_below_the_containers,
    pipes_are_the_users_who_opens_them_again,
    a_container_that_manages_its_cgroups_is_joined_where_its_first_process_is,
);

/// A container that does nothing until it is told to end.
fn running(bundle: &TestBundle) -> Container {
    let (stdio, _output) = files(&bundle.folder);
    let container = bundle
        .create(stdio)
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    container.start().unwrap();
    container
}

fn idle() -> TestBundle {
    TestBundle::command(&["/bin/sleep", "600"])
}

fn end(mut container: Container) {
    container.delete(true).unwrap();
    wait(&container);
}

/// The container's own process with other arguments and whatever `change` does.
fn process(container: &Container, arguments: &[&str], change: impl FnOnce(&mut Value)) -> Process {
    let mut process = serde_json::to_value(container.configured_process().unwrap()).unwrap();
    process["args"] = json!(arguments);
    change(&mut process);
    serde_json::from_value(process).unwrap()
}

fn exec(
    bundle: &TestBundle,
    container: &Container,
    process: &Process,
) -> Result<Outcome, Refusal<ExecError>> {
    let folder = bundle.folder.join("exec");
    fs::create_dir_all(&folder).unwrap();
    let (stdio, output) = files(&folder);
    let executed = container.exec(process, stdio)?;
    assert!(executed.warnings().is_empty(), "{:?}", executed.warnings());
    Ok(output.outcome(executed.wait().unwrap()))
}

fn shell(bundle: &TestBundle, container: &Container, script: &str) -> Outcome {
    let process = process(container, &["/bin/sh", "-c", script], |_| {});
    exec(bundle, container, &process).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

fn a_process_joins_all_that_makes_the_container() {
    let bundle = idle();
    let container = running(&bundle);
    let namespaces = |process: &str| {
        let kinds = "pid net ipc uts mnt cgroup";
        let script = format!("for kind in {kinds}; do readlink /proc/{process}/ns/$kind; done");
        shell(&bundle, &container, &script).stdout
    };
    let own = namespaces("self");
    assert_eq!(own.lines().count(), 6, "{own}");
    assert_eq!(own, namespaces("1"));

    let outcome = shell(
        &bundle,
        &container,
        "hostname; readlink /proc/1/exe; ls /; exit 3",
    );
    assert_eq!(outcome.code, 3);
    assert!(
        outcome.stdout.starts_with("bulkhead\n/bin/busybox\n"),
        "{outcome:?}"
    );

    let cgroups = |pid: &str| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let sleeping = process(&container, &["/bin/sleep", "600"], |_| {});
    let executed = container.exec(&sleeping, Stdio::Inherit).unwrap();
    assert_eq!(
        cgroups(&executed.pid().to_string()),
        cgroups(&container.pid().unwrap().to_string())
    );
    assert_eq!(container.processes().unwrap().len(), 2);
    // A pid namespace ends when all in it were waited for, and this one is the test's own child.
    container.kill(container::Signal::KILL).unwrap();
    assert_eq!(executed.wait().unwrap(), 137);
    end(container);
}

fn a_process_gets_what_it_asks_for_and_no_more() {
    let bundle = idle();
    let container = running(&bundle);
    let script = "id -u; id -g; id -G; pwd; echo $GIVEN; umask; grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status";
    let asked = process(&container, &["/bin/sh", "-c", script], |process| {
        process["user"] = json!({ "uid": 1000, "gid": 100, "additionalGids": [7], "umask": 0o077 });
        process["cwd"] = json!("/etc");
        process["env"] = json!(["PATH=/bin", "GIVEN=this"]);
        process["capabilities"] = json!({
            "bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"],
            "inheritable": [], "ambient": []
        });
    });
    let outcome = exec(&bundle, &container, &asked).unwrap();
    let expected = "1000\n100\n100 7\n/etc\nthis\n0077\n\
                    CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n\
                    CapBnd:\t0000000000000020\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t0\n";
    assert_eq!(outcome.stdout, expected, "{outcome:?}");
    let same_as_the_first =
        "for p in 1 self; do grep -E '^(Cap|NoNewPrivs)' /proc/$p/status | tr '\\n' ' '; echo; done";
    let outcome = shell(&bundle, &container, same_as_the_first);
    let lines: Vec<_> = outcome.stdout.lines().collect();
    assert_eq!(lines[0], lines[1], "{outcome:?}");
    end(container);
}

fn the_containers_configuration_is_that_of_its_creation() {
    let bundle = idle();
    let container = running(&bundle);
    fs::write(bundle.folder.join("config.json"), "no longer there").unwrap();
    let found = Container::load(&bundle).unwrap();
    assert_eq!(shell(&bundle, &found, "hostname").stdout, "bulkhead\n");
    end(container);
}

fn a_process_joins_a_container_with_users_of_its_own() {
    let mut bundle = idle();
    bundle.in_a_user_namespace();
    let container = running(&bundle);
    let as_user = process(
        &container,
        &["/bin/sh", "-c", "id -u; cat /proc/self/uid_map"],
        |process| {
            process["user"] = json!({ "uid": 1000, "gid": 1000 });
        },
    );
    let outcome = exec(&bundle, &container, &as_user).unwrap_or_else(|error| panic!("{}", chain(&error)));
    let words: Vec<_> = outcome.stdout.split_whitespace().collect();
    assert_eq!(words, ["1000", "0", "200000", "65536"], "{outcome:?}");
    end(container);
}

fn a_process_joins_a_container_that_was_not_started() {
    let bundle = idle();
    let (stdio, _output) = files(&bundle.folder);
    let container = bundle.create(stdio).unwrap();
    assert_eq!(shell(&bundle, &container, "hostname").stdout, "bulkhead\n");
    container.start().unwrap();
    end(container);
}

fn a_container_that_stopped_cannot_be_joined() {
    let bundle = TestBundle::command(&["/bin/true"]);
    let mut container = running(&bundle);
    let process = process(&container, &["/bin/true"], |_| {});
    wait(&container);
    let error = exec(&bundle, &container, &process).unwrap_err();
    assert!(
        error.is(
            |error| matches!(error, ExecError::NotRunning { .. }),
            "is stopped"
        ),
        "{error}"
    );
    container.delete(false).unwrap();
}

fn what_cannot_be_executed_is_told_as_a_shell_would() {
    let bundle = idle();
    fs::write(bundle.rootfs().join("text"), "#!/nowhere\n").unwrap();
    fs::set_permissions(
        bundle.rootfs().join("text"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let container = running(&bundle);
    for (program, failure) in [
        ("none", CommandFailure::NotFound),
        ("/none", CommandFailure::NotFound),
        ("/etc/passwd", CommandFailure::NotExecutable),
        ("/text", CommandFailure::NotFound),
    ] {
        let process = process(&container, &[program], |_| {});
        let error = exec(&bundle, &container, &process).unwrap_err();
        assert_eq!(error.command_failure(), Some(failure), "{}", chain(&error));
    }
    assert_eq!(container.processes().unwrap().len(), 1);
    end(container);
}

fn a_label_that_would_confine_nothing_is_refused() {
    let is_enabled = [
        "/sys/module/apparmor/parameters/enabled",
        "/sys/fs/selinux/enforce",
    ]
    .map(|file| fs::exists(file).unwrap());
    if is_enabled != [false, false] {
        println!("SKIPPED: this kernel has a security module enabled");
        return;
    }
    let bundle = idle();
    let container = running(&bundle);
    for (member, field) in [
        ("apparmorProfile", "process.apparmorProfile: `some-label`"),
        ("selinuxLabel", "process.selinuxLabel: `some-label`"),
    ] {
        let process = process(&container, &["/bin/true"], |process| {
            process[member] = json!("some-label")
        });
        let error = chain(&exec(&bundle, &container, &process).unwrap_err());
        assert!(error.contains(field), "{error}");
    }
    let unconfined = process(&container, &["/bin/true"], |process| {
        process["apparmorProfile"] = json!("unconfined");
    });
    assert_eq!(exec(&bundle, &container, &unconfined).unwrap().code, 0);
    end(container);
}

fn a_working_directory_cannot_lead_out() {
    let bundle = idle();
    std::os::unix::fs::symlink("/proc/self/fd/7", bundle.rootfs().join("out")).unwrap();
    std::os::unix::fs::symlink("../../../..", bundle.rootfs().join("up")).unwrap();
    let container = running(&bundle);
    for folder in [
        "/proc/self/fd/3",
        "/proc/self/fd/7/..",
        "/out",
        "/proc/1/cwd",
        "/missing",
    ] {
        let process = process(&container, &["/bin/pwd"], |process| {
            process["cwd"] = json!(folder)
        });
        let error = chain(&exec(&bundle, &container, &process).unwrap_err());
        assert!(error.contains("process.cwd"), "{folder}: {error}");
    }
    let process = process(&container, &["/bin/pwd"], |process| process["cwd"] = json!("/up"));
    assert_eq!(exec(&bundle, &container, &process).unwrap().stdout, "/\n");
    end(container);
}

fn a_process_has_a_terminal() {
    let bundle = idle();
    let container = running(&bundle);
    let process = process(
        &container,
        &["/bin/sh", "-c", "tty; stty size; exit 5"],
        |process| {
            process["terminal"] = json!(true);
            process["consoleSize"] = json!({ "height": 24, "width": 77 });
        },
    );
    let mut executed = container
        .exec(&process, Stdio::Terminal)
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    let mut terminal = fs::File::from(executed.take_terminal().unwrap());
    let mut shown = Vec::new();
    let mut buffer = [0; 256];
    // The last user's leaving is an error to the other end (pty(7)).
    while let Ok(length) = terminal.read(&mut buffer) {
        shown.extend_from_slice(&buffer[..length]);
    }
    assert_eq!(executed.wait().unwrap(), 5);
    assert_eq!(String::from_utf8(shown).unwrap(), "/dev/pts/0\r\n24 77\r\n");
    end(container);
}

fn descriptors_are_kept_only_where_that_is_asked_for() {
    let bundle = idle();
    let container = running(&bundle);
    let file = fs::File::create(bundle.folder.join("kept")).unwrap();
    // SAFETY: 3 and 4 are taken for the rest of this test; whoever had them is not used again.
    let (third, fourth) = unsafe {
        assert_eq!(libc::dup2(file.as_raw_fd(), 3), 3);
        assert_eq!(libc::dup2(file.as_raw_fd(), 4), 4);
        (OwnedFd::from_raw_fd(3), OwnedFd::from_raw_fd(4))
    };
    std::mem::forget(file);
    // Found again: the number 3 or 4 may have been the first container's own descriptor.
    std::mem::forget(container);
    let mut container = Container::load(&bundle).unwrap();
    for (count, expected) in [(0, "0 1 2"), (1, "0 1 2 3"), (2, "0 1 2 3 4")] {
        let folder = bundle.folder.join(format!("kept{count}"));
        fs::create_dir_all(&folder).unwrap();
        let (stdio, output) = files(&folder);
        let process = process(
            &container,
            &["/bin/sh", "-c", "cd /proc/self/fd && echo *"],
            |_| {},
        );
        let options = ExecOptions::new(&process)
            .stdio(stdio)
            .preserved_descriptors((3..3 + count).collect());
        let executed = container.engine().exec(options).unwrap();
        let outcome = output.outcome(executed.wait().unwrap());
        let found: Vec<_> = outcome.stdout.split_whitespace().collect();
        // The shell opens the folder itself to list it.
        let own = found
            .iter()
            .filter(|number| number.parse::<u32>().unwrap() <= 4 + 1)
            .count();
        assert!(outcome.stdout.starts_with(expected), "{count}: {outcome:?}");
        assert!(own <= expected.split(' ').count() + 1, "{count}: {outcome:?}");
    }
    drop((third, fourth));
    end(container);
}

/// What the container could open of a process that has just joined it would be the host's: its program, its memory.
fn a_process_cannot_be_looked_into_before_it_is_the_program() {
    // It reads the program's path of everyone it meets, as fast as it can, with all capabilities but SYS_PTRACE.
    let mut bundle = TestBundle::shell(
        "while [ ! -e /dev/shm/stop ]; do for p in /proc/[0-9]*; do readlink $p/exe; readlink $p/cwd; done; done \
         > /dev/shm/seen 2>/dev/null; sleep 600",
    );
    bundle.config["process"]["noNewPrivileges"] = json!(false);
    let container = running(&bundle);
    for _ in 0..Wall::times(50) {
        assert_eq!(shell(&bundle, &container, "true").code, 0);
    }
    let seen = shell(
        &bundle,
        &container,
        "touch /dev/shm/stop; sleep 0.2; sort -u /dev/shm/seen",
    )
    .stdout;
    let mut lines: Vec<_> = seen.lines().collect();
    lines.retain(|line| !line.is_empty());
    assert_eq!(lines, ["/", "/bin/busybox"], "{seen}");
    end(container);
}

fn a_hundred_processes_one_after_the_other() {
    let bundle = idle();
    let container = running(&bundle);
    for _ in 0..Wall::times(100) {
        assert_eq!(shell(&bundle, &container, "exit 1").code, 1);
    }
    wait_until(|| container.processes().unwrap().len() == 1);
    end(container);
}

/// Whoever has CAP_SYS_PTRACE and the users of the host can look into any process that it sees. Whatever that is, from its
/// first moment on, it has no more than the container's programs.
fn a_process_that_is_looked_into_has_nothing_to_take() {
    // Like many profiles: new processes by the older call only.
    let profile = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        { "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS }
    ]});
    for (suffix, profile) in [("", None), ("-filtered", Some(profile))] {
        let mut bundle = watcher::bundle(suffix);
        if let Some(profile) = profile {
            bundle.config["linux"]["seccomp"] = profile;
        }
        let container = running(&bundle);
        for no_new_privileges in [true, false] {
            let process = process(&container, &["/bin/true"], |process| {
                process["noNewPrivileges"] = json!(no_new_privileges);
            });
            look_into_executions_of(&bundle, &container, &process);
        }
        assert_eq!(watcher::seen(&bundle), [watcher::EARLY]);
        end(container);
    }
}

/// Runs the process as often as it takes to have been looked into before it is its program.
fn look_into_executions_of(bundle: &TestBundle, container: &Container, process: &Process) {
    let early = || {
        let text = fs::read_to_string(bundle.folder.join("stdout")).unwrap();
        text.lines().filter(|line| *line == watcher::EARLY).count()
    };
    let folder = bundle.folder.join("exec");
    fs::create_dir_all(&folder).unwrap();
    let before = early();
    for _ in 0..200 {
        let (stdio, _) = files(&folder);
        let executed = container
            .exec(process, stdio)
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(executed.wait().unwrap(), 0);
        if early() >= before + Wall::times(20) {
            break;
        }
    }
    let said = fs::read_to_string(bundle.folder.join("stderr")).unwrap();
    assert!(early() > before, "no process was looked into in time: {said}");
}

/// The process that makes the program's is nobody's business.
fn limits_of_processes_count_the_program_alone() {
    let bundle = idle();
    let container = running(&bundle);
    // A user of whom there is no other process.
    let script = "while read line; do case $line in *processes*) echo $line;; esac; done < /proc/self/limits; \
                  /bin/true & wait";
    let asked = process(&container, &["/bin/sh", "-c", script], |process| {
        process["user"] = json!({ "uid": 54_321, "gid": 54_321 });
        process["rlimits"] = json!([{ "type": "RLIMIT_NPROC", "soft": 1, "hard": 2 }]);
    });
    let outcome = exec(&bundle, &container, &asked).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(outcome.stdout, "Max processes 1 2 processes\n", "{outcome:?}");
    assert!(outcome.stderr.contains("can't fork"), "{outcome:?}");
    end(container);
}

fn a_container_that_left_its_namespaces_is_not_followed() {
    for (option, kind) in [("-m", "mount"), ("-u", "uts"), ("-n", "network")] {
        let script = "echo left; exec sleep 600";
        let arguments = ["/bin/busybox", "unshare", option, "/bin/sh", "-c", script];
        let mut bundle = TestBundle::named(option, &arguments);
        for set in ["bounding", "permitted", "effective"] {
            bundle.config["process"]["capabilities"][set] = json!(["CAP_SYS_ADMIN"]);
        }
        let (stdio, _output) = files(&bundle.folder);
        let container = bundle.create(stdio).unwrap();
        assert_eq!(shell(&bundle, &container, "exit 4").code, 4);
        container.start().unwrap();
        wait_until(|| fs::read_to_string(bundle.folder.join("stdout")).unwrap() == "left\n");
        let found = Container::load(&bundle).unwrap();
        let process = process(&found, &["/bin/true"], |_| {});
        let error = chain(&exec(&bundle, &found, &process).unwrap_err());
        assert!(
            error.contains(&format!("has left the {kind} namespace")),
            "{error}"
        );
        end(container);
    }
}

/// The one that makes the program's process counts too, until it has.
fn a_container_with_as_many_processes_as_it_may_have_takes_none() {
    let mut bundle = idle();
    bundle.config["linux"]["resources"]["pids"] = json!({ "limit": 2 });
    let container = running(&bundle);
    let process = process(&container, &["/bin/sleep", "600"], |_| {});
    let error = chain(&exec(&bundle, &container, &process).unwrap_err());
    assert!(
        error.contains("has as many as it, or its user, may have"),
        "{error}"
    );
    end(container);

    let mut bundle = TestBundle::named("-roomy", &["/bin/sleep", "600"]);
    bundle.config["linux"]["resources"]["pids"] = json!({ "limit": 3 });
    let container = running(&bundle);
    assert_eq!(shell(&bundle, &container, "exit 6").code, 6);
    end(container);
}

fn a_process_is_put_into_cgroups_below_the_containers() {
    let bundle = idle();
    let mut container = running(&bundle);
    let id = bundle.id.to_string();
    let below = own_cgroup("memory", &bundle.id).join("below");
    fs::create_dir(&below).unwrap();
    let sleeping = process(&container, &["/bin/sleep", "600"], |_| {});
    let mut exec = |cgroups: &[&str]| {
        let cgroups: Vec<String> = cgroups.iter().map(|word| (*word).to_owned()).collect();
        let options = ExecOptions::new(&sleeping).cgroups(&cgroups);
        container.engine().exec(options).map_err(|error| chain(&error))
    };

    // In cgroup2 the controllers have no cgroups of their own.
    let (word, missing) = match is_cgroup2_alone() {
        true => ("/below", "other"),
        false => ("memory:/below", "memory:other"),
    };
    let executed = exec(&[word]).unwrap();
    let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", executed.pid())).unwrap();
    for line in lines_of_mounted(&cgroups) {
        let (_, rest) = line.split_once(':').unwrap();
        let expected = match rest.split_once(':').unwrap().0 {
            "memory" => format!("/bulkhead-{id}/below"),
            "" if is_cgroup2_alone() => format!("/bulkhead-{id}/below"),
            _ => format!("/bulkhead-{id}"),
        };
        assert!(line.ends_with(&format!(":{expected}")), "{cgroups}");
    }

    // Those that do not exist are not made, and nothing is outside.
    let missing = exec(&[missing]).unwrap_err();
    assert!(missing.contains(&format!("/bulkhead-{id}/other")), "{missing}");
    for (word, problem) in [("..", "must not hold"), ("waaat:/", "`waaat` is not available")] {
        let error = exec(&[word]).unwrap_err();
        assert!(error.contains(problem), "{error}");
    }
    container.kill(container::Signal::KILL).unwrap();
    assert_eq!(executed.wait().unwrap(), 137);
    end(container);
}

fn pipes_are_the_users_who_opens_them_again() {
    for (suffix, has_users_of_its_own) in [("", false), ("-mapped", true)] {
        let mut bundle = TestBundle::named(suffix, &["/bin/sleep", "600"]);
        if has_users_of_its_own {
            bundle.in_a_user_namespace();
        }
        let container = running(&bundle);
        let script = "cat /dev/stdin; echo out > /dev/stdout; echo err > /proc/self/fd/2";
        let asked = process(&container, &["/bin/sh", "-c", script], |process| {
            process["user"] = json!({ "uid": 1000, "gid": 1000 });
        });
        let (stdio, ends) = pipes();
        let executed = container
            .exec(&asked, stdio)
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(ends.converse("in\n"), ("in\nout\n".into(), "err\n".into()));
        assert_eq!(executed.wait().unwrap(), 0);
        end(container);
    }
}

/// As service managers, and engines in a container, do.
fn a_container_that_manages_its_cgroups_is_joined_where_its_first_process_is() {
    if Wall::chosen() == Wall::SharedKernel {
        show_cgroup2_alone();
    }
    let script = "cd /sys/fs/cgroup && mkdir in out && echo 1 > in/cgroup.procs; \
                  for name in $(cat cgroup.controllers); do echo +$name > cgroup.subtree_control; done; \
                  echo passed on: $(cat cgroup.subtree_control); exec sleep 600";
    let mut bundle = TestBundle::shell(script);
    bundle.config["linux"]["resources"] = json!({});
    for mounted in bundle.config["mounts"].as_array_mut().unwrap() {
        if mounted["type"] == "cgroup" {
            mounted["options"] = json!(["nosuid", "noexec", "nodev"]);
        }
    }
    let (stdio, output) = files(&bundle.folder);
    let container = bundle.create(stdio).unwrap();
    container.start().unwrap();
    wait_until(|| output.outcome(0).stdout.ends_with('\n'));
    let passed_on = output.outcome(0);
    if passed_on.stdout == "passed on:\n" {
        println!("SKIPPED: this kernel's cgroup2 has no controllers: {passed_on:?}");
        return end(container);
    }
    let where_it_is = "grep ^0:: /proc/self/cgroup";
    assert_eq!(shell(&bundle, &container, where_it_is).stdout, "0::/in\n");

    // Asked for, it is there or nowhere.
    if Wall::chosen() == Wall::SharedKernel {
        let mut found = Container::load(&bundle).unwrap();
        let process = process(&found, &["/bin/true"], |_| {});
        let cgroups = [String::from("/")];
        let options = ExecOptions::new(&process).cgroups(&cgroups);
        let error = chain(&found.engine().exec(options).unwrap_err());
        assert!(error.contains("which passes controllers on"), "{error}");
    }
    end(container);
}
