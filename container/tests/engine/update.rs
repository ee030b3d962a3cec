//! Limits that change while a container lives, and what is told of its use of them.

use std::fs;
use std::os::fd::AsFd;

use container::{CgroupError, Stdio, UpdateError};
use rustix::event::{PollFd, Timespec, poll};
use serde_json::{Value, json};

use crate::bundle::{TestBundle, chain, wait, wait_until};
use crate::cgroup_files::{is_cgroup2_alone, own_cgroup, show_cgroup2_alone};
use crate::wall::{Container, Refusal, Wall};

crate::tests!(
    limits_move_in_both_directions,
    what_is_not_named_stays_across_updates,
    a_change_that_fails_in_the_middle_changes_nothing,
    a_change_that_contradicts_what_stays_is_refused,
    memory_in_use_is_no_limit,
    memory_in_use_is_no_limit_to_version_1_unasked,
    processors_can_be_made_idle_and_busy_again,
    only_what_lives_can_be_changed,
    a_new_limit_of_processes_holds,
    huge_pages_can_be_limited_later_in_cgroup2,
    a_throttled_container_counts_its_waiting,
    running_out_of_memory_is_told,
    pressure_is_told_where_there_is_cgroup2,
);

fn running(config: Value) -> (TestBundle, Container) {
    let mut bundle = TestBundle::shell("sleep 600");
    if config.get("memory").is_some() {
        // A virtual machine does not grow: it is made as large as any limit that is set here.
        bundle.config["annotations"]["io.kubernetes.cri.sandbox-memory"] = json!((512 << 20).to_string());
    }
    bundle.config["linux"]["resources"] = config;
    let container = bundle
        .create(Stdio::Inherit)
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    container.start().unwrap();
    (bundle, container)
}

fn update(container: &mut Container, changes: Value) -> Result<(), Refusal<UpdateError>> {
    container.update(&serde_json::from_value(changes).unwrap())
}

fn accepted(container: &mut Container, changes: Value) {
    update(container, changes).unwrap_or_else(|error| panic!("{}", chain(&error)));
}

/// What the kernel holds a container to; -1 for no limit.
#[derive(Debug, PartialEq, Eq)]
struct Limits {
    memory: i64,
    memory_and_swap: i64,
    quota: i64,
    period: i64,
    burst: i64,
    /// `cpu.shares` or `cpu.weight`, by the version of cgroups.
    share: i64,
    idle: i64,
    pids: i64,
}

impl Limits {
    fn of(bundle: &TestBundle, container: &Container) -> Limits {
        match container {
            Container::SharedKernel(_) if !is_cgroup2_alone() => Limits::in_version_1(bundle),
            _ => Limits::in_version_2(bundle, container),
        }
    }

    fn in_version_1(bundle: &TestBundle) -> Limits {
        let memory = |file: &str| number(&value(bundle, "memory", file));
        let cpu = |file: &str| number(&value(bundle, "cpu", file));
        Limits {
            memory: memory("memory.limit_in_bytes"),
            memory_and_swap: memory("memory.memsw.limit_in_bytes"),
            quota: cpu("cpu.cfs_quota_us"),
            period: cpu("cpu.cfs_period_us"),
            burst: cpu("cpu.cfs_burst_us"),
            share: cpu("cpu.shares"),
            idle: cpu("cpu.idle"),
            pids: number(&value(bundle, "pids", "pids.max")),
        }
    }

    /// As the container sees them.
    fn in_version_2(bundle: &TestBundle, container: &Container) -> Limits {
        let files = "memory.max memory.swap.max cpu.max cpu.max.burst cpu.weight cpu.idle pids.max";
        let script = format!("cd /sys/fs/cgroup && cat {files}");
        let mut process = container.configured_process().unwrap();
        process.set_args(Some(["/bin/sh", "-c", &script].map(String::from).to_vec()));
        let (stdio, output) = crate::bundle::files(&bundle.folder);
        let executed = container.exec(&process, stdio).unwrap();
        let outcome = output.outcome(executed.wait().unwrap());
        let words: Vec<i64> = outcome.stdout.split_whitespace().map(number).collect();
        let [memory, swap, quota, period, burst, share, idle, pids] = words[..] else {
            panic!("{outcome:?}");
        };
        Limits {
            memory,
            memory_and_swap: if swap < 0 { -1 } else { memory + swap },
            quota,
            period,
            burst,
            share,
            idle,
            pids,
        }
    }
}

/// Version 2 says "no limit" with a word, version 1 of memory with more than any machine has.
fn number(text: &str) -> i64 {
    match text {
        "max" => -1,
        text => Some(text.parse().unwrap())
            .filter(|number| *number < 1 << 60)
            .unwrap_or(-1),
    }
}

fn value(bundle: &TestBundle, controller: &str, file: &str) -> String {
    let text = fs::read_to_string(own_cgroup(controller, &bundle.id).join(file)).unwrap();
    text.lines().next().unwrap_or_default().to_owned()
}

fn end(mut container: Container) {
    container.delete(true).unwrap();
    wait(&container);
}

fn limits_move_in_both_directions() {
    const MIB: i64 = 1 << 20;
    // A kernel to which a period is too short doubles it by itself, and that of a machine may be an emulated one.
    let shortest = if Wall::is_slow() { 50_000 } else { 1_000 };
    let (bundle, mut container) = running(json!({
        "memory": { "limit": 64 * MIB, "swap": 64 * MIB }, "cpu": { "quota": 50_000, "period": 100_000 }
    }));
    for (memory, swap, quota, period, burst) in [
        (128 * MIB, 256 * MIB, 200_000, 200_000, 150_000),
        (32 * MIB, 32 * MIB, 5_000, 10_000, 1_000),
        (512 * MIB, 512 * MIB, -1, 1_000_000, 0),
        (16 * MIB, -1, shortest, shortest, 0),
    ] {
        accepted(
            &mut container,
            json!({
                "memory": { "limit": memory, "swap": swap },
                "cpu": { "quota": quota, "period": period, "burst": burst }
            }),
        );
        let limits = Limits::of(&bundle, &container);
        assert_eq!((limits.memory, limits.memory_and_swap), (memory, swap));
        assert_eq!(
            (limits.quota, limits.period, limits.burst),
            (quota, period, burst)
        );
    }
    end(container);
}

fn what_is_not_named_stays_across_updates() {
    let (bundle, mut container) = running(json!({ "pids": { "limit": 50 }, "cpu": { "shares": 512 } }));
    let before = Limits::of(&bundle, &container);
    accepted(&mut container, json!({ "cpu": { "shares": 256 } }));
    let mut found = Container::load(&bundle).unwrap();
    accepted(
        &mut found,
        json!({ "memory": { "limit": 64 << 20 }, "pids": { "limit": 0 } }),
    );
    let after = Limits::of(&bundle, &container);
    assert!(after.share < before.share, "{after:?}");
    let expected = Limits {
        memory: 64 << 20,
        share: after.share,
        ..before
    };
    assert_eq!(after, expected);
    end(container);
}

fn a_change_that_fails_in_the_middle_changes_nothing() {
    let (bundle, mut container) = running(json!({
        "memory": { "limit": 64 << 20 }, "cpu": { "shares": 512 }, "pids": { "limit": 50 }
    }));
    let before = Limits::of(&bundle, &container);
    let error = update(
        &mut container,
        json!({
            "memory": { "limit": 128 << 20 }, "cpu": { "shares": 100, "cpus": "9999" }, "pids": { "limit": 60 }
        }),
    )
    .unwrap_err();
    let message = chain(&error);
    assert!(message.contains("linux.resources.cpu.cpus"), "{message}");
    assert_eq!(Limits::of(&bundle, &container), before);
    // Nor is it recorded.
    accepted(&mut container, json!({ "pids": { "limit": 70 } }));
    assert_eq!(Limits::of(&bundle, &container), Limits { pids: 70, ..before });
    end(container);
}

fn a_change_that_contradicts_what_stays_is_refused() {
    let (bundle, mut container) = running(json!({ "memory": { "limit": 32 << 20, "swap": 64 << 20 } }));
    let error = update(&mut container, json!({ "memory": { "limit": 128 << 20 } })).unwrap_err();
    let is_invalid = |error: &UpdateError| matches!(error, UpdateError::Invalid { .. });
    assert!(
        error.is(is_invalid, "linux.resources.memory.swap"),
        "{}",
        chain(&error)
    );
    // Without a limit of memory, the other goes too.
    accepted(&mut container, json!({ "memory": { "limit": -1 } }));
    assert_eq!(Limits::of(&bundle, &container).memory_and_swap, -1);
    end(container);
}

fn memory_in_use_is_no_limit() {
    memory_is_in_use(true);
}

/// Version 2 would take the memory away, and end processes for it.
fn memory_in_use_is_no_limit_to_version_1_unasked() {
    if is_cgroup2_alone() {
        println!("SKIPPED: there is no version 1 here");
        return;
    }
    memory_is_in_use(false);
}

fn memory_is_in_use(check: bool) {
    let (_bundle, mut container) = running(json!({}));
    wait_until(|| {
        container.statistics().unwrap()["memory"]["usage"]["usage"]
            .as_u64()
            .unwrap()
            > 8192
    });
    let limit = json!({ "memory": { "limit": 4096, "checkBeforeUpdate": check } });
    let error = update(&mut container, limit).unwrap_err();
    let is_in_use = |error: &UpdateError| {
        matches!(
            error,
            UpdateError::Cgroup {
                source: CgroupError::MemoryInUse { .. },
                ..
            }
        )
    };
    assert!(error.is(is_in_use, "that are in use"), "{}", chain(&error));
    end(container);
}

fn processors_can_be_made_idle_and_busy_again() {
    let (bundle, mut container) = running(json!({ "cpu": { "shares": 512 } }));
    let busy = Limits::of(&bundle, &container);
    accepted(&mut container, json!({ "cpu": { "idle": 1 } }));
    assert_eq!(Limits::of(&bundle, &container).idle, 1);
    accepted(&mut container, json!({ "pids": { "limit": 9 } }));
    accepted(&mut container, json!({ "cpu": { "idle": 0 } }));
    assert_eq!(Limits::of(&bundle, &container), Limits { pids: 9, ..busy });
    end(container);
}

fn only_what_lives_can_be_changed() {
    let bundle = TestBundle::command(&["true"]);
    let mut container = bundle.create(Stdio::Inherit).unwrap();
    accepted(&mut container, json!({ "pids": { "limit": 9 } }));
    container.pause().unwrap();
    accepted(&mut container, json!({ "pids": { "limit": 10 } }));
    container.resume().unwrap();
    container.start().unwrap();
    wait(&container);
    let stopped = update(&mut container, json!({ "pids": { "limit": 11 } })).unwrap_err();
    assert!(stopped.to_string().contains("is stopped"), "{stopped}");
    container.delete(false).unwrap();
}

fn a_new_limit_of_processes_holds() {
    let (_bundle, mut container) = running(json!({}));
    accepted(&mut container, json!({ "pids": { "limit": 33 } }));
    assert_eq!(container.statistics().unwrap()["pids"]["limit"], 33);
    accepted(&mut container, json!({ "pids": { "limit": -1 } }));
    assert_eq!(container.statistics().unwrap()["pids"]["limit"], 0);
    end(container);
}

fn huge_pages_can_be_limited_later_in_cgroup2() {
    show_cgroup2_alone();
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap();
    if !controllers.contains("hugetlb") {
        println!("SKIPPED: this kernel's cgroup2 limits no huge pages");
        return;
    }
    let (bundle, mut container) = running(json!({}));
    accepted(
        &mut container,
        json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 4 << 20 }] }),
    );
    assert_eq!(value(&bundle, "", "hugetlb.2MB.max"), "4194304");
    let statistics = container.statistics().unwrap();
    assert_eq!(statistics["hugetlb"]["2MB"]["usage"], 0);
    accepted(
        &mut container,
        json!({ "unified": { "hugetlb.2MB.max": "2097152" } }),
    );
    assert_eq!(value(&bundle, "", "hugetlb.2MB.max"), "2097152");
    end(container);
}

fn a_throttled_container_counts_its_waiting() {
    let mut bundle = TestBundle::shell("while :; do :; done");
    bundle.config["linux"]["resources"]["cpu"] = json!({ "quota": 5_000, "period": 10_000 });
    let mut container = bundle.create(Stdio::Inherit).unwrap();
    container.start().unwrap();
    let mut told = json!({});
    let number = |told: &Value, name: &str| told["throttling"][name].as_u64().unwrap();
    wait_until(|| {
        told = container.statistics().unwrap()["cpu"].take();
        number(&told, "throttledTime") > 0
    });
    let throttled = number(&told, "throttledPeriods");
    assert!(throttled > 0 && throttled <= number(&told, "periods"), "{told}");
    assert!(told["usage"]["total"].as_u64().unwrap() > 0);
    container.delete(true).unwrap();
    wait(&container);
}

fn running_out_of_memory_is_told() {
    let mut bundle = TestBundle::shell("a=x; while :; do a=$a$a; done");
    bundle.config["linux"]["resources"]["memory"] = json!({ "limit": 16 << 20, "swap": 16 << 20 });
    let mut container = bundle.create(Stdio::Inherit).unwrap();
    let mut watch = container.engine().watch_memory().unwrap().unwrap();
    assert_eq!(watch.take().unwrap(), 0);
    container.start().unwrap();
    let patience = Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    let ready = poll(
        &mut [PollFd::new(&watch.as_fd(), watch.poll_flags())],
        Some(&patience),
    );
    assert_eq!(ready.unwrap(), 1);
    assert!(watch.take().unwrap() > 0);
    assert_eq!(wait(&container), 137);
    container.delete(false).unwrap();
    // The end of the cgroup is no want of memory.
    assert_eq!(watch.take().unwrap(), 0);
}

fn pressure_is_told_where_there_is_cgroup2() {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    if !fs::exists("/proc/pressure/cpu").unwrap() || !mounts.contains(" - cgroup2 ") {
        println!("SKIPPED: pressure is told by kernels that count it, in cgroup2");
        return;
    }
    let (_bundle, container) = running(json!({}));
    let statistics = container.statistics().unwrap();
    assert!(statistics["cpu"]["psi"].is_object() && statistics["memory"]["psi"].is_object());
    end(container);
}
