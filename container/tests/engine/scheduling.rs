//! When and where programs run, and what the kernel tells them it is.

use container::{CreateError, Stdio};
use serde_json::{Value, json};

use crate::bundle::{TestBundle, chain, files, wait};
use crate::wall::Wall;

crate::tests!(
    a_program_has_its_scheduler,
    a_program_has_its_io_priority,
    a_program_of_32_bits_sees_such_a_machine,
    a_program_has_its_memory_policy,
    a_node_that_is_not_there_is_told,
    a_joining_process_runs_where_it_is_told,
);

/// Fields of /proc/self/stat (proc_pid_stat(5)) behind the command's name: nice is the 19th of all, the real-time
/// priority the 40th and the policy the 41st.
fn nice_priority_and_policy(stat: &str) -> [i32; 3] {
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    [19, 40, 41].map(|number| fields[number - 3].trim().parse().unwrap())
}

fn a_program_has_its_scheduler() {
    // A policy without nice values leaves the one there was.
    let own = rustix::process::getpriority_process(None).unwrap();
    for (scheduler, expected) in [
        (json!({ "policy": "SCHED_OTHER", "nice": 3 }), [3, 0, 0]),
        (json!({ "policy": "SCHED_BATCH", "nice": -2 }), [-2, 0, 3]),
        (json!({ "policy": "SCHED_IDLE" }), [own, 0, 5]),
        (json!({ "policy": "SCHED_FIFO", "priority": 4 }), [own, 4, 1]),
        (
            json!({ "policy": "SCHED_RR", "priority": 1, "flags": ["SCHED_FLAG_RESET_ON_FORK"] }),
            [own, 1, 2],
        ),
        (
            json!({ "policy": "SCHED_DEADLINE", "runtime": 10_000_000, "deadline": 100_000_000,
                    "period": 200_000_000, "flags": ["SCHED_FLAG_DL_OVERRUN"] }),
            [own, 0, 6],
        ),
    ] {
        let is_real_time = expected[1] != 0;
        if is_real_time && std::path::Path::new("/sys/fs/cgroup/cpu/cpu.rt_runtime_us").exists() {
            println!(
                "SKIPPED: {scheduler}: the cpu controller shares real time out among cgroups, and ours has none"
            );
            continue;
        }
        let mut bundle = TestBundle::command(&["cat", "/proc/self/stat"]);
        bundle.config["process"]["scheduler"] = scheduler.clone();
        assert_eq!(
            nice_priority_and_policy(&bundle.output()),
            expected,
            "{scheduler}"
        );
        std::fs::remove_dir_all(&bundle.folder).unwrap();
    }
}

fn a_program_has_its_io_priority() {
    for (class, level, expected) in [
        ("IOPRIO_CLASS_RT", 2, "realtime: prio 2\n"),
        ("IOPRIO_CLASS_BE", 5, "best-effort: prio 5\n"),
        ("IOPRIO_CLASS_IDLE", 0, "idle\n"),
    ] {
        let mut bundle = TestBundle::command(&["/bin/busybox", "ionice", "-p", "1"]);
        bundle.config["process"]["ioPriority"] = json!({ "class": class, "priority": level });
        assert_eq!(bundle.output(), expected);
        std::fs::remove_dir_all(&bundle.folder).unwrap();
    }
}

/// What a process that joins the container says.
fn said_by_joining(bundle: &TestBundle, change: Value, arguments: &[&str]) -> String {
    let (stdio, _output) = files(&bundle.folder);
    let mut container = bundle
        .create(stdio)
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    container.start().unwrap();
    let mut process = serde_json::to_value(container.configured_process().unwrap()).unwrap();
    process["args"] = json!(arguments);
    for (key, value) in change.as_object().unwrap() {
        process[key] = value.clone();
    }
    let process = serde_json::from_value(process).unwrap();
    let folder = bundle.folder.join("joining");
    std::fs::create_dir(&folder).unwrap();
    let (stdio, output) = files(&folder);
    let executed = container
        .exec(&process, stdio)
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    let outcome = output.outcome(executed.wait().unwrap());
    assert_eq!(outcome.code, 0, "{outcome:?}");
    container.delete(true).unwrap();
    wait(&container);
    outcome.stdout
}

fn a_program_of_32_bits_sees_such_a_machine() {
    let machine = ["/bin/busybox", "uname", "-m"];
    for (domain, expected) in [("LINUX", "x86_64\n"), ("LINUX32", "i686\n")] {
        let mut bundle = TestBundle::command(&machine);
        bundle.config["linux"]["personality"] = json!({ "domain": domain });
        assert_eq!(bundle.output(), expected);
        bundle.config["process"]["args"] = json!(["/bin/sleep", "600"]);
        assert_eq!(said_by_joining(&bundle, json!({}), &machine), expected);
        std::fs::remove_dir_all(&bundle.folder).unwrap();
    }
}

fn has_nodes() -> bool {
    let has_nodes = std::path::Path::new("/proc/self/numa_maps").exists();
    if !has_nodes {
        println!("SKIPPED: this kernel knows no NUMA nodes");
    }
    has_nodes
}

fn a_program_has_its_memory_policy() {
    if !has_nodes() {
        return;
    }
    let show = ["head", "-n", "1", "/proc/self/numa_maps"];
    for (policy, expected) in [
        (json!({ "mode": "MPOL_BIND", "nodes": "0" }), "bind:0"),
        (
            json!({ "mode": "MPOL_INTERLEAVE", "nodes": "0-0" }),
            "interleave:0",
        ),
        (
            json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"] }),
            "bind=static:0",
        ),
        (json!({ "mode": "MPOL_LOCAL" }), "local"),
        (json!({ "mode": "MPOL_DEFAULT" }), "default"),
    ] {
        let mut bundle = TestBundle::command(&show);
        bundle.config["linux"]["memoryPolicy"] = policy;
        let policy = |line: String| line.split(' ').nth(1).unwrap().to_owned();
        assert_eq!(policy(bundle.output()), expected);
        bundle.config["process"]["args"] = json!(["/bin/sleep", "600"]);
        assert_eq!(policy(said_by_joining(&bundle, json!({}), &show)), expected);
        std::fs::remove_dir_all(&bundle.folder).unwrap();
    }
}

fn a_node_that_is_not_there_is_told() {
    if !has_nodes() {
        return;
    }
    let mut bundle = TestBundle::command(&["true"]);
    bundle.config["linux"]["memoryPolicy"] = json!({ "mode": "MPOL_BIND", "nodes": "1000" });
    let error = bundle.create(Stdio::Inherit).unwrap_err();
    let message = chain(&error);
    assert!(
        error.is(
            |error| matches!(error, CreateError::Init(_)),
            "linux.memoryPolicy"
        ) && message.contains("is every node there"),
        "{message}"
    );
}

fn a_joining_process_runs_where_it_is_told() {
    let own = rustix::thread::sched_getaffinity(None).unwrap();
    let last = (0..rustix::thread::CpuSet::MAX_CPU)
        .rfind(|&cpu| own.is_set(cpu))
        .unwrap()
        .to_string();
    let mut bundle = TestBundle::command(&["/bin/sleep", "600"]);
    let last = match Wall::chosen() {
        Wall::SharedKernel => last,
        Wall::MicroVm => {
            // A machine has as many processors as its limit rounds up to.
            bundle.config["linux"]["resources"]["cpu"] = json!({ "quota": 200_000, "period": 100_000 });
            "1".to_owned()
        }
    };
    let affinity = json!({ "execCPUAffinity": { "initial": "0", "final": last } });
    let said = said_by_joining(
        &bundle,
        affinity,
        &["grep", "Cpus_allowed_list", "/proc/self/status"],
    );
    assert_eq!(said, format!("Cpus_allowed_list:\t{last}\n"));
    assert_eq!(
        rustix::thread::sched_getaffinity(None).unwrap(),
        own,
        "the caller runs where it did"
    );
    std::fs::remove_dir_all(&bundle.folder).unwrap();

    // Of the first process the specification says that it does not count.
    let mut bundle = TestBundle::command(&["grep", "Cpus_allowed_list", "/proc/self/status"]);
    let before = bundle.output();
    bundle.config["process"]["execCPUAffinity"] = json!({ "initial": "0", "final": "0" });
    assert_eq!(bundle.output(), before);
}
