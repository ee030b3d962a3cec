//! `bulkhead-oci` behind the microVM wall: attendants and pods.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use tests::microvm_life::{delete, idle, start, wait_until};
use tests::oci_container::OciContainer;
use tests::terminal::Terminal;
use tests::{Finished, Wall, finish, is_alive};

fn behind_microvm(arguments: &[&str]) -> Option<OciContainer> {
    OciContainer::behind(Wall::MicroVm, arguments)
}

/// The processes on the host that stand for the container's.
fn processes(bundle: &OciContainer) -> Vec<i32> {
    serde_json::from_str(&bundle.on("ps", &["--format", "json"]).expect(0).stdout).unwrap()
}

/// A limit of the container's cgroup on the host, where its controllers are those of version 1.
fn host_limit(bundle: &OciContainer, controller: &str, file: &str) -> Option<i64> {
    let folder = std::path::Path::new("/sys/fs/cgroup").join(controller);
    if !folder.join("tasks").exists() {
        return None;
    }
    let file = folder.join(format!("bulkhead-{}", bundle.id())).join(file);
    Some(fs::read_to_string(file).unwrap().trim().parse().unwrap())
}

#[test]
fn run_ends_as_its_program_does_and_leaves_nothing() {
    let script = "echo out; echo err >&2; uname -r; exit 7";
    let Some(mut bundle) = behind_microvm(&["sh", "-c", script]) else {
        return;
    };
    let Finished { code, stdout, stderr } = bundle.on("run", &[]);
    assert_eq!((code, &*stderr), (7, "err\n"));
    assert!(
        stdout.starts_with("out\n") && stdout.contains("-bulkhead"),
        "{stdout}"
    );
    // Who takes the attendant for the container's process sends it signals.
    let script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    bundle.config["process"]["args"] = json!(["sh", "-c", script]);
    let output = bundle.scratch().join("output");
    let mut run = bundle.command("run");
    run.arg(bundle.id()).stdout(fs::File::create(&output).unwrap());
    let mut run = run.spawn().unwrap();
    wait_until(|| fs::read_to_string(&output).unwrap() == "ready\n");
    kill_process(bundle.attendant(), Signal::TERM).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(3));
    for (program, code) in [("nowhere", 127), ("/bin", 126)] {
        bundle.config["process"]["args"] = json!([program]);
        bundle.on("run", &[]).expect(code).complains_of(&[program]);
    }
}

#[test]
fn a_container_lives_through_every_verb() {
    let Some(mut bundle) = idle() else { return };
    bundle.config["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 });
    let pid_file = bundle.scratch().join("pid");
    let log_file = bundle.scratch().join("log");
    let options = ["--log", log_file.to_str().unwrap(), "--log-format", "json"];
    let mut creation = options.to_vec();
    creation.extend(["--bundle", ".", "--pid-file", pid_file.to_str().unwrap()]);
    bundle.on("create", &creation).expect(0);
    assert_eq!(bundle.status(), "created");
    the_start_of_its_machine_is_told(&bundle, &fs::read_to_string(log_file).unwrap());
    assert_eq!(
        fs::read_to_string(pid_file).unwrap(),
        bundle.attendant().as_raw_nonzero().to_string()
    );
    bundle.on("start", &[]).expect(0);
    assert_eq!(bundle.status(), "running");
    bundle
        .on("start", &[])
        .expect(1)
        .complains_of(&["is running", "created"]);

    let id = bundle.id();
    let options = ["--cwd", "/tmp", "--env", "ONE=1", "--user", "5:6"];
    let script = "hostname; pwd; echo $ONE; id -u; id -g; cat; exit 9";
    let mut exec = bundle.command("exec");
    exec.args(options).args([&id, "sh", "-c", script]);
    exec.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = exec.spawn().unwrap();
    let init = bundle.attendant().as_raw_nonzero().get();
    wait_until(|| processes(&bundle).len() == 2);
    assert!(processes(&bundle).contains(&init));
    for pid in processes(&bundle) {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(command.contains("bulkhead-attendant"), "{command:?}");
    }
    // Whoever takes one for a process of the container, once it is told of, finds nothing of the host.
    let namespaces = |process: &str| {
        let link = |kind| fs::read_link(format!("/proc/{process}/ns/{kind}")).unwrap();
        ["mnt", "net", "ipc", "uts"].map(link)
    };
    let (shown, ours) = (namespaces(&init.to_string()), namespaces("self"));
    assert!(shown.iter().all(|shown| !ours.contains(shown)), "{shown:?}");
    wait_until(|| {
        let all = processes(&bundle);
        all.iter().all(|pid| namespaces(&pid.to_string()) == shown)
    });
    assert!(Path::new(&format!("/proc/{init}/root/bin/busybox")).exists());
    child.stdin.take().unwrap().write_all(b"typed\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(9));
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "bulkhead\n/tmp\n1\n5\n6\ntyped\n"
    );
    bundle.oci("exec", &[&id, "nowhere"]).expect(127);
    // Who else has the output open is not waited for.
    let begun = Instant::now();
    let said = bundle
        .oci("exec", &[&id, "sh", "-c", "sleep 100 & echo said"])
        .expect(0);
    assert_eq!(said.stdout, "said\n");
    assert!(begun.elapsed() < Duration::from_secs(50), "{:?}", begun.elapsed());
    bundle
        .oci("exec", &["--detach", "--tty", &id, "true"])
        .expect(1)
        .complains_of(&["--console-socket"]);

    assert_eq!(processes(&bundle), vec![init]);
    // Not so in the guest, where what the last one left goes on.
    let table = bundle.on("ps", &[]).expect(0).stdout;
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(
        table.contains("sleep 600") && table.contains("sleep 100"),
        "{table}"
    );
    let measured = bundle.on("events", &["--stats"]).expect(0).stdout;
    let measured: Value = serde_json::from_str(&measured).unwrap();
    assert_eq!(measured["type"], "stats");
    assert_eq!(measured["data"]["memory"]["usage"]["limit"], 64 << 20);
    // The host counts the guest's kernel and the VMM too.
    let host = &measured["data"]["host"];
    assert_eq!(host["sandbox"], json!(id));
    if Path::new("/sys/fs/cgroup/memory/tasks").exists() {
        let used = |of: &Value, pointer: &str| of.pointer(pointer).and_then(Value::as_u64).unwrap();
        assert!(used(host, "/cpu/usage/total") > 0, "{measured}");
        let usage = "/memory/usage/usage";
        assert!(used(host, usage) > used(&measured["data"], usage), "{measured}");
        assert_eq!(
            used(host, "/memory/usage/limit"),
            (64 + OVERHEAD_MIB as u64) << 20
        );
    }
    limits_follow_on_the_host(&bundle);
    let measured = bundle.on("events", &["--stats"]).expect(0).stdout;
    let measured: Value = serde_json::from_str(&measured).unwrap();
    assert_eq!(measured["data"]["memory"]["usage"]["limit"], 48 << 20);

    bundle.on("pause", &[]).expect(0);
    assert_eq!(bundle.status(), "paused");
    its_machine_stands_still_until_it_is_resumed(&bundle);
    assert_eq!(bundle.status(), "running");
    let listed = bundle.oci("list", &[]).expect(0).stdout;
    assert!(listed.contains(&id) && listed.contains("running"), "{listed}");

    // As soon as a guest that others may keep waiting has said that it runs.
    wait_until(|| {
        let begun = Instant::now();
        bundle.on("delete", &[]).expect(1).complains_of(&["is running"]);
        begun.elapsed() < Duration::from_secs(2)
    });
    let machine = bundle.vmm();
    bundle.on("pause", &[]).expect(0);
    bundle.on("kill", &["KILL"]).expect(0);
    wait_until(|| bundle.status() == "stopped");
    assert!(processes(&bundle).is_empty());
    // The machine ended with its only container.
    wait_until(|| !is_alive(machine));
    bundle
        .oci("exec", &[&id, "true"])
        .expect(1)
        .complains_of(&["is stopped"]);
    bundle.on("delete", &[]).expect(0);
    bundle
        .on("state", &[])
        .expect(1)
        .complains_of(&["does not exist"]);
    bundle.on("delete", &["--force"]).expect(0);
}

fn the_start_of_its_machine_is_told(bundle: &OciContainer, log: &str) {
    let entry: Value = serde_json::from_str(log).unwrap();
    assert_eq!(
        (entry["level"].as_str(), &entry["vm"]),
        (Some("info"), &bundle.state()["vm"])
    );
    let vm = &entry["vm"];
    assert_eq!(vm["pid"], bundle.vmm().as_raw_nonzero().get());
    assert_eq!((&vm["vcpus"], &vm["memory"]), (&json!(1), &json!(128 << 20)));
    let phases = vm["start"]["phases"].as_array().unwrap();
    let names: Vec<&str> = phases
        .iter()
        .map(|phase| phase["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        (&vm["start"]["origin"], &names[..]),
        (&json!("template"), &["template", "clone", "prepare"][..])
    );
    assert!(
        phases
            .iter()
            .all(|phase| phase["microseconds"].as_u64().unwrap() > 0),
        "{vm}"
    );
    let message = entry["msg"].as_str().unwrap();
    assert!(
        message.contains("cloned from template") && message.contains("prepare"),
        "{message}"
    );
}

/// The guest is not to be reached, but by verbs that it goes on for.
fn its_machine_stands_still_until_it_is_resumed(bundle: &OciContainer) {
    let socket = bundle
        .scratch()
        .join("states")
        .join(bundle.id())
        .join("vm/vsock.sock");
    let call = || {
        // The agent's port. The guest's kernel answers who calls it.
        let mut agent = UnixStream::connect(&socket).unwrap();
        agent.write_all(b"CONNECT 1024\n").unwrap();
        agent.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        agent
    };
    let mut answer = [0; 2];
    assert!(call().read_exact(&mut answer).is_err());
    let table = bundle.on("ps", &[]).expect(0).stdout;
    assert!(table.contains("sleep 600"), "{table}");
    bundle.on("update", &["--pids-limit", "50"]).expect(0);
    bundle
        .oci("exec", &[&bundle.id(), "true"])
        .expect(1)
        .complains_of(&["is paused"]);
    let mut agent = call();
    assert!(agent.read_exact(&mut answer).is_err());
    bundle.on("resume", &[]).expect(0);
    agent.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    agent.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"OK");
}

/// What the guest and the VMM need beside the containers, on the host.
const OVERHEAD_MIB: i64 = 64 + 64;

/// For a container of 64 MiB, which is left with 48.
fn limits_follow_on_the_host(bundle: &OciContainer) {
    let on_host = || {
        [
            host_limit(bundle, "memory", "memory.limit_in_bytes"),
            host_limit(bundle, "cpu", "cpu.cfs_quota_us"),
        ]
    };
    let before = on_host();
    let [has_version_1, _] = before.map(|limit| limit.is_some());
    let with_memory = |mib: i64| has_version_1.then_some((mib + OVERHEAD_MIB) << 20);
    for (refused, complaint) in [
        (&["--memory", "65M"][..], "128 MiB"),
        (&["--cpu-quota", "150000"], "1 vCPU"),
        (&["--cpuset-cpus", "0"], "linux.resources.cpu.cpus"),
        // The guest's to refuse.
        (
            &["--memory", "40M", "--memory-swap", "30M"],
            "linux.resources.memory.swap",
        ),
    ] {
        bundle.on("update", refused).expect(1).complains_of(&[complaint]);
        assert_eq!(on_host(), before, "{refused:?}");
    }
    let period = ["--cpu-quota", "90000", "--cpu-period", "100000"];
    bundle
        .on("update", &[&["--memory", "32M"][..], &period].concat())
        .expect(0);
    let memory = with_memory(32);
    assert_eq!(on_host(), [memory, memory.map(|_| 90_000)]);
    bundle
        .on("update", &["--memory", "48M", "--cpu-quota", "-1"])
        .expect(0);
    let memory = with_memory(48);
    assert_eq!(on_host(), [memory, memory.map(|_| -1)]);
}

#[test]
fn what_a_terminal_shows_comes_through_and_its_size_goes_in() {
    let script = "until [ \"$(stty size)\" = '37 101' ]; do sleep 0.1; done; tty; stty size; read line; echo got $line";
    let Some(mut bundle) = behind_microvm(&["sh", "-c", script]) else {
        return;
    };
    bundle.config["process"]["terminal"] = json!(true);
    let mut run = bundle.command("run");
    run.arg(bundle.id());
    let (terminal, mut child) = Terminal::run(&mut run, 101, 37);
    terminal.write("typed\n");
    let shown = terminal.read_to_end();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{shown}");
    for text in ["/dev/pts/0", "37 101", "got typed"] {
        assert!(shown.contains(text), "{text:?} is missing from: {shown}");
    }
}

#[test]
fn a_pods_containers_share_a_machine_and_come_and_go_in_it() {
    let Some(mut bundle) = idle() else { return };
    bundle.config["annotations"] = json!({
        "io.kubernetes.cri.container-type": "sandbox",
        "io.kubernetes.cri.sandbox-id": bundle.id(),
    });
    // As engines give all containers of a pod one folder.
    let share_memory = |config: &mut Value| {
        let memory =
            json!({ "destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": ["bind"] });
        config["mounts"].as_array_mut().unwrap().push(memory);
    };
    share_memory(&mut bundle.config);
    start(&bundle);
    let machine = bundle.vmm();
    let annotations = json!({
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.sandbox-id": bundle.id(),
    });
    let ipc = format!("/proc/{}/ns/ipc", bundle.attendant().as_raw_nonzero());
    let sibling = bundle.sibling(
        "two",
        &["sh", "-c", "hostname; ls /proc/sysvipc; sleep 600"],
        |config| {
            config["annotations"] = annotations;
            share_memory(config);
            for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
                if namespace["type"] == "ipc" {
                    namespace["path"] = json!(ipc);
                }
            }
        },
    );
    let folder = sibling.folder.to_str().unwrap();
    let word = format!("bulkhead-{}", std::process::id());
    let say = format!("echo {word} > /dev/shm/{word}");
    bundle.on("exec", &["sh", "-c", &say]).expect(0);
    assert!(
        !Path::new("/dev/shm").join(&word).exists(),
        "it is the guest's memory"
    );
    for _ in 0..2 {
        bundle.oci("create", &["--bundle", folder, &sibling.id]).expect(0);
        bundle.oci("start", &[&sibling.id]).expect(0);
        let script = format!("cat /dev/shm/{word}; df -k /dev/shm | tail -n 1");
        let seen = bundle
            .oci("exec", &[&sibling.id, "sh", "-c", &script])
            .expect(0)
            .stdout;
        let size = rustix::fs::statvfs("/dev/shm").unwrap();
        let size = ((size.f_blocks * size.f_frsize) >> 10).to_string();
        assert!(
            seen.starts_with(&word) && seen.split_whitespace().any(|field| field == size),
            "{seen}"
        );
        let inside = |id: &str, what: &str| {
            let link = bundle.oci("exec", &[id, "readlink", what]).expect(0).stdout;
            assert!(!link.is_empty());
            link
        };
        for (shared, what) in [(true, "net"), (true, "ipc"), (false, "pid"), (false, "mnt")] {
            let path = format!("/proc/self/ns/{what}");
            let same = inside(&bundle.id(), &path) == inside(&sibling.id, &path);
            assert_eq!(same, shared, "{what}");
        }
        // The machine goes on for the other one.
        bundle.on("pause", &[]).expect(0);
        inside(&sibling.id, "/proc/self");
        bundle.on("resume", &[]).expect(0);
        bundle.oci("delete", &["--force", &sibling.id]).expect(0);
        assert!(is_alive(machine));
        assert_eq!(bundle.status(), "running");
    }
    bundle.on("pause", &[]).expect(0);
    bundle
        .oci("create", &["--bundle", folder, &sibling.id])
        .expect(1)
        .complains_of(&["is paused"]);
    bundle.on("resume", &[]).expect(0);
    bundle.oci("create", &["--bundle", folder, &sibling.id]).expect(0);
    bundle.oci("start", &[&sibling.id]).expect(0);
    one_without_memory_harms_no_neighbour(&bundle, &sibling.id);
    // The pod goes on without the first one's program.
    bundle.on("kill", &["KILL"]).expect(0);
    wait_until(|| bundle.status() == "stopped");
    bundle.oci("exec", &[&sibling.id, "true"]).expect(0);
    // The first one's deletion is the pod's.
    delete(&bundle);
    wait_until(|| {
        let state = bundle.oci("state", &[&sibling.id]).expect(0).stdout;
        state.contains("stopped")
    });
    bundle.oci("delete", &[&sibling.id]).expect(0);
}

fn one_without_memory_harms_no_neighbour(pod: &OciContainer, neighbour: &str) {
    let script =
        "until [ -e /tmp/go ]; do sleep 0.1; done; exec dd if=/dev/zero of=/dev/null bs=200M count=1";
    let hog = pod.sibling("hog", &["sh", "-c", script], |config| {
        config["annotations"] = json!({ "dev.bulkhead.sandbox": pod.id() });
        config["linux"]["resources"]["memory"] = json!({ "limit": 16 << 20 });
    });
    let mut run = pod.command("run");
    run.args(["--bundle", hog.folder.to_str().unwrap(), &hog.id]);
    let mut run = run.stderr(Stdio::null()).spawn().unwrap();
    wait_until(|| pod.oci("exec", &[&hog.id, "true"]).code == 0);
    let events = pod.scratch().join("events");
    let mut watch = pod.command("events");
    watch.args(["--interval", "100ms", &hog.id]);
    watch.stdout(fs::File::create(&events).unwrap());
    let mut watch = watch.spawn().unwrap();
    wait_until(|| fs::read_to_string(&events).unwrap().contains("\"stats\""));
    pod.oci("exec", &[&hog.id, "touch", "/tmp/go"]).expect(0);
    assert_eq!(run.wait().unwrap().code(), Some(137));
    assert!(watch.wait().unwrap().success());
    let told = fs::read_to_string(events).unwrap();
    assert!(told.contains(r#""type":"oom""#), "{told}");
    pod.oci("exec", &[neighbour, "true"]).expect(0);
}

#[test]
fn what_a_virtual_machine_cannot_give_is_refused_with_its_reason() {
    let Some(mut bundle) = idle() else { return };
    let good = bundle.config.clone();
    let socket = bundle.scratch().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let cases: [(&str, Value, &str); 4] = [
        (
            "/linux/namespaces",
            json!([{ "type": "pid" }, { "type": "mount" }]),
            "would have the host's network",
        ),
        (
            "/mounts/0",
            json!({ "destination": "/s", "type": "bind", "source": socket }),
            "mounts[0].source",
        ),
        (
            "/hooks",
            json!({ "createContainer": [{ "path": "/bin/true" }] }),
            "hooks.createContainer",
        ),
        (
            "/linux/seccomp",
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/agent" }),
            "linux.seccomp.listenerPath",
        ),
    ];
    for (pointer, value, complaint) in cases {
        bundle.config = good.clone();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        match bundle.config.pointer_mut(parent).unwrap() {
            Value::Array(items) => items[0] = value,
            parent => parent[name] = value,
        }
        bundle
            .on("create", &["--bundle", "."])
            .expect(1)
            .complains_of(&[complaint]);
    }
    bundle.config = good;
    let with_descriptor = ["--bundle", ".", "--preserve-fds", "1"];
    let mut create = bundle.command("create");
    create.args(with_descriptor).arg(bundle.id());
    // Descriptor 3 is the shell's to hand down.
    let line: Vec<_> = std::iter::once(create.get_program())
        .chain(create.get_args())
        .map(|word| word.to_str().unwrap().to_owned())
        .collect();
    let mut shell = std::process::Command::new("sh");
    shell
        .args(["-c", "exec 3</dev/null; exec \"$@\"", "sh"])
        .args(line)
        .current_dir(bundle.folder());
    finish(&mut shell)
        .expect(1)
        .complains_of(&["--preserve-fds", "shared-kernel"]);
}

#[test]
fn the_pods_cgroup_holds_what_stands_for_it_and_four_processors_are_used() {
    let script = "for cpu in 0 1 2 3; do taskset $((1 << cpu)) cut -d ' ' -f 39 /proc/self/stat; done; nproc; \
                  awk '/MemTotal/ { print ($2 > 250000 && $2 < 307200) }' /proc/meminfo; sleep 600";
    let Some(mut bundle) = behind_microvm(&["sh", "-c", script]) else {
        return;
    };
    bundle.config["linux"]["resources"]["cpu"] = json!({ "quota": 400_000, "period": 100_000 });
    bundle.config["annotations"] = json!({ "dev.bulkhead.machine.memory_mib": "300" });
    let output = bundle.scratch().join("output");
    let mut creation = bundle.command("create");
    creation.args(["--bundle", ".", &bundle.id()]);
    creation.stdout(fs::File::create(&output).unwrap());
    creation.stderr(Stdio::null());
    assert!(creation.status().unwrap().success());
    bundle.on("start", &[]).expect(0);
    let written = || fs::read_to_string(&output).unwrap();
    wait_until(|| written().lines().count() == 6);
    assert_eq!(written(), "0\n1\n2\n3\n4\n1\n");
    for process in [bundle.attendant(), bundle.vmm()] {
        let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", process.as_raw_nonzero())).unwrap();
        let group = format!("/bulkhead-{}", bundle.id());
        assert!(cgroups.lines().any(|line| line.ends_with(&group)), "{cgroups}");
    }
    delete(&bundle);
}

#[test]
fn many_lives_in_one_machine_leave_nothing() {
    let Some(mut bundle) = idle() else { return };
    bundle.config["annotations"] = json!({ "io.kubernetes.cri.container-type": "sandbox" });
    start(&bundle);
    let folder = bundle
        .scratch()
        .join("states")
        .join(bundle.id())
        .join("vm/export");
    let annotations = json!({ "dev.bulkhead.sandbox": bundle.id() });
    let sibling = bundle.sibling("one-of-many", &["true"], |config| {
        config["annotations"] = annotations;
    });
    let shared_before = fs::read_dir(&folder).unwrap().count();
    for _ in 0..8 {
        bundle
            .oci(
                "create",
                &["--bundle", sibling.folder.to_str().unwrap(), &sibling.id],
            )
            .expect(0);
        bundle.oci("delete", &["--force", &sibling.id]).expect(0);
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), shared_before);
    delete(&bundle);
}
