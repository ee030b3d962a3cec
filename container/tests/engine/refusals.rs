//! Configurations that are refused, by the place of what is wrong, before anything is made.

use std::os::unix::fs::symlink;

use container::{CreateError, Stdio};
use serde_json::{Value, json};

use crate::bundle::{TestBundle, chain, files, wait};
use crate::wall::Wall;

crate::tests!(
    fields_not_honoured_yet_are_refused_by_their_place,
    labels_of_security_modules_are_refused_by_their_place,
    empty_fields_not_honoured_yet_are_no_reason,
    a_root_file_system_that_is_none_is_named,
    what_fails_on_the_way_is_told_by_its_place,
    a_configuration_without_root_or_linux_is_refused,
    another_major_version_of_the_specification_is_refused,
);

/// Sets the value at a JSON pointer, making the objects on the way.
fn set(config: &mut Value, pointer: &str, value: Value) {
    let mut place = config;
    for part in pointer.split('/').skip(1) {
        place = match part.parse::<usize>() {
            Ok(index) => &mut place[index],
            Err(_) => &mut place[part],
        };
    }
    *place = value;
}

fn fields_not_honoured_yet_are_refused_by_their_place() {
    let mut bundle = TestBundle::command(&["true"]);
    set(&mut bundle.config, "/linux/intelRdt", json!({}));
    let error = bundle.create(Stdio::Inherit).unwrap_err();
    assert!(
        error.is(
            |error| matches!(error, CreateError::Spec(_)),
            " linux.intelRdt: is not supported yet"
        ),
        "{}",
        chain(&error)
    );
}

fn labels_of_security_modules_are_refused_by_their_place() {
    if Wall::chosen() == Wall::MicroVm {
        return labels_of_the_hosts_policy_are_left_out_with_a_warning();
    }
    let files = [
        "/sys/module/apparmor/parameters/enabled",
        "/sys/fs/selinux/enforce",
    ];
    if files.iter().any(|file| std::fs::exists(file).unwrap()) {
        println!("SKIPPED: this kernel has a security module enabled");
        return;
    }
    for (pointer, field, module) in [
        ("/process/apparmorProfile", "process.apparmorProfile", "AppArmor"),
        ("/process/selinuxLabel", "process.selinuxLabel", "SELinux"),
        ("/linux/mountLabel", "linux.mountLabel", "SELinux"),
    ] {
        let mut bundle = TestBundle::command(&["true"]);
        set(&mut bundle.config, pointer, json!("some-label"));
        let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
        assert!(
            message.contains(&format!("{field}: `some-label`"))
                && message.contains(&format!("{module} is not enabled")),
            "{message}"
        );
        std::fs::remove_dir_all(&bundle.folder).unwrap();
    }
}

/// The virtual machine is what confines the container.
fn labels_of_the_hosts_policy_are_left_out_with_a_warning() {
    let mut bundle = TestBundle::command(&["true"]);
    for pointer in [
        "/process/apparmorProfile",
        "/process/selinuxLabel",
        "/linux/mountLabel",
    ] {
        set(&mut bundle.config, pointer, json!("some-label"));
    }
    let (stdio, _output) = files(&bundle.folder);
    let mut container = bundle.create(stdio).unwrap();
    let warnings = container.take_warnings().join("\n");
    for field in [
        "process.apparmorProfile",
        "process.selinuxLabel",
        "linux.mountLabel",
    ] {
        assert!(warnings.contains(field), "{warnings}");
    }
    container.delete(true).unwrap();
    wait(&container);
}

fn empty_fields_not_honoured_yet_are_no_reason() {
    let mut bundle = TestBundle::command(&["true"]);
    set(
        &mut bundle.config,
        "/hooks",
        json!({ "prestart": [], "poststop": [] }),
    );
    for label in [
        "/process/apparmorProfile",
        "/process/selinuxLabel",
        "/linux/mountLabel",
    ] {
        set(&mut bundle.config, label, json!(""));
    }
    set(&mut bundle.config, "/linux/resources/hugepageLimits", json!([]));
    bundle.output();
}

fn a_root_file_system_that_is_none_is_named() {
    let mut bundle = TestBundle::command(&["true"]);
    std::fs::write(bundle.folder.join("file"), "").unwrap();
    symlink("loop", bundle.folder.join("loop")).unwrap();
    for (path, problem) in [
        ("not-there", "No such file"),
        ("file", "is not a folder"),
        ("loop", "Too many levels of symbolic links"),
        ("file/below", "Not a directory"),
    ] {
        bundle.config["root"]["path"] = path.into();
        let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
        for word in ["root.path", &format!("bundle/{path}"), problem] {
            assert!(message.contains(word), "{path}: {message}");
        }
    }
}

/// What can be found out only when the kernel is asked, while the container is made.
fn what_fails_on_the_way_is_told_by_its_place() {
    let overlapping = json!([{ "containerID": 0, "hostID": 0, "size": 10 }, { "containerID": 9, "hostID": 100, "size": 9 }]);
    for (pointer, value, field) in [
        (
            "/linux/maskedPaths",
            json!(["/proc/none", "/loop"]),
            "linux.maskedPaths[1]: cannot open /loop",
        ),
        (
            "/linux/readonlyPaths",
            json!(["/loop"]),
            "linux.readonlyPaths[0]: cannot open /loop",
        ),
        (
            "/linux/devices",
            json!([{ "path": "/etc/passwd/node", "type": "c", "major": 1, "minor": 3 }]),
            "linux.devices[0]: cannot make the device /etc/passwd/node",
        ),
        (
            "/linux/cgroupsPath",
            json!("/bulkhead-engine\nnone"),
            "linux.cgroupsPath: cannot create the cgroup ",
        ),
        (
            "/linux/uidMappings",
            overlapping,
            "linux.uidMappings[1].containerID: maps ids that linux.uidMappings[0] maps",
        ),
    ] {
        let mut bundle = TestBundle::command(&["true"]);
        symlink("loop", bundle.rootfs().join("loop")).unwrap();
        if pointer.contains("Mappings") {
            bundle.in_a_user_namespace();
        }
        set(&mut bundle.config, pointer, value);
        let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
        assert!(message.contains(field), "{pointer}: {message}");
        std::fs::remove_dir_all(&bundle.folder).unwrap();
    }
}

fn a_configuration_without_root_or_linux_is_refused() {
    for field in ["root", "linux"] {
        let mut bundle = TestBundle::command(&["true"]);
        bundle.config.as_object_mut().unwrap().remove(field);
        let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
        assert!(message.contains(&format!("{field}: is required")), "{message}");
        std::fs::remove_dir_all(&bundle.folder).unwrap();
    }
}

fn another_major_version_of_the_specification_is_refused() {
    for version in ["2.0.0", "0.9.0", "1", "1.", "1.x.0", "invalid", ""] {
        let mut bundle = TestBundle::command(&["true"]);
        bundle.config["ociVersion"] = version.into();
        let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
        assert!(
            message.contains("ociVersion") && message.contains("1.x.y"),
            "{message}"
        );
        std::fs::remove_dir_all(&bundle.folder).unwrap();
    }
    let mut bundle = TestBundle::command(&["true"]);
    for version in ["1.0.0", "1.2.1", "1.3.0-rc.1+dev"] {
        bundle.config["ociVersion"] = version.into();
        bundle.output();
    }
}
