//! A pod's network behind the microVM wall: the interface that was made for it, with its addresses and routes, is the
//! guest's, and what is sent arrives, both ways.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::json;
use tests::oci_container::OciContainer;
use tests::{Finished, Wall, finish};

const POD: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const RESOLVED: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 77);

/// What the container serves, and how often it is asked for while it may still be starting.
const PORT: u16 = 8000;
const PATIENCE: Duration = Duration::from_secs(20);

/// In bytes: enough to need segments of several frames, and their acknowledgements.
const MUCH: usize = 256 << 10;

/// A network namespace, kept by a process of ours.
struct Namespace {
    holder: Child,
}

impl Namespace {
    fn new() -> Self {
        let mut holder = Command::new("setpriv")
            // It does not outlive a test that is killed.
            .args(["--pdeathsig", "KILL", "unshare", "--net", "sh", "-c"])
            .arg("busybox ip link set lo up && echo ready && exec sleep 86400")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(holder.stdout.take().unwrap())
            .read_line(&mut said)
            .unwrap();
        assert_eq!(said, "ready\n", "the namespace could not be made");
        Self { holder }
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }

    /// What a script in it writes.
    #[track_caller]
    fn shell(&self, script: &str) -> String {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path()));
        finish(command.args(["sh", "-ec", script])).expect(0).stdout
    }

    /// Does something in it, on a thread of its own.
    fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        let namespace = std::fs::File::open(self.path()).unwrap();
        thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // It has ended by itself if this fails.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// The pod's namespace with one interface, and the one at the other end of its cable.
fn networks() -> (Namespace, Namespace) {
    let (pod, outside) = (Namespace::new(), Namespace::new());
    outside.shell(&format!(
        "busybox ip link add name outside type veth
        busybox ip link set veth0 netns {}
        busybox ip address add {OUTSIDE}/24 dev outside
        busybox ip address add fd99::1/64 dev outside
        busybox ip link set outside up",
        pod.holder.id()
    ));
    pod.shell(&format!(
        "busybox ip link set veth0 name eth5
        busybox ip link set eth5 address 0a:00:00:00:00:02 mtu 1400
        busybox ip address add {POD}/24 broadcast 10.99.0.255 dev eth5
        busybox ip link set eth5 up
        busybox ip address add fd99::2/64 dev eth5
        busybox ip route add default via {OUTSIDE}
        busybox ip route add 192.0.2.0/24 dev eth5"
    ));
    (pod, outside)
}

/// A container behind the microVM wall in this network namespace, or in a new one.
fn container(namespace: Option<&str>, arguments: &[&str]) -> Option<OciContainer> {
    let mut container = OciContainer::behind(Wall::MicroVm, arguments)?;
    let namespaces = container.config["linux"]["namespaces"].as_array_mut().unwrap();
    let network = namespaces
        .iter_mut()
        .find(|namespace| namespace["type"] == "network")
        .unwrap();
    if let Some(path) = namespace {
        network["path"] = json!(path);
    }
    Some(container)
}

fn run_in(container: &OciContainer, script: &str) -> Finished {
    container.on("exec", &["sh", "-ec", script])
}

/// Addresses and routes without what is of the device alone: its number, and whether an IPv6 address is still to be, or
/// not to be, looked for among the neighbours.
fn addresses_and_routes(of: impl Fn(&str) -> String) -> Vec<String> {
    let said = of(
        "busybox ip -o address show dev eth5 | busybox sed 's/^[0-9]*: //'; busybox ip route; \
         busybox ip -6 route show table main",
    );
    let mut lines: Vec<String> = said
        .lines()
        .map(|line| line.replace(" tentative", "").replace(" flags 02", ""))
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|line| !line.is_empty())
        .collect();
    lines.sort();
    lines
}

/// A name server that knows one address of every name, until it is asked a question that is none.
fn serve_names(socket: &UdpSocket) {
    let mut room = [0; 512];
    loop {
        let (length, client) = socket.recv_from(&mut room).unwrap();
        if length < 12 {
            return;
        }
        let question = &room[..length];
        // The kind of record that is asked for: the four bytes at the end are kind and class.
        let is_for_ipv4 = question[length - 4..length - 2] == [0, 1];
        let mut answer = question.to_vec();
        (answer[2], answer[3]) = (0x81, 0x80);
        if is_for_ipv4 {
            answer[7] = 1;
            // The name of the question, A, IN, a time to live, four bytes.
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            answer.extend(RESOLVED.octets());
        }
        socket.send_to(&answer, client).unwrap();
    }
}

/// What the container's port answers, asked from here.
fn ask_pod() -> String {
    let begun = Instant::now();
    loop {
        let asked = TcpStream::connect((POD, PORT)).and_then(|mut stream| {
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        });
        match asked {
            Ok(answer) if !answer.is_empty() => return answer,
            _ if begun.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(100)),
            other => panic!("the container does not answer: {other:?}"),
        }
    }
}

#[test]
fn the_pods_interface_is_the_guests_and_traffic_goes_both_ways() {
    let serving = format!("while true; do echo served | busybox nc -l -p {PORT}; done");
    let (pod, outside) = networks();
    let Some(container) = container(Some(&pod.path()), &["sh", "-c", &serving]) else {
        return;
    };
    let before = addresses_and_routes(|script| pod.shell(script));
    let id = container.id();
    container.oci("run", &["--detach", &id]).expect(0);

    // The same in the guest.
    let within = |script: &str| run_in(&container, script).expect(0).stdout;
    assert_eq!(addresses_and_routes(within), before);
    assert!(
        before
            .iter()
            .any(|line| line.starts_with("default via 10.99.0.1"))
    );
    let identity =
        within("busybox ls /sys/class/net; busybox cat /sys/class/net/eth5/address /sys/class/net/eth5/mtu");
    assert_eq!(identity, "eth5\nlo\n0a:00:00:00:00:02\n1400\n");

    // In from outside, as to a published port; also by ICMP, in both families.
    assert_eq!(outside.inside(ask_pod).join().unwrap(), "served\n");
    outside.shell(&format!("busybox ping -c 3 -W 10 {POD}"));
    outside.shell("busybox ping -6 -c 3 -W 10 fd99::2");

    // Out, much of it.
    let server = outside.inside(|| {
        let listener = TcpListener::bind((OUTSIDE, 7000)).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&vec![b'x'; MUCH]).unwrap();
    });
    let received = within(&format!("busybox nc {OUTSIDE} 7000 </dev/null | busybox wc -c"));
    assert_eq!(received.trim(), MUCH.to_string());
    server.join().unwrap();

    // By UDP, to a name server.
    let socket = outside.inside(|| UdpSocket::bind((OUTSIDE, 53)).unwrap());
    let socket = socket.join().unwrap();
    let ended = socket.try_clone().unwrap();
    let names = thread::spawn(move || serve_names(&socket));
    let resolved = within(&format!("busybox nslookup pod.test {OUTSIDE}"));
    assert!(resolved.contains(&RESOLVED.to_string()), "{resolved}");

    container.on("delete", &["--force"]).expect(0);
    let left = pod.shell("cat /proc/net/dev");
    assert!(!left.contains("bhtap"), "{left}");
    ended.send_to(b"end", (OUTSIDE, 53)).unwrap();
    names.join().unwrap();
}

#[test]
fn a_pod_with_two_interfaces_has_both_under_their_names_and_sends_as_fast_as_it_may() {
    let (pod, outside) = networks();
    // A name that the guest's other device has at first.
    outside.shell(&format!(
        "busybox ip link add name second type veth
        busybox ip link set veth0 netns {}
        busybox ip address add 10.98.0.1/24 dev second
        busybox ip link set second up",
        pod.holder.id()
    ));
    pod.shell(
        "busybox ip link set veth0 name eth0
        busybox ip address add 10.98.0.2/24 dev eth0
        busybox ip link set eth0 up",
    );
    let Some(mut container) = container(Some(&pod.path()), &["sleep", "600"]) else {
        return;
    };
    const RATE: usize = 20_000;
    container.config["annotations"] =
        json!({ "dev.bulkhead.network.transmit_bytes_per_second": RATE.to_string() });
    let id = container.id();
    container.oci("run", &["--detach", &id]).expect(0);
    outside.shell(&format!("busybox ping -c 2 -W 10 {POD}"));
    outside.shell("busybox ping -c 2 -W 10 10.98.0.2");
    let listed = run_in(&container, "busybox ls /sys/class/net").expect(0).stdout;
    assert_eq!(listed, "eth0\neth5\nlo\n");

    // Of four seconds' worth the first is there at once.
    let server = outside.inside(|| {
        let listener = TcpListener::bind((OUTSIDE, 7000)).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let begun = Instant::now();
        let received = std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
        (received, begun.elapsed())
    });
    let bytes = 4 * RATE;
    run_in(
        &container,
        &format!("head -c {bytes} /dev/zero | busybox nc {OUTSIDE} 7000"),
    )
    .expect(0);
    let (received, took) = server.join().unwrap();
    assert_eq!(received, bytes as u64);
    assert!(took > Duration::from_millis(2500), "{took:?}");
    container.on("delete", &["--force"]).expect(0);
}

/// Its machine is cloned from a template, whose guest has asked for both pairs where there was no tap.
#[test]
fn a_pod_with_two_processors_has_two_pairs_of_queues() {
    const BYTES: usize = 10_000;
    let (pod, outside) = networks();
    let Some(mut container) = container(Some(&pod.path()), &["sleep", "600"]) else {
        return;
    };
    container.config["annotations"] = json!({ "dev.bulkhead.machine.vcpus": "2" });
    let id = container.id();
    container.oci("run", &["--detach", &id]).expect(0);
    let server = outside.inside(|| {
        let listener = TcpListener::bind((OUTSIDE, 7000)).unwrap();
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().unwrap();
            let received = std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
            assert_eq!(received, BYTES as u64);
        }
    });
    // From each processor, and so by each pair.
    let send = |processor| {
        format!("head -c {BYTES} /dev/zero | busybox taskset {processor} busybox nc {OUTSIDE} 7000")
    };
    let script = format!("busybox ls /sys/class/net/eth5/queues; {}; {}", send(1), send(2));
    assert_eq!(
        run_in(&container, &script).expect(0).stdout,
        "rx-0\nrx-1\ntx-0\ntx-1\n"
    );
    server.join().unwrap();
    container.on("delete", &["--force"]).expect(0);
    let left = pod.shell("cat /proc/net/dev");
    assert!(!left.contains("bhtap"), "{left}");
}

#[test]
fn a_pod_without_a_network_has_loopback_alone() {
    let Some(container) = container(None, &["sh", "-c", "busybox ls /sys/class/net; busybox ip route"])
    else {
        return;
    };
    let said = container.on("run", &[]).expect(0);
    assert_eq!(said.stdout, "lo\n");
}

#[test]
fn the_hosts_network_is_refused_by_its_path_too() {
    let Some(container) = container(Some("/proc/self/ns/net"), &["true"]) else {
        return;
    };
    let refused = container.on("run", &[]);
    assert_ne!(refused.code, 0);
    refused.complains_of(&["network namespace /proc/self/ns/net", "shared-kernel"]);
}
