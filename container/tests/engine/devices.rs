//! Device nodes and who may use them.

use serde_json::json;

use crate::bundle::TestBundle;
use crate::wall::Wall;

crate::tests!(
    the_default_devices_and_links_are_there_and_work,
    a_configured_device_is_made_with_its_owner_and_mode,
    a_device_that_is_not_allowed_can_be_made_but_not_opened,
    the_kernels_memory_is_linked_where_it_is_shown,
    every_type_of_device_is_made,
    in_a_user_namespace_devices_are_bound_and_fifos_made,
    without_the_privilege_to_make_nodes_the_callers_are_bound,
    an_image_that_brings_a_link_as_a_device_is_not_followed,
);

fn the_default_devices_and_links_are_there_and_work() {
    let script = "for d in null zero full random urandom tty; do stat -c '%n %F %t:%T %a' /dev/$d; done; \
                  for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done; \
                  head -c 5 /dev/urandom | wc -c; echo x >/dev/full";
    let outcome = TestBundle::shell(script).run();
    let expected = "\
/dev/null character special file 1:3 666
/dev/zero character special file 1:5 666
/dev/full character special file 1:7 666
/dev/random character special file 1:8 666
/dev/urandom character special file 1:9 666
/dev/tty character special file 5:0 666
/proc/self/fd
/proc/self/fd/0
/proc/self/fd/1
/proc/self/fd/2
pts/ptmx
5
";
    assert_eq!(outcome.stdout, expected, "{outcome:?}");
    assert!(outcome.stderr.contains("No space left"), "{outcome:?}");
}

fn a_configured_device_is_made_with_its_owner_and_mode() {
    let mut bundle = TestBundle::shell("stat -c '%F %t:%T %a %u:%g' /dev/sub/fuse /dev/pipe");
    bundle.config["linux"]["devices"] = json!([
        { "path": "/dev/sub/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 7, "gid": 8 },
        { "path": "/dev/pipe", "type": "p", "fileMode": 0o600 }
    ]);
    assert_eq!(
        bundle.output(),
        "character special file a:e5 640 7:8\nfifo 0:0 600 0:0\n"
    );
}

fn a_device_that_is_not_allowed_can_be_made_but_not_opened() {
    let script = "mknod /dev/tun c 10 200 && echo made; : </dev/tun";
    let mut bundle = TestBundle::shell(script);
    for set in ["bounding", "permitted", "effective"] {
        bundle.config["process"]["capabilities"][set]
            .as_array_mut()
            .unwrap()
            .push("CAP_MKNOD".into());
    }
    let outcome = bundle.run();
    assert_eq!(outcome.stdout, "made\n");
    assert!(outcome.stderr.contains("Operation not permitted"), "{outcome:?}");
    bundle.config["linux"]["resources"]["devices"] =
        json!([{ "allow": false }, { "allow": true, "type": "c", "major": 10, "minor": 200, "access": "r" }]);
    assert_eq!(bundle.run().code, 0);
}

fn the_kernels_memory_is_linked_where_it_is_shown() {
    let output = TestBundle::shell("readlink /dev/core; true").output();
    let is_shown = std::path::Path::new("/proc/kcore").exists();
    assert_eq!(output, if is_shown { "/proc/kcore\n" } else { "" });
}

fn every_type_of_device_is_made() {
    let mut bundle =
        TestBundle::shell("stat -c '%F %t:%T %a' /dev/c /dev/u /dev/p; stat -c '%F %t:%T %a' /dev/b");
    bundle.config["linux"]["devices"] = json!([
        { "path": "/dev/c", "type": "c", "major": 1, "minor": 3 },
        { "path": "/dev/u", "type": "u", "major": 1, "minor": 5, "fileMode": 0o20600 },
        { "path": "/dev/b", "type": "b", "major": 4095, "minor": 1_048_575, "fileMode": 0 },
        { "path": "/dev/p", "type": "p" }
    ]);
    let outcome = bundle.run();
    let others = "character special file 1:3 666\ncharacter special file 1:5 600\nfifo 0:0 666\n";
    let disk = outcome.stdout.strip_prefix(others);
    match Wall::chosen() {
        Wall::SharedKernel => assert_eq!(disk, Some("block special file fff:fffff 0\n"), "{outcome:?}"),
        // Only disks that were handed over have a node there.
        Wall::MicroVm => assert_eq!((disk, outcome.code), (Some(""), 1), "{outcome:?}"),
    }
}

fn in_a_user_namespace_devices_are_bound_and_fifos_made() {
    let mut bundle = TestBundle::shell(
        "echo x >/dev/null && head -c 3 /dev/full | wc -c; stat -c '%F %a %u:%g' /dev/pipe /dev/null; \
         grep -c ' /dev/null ' /proc/self/mountinfo",
    );
    let mapping = json!([{ "containerID": 0, "hostID": 200_000, "size": 65_536 }]);
    let linux = bundle.config["linux"].as_object_mut().unwrap();
    linux["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "type": "user" }));
    linux.insert("uidMappings".into(), mapping.clone());
    linux.insert("gidMappings".into(), mapping);
    linux.insert(
        "devices".into(),
        json!([{ "path": "/dev/pipe", "type": "p", "fileMode": 0o640, "uid": 3, "gid": 4 }]),
    );
    std::os::unix::fs::chown(bundle.rootfs(), Some(200_000), Some(200_000)).unwrap();
    for folder in bundle.rootfs().ancestors().take(3) {
        std::fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    assert_eq!(
        bundle.output(),
        "3\nfifo 640 3:4\ncharacter special file 666 65534:65534\n1\n"
    );
}

fn without_the_privilege_to_make_nodes_the_callers_are_bound() {
    let mut own = rustix::thread::capabilities(None).unwrap();
    own.permitted.remove(rustix::thread::CapabilitySet::MKNOD);
    own.effective.remove(rustix::thread::CapabilitySet::MKNOD);
    rustix::thread::set_capabilities(None, own).unwrap();
    let mut bundle = TestBundle::shell("head -c 3 /dev/zero | wc -c");
    assert_eq!(bundle.output(), "3\n");
    // What is bound has to be the device asked for, and not what the caller has of that name.
    bundle.config["linux"]["devices"] = json!([{ "path": "/dev/zero", "type": "c", "major": 1, "minor": 9 }]);
    let message = crate::bundle::chain(&bundle.create(container::Stdio::Inherit).unwrap_err());
    assert!(
        message.contains("/dev/zero") && message.contains("No such device"),
        "{message}"
    );
}

fn an_image_that_brings_a_link_as_a_device_is_not_followed() {
    let mut bundle = TestBundle::command(&["true"]);
    bundle.config["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    let victim = bundle.folder.join("victim");
    std::fs::create_dir(bundle.rootfs().join("dev")).unwrap();
    std::os::unix::fs::symlink(&victim, bundle.rootfs().join("dev/null")).unwrap();
    let error = bundle.create(container::Stdio::Inherit).unwrap_err();
    assert!(
        crate::bundle::chain(&error).contains("/dev/null"),
        "{}",
        crate::bundle::chain(&error)
    );
    assert!(!victim.exists());
}
