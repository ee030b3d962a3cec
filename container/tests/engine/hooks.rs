//! The programs a configuration has run along a container's life.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use container::{StartError, Status};
use serde_json::{Value, json};

use crate::bundle::{TestBundle, chain, files, wait, wait_until};
use crate::wall::{Container, Wall};

crate::tests!(
    hooks_run_in_their_order_with_the_state_of_their_moment,
    hooks_run_in_the_namespaces_they_belong_to,
    hooks_of_the_hosts_programs_run_in_the_containers_namespaces,
    what_a_creation_hook_refuses_is_undone,
    what_a_hook_in_the_containers_namespaces_refuses_is_undone,
    what_cannot_be_executed_as_a_hook_is_undone,
    what_cannot_be_executed_in_the_containers_namespaces_is_undone,
    a_hook_that_hangs_is_ended_and_creation_undone,
    a_hook_in_the_containers_namespaces_that_hangs_is_ended,
    a_failing_start_hook_stops_the_container,
    a_start_hook_that_cannot_be_executed_or_hangs_stops_the_container,
    a_failing_poststop_hook_is_a_warning,
    a_poststop_hook_that_cannot_be_executed_or_hangs_is_a_warning,
    a_creator_killed_during_its_hooks_leaves_what_can_be_deleted,
    a_creator_that_waits_for_a_hook_gives_way_to_deletion_by_force,
    a_hook_of_the_image_is_filtered_like_the_program,
);

/// But for `createContainer`, which are programs of the host in namespaces of the container.
const KINDS: [&str; 5] = [
    "prestart",
    "createRuntime",
    "startContainer",
    "poststart",
    "poststop",
];

/// A hook that appends the state to a file, as one line that begins with its kind.
fn note(kind: &str, file: &str) -> Value {
    let script = format!("printf '%s ' {kind} >> {file}; cat >> {file}; echo >> {file}");
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script] })
}

fn shell(script: &str) -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script] })
}

fn hooks_run_in_their_order_with_the_state_of_their_moment() {
    let mut bundle = TestBundle::shell("echo program >> /notes/file");
    let notes = bundle.folder.join("notes");
    fs::create_dir(&notes).unwrap();
    let outside = notes.join("file");
    let outside = outside.to_str().unwrap();
    bundle.mount(json!({ "destination": "/notes", "source": notes, "options": ["bind"] }));
    for kind in KINDS {
        let file = if kind == "startContainer" {
            "/notes/file"
        } else {
            outside
        };
        bundle.config["hooks"][kind] = json!([note(kind, file)]);
    }
    // Before its program has run a container cannot say when the hook may; that is the hook's own business here.
    bundle.config["hooks"]["poststart"] = json!([shell(&format!(
        "until grep -q program {outside}; do sleep 0.01; done; printf 'poststart ' >> {outside}; cat >> {outside}; \
         echo >> {outside}"
    ))]);
    bundle.config["process"]["args"][2] = json!("echo program >> /notes/file; sleep 60");
    let (stdio, _output) = files(&bundle.folder);
    let mut container = bundle.create(stdio).unwrap();
    let pid = container.pid().unwrap();
    container.start().unwrap();
    container.delete(true).unwrap();
    assert_eq!(container.take_warnings(), [""; 0]);
    let text = fs::read_to_string(outside).unwrap();
    let mut expected = KINDS.to_vec();
    expected.insert(3, "program");
    let kinds: Vec<_> = text.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(kinds, expected, "{text}");
    let states = [
        ("prestart", "creating", Some(pid)),
        ("createRuntime", "creating", Some(pid)),
        ("startContainer", "created", Some(1)),
        ("poststart", "running", Some(pid)),
        ("poststop", "stopped", None),
    ];
    for (kind, status, pid) in states {
        let line = text.lines().find(|line| line.starts_with(kind)).unwrap();
        let state: Value = serde_json::from_str(line.split_once(' ').unwrap().1).unwrap();
        assert_eq!(state["status"], status, "{kind}");
        let told = state["pid"].as_i64().map(|pid| pid as i32);
        if ["prestart", "createRuntime"].contains(&kind) && Wall::chosen() == Wall::MicroVm {
            // Before there is a machine, it is a thread's that has the new network namespace.
            assert!(told.is_some_and(|told| Some(told) != pid), "{kind}");
        } else {
            assert_eq!(told, pid, "{kind}");
        }
        assert_eq!(state["id"], bundle.id.to_string(), "{kind}");
        // A machine is not told where the host has its bundles.
        if kind == "startContainer" && Wall::chosen() == Wall::MicroVm {
            continue;
        }
        assert_eq!(
            state["bundle"],
            bundle.folder.canonicalize().unwrap().to_str().unwrap(),
            "{kind}"
        );
    }
}

fn hooks_run_in_the_namespaces_they_belong_to() {
    let mut bundle = TestBundle::shell("hostname");
    let file = bundle.folder.join("hostname");
    let ours = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    bundle.config["hooks"] = json!({
        "createRuntime": [shell(&format!("hostname > {}", file.display()))],
        // In the container's root the caller's files are out of reach, so it changes what the program will say.
        "startContainer": [{ "path": "/bin/touch", "args": ["touch", "/dev/shm/hook"] }],
    });
    bundle.config["process"]["args"][2] = json!("hostname; ls /dev/shm");
    assert_eq!(bundle.output(), "bulkhead\nhook\n");
    assert_eq!(fs::read_to_string(file).unwrap(), ours);
}

fn hooks_of_the_hosts_programs_run_in_the_containers_namespaces() {
    let mut bundle = TestBundle::command(&["/bin/true"]);
    let (file, names) = (bundle.folder.join("file"), bundle.folder.join("names"));
    let note = |kind: &str| note(kind, file.to_str().unwrap());
    bundle.config["hooks"] = json!({
        "createRuntime": [note("createRuntime")],
        "createContainer": [
            note("createContainer"),
            shell(&format!("echo $(hostname) $(ls / | grep -c '^proc$') > {}", names.display()))
        ],
        "poststart": [note("poststart")]
    });
    assert_eq!(bundle.run().code, 0);
    assert_eq!(fs::read_to_string(names).unwrap(), "bulkhead 1\n");
    let text = fs::read_to_string(file).unwrap();
    let [runtime, container, start] = text.lines().collect::<Vec<_>>()[..] else {
        panic!("{text}");
    };
    assert!(
        runtime.starts_with("createRuntime ") && start.starts_with("poststart "),
        "{text}"
    );
    let state: Value = serde_json::from_str(container.strip_prefix("createContainer ").unwrap()).unwrap();
    assert_eq!((&state["status"], &state["pid"]), (&json!("creating"), &json!(1)));
}

fn what_a_creation_hook_refuses_is_undone() {
    what_hooks_refuse_is_undone(&["prestart", "createRuntime"]);
}

fn what_a_hook_in_the_containers_namespaces_refuses_is_undone() {
    what_hooks_refuse_is_undone(&["createContainer"]);
}

fn what_hooks_refuse_is_undone(kinds: &[&str]) {
    for &kind in kinds {
        let mut bundle = TestBundle::named(kind, &["/bin/true"]);
        let stopped = bundle.folder.join("stopped");
        bundle.config["hooks"] = json!({
            kind: [shell("exit 0"), shell("echo no luck >&2; exit 9")],
            "poststop": [shell(&format!("cat > {}", stopped.display()))],
        });
        let (stdio, _output) = files(&bundle.folder);
        let error = chain(&bundle.create(stdio).unwrap_err());
        assert!(
            error.contains(&format!(
                "hooks.{kind}[1]: /bin/sh ended with code 9, saying: no luck"
            )),
            "{error}"
        );
        assert!(Container::load(&bundle).is_err());
        let state: Value = serde_json::from_str(&fs::read_to_string(stopped).unwrap()).unwrap();
        assert_eq!(state["status"], "stopped");
    }
}

fn what_cannot_be_executed_as_a_hook_is_undone() {
    what_cannot_be_executed_is_undone(&["prestart", "createRuntime"]);
}

fn what_cannot_be_executed_in_the_containers_namespaces_is_undone() {
    what_cannot_be_executed_is_undone(&["createContainer"]);
}

/// Names of files that are no programs, made in this folder.
fn no_programs(folder: &Path) -> Vec<&'static str> {
    fs::create_dir_all(folder.join("folder")).unwrap();
    fs::write(folder.join("plain"), "#!/bin/sh\n").unwrap();
    fs::write(folder.join("interpreted"), "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(folder.join("interpreted"), fs::Permissions::from_mode(0o755)).unwrap();
    let names = ["plain", "folder", "interpreted", "missing"];
    names.into_iter().take(Wall::times(names.len())).collect()
}

fn what_cannot_be_executed_is_undone(kinds: &[&str]) {
    for &kind in kinds {
        let mut bundle = TestBundle::named(kind, &["/bin/true"]);
        let (folder, stopped) = (bundle.folder.join("hooks"), bundle.folder.join("stopped"));
        for name in no_programs(&folder) {
            let path = folder.join(name);
            bundle.config["hooks"] = json!({
                kind: [shell("exit 0"), { "path": path }],
                "poststop": [shell(&format!("cat > {}", stopped.display()))],
            });
            let (stdio, _output) = files(&bundle.folder);
            let error = chain(&bundle.create(stdio).unwrap_err());
            assert!(
                error.contains(&format!("hooks.{kind}[1]: ")) && error.contains(path.to_str().unwrap()),
                "{error}"
            );
            assert!(Container::load(&bundle).is_err(), "{name}");
            let state: Value = serde_json::from_str(&fs::read_to_string(&stopped).unwrap()).unwrap();
            assert_eq!(state["status"], "stopped");
            fs::remove_file(&stopped).unwrap();
        }
    }
}

/// Hooks that fail before they have done anything, or do nothing for longer than they may.
fn failing_hooks(folder: &Path, seen_as: &Path) -> Vec<(Value, &'static str)> {
    let names = no_programs(folder).into_iter();
    let mut hooks: Vec<(Value, &str)> = names
        .map(|name| (json!({ "path": seen_as.join(name) }), name))
        .collect();
    let mut hanging = shell("sleep 60");
    hanging["timeout"] = json!(1);
    hooks.push((hanging, "within its timeout of 1 s"));
    hooks
}

fn a_start_hook_that_cannot_be_executed_or_hangs_stops_the_container() {
    for kind in ["startContainer", "poststart"] {
        let mut bundle = TestBundle::named(kind, &["/bin/sleep", "60"]);
        let folder = bundle.rootfs().join("hooks");
        let seen_as = match kind {
            "startContainer" => Path::new("/hooks"),
            _ => &folder,
        };
        for (hook, problem) in failing_hooks(&folder, seen_as) {
            bundle.config["hooks"] = json!({ kind: [hook] });
            let (stdio, _output) = files(&bundle.folder);
            let mut container = bundle.create(stdio).unwrap();
            let began = Instant::now();
            let error = chain(&container.start().unwrap_err());
            assert!(
                error.contains(&format!("hooks.{kind}[0]: ")) && error.contains(problem),
                "{error}"
            );
            assert!(began.elapsed() < Duration::from_secs(20));
            wait(&container);
            assert_eq!(container.status().unwrap(), Status::Stopped);
            container.delete(false).unwrap();
        }
    }
}

fn a_poststop_hook_that_cannot_be_executed_or_hangs_is_a_warning() {
    let mut bundle = TestBundle::command(&["/bin/true"]);
    let folder = bundle.folder.join("hooks");
    let last = bundle.folder.join("last");
    let (mut hooks, problems): (Vec<Value>, Vec<&str>) = failing_hooks(&folder, &folder).into_iter().unzip();
    hooks.push(shell(&format!("echo > {}", last.display())));
    bundle.config["hooks"] = json!({ "poststop": hooks });
    let (stdio, _output) = files(&bundle.folder);
    let mut container = bundle.create(stdio).unwrap();
    container.delete(true).unwrap();
    let warnings = container.take_warnings().join("\n");
    for (index, problem) in problems.iter().enumerate() {
        let place = format!("hooks.poststop[{index}]");
        assert!(
            warnings.contains(&place) && warnings.contains(problem),
            "{warnings}"
        );
    }
    assert!(last.exists() && Container::load(&bundle).is_err());
}

fn a_hook_that_hangs_is_ended_and_creation_undone() {
    for kind in ["prestart", "createRuntime"].iter().take(Wall::times(2)) {
        a_hook_that_hangs_is_ended(kind);
    }
}

fn a_hook_in_the_containers_namespaces_that_hangs_is_ended() {
    a_hook_that_hangs_is_ended("createContainer");
}

fn a_hook_that_hangs_is_ended(kind: &str) {
    let mut bundle = TestBundle::named(kind, &["/bin/true"]);
    let mut hook = shell("sleep 60");
    hook["timeout"] = json!(1);
    bundle.config["hooks"] = json!({ kind: [hook] });
    let (stdio, _output) = files(&bundle.folder);
    let began = Instant::now();
    let error = chain(&bundle.create(stdio).unwrap_err());
    assert!(error.contains("within its timeout of 1 s"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(20));
    assert!(Container::load(&bundle).is_err());
}

fn a_failing_start_hook_stops_the_container() {
    for kind in ["startContainer", "poststart"] {
        let mut bundle = TestBundle::named(kind, &["/bin/sleep", "60"]);
        bundle.config["hooks"] = json!({ kind: [shell("exit 4")] });
        let (stdio, _output) = files(&bundle.folder);
        let mut container = bundle.create(stdio).unwrap();
        let error = container.start().unwrap_err();
        let is_of_the_host = kind == "poststart";
        assert!(
            error.is(
                |error| matches!(error, StartError::Hook(_)) == is_of_the_host,
                kind
            ),
            "{error:?}"
        );
        let error = chain(&error);
        assert!(
            error.contains(&format!("hooks.{kind}[0]: /bin/sh ended with code 4")),
            "{error}"
        );
        wait(&container);
        assert_eq!(container.status().unwrap(), Status::Stopped);
        container.delete(false).unwrap();
    }
}

fn a_failing_poststop_hook_is_a_warning() {
    let mut bundle = TestBundle::command(&["/bin/true"]);
    let second = bundle.folder.join("second");
    bundle.config["hooks"] = json!({
        "poststop": [shell("exit 4"), shell(&format!("echo > {}", second.display()))]
    });
    let (stdio, _output) = files(&bundle.folder);
    let mut container = bundle.create(stdio).unwrap();
    container.delete(true).unwrap();
    let warnings = container.take_warnings().concat();
    assert!(warnings.contains("hooks.poststop[0]"), "{warnings}");
    assert!(second.exists());
}

fn a_creator_killed_during_its_hooks_leaves_what_can_be_deleted() {
    let mut bundle = TestBundle::command(&["/bin/true"]);
    let reached = bundle.folder.join("reached");
    bundle.config["hooks"] =
        json!({ "createRuntime": [shell(&format!("echo > {}; exec sleep 60", reached.display()))] });
    let (stdio, _output) = files(&bundle.folder);
    // SAFETY: the child only creates, and ends here.
    match unsafe { libc::fork() } {
        0 => {
            let result = bundle.create(stdio);
            std::process::exit(i32::from(result.is_err()));
        }
        creator => {
            wait_until(|| reached.exists());
            let hook = children(creator);
            // SAFETY: both are this test's own and not waited for.
            unsafe {
                libc::kill(creator, libc::SIGKILL);
                libc::waitpid(creator, std::ptr::null_mut(), 0);
            }
            let mut left = Container::load(&bundle).unwrap();
            assert_eq!(left.status().unwrap(), Status::Creating);
            left.delete(true).unwrap();
            // The container's own process is gone with its cgroup; the hook is the host's, and this test's to end.
            for pid in hook {
                // SAFETY: a number that was a child of the creator a moment ago.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
    }
}

fn a_creator_that_waits_for_a_hook_gives_way_to_deletion_by_force() {
    let mut bundle = TestBundle::command(&["/bin/true"]);
    let reached = bundle.folder.join("reached");
    bundle.config["hooks"] =
        json!({ "createContainer": [shell(&format!("echo > {}; exec sleep 60", reached.display()))] });
    let (stdio, _output) = files(&bundle.folder);
    // SAFETY: the child only creates, and ends here.
    match unsafe { libc::fork() } {
        0 => std::process::exit(i32::from(bundle.create(stdio).is_ok())),
        creator => {
            wait_until(|| reached.exists());
            let began = Instant::now();
            let mut waiting = Container::load(&bundle).unwrap();
            waiting.delete(true).unwrap();
            assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
            let mut status = 0;
            // SAFETY: this test's own child and not waited for.
            unsafe { libc::waitpid(creator, &raw mut status, 0) };
            assert_eq!(libc::WEXITSTATUS(status), 0, "creation has failed");
        }
    }
}

fn a_hook_of_the_image_is_filtered_like_the_program() {
    let mut bundle = TestBundle::command(&["/bin/true"]);
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 }]
    });
    bundle.config["hooks"] = json!({ "startContainer": [shell("mkdir /dev/shm/made")] });
    let (stdio, _output) = files(&bundle.folder);
    let mut container = bundle.create(stdio).unwrap();
    let error = chain(&container.start().unwrap_err());
    assert!(
        error.contains("hooks.startContainer[0]") && error.contains("not supported"),
        "{error}"
    );
    wait(&container);
    container.delete(false).unwrap();
}

fn children(pid: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}
