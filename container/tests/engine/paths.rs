//! Mounts, and paths that try to lead somewhere else.

use std::fs;
use std::os::unix::fs::symlink;

use container::Stdio;
use serde_json::json;

use crate::bundle::{TestBundle, chain};

crate::tests!(
    a_read_only_root_cannot_be_written,
    a_writable_root_is_the_bundles,
    masked_paths_are_empty,
    read_only_paths_cannot_be_written_and_others_can,
    a_bind_mount_shows_the_source_and_ro_protects_it,
    a_recursive_ro_protects_what_is_mounted_below,
    a_file_is_bound_over_a_file_made_for_it,
    a_mount_point_behind_links_stays_inside,
    a_link_in_place_of_proc_is_refused,
    a_working_folder_that_is_missing_is_made,
    a_working_folder_through_the_kernels_links_is_refused,
    a_working_folder_that_climbs_stays_inside,
    mount_options_reach_the_kernel,
    settings_of_a_file_system_mean_nothing_to_a_bind_mount,
    a_relative_protected_path_is_taken_from_the_root,
    the_old_root_is_gone,
    a_missing_bind_source_is_named,
);

fn a_read_only_root_cannot_be_written() {
    let outcome = TestBundle::shell("touch /file").run();
    assert_ne!(outcome.code, 0);
    assert!(outcome.stderr.contains("Read-only file system"), "{outcome:?}");
}

fn a_writable_root_is_the_bundles() {
    let mut bundle = TestBundle::shell("echo kept >/file");
    bundle.config["root"]["readonly"] = false.into();
    bundle.output();
    assert_eq!(
        fs::read_to_string(bundle.rootfs().join("file")).unwrap(),
        "kept\n"
    );
}

fn masked_paths_are_empty() {
    let script =
        "wc -c </proc/keys; wc -c </proc/timer_list; ls -A /sys/firmware | wc -l; ls -A /proc/acpi | wc -l";
    assert_eq!(TestBundle::shell(script).output(), "0\n0\n0\n0\n");
}

fn read_only_paths_cannot_be_written_and_others_can() {
    let mut bundle = TestBundle::shell("echo 1 >/proc/sys/kernel/shm_rmid_forced");
    let outcome = bundle.run();
    assert!(outcome.stderr.contains("Read-only file system"), "{outcome:?}");
    bundle.config["linux"]["readonlyPaths"] = json!([]);
    bundle.output();
}

/// A folder of the host's with a file in it.
fn volume(bundle: &TestBundle) -> std::path::PathBuf {
    let volume = bundle.folder.join("volume");
    fs::create_dir_all(volume.join("below")).unwrap();
    fs::write(volume.join("file"), "from outside\n").unwrap();
    volume
}

fn a_bind_mount_shows_the_source_and_ro_protects_it() {
    let mut bundle = TestBundle::shell("cat /rw/file; echo in >/rw/new; echo in >/ro/new");
    let source = volume(&bundle);
    bundle.config["root"]["readonly"] = false.into();
    bundle.mount(json!({ "destination": "/rw", "source": source, "options": ["bind"] }));
    bundle.mount(
        json!({ "destination": "/ro", "source": "volume", "type": "none", "options": ["rbind", "ro"] }),
    );
    let outcome = bundle.run();
    assert_eq!(outcome.stdout, "from outside\n");
    assert!(
        outcome.stderr.contains("/ro/new: Read-only file system"),
        "{outcome:?}"
    );
    assert_eq!(fs::read_to_string(source.join("new")).unwrap(), "in\n");
}

fn a_recursive_ro_protects_what_is_mounted_below() {
    let mut bundle = TestBundle::shell("touch /ro/below/x; touch /rro/below/x");
    let source = volume(&bundle);
    rustix::mount::mount(
        "tmpfs",
        source.join("below"),
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        None,
    )
    .unwrap();
    bundle.mount(json!({ "destination": "/ro", "source": source, "options": ["rbind", "ro"] }));
    bundle.mount(json!({ "destination": "/rro", "source": source, "options": ["rbind", "rro"] }));
    let outcome = bundle.run();
    assert_eq!(
        outcome.stderr.trim(),
        "touch: /rro/below/x: Read-only file system"
    );
}

fn a_file_is_bound_over_a_file_made_for_it() {
    let mut bundle = TestBundle::shell("cat /etc/deep/conf");
    let source = volume(&bundle).join("file");
    bundle.mount(json!({ "destination": "/etc/deep/conf", "source": source, "options": ["bind", "ro"] }));
    assert_eq!(bundle.output(), "from outside\n");
}

fn a_mount_point_behind_links_stays_inside() {
    let mut bundle = TestBundle::shell("cat /tmp/link/file /tmp/up/data/file");
    let source = volume(&bundle);
    fs::create_dir(bundle.rootfs().join("tmp")).unwrap();
    // One leads to a folder that exists on the host, one climbs.
    symlink("/usr/share/bulkhead-test", bundle.rootfs().join("tmp/link")).unwrap();
    symlink("../../../../../..", bundle.rootfs().join("tmp/up")).unwrap();
    bundle.mount(json!({ "destination": "/tmp/link", "source": source, "options": ["bind"] }));
    bundle.mount(json!({ "destination": "/tmp/up/data", "source": source, "options": ["bind"] }));
    assert_eq!(bundle.output(), "from outside\nfrom outside\n");
    assert!(!fs::exists("/usr/share/bulkhead-test").unwrap());
    assert!(bundle.rootfs().join("usr/share/bulkhead-test").is_dir());
    assert!(bundle.rootfs().join("data").is_dir() && !fs::exists("/data/file").unwrap());
}

fn a_link_in_place_of_proc_is_refused() {
    let bundle = TestBundle::command(&["true"]);
    fs::create_dir(bundle.rootfs().join("elsewhere")).unwrap();
    symlink("elsewhere", bundle.rootfs().join("proc")).unwrap();
    let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
    assert!(
        message.contains("/proc") && message.contains("symbolic link"),
        "{message}"
    );
}

fn a_working_folder_that_is_missing_is_made() {
    let mut bundle = TestBundle::command(&["pwd"]);
    bundle.config["process"]["cwd"] = "/work/deep".into();
    assert_eq!(bundle.output(), "/work/deep\n");
}

fn a_working_folder_through_the_kernels_links_is_refused() {
    let mut bundle = TestBundle::command(&["pwd"]);
    let host = fs::File::open("/").unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&host);
    for cwd in [
        format!("/proc/self/fd/{number}"),
        "/proc/1/cwd".to_owned(),
        "/proc/self/root/etc".to_owned(),
    ] {
        bundle.config["process"]["cwd"] = cwd.into();
        let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
        assert!(
            message.contains("process.cwd") && message.contains("is refused"),
            "{message}"
        );
    }
}

fn a_working_folder_that_climbs_stays_inside() {
    let mut bundle = TestBundle::command(&["ls", "bin/busybox"]);
    symlink("../../../../..", bundle.rootfs().join("up")).unwrap();
    bundle.config["process"]["cwd"] = "/up".into();
    assert_eq!(bundle.output(), "bin/busybox\n");
}

fn mount_options_reach_the_kernel() {
    let mut bundle = TestBundle::shell("grep ' /scratch ' /proc/self/mountinfo");
    bundle.mount(json!({
        "destination": "/scratch", "type": "tmpfs", "source": "scratch",
        "options": ["nosuid", "noexec", "nodev", "noatime", "size=4m", "mode=700", "rshared"]
    }));
    let line = bundle.output();
    assert!(line.contains("rw,nosuid,nodev,noexec,noatime shared:"), "{line}");
    assert!(
        line.contains("scratch") && line.contains("size=4096k") && line.contains("mode=700"),
        "{line}"
    );
}

fn settings_of_a_file_system_mean_nothing_to_a_bind_mount() {
    let mut bundle = TestBundle::command(&["cat", "/volume/file"]);
    let volume = volume(&bundle);
    let mut options = json!(["bind", "mode=755", "size=1k"]);
    bundle.mount(json!({ "destination": "/volume", "source": volume, "options": options }));
    assert_eq!(bundle.output(), "from outside\n");
    options.as_array_mut().unwrap().push(json!("noexe"));
    bundle.mount(json!({ "destination": "/volume", "source": volume, "options": options }));
    let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
    assert!(message.contains("`noexe` means nothing"), "{message}");
}

fn a_relative_protected_path_is_taken_from_the_root() {
    let mut bundle = TestBundle::shell("echo x >/etc/file");
    bundle.config["root"]["readonly"] = false.into();
    bundle.config["linux"]["readonlyPaths"] = json!(["etc", "not-there"]);
    let outcome = bundle.run();
    assert!(outcome.stderr.contains("Read-only file system"), "{outcome:?}");
}

fn the_old_root_is_gone() {
    let output = TestBundle::command(&["cat", "/proc/self/mountinfo"]).output();
    let points = output.lines().map(|line| line.split(' ').nth(4).unwrap());
    let others: Vec<&str> = points
        .filter(|point| {
            !["/proc", "/dev", "/sys"]
                .iter()
                .any(|known| point.starts_with(known))
        })
        .collect();
    assert_eq!(others, ["/"], "{output}");
}

fn a_missing_bind_source_is_named() {
    let mut bundle = TestBundle::command(&["true"]);
    bundle.mount(json!({ "destination": "/x", "source": "/no/such/source", "options": ["bind"] }));
    let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
    assert!(
        message.contains("mounts[7]") && message.contains("/no/such/source"),
        "{message}"
    );
}
