//! `bulkhead-oci` through a container's life, as a shell and the callers of OCI runtimes use it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use tests::oci::wait_until;
use tests::oci_container::OciContainer;
use tests::terminal::Terminal;
use tests::{Finished, finish};

/// A bundle whose container runs until it is told to end.
fn idle() -> Option<OciContainer> {
    OciContainer::new(&["sleep", "60"])
}

fn running(bundle: &OciContainer) {
    let id = bundle.id();
    bundle.oci("run", &["--detach", &id]).expect(0);
}

fn delete(bundle: &OciContainer) {
    bundle.on("delete", &["--force"]).expect(0);
}

#[test]
fn run_ends_as_its_program_does_and_leaves_nothing() {
    let Some(mut bundle) = OciContainer::new(&["sh", "-c", "echo out; echo err >&2; exit 7"]) else {
        return;
    };
    let Finished { code, stdout, stderr } = bundle.on("run", &[]);
    assert_eq!((code, &*stdout, &*stderr), (7, "out\n", "err\n"));
    // The first process of a pid namespace cannot kill itself; a child of it can.
    bundle.config["process"]["args"] = serde_json::json!(["sh", "-c", "sh -c 'kill -9 $$'; exit $?"]);
    assert_eq!(bundle.on("run", &[]).code, 137);
}

#[test]
fn run_says_what_a_shell_would_of_a_program_that_is_none() {
    for (program, code) in [("nowhere", 127), ("/bin", 126)] {
        let Some(bundle) = OciContainer::new(&[program]) else {
            return;
        };
        bundle.on("run", &[]).expect(code).complains_of(&[program]);
    }
}

#[test]
fn run_keeps_a_container_that_it_is_told_to_keep() {
    let Some(bundle) = OciContainer::new(&["true"]) else {
        return;
    };
    bundle.on("run", &["--keep"]).expect(0);
    assert_eq!(bundle.status(), "stopped");
    bundle.on("delete", &[]).expect(0);
}

#[test]
fn create_start_kill_delete() {
    let Some(bundle) = idle() else { return };
    let pid_file = bundle.scratch().join("pid");
    // Options are taken after the id too.
    bundle
        .on(
            "create",
            &["--pid-file", pid_file.to_str().unwrap(), "--bundle", "."],
        )
        .expect(0);
    assert_eq!(bundle.status(), "created");
    bundle.on("start", &[]).expect(0);
    assert_eq!(bundle.status(), "running");
    let pid = fs::read_to_string(pid_file).unwrap();
    assert!(
        fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .unwrap()
            .starts_with("sleep")
    );
    bundle.on("delete", &[]).expect(1).complains_of(&["running"]);
    bundle.on("kill", &["KILL"]).expect(0);
    wait_until(|| bundle.status() == "stopped");
    bundle.on("delete", &[]).expect(0);
    bundle
        .on("state", &[])
        .expect(1)
        .complains_of(&["does not exist"]);
    bundle
        .on("delete", &[])
        .expect(1)
        .complains_of(&["does not exist"]);
    bundle.on("delete", &["--force"]).expect(0);
}

#[test]
fn kill_all_reaches_every_process() {
    let Some(bundle) = OciContainer::new(&["sh", "-c", "trap '' TERM; sleep 60 & sleep 60 & wait"]) else {
        return;
    };
    running(&bundle);
    bundle.on("kill", &["--all", "KILL"]).expect(0);
    wait_until(|| bundle.status() == "stopped");
    bundle.on("delete", &[]).expect(0);
}

#[test]
fn exec_joins_with_what_it_is_given() {
    let Some(bundle) = idle() else { return };
    running(&bundle);
    let id = bundle.id();
    let script = "hostname; pwd; echo $ONE $TWO; id -u; id -g; id -G; exit 9";
    let options = [
        "--cwd", "/tmp", "--env", "ONE=1", "-e", "TWO=2", "--user", "5:6", "-g", "7",
    ];
    let arguments = [&options[..], &[&id, "sh", "-c", script]].concat();
    let outcome = bundle.oci("exec", &arguments).expect(9);
    assert_eq!(outcome.stdout, "bulkhead\n/tmp\n1 2\n5\n6\n6 7\n");
    // A command's own options are its own.
    let outcome = bundle.oci("exec", &[&id, "echo", "--cwd", "-e"]).expect(0);
    assert_eq!(outcome.stdout, "--cwd -e\n");
    let outcome = bundle
        .oci(
            "exec",
            &[
                "--cap",
                "CAP_NET_RAW",
                &id,
                "grep",
                "-E",
                "Cap(Eff|Inh)",
                "/proc/self/status",
            ],
        )
        .expect(0);
    assert_eq!(
        outcome.stdout,
        "CapInh:\t0000000000000000\nCapEff:\t0000000020002420\n"
    );
    delete(&bundle);
}

#[test]
fn exec_takes_a_process_from_a_file() {
    let Some(bundle) = idle() else { return };
    running(&bundle);
    let file = bundle.scratch().join("process.json");
    let process = serde_json::json!({
        "args": ["sh", "-c", "echo $WHO in $(pwd)"], "env": ["WHO=file", "PATH=/bin"], "cwd": "/tmp",
        "user": { "uid": 0, "gid": 0 }
    });
    fs::write(&file, process.to_string()).unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(
        bundle.on("exec", &["--process", file]).expect(0).stdout,
        "file in /tmp\n"
    );
    let unknown = r#"{"args":["true"],"cwd":"/","user":{},"env":["PATH=/bin"],"capabilities":{"bounding":["CAP_OF_TOMORROW"]}}"#;
    fs::write(file, unknown).unwrap();
    bundle.on("exec", &["--process", file]).expect(0).complains_of(&[
        "warning",
        "process.capabilities.bounding",
        "CAP_OF_TOMORROW",
    ]);
    fs::write(file, "{").unwrap();
    bundle
        .on("exec", &["--process", file])
        .expect(1)
        .complains_of(&["process.json"]);
    bundle.on("exec", &[]).expect(1).complains_of(&["--process FILE"]);
    for (text, field) in [
        (
            r#"{"args":["true"],"cwd":"/","user":{"uid":"root"}}"#,
            ": user.uid: ",
        ),
        (r#"{"args":["true",7],"cwd":"/","user":{}}"#, ": args[1]: "),
        (r#"{"args":["true"],"cwd":"/","user":{}} more"#, ": .: "),
    ] {
        fs::write(file, text).unwrap();
        bundle
            .on("exec", &["--process", file])
            .expect(1)
            .complains_of(&[field]);
    }
    bundle.on("exec", &["nowhere"]).expect(127);
    bundle.on("exec", &["/proc"]).expect(126);
    delete(&bundle);
    bundle
        .on("exec", &["true"])
        .expect(1)
        .complains_of(&["does not exist"]);
}

#[test]
fn exec_detached_leaves_a_process_and_its_pid() {
    let Some(bundle) = idle() else { return };
    running(&bundle);
    let pid_file = bundle.scratch().join("exec-pid");
    let id = bundle.id();
    bundle
        .oci(
            "exec",
            &["-d", "--pid-file", pid_file.to_str().unwrap(), &id, "sleep", "50"],
        )
        .expect(0);
    let pid = fs::read_to_string(pid_file).unwrap();
    wait_until(|| {
        fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .unwrap()
            .starts_with("sleep\x0050")
    });
    delete(&bundle);
}

#[test]
fn a_terminal_is_shown_and_has_our_size() {
    let Some(mut bundle) = OciContainer::new(&["sh", "-c", "tty; stty size; echo done; exit 3"]) else {
        return;
    };
    bundle.config["process"]["terminal"] = true.into();
    let mut command = bundle.command("run");
    let (terminal, mut child) = Terminal::run(command.arg(bundle.id()), 91, 33);
    let shown = terminal.read_to_end();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert_eq!(shown, "/dev/pts/0\r\n33 91\r\ndone\r\n");

    let Some(bundle) = idle() else { return };
    running(&bundle);
    let mut command = bundle.command("exec");
    command.args(["--tty", &bundle.id(), "sh", "-c", "tty; stty size"]);
    let (terminal, mut child) = Terminal::run(&mut command, 91, 33);
    assert_eq!(terminal.read_to_end(), "/dev/pts/0\r\n33 91\r\n");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    delete(&bundle);
}

#[test]
fn a_console_socket_gets_the_terminal_of_a_detached_process() {
    let Some(bundle) = idle() else { return };
    running(&bundle);
    let path = bundle.scratch().join("console");
    let listener = UnixListener::bind(&path).unwrap();
    let id = bundle.id();
    bundle
        .oci(
            "exec",
            &["-d", "-t", "--console-socket", path.to_str().unwrap(), &id, "tty"],
        )
        .expect(0);
    listener.set_nonblocking(true).unwrap();
    // Connected and sent before `exec` returned.
    listener.accept().unwrap();
    delete(&bundle);
}

/// A pipe that takes little at a time, and none at all when it is full: a caller may share its output with what does not
/// block.
fn reluctant_pipe() -> (fs::File, OwnedFd) {
    use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
    let (read_end, write_end) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    fcntl_setpipe_size(&write_end, 4096).unwrap();
    rustix::fs::fcntl_setfl(&write_end, rustix::fs::OFlags::NONBLOCK).unwrap();
    (read_end.into(), write_end)
}

#[test]
fn a_terminal_is_shown_whole_on_an_output_that_does_not_block() {
    let Some(mut bundle) = OciContainer::new(&["seq", "1", "30000"]) else {
        return;
    };
    bundle.config["process"]["terminal"] = serde_json::json!(true);
    let (shown, output) = reluctant_pipe();
    let mut run = bundle.command("run");
    let mut child = run.arg(bundle.id()).stdout(output).spawn().unwrap();
    drop(run);
    let shown = std::io::read_to_string(shown).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let expected: Vec<String> = (1..=30_000).map(|number: u32| number.to_string()).collect();
    assert!(shown.lines().eq(expected), "{} bytes were shown", shown.len());
}

#[test]
fn a_process_whose_terminal_cannot_be_shown_is_ended() {
    let Some(bundle) = idle() else { return };
    running(&bundle);
    let (shown, output) = reluctant_pipe();
    drop(shown);
    let script = "trap '' HUP; echo something; exec sleep 60";
    let mut exec = bundle.command("exec");
    exec.args(["--tty", &bundle.id(), "sh", "-c", script])
        .stdout(output);
    let status = exec.stderr(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(1));
    wait_until(|| bundle.on("ps", &["--format", "json"]).stdout.matches(',').count() == 0);
    delete(&bundle);
}

/// A caller that has waited for the pid file may go on with the container at once.
#[test]
fn the_pid_file_is_there_when_the_container_is_created_and_not_before() {
    let Some(bundle) = OciContainer::new(&["true"]) else {
        return;
    };
    // Its writer waits here for a reader.
    let pid_file = bundle.scratch().join("pid");
    let next = bundle.scratch().join("pid.next");
    finish(std::process::Command::new("mkfifo").arg(&next)).expect(0);
    let mut create = bundle.command("create");
    create.args(["--pid-file", pid_file.to_str().unwrap(), &bundle.id()]);
    let mut creator = create.spawn().unwrap();
    wait_until(|| bundle.on("state", &[]).stdout.contains("\"created\""));
    assert!(!pid_file.exists());
    let pid = fs::read_to_string(&next).unwrap();
    assert_eq!(creator.wait().unwrap().code(), Some(0));
    assert!(bundle.on("state", &[]).stdout.contains(&pid));
    delete(&bundle);
}

#[test]
fn signals_to_a_waiting_run_are_the_programs() {
    let Some(bundle) = OciContainer::new(&[
        "sh",
        "-c",
        "trap 'exit 5' TERM; touch /tmp/up; while :; do sleep 0.05; done",
    ]) else {
        return;
    };
    let output = fs::File::create(bundle.scratch().join("output")).unwrap();
    let mut child = bundle
        .command("run")
        .arg(bundle.id())
        .stdout(output.try_clone().unwrap())
        .stderr(Stdio::from(output))
        .spawn()
        .unwrap();
    wait_until(|| bundle.on("exec", &["test", "-e", "/tmp/up"]).code == 0);
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(5));
}

#[test]
fn descriptors_are_handed_down_on_request() {
    let Some(bundle) = OciContainer::new(&[
        "sh",
        "-c",
        "echo to three >&3; echo $LISTEN_FDS $LISTEN_PID; test ! -e /proc/self/fd/4",
    ]) else {
        return;
    };
    let mut shell = std::process::Command::new("sh");
    let run = bundle.command("run");
    let words: Vec<String> = std::iter::once(run.get_program())
        .chain(run.get_args())
        .map(|word| word.to_str().unwrap().to_owned())
        .collect();
    let script = format!(
        "exec 3> {}; LISTEN_FDS=1 exec {} --preserve-fds 2 {}",
        bundle.scratch().join("three").display(),
        words.join(" "),
        bundle.id()
    );
    let outcome = finish(shell.args(["-c", &script]).current_dir(bundle.folder())).expect(0);
    assert_eq!(outcome.stdout, "1 1\n");
    assert_eq!(
        fs::read_to_string(bundle.scratch().join("three")).unwrap(),
        "to three\n"
    );
}

/// Neither its link nor a mapping of a process that waits in a container leads to the runtime's file.
#[test]
fn a_waiting_process_has_nothing_of_the_program_that_made_it() {
    let Some(bundle) = OciContainer::new(&["true"]) else {
        return;
    };
    bundle.on("create", &[]).expect(0);
    let state: serde_json::Value = serde_json::from_str(&bundle.on("state", &[]).expect(0).stdout).unwrap();
    let pid = &state["pid"];
    let program = fs::canonicalize(tests::binary("bulkhead-oci")).unwrap();
    assert_ne!(fs::read_link(format!("/proc/{pid}/exe")).unwrap(), program);
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    assert!(!maps.contains(program.to_str().unwrap()), "{maps}");
    delete(&bundle);
}

/// It then keeps itself out of reach by a copy, which is executed with the same words.
#[test]
fn without_the_privilege_to_mount_it_goes_on_all_the_same() {
    let Some(bundle) = OciContainer::new(&["true"]) else {
        return;
    };
    let run = bundle.command("exec");
    let mut less = std::process::Command::new("setpriv");
    less.args(["--bounding-set", "-sys_admin,-checkpoint_restore"])
        .arg(run.get_program())
        .args(run.get_args())
        .args([&bundle.id(), "true"]);
    let complaint = finish(less.current_dir(bundle.folder())).expect(1);
    complaint.complains_of(&[&bundle.id(), "does not exist"]);
}

/// CVE-2019-5736: a container has the runtime executed in it, and writes to what `/proc/PID/exe` leads to.
#[test]
fn a_container_cannot_reach_the_program_that_enters_it() {
    let watcher = "while :; do for p in /proc/[0-9]*; do \
                   if [ \"$(readlink $p/exe)\" != /bin/busybox ]; then \
                   if (echo spoilt > $p/exe) 2>/dev/null; then echo $p; echo written > /tmp/written; fi; \
                   cat $p/exe > /tmp/read 2>/dev/null && touch /tmp/met; fi; done; done";
    let Some(bundle) = OciContainer::new(&["sh", "-c", watcher]) else {
        return;
    };
    // A copy of its own: should this go wrong, only that is spoilt.
    let own = bundle.scratch().join("bulkhead-oci");
    fs::copy(tests::binary("bulkhead-oci"), &own).unwrap();
    let before = fs::read(&own).unwrap();
    let trap = bundle.rootfs().join("bin/trap");
    fs::write(&trap, "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(&trap, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    running(&bundle);
    let id = bundle.id();
    let exec = |words: &[&str]| finish(bundle.command_of(&own, "exec").arg(&id).args(words));
    for _ in 0..20 {
        // What is executed there is this very program, which does not understand its arguments.
        let outcome = exec(&["/bin/trap"]);
        assert_ne!(outcome.code, 0, "{outcome:?}");
    }
    // Long enough in there to be met: it waits for a log that nobody reads.
    let slow = bundle
        .command_of(&own, "exec")
        .args([&id, "/bin/trap", "--help"])
        .stdout(Stdio::null())
        .status();
    assert!(slow.is_ok());
    assert_eq!(exec(&["test", "-e", "/tmp/written"]).code, 1);
    assert_eq!(fs::read(&own).unwrap(), before);
    delete(&bundle);
}

#[test]
fn what_is_refused_says_why() {
    let Some(bundle) = idle() else { return };
    let id = bundle.id();
    let refused = |words: &[&str], texts: &[&str]| {
        let (verb, arguments) = words.split_first().unwrap();
        bundle.oci(verb, arguments).expect(1).complains_of(texts);
    };
    refused(&["create", "--systemd-cgroup", &id], &["cgroupfs"]);
    refused(&["create", "--rootless", "true", &id], &["root's privileges"]);
    refused(&["create", "--bundle", "/nowhere", &id], &["/nowhere"]);
    refused(&["start", &id], &["does not exist"]);
    let outcome = bundle.oci("create", &["../up"]);
    assert_eq!(outcome.code, 2);
    outcome.complains_of(&["../up"]);
    bundle
        .oci("exec", &["--user", "nobody", &id, "true"])
        .expect(2)
        .complains_of(&["UID"]);
}
