//! Images, and containers that run meanwhile, which try to have the engine do something to the host.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use container::Stdio;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::mount::mount_bind;
use serde_json::json;

use crate::bundle::{TestBundle, chain, files, wait, wait_until};

crate::tests!(
    a_mount_point_that_is_swapped_for_a_link_stays_inside,
    masks_are_the_callers_null_device_whatever_the_image_has,
    a_null_device_that_is_none_hides_nothing_and_is_refused,
    paths_masked_twice_are_no_mistake,
    what_is_hidden_cannot_be_uncovered_by_a_link,
    a_parameter_that_somebody_covered_is_not_written,
    a_console_that_is_a_link_is_refused,
    no_descriptor_of_the_callers_is_handed_down,
    a_working_directory_is_protected_and_hidden_like_any_other,
    what_hides_cannot_be_changed,
    a_pipe_in_place_of_the_users_list_holds_nobody_up,
    links_where_the_kernels_files_or_devices_go_are_refused,
);

/// Another process that, as a running container can in a volume it shares, exchanges a folder for a link, back and
/// forth (CVE-2021-30465).
fn swap_for_ever(folder: &Path, link: &Path) {
    // SAFETY: this process has one thread, and the child calls nothing but renameat2 until it is killed.
    if unsafe { libc::fork() } != 0 {
        return;
    }
    // SAFETY: plain integers; the child does not outlive the test.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    loop {
        let _ = renameat_with(CWD, folder, CWD, link, RenameFlags::EXCHANGE);
    }
}

fn a_mount_point_that_is_swapped_for_a_link_stays_inside() {
    let mut bundle = TestBundle::command(&["cat", "/proc/self/mountinfo"]);
    let outside = bundle.folder.join("outside");
    let volume = bundle.folder.join("volume");
    fs::create_dir(&outside).unwrap();
    fs::create_dir_all(volume.join("folder")).unwrap();
    // The folder as the host has it, and the way up from wherever the volume is.
    let climbing = format!("../../../../../../../../..{}", outside.display());
    symlink(&climbing, volume.join("link")).unwrap();
    bundle.config["root"]["readonly"] = false.into();
    bundle.mount(json!({ "destination": "/volume", "source": volume, "options": ["bind"] }));
    for (destination, kind) in [
        ("/volume/folder/a", "tmpfs"),
        ("/volume/folder/deep/b", "tmpfs"),
        ("/volume/folder/c", "mqueue"),
    ] {
        bundle.mount(json!({ "destination": destination, "type": kind, "source": "probe" }));
    }
    let file = bundle.folder.join("file");
    fs::write(&file, "").unwrap();
    bundle.mount(json!({ "destination": "/volume/folder/d", "source": file, "options": ["bind"] }));
    swap_for_ever(&volume.join("folder"), &volume.join("link"));
    let (mut behind_the_link, mut in_the_folder) = (0, 0);
    for _ in 0..30 {
        let output = bundle.output();
        // Every mount is one that the container sees, so none is elsewhere.
        assert_eq!(output.matches(" probe ").count(), 3, "{output}");
        // Whatever was made outside the root and the volume was made on the host.
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        for line in output.lines().filter(|line| line.contains(" - tmpfs probe ")) {
            match line.split(' ').nth(4).unwrap().starts_with("/volume/") {
                true => in_the_folder += 1,
                false => behind_the_link += 1,
            }
        }
    }
    assert!(
        behind_the_link > 0 && in_the_folder > 0,
        "nothing was swapped: {behind_the_link} behind the link, {in_the_folder} in the folder"
    );
}

fn masks_are_the_callers_null_device_whatever_the_image_has() {
    let mut bundle = TestBundle::command(&["stat", "-c", "%F %t:%T", "/proc/keys", "/proc/timer_list"]);
    // A `/dev` from the image, with a link to what runs programs on the host (CVE-2025-31133).
    let dev = bundle.folder.join("dev");
    fs::create_dir(&dev).unwrap();
    symlink("/proc/sys/kernel/core_pattern", dev.join("null")).unwrap();
    bundle.config["mounts"] = json!([
        { "destination": "/proc", "type": "proc", "source": "proc" },
        { "destination": "/dev", "source": dev, "options": ["bind"] }
    ]);
    assert_eq!(
        bundle.output(),
        "character special file 1:3\ncharacter special file 1:3\n"
    );
}

fn a_null_device_that_is_none_hides_nothing_and_is_refused() {
    let bundle = TestBundle::command(&["true"]);
    let file = bundle.folder.join("file");
    fs::write(&file, "").unwrap();
    let (stdio, _output) = files(&bundle.folder);
    // In this test's own tree of mounts.
    mount_bind(&file, "/dev/null").unwrap();
    let message = chain(&bundle.create(stdio).unwrap_err());
    assert!(message.contains("/dev/null: is not the null device"), "{message}");
}

fn paths_masked_twice_are_no_mistake() {
    let mut bundle = TestBundle::shell("cat /proc/keys | wc -c; ls -A /proc/tty | wc -l; touch /proc/tty/x");
    bundle.config["linux"]["maskedPaths"] = json!([
        "/proc/keys",
        "/proc/tty",
        "/proc/keys",
        "/proc/tty/",
        "/proc/./keys"
    ]);
    let outcome = bundle.run();
    assert_eq!(outcome.stdout, "0\n0\n", "{outcome:?}");
    assert!(outcome.stderr.contains("Read-only file system"), "{outcome:?}");
}

fn what_is_hidden_cannot_be_uncovered_by_a_link() {
    let mut bundle = TestBundle::shell("cat /secret /also | wc -c; umount /secret; cat /secret | wc -c");
    fs::write(bundle.rootfs().join("secret"), "secret").unwrap();
    symlink("../../secret", bundle.rootfs().join("also")).unwrap();
    bundle.config["linux"]["maskedPaths"] = json!(["/also"]);
    assert_eq!(bundle.output(), "0\n0\n");
}

fn a_parameter_that_somebody_covered_is_not_written() {
    let mut bundle = TestBundle::command(&["true"]);
    let file = bundle.folder.join("file");
    fs::write(&file, "untouched").unwrap();
    bundle.config["linux"]["sysctl"] = json!({ "kernel.domainname": "example.org" });
    bundle.output();
    mount_bind(&file, "/proc/sys/kernel/domainname").unwrap();
    let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
    assert!(
        message.contains("linux.sysctl[`kernel/domainname`]") && message.contains("cross-device"),
        "{message}"
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), "untouched");
}

fn a_console_that_is_a_link_is_refused() {
    let mut bundle = TestBundle::command(&["true"]);
    let dev = bundle.rootfs().join("dev");
    fs::create_dir(&dev).unwrap();
    symlink("/proc/sys/kernel/core_pattern", dev.join("console")).unwrap();
    bundle.config["mounts"].as_array_mut().unwrap().remove(1);
    bundle.config["process"]["terminal"] = true.into();
    let message = chain(&bundle.create(Stdio::Terminal).unwrap_err());
    assert!(
        message.contains("/dev/console") && message.contains("symbolic link"),
        "{message}"
    );
}

fn no_descriptor_of_the_callers_is_handed_down() {
    // One to the host's root that would survive an execve (CVE-2024-21626).
    let host = rustix::fs::open("/", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
    let bundle = TestBundle::shell("for fd in /proc/self/fd/*; do readlink $fd; done | grep -v /proc/");
    let (stdio, output) = files(&bundle.folder);
    let mut container = bundle.create(stdio).unwrap();
    let folder = format!("/proc/{}/fd", container.pid().unwrap());
    // It has reported before it closes what it does not keep.
    wait_until(|| {
        let entries = fs::read_dir(&folder).unwrap().flatten();
        let mut targets = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
        targets.all(|target| !target.is_dir() && !target.starts_with("/sys"))
    });
    container.start().unwrap();
    let outcome = output.outcome(wait(&container));
    container.delete(true).unwrap();
    drop(host);
    let own = bundle.folder.display().to_string();
    assert!(
        outcome
            .stdout
            .lines()
            .all(|target| target.starts_with(&own) || target == "/dev/null" || target.starts_with("pipe:")),
        "{outcome:?}"
    );
}

/// Opened before it is covered, the folder would be what is beneath.
fn a_working_directory_is_protected_and_hidden_like_any_other() {
    let script = "echo spoilt > kernel/domainname; cat kernel/domainname";
    let mut bundle = TestBundle::shell(script);
    bundle.config["process"]["cwd"] = "/proc/sys".into();
    let outcome = bundle.run();
    assert!(outcome.stderr.contains("Read-only file system"), "{outcome:?}");
    assert!(!outcome.stdout.contains("spoilt"), "{outcome:?}");

    let mut bundle = TestBundle::named("-hidden", &["/bin/ls", "-A"]);
    bundle.config["process"]["cwd"] = "/proc/tty".into();
    bundle.config["linux"]["maskedPaths"] = serde_json::json!(["/proc/tty"]);
    assert_eq!(bundle.output(), "");
}

/// It is the caller's own node.
fn what_hides_cannot_be_changed() {
    let mode = || fs::metadata("/dev/null").unwrap().permissions().mode();
    let before = mode();
    let mut bundle =
        TestBundle::shell("chmod 640 /proc/interrupts; echo x > /proc/interrupts; cat /proc/interrupts");
    bundle.config["linux"]["maskedPaths"] = serde_json::json!(["/proc/interrupts"]);
    let outcome = bundle.run();
    let after = mode();
    fs::set_permissions("/dev/null", fs::Permissions::from_mode(before)).unwrap();
    assert_eq!(after, before);
    assert!(outcome.stderr.contains("Read-only file system"), "{outcome:?}");
    // It can be written to all the same, and gives nothing.
    assert_eq!((outcome.code, &*outcome.stdout), (0, ""), "{outcome:?}");
}

fn a_pipe_in_place_of_the_users_list_holds_nobody_up() {
    let bundle = TestBundle::shell("echo $HOME");
    let passwd = bundle.rootfs().join("etc/passwd");
    fs::remove_file(&passwd).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &passwd,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    assert_eq!(bundle.output(), "/\n");
    fs::remove_file(&passwd).unwrap();
    symlink("/proc/self/fd/0", &passwd).unwrap();
    assert_eq!(bundle.output(), "/\n");
}

fn links_where_the_kernels_files_or_devices_go_are_refused() {
    let mut bundle = TestBundle::named("-proc", &["true"]);
    fs::create_dir(bundle.rootfs().join("elsewhere")).unwrap();
    symlink("/elsewhere", bundle.rootfs().join("proc")).unwrap();
    let proc = &mut bundle.config["mounts"][0];
    *proc = serde_json::json!({ "destination": "/proc", "type": "bind", "source": "/proc", "options": ["rbind"] });
    let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
    assert!(message.contains("symbolic link"), "{message}");

    let mut bundle = TestBundle::named("-dev", &["true"]);
    fs::create_dir(bundle.rootfs().join("elsewhere")).unwrap();
    fs::write(bundle.rootfs().join("elsewhere/core"), "kept").unwrap();
    symlink("/elsewhere", bundle.rootfs().join("dev")).unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
    assert!(message.contains("/dev"), "{message}");
    assert_eq!(
        fs::read_to_string(bundle.rootfs().join("elsewhere/core")).unwrap(),
        "kept"
    );
}
