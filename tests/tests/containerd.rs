//! containerd drives the OCI command line through its own shim, behind both walls.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use std::io::Write as _;
use std::process::Stdio;

use tests::containerd::Containerd;
use tests::terminal::Terminal;
use tests::{Wall, behind_both_walls, finish, guests_are_too_slow};

behind_both_walls! {
    a_command_prints_and_its_exit_code_is_ctrs,
    input_and_a_terminal_reach_the_command,
    a_task_lives_through_every_verb,
    the_processes_of_a_task_are_told_and_it_can_be_paused,
}

fn a_command_prints_and_its_exit_code_is_ctrs(wall: Wall) {
    if wall == Wall::MicroVm && guests_are_too_slow() {
        return;
    }
    let Some(containerd) = Containerd::start_behind(wall) else {
        return;
    };
    let mut run = containerd.run(&["--rm", "--env", "GREETING=hello", "--cwd", "/tmp"], "first");
    let finished = finish(run.args(["sh", "-c", "echo $GREETING; pwd; echo err >&2; exit 7"])).expect(7);
    assert_eq!(finished.stdout, "hello\n/tmp\n");
    assert_eq!(finished.stderr, "err\n");
    let mut run = containerd.run(&["--rm", "--read-only", "--seccomp"], "second");
    let script = "touch /file 2>/dev/null || echo refused; grep Seccomp: /proc/self/status";
    let finished = finish(run.args(["sh", "-c", script])).expect(0);
    assert_eq!(finished.stdout, "refused\nSeccomp:\t2\n");
    let mut run = containerd.run(&["--rm"], "third");
    finish(run.arg("no-such-command")).complains_of(&["no-such-command"]);
}

fn input_and_a_terminal_reach_the_command(wall: Wall) {
    if wall == Wall::MicroVm && guests_are_too_slow() {
        return;
    }
    let Some(containerd) = Containerd::start_behind(wall) else {
        return;
    };
    let mut run = containerd.run(&["--rm"], "reader");
    run.args(["wc", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = run.spawn().unwrap();
    child.stdin.take().unwrap().write_all(&[b'x'; 300_000]).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, b"300000\n");

    let mut run = containerd.run(&["--rm", "--tty"], "terminal");
    let script = "until [ \"$(stty size)\" = '37 101' ]; do sleep 0.1; done; tty; stty size";
    run.args(["timeout", "20", "sh", "-c", script]);
    let (terminal, mut child) = Terminal::run(&mut run, 101, 37);
    let shown = terminal.read_to_end();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{shown}");
    assert!(
        shown.contains("/dev/pts/0") && shown.contains("37 101"),
        "{shown}"
    );
}

fn a_task_lives_through_every_verb(wall: Wall) {
    let Some(containerd) = Containerd::start_behind(wall) else {
        return;
    };
    let mut run = containerd.run(
        &["--detach", "--memory-limit", "67108864", "--cpus", "0.5"],
        "task",
    );
    // Its output goes to the shim, which ctr leaves to itself.
    finish(run.args(["sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.1; done"])).expect(0);
    containerd.wait_for_state("task", "RUNNING");
    let exec = |words: &[&str]| {
        let mut command = containerd.ctr(&["tasks", "exec", "--exec-id", words[0], "task"]);
        finish(command.args(&words[1..]))
    };
    let finished = exec(&["one", "sh", "-c", "echo inside; exit 5"]).expect(5);
    assert_eq!(finished.stdout, "inside\n");
    let metrics = containerd.finish(&["tasks", "metrics", "task"]).expect(0).stdout;
    assert!(metrics.contains("memory"), "{metrics}");
    let limit = containerd
        .namespace()
        .limit("task", ("memory", "memory.limit_in_bytes"), "memory.max");
    match wall {
        Wall::SharedKernel => assert_eq!(limit, "67108864"),
        // The machine's, of which the guest's kernel needs a part.
        Wall::MicroVm => assert!(limit.parse::<u64>().unwrap() > 64 << 20, "{limit}"),
    }
    let quota = containerd
        .namespace()
        .limit("task", ("cpu", "cpu.cfs_quota_us"), "cpu.max");
    assert!(quota.starts_with("50000"), "{quota}");
    containerd
        .finish(&["tasks", "kill", "--signal", "TERM", "task"])
        .expect(0);
    containerd.wait_for_state("task", "STOPPED");
    let deleted = containerd.finish(&["tasks", "delete", "task"]).expect(0);
    deleted.complains_of(&["exit code 3"]);
    containerd.finish(&["containers", "delete", "task"]).expect(0);
}

fn the_processes_of_a_task_are_told_and_it_can_be_paused(wall: Wall) {
    if wall == Wall::MicroVm && guests_are_too_slow() {
        return;
    }
    let Some(containerd) = Containerd::start_behind(wall) else {
        return;
    };
    finish(containerd.run(&["--detach"], "task").args(["sleep", "600"])).expect(0);
    containerd.wait_for_state("task", "RUNNING");
    let processes = containerd.finish(&["tasks", "ps", "task"]).expect(0).stdout;
    assert_eq!(processes.lines().count(), 2, "{processes}");
    containerd.finish(&["tasks", "pause", "task"]).expect(0);
    containerd.wait_for_state("task", "PAUSED");
    containerd.finish(&["tasks", "resume", "task"]).expect(0);
    containerd.wait_for_state("task", "RUNNING");
    containerd
        .finish(&["tasks", "kill", "--signal", "KILL", "task"])
        .expect(0);
    containerd.wait_for_state("task", "STOPPED");
    containerd
        .finish(&["tasks", "delete", "task"])
        .expect(0)
        .complains_of(&["exit code 137"]);
    containerd.finish(&["containers", "delete", "task"]).expect(0);
}
