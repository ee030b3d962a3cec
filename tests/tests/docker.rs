//! Docker Engine drives the OCI command line, through containerd's shim, behind either wall.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use std::io::Write as _;
use std::process::Stdio;

use tests::docker::{Docker, IMAGE};
use tests::terminal::Terminal;
use tests::{Wall, behind_both_walls, finish, guests_are_too_slow};

behind_both_walls! {
    commands_are_run_and_their_exit_codes_are_dockers,
    a_container_is_entered_paused_signalled_and_stopped,
    limits_and_protections_are_those_asked_for,
    files_and_networks_are_shared_as_asked_for,
}

const NO_NETWORK: [&str; 2] = ["--network", "none"];

fn commands_are_run_and_their_exit_codes_are_dockers(wall: Wall) {
    let Some(docker) = Docker::start(wall) else { return };
    let finished = docker
        .shell(&NO_NETWORK, "echo out; echo err >&2; exit 7")
        .expect(7);
    assert_eq!(
        (finished.stdout.as_str(), finished.stderr.as_str()),
        ("out\n", "err\n")
    );
    let run = |command| docker.docker("run", &["--rm", NO_NETWORK[0], NO_NETWORK[1], IMAGE, command]);
    run("no-such-command")
        .expect(127)
        .complains_of(&["no-such-command"]);
    run("/etc/passwd").expect(126).complains_of(&["/etc/passwd"]);

    let mut run = docker.command("run");
    run.args(["--rm", "--interactive"])
        .args(NO_NETWORK)
        .args([IMAGE, "wc", "-c"]);
    let mut child = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&[b'x'; 300_000]).unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"300000\n");

    let mut run = docker.command("run");
    let script = "until [ \"$(stty size)\" = '37 101' ]; do sleep 0.1; done; tty; stty size";
    run.args(["--rm", "-it"])
        .args(NO_NETWORK)
        .args([IMAGE, "timeout", "20", "sh", "-c", script]);
    let (terminal, mut child) = Terminal::run(&mut run, 101, 37);
    let shown = terminal.read_to_end();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{shown}");
    assert!(
        shown.contains("/dev/pts/0") && shown.contains("37 101"),
        "{shown}"
    );

    let finished = docker
        .shell(
            &["--init", NO_NETWORK[0], NO_NETWORK[1]],
            "ps -o pid,comm; exit 5",
        )
        .expect(5);
    assert!(finished.stdout.contains("1 docker-init"), "{}", finished.stdout);
}

fn a_container_is_entered_paused_signalled_and_stopped(wall: Wall) {
    if wall == Wall::MicroVm && guests_are_too_slow() {
        return;
    }
    let Some(docker) = Docker::start(wall) else { return };
    let script =
        "trap 'echo usr1' USR1; trap 'echo term; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    docker.start_container("patient", &NO_NETWORK, script);
    docker.wait_for_output("patient", "ready\n");
    let exec = |arguments: &[&str]| docker.docker("exec", arguments);
    let words = [
        "--env",
        "GREETING=hello",
        "--workdir",
        "/tmp",
        "patient",
        "sh",
        "-c",
        "echo $GREETING; pwd; exit 5",
    ];
    assert_eq!(exec(&words).expect(5).stdout, "hello\n/tmp\n");
    let finished = exec(&["--user", "1000:1001", "patient", "id"]).expect(0);
    assert!(
        finished.stdout.starts_with("uid=1000 gid=1001"),
        "{}",
        finished.stdout
    );
    // This version of Docker has this one code for both, whatever the runtime says.
    exec(&["patient", "no-such-command"]).expect(126);
    let mut exec = docker.command("exec");
    exec.args(["--interactive", "patient", "wc", "-c"]);
    let mut child = exec.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&[b'x'; 300_000]).unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"300000\n");

    docker.docker("pause", &["patient"]).expect(0);
    assert_eq!(docker.inspect("patient", ".State.Status"), "paused");
    docker.docker("unpause", &["patient"]).expect(0);
    docker.docker("kill", &["--signal", "USR1", "patient"]).expect(0);
    docker.wait_for_output("patient", "usr1\n");
    let top = docker
        .docker("top", &["patient", "-o", "pid,args"])
        .expect(0)
        .stdout;
    // What the host runs of it: its processes, or what stands for them there.
    let shown = match wall {
        Wall::SharedKernel => "echo ready",
        Wall::MicroVm => "bulkhead-attendant",
    };
    assert!(
        top.lines().nth(1).is_some_and(|line| line.contains(shown)),
        "{top}"
    );
    docker.docker("stop", &["patient"]).expect(0);
    assert_eq!(docker.inspect("patient", ".State.ExitCode"), "3");
    let logged = docker.docker("logs", &["patient"]).expect(0).stdout;
    assert_eq!(logged, "ready\nusr1\nterm\n");

    docker.docker("start", &["patient"]).expect(0);
    docker.wait_for_output("patient", "term\nready\n");
    docker.docker("kill", &["patient"]).expect(0);
    assert_eq!(docker.docker("wait", &["patient"]).expect(0).stdout, "137\n");
}

fn limits_and_protections_are_those_asked_for(wall: Wall) {
    let Some(docker) = Docker::start(wall) else { return };
    let limits = [
        "--memory",
        "64m",
        "--pids-limit",
        "33",
        "--cpus",
        "0.5",
        NO_NETWORK[0],
        NO_NETWORK[1],
    ];
    // Version 1 in a container on such a host, version 2 in a guest.
    let script = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes memory.max 2>/dev/null; \
                  cat pids/pids.max pids.max 2>/dev/null; cat cpu/cpu.cfs_quota_us cpu.max 2>/dev/null; true";
    let finished = docker.shell(&limits, script).expect(0);
    let numbers: Vec<&str> = finished.stdout.split_whitespace().take(3).collect();
    assert_eq!(numbers, ["67108864", "33", "50000"], "{}", finished.stdout);

    let hog = ["--memory", "32m", NO_NETWORK[0], NO_NETWORK[1]];
    docker
        .shell(&hog, "exec dd if=/dev/zero of=/dev/null bs=200M count=1")
        .expect(137);

    let options = [
        "--user",
        "1000:1001",
        "--read-only",
        "--cap-drop",
        "all",
        "--security-opt",
        "no-new-privileges",
        NO_NETWORK[0],
        NO_NETWORK[1],
    ];
    let script = "id -u; id -g > /dev/stdout; touch /tmp/file 2>/dev/null || echo refused; \
                  grep -E 'CapBnd|NoNewPrivs|Seccomp:' /proc/self/status";
    let finished = docker.shell(&options, script).expect(0);
    let expected = "1000\n1001\nrefused\nCapBnd:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n";
    assert_eq!(finished.stdout, expected);
}

fn files_and_networks_are_shared_as_asked_for(wall: Wall) {
    if wall == Wall::MicroVm && guests_are_too_slow() {
        return;
    }
    let Some(docker) = Docker::start(wall) else { return };
    let folder = docker.namespace().folder("volume");
    std::fs::write(folder.join("from-host"), "host\n").unwrap();
    let (writable, protected) = (
        format!("{}:/rw", folder.display()),
        format!("{}:/ro:ro", folder.display()),
    );
    let options = [
        "-v",
        &writable,
        "-v",
        &protected,
        "-v",
        "named:/named",
        NO_NETWORK[0],
        NO_NETWORK[1],
    ];
    let script = "cat /rw/from-host; echo inside > /rw/from-inside; echo x 2>/dev/null > /ro/x || echo refused; \
                  echo kept > /named/file";
    let finished = docker.shell(&options, script).expect(0);
    assert_eq!(finished.stdout, "host\nrefused\n");
    assert_eq!(
        std::fs::read_to_string(folder.join("from-inside")).unwrap(),
        "inside\n"
    );
    let finished = docker.shell(
        &["-v", "named:/named", NO_NETWORK[0], NO_NETWORK[1]],
        "cat /named/file",
    );
    assert_eq!(finished.expect(0).stdout, "kept\n");

    docker.start_container(
        "server",
        &["--publish", "127.0.0.1:18080:80"],
        "mkdir /www; echo served > /www/index.html; exec httpd -f -p 80 -h /www",
    );
    let mut client = docker.namespace().command("timeout");
    let script = "until busybox wget -q -O - http://127.0.0.1:18080/; do sleep 0.1; done";
    assert_eq!(
        finish(client.args(["20", "sh", "-c", script])).expect(0).stdout,
        "served\n"
    );
    // From one container to another, over Docker's bridge.
    let address = docker.inspect("server", ".NetworkSettings.IPAddress");
    let finished = docker
        .shell(&[], &format!("wget -q -O - http://{address}/"))
        .expect(0);
    assert_eq!(finished.stdout, "served\n");
}

#[test]
fn an_image_is_built_by_steps_that_run_in_containers() {
    let Some(docker) = Docker::start(Wall::SharedKernel) else {
        return;
    };
    let context = docker.namespace().folder("context");
    let text = format!(
        "FROM {IMAGE} AS builder\n\
         RUN mkdir /made && echo built by $(id -u) > /made/product\n\
         FROM {IMAGE}\n\
         COPY --from=builder /made/product /product\n\
         RUN test ! -e /made && test \"$(cat /product)\" = 'built by 0'\n\
         CMD [\"cat\", \"/product\"]\n"
    );
    std::fs::write(context.join("Dockerfile"), text).unwrap();
    let mut build = docker.command("build");
    // The classic builder makes its containers below the daemon's cgroup too.
    build
        .env("DOCKER_BUILDKIT", "0")
        .args(["--network", "none", "--tag", "built"]);
    finish(build.arg(&context)).expect(0);
    let finished = docker
        .docker("run", &["--rm", NO_NETWORK[0], NO_NETWORK[1], "built"])
        .expect(0);
    assert_eq!(finished.stdout, "built by 0\n");
}
