//! What a layer's entries become in the store.

// In tests an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod fixture;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use fixture::{Place, is_root, lines};
use image_builder::{Compression, Entry, Image};

fn one_layer(entries: impl IntoIterator<Item = Entry>) -> Image {
    Image::new().layer(Compression::None, entries)
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

#[test]
fn every_kind_of_entry_is_made() {
    if !is_root("every_kind_of_entry_is_made") {
        return;
    }
    let place = Place::new();
    let image = place.import(&one_layer([
        Entry::folder("d"),
        Entry::file("d/f", "content"),
        Entry::symlink("d/s", "/anywhere/../at/all"),
        Entry::hard_link("h", "d/f"),
        Entry::character_device("null", 1, 3),
        Entry::block_device("disk", 259, 70_000),
        Entry::fifo("p"),
    ]));
    let root = &image.layers[0];
    assert_eq!(
        lines(root),
        [
            "d: folder",
            "d/f: file content",
            "d/s: -> /anywhere/../at/all",
            "disk: block 259:70000",
            "h: file content",
            "null: char 1:3",
            "p: fifo",
        ]
    );
    let inode = |name: &str| fs::metadata(root.join(name)).unwrap().ino();
    assert_eq!(inode("h"), inode("d/f"));
}

#[test]
fn owners_modes_and_times_are_kept() {
    if !is_root("owners_modes_and_times_are_kept") {
        return;
    }
    let place = Place::new();
    let keep = |entry: Entry, mode| {
        entry
            .mode(mode)
            .owner(3_000_000_000, 1234)
            .mtime(1_000_000_000, 123_456_789)
    };
    let image = place.import(&one_layer([
        keep(Entry::folder("d"), 0o3775),
        keep(Entry::file("d/setuid", "x"), 0o6755),
        keep(Entry::file("d/none", "x"), 0),
        keep(Entry::symlink("d/link", "nowhere"), 0o777),
        keep(Entry::fifo("d/fifo"), 0o622),
        keep(Entry::character_device("d/device", 1, 3), 0o666),
    ]));
    for (name, mode) in [
        ("d", 0o3775),
        ("d/setuid", 0o6755),
        ("d/none", 0),
        ("d/link", 0o777),
        ("d/fifo", 0o622),
        ("d/device", 0o666),
    ] {
        let metadata = fs::symlink_metadata(image.layers[0].join(name)).unwrap();
        assert_eq!(metadata.mode() & 0o7777, mode, "{name}");
        assert_eq!((metadata.uid(), metadata.gid()), (3_000_000_000, 1234), "{name}");
        assert_eq!(
            (metadata.mtime(), metadata.mtime_nsec()),
            (1_000_000_000, 123_456_789),
            "{name}"
        );
    }
}

#[test]
fn extended_attributes_are_kept_but_for_selinux_labels() {
    if !is_root("extended_attributes_are_kept_but_for_selinux_labels") {
        return;
    }
    // cap_net_raw=ep, revision 2 (capabilities(7)), and a newline among the bytes.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let place = Place::new();
    let image = place.import(&one_layer([
        Entry::program("ping", "x")
            .owner(7, 7)
            .xattr("security.capability", capability),
        Entry::folder("d").xattr("user.note", "a\nb=c"),
        Entry::symlink("s", "x").xattr("trusted.note", "on a link"),
        Entry::file("labelled", "").xattr("security.selinux", "system_u:object_r:bin_t:s0"),
    ]));
    let root = &image.layers[0];
    assert_eq!(
        xattr(&root.join("ping"), "security.capability").as_deref(),
        Some(&capability[..])
    );
    assert_eq!(
        xattr(&root.join("d"), "user.note").as_deref(),
        Some(&b"a\nb=c"[..])
    );
    assert_eq!(
        xattr(&root.join("s"), "trusted.note").as_deref(),
        Some(&b"on a link"[..])
    );
    assert_eq!(xattr(&root.join("labelled"), "security.selinux"), None);
}

#[test]
fn a_folders_time_outlives_what_is_put_into_it() {
    if !is_root("a_folders_time_outlives_what_is_put_into_it") {
        return;
    }
    let place = Place::new();
    let image = place.import(&one_layer([
        Entry::folder("./").mode(0o711).owner(1, 2).mtime(5, 0),
        Entry::folder("d").mtime(6, 0),
        Entry::folder("d/e").mtime(7, 0),
        Entry::file("d/e/f", "x"),
        Entry::file("d/implied/f", "x"),
    ]));
    let metadata = |name: &str| fs::metadata(image.layers[0].join(name)).unwrap();
    assert_eq!(
        [
            metadata("").mtime(),
            metadata("d").mtime(),
            metadata("d/e").mtime()
        ],
        [5, 6, 7]
    );
    assert_eq!(
        (
            metadata("").mode() & 0o7777,
            metadata("").uid(),
            metadata("").gid()
        ),
        (0o711, 1, 2)
    );
    assert_eq!(
        (
            metadata("d/implied").mtime(),
            metadata("d/implied").mode() & 0o7777
        ),
        (0, 0o755)
    );
}

#[test]
fn whiteouts_become_devices_and_opaque_folders_attributes() {
    if !is_root("whiteouts_become_devices_and_opaque_folders_attributes") {
        return;
    }
    let place = Place::new();
    let image = place.import(
        &Image::new()
            .layer(
                Compression::None,
                [Entry::file("gone", ""), Entry::file("d/f", "")],
            )
            .layer(
                Compression::None,
                [
                    Entry::whiteout("gone"),
                    Entry::opaque("d"),
                    Entry::file("d/new", ""),
                    Entry::whiteout("d/f"),
                ],
            ),
    );
    let top = &image.layers[1];
    assert_eq!(lines(top), ["d: folder", "d/new: file ", "gone: char 0:0"]);
    assert_eq!(
        xattr(&top.join("d"), "trusted.overlay.opaque").as_deref(),
        Some(&b"y"[..])
    );
}

#[test]
fn a_whiteout_that_hides_nothing_is_not_kept() {
    if !is_root("a_whiteout_that_hides_nothing_is_not_kept") {
        return;
    }
    let place = Place::new();
    let image = place.import(
        &Image::new()
            .layer(
                Compression::None,
                [
                    Entry::folder("d"),
                    Entry::file("d/f", ""),
                    Entry::file("gone", ""),
                ],
            )
            .layer(Compression::None, [Entry::whiteout("gone")])
            .layer(
                Compression::None,
                [
                    Entry::whiteout("gone"),
                    Entry::whiteout("never"),
                    Entry::whiteout("d/f"),
                    Entry::whiteout("n/e"),
                ],
            ),
    );
    assert_eq!(lines(&image.layers[2]), ["d: folder", "d/f: char 0:0"]);
}

#[test]
fn whiteouts_below_a_link_that_replaces_their_folder_are_not_followed() {
    if !is_root("whiteouts_below_a_link_that_replaces_their_folder_are_not_followed") {
        return;
    }
    let place = Place::new();
    let image = place.import(
        &Image::new()
            .layer(
                Compression::None,
                [Entry::file("ssl/certs", ""), Entry::file("other/f", "")],
            )
            .layer(
                Compression::None,
                [
                    Entry::symlink("ssl", "/nowhere"),
                    Entry::whiteout("ssl/certs"),
                    Entry::opaque("ssl"),
                    Entry::file("other", "no folder"),
                    Entry::whiteout("other/f"),
                ],
            ),
    );
    assert_eq!(
        lines(&image.layers[1]),
        ["other: file no folder", "ssl: -> /nowhere"]
    );
}

#[test]
fn a_whiteout_spares_what_its_own_layer_has_in_either_order() {
    if !is_root("a_whiteout_spares_what_its_own_layer_has_in_either_order") {
        return;
    }
    for whiteout_first in [true, false] {
        let place = Place::new();
        let mut entries = vec![Entry::whiteout("f"), Entry::whiteout("d"), Entry::whiteout("i")];
        let own = [
            Entry::file("f", "own"),
            Entry::folder("d"),
            Entry::file("i/x", "own"),
        ];
        let position = if whiteout_first { entries.len() } else { 0 };
        entries.splice(position..position, own);
        let image = place.import(&one_layer(entries));
        let root = &image.layers[0];
        assert_eq!(
            lines(root),
            ["d: folder", "f: file own", "i: folder", "i/x: file own"],
            "{whiteout_first}"
        );
        // The folders of the layers below are gone nevertheless.
        for folder in ["d", "i"] {
            assert_eq!(
                xattr(&root.join(folder), "trusted.overlay.opaque").as_deref(),
                Some(&b"y"[..]),
                "{folder}"
            );
        }
    }
}

#[test]
fn bookkeeping_of_aufs_is_passed_over() {
    if !is_root("bookkeeping_of_aufs_is_passed_over") {
        return;
    }
    let place = Place::new();
    let image = place.import(&one_layer([
        Entry::folder(".wh..wh.plnk"),
        Entry::file(".wh..wh.plnk/1.2", "x"),
        Entry::file(".wh..wh.aufs", "x"),
        Entry::file("f", "x"),
    ]));
    assert_eq!(lines(&image.layers[0]), ["f: file x"]);
}

#[test]
fn the_later_of_two_entries_replaces_the_earlier() {
    if !is_root("the_later_of_two_entries_replaces_the_earlier") {
        return;
    }
    let place = Place::new();
    let image = place.import(&one_layer([
        Entry::file("f", "first"),
        Entry::file("f", "second"),
        Entry::file("deep/a/b/c", "x"),
        Entry::file("deep", "a file now"),
        Entry::file("g", "a folder soon"),
        Entry::folder("g"),
        Entry::file("g/x", "inside"),
        Entry::folder("kept").mode(0o700),
        Entry::file("kept/f", "x"),
        Entry::folder("kept").mode(0o755),
        Entry::file("self", "still here"),
        Entry::hard_link("self", "self"),
    ]));
    assert_eq!(
        lines(&image.layers[0]),
        [
            "deep: file a file now",
            "f: file second",
            "g: folder",
            "g/x: file inside",
            "kept: folder",
            "kept/f: file x",
            "self: file still here"
        ]
    );
    assert_eq!(
        fs::metadata(image.layers[0].join("kept")).unwrap().mode() & 0o7777,
        0o755
    );
    assert!(place.stored("discarded").is_empty());
}

#[test]
fn implied_folders_take_after_the_layers_below() {
    if !is_root("implied_folders_take_after_the_layers_below") {
        return;
    }
    let place = Place::new();
    let image = place.import(
        &Image::new()
            .layer(
                Compression::None,
                [
                    Entry::folder("tmp").mode(0o1777).mtime(9, 0),
                    Entry::folder("home").owner(1, 1),
                    Entry::folder("home/u")
                        .mode(0o700)
                        .owner(1000, 1001)
                        .xattr("user.x", "y"),
                    Entry::folder("hidden").mode(0o700),
                    Entry::folder("replaced").mode(0o700),
                ],
            )
            .layer(
                Compression::None,
                [
                    Entry::whiteout("hidden"),
                    Entry::opaque("home"),
                    Entry::file("replaced", ""),
                ],
            )
            .layer(
                Compression::None,
                [
                    Entry::file("tmp/f", ""),
                    Entry::file("home/u/f", ""),
                    Entry::file("hidden/f", ""),
                    Entry::file("replaced/f", ""),
                ],
            ),
    );
    let look = |name: &str| {
        let metadata = fs::metadata(image.layers[2].join(name)).unwrap();
        (
            metadata.mode() & 0o7777,
            metadata.uid(),
            metadata.gid(),
            metadata.mtime(),
        )
    };
    assert_eq!(look("tmp"), (0o1777, 0, 0, 9));
    assert_eq!(look("home"), (0o755, 1, 1, 0));
    // What a layer in between hides or replaces is not taken after.
    for fresh in ["home/u", "hidden", "replaced"] {
        assert_eq!(look(fresh), (0o755, 0, 0, 0), "{fresh}");
    }
}

#[test]
fn a_link_of_the_same_layer_is_followed_inside_and_one_below_is_not_seen() {
    if !is_root("a_link_of_the_same_layer_is_followed_inside_and_one_below_is_not_seen") {
        return;
    }
    let place = Place::new();
    let image = place.import(
        &Image::new()
            .layer(
                Compression::None,
                [
                    Entry::symlink("lib", "usr/lib"),
                    Entry::file("lib/dangling-made", "1"),
                    Entry::symlink("abs", "/usr/./lib/../share"),
                    Entry::file("abs/x", "2"),
                    Entry::symlink("up", "../../../usr"),
                    Entry::file("up/lib/y", "3"),
                    Entry::hard_link("linked", "lib/y"),
                ],
            )
            .layer(Compression::None, [Entry::file("lib/z", "4")]),
    );
    assert_eq!(
        lines(&image.layers[0]),
        [
            "abs: -> /usr/./lib/../share",
            "lib: -> usr/lib",
            "linked: file 3",
            "up: -> ../../../usr",
            "usr: folder",
            "usr/lib: folder",
            "usr/lib/dangling-made: file 1",
            "usr/lib/y: file 3",
            "usr/share: folder",
            "usr/share/x: file 2",
        ]
    );
    assert_eq!(lines(&image.layers[1]), ["lib: folder", "lib/z: file 4"]);
}

#[test]
fn long_names_and_large_files_arrive_whole() {
    if !is_root("long_names_and_large_files_arrive_whole") {
        return;
    }
    let place = Place::new();
    let long = format!("{}/{}", vec!["folder"; 200].join("/"), "n".repeat(255));
    let content: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let target = "t".repeat(300);
    let image = Image::new().layer(
        Compression::Gzip,
        [
            Entry::file(&long, "x"),
            Entry::file("large", content.clone()),
            Entry::symlink("s", &target),
        ],
    );
    let image = place.import(&image);
    assert_eq!(fs::read(image.layers[0].join(long)).unwrap(), b"x");
    assert_eq!(fs::read(image.layers[0].join("large")).unwrap(), content);
    assert_eq!(
        fs::read_link(image.layers[0].join("s")).unwrap(),
        Path::new(&target)
    );
}

#[test]
fn the_same_layer_on_another_base_is_another_folder() {
    if !is_root("the_same_layer_on_another_base_is_another_folder") {
        return;
    }
    let place = Place::new();
    let shared = || [Entry::file("shared", "x")];
    let image = |base: &str| {
        Image::new()
            .layer(Compression::None, [Entry::file(base, "")])
            .layer(Compression::None, shared())
    };
    let (a, b) = (place.import(&image("a")), place.import(&image("b")));
    assert_ne!(a.layers[1], b.layers[1]);
    let again = place.import(&image("a"));
    assert_eq!(a.layers, again.layers);
    assert_eq!(place.stored("layers/sha256").len(), 4);
    assert_eq!(place.stored("manifests/sha256").len(), 2);
    assert_eq!(place.stored("configs/sha256").len(), 2);
}

#[test]
fn layers_are_closed_to_everyone_but_root() {
    if !is_root("layers_are_closed_to_everyone_but_root") {
        return;
    }
    let place = Place::new();
    place.import(&one_layer([Entry::file("f", "")]));
    for folder in ["", "layers", "layers/sha256", "containers", "discarded"] {
        let mode = fs::metadata(place.path("store").join(folder)).unwrap().mode();
        assert_eq!(mode & 0o077, 0, "{folder}");
    }
}
