//! The share as a well-behaved guest uses it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use fuse_backend_rs::abi::fuse_abi::Opcode;
use nix::sched::{CloneFlags, unshare};

use super::Fs;
use super::fuse_guest::{Guest, Message, ROOT, Share, setattr};
use crate::devices::virtio::device::{DeviceState, VirtioDevice};
use crate::devices::virtio::test_driver::TestDriver;

#[test]
fn a_share_is_saved_only_while_it_is_not_mounted() {
    let mut share = Share::new();
    share.activate();
    let saved = |share: &mut Share| {
        share.device.worker().unwrap().pause();
        let saved = share.device.save().map_err(|error| error.to_string());
        share.device.worker().unwrap().resume().unwrap();
        saved
    };
    assert_eq!(saved(&mut share), Ok(DeviceState::Stateless));

    share.device.reset();
    share.mount();
    let refusal = saved(&mut share).unwrap_err();
    assert!(
        refusal.starts_with("the guest has mounted the shared directory \"share\""),
        "{refusal}"
    );

    share.device.reset();
    let mut guest = share.mount();
    guest.call(Opcode::Destroy as u32, ROOT, Message::new()).unwrap();
    assert_eq!(saved(&mut share), Ok(DeviceState::Stateless));
}

#[test]
fn a_mounted_share_goes_on_after_a_pause() {
    let mut share = Share::new();
    fs::write(share.path("file"), "").unwrap();
    let mut device = std::mem::replace(
        &mut share.device,
        Fs::new("other", share.directory.path(), true).unwrap(),
    );
    let memory = TestDriver::memory();
    let mut guest = Guest::of(&memory, &mut device);
    guest.init();
    let before = guest.lookup(ROOT, "file").unwrap();
    device.worker().unwrap().pause();
    device.worker().unwrap().resume().unwrap();
    assert_eq!(guest.lookup(ROOT, "file").unwrap().node, before.node);
}

#[test]
fn init_agrees_on_large_transfers_and_no_write_back() {
    let mut share = Share::new();
    let mut guest = share.activate();
    let reply = guest.init();
    let u32_at = |offset: usize| u32::from_le_bytes(reply[offset..offset + 4].try_into().unwrap());
    let flags = u32_at(12);
    assert_eq!(u32_at(20), 1 << 20, "max_write");
    assert_eq!(u16::from_le_bytes([reply[28], reply[29]]), 256, "max_pages");
    for (flag, wanted) in [
        (0x1, true),
        (0x8, true),
        (0x20, true),
        (0x1000, true),
        (0x2000, true),
        (0x4000, true),
        (0x4_0000, true),
        (0x40_0000, true),
        (0x80_0000, true),
        (0x1000_0000, true),
        (0x2, false),
        (0x10, false),
        (0x400, false),
        (0x1_0000, false),
        (0x2_0000, false),
        (0x100_0000, false),
    ] {
        assert_eq!(flags & flag != 0, wanted, "{flag:x} in {flags:x}");
    }
}

#[test]
fn a_file_is_found_read_and_written() {
    let mut share = Share::new();
    fs::write(share.path("greeting"), "hello").unwrap();
    let path = share.path("greeting");
    let mut guest = share.mount();
    let entry = guest.walk("greeting");
    assert_eq!((entry.size, entry.mode & 0o170_000), (5, 0o100_000));
    let (handle, _) = guest.open(entry.node, libc::O_RDWR).unwrap();
    assert_eq!(guest.read(entry.node, handle, 0, 4096).unwrap(), b"hello");
    assert_eq!(guest.write(entry.node, handle, 5, b" world").unwrap(), 6);
    assert_eq!(fs::read_to_string(path).unwrap(), "hello world");
}

#[test]
fn a_megabyte_goes_through_in_one_request() {
    let mut share = Share::new();
    let content: Vec<u8> = (0..1u32 << 20).map(|index| (index * 7) as u8).collect();
    fs::write(share.path("large"), &content).unwrap();
    let copy = share.path("copy");
    let mut guest = share.mount();
    let entry = guest.walk("large");
    let (handle, _) = guest.open(entry.node, libc::O_RDWR).unwrap();
    let read = guest.read(entry.node, handle, 0, 1 << 20).unwrap();
    assert!(read == content);
    let (node, handle) = guest.create(ROOT, "copy", libc::O_WRONLY, 0o600).unwrap();
    assert_eq!(guest.write(node, handle, 0, &read).unwrap(), 1 << 20);
    assert!(fs::read(copy).unwrap() == content);
}

#[test]
fn ownership_modes_links_and_attributes_are_kept() {
    let mut share = Share::new();
    fs::set_permissions(share.path(""), fs::Permissions::from_mode(0o777)).unwrap();
    let file = share.path("file");
    let mut guest = share.mount();
    guest.uid = 1234;
    let (node, _) = guest.create(ROOT, "file", libc::O_RDWR, 0o640).unwrap();
    guest.uid = 0;
    let status = file.metadata().unwrap();
    assert_eq!(
        (status.uid(), status.gid(), status.mode() & 0o7777),
        (1234, 1234, 0o640)
    );

    let link = Message::new().u64(node).name("second");
    let entry = guest.entry(Opcode::Link, ROOT, link).unwrap();
    assert_eq!(
        (entry.node, entry.nlink, entry.uid, entry.gid),
        (node, 2, 1234, 1234)
    );

    let name = "user.color";
    let set = Message::new().u32(4).u32(0).name(name).bytes(b"blue");
    match guest.call(Opcode::Setxattr as u32, node, set) {
        Ok(_) => {
            let get = Message::new().u32(u32::MAX).u32(0).name(name);
            assert_eq!(guest.call(Opcode::Getxattr as u32, node, get).unwrap(), b"blue");
            let list = Message::new().u32(u32::MAX).u32(0);
            let names = guest.call(Opcode::Listxattr as u32, node, list).unwrap();
            assert_eq!(names, b"user.color\0");
        }
        // A temporary directory on a file system without user attributes.
        Err(error) => assert_eq!(error, libc::EOPNOTSUPP),
    }

    guest
        .call(Opcode::Setattr as u32, node, setattr(1 | 8, 3, 0o600))
        .unwrap();
    let status = file.metadata().unwrap();
    assert_eq!((status.len(), status.mode() & 0o7777), (3, 0o600));
}

#[test]
fn a_directory_open_to_another_group_takes_files_as_the_guests_kernel_decided() {
    let mut share = Share::new();
    let shared = share.path("shared");
    fs::create_dir(&shared).unwrap();
    chown(&shared, Some(0), Some(2000)).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o2770)).unwrap();
    let mut guest = share.mount();
    let directory = guest.walk("shared").node;
    // A process in group 2000 among others; the request names only its first.
    guest.uid = 1234;
    guest.create(directory, "file", libc::O_RDWR, 0o640).unwrap();
    guest.mkdir(directory, "directory").unwrap();
    let status = shared.join("file").metadata().unwrap();
    assert_eq!((status.uid(), status.gid()), (1234, 2000));
}

#[test]
fn directories_are_listed_with_and_without_attributes() {
    let mut share = Share::new();
    for index in 0..300 {
        fs::write(share.path(&format!("file-{index:03}")), "").unwrap();
    }
    let mut guest = share.mount();
    let expected: Vec<String> = (0..300).map(|index| format!("file-{index:03}")).collect();
    assert_eq!(guest.names(ROOT, true), expected);
    assert_eq!(guest.names(ROOT, false), expected);
}

#[test]
fn what_may_be_kept_depends_on_who_changes_it() {
    let mut share = Share::new();
    fs::create_dir_all(share.path("pod/rootfs/etc")).unwrap();
    fs::create_dir_all(share.path("pod/volume")).unwrap();
    fs::write(share.path("pod/rootfs/etc/passwd"), "root").unwrap();
    fs::write(share.path("pod/volume/data"), "data").unwrap();
    let mut guest = share.mount();
    let long = 10;
    for (path, entry_seconds, attr_seconds) in [
        ("pod", 0, 0),
        ("pod/rootfs", 0, long),
        ("pod/rootfs/etc", long, long),
        ("pod/rootfs/etc/passwd", long, long),
        ("pod/volume", 0, 1),
        ("pod/volume/data", 1, 1),
    ] {
        let entry = guest.walk(path);
        assert_eq!(
            (entry.entry_seconds, entry.attr_seconds),
            (entry_seconds, attr_seconds),
            "{path}"
        );
    }

    // An absent name is remembered only where hardly anybody else makes one.
    let etc = guest.walk("pod/rootfs/etc").node;
    let absent = guest.lookup(etc, "shadow").unwrap();
    assert_eq!((absent.node, absent.entry_seconds), (0, long));
    let volume = guest.walk("pod/volume").node;
    assert_eq!(guest.lookup(volume, "absent").unwrap_err(), libc::ENOENT);
    assert_eq!(guest.lookup(ROOT, "absent").unwrap_err(), libc::ENOENT);

    // KEEP_CACHE is 2, CACHE_DIR 8.
    let passwd = guest.walk("pod/rootfs/etc/passwd").node;
    let data = guest.walk("pod/volume/data").node;
    assert_eq!(guest.open(passwd, libc::O_RDONLY).unwrap().1, 2);
    assert_eq!(guest.open(data, libc::O_RDONLY).unwrap().1, 0);
    assert_eq!(guest.open_as(Opcode::Opendir, etc, 0).unwrap().1, 10);
    assert_eq!(guest.open_as(Opcode::Opendir, volume, 0).unwrap().1, 0);
}

#[test]
fn mounts_in_the_share_are_crossed_and_keep_their_files_apart() {
    // The mounts live in a namespace of this thread, which its children, such as the device's thread, share.
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let mount = |target: &Path, name: &str| {
            rustix::mount::mount(name, target, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
        };
        rustix::mount::mount_change(
            "/",
            rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC,
        )
        .unwrap();
        let mut share = Share::new();
        for pod in ["one", "two"] {
            fs::create_dir_all(share.path(&format!("{pod}/rootfs"))).unwrap();
            mount(&share.path(&format!("{pod}/rootfs")), pod);
            fs::write(share.path(&format!("{pod}/rootfs/name")), pod).unwrap();
        }
        let late = share.path("three/rootfs");
        {
            let mut guest = share.mount();
            let mut nodes = Vec::new();
            for pod in ["one", "two"] {
                let entry = guest.walk(&format!("{pod}/rootfs/name"));
                let (handle, _) = guest.open(entry.node, libc::O_RDONLY).unwrap();
                assert_eq!(guest.read(entry.node, handle, 0, 10).unwrap(), pod.as_bytes());
                nodes.push(entry.node);
            }
            assert_ne!(nodes[0], nodes[1]);
            // A mount that comes while the guest runs is seen at once.
            fs::create_dir_all(&late).unwrap();
            assert_eq!(guest.walk("three/rootfs").mode & 0o170_000, 0o040_000);
            mount(&late, "three");
            fs::write(late.join("name"), "three").unwrap();
            guest.walk("three/rootfs/name");
        }
        share.device.reset();
        for pod in ["one", "two", "three"] {
            // Not lazily: the device holds nothing any more.
            let path = share.path(&format!("{pod}/rootfs"));
            rustix::mount::unmount(&path, rustix::mount::UnmountFlags::empty()).unwrap();
        }
    })
    .join()
    .unwrap();
}

/// Descriptors of this process that point into `directory`.
fn descriptors_in(directory: &Path) -> usize {
    fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|item| fs::read_link(item.ok()?.path()).ok())
        .filter(|target| target.starts_with(directory))
        .count()
}

#[test]
fn forgetting_closes_what_was_held() {
    let mut share = Share::new();
    for index in 0..50 {
        fs::write(share.path(&index.to_string()), "").unwrap();
    }
    let directory = share.directory.path().to_owned();
    let mut guest = share.mount();
    let before = descriptors_in(&directory);
    let nodes: Vec<u64> = (0..50).map(|index| guest.walk(&index.to_string()).node).collect();
    assert_eq!(descriptors_in(&directory), before + 50);

    guest.tell(Opcode::Forget, nodes[0], Message::new().u64(1));
    let mut batch = Message::new().u32(49).u32(0);
    for node in &nodes[1..] {
        batch = batch.u64(*node).u64(u64::MAX);
    }
    guest.tell(Opcode::BatchForget, 0, batch);
    assert_eq!(descriptors_in(&directory), before);
}

#[test]
fn reset_closes_everything_a_guest_had_open_and_the_next_guest_starts_anew() {
    let mut share = Share::new();
    fs::write(share.path("file"), "").unwrap();
    let directory = share.directory.path().to_owned();
    let mut guest = share.mount();
    let mounted = descriptors_in(&directory);
    let node = guest.walk("file").node;
    for _ in 0..20 {
        guest.open(node, libc::O_RDWR).unwrap();
    }
    assert_eq!(descriptors_in(&directory), mounted + 21);
    share.device.reset();
    assert_eq!(descriptors_in(&directory), mounted);

    let mut guest = share.mount();
    let stale = guest.read(node, 1, 0, 10);
    assert_eq!(stale, Err(libc::EBADF));
    guest.walk("file");
}

#[test]
fn the_process_keeps_its_umask() {
    let umask = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        status
            .lines()
            .find(|line| line.starts_with("Umask"))
            .map(str::to_owned)
    };
    let before = umask();
    let mut share = Share::new();
    share.mount();
    share.device.reset();
    assert_eq!(umask(), before);
}

#[test]
fn a_directory_that_is_not_there_and_a_bad_tag_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let error = Fs::new("share", &directory.path().join("missing"), false)
        .err()
        .unwrap();
    assert!(error.to_string().starts_with("opening the shared directory"));
    for tag in ["", "a\0b", &"x".repeat(37)] {
        assert!(Fs::new(tag, directory.path(), false).is_err());
    }
    let device = Fs::new(&"x".repeat(36), directory.path(), false).unwrap();
    let mut config = [0xff; 44];
    device.read_config(0, &mut config);
    assert_eq!(config[..36], [b'x'; 36]);
    assert_eq!(config[36..], [1, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn the_share_follows_its_directory_when_that_is_renamed() {
    let mut share = Share::new();
    fs::write(share.path("file"), "").unwrap();
    let moved = share.directory.path().join("moved");
    fs::rename(share.path(""), moved).unwrap();
    share.mount().walk("file");
}
