//! The real kernel in a snapshot: what a guest was doing goes on in each machine made from it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use vmm::config::VsockConfig;

use crate::kernel_boot;
use crate::program::{Machine, PATIENCE, kvm_is_missing};
use crate::snapshot::{console, snapshot, stop};

/// How long the machine is no more before it goes on. Its clock must not show it.
const AWAY: Duration = Duration::from_secs(3);

/// A line of the guest's that says how far a CPU has counted.
#[derive(Debug)]
struct Count {
    cpu: usize,
    number: u64,
    milliseconds: u64,
}

/// All such lines of a console that are whole.
fn counts(console: &str) -> Vec<Count> {
    let complete = console.rsplit_once('\n').map_or("", |(complete, _)| complete);
    complete
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.trim_end().strip_prefix("init: cpu ")?.split(' ').collect();
            let [
                cpu,
                "number",
                number,
                "at",
                milliseconds,
                "ms,",
                "registers",
                registers,
            ] = fields[..]
            else {
                panic!("{line:?}")
            };
            assert_eq!(registers, "hold", "{line}");
            Some(Count {
                cpu: cpu.parse().unwrap(),
                number: number.parse().unwrap(),
                milliseconds: milliseconds.parse().unwrap(),
            })
        })
        .collect()
}

fn of_cpu(counts: &[Count], cpu: usize) -> Vec<&Count> {
    counts.iter().filter(|count| count.cpu == cpu).collect()
}

/// Waits until each CPU has counted `further` on `machine`'s console.
fn wait_for_counts(machine: &Machine, further: usize) {
    let deadline = Instant::now() + PATIENCE;
    while (0..usize::from(machine.config.vcpus))
        .any(|cpu| of_cpu(&counts(&console(machine)), cpu).len() < further)
    {
        assert!(
            Instant::now() < deadline,
            "the guest does not count:\n{}",
            console(machine)
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn listen(machine: &Machine) -> UnixListener {
    UnixListener::bind(machine.path("vsock_1000")).unwrap()
}

/// Waits for the guest's connection and what it says first.
fn hear(listener: &UnixListener) -> (String, BufReader<UnixStream>) {
    let (stream, _) = listener.accept().unwrap();
    let mut stream = BufReader::new(stream);
    let mut word = String::new();
    stream.read_line(&mut word).unwrap();
    (word, stream)
}

/// A client of the guest's service that has been answered once.
fn greet(machine: &Machine) -> BufReader<UnixStream> {
    let stream = UnixStream::connect(machine.path("vsock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut client = BufReader::new(stream);
    let mut line = String::new();
    client.get_mut().write_all(b"CONNECT 1024\n").unwrap();
    client.read_line(&mut line).unwrap();
    assert!(line.starts_with("OK "), "{line:?}");
    line.clear();
    client.get_mut().write_all(b"hello\n").unwrap();
    client.read_line(&mut line).unwrap();
    assert_eq!(line, "hello yourself\n");
    client
}

/// A machine whose guest counts, connects and serves.
fn serving(vcpus: u8) -> Machine {
    // The clock that KVM keeps: a KVM that emulates kernel mode cannot set the time stamp counter back.
    let mut machine = kernel_boot::machine("serve");
    machine.config.command_line = format!("clocksource=kvm-clock {}", machine.config.command_line);
    machine.config.vcpus = vcpus;
    machine.config.control_socket = Some(machine.path("control"));
    machine.config.vsock = Some(VsockConfig {
        guest_cid: 3,
        socket: machine.path("vsock"),
    });
    machine
}

fn restored(vcpus: u8, snapshot: &Path) -> Machine {
    let mut machine = serving(vcpus);
    machine.config.kernel = machine.path("no kernel");
    machine.config.restore = Some(snapshot.to_owned());
    machine
}

fn a_guest_goes_on_twice(vcpus: u8) {
    if kvm_is_missing() {
        return;
    }
    let original = serving(vcpus);
    let listener = listen(&original);
    let running = original.start().wait_for_first_run();
    let (word, _connection) = hear(&listener);
    assert_eq!(word, "ready\n");
    let _client = greet(&original);
    wait_for_counts(&original, 3);
    let directory = snapshot(&original, "snapshot");
    stop(&original, running);
    let before = console(&original);
    std::thread::sleep(AWAY);

    for copy in [restored(vcpus, &directory), restored(vcpus, &directory)] {
        let listener = listen(&copy);
        let running = copy.start().wait_for_first_run();
        // The service takes a client at once, while the guest hears that all its connections are gone.
        let _client = greet(&copy);
        let (word, _connection) = hear(&listener);
        assert_eq!(word, "again\n");
        wait_for_counts(&copy, 5);
        let _another = greet(&copy);
        stop(&copy, running);
        let after = console(&copy);
        assert!(
            after.contains("the connection ended with Err(Os { code: 104"),
            "{after}"
        );
        // The last line may have been cut in two.
        let both = counts(&(before.clone() + &after));
        for cpu in 0..usize::from(vcpus) {
            let counted = of_cpu(&both, cpu);
            let numbers: Vec<u64> = counted.iter().map(|count| count.number).collect();
            assert_eq!(
                numbers,
                (0..numbers.len() as u64).collect::<Vec<_>>(),
                "cpu {cpu}"
            );
            let longest = counted
                .windows(2)
                .map(|pair| pair[1].milliseconds.checked_sub(pair[0].milliseconds))
                .max();
            let longest = longest.flatten().map(Duration::from_millis).unwrap();
            assert!(
                longest < AWAY,
                "cpu {cpu} has seen {longest:?} pass:\n{before}\n---\n{after}"
            );
        }
    }
}

#[test]
fn a_guest_with_one_vcpu_goes_on_twice() {
    a_guest_goes_on_twice(1);
}

#[test]
fn a_guest_with_two_vcpus_goes_on_twice() {
    a_guest_goes_on_twice(2);
}
