//! Cgroups for processes that are no container's.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command};

use container::{CgroupError, ContainerId, PodCgroup, PodLimits};
use rustix::mount::{MountFlags, mount};

use crate::bundle::{TestBundle, chain, own_cgroup, wait_until};

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

fn is_version1() -> bool {
    fs::exists("/sys/fs/cgroup/memory/memory.limit_in_bytes").unwrap()
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
    assert!(cgroups.lines().all(|line| line.ends_with(&path)), "{cgroups}");
    assert_eq!(found.processes().unwrap(), [child.id() as i32]);
    if is_version1() {
        assert_eq!(found.statistics().unwrap().pids.current, 1);
    }
    found.kill_all().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    assert!(found.add_process(0).is_err());
    assert!(found.add_process(child.id()).is_err());
    found.remove().unwrap();
    found.remove().unwrap();
    assert!(!fs::exists(format!("/sys/fs/cgroup/pids/{id}")).unwrap());
}

fn a_process_is_inside_from_its_first_instruction() {
    let id = id();
    let cgroup = PodCgroup::create(None, &id, PodLimits::default()).unwrap();
    let mut command = Command::new("cat");
    command.arg("/proc/self/cgroup");
    cgroup.take_in(&mut command).unwrap();
    let cgroups = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let place = format!("/bulkhead-{id}");
    assert!(
        !cgroups.is_empty() && cgroups.lines().all(|line| line.ends_with(&place)),
        "{cgroups}"
    );
    assert!(cgroup.processes().unwrap().is_empty());
    cgroup.remove().unwrap();
}

fn limits_are_set_changed_and_lifted() {
    if !is_version1() {
        println!("SKIPPED: reads the files of version 1");
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
    let holds = |memory: &str, cpu: [&str; 3]| {
        let read = |hierarchy, file: &str| fs::read_to_string(own_cgroup(hierarchy, &id).join(file)).unwrap();
        assert_eq!(read("memory", "memory.limit_in_bytes").trim(), memory);
        let files = ["cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.shares"];
        assert_eq!(files.map(|file| read("cpu", file).trim().to_owned()), cpu);
    };
    holds("67108864", ["50000", "200000", "512"]);
    cgroup
        .update(PodLimits {
            memory: Some(128 << 20),
            cpu_quota: Some(75_000),
            ..limits
        })
        .unwrap();
    holds("134217728", ["75000", "200000", "512"]);
    cgroup.update(PodLimits::default()).unwrap();
    assert_eq!(*cgroup.limits(), PodLimits::default());
    // The largest number of whole pages.
    holds("9223372036854771712", ["-1", "100000", "1024"]);
    // Nothing but what is limited: devices are as they are for the caller.
    assert_eq!(
        fs::read_to_string(own_cgroup("devices", &id).join("devices.list"))
            .unwrap()
            .trim(),
        "a *:* rwm"
    );
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
    let error = chain(&PodCgroup::create(None, &id, limits).unwrap_err());
    assert!(error.contains("linux.resources.cpu.period"), "{error}");
    mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MountFlags::empty(), None).unwrap();
    let error = chain(&PodCgroup::create(None, &id, limits).unwrap_err());
    assert!(error.contains("linux.resources."), "{error}");
}

fn memory_in_use_is_not_taken_away() {
    if !is_version1() {
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
    mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MountFlags::empty(), None).unwrap();
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
