//! Podman drives the OCI command line, behind either wall.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use std::io::Write as _;
use std::process::Stdio;

use tests::podman::{IMAGE, Podman};
use tests::terminal::Terminal;
use tests::{Wall, behind_both_walls, finish};

behind_both_walls! {
    a_command_prints_and_its_exit_code_is_podmans,
    commands_that_cannot_be_run_are_127_and_126,
    input_reaches_the_command_and_ends,
    a_terminal_is_one_and_has_our_size,
    exec_runs_further_commands,
    a_container_is_logged_signalled_and_stopped,
    a_paused_container_does_nothing_until_it_is_resumed,
    the_containers_of_a_pod_share_their_network_and_not_their_files,
    limits_are_those_asked_for,
    exceeding_the_memory_limit_is_137,
    volumes_are_shared_and_ro_protects_them,
    files_are_copied_into_and_out_of_a_running_container,
    a_published_port_reaches_the_container,
    the_user_and_the_protections_are_those_asked_for,
    the_default_and_a_custom_seccomp_profile_apply,
    an_image_is_built_in_stages_whose_steps_run_in_containers,
}

fn a_command_prints_and_its_exit_code_is_podmans(wall: Wall) {
    let Some(podman) = Podman::install_behind(wall) else {
        return;
    };
    let finished = podman
        .shell(&["--network", "none"], "echo out; echo err >&2; exit 7")
        .expect(7);
    assert_eq!(finished.stdout, "out\n");
    assert_eq!(finished.stderr, "err\n");
}

fn commands_that_cannot_be_run_are_127_and_126(wall: Wall) {
    let Some(podman) = Podman::install_behind(wall) else {
        return;
    };
    let run = |command| podman.podman("run", &["--rm", "--network", "none", IMAGE, command]);
    run("no-such-command").expect(127);
    run("/etc/passwd").expect(126);
}

fn input_reaches_the_command_and_ends(wall: Wall) {
    let Some(podman) = Podman::install_behind(wall) else {
        return;
    };
    let mut run = podman.command("run");
    run.args(["--rm", "--interactive", "--network", "none", IMAGE, "wc", "-c"]);
    let mut child = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&[b'x'; 300_000]).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, b"300000\n");
}

fn a_terminal_is_one_and_has_our_size(wall: Wall) {
    let Some(podman) = Podman::install_behind(wall) else {
        return;
    };
    let mut run = podman.command("run");
    // Podman tells the size to a container that runs already.
    let script = "until [ \"$(stty size)\" = '37 101' ]; do sleep 0.1; done; tty; stty size";
    run.args([
        "--rm",
        "-it",
        "--network",
        "none",
        IMAGE,
        "timeout",
        "20",
        "sh",
        "-c",
        script,
    ]);
    let (terminal, mut child) = Terminal::run(&mut run, 101, 37);
    let shown = terminal.read_to_end();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{shown}");
    assert!(
        shown.contains("/dev/pts/0") && shown.contains("37 101"),
        "{shown}"
    );
}

fn exec_runs_further_commands(wall: Wall) {
    let Some(podman) = Podman::install_behind(wall) else {
        return;
    };
    podman.start(
        "host",
        &["--network", "none", "--env", "GREETING=hello"],
        "sleep 600",
    );
    let finished = podman
        .podman(
            "exec",
            &[
                "--env",
                "MORE=world",
                "--workdir",
                "/tmp",
                "host",
                "sh",
                "-c",
                "echo $GREETING $MORE; pwd; exit 5",
            ],
        )
        .expect(5);
    assert_eq!(finished.stdout, "hello world\n/tmp\n");
    let finished = podman
        .podman("exec", &["--user", "1000:1001", "host", "id"])
        .expect(0);
    assert!(
        finished.stdout.starts_with("uid=1000 gid=1001"),
        "{}",
        finished.stdout
    );
    podman.podman("exec", &["host", "no-such-command"]).expect(127);
    podman.podman("exec", &["host", "/etc/passwd"]).expect(126);

    let mut exec = podman.command("exec");
    exec.args(["--interactive", "host", "wc", "-c"]);
    let mut child = exec.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&[b'x'; 300_000]).unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"300000\n");

    let mut exec = podman.command("exec");
    let script = "until [ \"$(stty size)\" = '37 101' ]; do sleep 0.1; done; tty; stty size";
    exec.args(["-it", "host", "timeout", "20", "sh", "-c", script]);
    let (terminal, mut child) = Terminal::run(&mut exec, 101, 37);
    let shown = terminal.read_to_end();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{shown}");
    assert!(shown.contains("/dev/pts/") && shown.contains("37 101"), "{shown}");

    let detached = podman.podman(
        "exec",
        &["--detach", "host", "sh", "-c", "echo done > /tmp/detached"],
    );
    detached.expect(0);
    let script = "until [ -s /tmp/detached ]; do sleep 0.1; done; cat /tmp/detached";
    let finished = podman
        .podman("exec", &["host", "timeout", "20", "sh", "-c", script])
        .expect(0);
    assert_eq!(finished.stdout, "done\n");
}

fn a_container_is_logged_signalled_and_stopped(wall: Wall) {
    let Some(podman) = Podman::install_behind(wall) else {
        return;
    };
    let script =
        "trap 'echo usr1' USR1; trap 'echo term; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    podman.start("patient", &["--network", "none"], script);
    podman.wait_for_output("patient", "ready\n");
    podman.podman("kill", &["--signal", "USR1", "patient"]).expect(0);
    podman.wait_for_output("patient", "usr1\n");
    podman.podman("stop", &["patient"]).expect(0);
    assert_eq!(podman.inspect("patient", ".State.ExitCode"), "3");
    let logged = podman.podman("logs", &["patient"]).expect(0).stdout;
    assert_eq!(logged, "ready\nusr1\nterm\n");

    podman.podman("start", &["patient"]).expect(0);
    podman.wait_for_output("patient", "term\nready\n");
    podman.podman("kill", &["patient"]).expect(0);
    let finished = podman.podman("wait", &["patient"]).expect(0);
    assert_eq!(finished.stdout, "137\n");
}

fn a_paused_container_does_nothing_until_it_is_resumed(wall: Wall) {
    let Some(podman) = Podman::install_behind(wall) else {
        return;
    };
    podman.start("sleeper", &["--network", "none"], "sleep 600");
    podman.podman("pause", &["sleeper"]).expect(0);
    assert_eq!(podman.inspect("sleeper", ".State.Status"), "paused");
    let finished = podman.podman("exec", &["sleeper", "true"]);
    assert_ne!(finished.code, 0, "a command ran in a paused container");
    podman.podman("unpause", &["sleeper"]).expect(0);
    assert_eq!(podman.inspect("sleeper", ".State.Status"), "running");
    podman.podman("exec", &["sleeper", "true"]).expect(0);
    podman.podman("pause", &["sleeper"]).expect(0);
    podman
        .podman("rm", &["--force", "--time", "0", "sleeper"])
        .expect(0);
}

fn the_containers_of_a_pod_share_their_network_and_not_their_files(wall: Wall) {
    let Some(podman) = Podman::install_behind(wall) else {
        return;
    };
    let create = [
        "create",
        "--name",
        "pod",
        "--infra-image",
        IMAGE,
        "--infra-command",
        "sleep 600",
    ];
    let parent = format!("--cgroup-parent={}", podman.namespace().cgroup());
    let mut pod = podman.command("pod");
    finish(
        pod.args(create)
            .arg(&parent)
            .args(["--network", "none", "--hostname", "shared"]),
    )
    .expect(0);
    let mut server = podman.in_pod("pod", "server");
    server.args([
        "sh",
        "-c",
        "mkdir -p /www; echo served > /www/index.html; exec httpd -f -p 8080 -h /www",
    ]);
    finish(&mut server).expect(0);
    let mut client = podman.in_pod("pod", "client");
    client.args(["sleep", "600"]);
    finish(&mut client).expect(0);
    let script = "until wget -q -O - http://127.0.0.1:8080/; do sleep 0.1; done; hostname; ls -d /www || true; kill -0 1 && echo own-init";
    let talk = || {
        let talk = ["client", "timeout", "20", "sh", "-c", script];
        let finished = podman.podman("exec", &talk).expect(0);
        assert_eq!(finished.stdout, "served\nshared\nown-init\n");
    };
    talk();
    let shared = |kind: &str| {
        let link = |name: &str| {
            let link = format!("/proc/self/ns/{kind}");
            let finished = podman.podman("exec", &[name, "readlink", &link]);
            finished.expect(0).stdout
        };
        link("client") == link("server")
    };
    assert!(shared("net") && shared("ipc") && shared("uts") && !shared("pid") && !shared("mnt"));
    for name in ["server", "client"] {
        podman.podman("restart", &["--time", "0", name]).expect(0);
        talk();
    }
    podman
        .podman("pod", &["rm", "--force", "--time", "0", "pod"])
        .expect(0);
}

fn limits_are_those_asked_for(wall: Wall) {
    let Some(podman) = Podman::install_behind(wall) else {
        return;
    };
    let options = [
        "--network",
        "none",
        "--memory",
        "64m",
        "--pids-limit",
        "33",
        "--cpus",
        "0.5",
    ];
    // The files of the first generation of cgroups, or those of the second.
    let script = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes pids/pids.max cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us \
                  2>/dev/null || cat memory.max pids.max cpu.max";
    let finished = podman.shell(&options, script).expect(0);
    let numbers: Vec<&str> = finished.stdout.split_whitespace().collect();
    assert_eq!(numbers, ["67108864", "33", "50000", "100000"]);
}

fn exceeding_the_memory_limit_is_137(wall: Wall) {
    let Some(podman) = Podman::install_behind(wall) else {
        return;
    };
    let hog = "dd if=/dev/zero of=/dev/null bs=200M count=1";
    podman.start(
        "hog",
        &["--network", "none", "--memory", "32m"],
        &format!("exec {hog}"),
    );
    assert_eq!(podman.podman("wait", &["hog"]).expect(0).stdout, "137\n");
}

fn volumes_are_shared_and_ro_protects_them(wall: Wall) {
    let Some(podman) = Podman::install_behind(wall) else {
        return;
    };
    let folder = podman.namespace().folder("volume");
    std::fs::write(folder.join("from-host"), "host\n").unwrap();
    let (writable, protected) = (
        format!("{}:/rw", folder.display()),
        format!("{}:/ro:ro", folder.display()),
    );
    let options = [
        "--network",
        "none",
        "-v",
        &writable,
        "-v",
        &protected,
        "--tmpfs",
        "/scratch:size=1m",
        "-v",
        "named:/named",
    ];
    let script = "cat /rw/from-host; echo inside > /rw/from-inside; echo x 2>/dev/null > /ro/x || echo refused; \
                  df -k /scratch | tail -n 1 | awk '{ print $2 }'; echo kept > /named/file";
    let finished = podman.shell(&options, script).expect(0);
    assert_eq!(finished.stdout, "host\nrefused\n1024\n");
    assert_eq!(
        std::fs::read_to_string(folder.join("from-inside")).unwrap(),
        "inside\n"
    );
    let finished = podman
        .shell(&["--network", "none", "-v", "named:/named"], "cat /named/file")
        .expect(0);
    assert_eq!(finished.stdout, "kept\n");
    podman.podman("volume", &["rm", "named"]).expect(0);
}

fn files_are_copied_into_and_out_of_a_running_container(wall: Wall) {
    let Some(podman) = Podman::install_behind(wall) else {
        return;
    };
    let host = podman.namespace().path("/var/lib");
    std::fs::write(host.join("marker"), "the host's\n").unwrap();
    let volume = podman.namespace().folder("volume");
    let option = format!("{}:/srv/volume", volume.display());
    podman.start(
        "busy",
        &["--network", "none", "--volume", &option],
        "mkdir -p /var/lib; echo inside > /var/lib/file; ln -s /var/lib /link; echo ready; exec sleep 600",
    );
    podman.wait_for_output("busy", "ready\n");
    let scratch = podman.namespace().folder("copies");
    let outside = |name: &str| scratch.join(name).display().to_string();
    let copy = |from: &str, to: &str| podman.podman("cp", &[from, to]);

    let before = "cat /var/lib/file; test ! -e /var/lib/in";
    podman.podman("exec", &["busy", "sh", "-c", before]).expect(0);
    // A link leads where it does inside.
    copy("busy:/link/file", &outside("out")).expect(0);
    assert_eq!(std::fs::read_to_string(scratch.join("out")).unwrap(), "inside\n");
    let refused = copy("busy:/var/lib/marker", &outside("marker"));
    assert_ne!(refused.code, 0, "a file of the host was copied");
    assert!(!scratch.join("marker").exists());

    std::fs::write(scratch.join("in"), "outside\n").unwrap();
    copy(&outside("in"), "busy:/link/in").expect(0);
    copy(&outside("in"), "busy:/link/file").expect(0);
    copy(&outside("in"), "busy:/srv/volume/in").expect(0);
    assert!(!host.join("in").exists(), "a file of the host was written");
    assert_eq!(std::fs::read_to_string(volume.join("in")).unwrap(), "outside\n");
    // Also where the container has looked before, after a while.
    let script = "until grep -q outside /var/lib/in && grep -q outside /var/lib/file; do sleep 0.1; done; cat /srv/volume/in";
    let finished = podman
        .podman("exec", &["busy", "timeout", "30", "sh", "-c", script])
        .expect(0);
    assert_eq!(finished.stdout, "outside\n");
}

fn a_published_port_reaches_the_container(wall: Wall) {
    let Some(podman) = Podman::install_behind(wall) else {
        return;
    };
    podman.start(
        "server",
        &["--publish", "127.0.0.1:18080:80"],
        "mkdir /www; echo served > /www/index.html; exec httpd -f -p 80 -h /www",
    );
    let mut client = podman.namespace().command("timeout");
    let script = "until busybox wget -q -O - http://127.0.0.1:18080/; do sleep 0.1; done";
    let finished = finish(client.args(["20", "sh", "-c", script])).expect(0);
    assert_eq!(finished.stdout, "served\n");
    podman
        .podman("rm", &["--force", "--time", "0", "server"])
        .expect(0);
}

fn the_user_and_the_protections_are_those_asked_for(wall: Wall) {
    let Some(podman) = Podman::install_behind(wall) else {
        return;
    };
    let none = ["--network", "none"];
    // The streams can be opened again by whoever the program is.
    let script = "id -u; id -g > /dev/stdout; echo said > /dev/stderr";
    let finished = podman
        .shell(&["--user", "1000:1001", none[0], none[1]], script)
        .expect(0);
    assert_eq!(finished.stdout, "1000\n1001\n");
    assert_eq!(finished.stderr, "said\n");
    let script = "touch /file || echo refused; touch /tmp/file && echo written";
    let finished = podman.shell(&["--read-only", none[0], none[1]], script).expect(0);
    assert_eq!(finished.stdout, "refused\nwritten\n");
    let script = "grep -E 'Cap(Eff|Prm|Bnd)|NoNewPrivs' /proc/self/status";
    let options = [
        "--cap-drop",
        "all",
        "--cap-add",
        "KILL",
        "--security-opt",
        "no-new-privileges",
        none[0],
        none[1],
    ];
    let finished = podman.shell(&options, script).expect(0);
    let expected =
        "CapPrm:\t0000000000000020\nCapEff:\t0000000000000020\nCapBnd:\t0000000000000020\nNoNewPrivs:\t1\n";
    assert_eq!(finished.stdout, expected);
}

fn the_default_and_a_custom_seccomp_profile_apply(wall: Wall) {
    let Some(podman) = Podman::install_behind(wall) else {
        return;
    };
    let status = "grep Seccomp: /proc/self/status";
    let finished = podman.shell(&["--network", "none"], status).expect(0);
    assert_eq!(finished.stdout, "Seccomp:\t2\n");
    let profile = r#"{
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 },
            { "names": ["no_such_call"], "action": "SCMP_ACT_ERRNO" }
        ]
    }"#;
    let profile = podman.file("profile.json", profile);
    let option = format!("seccomp={}", profile.display());
    let script = "mkdir /folder; touch /file && echo written";
    let finished = podman
        .shell(&["--security-opt", &option, "--network", "none"], script)
        .expect(0);
    assert_eq!(finished.stdout, "written\n");
    finished.complains_of(&["/folder", "No space left on device"]);
    let options = ["--security-opt", "seccomp=unconfined", "--network", "none"];
    let finished = podman.shell(&options, status).expect(0);
    assert_eq!(finished.stdout, "Seccomp:\t0\n");
}

#[test]
fn statistics_and_processes_are_told() {
    let Some(podman) = Podman::install() else { return };
    podman.start(
        "busy",
        &["--network", "none", "--memory", "64m"],
        "sleep 601 & exec sleep 600",
    );
    let stats = podman
        .podman("stats", &["--no-stream", "--format", "json", "busy"])
        .expect(0);
    let stats: serde_json::Value = serde_json::from_str(&stats.stdout).unwrap();
    assert_eq!(stats[0]["pids"], "2", "{stats}");
    let memory = stats[0]["mem_usage"].as_str().unwrap();
    assert!(memory.contains('B') && !memory.starts_with("0B"), "{stats}");
    let top = podman.podman("top", &["busy", "args"]).expect(0).stdout;
    assert!(top.contains("sleep 600") && top.contains("sleep 601"), "{top}");
}

fn an_image_is_built_in_stages_whose_steps_run_in_containers(wall: Wall) {
    let Some(podman) = Podman::install_behind(wall) else {
        return;
    };
    let context = podman.namespace().folder("context");
    let text = format!(
        "FROM {IMAGE} AS builder\n\
         RUN mkdir /made && echo built by $(id -u) > /made/product && ln -s product /made/link\n\
         RUN test \"$(cat /made/product)\" = 'built by 0'\n\
         FROM {IMAGE}\n\
         ENV PLACE=/product\n\
         COPY --from=builder /made/product /product\n\
         RUN test ! -e /made && echo someone:x:1000:1000::/:/bin/sh >> /etc/passwd && chown someone $PLACE\n\
         USER someone\n\
         RUN test -w $PLACE && test \"$(id -un)\" = someone\n\
         CMD [\"cat\", \"/product\"]\n"
    );
    std::fs::write(context.join("Dockerfile"), text).unwrap();
    let mut build = podman.command("build");
    let options = [
        "--network",
        "none",
        "--ulimit",
        "nofile=1024:1024",
        "--tag",
        "localhost/built",
    ];
    finish(build.args(options).arg(&context)).expect(0);
    let finished = podman
        .podman("run", &["--rm", "--network", "none", "localhost/built"])
        .expect(0);
    assert_eq!(finished.stdout, "built by 0\n");
}
