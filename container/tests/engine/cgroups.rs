//! Limits that hold, in both versions of cgroups where this kernel has them.

use std::fs;
use std::path::{Path, PathBuf};

use container::{CgroupError, CreateError, Stdio};
use serde_json::json;

use crate::bundle::{TestBundle, chain, files, wait, wait_until};
use crate::cgroup_files::{
    GO_TO_CGROUP, cgroup_at, cgroup2_has, is_cgroup2_alone, lines_of_mounted, own_cgroup, show_cgroup2_alone,
};

crate::tests!(
    too_much_memory_is_137,
    what_was_used_is_told_after_the_end,
    too_many_processes_fail_to_fork,
    limits_are_written_to_the_files,
    a_cgroups_path_is_taken_as_given_and_removed_with_its_parents,
    a_relative_cgroups_path_counts_from_the_root,
    a_cgroup_with_somebody_in_it_is_refused,
    cgroups_are_mounted_read_only_and_show_the_containers_own,
    without_a_cgroup_namespace_the_containers_own_are_bound,
    a_limit_the_kernel_refuses_is_named_and_undone,
    cgroups_made_inside_the_container_go_with_it,
    cgroup2_alone_holds_a_container_and_its_devices,
    block_devices_are_weighed_and_throttled,
    huge_pages_are_limited_on_whichever_version_has_them,
    huge_pages_are_limited_in_cgroup2,
    limits_without_their_controller_or_file_are_named,
    bursts_idleness_and_unlimited_values_are_written,
    obsolete_limits_are_warned_of,
    buffers_of_tcp_are_limited_where_the_kernel_still_counts_them,
    those_who_fork_for_ever_die_in_cgroup2,
);

/// A shell that takes more and more memory itself, so that its own death is what is seen.
fn greedy() -> TestBundle {
    let mut bundle = TestBundle::shell("a=x; while :; do a=$a$a; done");
    bundle.config["linux"]["resources"]["memory"] = json!({ "limit": 16 << 20, "swap": 16 << 20 });
    bundle
}

fn too_much_memory_is_137() {
    assert_eq!(greedy().run().code, 137);
}

fn what_was_used_is_told_after_the_end() {
    let mut container = greedy()
        .create(Stdio::Inherit)
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    container.start().unwrap();
    assert_eq!(wait(&container), 137);
    let statistics = container.engine().statistics().unwrap();
    assert_eq!(statistics.memory.usage.limited_to(), Some(16 << 20));
    assert_eq!(statistics.memory.out_of_memory_kills, 1);
    container.delete(false).unwrap();
}

fn too_many_processes_fail_to_fork() {
    let mut bundle = TestBundle::shell("for i in $(seq 20); do sleep 5 & done; exit 0");
    bundle.config["linux"]["resources"]["pids"] = json!({ "limit": 5 });
    let outcome = bundle.run();
    assert!(outcome.stderr.contains("can't fork"), "{outcome:?}");
}

/// The folder of a controller's hierarchy for a container without a path.
fn folder(bundle: &TestBundle, controller: &str) -> PathBuf {
    own_cgroup(controller, &bundle.id)
}

fn limits_are_written_to_the_files() {
    let mut bundle = TestBundle::command(&["true"]);
    bundle.config["linux"]["resources"] = json!({
        "memory": { "limit": 64 << 20, "reservation": 32 << 20 },
        "cpu": { "quota": 50_000, "period": 100_000, "shares": 512, "cpus": "0" },
        "pids": { "limit": 99 }
    });
    let mut container = bundle.create(Stdio::Inherit).unwrap();
    let version_1 = [
        ("memory", "memory.limit_in_bytes", "67108864"),
        ("memory", "memory.soft_limit_in_bytes", "33554432"),
        ("cpu", "cpu.cfs_quota_us", "50000"),
        ("cpu", "cpu.cfs_period_us", "100000"),
        ("cpu", "cpu.shares", "512"),
        ("cpuset", "cpuset.cpus", "0"),
        ("pids", "pids.max", "99"),
    ];
    let version_2 = [
        ("memory", "memory.max", "67108864"),
        ("memory", "memory.low", "33554432"),
        ("cpu", "cpu.max", "50000 100000"),
        ("cpu", "cpu.weight", "59"),
        ("cpuset", "cpuset.cpus", "0"),
        ("pids", "pids.max", "99"),
    ];
    let expected = match is_cgroup2_alone() {
        true => &version_2[..],
        false => &version_1[..],
    };
    for (controller, file, value) in expected {
        let path = folder(&bundle, controller).join(file);
        assert_eq!(
            fs::read_to_string(&path).unwrap().trim(),
            *value,
            "{}",
            path.display()
        );
    }
    container.delete(true).unwrap();
    wait(&container);
}

fn a_cgroups_path_is_taken_as_given_and_removed_with_its_parents() {
    a_cgroups_path_is_made_and_removed("/");
}

fn a_relative_cgroups_path_counts_from_the_root() {
    a_cgroups_path_is_made_and_removed("");
}

fn a_cgroups_path_is_made_and_removed(beginning: &str) {
    let mut bundle = TestBundle::command(&["true"]);
    let path = format!("/{}/deep/er", bundle.id);
    bundle.config["linux"]["cgroupsPath"] = format!("{beginning}{}", &path[1..]).into();
    let mut container = bundle.create(Stdio::Inherit).unwrap();
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", container.pid().unwrap())).unwrap();
    let mounted = lines_of_mounted(&cgroup);
    assert!(
        !mounted.is_empty() && mounted.iter().all(|line| line.ends_with(&path)),
        "{cgroup}"
    );
    let first = cgroup_at("memory", bundle.id.as_str());
    assert!(fs::exists(&first).unwrap());
    container.delete(true).unwrap();
    wait(&container);
    assert!(!fs::exists(&first).unwrap());
}

fn a_cgroup_with_somebody_in_it_is_refused() {
    let path = format!("/{}", TestBundle::command(&["true"]).id);
    let with_path = |suffix| {
        let mut bundle = TestBundle::named(suffix, &["true"]);
        bundle.config["linux"]["cgroupsPath"] = path.as_str().into();
        bundle
    };
    let mut first = with_path("-first").create(Stdio::Inherit).unwrap();
    let error = with_path("-second").create(Stdio::Inherit).unwrap_err();
    assert!(
        error.is(
            |error| matches!(error, CreateError::Cgroup(CgroupError::Occupied { .. })),
            "already has processes in it"
        ),
        "{}",
        chain(&error)
    );
    assert_eq!(first.status().unwrap(), container::Status::Created);
    first.delete(true).unwrap();
    wait(&first);
}

fn cgroups_are_mounted_read_only_and_show_the_containers_own() {
    let script = format!("{GO_TO_CGROUP}; cat pids.max; mkdir x || mkdir /sys/fs/cgroup/x");
    let mut bundle = TestBundle::shell(&script);
    bundle.config["linux"]["resources"]["pids"] = json!({ "limit": 77 });
    let outcome = bundle.run();
    assert_eq!(outcome.stdout, "77\n");
    assert_eq!(
        outcome.stderr.matches("Read-only file system").count(),
        2,
        "{outcome:?}"
    );
}

fn without_a_cgroup_namespace_the_containers_own_are_bound() {
    let mut bundle = TestBundle::shell(&format!("{GO_TO_CGROUP}; cat pids.max"));
    bundle.config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .retain(|namespace| namespace["type"] != "cgroup");
    bundle.config["linux"]["resources"]["pids"] = json!({ "limit": 66 });
    assert_eq!(bundle.output(), "66\n");
}

fn a_limit_the_kernel_refuses_is_named_and_undone() {
    let mut bundle = TestBundle::command(&["true"]);
    bundle.config["linux"]["resources"]["cpu"] = json!({ "cpus": "9999" });
    let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
    assert!(
        message.contains("linux.resources.cpu.cpus") && message.contains("9999"),
        "{message}"
    );
}

fn cgroups_made_inside_the_container_go_with_it() {
    let mut bundle = TestBundle::shell(&format!(
        "{GO_TO_CGROUP}; mkdir -p a/b && echo 1 >a/b/cgroup.procs"
    ));
    let cgroup = bundle.config["mounts"]
        .as_array_mut()
        .unwrap()
        .last_mut()
        .unwrap();
    cgroup["options"] = json!(["nosuid", "noexec", "nodev"]);
    bundle.output();
}

fn cgroup2_alone_holds_a_container_and_its_devices() {
    show_cgroup2_alone();
    let script = "cat /proc/self/cgroup | grep 0::; head -c 3 /dev/zero | wc -c; \
                  mknod /dev/disk b 259 7 && echo made; head -c 1 /dev/disk; \
                  mknod /dev/tun c 10 200; : >/dev/tun && echo wrote; sh -c ': </dev/tun'; ls /sys/fs/cgroup/cgroup.procs";
    let mut bundle = TestBundle::shell(script);
    for set in ["bounding", "permitted", "effective"] {
        bundle.config["process"]["capabilities"][set]
            .as_array_mut()
            .unwrap()
            .push("CAP_MKNOD".into());
    }
    bundle.config["linux"]["resources"]["devices"] =
        json!([{ "allow": false }, { "allow": true, "type": "c", "major": 10, "minor": 200, "access": "w" }]);
    let outcome = bundle.run();
    assert_eq!(
        outcome.stdout, "0::/\n3\nmade\nwrote\n/sys/fs/cgroup/cgroup.procs\n",
        "{outcome:?}"
    );
    assert_eq!(
        outcome.stderr.matches("Operation not permitted").count(),
        2,
        "{outcome:?}"
    );

    let mut forced = TestBundle::named("-forced", &["sh", "-c", "sleep 60 & sleep 60 & wait"]);
    forced.config["linux"]["resources"] = json!({});
    let mut container = forced.create(Stdio::Inherit).unwrap();
    container.start().unwrap();
    wait_until(|| container.processes().unwrap().len() == 3);
    container.delete(true).unwrap();
    wait(&container);
}

/// A block device of this machine that takes limits.
fn block_device() -> Option<(u64, u64)> {
    let disk = fs::read_dir("/sys/block").ok()?.flatten().find(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        ["vd", "sd", "xvd", "nvme"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
    })?;
    let number = fs::read_to_string(disk.path().join("dev")).ok()?;
    let (major, minor) = number.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn block_devices_are_weighed_and_throttled() {
    let Some((major, minor)) = block_device() else {
        println!("SKIPPED: no disk whose I/O could be limited");
        return;
    };
    let mut bundle = TestBundle::command(&["true"]);
    let limit = |rate: u64| json!([{ "major": major, "minor": minor, "rate": rate }]);
    bundle.config["linux"]["resources"]["blockIO"] = json!({
        "weight": 500,
        "throttleReadBpsDevice": limit(1 << 20), "throttleWriteBpsDevice": limit(2 << 20),
        "throttleReadIOPSDevice": limit(100), "throttleWriteIOPSDevice": limit(200)
    });
    let mut container = bundle
        .create(Stdio::Inherit)
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    let read = |file: &str| fs::read_to_string(folder(&bundle, "blkio").join(file));
    if is_cgroup2_alone() {
        assert_eq!(
            read("io.max").unwrap().trim(),
            format!("{major}:{minor} rbps=1048576 wbps=2097152 riops=100 wiops=200")
        );
        match read("io.bfq.weight") {
            Ok(weight) => assert_eq!(weight.trim(), "default 500"),
            // From 10..1000 to 1..10000.
            Err(_) => assert_eq!(read("io.weight").unwrap().trim(), "default 4950"),
        }
    } else {
        for (file, rate) in [
            ("read_bps_device", 1 << 20),
            ("write_bps_device", 2 << 20),
            ("read_iops_device", 100),
            ("write_iops_device", 200),
        ] {
            let value = read(&format!("blkio.throttle.{file}")).unwrap();
            assert_eq!(value.trim(), format!("{major}:{minor} {rate}"), "{file}");
        }
        let weight = read("blkio.weight")
            .or_else(|_| read("blkio.bfq.weight"))
            .unwrap();
        assert_eq!(weight.trim(), "500");
    }
    container.delete(true).unwrap();
    wait(&container);
}

fn huge_page_size() -> Option<String> {
    let sizes = fs::read_dir("/sys/kernel/mm/hugepages").ok()?.flatten();
    let kilobytes = sizes.filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.strip_prefix("hugepages-")?
            .strip_suffix("kB")?
            .parse::<u64>()
            .ok()
    });
    kilobytes.min().map(|size| format!("{}MB", size >> 10))
}

fn huge_pages_are_limited_on_whichever_version_has_them() {
    let roots = [
        "/sys/fs/cgroup/hugetlb",
        "/sys/fs/cgroup/unified",
        "/sys/fs/cgroup",
    ];
    let has_controller = |root: &&str| {
        fs::exists(format!("{root}/hugetlb.2MB.limit_in_bytes")).unwrap()
            || fs::read_to_string(format!("{root}/cgroup.controllers"))
                .is_ok_and(|text| text.contains("hugetlb"))
    };
    let (Some(root), Some(size)) = (roots.into_iter().find(has_controller), huge_page_size()) else {
        println!("SKIPPED: this kernel limits no huge pages");
        return;
    };
    let mut bundle = TestBundle::command(&["true"]);
    bundle.config["linux"]["resources"]["hugepageLimits"] = json!([{ "pageSize": size, "limit": 64 << 20 }]);
    let mut container = bundle
        .create(Stdio::Inherit)
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    let folder = Path::new(root).join(format!("bulkhead-{}", bundle.id));
    let limit = fs::read_to_string(folder.join(format!("hugetlb.{size}.max")))
        .or_else(|_| fs::read_to_string(folder.join(format!("hugetlb.{size}.limit_in_bytes"))));
    assert_eq!(limit.unwrap().trim(), (64 << 20).to_string());
    container.delete(true).unwrap();
    wait(&container);
}

fn huge_pages_are_limited_in_cgroup2() {
    show_cgroup2_alone();
    huge_pages_are_limited_on_whichever_version_has_them();
}

fn limits_without_their_controller_or_file_are_named() {
    let message = |resources: serde_json::Value| {
        let mut bundle = TestBundle::command(&["true"]);
        bundle.config["linux"]["resources"] = resources;
        let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
        fs::remove_dir_all(&bundle.folder).unwrap();
        message
    };
    if !is_cgroup2_alone() && !fs::exists("/sys/fs/cgroup/net_cls").unwrap() {
        let network = message(json!({ "network": { "classID": 0x10_0001 } }));
        assert!(
            network.contains("linux.resources.network.classID: the cgroup controller `net_cls`"),
            "{network}"
        );
    }
    let pages = message(json!({ "hugepageLimits": [{ "pageSize": "3MB", "limit": 0 }] }));
    assert!(pages.contains("linux.resources.hugepageLimits[0]: "), "{pages}");
    if !is_cgroup2_alone() {
        let unified = message(json!({ "unified": { "memory.high": "1000000" } }));
        assert!(
            unified.contains("linux.resources.unified[`memory.high`]: is a file of cgroup2"),
            "{unified}"
        );
    }
    let device = message(json!({ "blockIO": {
        "throttleReadBpsDevice": [{ "major": 4000, "minor": 0, "rate": 1 }]
    }}));
    assert!(
        device.contains("linux.resources.blockIO.throttleReadBpsDevice[0]"),
        "{device}"
    );

    show_cgroup2_alone();
    if !cgroup2_has("memory") {
        let memory = message(json!({ "memory": { "limit": 64 << 20 } }));
        assert!(
            memory.contains("linux.resources.memory.limit: the cgroup controller `memory`"),
            "{memory}"
        );
    }
    let network = message(json!({ "network": { "classID": 1 } }));
    assert!(
        network.contains("linux.resources.network.classID: does not exist in cgroup2"),
        "{network}"
    );
}

fn bursts_idleness_and_unlimited_values_are_written() {
    let mut bundle = TestBundle::command(&["true"]);
    // The other three of memory are not there in cgroup2.
    let memory = match is_cgroup2_alone() {
        true => json!({ "limit": -1 }),
        false => json!({ "limit": -1, "useHierarchy": true, "disableOOMKiller": true, "swappiness": 10 }),
    };
    bundle.config["linux"]["resources"] = json!({
        "memory": memory,
        "cpu": { "quota": 50_000, "period": 100_000, "burst": 20_000, "idle": 1 },
        "pids": { "limit": -1 }
    });
    let mut container = bundle
        .create(Stdio::Inherit)
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    let version_1 = [
        ("cpu", "cpu.cfs_burst_us", "20000"),
        ("cpu", "cpu.idle", "1"),
        ("pids", "pids.max", "max"),
        ("memory", "memory.swappiness", "10"),
        ("memory", "memory.oom_control", "oom_kill_disable 1"),
    ];
    let version_2 = [
        ("cpu", "cpu.max.burst", "20000"),
        ("cpu", "cpu.idle", "1"),
        ("pids", "pids.max", "max"),
        ("memory", "memory.max", "max"),
    ];
    let expected = match is_cgroup2_alone() {
        true => &version_2[..],
        false => &version_1[..],
    };
    for &(controller, file, value) in expected {
        let text = fs::read_to_string(folder(&bundle, controller).join(file)).unwrap();
        assert_eq!(text.lines().next().unwrap(), value, "{file}");
    }
    container.delete(true).unwrap();
    wait(&container);
}

fn obsolete_limits_are_warned_of() {
    let mut bundle = TestBundle::command(&["true"]);
    bundle.config["linux"]["resources"]["memory"] = json!({ "kernel": 1 << 20, "kernelTCP": 1 << 20 });
    let mut container = bundle.create(Stdio::Inherit).unwrap();
    let warnings = container.take_warnings().join("\n");
    assert!(
        warnings.contains("linux.resources.memory.kernel is ignored") && warnings.contains("kernelTCP"),
        "{warnings}"
    );
    container.delete(true).unwrap();
    wait(&container);
}

fn buffers_of_tcp_are_limited_where_the_kernel_still_counts_them() {
    let mut bundle = TestBundle::command(&["true"]);
    bundle.config["linux"]["resources"]["memory"] = json!({ "kernelTCP": 1 << 20 });
    let mut container = bundle.create(Stdio::Inherit).unwrap();
    let limit = fs::read_to_string(folder(&bundle, "memory").join("memory.kmem.tcp.limit_in_bytes"));
    container.delete(true).unwrap();
    wait(&container);
    match limit {
        Ok(limit) => assert_eq!(limit.trim(), (1 << 20).to_string()),
        Err(_) => println!("SKIPPED: this kernel does not count buffers of TCP by themselves"),
    }
}

/// Each process makes the next one and ends, so whoever is looked for is gone when he is found.
fn those_who_fork_for_ever_die_in_cgroup2() {
    show_cgroup2_alone();
    let mut bundle = TestBundle::shell("f() { f & }; for i in 1 2 3 4; do f; done; sleep 60");
    // Neither has the pid namespace's end to die of.
    bundle.config["linux"]["resources"] = json!({});
    bundle.config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .retain(|namespace| namespace["type"] != "pid");
    bundle.config["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "hard": 64, "soft": 64 }]);
    let (stdio, _output) = files(&bundle.folder);
    let mut container = bundle.create(stdio).unwrap();
    container.start().unwrap();
    wait_until(|| container.processes().unwrap().len() > 1);
    container
        .delete(true)
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    wait(&container);
}
