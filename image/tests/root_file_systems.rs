//! Containers' root file systems, mounted.

// In tests an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod fixture;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use fixture::{Place, chain, in_private_mounts, lines, tree};
use image::{Image, RootfsMount, Store};
use image_builder::{Compression, Entry};
use proptest::prelude::*;

fn base() -> image_builder::Image {
    image_builder::Image::new().layer(
        Compression::None,
        [
            Entry::folder("./").mode(0o750).owner(5, 6),
            Entry::folder("etc"),
            Entry::file("etc/motd", "hello"),
            Entry::file("etc/issue", "issue"),
            Entry::folder("var"),
            Entry::file("var/a", "a"),
        ],
    )
}

fn mounted(place: &Place, store: &Store, id: &str, image: &Image) -> RootfsMount {
    let target = place.path(&format!("mnt-{id}"));
    fs::create_dir_all(&target).unwrap();
    store
        .create_container(id, image)
        .unwrap()
        .mount_at(target)
        .unwrap()
}

#[test]
fn deletions_and_opaque_folders_hide_what_is_below() {
    in_private_mounts(|place| {
        let image = place.import(&base().layer(
            Compression::None,
            [
                Entry::whiteout("etc/motd"),
                Entry::opaque("var"),
                Entry::file("var/b", "b"),
            ],
        ));
        let store = place.store();
        let mount = mounted(place, &store, "c", &image);
        assert_eq!(
            lines(mount.path()),
            [
                "etc: folder",
                "etc/issue: file issue",
                "var: folder",
                "var/b: file b"
            ]
        );
        mount.unmount().unwrap();
    });
}

#[test]
fn an_opaque_layer_root_hides_all_layers_below() {
    in_private_mounts(|place| {
        let image =
            place.import(&base().layer(Compression::None, [Entry::opaque("."), Entry::file("only", "x")]));
        let store = place.store();
        let mount = mounted(place, &store, "c", &image);
        assert_eq!(lines(mount.path()), ["only: file x"]);
    });
}

#[test]
fn two_containers_share_layers_and_see_none_of_each_others_writes() {
    in_private_mounts(|place| {
        let image = place.import(&base());
        let store = place.store();
        let (a, b) = (
            mounted(place, &store, "a", &image),
            mounted(place, &store, "b", &image),
        );
        fs::write(a.path().join("etc/motd"), "changed by a").unwrap();
        fs::write(a.path().join("new"), "a").unwrap();
        fs::remove_file(b.path().join("etc/issue")).unwrap();
        assert_eq!(fs::read_to_string(b.path().join("etc/motd")).unwrap(), "hello");
        assert!(!b.path().join("new").exists());
        assert_eq!(fs::read_to_string(a.path().join("etc/issue")).unwrap(), "issue");
        assert_eq!(
            lines(&image.layers[0])[..2],
            ["etc: folder", "etc/issue: file issue"]
        );
        assert_eq!(
            fs::read_to_string(image.layers[0].join("etc/motd")).unwrap(),
            "hello"
        );
    });
}

#[test]
fn the_roots_owner_and_mode_are_the_images() {
    in_private_mounts(|place| {
        let image = place.import(&base().layer(Compression::None, [Entry::file("x", "")]));
        let store = place.store();
        let mount = mounted(place, &store, "c", &image);
        let metadata = fs::metadata(mount.path()).unwrap();
        assert_eq!(
            (metadata.mode() & 0o7777, metadata.uid(), metadata.gid()),
            (0o750, 5, 6)
        );
    });
}

#[test]
fn writes_outlive_the_mount_but_not_the_removal() {
    in_private_mounts(|place| {
        let image = place.import(&base());
        let store = place.store();
        let mount = mounted(place, &store, "c", &image);
        fs::write(mount.path().join("new"), "x").unwrap();
        mount.unmount().unwrap();
        assert!(!place.path("mnt-c/etc").exists());

        // As another process would, which knows the id only.
        let mount = place
            .store()
            .container("c")
            .unwrap()
            .mount_at(place.path("mnt-c"))
            .unwrap();
        assert_eq!(fs::read_to_string(mount.path().join("new")).unwrap(), "x");
        mount.unmount().unwrap();

        assert_eq!(store.containers().unwrap(), ["c"]);
        store.container("c").unwrap().remove().unwrap();
        assert!(store.containers().unwrap().is_empty());
        assert!(place.stored("discarded").is_empty());
        assert_eq!(place.stored("layers/sha256").len(), 1);
        let mount = mounted(place, &store, "c", &image);
        assert!(!mount.path().join("new").exists());
    });
}

#[test]
fn dropping_a_mount_unmounts_it_and_keeping_it_does_not() {
    in_private_mounts(|place| {
        let image = place.import(&base());
        let store = place.store();
        let mount = mounted(place, &store, "c", &image);
        let path = mount.path().to_owned();
        drop(mount);
        assert!(!path.join("etc").exists());
        let path = store.container("c").unwrap().mount_at(&path).unwrap().keep();
        assert!(path.join("etc").exists());
        RootfsMount::adopt(&path).unmount().unwrap();
        assert!(!path.join("etc").exists());
        RootfsMount::adopt(&path).unmount().unwrap();
        RootfsMount::adopt(place.path("nowhere")).unmount().unwrap();
    });
}

#[test]
fn an_id_in_use_is_refused_and_left_as_it_was() {
    in_private_mounts(|place| {
        let image = place.import(&base());
        let store = place.store();
        let mount = mounted(place, &store, "c", &image);
        fs::write(mount.path().join("new"), "x").unwrap();
        let error = store.create_container("c", &image).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("container c has a writable layer already"),
            "{error}"
        );
        assert!(mount.path().join("new").exists());
    });
}

#[test]
fn ids_that_are_paths_are_refused() {
    let place = Place::new();
    let store = place.store();
    for id in ["", ".", "..", "a/b", "../x", "a b", "a\n", &"x".repeat(256)] {
        assert!(store.remove_container(id).is_err(), "{id:?}");
        assert!(store.container(id).is_err(), "{id:?}");
    }
}

#[test]
fn removal_is_idempotent_and_manages_what_a_crash_left() {
    in_private_mounts(|place| {
        let store = place.store();
        store.remove_container("never").unwrap();
        for left in [
            "containers/empty",
            "containers/half/upper",
            "discarded/77-0/a/b",
            "discarded/1-1",
        ] {
            fs::create_dir_all(place.path("store").join(left)).unwrap();
        }
        assert!(chain(&store.container("half").unwrap_err()).contains("no writable layer"));
        for id in ["empty", "half", "half"] {
            store.remove_container(id).unwrap();
        }
        assert!(store.containers().unwrap().is_empty());
        assert!(place.stored("discarded").is_empty());
    });
}

#[test]
fn a_tree_nested_deeper_than_a_path_is_removed() {
    in_private_mounts(|place| {
        let image = place.import(&base());
        let store = place.store();
        let mount = mounted(place, &store, "c", &image);
        let mut here = rustix::fd::OwnedFd::from(fs::File::open(mount.path()).unwrap());
        for _ in 0..2500 {
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
            rustix::fs::mkdirat(&here, "deep", rustix::fs::Mode::empty()).unwrap();
            here = rustix::fs::openat(&here, "deep", flags, rustix::fs::Mode::empty()).unwrap();
        }
        drop(here);
        mount.unmount().unwrap();
        store.remove_container("c").unwrap();
        assert!(place.stored("containers").is_empty() && place.stored("discarded").is_empty());
    });
}

#[test]
fn a_store_opened_before_its_holder_entered_a_mount_namespace_goes_on_working() {
    in_private_mounts(|place| {
        let image = place.import(&base());
        let store = place.store();
        // SAFETY: only this thread's view of mounts changes.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
        let mount = mounted(place, &store, "c", &image);
        mount.unmount().unwrap();
        store.remove_container("c").unwrap();
        assert!(place.stored("containers").is_empty() && place.stored("discarded").is_empty());
    });
}

#[test]
fn a_target_that_is_missing_is_named() {
    in_private_mounts(|place| {
        let image = place.import(&base());
        let store = place.store();
        let container = store.create_container("c", &image).unwrap();
        let error = chain(&container.mount_at(place.path("nowhere")).unwrap_err());
        assert!(
            error.contains("container c at") && error.contains("nowhere"),
            "{error}"
        );
    });
}

#[test]
fn a_hundred_and_fifty_layers_are_mounted_below_a_long_path() {
    in_private_mounts(|place| {
        let long = ["a-folder-with-a-rather-long-name-in-which-the-store-lies:,"; 12].join("/");
        let mut image = image_builder::Image::new();
        for number in 0..150 {
            let own = Entry::file(format!("layer-{number}"), "x");
            image = image.layer(Compression::None, [own, Entry::file("last", number.to_string())]);
        }
        let reference = place.write(&image_builder::Layout::new().add(&image, ""));
        let store = Store::open(place.path(&long)).unwrap();
        let image = store.resolve(&reference, &mut fixture::ignore).unwrap();
        let mount = mounted(place, &store, "c", &image);
        assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 151);
        assert_eq!(fs::read_to_string(mount.path().join("last")).unwrap(), "149");
    });
}

#[test]
fn a_bundle_of_a_mounted_image_names_its_user_and_makes_its_working_directory() {
    in_private_mounts(|place| {
        let image = place.import(
            &image_builder::Image::new()
                .layer(
                    Compression::None,
                    [Entry::file(
                        "etc/passwd",
                        "root:x:0:0::/root:\nweb:x:33:34::/srv:\n",
                    )],
                )
                .entrypoint(["/bin/server"])
                .env(["A=1"])
                .user("web")
                .working_directory("/srv/app"),
        );
        let store = place.store();
        let mount = mounted(place, &store, "c", &image);
        let options = image::bundle::BundleOptions {
            hostname: "c".to_owned(),
            ..Default::default()
        };
        let spec = image::bundle::create(&place.path("."), &image.config, mount.path(), &options).unwrap();
        let process = spec.process().as_ref().unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (33, 34));
        assert_eq!(process.args().as_deref().unwrap(), ["/bin/server"]);
        assert!(mount.path().join("srv/app").is_dir());
        let mode = fs::metadata(store.container("c").unwrap().upper().join("srv/app"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o755);
        assert!(!image.layers[0].join("srv").exists());
    });
}

/// What a layer does to a path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    File(u8),
    Folder,
    Delete,
    Hide,
}

const PATHS: [&str; 7] = ["a", "b", "a/a", "a/b", "b/a", "a/a/a", "a/b/b"];

/// A layer: changes to distinct paths in any order, with no file above another path of the layer.
fn layer() -> impl Strategy<Value = Vec<(&'static str, Change)>> {
    let change = prop_oneof![
        3 => any::<u8>().prop_map(Change::File),
        2 => Just(Change::Folder),
        2 => Just(Change::Delete),
        1 => Just(Change::Hide),
    ];
    prop::collection::btree_map(prop::sample::select(&PATHS[..]), change, 1..6)
        .prop_map(|changes| {
            let blocked = |path: &str| {
                let above = |other: &str| path.starts_with(&format!("{other}/"));
                changes
                    .iter()
                    .any(|(other, change)| matches!(change, Change::File(_)) && above(other))
            };
            changes
                .iter()
                .filter(|(path, _)| !blocked(path))
                .map(|(p, c)| (*p, c.clone()))
                .collect::<Vec<_>>()
        })
        .prop_shuffle()
}

fn entry((path, change): &(&str, Change)) -> Entry {
    match change {
        Change::File(content) => Entry::file(path, content.to_string()),
        Change::Folder => Entry::folder(path),
        Change::Delete => Entry::whiteout(path),
        Change::Hide => Entry::opaque(path),
    }
}

/// The specification's words as a program: what the layer deletes goes from what was below, then what it has is put
/// over it (image-spec, `layer.md`, "Applying Changesets").
fn apply(tree: &mut BTreeMap<String, String>, layer: &[(&str, Change)]) {
    let below = |tree: &mut BTreeMap<String, String>, path: &str| {
        let prefix = format!("{path}/");
        tree.retain(|name, _| !name.starts_with(&prefix));
    };
    for (path, change) in layer {
        match change {
            Change::Delete => {
                tree.remove(*path);
                below(tree, path);
            }
            Change::Hide => below(tree, path),
            _ => {}
        }
    }
    for (path, change) in layer {
        // Whatever an entry lies in is a folder.
        let inside = match change {
            Change::Folder | Change::Hide => *path,
            Change::File(_) => path.rsplit_once('/').map_or("", |(folder, _)| folder),
            Change::Delete => "",
        };
        let mut folder = String::new();
        for part in inside.split('/').filter(|part| !part.is_empty()) {
            folder = if folder.is_empty() {
                part.to_owned()
            } else {
                format!("{folder}/{part}")
            };
            tree.insert(folder.clone(), "folder".to_owned());
        }
        if let Change::File(content) = change {
            tree.insert((*path).to_owned(), format!("file {content}"));
            below(tree, path);
        }
    }
}

/// What a container of the image sees, mounted on `mnt`.
fn shown(place: &Place, image: &image_builder::Image) -> BTreeMap<String, String> {
    let image = place.import(image);
    let store = place.store();
    let container = store.create_container("c", &image).unwrap();
    let mount = container.mount_at(place.path("mnt")).unwrap();
    let found = tree(mount.path());
    mount.unmount().unwrap();
    container.remove().unwrap();
    found
}

#[test]
fn a_folder_that_only_whiteouts_lie_in_is_deleted_with_them() {
    in_private_mounts(|place| {
        fs::create_dir(place.path("mnt")).unwrap();
        let mut whiteouts = vec![
            Entry::whiteout("a/b/c/d"),
            Entry::whiteout("a/b/e"),
            Entry::whiteout("a/b"),
        ];
        for _ in 0..whiteouts.len() {
            whiteouts.rotate_left(1);
            let below = [Entry::file("a/b/c/d", "1"), Entry::file("a/b/e", "2")];
            let image = image_builder::Image::new()
                .layer(Compression::None, below)
                .layer(Compression::None, whiteouts.clone());
            let found = shown(place, &image);
            assert_eq!(found.into_keys().collect::<Vec<_>>(), ["a"]);
        }
    });
}

#[test]
fn any_layers_mount_to_what_the_specification_says() {
    in_private_mounts(|place| {
        fs::create_dir(place.path("mnt")).unwrap();
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            cases: 150,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        let run = runner.run(&prop::collection::vec(layer(), 1..5), |layers| {
            let mut expected = BTreeMap::new();
            let mut image = image_builder::Image::new();
            for layer in &layers {
                apply(&mut expected, layer);
                image = image.layer(Compression::None, layer.iter().map(entry));
            }
            let found = shown(place, &image);
            prop_assert_eq!(found, expected);
            Ok(())
        });
        run.unwrap();
    });
}
