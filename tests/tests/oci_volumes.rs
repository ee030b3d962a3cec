//! Disks of containers behind the microVM wall: images and block devices as volumes, as devices and as roots.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use tests::oci::OciBundle;
use tests::oci_container::OciContainer;
use tests::own_mounts::{mount_memory, unmount, with_own_mounts};
use tests::{Finished, Wall, busy_factor, finish};

const MIB: u64 = 1 << 20;

fn behind_microvm(script: &str) -> Option<OciContainer> {
    OciContainer::behind(Wall::MicroVm, &["sh", "-c", script])
}

/// An image of an ext4 file system that holds what is in `from`.
fn ext4(image: &Path, mib: u64, from: Option<&Path>) {
    File::create(image).unwrap().set_len(mib * MIB).unwrap();
    let mut command = Command::new("mkfs.ext4");
    command.args(["-q", "-F", "-O", "^resize_inode", "-m", "0"]);
    if let Some(from) = from {
        command.arg("-d").arg(from);
    }
    finish(command.arg(image)).expect(0);
}

/// What the file system of an image holds under a name, as e2fsprogs read it, and that it is whole.
fn read_from(image: &Path, name: &str) -> String {
    finish(Command::new("e2fsck").args(["-f", "-n"]).arg(image)).expect(0);
    finish(
        Command::new("debugfs")
            .arg("-R")
            .arg(format!("cat {name}"))
            .arg(image),
    )
    .stdout
}

fn mount(source: &Path, destination: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": "ext4", "source": source, "options": options })
}

fn push(config: &mut Value, pointer: &str, value: Value) {
    config
        .pointer_mut(pointer)
        .unwrap()
        .as_array_mut()
        .unwrap()
        .push(value);
}

/// A container that runs in the pod of `founder`.
fn member(founder: &OciContainer, name: &str, script: &str, configure: impl FnOnce(&mut Value)) -> OciBundle {
    founder.sibling(name, &["sh", "-c", script], |config| {
        config["annotations"] = json!({ "dev.bulkhead.sandbox": founder.id() });
        configure(config);
    })
}

fn create(founder: &OciContainer, bundle: &OciBundle) -> Finished {
    founder.oci(
        "create",
        &["--bundle", bundle.folder.to_str().unwrap(), &bundle.id],
    )
}

fn run(founder: &OciContainer, bundle: &OciBundle) -> Finished {
    founder.oci("run", &["--bundle", bundle.folder.to_str().unwrap(), &bundle.id])
}

/// A container that founds a pod and waits in it, by containerd's annotation.
fn pod() -> Option<OciContainer> {
    let mut founder = behind_microvm("sleep 600")?;
    founder.config["annotations"] = json!({ "io.kubernetes.cri.container-type": "sandbox" });
    founder.on("create", &["--bundle", "."]).expect(0);
    founder.on("start", &[]).expect(0);
    Some(founder)
}

/// Nobody has the image any more.
#[track_caller]
fn assert_free(image: &Path) {
    File::open(image).unwrap().try_lock().unwrap();
}

/// The VMM's open files that are this one.
fn held_by_vmm(founder: &OciContainer, image: &Path) -> bool {
    let descriptors = format!("/proc/{}/fd", founder.vmm().as_raw_nonzero());
    let mut entries = fs::read_dir(descriptors).unwrap().flatten();
    entries.any(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == image))
}

/// A block device that is an image, until it goes.
struct LoopDevice(PathBuf);

impl LoopDevice {
    /// `None`, said aloud, where there is none to be had.
    fn of(image: &Path) -> Option<Self> {
        let finished = finish(Command::new("losetup").args(["--find", "--show"]).arg(image));
        if finished.code != 0 {
            println!(
                "SKIPPED: this host has no loop device for the test: {}",
                finished.stderr
            );
            return None;
        }
        Some(Self(finished.stdout.trim().into()))
    }

    fn number(&self) -> (u32, u32) {
        let number = rustix::fs::stat(&self.0).unwrap().st_rdev;
        (rustix::fs::major(number), rustix::fs::minor(number))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        finish(Command::new("losetup").arg("--detach").arg(&self.0));
    }
}

#[test]
fn an_image_is_a_volume_that_keeps_what_was_written_however_the_container_ends() {
    let Some(mut bundle) = behind_microvm("cat /data/before && echo written > /data/after && exit 3") else {
        return;
    };
    let image = bundle.scratch().join("data.img");
    let content = bundle.scratch().join("content");
    fs::create_dir(&content).unwrap();
    fs::write(content.join("before"), "from the host\n").unwrap();
    ext4(&image, 8, Some(&content));
    push(
        &mut bundle.config,
        "/mounts",
        mount(&image, "/data", &["noatime"]),
    );
    let finished = bundle.on("run", &[]);
    assert_eq!(
        (finished.code, &*finished.stdout),
        (3, "from the host\n"),
        "{finished:?}"
    );
    assert_eq!(read_from(&image, "after"), "written\n");
    assert_free(&image);

    // One that is ended by force has said nothing to its disk, as far as it knows.
    bundle.config["process"]["args"] = json!(["sh", "-c", "echo more > /data/more; echo there; sleep 600"]);
    bundle.on("create", &["--bundle", "."]).expect(0);
    bundle.on("start", &[]).expect(0);
    let id = bundle.id();
    let seen =
        "until test -s /data/more; do sleep 0.1; done; stat -f -c %T /data 2>/dev/null; cat /proc/mounts";
    let mounts = bundle.oci("exec", &[&id, "sh", "-c", seen]).expect(0).stdout;
    assert!(mounts.contains("/dev/vda /data ext4 rw,noatime"), "{mounts}");
    bundle.on("delete", &["--force"]).expect(0);
    assert_eq!(read_from(&image, "more"), "more\n");
    assert_free(&image);
}

#[test]
fn a_read_only_disk_stays_as_it_is_and_is_shared_between_machines() {
    let Some(mut bundle) = behind_microvm("sleep 600") else {
        return;
    };
    let image = bundle.scratch().join("base.img");
    ext4(&image, 4, None);
    let before = fs::read(&image).unwrap();
    push(&mut bundle.config, "/mounts", mount(&image, "/base", &["ro"]));
    // A privileged program may try whatever it likes.
    let all = ["CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_DAC_OVERRIDE"];
    bundle.config["process"]["capabilities"] = json!({ "bounding": all, "effective": all, "permitted": all });
    bundle.config["linux"]["resources"]["devices"] = json!([{ "allow": true, "access": "rwm" }]);
    bundle.on("create", &["--bundle", "."]).expect(0);
    bundle.on("start", &[]).expect(0);
    let id = bundle.id();
    let script = "touch /base/x; busybox mknod /dev/disk b $(cut -d: -f1 /sys/block/vda/dev) 0 && \
                  cat /sys/block/vda/serial /sys/block/vdb/serial >/dev/null; \
                  dd if=/dev/zero of=/dev/disk bs=4096 count=8 conv=fsync; echo $?";
    let tried = bundle.oci("exec", &[&id, "sh", "-c", script]).expect(0);
    assert!(tried.stderr.contains("Read-only file system"), "{tried:?}");
    assert_eq!(tried.stdout.trim(), "1", "{tried:?}");
    assert!(fs::read(&image).unwrap() == before);

    // Others may read it meanwhile, and nobody may write it.
    let Some(mut second) = behind_microvm("ls /base") else {
        return;
    };
    push(&mut second.config, "/mounts", mount(&image, "/base", &["ro"]));
    assert_eq!(second.on("run", &[]).expect(0).stdout, "lost+found\n");
    second.config["mounts"]
        .as_array_mut()
        .unwrap()
        .last_mut()
        .unwrap()["options"] = json!(["rw"]);
    second
        .on("run", &[])
        .expect(1)
        .complains_of(&["mounts[5].source", "is in use"]);
    bundle.on("delete", &["--force"]).expect(0);
    assert_free(&image);
}

#[test]
fn what_is_no_disk_is_refused_by_its_place_and_leaves_nothing() {
    let Some(mut bundle) = behind_microvm("true") else {
        return;
    };
    let scratch = bundle.scratch().to_owned();
    let pipe = scratch.join("pipe");
    finish(Command::new("mkfifo").arg(&pipe)).expect(0);
    let small = scratch.join("small.img");
    fs::write(&small, [0; 700]).unwrap();
    push(&mut bundle.config, "/mounts", Value::Null);
    let kind = "neither a file nor a block device";
    for (source, word) in [
        (pipe.as_path(), kind),
        (&scratch, kind),
        (Path::new("/dev/null"), kind),
        (&scratch.join("none"), "No such file"),
        (&small, "700 bytes"),
    ] {
        bundle.config["mounts"][5] = mount(source, "/data", &["rw"]);
        bundle
            .on("run", &[])
            .expect(1)
            .complains_of(&["mounts[5].source", word]);
    }
    bundle.config["mounts"].as_array_mut().unwrap().pop();
    let annotation = |name: &str| json!({ name: "/r" });
    for half in ["dev.bulkhead.root.source", "dev.bulkhead.root.type"] {
        bundle.config["annotations"] = annotation(half);
        bundle
            .on("run", &[])
            .expect(1)
            .complains_of(&["they go together"]);
    }
    bundle.config["annotations"] = json!({});
    bundle.config["linux"]["devices"] =
        json!([{ "path": "/dev/none", "type": "b", "major": 4000, "minor": 1 }]);
    bundle.config["linux"]["resources"]["devices"] =
        json!([{ "allow": true, "type": "b", "major": 4000, "minor": 1, "access": "rwm" }]);
    bundle
        .on("run", &[])
        .expect(1)
        .complains_of(&["linux.devices[0]", "no block device 4000:1"]);
    // The other wall has no roots that are disks.
    let mut other = OciContainer::new(&["true"]).unwrap();
    other.config["annotations"] = annotation("dev.bulkhead.root.source");
    other
        .on("run", &[])
        .expect(1)
        .complains_of(&["dev.bulkhead.root.source", "microvm"]);
}

#[test]
fn a_disk_that_cannot_be_mounted_is_taken_out_again() {
    let Some(founder) = pod() else { return };
    let image = founder.scratch().join("zero.img");
    fs::write(&image, vec![0; 1 << 16]).unwrap();
    let refused = |name: &str, kind: &str, words: &[&str]| {
        let bundle = member(&founder, name, "true", |config| {
            let mut mount = mount(&image, "/data", &["rw"]);
            mount["type"] = json!(kind);
            push(config, "/mounts", mount);
        });
        create(&founder, &bundle).expect(1).complains_of(words);
        assert!(!held_by_vmm(&founder, &image));
    };
    refused("empty", "ext4", &["mounts[5]", "ext4"]);
    let unknown = "no file system \"xfs\" for disks: it has";
    refused("unknown", "xfs", &["mounts[5].source", unknown]);
    assert_free(&image);
    let busy = File::open(&image).unwrap();
    busy.try_lock_shared().unwrap();
    refused("busy", "ext4", &["mounts[5].source", "zero.img is in use"]);
    founder.on("delete", &["--force"]).expect(0);
}

#[test]
fn containers_of_a_pod_bring_and_take_their_disks() {
    let Some(founder) = pod() else { return };
    let images: Vec<PathBuf> = (0..6)
        .map(|n| founder.scratch().join(format!("{n}.img")))
        .collect();
    for image in &images {
        ext4(image, 2, None);
    }
    // More than there are slots, one after the other.
    for (number, image) in images.iter().enumerate() {
        let name = format!("m{number}");
        let script = format!("echo {number} > /data/number; ls /data");
        let bundle = member(&founder, &name, &script, |config| {
            push(config, "/mounts", mount(image, "/data", &[]));
        });
        let listed = run(&founder, &bundle).expect(0).stdout;
        assert_eq!(listed, "lost+found\nnumber\n");
        assert!(!held_by_vmm(&founder, image));
        assert_eq!(read_from(image, "number"), format!("{number}\n"));
    }
    // At once they run out.
    let mut all = Vec::new();
    let greedy = member(&founder, "greedy", "true", |config| {
        for (number, image) in images.iter().enumerate() {
            push(config, "/mounts", mount(image, &format!("/data{number}"), &[]));
        }
    });
    create(&founder, &greedy)
        .expect(1)
        .complains_of(&["mounts[9].source", "room for 4 disks"]);
    assert!(images.iter().all(|image| !held_by_vmm(&founder, image)));

    // Two that use the same disk share it; it goes with the second.
    for name in ["left", "right"] {
        let bundle = member(&founder, name, "sleep 600", |config| {
            push(config, "/mounts", mount(&images[0], "/data", &[]));
        });
        create(&founder, &bundle).expect(0);
        founder.oci("start", &[&bundle.id]).expect(0);
        all.push(bundle.id);
    }
    founder
        .oci("exec", &[&all[0], "sh", "-c", "echo shared > /data/word"])
        .expect(0);
    let word = founder
        .oci("exec", &[&all[1], "cat", "/data/word"])
        .expect(0)
        .stdout;
    assert_eq!(word, "shared\n");
    founder.oci("delete", &["--force", &all[0]]).expect(0);
    assert!(held_by_vmm(&founder, &images[0]));
    founder
        .oci("exec", &[&all[1], "sh", "-c", "echo alone > /data/word"])
        .expect(0);
    founder.oci("delete", &["--force", &all[1]]).expect(0);
    assert!(!held_by_vmm(&founder, &images[0]));
    assert_eq!(read_from(&images[0], "word"), "alone\n");
    founder.on("delete", &["--force"]).expect(0);
}

/// Through one mount in the guest: the same file is the same to its kernel.
#[test]
fn containers_of_a_pod_meet_in_a_volume_of_the_hosts() {
    let Some(founder) = pod() else { return };
    let folder = founder.folder().join("shared");
    fs::create_dir(&folder).unwrap();
    let bind = |options: &[&str]| json!({ "destination": "/v", "type": "bind", "source": folder, "options": options });
    // It waits until somebody opens the other end.
    let waits = "busybox mkfifo /v/fifo; echo from the other >/v/fifo";
    let other = member(&founder, "other", waits, |config| {
        push(config, "/mounts", bind(&["rbind"]));
    });
    create(&founder, &other).expect(0);
    founder.oci("start", &[&other.id]).expect(0);
    let begun = Instant::now();
    while !folder.join("fifo").exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "no FIFO was made");
        std::thread::sleep(Duration::from_millis(20));
    }
    let meets = "cat /v/fifo; echo mine >/w/mine; cat /v/mine; echo no >/r/mine || echo read-only";
    let meeting = member(&founder, "meeting", meets, |config| {
        push(config, "/mounts", bind(&["rbind"]));
        for (destination, options) in [("/w", &["rbind"][..]), ("/r", &["rbind", "ro"])] {
            let mut again = bind(options);
            again["destination"] = json!(destination);
            push(config, "/mounts", again);
        }
    });
    let met = run(&founder, &meeting).expect(0);
    assert_eq!(met.stdout, "from the other\nmine\nread-only\n");
    // The one that has ended has not been deleted, and keeps it.
    let mounted = || {
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", founder.vmm().as_raw_nonzero()));
        mounts.unwrap().matches("/@volumes/").count()
    };
    assert_eq!(mounted(), 1);
    founder.oci("delete", &["--force", &other.id]).expect(0);
    assert_eq!(mounted(), 0);
    founder.on("delete", &["--force"]).expect(0);
}

/// As a kubelet makes an `emptyDir` in memory: a tmpfs with the pod's group. What one container has left in it is there for
/// the next, as long as the pod lives.
#[test]
fn a_volume_in_memory_keeps_its_size_its_owner_and_what_a_container_has_left_there() {
    with_own_mounts(|| {
        let Some(founder) = pod() else { return };
        let memory = founder.scratch().join("volumes/kubernetes.io~empty-dir/memory");
        mount_memory(&memory, "size=3m,mode=2770,gid=4321");
        let folder = memory.join("folder");
        let bind = |source: &Path, options: &[&str]| json!({ "destination": "/memory", "type": "bind", "source": source, "options": options });
        let init = "echo word >/memory/word; mkdir /memory/folder; echo deeper >/memory/folder/word; \
            dd if=/dev/zero of=/memory/large bs=64k count=64 2>/dev/null || echo full; rm /memory/large";
        let init = member(&founder, "init", init, |config| {
            push(config, "/mounts", bind(&memory, &["rbind"]));
        });
        assert_eq!(run(&founder, &init).expect(0).stdout, "full\n");
        let main = "cat /memory/word; stat -c '%a %g' /memory; stat -f -c '%b %S' /memory; \
            echo no 2>/dev/null >/memory/no || echo read-only";
        let main = member(&founder, "main", main, |config| {
            push(config, "/mounts", bind(&memory, &["rbind", "rro"]));
        });
        let seen = run(&founder, &main).expect(0).stdout;
        assert_eq!(seen, "word\n2770 4321\n768 4096\nread-only\n");
        // A kubelet's `subPath`.
        let part = member(&founder, "part", "cat /memory/word", |config| {
            push(config, "/mounts", bind(&folder, &["rbind"]));
        });
        assert_eq!(run(&founder, &part).expect(0).stdout, "deeper\n");
        founder.on("delete", &["--force"]).expect(0);
        unmount(&memory);
    });
}

#[test]
fn a_root_is_an_image() {
    let Some(founder) = pod() else { return };
    let content = founder.scratch().join("content");
    finish(Command::new("cp").arg("-a").arg(founder.rootfs()).arg(&content)).expect(0);
    fs::write(content.join("hello"), "hello\n").unwrap();
    for folder in ["proc", "dev", "sys", "tmp"] {
        fs::create_dir_all(content.join(folder)).unwrap();
    }
    let image = founder.scratch().join("root.img");
    ext4(&image, 16, Some(&content));
    let of_image = |name: &str, script: &str, kind: &str, readonly: bool| {
        let bundle = member(&founder, name, script, |config| {
            config["annotations"]["dev.bulkhead.root.source"] = json!(image);
            config["annotations"]["dev.bulkhead.root.type"] = json!(kind);
            config["root"]["readonly"] = json!(readonly);
        });
        let finished = run(&founder, &bundle);
        assert!(!held_by_vmm(&founder, &image));
        finished
    };
    let written = of_image("first", "cat /hello; touch /new && echo writable", "ext4", false);
    assert_eq!(written.expect(0).stdout, "hello\nwritable\n");
    finish(Command::new("e2fsck").args(["-f", "-n"]).arg(&image)).expect(0);
    let script = "ls /new; touch /newer; grep ' / ' /proc/mounts";
    let finished = of_image("second", script, "ext4", true).expect(0);
    assert!(
        finished.stdout.starts_with("/new\n/dev/vda / ext4 ro"),
        "{finished:?}"
    );
    assert!(finished.stderr.contains("Read-only file system"), "{finished:?}");
    of_image("third", "true", "squash", false)
        .expect(1)
        .complains_of(&["dev.bulkhead.root.source", "no file system \"squash\""]);
    founder.on("delete", &["--force"]).expect(0);
}

#[test]
fn a_block_device_is_a_device_and_a_volume() {
    let Some(founder) = pod() else { return };
    let image = founder.scratch().join("device.img");
    ext4(&image, 4, None);
    let Some(loop_device) = LoopDevice::of(&image) else {
        founder.on("delete", &["--force"]).expect(0);
        return;
    };
    let (major, minor) = loop_device.number();
    let device = json!({
        "path": "/dev/xvda", "type": "b", "major": major, "minor": minor, "fileMode": 0o640, "uid": 3, "gid": 4,
    });
    let deny = json!({ "allow": false, "access": "rwm" });
    let with_device = |name: &str, script: &str, rule: Value| {
        let bundle = member(&founder, name, script, |config| {
            config["linux"]["devices"] = json!([device]);
            // The node is another user's.
            let all = json!(["CAP_DAC_OVERRIDE"]);
            config["process"]["capabilities"] =
                json!({ "bounding": all, "effective": all, "permitted": all });
            config["linux"]["resources"]["devices"] = json!([deny, rule]);
        });
        run(&founder, &bundle).expect(0)
    };
    let rule =
        |access| json!({ "allow": true, "type": "b", "major": major, "minor": minor, "access": access });
    let script = "ls -ln /dev/xvda; dd if=/dev/xvda bs=2 skip=540 count=1 2>/dev/null | busybox od -x; \
                  dd if=/dev/zero of=/dev/xvda bs=512 count=1 conv=fsync 2>/dev/null; echo $?";
    let text = with_device("reads", script, rule("r")).stdout;
    assert!(text.starts_with("brw-r-----    1 3        4"), "{text}");
    // The magic number of ext4.
    assert!(text.contains("ef53") && text.ends_with("1\n"), "{text}");
    assert!(
        with_device("writes", script, rule("rw"))
            .stdout
            .ends_with("\n0\n")
    );
    // Who may use every device is not given all of the host's disks.
    let everything = json!({ "allow": true, "access": "rwm" });
    let finished = with_device("all", "ls /dev/xvda; cat /sys/block/vda/size", everything);
    assert_eq!(finished.stdout, "0\n", "{finished:?}");

    // A MiB at half a MiB a second, of which the first half is free.
    let bundle = member(
        &founder,
        "slow",
        "dd if=/dev/zero of=/data/x bs=65536 count=24 conv=fsync; echo here > /data/word",
        |config| {
            push(config, "/mounts", mount(&loop_device.0, "/data", &[]));
            config["linux"]["resources"]["blockIO"] =
                json!({ "throttleWriteBpsDevice": [{ "major": major, "minor": minor, "rate": MIB / 2 }] });
        },
    );
    let begun = Instant::now();
    run(&founder, &bundle).expect(0);
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    drop(loop_device);
    assert_eq!(read_from(&image, "word"), "here\n");
    founder.on("delete", &["--force"]).expect(0);
}

#[test]
fn a_guest_that_does_not_answer_holds_up_no_deletion() {
    let Some(mut founder) = behind_microvm("sleep 600") else {
        return;
    };
    founder.config["annotations"] = json!({ "io.kubernetes.cri.container-type": "sandbox" });
    let image = founder.scratch().join("disk.img");
    ext4(&image, 4, None);
    push(&mut founder.config, "/mounts", mount(&image, "/disk", &[]));
    founder.on("create", &["--bundle", "."]).expect(0);
    founder.on("start", &[]).expect(0);
    let other = founder.scratch().join("other.img");
    ext4(&other, 4, None);
    let member = member(&founder, "member", "sleep 600", |config| {
        push(config, "/mounts", mount(&other, "/disk", &[]));
    });
    let start = || {
        create(&founder, &member).expect(0);
        founder.oci("start", &[&member.id]).expect(0);
    };
    start();
    let vmm = founder.vmm();
    let delete_in_silence = |id: &str| {
        kill_process(vmm, Signal::STOP).unwrap();
        let begun = Instant::now();
        let deleted = founder.oci("delete", &["--force", id]).expect(0);
        let limit = Duration::from_secs(2) * busy_factor();
        assert!(begun.elapsed() < limit, "{id}: {:?}", begun.elapsed());
        founder.oci("state", &[id]).expect(1);
        deleted.complains_of(&["did not answer"]);
    };
    delete_in_silence(&member.id);
    let exported = founder
        .scratch()
        .join("states")
        .join(founder.id())
        .join("vm/export");
    // The founder's, and that of volumes.
    assert_eq!(
        fs::read_dir(exported).unwrap().count(),
        2,
        "its files are shared still"
    );
    // What the guest could not be told of is not in the way of another one.
    kill_process(vmm, Signal::CONT).unwrap();
    start();
    delete_in_silence(&founder.id());
    assert_free(&image);
    assert_free(&other);
    founder.oci("delete", &["--force", &member.id]).expect(0);
}
