//! Guests that are bent on escape, or on the device's end.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use fuse_backend_rs::abi::fuse_abi::Opcode;
use proptest::prelude::*;

use super::fuse_guest::{Message, REQUESTS, ROOT, Share, URGENT, setattr, transfer};
use crate::devices::virtio::test_driver::Buffer;

/// Every path below `root` with its type, mode, owner, size and what it holds.
fn inventory(root: &Path) -> BTreeMap<PathBuf, (u32, u32, u64, u64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for item in fs::read_dir(directory).unwrap() {
            let path = item.unwrap().path();
            let status = path.symlink_metadata().unwrap();
            let content = if status.is_file() {
                fs::read(&path).unwrap()
            } else {
                Vec::new()
            };
            if status.is_dir() {
                directories.push(path.clone());
            }
            found.insert(
                path,
                (status.mode(), status.uid(), status.nlink(), status.ino(), content),
            );
        }
    }
    found
}

#[test]
fn names_that_lead_out_touch_nothing() {
    let mut share = Share::new();
    let outside = share.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    fs::create_dir(share.path("inner")).unwrap();
    fs::write(share.path("inner/file"), "file").unwrap();
    let absolute = outside.join("new").to_str().unwrap().to_owned();
    let secret = outside.join("secret").to_str().unwrap().to_owned();
    let directory = share.directory.path().to_owned();
    let before = inventory(&directory);

    let mut guest = share.mount();
    let inner = guest.walk("inner").node;
    let file = guest.walk("inner/file").node;
    let names = [
        absolute.as_str(),
        secret.as_str(),
        "..",
        ".",
        "",
        "/",
        "../outside/new",
        "../outside/secret",
        "../../outside/new",
        "inner/../../outside/new",
        "inner/file",
        "./file",
        "file/",
    ];
    for parent in [ROOT, inner] {
        for name in names {
            let word = || Message::new().name(name);
            let requests = [
                (Opcode::Lookup, word()),
                (Opcode::Symlink, word().name("target")),
                (
                    Opcode::Mknod,
                    Message::new().u32(0o100_644).u32(0).u32(0).u32(0).name(name),
                ),
                (Opcode::Mkdir, Message::new().u32(0o755).u32(0).name(name)),
                (Opcode::Unlink, word()),
                (Opcode::Rmdir, word()),
                (Opcode::Rename, Message::new().u64(ROOT).name(name).name("moved")),
                (Opcode::Rename, Message::new().u64(inner).name("file").name(name)),
                (
                    Opcode::Rename2,
                    Message::new().u64(inner).u32(2).u32(0).name(name).name("file"),
                ),
                (Opcode::Link, Message::new().u64(file).name(name)),
                (
                    Opcode::Create,
                    Message::new()
                        .u32(libc::O_RDWR as u32)
                        .u32(0o644)
                        .u32(0)
                        .u32(0)
                        .name(name),
                ),
            ];
            for (opcode, body) in requests {
                let result = guest.call(opcode as u32, parent, body);
                assert_eq!(result, Err(libc::EINVAL), "{opcode:?} {name:?} in {parent}");
            }
        }
    }
    assert_eq!(inventory(&directory), before);
}

#[test]
fn symbolic_links_that_lead_out_are_not_followed() {
    let mut share = Share::new();
    let outside = share.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    symlink(&outside, share.path("door")).unwrap();
    symlink(outside.join("secret"), share.path("window")).unwrap();
    let before = inventory(&outside);

    let mut guest = share.mount();
    let door = guest.walk("door").node;
    let window = guest.walk("window").node;
    assert_eq!(guest.lookup(door, "secret").unwrap_err(), libc::ENOTDIR);
    assert_eq!(guest.mkdir(door, "new").unwrap_err(), libc::ENOTDIR);
    assert_eq!(
        guest.create(door, "new", libc::O_RDWR, 0o644).unwrap_err(),
        libc::ENOTDIR
    );
    assert!(guest.open_as(Opcode::Opendir, door, 0).is_err());
    for flags in [
        libc::O_RDONLY,
        libc::O_RDWR,
        libc::O_RDWR | libc::O_TRUNC,
        libc::O_PATH,
    ] {
        assert!(guest.open(window, flags).is_err());
    }
    // CREATE without O_EXCL opens what is there.
    assert!(
        guest
            .create(ROOT, "window", libc::O_RDWR | libc::O_TRUNC, 0o644)
            .is_err()
    );
    for valid in [1, 8, 2 | 4] {
        let _ = guest.call(Opcode::Setattr as u32, window, setattr(valid, 0, 0o777));
    }
    let xattr = Message::new().u32(1).u32(0).name("user.x").bytes(b"x");
    let _ = guest.call(Opcode::Setxattr as u32, window, xattr);
    assert_eq!(inventory(&outside), before);
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
}

#[test]
fn special_files_are_made_but_never_opened() {
    let mut share = Share::new();
    let mut guest = share.mount();
    // Opening a FIFO would wait for its other end.
    let body = Message::new()
        .u32(libc::S_IFIFO | 0o644)
        .u32(0)
        .u32(0)
        .u32(0)
        .name("fifo");
    let fifo = guest.entry(Opcode::Mknod, ROOT, body).unwrap();
    for flags in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR] {
        assert_eq!(guest.open(fifo.node, flags), Err(libc::EBADF));
    }
    assert_eq!(
        guest.create(ROOT, "fifo", libc::O_RDONLY, 0o644),
        Err(libc::EBADF)
    );
}

#[test]
fn a_read_only_share_refuses_every_change() {
    let mut share = Share::with(true);
    fs::create_dir(share.path("directory")).unwrap();
    fs::write(share.path("file"), "content").unwrap();
    let directory = share.directory.path().to_owned();
    let before = inventory(&directory);

    let mut guest = share.mount();
    let file = guest.walk("file").node;
    let (handle, _) = guest.open(file, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(file, handle, 0, 100).unwrap(), b"content");
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC] {
        assert_eq!(guest.open(file, flags), Err(libc::EROFS));
    }
    let requests = [
        (Opcode::Symlink, ROOT, Message::new().name("new").name("target")),
        (
            Opcode::Mknod,
            ROOT,
            Message::new().u32(0o100_644).u32(0).u32(0).u32(0).name("new"),
        ),
        (Opcode::Mkdir, ROOT, Message::new().u32(0o755).u32(0).name("new")),
        (Opcode::Unlink, ROOT, Message::new().name("file")),
        (Opcode::Rmdir, ROOT, Message::new().name("directory")),
        (
            Opcode::Rename,
            ROOT,
            Message::new().u64(ROOT).name("file").name("new"),
        ),
        (
            Opcode::Rename2,
            ROOT,
            Message::new().u64(ROOT).u32(0).u32(0).name("file").name("new"),
        ),
        (Opcode::Link, ROOT, Message::new().u64(file).name("new")),
        (
            Opcode::Create,
            ROOT,
            Message::new().u32(0).u32(0o644).u32(0).u32(0).name("new"),
        ),
        (Opcode::Setattr, file, setattr(1, 0, 0o777)),
        (Opcode::Write, file, transfer(handle, 0, 1, 0).bytes(b"x")),
        (
            Opcode::Setxattr,
            file,
            Message::new().u32(1).u32(0).name("user.x").bytes(b"x"),
        ),
        (Opcode::Removexattr, file, Message::new().name("user.x")),
        (
            Opcode::Fallocate,
            file,
            Message::new().u64(handle).u64(0).u64(100).u32(0).u32(0),
        ),
    ];
    for (opcode, node, body) in requests {
        assert_eq!(
            guest.call(opcode as u32, node, body),
            Err(libc::EROFS),
            "{opcode:?}"
        );
    }
    assert_eq!(inventory(&directory), before);
}

#[test]
fn sizes_beyond_reason_are_bounded_or_refused() {
    let mut share = Share::new();
    fs::write(share.path("file"), "content").unwrap();
    let mut guest = share.mount();
    let file = guest.walk("file").node;
    let (handle, _) = guest.open(file, libc::O_RDWR).unwrap();
    let (directory, _) = guest.open_as(Opcode::Opendir, ROOT, 0).unwrap();

    let huge = transfer(directory, 0, u32::MAX, 0);
    assert_eq!(guest.call(Opcode::Readdir as u32, ROOT, huge), Err(libc::ENOMEM));
    let huge = transfer(handle, 0, u32::MAX, 0);
    assert!(guest.call(Opcode::Read as u32, file, huge).is_err());
    let huge = transfer(handle, 0, u32::MAX, libc::O_RDWR).bytes(b"x");
    let _ = guest.call(Opcode::Write as u32, file, huge);
    for offset in [u64::MAX, 1 << 63] {
        let far = transfer(handle, offset, 10, libc::O_RDWR).bytes(b"0123456789");
        assert_eq!(guest.call(Opcode::Write as u32, file, far), Err(libc::EINVAL));
    }
    for opcode in [
        Opcode::BatchForget,
        Opcode::Ioctl,
        Opcode::Setxattr,
        Opcode::Getxattr,
    ] {
        let all_ones = Message::new().bytes(&[0xff; 64]);
        let _ = guest.call(opcode as u32, file, all_ones);
    }
    assert!(guest.read(file, handle, 0, 100).is_ok());
}

#[test]
fn requests_the_server_does_not_know_are_answered() {
    let mut share = Share::new();
    let mut guest = share.mount();
    for opcode in [0, 7, 19, 47, 50, 51, 4096, u32::MAX] {
        let result = guest.call(opcode, ROOT, Message::new().bytes(&[0; 64]));
        assert_eq!(result, Err(libc::ENOSYS), "opcode {opcode}");
    }
    assert_eq!(
        guest.call(Opcode::Flush as u32, ROOT, Message::new().bytes(&[0; 24])),
        Err(libc::ENOSYS)
    );
    // Cut short.
    assert_eq!(
        guest.call(Opcode::Read as u32, ROOT, Message::new().u32(1)),
        Err(libc::EIO)
    );
    assert_eq!(
        guest.call(Opcode::Rename as u32, ROOT, Message::new().u64(1).name("one")),
        Err(libc::EIO)
    );
}

#[test]
fn hostile_chains_are_given_back_and_the_device_goes_on() {
    let mut share = Share::new();
    let mut guest = share.mount();
    let data = guest.driver.data(REQUESTS);
    let header = Message::new()
        .u32(48)
        .u32(Opcode::Lookup as u32)
        .u64(9)
        .u64(1)
        .u64(0)
        .u64(0)
        .bytes(b"name\0\0\0\0");
    guest.driver.write(data, &header.0);
    let answer = Buffer::writable(data + 4096, 4096);
    for (chain, used) in [
        (vec![Buffer::readable(data, 0)], 0),
        (vec![Buffer::readable(data, 39)], 0),
        (vec![Buffer::readable(data, 48)], 0),
        (vec![answer], 0),
        (
            vec![Buffer::readable(data, 48), Buffer::writable(data + 4096, 15)],
            0,
        ),
        (
            vec![Buffer::readable(data, 48), Buffer::writable(data + 4096, 16)],
            16,
        ),
        (vec![Buffer::readable(u64::MAX - 8, 48), answer], 0),
        (
            vec![
                Buffer::readable(data, 48),
                Buffer::writable(guest.driver.memory_end() - 8, 64),
            ],
            0,
        ),
        (vec![Buffer::readable(data, u32::MAX), answer], 0),
        (vec![Buffer::readable(data, 4 << 20), answer], 16),
        (
            vec![Buffer::readable(data, 48), Buffer::writable(data + 4096, 4 << 20)],
            16,
        ),
        // Writable before readable: the order does not matter to the server.
        (vec![answer, Buffer::readable(data, 48)], 16),
    ] {
        for queue in [URGENT, REQUESTS] {
            guest.driver.add(queue, &chain);
            assert_eq!(guest.driver.wait_for_used(queue).1, used, "{chain:?}");
        }
    }
    guest.driver.add_loop(REQUESTS, Buffer::readable(data, 1 << 20));
    guest.driver.wait_for_used(REQUESTS);
    assert_eq!(guest.lookup(ROOT, "absent").unwrap_err(), libc::ENOENT);
    guest.driver.set_available_index(URGENT, 5000);
    guest.driver.wait_for_reset_request();
    assert!(guest.driver.failure().is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is in a request, it is given back and the next one is served.
    #[test]
    fn any_request_is_survived(requests in prop::collection::vec(
        (0u32..53, 0u64..6, prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0xff), any::<u8>()], 0..120)),
        1..20,
    )) {
        let mut share = Share::new();
        fs::write(share.path("file"), "content").unwrap();
        fs::create_dir(share.path("directory")).unwrap();
        let mut guest = share.mount();
        let file = guest.walk("file").node;
        guest.walk("directory");
        guest.open(file, libc::O_RDWR).unwrap();
        for (opcode, node, body) in requests {
            let _ = guest.call(opcode, node, Message(body));
        }
        guest.init();
        prop_assert!(guest.open_as(Opcode::Opendir, ROOT, 0).is_ok());
    }
}
