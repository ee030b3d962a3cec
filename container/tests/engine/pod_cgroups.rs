//! Cgroups for processes that are no container's.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command};

use container::{CgroupError, ContainerId, PodCgroup, PodLimits};

use crate::bundle::{TestBundle, chain, wait_until};
use crate::cgroup_files::{
    cgroup_at, cgroup2_has, is_cgroup2_alone, lines_of_mounted, own_cgroup, show_cgroup2_alone,
};

crate::tests!(
    what_was_written_down_is_made_used_and_removed,
    a_process_is_inside_from_its_first_instruction,
    limits_are_set_changed_and_lifted,
    a_limit_that_is_refused_leaves_nothing,
    memory_in_use_is_not_taken_away,
    a_cgroup_of_others_is_refused,
    what_was_never_made_is_removed_without_ado,
    cgroup2_alone_holds_and_kills_processes,
);

fn id() -> ContainerId {
    TestBundle::command(&["true"]).id
}

fn sleep() -> Child {
    Command::new("sleep").arg("60").spawn().unwrap()
}

/// In either version.
fn has(controller: &str) -> bool {
    match is_cgroup2_alone() {
        true => cgroup2_has(controller),
        false => fs::exists(cgroup_at(controller, "cgroup.procs")).unwrap(),
    }
}

/// As a runtime does it that may die between any two steps.
fn what_was_written_down_is_made_used_and_removed() {
    let id = id();
    let path = format!("/{id}/pod/vm");
    let located = PodCgroup::locate(Some(Path::new(&path)), &id, PodLimits::default()).unwrap();
    let written = serde_json::to_string(&located).unwrap();
    assert!(located.processes().unwrap().is_empty());
    located.make().unwrap();

    let found: PodCgroup = serde_json::from_str(&written).unwrap();
    assert_eq!(found, located);
    let mut child = sleep();
    found.add_process(child.id()).unwrap();
    let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
    assert!(
        lines_of_mounted(&cgroups)
            .iter()
            .all(|line| line.ends_with(&path)),
        "{cgroups}"
    );
    assert_eq!(found.processes().unwrap(), [child.id() as i32]);
    if has("pids") {
        assert_eq!(found.statistics().unwrap().pids.current, 1);
    }
    found.kill_all().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    assert!(found.add_process(0).is_err());
    assert!(found.add_process(child.id()).is_err());
    found.remove().unwrap();
    found.remove().unwrap();
    assert!(!fs::exists(cgroup_at("pids", id.as_str())).unwrap());
}

fn a_process_is_inside_from_its_first_instruction() {
    let id = id();
    let cgroup = PodCgroup::create(None, &id, PodLimits::default()).unwrap();
    let mut command = Command::new("cat");
    command.arg("/proc/self/cgroup");
    cgroup.take_in(&mut command).unwrap();
    let cgroups = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let place = format!("/bulkhead-{id}");
    let mounted = lines_of_mounted(&cgroups);
    assert!(
        !mounted.is_empty() && mounted.iter().all(|line| line.ends_with(&place)),
        "{cgroups}"
    );
    assert!(cgroup.processes().unwrap().is_empty());
    cgroup.remove().unwrap();
}

fn limits_are_set_changed_and_lifted() {
    if !has("memory") || !has("cpu") {
        println!("SKIPPED: needs the controllers memory and cpu");
        return;
    }
    let id = id();
    let limits = PodLimits {
        memory: Some(64 << 20),
        cpu_quota: Some(50_000),
        cpu_period: Some(200_000),
        cpu_shares: Some(512),
    };
    let mut cgroup = PodCgroup::create(None, &id, limits).unwrap();
    // Memory; quota, period and shares of processors, the last as cgroup2 has them beside as version 1 does.
    let holds = |memory: Option<&str>, [quota, period, shares, weight]: [&str; 4]| {
        let read = |controller, file: &str| {
            let text = fs::read_to_string(own_cgroup(controller, &id).join(file)).unwrap();
            text.trim().to_owned()
        };
        if is_cgroup2_alone() {
            assert_eq!(read("memory", "memory.max"), memory.unwrap_or("max"));
            assert_eq!(
                read("cpu", "cpu.max"),
                format!("{quota} {period}").replace("-1", "max")
            );
            assert_eq!(read("cpu", "cpu.weight"), weight);
        } else {
            // The largest number of whole pages.
            let memory = memory.unwrap_or("9223372036854771712");
            assert_eq!(read("memory", "memory.limit_in_bytes"), memory);
            let files = ["cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.shares"];
            assert_eq!(files.map(|file| read("cpu", file)), [quota, period, shares]);
        }
    };
    holds(Some("67108864"), ["50000", "200000", "512", "59"]);
    cgroup
        .update(PodLimits {
            memory: Some(128 << 20),
            cpu_quota: Some(75_000),
            ..limits
        })
        .unwrap();
    holds(Some("134217728"), ["75000", "200000", "512", "59"]);
    cgroup.update(PodLimits::default()).unwrap();
    assert_eq!(*cgroup.limits(), PodLimits::default());
    holds(None, ["-1", "100000", "1024", "100"]);
    // Nothing but what is limited: devices are as they are for the caller.
    if !is_cgroup2_alone() {
        let devices = fs::read_to_string(own_cgroup("devices", &id).join("devices.list")).unwrap();
        assert_eq!(devices.trim(), "a *:* rwm");
    }
    cgroup.remove().unwrap();
}

fn a_limit_that_is_refused_leaves_nothing() {
    let limits = PodLimits {
        memory: Some(64 << 20),
        cpu_quota: Some(50_000),
        // The kernel's longest is a second.
        cpu_period: Some(2_000_000),
        ..PodLimits::default()
    };
    let id = id();
    if !is_cgroup2_alone() {
        let error = chain(&PodCgroup::create(None, &id, limits).unwrap_err());
        assert!(error.contains("linux.resources.cpu.period"), "{error}");
    }
    // Where quota and period are one value, or there is no controller at all.
    show_cgroup2_alone();
    let error = chain(&PodCgroup::create(None, &id, limits).unwrap_err());
    assert!(error.contains("linux.resources."), "{error}");
}

fn memory_in_use_is_not_taken_away() {
    if !has("memory") {
        println!("SKIPPED: needs the memory controller");
        return;
    }
    let limits = PodLimits {
        memory: Some(256 << 20),
        ..PodLimits::default()
    };
    let mut cgroup = PodCgroup::create(None, &id(), limits).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "a=$(head -c 30m /dev/zero | tr '\\0' x); sleep 60"]);
    cgroup.take_in(&mut command).unwrap();
    let mut child = command.spawn().unwrap();
    wait_until(|| cgroup.statistics().unwrap().memory.usage.usage > 24 << 20);
    let less = PodLimits {
        memory: Some(8 << 20),
        ..limits
    };
    let error = cgroup.update(less).unwrap_err();
    assert!(matches!(error, CgroupError::MemoryInUse { .. }), "{error}");
    assert_eq!(*cgroup.limits(), limits);
    cgroup.remove().unwrap();
    child.wait().unwrap();
}

fn a_cgroup_of_others_is_refused() {
    let id = id();
    let path = format!("/{id}");
    let path = Some(Path::new(&path));
    let first = PodCgroup::create(path, &id, PodLimits::default()).unwrap();
    let mut child = sleep();
    first.add_process(child.id()).unwrap();
    let error = PodCgroup::locate(path, &id, PodLimits::default()).unwrap_err();
    assert!(matches!(error, CgroupError::Occupied { .. }), "{error}");
    for path in ["/", "/../x"] {
        let error = PodCgroup::locate(Some(Path::new(path)), &id, PodLimits::default()).unwrap_err();
        assert!(error.to_string().contains("linux.cgroupsPath"), "{error}");
    }
    first.remove().unwrap();
    child.wait().unwrap();
}

fn what_was_never_made_is_removed_without_ado() {
    let located = PodCgroup::locate(None, &id(), PodLimits::default()).unwrap();
    located.remove().unwrap();
    assert!(located.add_process(std::process::id()).is_err());
    assert!(located.take_in(&mut Command::new("true")).is_err());
}

fn cgroup2_alone_holds_and_kills_processes() {
    show_cgroup2_alone();
    let cgroup = PodCgroup::create(None, &id(), PodLimits::default()).unwrap();
    let mut children = [sleep(), sleep()];
    for child in &children {
        cgroup.add_process(child.id()).unwrap();
    }
    assert_eq!(cgroup.processes().unwrap().len(), 2);
    cgroup.remove().unwrap();
    for child in &mut children {
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
}
