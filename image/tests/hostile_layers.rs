//! Layers that try to get out, to mislead, or to fill the disk. Each is refused by name, and nothing of it stays.

// In tests an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod fixture;

use std::fs;

use fixture::{Place, chain, ignore, is_root};
use image::{Limits, Store};
use image_builder::{Compression, Entry, Image, Layout};
use proptest::prelude::*;

/// A place with a file outside of the store that a layer might try to reach.
fn place() -> Place {
    let place = Place::new();
    fs::write(place.path("secret"), "secret").unwrap();
    place
}

/// Imports a layer that must be refused with `said`, leaving nothing.
fn refused(entries: impl IntoIterator<Item = Entry>, said: &[&str]) {
    let place = place();
    let error = place.import_error(&Image::new().layer(Compression::None, entries));
    for part in said.iter().chain([&"importing layer 1 of 1"]) {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
    nothing_stayed(&place);
}

fn nothing_stayed(place: &Place) {
    assert_eq!(fs::read(place.path("secret")).unwrap(), b"secret");
    assert!(place.stored("layers/sha256").is_empty());
    assert!(place.stored("discarded").is_empty());
    let mut beside: Vec<_> = fs::read_dir(place.path("."))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    beside.sort();
    assert_eq!(beside, ["layout", "secret", "store"]);
}

#[test]
fn absolute_names_and_names_with_dot_dot_are_refused() {
    if !is_root("absolute_names_and_names_with_dot_dot_are_refused") {
        return;
    }
    for name in [
        "/etc/passwd",
        "//x",
        "/",
        "..",
        "../x",
        "a/../../x",
        "a/..",
        "./../x",
        "../../../../../../../../tmp/x",
    ] {
        let said = [&*format!("entry `{name}` climbs out of the layer")];
        refused([Entry::file(name, "x")], &said);
        refused([Entry::folder(name)], &said);
        refused([Entry::symlink(name, "x")], &said);
        refused([Entry::fifo(name)], &said);
    }
}

#[test]
fn whiteouts_that_climb_are_refused() {
    if !is_root("whiteouts_that_climb_are_refused") {
        return;
    }
    for name in [
        ".wh..",
        ".wh...",
        "a/.wh..",
        "a/.wh...",
        "../.wh.x",
        "/.wh.x",
        "a/../.wh.x",
    ] {
        refused(
            [Entry::folder("a"), Entry::file(name, "")],
            &["climbs out of the layer"],
        );
    }
    refused([Entry::file("../.wh..wh..opq", "")], &["climbs out of the layer"]);
    refused([Entry::file("a/.wh.", "")], &["whiteout of nothing"]);
}

#[test]
fn hard_links_to_the_outside_are_refused() {
    if !is_root("hard_links_to_the_outside_are_refused") {
        return;
    }
    for target in ["/etc/passwd", "../../../../secret", "a/../../secret", ".."] {
        refused(
            [Entry::folder("a"), Entry::hard_link("x", target)],
            &["entry `x` climbs out", target],
        );
    }
    for target in ["nowhere", "a", "a/nowhere", "."] {
        refused(
            [Entry::folder("a"), Entry::hard_link("x", target)],
            &["which this layer does not hold", target],
        );
    }
    // A whiteout is no file of the layer, though a device stands for it.
    refused(
        [Entry::whiteout("w"), Entry::hard_link("x", "w")],
        &["which this layer does not hold"],
    );
}

#[test]
fn links_that_lead_out_are_followed_inside_only() {
    if !is_root("links_that_lead_out_are_followed_inside_only") {
        return;
    }
    for target in ["/", "/..", "../../../..", "/../../proc/self/root"] {
        let place = place();
        let through = Entry::file("out/secret", "overwritten");
        let image =
            place.import(&Image::new().layer(Compression::None, [Entry::symlink("out", target), through]));
        assert_eq!(fs::read(place.path("secret")).unwrap(), b"secret");
        let inside = target.trim_start_matches(['/', '.']);
        assert_eq!(
            fs::read(image.layers[0].join(inside).join("secret")).unwrap(),
            b"overwritten"
        );
    }
    // What a link leads to is not what is replaced, linked or marked.
    let place = place();
    let secret = place.path("secret").display().to_string();
    let image = place.import(&Image::new().layer(
        Compression::None,
        [
            Entry::symlink("f", &secret),
            Entry::file("f", "own"),
            Entry::symlink("l", &secret),
            Entry::hard_link("h", "l"),
            Entry::symlink("w", &secret),
            Entry::whiteout("w"),
        ],
    ));
    assert_eq!(fs::read(place.path("secret")).unwrap(), b"secret");
    assert_eq!(fs::read_to_string(image.layers[0].join("f")).unwrap(), "own");
    assert!(
        fs::symlink_metadata(image.layers[0].join("h"))
            .unwrap()
            .is_symlink()
    );
}

#[test]
fn links_in_circles_and_files_in_the_way_are_refused() {
    if !is_root("links_in_circles_and_files_in_the_way_are_refused") {
        return;
    }
    refused(
        [
            Entry::symlink("a", "b"),
            Entry::symlink("b", "a"),
            Entry::file("a/x", ""),
        ],
        &["40 symbolic links"],
    );
    refused(
        [Entry::symlink("a", "a/a"), Entry::file("a/x", "")],
        &["40 symbolic links"],
    );
    refused(
        [Entry::file("a", ""), Entry::file("a/b/c", "")],
        &["lies below `a`, which is not a folder"],
    );
    refused(
        [Entry::fifo("a"), Entry::opaque("a")],
        &["lies below `a`, which is not a folder"],
    );
}

#[test]
fn links_that_multiply_a_path_end_at_the_longest_one() {
    if !is_root("links_that_multiply_a_path_end_at_the_longest_one") {
        return;
    }
    let deep = vec!["d"; 1500].join("/");
    refused(
        [
            Entry::symlink("s", &deep),
            Entry::file("s/x", ""),
            Entry::file(format!("{deep}/s"), ""),
            Entry::symlink(format!("{deep}/t"), format!("{deep}/y")),
            Entry::file(format!("s/t/{deep}/x"), ""),
        ],
        &["lies deeper than a path can be long"],
    );
}

#[test]
fn attributes_that_steer_overlayfs_are_refused() {
    if !is_root("attributes_that_steer_overlayfs_are_refused") {
        return;
    }
    for name in [
        "trusted.overlay.redirect",
        "trusted.overlay.opaque",
        "trusted.overlay.metacopy",
    ] {
        for entry in [
            Entry::folder("d"),
            Entry::file("d", ""),
            Entry::symlink("d", "x"),
            Entry::folder("./"),
        ] {
            refused([entry.xattr(name, "/other")], &[name, "reserved for overlayfs"]);
        }
    }
}

#[test]
fn entries_of_no_known_kind_are_refused() {
    if !is_root("entries_of_no_known_kind_are_refused") {
        return;
    }
    refused(
        [Entry::of_type(b'V', "label")],
        &["entry `label` has the type `V`"],
    );
    refused([Entry::of_type(b'S', "sparse")], &["sparse file"]);
    refused(
        [Entry::file("./", "x")],
        &["names the layer's root and is no folder"],
    );
    refused([Entry::file("", "x")], &["has no valid name"]);
    refused([Entry::file("n".repeat(256), "x")], &["longer than 255 bytes"]);
    refused(
        [Entry::file("n/".repeat(3000), "x")],
        &["more than the 4095 allowed"],
    );
    refused(
        [Entry::file("owner", "x").owner(u64::from(u32::MAX), 0)],
        &["no valid user id"],
    );
}

#[test]
fn names_are_shown_escaped() {
    if !is_root("names_are_shown_escaped") {
        return;
    }
    refused(
        [Entry::file("../\u{1b}]0;owned\u{7}", "x")],
        &["\\u{1b}]0;owned\\u{7}"],
    );
}

#[test]
fn a_decompression_bomb_ends_at_the_limit() {
    if !is_root("a_decompression_bomb_ends_at_the_limit") {
        return;
    }
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let place = place();
        let bomb = Image::new().layer(compression, [Entry::file("zeros", vec![0; 8 << 20])]);
        let reference = place.write(&Layout::new().add(&bomb, ""));
        let limits = Limits {
            layer_bytes: 1 << 20,
            ..Limits::default()
        };
        let store = Store::open_with(place.path("store"), limits).unwrap();
        let error = chain(&store.resolve(&reference, &mut ignore).unwrap_err());
        assert!(
            error.contains("unpacks to more than the 1048576 bytes allowed"),
            "{error}"
        );
        nothing_stayed(&place);
    }
}

#[test]
fn a_bomb_behind_the_archives_end_ends_at_the_limit_too() {
    if !is_root("a_bomb_behind_the_archives_end_ends_at_the_limit_too") {
        return;
    }
    let place = place();
    let reference =
        place.write(&Layout::new().add(&Image::new().raw_layer(Compression::Gzip, vec![0; 8 << 20]), ""));
    let limits = Limits {
        layer_bytes: 1 << 20,
        ..Limits::default()
    };
    let store = Store::open_with(place.path("store"), limits).unwrap();
    let error = chain(&store.resolve(&reference, &mut ignore).unwrap_err());
    assert!(
        error.contains("unpacks to more than the 1048576 bytes allowed"),
        "{error}"
    );
    nothing_stayed(&place);
}

#[test]
fn too_many_entries_end_at_the_limit() {
    if !is_root("too_many_entries_end_at_the_limit") {
        return;
    }
    let place = place();
    let image = Image::new().layer(
        Compression::Gzip,
        (0..100).map(|n| Entry::file(format!("{n}"), "")),
    );
    let reference = place.write(&Layout::new().add(&image, ""));
    let limits = Limits {
        layer_entries: 50,
        ..Limits::default()
    };
    let store = Store::open_with(place.path("store"), limits).unwrap();
    let error = chain(&store.resolve(&reference, &mut ignore).unwrap_err());
    assert!(error.contains("more than the 50 entries allowed"), "{error}");
    nothing_stayed(&place);
}

#[test]
fn a_failing_upper_layer_leaves_the_complete_ones_below() {
    if !is_root("a_failing_upper_layer_leaves_the_complete_ones_below") {
        return;
    }
    let place = place();
    let base = || Image::new().layer(Compression::None, [Entry::file("base", "x")]);
    let error = place.import_error(&base().layer(Compression::None, [Entry::file("../x", "")]));
    assert!(error.contains("importing layer 2 of 2"), "{error}");
    assert_eq!(place.stored("layers/sha256").len(), 1);
    assert!(place.stored("manifests/sha256").is_empty());
    let image = place.import(&base());
    assert_eq!(fs::read(image.layers[0].join("base")).unwrap(), b"x");
}

/// Names made of the parts that matter.
fn name() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "a",
        "b",
        ".",
        "..",
        "",
        ".wh.a",
        ".wh..",
        ".wh...",
        ".wh..wh..opq",
        "secret",
    ]);
    prop::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"))
}

fn entry() -> impl Strategy<Value = Entry> {
    (0..6u8, name(), name()).prop_map(|(kind, name, target)| match kind {
        0 => Entry::file(name, "content"),
        1 => Entry::folder(name),
        2 => Entry::symlink(name, format!("../{target}")),
        3 => Entry::symlink(name, format!("/{target}")),
        4 => Entry::hard_link(name, target),
        _ => Entry::fifo(name),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn no_layer_of_any_entries_reaches_outside(entries in prop::collection::vec(entry(), 1..12)) {
        if !is_root("no_layer_of_any_entries_reaches_outside") {
            return Ok(());
        }
        let place = place();
        let image = Image::new().layer(Compression::None, entries);
        let reference = place.write(&Layout::new().add(&image, ""));
        let imported = place.store().resolve(&reference, &mut ignore);
        prop_assert_eq!(fs::read(place.path("secret")).unwrap(), b"secret");
        prop_assert!(place.stored("discarded").is_empty());
        prop_assert_eq!(place.stored("layers/sha256").len(), usize::from(imported.is_ok()));
        let beside = fs::read_dir(place.path(".")).unwrap().count();
        prop_assert_eq!(beside, 3);
    }
}
