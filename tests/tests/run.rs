//! `bulkhead run` behind both walls: each case is two tests of one body.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tests::terminal::Terminal;
use tests::{Installation, Wall, finish};

/// One test behind each wall.
macro_rules! behind_both_walls {
    ($($(#[$attribute:meta])* fn $name:ident($bulkhead:ident, $wall:ident) $body:block)*) => {
        mod microvm {
            $(#[test] $(#[$attribute])* fn $name() { super::$name(super::Wall::MicroVm); })*
        }
        mod shared_kernel {
            $(#[test] $(#[$attribute])* fn $name() { super::$name(super::Wall::SharedKernel); })*
        }
        $(fn $name($wall: Wall) {
            let Some($bulkhead) = Installation::for_wall($wall) else { return };
            $body
        })*
    };
}

behind_both_walls! {
    fn a_command_prints_and_its_exit_code_is_ours(bulkhead, wall) {
        let finished = bulkhead.shell(wall, &[], "echo out; echo err >&2; exit 7").expect(7);
        assert_eq!(finished.stdout, "out\n");
        assert_eq!(finished.stderr, "err\n");
    }

    fn output_that_cannot_be_written_is_not_lost_in_silence(bulkhead, wall) {
        let script = "echo no room for this || exit 3";
        let mut run = bulkhead.run_command(wall, &[], &["sh", "-c", script]);
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = run.stdout(full).stderr(Stdio::piped()).output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(complaint.contains("No space left on device"), "{complaint}");
        // The command itself writes to the host's descriptor, or it is we who do.
        let expected = if wall == Wall::SharedKernel { 3 } else { 125 };
        assert_eq!(output.status.code(), Some(expected), "{complaint}");
    }

    fn a_command_that_dies_of_a_signal_counts_from_128(bulkhead, wall) {
        // A process of its own: the init of a pid namespace cannot signal itself.
        bulkhead.shell(wall, &[], "sh -c 'kill -9 $$'; exit $?").expect(137);
    }

    fn the_kernel_is_the_hosts_only_behind_the_shared_wall(bulkhead, wall) {
        let script = "uname -r; cat /proc/sys/kernel/random/boot_id";
        let finished = bulkhead.shell(wall, &[], script).expect(0);
        let host = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let (release, boot_id) = finished.stdout.trim().split_once('\n').unwrap();
        let same = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim() == release;
        assert_eq!(same, wall == Wall::SharedKernel, "{release}");
        assert_eq!(host.trim() == boot_id, wall == Wall::SharedKernel, "{boot_id}");
    }

    fn input_reaches_the_command_and_ends(bulkhead, wall) {
        let mut run = bulkhead.run_command(wall, &["-i"], &["cat"]);
        let mut child = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"through the wall\n").unwrap();
        let mut output = String::new();
        child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(output, "through the wall\n");
    }

    fn without_i_the_input_is_empty(bulkhead, wall) {
        let finished = bulkhead.shell(wall, &[], "cat; echo end").expect(0);
        assert_eq!(finished.stdout, "end\n");
    }

    fn nothing_of_eight_megabytes_is_lost_either_way_when_the_command_exits_at_once(bulkhead, wall) {
        let megabytes = 8;
        let sent: Vec<u8> = (0..megabytes << 18).flat_map(|number: u32| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let file = bulkhead.scratch("input").join("sent");
        std::fs::write(&file, &sent).unwrap();
        let mut run = bulkhead.run_command(wall, &["-i"], &["cat"]);
        let received = bulkhead.scratch("output").join("received");
        run.stdin(std::fs::File::open(&file).unwrap()).stdout(std::fs::File::create(&received).unwrap());
        assert!(run.status().unwrap().success());
        assert!(std::fs::read(&received).unwrap() == sent, "what came back differs from what was sent");
    }

    fn environment_folder_and_user_are_as_asked(bulkhead, wall) {
        let options = ["-e", "GREETING=hello", "--workdir", "/tmp", "--user", "1000:1001"];
        let finished = bulkhead.shell(wall, &options, "echo $GREETING; pwd; id -u; id -g").expect(0);
        assert_eq!(finished.stdout, "hello\n/tmp\n1000\n1001\n");
    }

    fn a_volume_is_shared_both_ways_and_keeps_what_was_written(bulkhead, wall) {
        let folder = bulkhead.scratch("volume");
        std::fs::write(folder.join("from-host"), "host\n").unwrap();
        let volume = format!("{}:/data", folder.display());
        let finished = bulkhead.shell(wall, &["-v", &volume], "cat /data/from-host; echo inside > /data/from-inside").expect(0);
        assert_eq!(finished.stdout, "host\n");
        assert_eq!(std::fs::read_to_string(folder.join("from-inside")).unwrap(), "inside\n");
    }

    fn a_read_only_volume_refuses_writing(bulkhead, wall) {
        let folder = bulkhead.scratch("volume");
        let volume = format!("{}:/data:ro", folder.display());
        let finished = bulkhead.shell(wall, &["-v", &volume], "echo x > /data/file || echo refused").expect(0);
        assert_eq!(finished.stdout, "refused\n");
        assert!(!folder.join("file").exists());
    }

    fn a_single_file_is_a_volume_and_its_neighbours_are_not_seen(bulkhead, wall) {
        let folder = bulkhead.scratch("volume");
        std::fs::write(folder.join("shown"), "shown\n").unwrap();
        std::fs::write(folder.join("neighbour"), "hidden\n").unwrap();
        let volume = format!("{}:/etc/shown", folder.join("shown").display());
        let finished = bulkhead.shell(wall, &["-v", &volume], "cat /etc/shown; find / -xdev -name neighbour").expect(0);
        assert_eq!(finished.stdout, "shown\n");
    }

    fn exceeding_the_memory_limit_is_137(bulkhead, wall) {
        let hog = "dd if=/dev/zero of=/dev/null bs=200M count=1";
        bulkhead.shell(wall, &["--memory", "32m"], hog).expect(137);
    }

    fn the_number_of_processes_is_limited(bulkhead, wall) {
        let script = "for n in 1 2 3 4 5 6 7 8; do sleep 3 & done; echo started all";
        let finished = bulkhead.shell(wall, &["--pids-limit", "4"], script);
        assert!(!finished.stdout.contains("started all"), "{}", finished.stdout);
        assert!(finished.stderr.contains("fork"), "{}", finished.stderr);
    }

    fn a_terminal_is_one_and_has_our_size(bulkhead, wall) {
        let mut run = bulkhead.run_command(wall, &["-it"], &["sh", "-c", "tty; stty size; sleep 0.2"]);
        let (terminal, mut child) = Terminal::run(&mut run, 101, 37);
        let shown = terminal.read_to_end();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{shown}");
        assert!(shown.contains("/dev/pts/0") || shown.contains("/dev/console"), "{shown}");
        assert!(shown.contains("37 101"), "{shown}");
    }

    fn two_containers_of_one_image_see_none_of_each_others_writes(bulkhead, wall) {
        bulkhead.shell(wall, &[], "echo mine > /etc/written").expect(0);
        bulkhead.shell(wall, &[], "test ! -e /etc/written").expect(0);
    }

    fn a_command_that_does_not_exist_is_127(bulkhead, wall) {
        bulkhead.run(wall, &[], &["no-such-command"]).expect(127).complains_of(&["no-such-command"]);
    }

    fn a_command_that_cannot_be_executed_is_126(bulkhead, wall) {
        bulkhead.run(wall, &[], &["/etc/passwd"]).expect(126).complains_of(&["/etc/passwd"]);
    }

    fn sigterm_reaches_the_command(bulkhead, wall) {
        let script = "trap 'echo caught; exit 3' TERM; echo ready; while :; do sleep 1; done";
        let mut run = bulkhead.run_command(wall, &[], &["sh", "-c", script]);
        let mut child = run.stdout(Stdio::piped()).spawn().unwrap();
        let mut output = child.stdout.take().unwrap();
        let mut line = [0; 6];
        output.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"ready\n");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let mut rest = String::new();
        output.read_to_string(&mut rest).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(3));
        assert_eq!(rest, "caught\n");
    }

    fn a_third_interrupt_ends_a_command_that_ignores_them(bulkhead, wall) {
        let mut run = bulkhead.run_command(wall, &[], &["sh", "-c", "trap '' INT; echo ready; sleep 600"]);
        let mut child = run.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = [0; 6];
        child.stdout.take().unwrap().read_exact(&mut line).unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let begun = Instant::now();
        // Signals that come faster than a busy host takes them are one; an impatient person presses on.
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            assert!(begun.elapsed() < Duration::from_secs(120), "it still runs");
            rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
            std::thread::sleep(Duration::from_millis(500));
        };
        assert_eq!(status.code(), Some(137));
    }

    fn a_container_without_rm_is_kept_and_rm_discards_it(bulkhead, wall) {
        let name = bulkhead.fresh_name();
        let image = bulkhead.image();
        let mut run = bulkhead.bulkhead();
        run.args(["run", "--isolation", wall.word(), "--name", &name, &image, "sh", "-c", "exit 5"]);
        finish(&mut run).expect(5);
        let listed = finish(bulkhead.bulkhead().arg("ps")).expect(0);
        assert!(listed.stdout.contains(&name) && listed.stdout.contains("exited (5)"), "{}", listed.stdout);
        finish(bulkhead.bulkhead().args(["rm", &name])).expect(0);
        let listed = finish(bulkhead.bulkhead().args(["ps", "--quiet"])).expect(0);
        assert_eq!(listed.stdout, "");
    }

    fn a_killed_supervisor_leaves_nothing_that_rm_does_not_remove(bulkhead, wall) {
        let name = bulkhead.fresh_name();
        let image = bulkhead.image();
        let mut run = bulkhead.bulkhead();
        run.args(["run", "--isolation", wall.word(), "--name", &name, &image, "sh", "-c", "echo ready; sleep 600"]);
        let mut child = run.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = [0; 6];
        child.stdout.take().unwrap().read_exact(&mut line).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        finish(bulkhead.bulkhead().args(["rm", "--force", &name])).expect(0);
    }
}
