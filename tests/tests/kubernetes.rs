//! Pods as a kubelet runs them, through containerd's implementation of the container runtime interface, behind both walls.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use std::time::{Duration, Instant};

use tests::containerd::{Containerd, IMAGE, PAUSE_IMAGE};
use tests::cri::Cri;
use tests::protobuf::{Fields, Message};
use tests::{Wall, behind_both_walls, finish};

behind_both_walls! {
    a_pod_of_two_containers_lives_as_a_kubelet_wants,
}

/// `ContainerState`.
const RUNNING: u64 = 1;
const EXITED: u64 = 2;

/// A pod with the port 80 published at `port`.
fn pod_configuration(containerd: &Containerd, port: u64) -> Message {
    let metadata = Message::new()
        .text(1, "pod")
        .text(2, "uid-of-pod")
        .text(3, "default");
    let mapping = Message::new().number(2, 80).number(3, port);
    let own_processes = Message::new().message(1, Message::new().number(2, 1));
    let linux = Message::new()
        .text(1, &containerd.namespace().cgroup())
        .message(2, own_processes);
    let logs = containerd.namespace().folder("logs");
    Message::new()
        .message(1, metadata)
        .text(2, "pod-name")
        .text(3, logs.to_str().unwrap())
        .message(5, mapping)
        .message(8, linux)
}

/// `LinuxContainerResources` of half a processor and this much memory.
fn resources(memory: u64) -> Message {
    Message::new()
        .number(1, 100_000)
        .number(2, 50_000)
        .number(4, memory)
}

fn container_configuration(name: &str, script: &str) -> Message {
    // A process namespace of its own, and the default filter of system calls.
    let security = Message::new()
        .message(3, Message::new().number(2, 1))
        .message(15, Message::new().number(1, 0));
    let linux = Message::new()
        .message(1, resources(64 << 20))
        .message(2, security);
    Message::new()
        .message(1, Message::new().text(1, name))
        .message(2, Message::new().text(1, IMAGE))
        .texts(3, &["sh", "-c", script])
        .message(6, Message::new().text(1, "GREETING").text(2, "hello"))
        .text(11, &format!("{name}.log"))
        .message(15, linux)
}

fn id(text: &str) -> Message {
    Message::new().text(1, text)
}

fn wait_for_state(cri: &Cri, container: &str, state: u64) -> Fields {
    let begun = Instant::now();
    loop {
        let status = cri.call("ContainerStatus", id(container)).message(1);
        if status.number(3) == state {
            return status;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{status:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn execute(cri: &Cri, container: &str, script: &str) -> (u64, String) {
    let request = id(container).texts(2, &["sh", "-c", script]).number(3, 30);
    let answer = cri.call("ExecSync", request);
    (answer.number(3), answer.text(1))
}

fn a_pod_of_two_containers_lives_as_a_kubelet_wants(wall: Wall) {
    let Some(containerd) = Containerd::start_behind(wall) else {
        return;
    };
    let cri = Cri::connect(&containerd.socket());
    let begun = Instant::now();
    while !(cri.has_image(IMAGE) && cri.has_image(PAUSE_IMAGE)) {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "the images are not known"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let sandbox = pod_configuration(&containerd, 18081);
    let pod = cri
        .call("RunPodSandbox", Message::new().message(1, sandbox.clone()))
        .text(1);
    let start = |name: &str, script: &str| {
        let request = id(&pod)
            .message(2, container_configuration(name, script))
            .message(3, sandbox.clone());
        let container = cri.call("CreateContainer", request).text(1);
        cri.call("StartContainer", id(&container));
        wait_for_state(&cri, &container, RUNNING);
        container
    };
    let server = start(
        "server",
        "mkdir /www; echo served > /www/index.html; exec httpd -f -p 80 -h /www",
    );
    let client = start(
        "client",
        "trap 'exit 3' TERM; echo $GREETING; while :; do sleep 0.1; done",
    );

    // One network, one host name, files and processes apart; and the port is the host's too.
    let script = "until wget -q -O - http://127.0.0.1/; do sleep 0.1; done; hostname; ls -d /www 2>/dev/null || echo apart; \
                  pgrep httpd || echo alone; exit 5";
    let (code, output) = execute(&cri, &client, script);
    assert_eq!((code, output.as_str()), (5, "served\npod-name\napart\nalone\n"));
    let address = cri
        .call("PodSandboxStatus", id(&pod))
        .message(1)
        .message(5)
        .text(1);
    for url in [format!("http://{address}/"), "http://127.0.0.1:18081/".to_owned()] {
        let mut wget = containerd.namespace().command("timeout");
        let finished = finish(wget.args(["20", "busybox", "wget", "-q", "-O", "-", &url])).expect(0);
        assert_eq!(finished.stdout, "served\n", "{url}");
    }

    // Behind the microVM wall the container's limits are in the guest.
    let script = "cd /sys/fs/cgroup; cat memory.max cpu.max 2>/dev/null || \
                  cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us";
    let limits = || execute(&cri, &client, script).1;
    assert!(limits().starts_with("67108864\n50000"), "{}", limits());
    cri.call(
        "UpdateContainerResources",
        id(&client).message(2, resources(96 << 20)),
    );
    assert!(limits().starts_with("100663296\n50000"), "{}", limits());

    let stats = cri.call("ContainerStats", id(&client)).message(1);
    assert!(
        stats.message(2).message(2).number(1) > 0,
        "no processor time: {stats:?}"
    );
    assert!(stats.message(3).message(2).number(1) > 0, "no memory: {stats:?}");

    cri.call("StopContainer", id(&client).number(2, 30));
    assert_eq!(wait_for_state(&cri, &client, EXITED).number(7), 3);
    let log = containerd.namespace().folder("logs").join("client.log");
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.ends_with("stdout F hello\n"), "{log}");
    cri.call("RemoveContainer", id(&client));

    // A pod that is stopped takes its containers with it.
    cri.call("StopPodSandbox", id(&pod));
    assert_eq!(wait_for_state(&cri, &server, EXITED).number(7), 137);
    cri.call("RemoveContainer", id(&server));
    cri.call("RemovePodSandbox", id(&pod));
}
