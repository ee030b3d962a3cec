//! Device nodes and who may use them.

use serde_json::json;

use crate::bundle::TestBundle;

crate::tests!(
    the_default_devices_and_links_are_there_and_work,
    a_configured_device_is_made_with_its_owner_and_mode,
    a_device_that_is_not_allowed_can_be_made_but_not_opened,
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
