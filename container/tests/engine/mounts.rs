//! Mounts of every kind, with every option.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use container::Stdio;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use serde_json::{Value, json};

use crate::bundle::{TestBundle, chain};

crate::tests!(
    every_attribute_reaches_a_bind_mount,
    recursive_attributes_reach_the_mounts_below_and_others_do_not,
    a_new_file_system_has_the_recursive_attributes_too,
    words_a_file_system_does_not_know_are_named,
    a_tmpfs_takes_over_the_mode_of_the_folder_it_covers,
    tmpcopyup_begins_with_what_the_image_has,
    mount_points_are_made_on_a_tmpfs_that_becomes_read_only,
    a_read_only_dev_has_its_devices,
    an_overlay_shows_its_layers,
    an_overlay_with_more_layers_than_the_new_interface_takes_is_mounted,
    a_remount_changes_the_attributes_of_a_bind_mount,
    a_remount_leaves_the_mounts_below_as_they_are,
    a_remount_changes_the_options_of_a_file_system,
    a_remount_of_nothing_is_named,
    ids_of_a_mount_are_mapped_by_its_own_mapping,
    a_recursive_id_mapping_reaches_the_mounts_below,
    a_mount_without_mapping_takes_the_containers,
    a_file_system_that_cannot_be_id_mapped_is_named,
    a_file_is_bound_where_a_dangling_link_leads,
    a_socket_and_a_device_are_bound,
    a_relative_destination_begins_at_the_root,
    nothing_but_procfs_is_mounted_on_proc,
    the_callers_procfs_is_bound_on_proc,
    inside_procfs_only_what_informs_is_replaced,
    a_link_into_procfs_is_no_way_around,
    the_root_is_private_shared_slave_or_unbindable,
    mounts_of_the_container_do_not_reach_the_hosts_root,
    mounts_of_the_host_reach_a_slave_and_not_a_private_bind,
    without_a_network_of_its_own_a_user_namespace_sees_the_callers_sysfs,
    cgroup2_alone_is_shown_where_it_is_asked_for,
    mounts_are_listed_in_the_order_of_the_configuration,
);

/// A folder of the host's with a file in it and, mounted below, a tmpfs.
fn volume(bundle: &TestBundle) -> PathBuf {
    let volume = bundle.folder.join("volume");
    fs::create_dir_all(volume.join("below")).unwrap();
    mount("tmpfs", volume.join("below"), "tmpfs", MountFlags::empty(), None).unwrap();
    fs::write(volume.join("file"), "from outside\n").unwrap();
    fs::write(volume.join("below/file"), "from below\n").unwrap();
    volume
}

/// The options of the mount at `point`, from a container's mountinfo.
fn options_at<'a>(mountinfo: &'a str, point: &str) -> &'a str {
    let line = mountinfo
        .lines()
        .rfind(|line| line.split(' ').nth(4) == Some(point));
    line.unwrap_or_else(|| panic!("nothing at {point}:\n{mountinfo}"))
        .split(' ')
        .nth(5)
        .unwrap()
}

fn mountinfo(bundle: &TestBundle) -> String {
    assert!(bundle.config["process"]["args"][0] == "cat");
    bundle.output()
}

const SHOW_MOUNTS: [&str; 2] = ["cat", "/proc/self/mountinfo"];

fn every_attribute_reaches_a_bind_mount() {
    let mut bundle = TestBundle::command(&SHOW_MOUNTS);
    let source = volume(&bundle);
    let cases = [
        ("ro", "ro,relatime"),
        ("nosuid", "rw,nosuid,relatime"),
        ("nodev", "rw,nodev,relatime"),
        ("noexec", "rw,noexec,relatime"),
        ("noatime", "rw,noatime"),
        ("nodiratime", "rw,nodiratime,relatime"),
        ("strictatime", "rw"),
        ("nosymfollow", "rw,relatime,nosymfollow"),
        ("rw", "rw,relatime"),
    ];
    for (word, _) in cases {
        bundle
            .mount(json!({ "destination": format!("/{word}"), "source": source, "options": ["bind", word] }));
    }
    let mountinfo = mountinfo(&bundle);
    for (word, expected) in cases {
        assert_eq!(options_at(&mountinfo, &format!("/{word}")), expected, "{word}");
    }
}

fn recursive_attributes_reach_the_mounts_below_and_others_do_not() {
    let mut bundle = TestBundle::command(&SHOW_MOUNTS);
    let source = volume(&bundle);
    let cases = [
        ("rro", "ro,relatime", "ro,relatime"),
        ("rnosuid", "rw,nosuid,relatime", "rw,nosuid,relatime"),
        ("rnodev", "rw,nodev,relatime", "rw,nodev,relatime"),
        ("rnoexec", "rw,noexec,relatime", "rw,noexec,relatime"),
        ("rnoatime", "rw,noatime", "rw,noatime"),
        ("rnodiratime", "rw,nodiratime,relatime", "rw,nodiratime,relatime"),
        ("rstrictatime", "rw", "rw"),
        (
            "rnosymfollow",
            "rw,relatime,nosymfollow",
            "rw,relatime,nosymfollow",
        ),
        ("ro", "ro,relatime", "rw,relatime"),
        ("noatime", "rw,noatime", "rw,relatime"),
    ];
    for (word, ..) in cases {
        bundle.mount(
            json!({ "destination": format!("/{word}"), "source": source, "options": ["rbind", word] }),
        );
    }
    // Both kinds at once, and the propagation of the top alone.
    bundle.mount(
        json!({ "destination": "/mixed", "source": source, "options": ["rbind", "rro", "rw", "shared"] }),
    );
    let mountinfo = mountinfo(&bundle);
    for (word, top, below) in cases {
        assert_eq!(options_at(&mountinfo, &format!("/{word}")), top, "{word}");
        assert_eq!(options_at(&mountinfo, &format!("/{word}/below")), below, "{word}");
    }
    assert_eq!(options_at(&mountinfo, "/mixed"), "rw,relatime");
    assert_eq!(options_at(&mountinfo, "/mixed/below"), "ro,relatime");
    let shared = |point: &str| {
        let line = mountinfo
            .lines()
            .find(|line| line.contains(&format!(" {point} ")))
            .unwrap();
        line.contains(" shared:")
    };
    assert!(shared("/mixed") && !shared("/mixed/below"), "{mountinfo}");
}

fn a_new_file_system_has_the_recursive_attributes_too() {
    let mut bundle = TestBundle::command(&SHOW_MOUNTS);
    bundle.mount(json!({
        "destination": "/scratch", "type": "tmpfs", "source": "tmpfs",
        "options": ["rro", "rnoexec", "rnosuid", "suid", "sync", "size=1m"]
    }));
    let mountinfo = mountinfo(&bundle);
    assert_eq!(options_at(&mountinfo, "/scratch"), "ro,noexec,relatime");
    assert!(mountinfo.contains("rw,sync,size=1024k"), "{mountinfo}");
}

fn words_a_file_system_does_not_know_are_named() {
    for (kind, word, expected) in [
        ("tmpfs", "size=lots", "size"),
        ("tmpfs", "frobnicate", "frobnicate"),
        ("nosuchfs", "ro", "the kernel has no such file system"),
    ] {
        let mut bundle = TestBundle::command(&["true"]);
        bundle.mount(json!({ "destination": "/x", "type": kind, "source": "x", "options": [word] }));
        let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
        assert!(
            message.contains("mounts[7]") && message.contains(expected) && message.contains("/x"),
            "{message}"
        );
        fs::remove_dir_all(&bundle.folder).unwrap();
    }
}

fn a_tmpfs_takes_over_the_mode_of_the_folder_it_covers() {
    let mut bundle = TestBundle::command(&["stat", "-c", "%a", "/private", "/given", "/new"]);
    for folder in ["private", "given"] {
        let folder = bundle.rootfs().join(folder);
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(folder, fs::Permissions::from_mode(0o2710)).unwrap();
    }
    bundle.mount(json!({ "destination": "/private", "type": "tmpfs", "source": "tmpfs" }));
    bundle.mount(json!({ "destination": "/given", "type": "tmpfs", "source": "x", "options": ["mode=701"] }));
    bundle.mount(json!({ "destination": "/new", "type": "tmpfs", "source": "tmpfs" }));
    assert_eq!(bundle.output(), "2710\n701\n1777\n");
}

fn tmpcopyup_begins_with_what_the_image_has() {
    let mut bundle = TestBundle::shell(
        "cd /data && cat file deep/er/file link && readlink link && stat -c '%a %u:%g %F' . file deep fifo && \
         rm -r file deep link fifo && echo new >new && stat -f -c %T .",
    );
    let data = bundle.rootfs().join("data");
    fs::create_dir_all(data.join("deep/er")).unwrap();
    fs::write(data.join("file"), "one\n").unwrap();
    fs::write(data.join("deep/er/file"), "two\n").unwrap();
    symlink("deep/er/file", data.join("link")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        data.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o620),
        0,
    )
    .unwrap();
    chown(data.join("file"), Some(7), Some(8)).unwrap();
    fs::set_permissions(data.join("file"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::set_permissions(data.join("deep"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(data.join("fifo"), fs::Permissions::from_mode(0o620)).unwrap();
    chown(&data, Some(9), Some(10)).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o2777)).unwrap();
    bundle.mount(json!({
        "destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "nosuid"]
    }));
    assert_eq!(
        bundle.output(),
        "one\ntwo\ntwo\ndeep/er/file\n2777 9:10 directory\n4755 7:8 regular file\n700 0:0 directory\n\
         620 0:0 fifo\ntmpfs\n"
    );
    assert_eq!(fs::read_to_string(data.join("file")).unwrap(), "one\n");
    assert!(!data.join("new").exists());
}

fn mount_points_are_made_on_a_tmpfs_that_becomes_read_only() {
    let mut bundle = TestBundle::shell("cat /run/secrets/file; touch /run/x");
    let source = volume(&bundle);
    bundle.mount(json!({ "destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["ro"] }));
    bundle.mount(json!({ "destination": "/run/secrets", "source": source, "options": ["bind"] }));
    let outcome = bundle.run();
    assert_eq!(outcome.stdout, "from outside\n", "{outcome:?}");
    assert!(
        outcome.stderr.contains("/run/x: Read-only file system"),
        "{outcome:?}"
    );
}

fn a_read_only_dev_has_its_devices() {
    let mut bundle = TestBundle::shell("echo x >/dev/null && stat -c %F /dev/zero; touch /dev/x");
    let dev = bundle.config["mounts"][1]["options"].as_array_mut().unwrap();
    dev.push("ro".into());
    let outcome = bundle.run();
    assert_eq!(outcome.stdout, "character special file\n", "{outcome:?}");
    assert!(
        outcome.stderr.contains("/dev/x: Read-only file system"),
        "{outcome:?}"
    );
}

fn an_overlay_shows_its_layers() {
    let mut bundle = TestBundle::shell("cat /merged/a /merged/b && echo c >/merged/c");
    let layer = |name: &str| {
        let folder = bundle.folder.join(name);
        fs::create_dir(&folder).unwrap();
        folder
    };
    let (a, b, upper, work) = (layer("a,1"), layer("b"), layer("upper"), layer("work"));
    fs::write(a.join("a"), "a\n").unwrap();
    fs::write(b.join("b"), "b\n").unwrap();
    let lower = format!(
        "lowerdir={}:{}",
        a.display().to_string().replace(',', "\\,"),
        b.display()
    );
    bundle.mount(json!({
        "destination": "/merged", "type": "overlay", "source": "overlay",
        "options": [lower, format!("upperdir={}", upper.display()), format!("workdir={}", work.display())]
    }));
    assert_eq!(bundle.output(), "a\nb\n");
    assert_eq!(fs::read_to_string(upper.join("c")).unwrap(), "c\n");
}

fn an_overlay_with_more_layers_than_the_new_interface_takes_is_mounted() {
    let mut bundle = TestBundle::shell("ls /merged | wc -l; grep ' /merged ' /proc/self/mountinfo");
    let mut layers = Vec::new();
    for number in 0..20 {
        let folder = bundle.folder.join(format!("layer-{number}"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(format!("file-{number}")), "").unwrap();
        layers.push(folder.display().to_string());
    }
    let lower = format!("lowerdir={}", layers.join(":"));
    assert!(lower.len() > 500);
    bundle.mount(json!({
        "destination": "/merged", "type": "overlay", "source": "overlay", "options": [lower, "nodev", "shared"]
    }));
    let output = bundle.output();
    assert!(output.starts_with("20\n"), "{output}");
    assert!(
        output.contains("nodev") && output.contains(" shared:"),
        "{output}"
    );
}

/// The mounts of a container with a bind of a volume that is remounted.
fn mountinfo_of_a_remount() -> String {
    let mut bundle = TestBundle::command(&SHOW_MOUNTS);
    let source = volume(&bundle);
    bundle.mount(json!({ "destination": "/x", "source": source, "options": ["rbind", "nosuid"] }));
    bundle.mount(json!({ "destination": "/x", "options": ["bind", "remount", "ro", "suid"] }));
    mountinfo(&bundle)
}

fn a_remount_changes_the_attributes_of_a_bind_mount() {
    assert_eq!(options_at(&mountinfo_of_a_remount(), "/x"), "ro,relatime");
}

fn a_remount_leaves_the_mounts_below_as_they_are() {
    assert_eq!(options_at(&mountinfo_of_a_remount(), "/x/below"), "rw,relatime");
}

fn a_remount_changes_the_options_of_a_file_system() {
    let mut bundle = TestBundle::command(&SHOW_MOUNTS);
    bundle.mount(json!({ "destination": "/x", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"] }));
    bundle
        .mount(json!({ "destination": "/x", "type": "tmpfs", "options": ["remount", "noexec", "size=2m"] }));
    let mountinfo = mountinfo(&bundle);
    assert_eq!(options_at(&mountinfo, "/x"), "rw,noexec,relatime");
    assert!(mountinfo.contains("size=2048k"), "{mountinfo}");
}

fn a_remount_of_nothing_is_named() {
    for options in [json!(["remount", "ro"]), json!(["bind", "remount", "ro"])] {
        let mut bundle = TestBundle::command(&["true"]);
        bundle.mount(json!({ "destination": "/etc", "options": options }));
        let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
        assert!(
            message.contains("mounts[7]") && message.contains("nothing is mounted there"),
            "{message}"
        );
        fs::remove_dir_all(&bundle.folder).unwrap();
    }
}

fn mapping(host: u32) -> Value {
    json!([{ "containerID": 0, "hostID": host, "size": 65_536 }])
}

/// Files of root's on file systems that can be id-mapped, one below the other.
fn mappable(bundle: &TestBundle) -> PathBuf {
    let volume = bundle.folder.join("mappable");
    fs::create_dir(&volume).unwrap();
    mount("tmpfs", &volume, "tmpfs", MountFlags::empty(), None).unwrap();
    fs::create_dir(volume.join("below")).unwrap();
    mount("tmpfs", volume.join("below"), "tmpfs", MountFlags::empty(), None).unwrap();
    for file in ["file", "below/file"] {
        fs::write(volume.join(file), "").unwrap();
        chown(volume.join(file), Some(1), Some(2)).unwrap();
    }
    volume
}

const SHOW_OWNERS: [&str; 5] = ["stat", "-c", "%u:%g", "/x/file", "/x/below/file"];

fn ids_of_a_mount_are_mapped_by_its_own_mapping() {
    let mut bundle = TestBundle::shell("stat -c %u:%g /x/file /x/below/file; touch /x/new");
    let source = mappable(&bundle);
    bundle.mount(json!({
        "destination": "/x", "source": source, "options": ["rbind", "idmap"],
        "uidMappings": mapping(1000), "gidMappings": mapping(3000)
    }));
    bundle.config["process"]["user"] = json!({ "uid": 1001, "gid": 3002 });
    fs::set_permissions(&source, fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(bundle.output(), "1001:3002\n1:2\n");
    let new = fs::metadata(source.join("new")).unwrap();
    assert_eq!((new.uid(), new.gid()), (1, 2));
}

fn a_recursive_id_mapping_reaches_the_mounts_below() {
    let mut bundle = TestBundle::command(&SHOW_OWNERS);
    let source = mappable(&bundle);
    bundle.mount(json!({
        "destination": "/x", "source": source, "options": ["rbind", "ridmap"],
        "uidMappings": mapping(1000), "gidMappings": mapping(3000)
    }));
    assert_eq!(bundle.output(), "1001:3002\n1001:3002\n");
}

/// A bundle whose files root of a user namespace may reach.
fn in_user_namespace(bundle: &mut TestBundle) {
    bundle.config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "type": "user" }));
    bundle.config["linux"]["uidMappings"] = mapping(200_000);
    bundle.config["linux"]["gidMappings"] = mapping(200_000);
    chown(bundle.rootfs(), Some(200_000), Some(200_000)).unwrap();
    for folder in bundle.rootfs().ancestors().take(3) {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn a_mount_without_mapping_takes_the_containers() {
    let mut bundle = TestBundle::command(&SHOW_OWNERS);
    let source = mappable(&bundle);
    bundle.mount(json!({ "destination": "/x", "source": source, "options": ["rbind", "idmap"] }));
    in_user_namespace(&mut bundle);
    assert_eq!(bundle.output(), "1:2\n65534:65534\n");
}

fn a_file_system_that_cannot_be_id_mapped_is_named() {
    let mut bundle = TestBundle::command(&["true"]);
    bundle.mount(json!({
        "destination": "/x", "source": "/proc/sys", "options": ["bind", "idmap"],
        "uidMappings": mapping(1000), "gidMappings": mapping(1000)
    }));
    let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
    assert!(
        message.contains("mounts[7]") && message.contains("/proc/sys") && message.contains("map the ids"),
        "{message}"
    );
}

fn a_file_is_bound_where_a_dangling_link_leads() {
    let mut bundle = TestBundle::shell("cat /etc/resolv.conf; readlink /etc/resolv.conf");
    let source = volume(&bundle).join("file");
    symlink(
        "../run/resolve/stub.conf",
        bundle.rootfs().join("etc/resolv.conf"),
    )
    .unwrap();
    bundle.mount(json!({ "destination": "/etc/resolv.conf", "source": source, "options": ["bind"] }));
    assert_eq!(bundle.output(), "from outside\n../run/resolve/stub.conf\n");
    assert!(bundle.rootfs().join("run/resolve/stub.conf").is_file());
}

fn a_socket_and_a_device_are_bound() {
    let mut bundle = TestBundle::command(&["stat", "-c", "%F", "/run/socket", "/run/null"]);
    let socket = bundle.folder.join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    bundle.mount(json!({ "destination": "/run/socket", "source": socket, "options": ["bind"] }));
    bundle.mount(json!({ "destination": "/run/null", "source": "/dev/null", "options": ["bind"] }));
    assert_eq!(bundle.output(), "socket\ncharacter special file\n");
}

fn a_relative_destination_begins_at_the_root() {
    let mut bundle = TestBundle::command(&["cat", "/var/data/file"]);
    let source = volume(&bundle);
    bundle.mount(json!({ "destination": "var/data", "source": source, "options": ["bind"] }));
    let mut container = bundle.create(Stdio::Inherit).unwrap();
    assert!(container.take_warnings()[0].contains("mounts[7].destination"));
    container.delete(true).unwrap();
    crate::bundle::wait(&container);
    assert_eq!(bundle.output(), "from outside\n");
}

fn nothing_but_procfs_is_mounted_on_proc() {
    let source = volume(&TestBundle::command(&["true"]));
    for other in [
        json!({ "destination": "/proc", "source": source, "options": ["bind"] }),
        json!({ "destination": "/proc", "type": "tmpfs", "source": "tmpfs" }),
    ] {
        for place in [0, 7] {
            let mut refused = TestBundle::named("-refused", &["true"]);
            refused.config["mounts"]
                .as_array_mut()
                .unwrap()
                .insert(place, other.clone());
            let message = chain(&refused.create(Stdio::Inherit).unwrap_err());
            assert!(
                message.contains(&format!("mounts[{place}]: /proc: only a proc file system")),
                "{message}"
            );
            fs::remove_dir_all(&refused.folder).unwrap();
        }
    }
}

fn the_callers_procfs_is_bound_on_proc() {
    let mut bundle = TestBundle::command(&["true"]);
    bundle.config["mounts"][0] = json!({ "destination": "/proc", "source": "/proc", "options": ["rbind"] });
    bundle.output();
}

fn inside_procfs_only_what_informs_is_replaced() {
    let mut bundle = TestBundle::command(&["cat", "/proc/uptime"]);
    let source = volume(&bundle).join("file");
    bundle.mount(json!({ "destination": "/proc/uptime", "source": source, "options": ["bind"] }));
    assert_eq!(bundle.output(), "from outside\n");
    bundle.mount(json!({ "destination": "/proc/self/oom_score_adj", "source": source, "options": ["bind"] }));
    let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
    assert!(
        message.contains("mounts[8]: /proc/self/oom_score_adj: is in a proc file system"),
        "{message}"
    );
}

fn a_link_into_procfs_is_no_way_around() {
    let mut bundle = TestBundle::command(&["true"]);
    let source = volume(&bundle).join("file");
    symlink("proc/self", bundle.rootfs().join("link")).unwrap();
    bundle.mount(json!({ "destination": "/link/oom_score_adj", "source": source, "options": ["bind"] }));
    let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
    assert!(
        message.contains("mounts[7]: /link/oom_score_adj: is in a proc file system"),
        "{message}"
    );
}

fn the_root_is_private_shared_slave_or_unbindable() {
    for (word, root, below) in [
        (json!(null), "", ""),
        (json!("private"), "", ""),
        (json!("rslave"), "", ""),
        (json!("shared"), "shared:", ""),
        (json!("rshared"), "shared:", "shared:"),
        (json!("unbindable"), "unbindable", ""),
        (json!("runbindable"), "unbindable", "unbindable"),
    ] {
        let mut bundle = TestBundle::command(&SHOW_MOUNTS);
        bundle.config["linux"]["rootfsPropagation"] = word.clone();
        let mountinfo = mountinfo(&bundle);
        let field = |point: &str| {
            let line = mountinfo
                .lines()
                .find(|line| line.split(' ').nth(4) == Some(point))
                .unwrap();
            line.split(' ').nth(6).unwrap().to_owned()
        };
        for (point, expected) in [("/", root), ("/proc", below)] {
            let expected = if expected.is_empty() { "-" } else { expected };
            assert!(field(point).starts_with(expected), "{word} {point}: {mountinfo}");
        }
        fs::remove_dir_all(&bundle.folder).unwrap();
    }
}

/// Makes a folder a mount of its own that is shared, as systemd has `/`.
fn make_shared(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    mount("tmpfs", folder, "tmpfs", MountFlags::empty(), None).unwrap();
    mount_change(folder, MountPropagationFlags::SHARED).unwrap();
}

fn mounts_of_the_container_do_not_reach_the_hosts_root() {
    let tests = PathBuf::from(std::env::var_os(crate::bundle::FOLDER).unwrap());
    make_shared(&tests.join("bundle"));
    let mut bundle = TestBundle::shell("mount -t tmpfs tmpfs /etc && cat /proc/mounts");
    for set in ["bounding", "permitted", "effective"] {
        bundle.config["process"]["capabilities"][set]
            .as_array_mut()
            .unwrap()
            .push("CAP_SYS_ADMIN".into());
    }
    for propagation in ["rshared", "shared", "rslave", "private"] {
        bundle.config["linux"]["rootfsPropagation"] = propagation.into();
        let container = bundle.create(Stdio::Inherit);
        let mut container = container.unwrap_or_else(|error| panic!("{}", chain(&error)));
        container.start().unwrap();
        assert_eq!(crate::bundle::wait(&container), 0);
        let hosts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let below = format!(" {}/", bundle.rootfs().display());
        assert!(!hosts.contains(&below), "{propagation}: {hosts}");
        container.delete(true).unwrap();
    }
}

fn mounts_of_the_host_reach_a_slave_and_not_a_private_bind() {
    let mut bundle = TestBundle::shell(
        "until [ -e /slave/go ]; do sleep 0.01; done; ls /slave/later /private/later /shared/later; \
         mount -t tmpfs mine /shared/mine; mount -t tmpfs mine /slave/mine; mount -t tmpfs mine /private/mine",
    );
    for set in ["bounding", "permitted", "effective"] {
        bundle.config["process"]["capabilities"][set]
            .as_array_mut()
            .unwrap()
            .push("CAP_SYS_ADMIN".into());
    }
    let source = bundle.folder.join("source");
    make_shared(&source);
    for folder in ["later", "mine"] {
        fs::create_dir(source.join(folder)).unwrap();
    }
    for (name, word) in [
        ("slave", "rslave"),
        ("private", "rprivate"),
        ("shared", "rshared"),
    ] {
        bundle.mount(
            json!({ "destination": format!("/{name}"), "source": source, "options": ["rbind", word] }),
        );
    }
    let (stdio, output) = crate::bundle::files(&bundle.folder);
    let mut container = bundle
        .create(stdio)
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    container.start().unwrap();
    mount("tmpfs", source.join("later"), "tmpfs", MountFlags::empty(), None).unwrap();
    fs::write(source.join("later/seen"), "").unwrap();
    fs::write(source.join("go"), "").unwrap();
    let outcome = output.outcome(crate::bundle::wait(&container));
    assert_eq!(
        outcome.stdout, "/private/later:\n\n/shared/later:\nseen\n\n/slave/later:\nseen\n",
        "{outcome:?}"
    );
    let hosts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    // What is mounted in a shared one reaches the host, and in it once alone.
    assert_eq!(hosts.matches(" - tmpfs mine ").count(), 1, "{hosts}");
    container.delete(true).unwrap();
}

fn without_a_network_of_its_own_a_user_namespace_sees_the_callers_sysfs() {
    let mut bundle = TestBundle::shell("ls -d /sys/kernel && cat /proc/self/mountinfo");
    in_user_namespace(&mut bundle);
    bundle.config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .retain(|namespace| namespace["type"] != "network");
    let output = bundle.output();
    assert!(output.starts_with("/sys/kernel\n"), "{output}");
    assert_eq!(options_at(&output, "/sys"), "ro,nosuid,nodev,noexec,relatime");
}

fn cgroup2_alone_is_shown_where_it_is_asked_for() {
    let mut bundle = TestBundle::shell("stat -f -c %t /sys/fs/cgroup; ls /sys/fs/cgroup/cgroup.procs");
    bundle.config["mounts"][6]["type"] = "cgroup2".into();
    assert_eq!(bundle.output(), "63677270\n/sys/fs/cgroup/cgroup.procs\n");
}

/// More binds follow each other than the caller hands over at once.
fn mounts_are_listed_in_the_order_of_the_configuration() {
    let mut bundle = TestBundle::command(&SHOW_MOUNTS);
    let source = volume(&bundle);
    let mut expected = Vec::new();
    for turn in 0..3 {
        let file_system = format!("/tmpfs-{turn}");
        bundle.mount(json!({ "destination": file_system, "type": "tmpfs", "source": "tmpfs" }));
        expected.push(file_system);
        for number in 0..=20 * turn {
            let (name, from) = match number % 2 {
                0 => ("folder", source.clone()),
                _ => ("file", source.join("file")),
            };
            let bind = format!("/{name}-{turn}-{number}");
            bundle.mount(json!({ "destination": bind, "source": from, "options": ["bind"] }));
            expected.push(bind);
        }
    }
    let mountinfo = mountinfo(&bundle);
    let points = mountinfo.lines().map(|line| line.split(' ').nth(4).unwrap());
    let listed: Vec<&str> = points
        .filter(|point| expected.iter().any(|one| one == point))
        .collect();
    assert_eq!(listed, expected);
}
