//! The real kernel's driver on a tap, in a network namespace that the test makes for itself.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use vmm::config::NetworkDevice;
use vmm::control::{Request, Response};
use vmm::devices::virtio::net::NetCounts;

use crate::kernel_boot;
use crate::program::{Machine, PATIENCE, Running, kvm_is_missing};
use crate::snapshot::{console, snapshot, stop};

/// More than one segment of the longest kind.
const LENGTH: usize = 100_000;

/// Runs `test` on a thread whose network, and that of the processes it starts, has nothing in it but what `test` makes.
/// It is gone with the thread.
pub(crate) fn in_a_network_of_its_own(test: impl FnOnce() + Send + 'static) {
    if kvm_is_missing() {
        return;
    }
    let outcome = thread::spawn(move || {
        let prepared = unshare(CloneFlags::CLONE_NEWNET)
            .map_err(io::Error::from)
            .and_then(|()| Command::new("ip").arg("-V").output())
            .and_then(|_| open_tun().map(drop));
        if let Err(error) = prepared {
            eprintln!("SKIPPED: no network namespace, no /dev/net/tun, or no `ip`: {error}");
            return;
        }
        test();
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn open_tun() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/net/tun")
}

/// A tap with the host's address and one queue.
pub(crate) fn tap() -> Vec<File> {
    let tap = vec![attach(0)];
    bring_up();
    tap
}

/// A queue of the tap.
pub(crate) fn attach(flags: libc::c_int) -> File {
    let tap = open_tun().unwrap();
    let mut request = request();
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | flags) as i16;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which is valid for the call.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    tap
}

/// Gives the tap the host's address.
pub(crate) fn bring_up() {
    ip("address add 192.0.2.1/24 dev tap-test");
    ip("link set tap-test up");
}

fn request() -> libc::ifreq {
    // SAFETY: All of `ifreq` is numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"tap-test") {
        *to = from.cast_signed();
    }
    request
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// A network device on `tap`, or without one, as a machine's only one.
pub(crate) fn device(mac: &str, tap: &[File]) -> Vec<NetworkDevice> {
    let descriptors: Vec<_> = tap.iter().map(AsRawFd::as_raw_fd).collect();
    let device = serde_json::json!({"mac": mac, "tap_descriptors": descriptors});
    vec![serde_json::from_value(device).unwrap()]
}

/// A machine whose guest waits for its link and then serves.
pub(crate) fn networked(mac: &str, tap: &[File]) -> Machine {
    let mut machine = kernel_boot::machine("network");
    machine.config.network_devices = device(mac, tap);
    machine.config.control_socket = Some(machine.path("control"));
    machine
}

/// Starts `machine`, which alone inherits `tap`: other tests start processes at the same time.
pub(crate) fn start(machine: &Machine, tap: &[File]) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead-vmm"));
    command.arg("--config").arg(machine.write_config());
    let queues: Vec<_> = tap.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: Between fork and exec there is one kind of call, which may be made there (signal-safety(7)).
    unsafe {
        command.pre_exec(move || {
            for queue in &queues {
                if libc::fcntl(*queue, libc::F_SETFD, 0) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    Running::spawn(&mut command).wait_for_first_run()
}

/// Waits for the guest's service.
pub(crate) fn connect(machine: &Machine) -> TcpStream {
    let deadline = Instant::now() + PATIENCE;
    let address = SocketAddr::from(([192, 0, 2, 2], 7));
    loop {
        // Until the guest has its address nobody answers.
        match TcpStream::connect_timeout(&address, Duration::from_secs(1)) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}\n{}", console(machine)),
        }
    }
}

/// Sends bytes to the guest and reads them back.
pub(crate) fn echo(mut stream: TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let sent: Vec<u8> = (0..LENGTH).map(|at| (at * 7 + at / 251) as u8).collect();
    stream.write_all(&sent).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    assert!(received == sent, "{} bytes came back", received.len());
}

pub(crate) fn counts(machine: &Machine) -> NetCounts {
    match machine.ask(Request::Statistics) {
        Response::Statistics { network, .. } => network[0],
        other => panic!("{other:?}"),
    }
}

/// Waits until the guest has got 20 frames more than `before`.
fn wait_for_frames(machine: &Machine, before: NetCounts) {
    let deadline = Instant::now() + PATIENCE;
    while counts(machine).received < before.received + 20 {
        assert!(Instant::now() < deadline, "{}", console(machine));
        thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn wait_for(machine: &Machine, line: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !console(machine).contains(line) {
        assert!(Instant::now() < deadline, "{}", console(machine));
        thread::sleep(Duration::from_millis(10));
    }
}

/// Whether the host's kernel leaves it to the tap's reader to cut segments (`ETHTOOL_GTSO` of ethtool.h).
fn is_offloaded() -> bool {
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let mut value = Value {
        command: 0x1e,
        data: 0,
    };
    let mut request = request();
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    // SAFETY: SIOCETHTOOL reads one `ifreq`, and through it reads and writes one `Value`; both are valid for the call.
    let result = unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCETHTOOL as libc::Ioctl,
            &raw mut request,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    value.data != 0
}

#[test]
fn a_guest_gives_back_what_the_host_sends_it_also_between_pauses() {
    in_a_network_of_its_own(|| {
        let tap = tap();
        let machine = networked("02:00:00:00:00:02", &tap);
        let running = start(&machine, &tap);
        let stream = connect(&machine);
        let before = counts(&machine);
        thread::scope(|scope| {
            scope.spawn(|| echo(stream));
            wait_for_frames(&machine, before);
            for _ in 0..5 {
                assert_eq!(machine.ask(Request::Pause), Response::Paused);
                thread::sleep(Duration::from_millis(50));
                assert_eq!(machine.ask(Request::Resume), Response::Resumed);
                thread::sleep(Duration::from_millis(100));
            }
        });
        assert!(is_offloaded(), "what the driver has chosen");
        let counts = counts(&machine);
        assert!(counts.received > 0 && counts.transmitted > 0, "{counts:?}");
        assert_eq!((counts.receive_dropped, counts.transmit_dropped), (0, 0));
        stop(&machine, running);
    });
}

#[test]
fn a_guest_made_without_a_tap_finds_its_link_where_it_goes_on() {
    in_a_network_of_its_own(|| {
        let template = networked("02:00:00:00:00:02", &[]);
        let running = template.start().wait_for_first_run();
        wait_for(&template, "init: the link is awaited");
        let directory = snapshot(&template, "snapshot");
        stop(&template, running);
        assert!(!console(&template).contains("init: the link is up"));
        for mac in ["02:00:00:00:00:03", "02:00:00:00:00:04"] {
            let tap = tap();
            let mut copy = networked(mac, &tap);
            copy.config.restore = Some(directory.clone());
            let running = start(&copy, &tap);
            assert!(is_offloaded(), "what the driver had chosen");
            echo(connect(&copy));
            stop(&copy, running);
        }
    });
}

#[test]
fn a_connection_goes_on_where_its_machine_does() {
    in_a_network_of_its_own(|| {
        let first_tap = tap();
        let original = networked("02:00:00:00:00:02", &first_tap);
        let running = start(&original, &first_tap);
        let stream = connect(&original);
        let before = counts(&original);
        let echoed = thread::spawn(|| echo(stream));
        wait_for_frames(&original, before);
        let directory = snapshot(&original, "snapshot");
        stop(&original, running);
        drop(first_tap);
        // As after a move to another host: another tap, of another interface, with the same addresses.
        let second_tap = tap();
        let mut copy = networked("02:00:00:00:00:02", &second_tap);
        copy.config.restore = Some(directory);
        let running = start(&copy, &second_tap);
        echoed.join().unwrap();
        stop(&copy, running);
    });
}
