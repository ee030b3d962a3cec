//! The real kernel's driver with a pair of queues for each vCPU, on a tap with as many.

use std::fs::{self, File};
use std::thread;
use std::time::{Duration, Instant};

use vmm::control::{Request, Response};

use crate::kernel_network::{
    attach, bring_up, connect, counts, echo, in_a_network_of_its_own, networked, start, wait_for,
};
use crate::program::{Machine, PATIENCE, Running};
use crate::snapshot::{console, snapshot, stop};

const PAIRS: u8 = 2;

/// How often the thread of a pair has to have slept in between for it to have moved frames of a connection.
const TURNS: u64 = 10;

fn tap() -> Vec<File> {
    let tap = (0..PAIRS).map(|_| attach(libc::IFF_MULTI_QUEUE)).collect();
    bring_up();
    tap
}

fn machine(mac: &str, tap: &[File]) -> Machine {
    let mut machine = networked(mac, tap);
    machine.config.vcpus = PAIRS;
    machine.config.network_devices[0].queue_pairs = PAIRS;
    machine
}

/// How often each thread of the network device has slept: those of the pairs in their order, and the control queue's.
fn turns(running: &Running) -> Vec<u64> {
    let mut threads: Vec<(u32, u64)> = fs::read_dir(format!("/proc/{}/task", running.process_id()))
        .unwrap()
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let status = fs::read_to_string(path.join("status")).unwrap();
            let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            let sleeps = field("voluntary_ctxt_switches:").trim().parse().unwrap();
            let number = field("Pid:").trim().parse().unwrap();
            (field("Name:").trim() == "net").then_some((number, sleeps))
        })
        .collect();
    threads.sort_unstable();
    threads.into_iter().map(|(_, sleeps)| sleeps).collect()
}

/// Has connections go both ways until every pair has had its part.
fn assert_all_pairs_serve(machine: &Machine, running: &Running) {
    let deadline = Instant::now() + PATIENCE;
    // A thread has its name only when it runs.
    let before = loop {
        let turns = turns(running);
        if turns.len() == usize::from(PAIRS) + 1 {
            break turns;
        }
        assert!(Instant::now() < deadline, "{turns:?}");
        thread::sleep(Duration::from_millis(1));
    };
    loop {
        let connections: Vec<_> = (0..4).map(|_| connect(machine)).collect();
        thread::scope(|scope| {
            for connection in connections {
                scope.spawn(|| echo(connection));
            }
        });
        let moved: Vec<u64> = turns(running)
            .iter()
            .zip(&before)
            .map(|(now, then)| now - then)
            .collect();
        if moved[..usize::from(PAIRS)].iter().all(|turns| *turns >= TURNS) {
            break;
        }
        assert!(Instant::now() < deadline, "{moved:?}");
    }
    let counts = counts(machine);
    assert_eq!((counts.receive_dropped, counts.transmit_dropped), (0, 0));
}

#[test]
fn each_cpu_has_a_pair_of_queues_and_all_of_them_carry_frames() {
    in_a_network_of_its_own(|| {
        let tap = tap();
        let machine = machine("02:00:00:00:00:02", &tap);
        let running = start(&machine, &tap);
        wait_for(&machine, "init: its queues are rx-0 rx-1 tx-0 tx-1");
        assert_all_pairs_serve(&machine, &running);
        for _ in 0..3 {
            assert_eq!(machine.ask(Request::Pause), Response::Paused);
            thread::sleep(Duration::from_millis(50));
            assert_eq!(machine.ask(Request::Resume), Response::Resumed);
        }
        assert_all_pairs_serve(&machine, &running);
        stop(&machine, running);
    });
}

#[test]
fn copies_of_a_machine_without_a_tap_go_on_with_all_pairs() {
    in_a_network_of_its_own(|| {
        let template = machine("02:00:00:00:00:02", &[]);
        let running = template.start().wait_for_first_run();
        wait_for(&template, "init: the link is awaited");
        assert!(console(&template).contains("init: its queues are rx-0 rx-1 tx-0 tx-1"));
        let directory = snapshot(&template, "snapshot");
        stop(&template, running);
        for mac in ["02:00:00:00:00:03", "02:00:00:00:00:04"] {
            let tap = tap();
            let mut copy = machine(mac, &tap);
            copy.config.restore = Some(directory.clone());
            let running = start(&copy, &tap);
            assert_all_pairs_serve(&copy, &running);
            stop(&copy, running);
        }
        let mut other = machine("02:00:00:00:00:05", &[]);
        other.config.network_devices[0].queue_pairs = PAIRS + 1;
        other.config.restore = Some(directory);
        let refused = other.start().finish();
        let message = &refused.exit().reason.message;
        assert!(
            message.ends_with("net with 2 pairs of queues, and this machine is to have console, rng, balloon, net with 3 pairs of queues"),
            "{message}"
        );
    });
}
