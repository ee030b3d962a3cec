//! Which image of a layout is found, and what is said about those that cannot be.

// In tests an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod fixture;

use fixture::{Place, chain, ignore, is_root};
use image::{Limits, Reference, Store};
use image_builder::{Compression, Damage, Entry, Image, Layout};

fn named(name: &str) -> Image {
    Image::new()
        .layer(Compression::Gzip, [Entry::file("name", name)])
        .cmd(["/bin/sh", name])
}

fn command(place: &Place, reference: &Reference) -> Result<String, String> {
    let image = place
        .store()
        .resolve(reference, &mut ignore)
        .map_err(|error| chain(&error))?;
    Ok(image.config.config().as_ref().unwrap().cmd().as_ref().unwrap()[1].clone())
}

fn with_tag(reference: &Reference, tag: &str) -> Reference {
    format!("{reference}:{tag}").parse().unwrap()
}

#[test]
fn the_only_image_needs_no_tag_whatever_its_own() {
    if !is_root("the_only_image_needs_no_tag_whatever_its_own") {
        return;
    }
    let place = Place::new();
    for tag in ["", "1.36", "latest"] {
        let reference = place.write(&Layout::new().add(&named("a"), tag));
        assert_eq!(command(&place, &reference).unwrap(), "a");
    }
}

#[test]
fn of_several_images_the_tag_chooses_and_latest_is_the_default() {
    if !is_root("of_several_images_the_tag_chooses_and_latest_is_the_default") {
        return;
    }
    let place = Place::new();
    let layout = Layout::new()
        .add(&named("a"), "one")
        .add(&named("b"), "latest")
        .add(&named("c"), "example.org/x:3");
    let reference = place.write(&layout);
    assert_eq!(command(&place, &reference).unwrap(), "b");
    assert_eq!(command(&place, &with_tag(&reference, "one")).unwrap(), "a");
    assert_eq!(
        command(&place, &with_tag(&reference, "example.org/x:3")).unwrap(),
        "c"
    );
}

#[test]
fn an_unknown_tag_is_refused_with_the_known_ones() {
    let place = Place::new();
    let reference = place.write(&Layout::new().add(&named("a"), "one").add(&named("b"), "two"));
    let error = command(&place, &with_tag(&reference, "three")).unwrap_err();
    assert!(
        error.contains("no image tagged `three`; there is one, two"),
        "{error}"
    );
    let error = command(&place, &reference).unwrap_err();
    assert!(error.contains("add one of these tags: one, two"), "{error}");
}

#[test]
fn different_images_of_one_tag_are_ambiguous() {
    let place = Place::new();
    let reference = place.write(&Layout::new().add(&named("a"), "x").add(&named("b"), "x"));
    let error = command(&place, &with_tag(&reference, "x")).unwrap_err();
    assert!(error.contains("several different images tagged `x`"), "{error}");
}

#[test]
fn an_index_chooses_the_hosts_platform() {
    if !is_root("an_index_chooses_the_hosts_platform") {
        return;
    }
    let place = Place::new();
    let (other, own) = (named("other").architecture("s390x"), named("own"));
    for depth in [1, 2] {
        let reference = place.write(&Layout::new().add_index(&[&other, &own], "latest", depth));
        assert_eq!(command(&place, &reference).unwrap(), "own", "{depth}");
    }
}

#[test]
fn an_image_for_another_processor_is_refused_with_both_named() {
    let place = Place::new();
    let other = named("other").architecture("s390x");
    for layout in [
        Layout::new().add(&other, ""),
        Layout::new().add_index(&[&other], "", 1),
    ] {
        let error = command(&place, &place.write(&layout)).unwrap_err();
        assert!(
            error.contains("no image for linux/") && error.contains("linux/s390x"),
            "{error}"
        );
    }
}

#[test]
fn indexes_nested_without_end_are_refused() {
    let place = Place::new();
    let reference = place.write(&Layout::new().add_index(&[&named("a")], "", 9));
    let error = command(&place, &reference).unwrap_err();
    assert!(error.contains("nested more than"), "{error}");
}

#[test]
fn docker_media_types_and_all_compressions_are_accepted() {
    if !is_root("docker_media_types_and_all_compressions_are_accepted") {
        return;
    }
    for docker in [false, true] {
        let place = Place::new();
        let image = Image::new()
            .layer(Compression::None, [Entry::file("a", "1")])
            .layer(Compression::Gzip, [Entry::file("b", "2")])
            .layer(Compression::Zstd, [Entry::file("c", "3".repeat(300_000))]);
        let image = place.import(&if docker { image.docker_types() } else { image });
        assert_eq!(std::fs::read(image.layers[1].join("b")).unwrap(), b"2");
        assert_eq!(std::fs::read(image.layers[2].join("c")).unwrap().len(), 300_000);
    }
}

#[test]
fn an_archive_gives_the_same_image_as_the_folder() {
    if !is_root("an_archive_gives_the_same_image_as_the_folder") {
        return;
    }
    let place = Place::new();
    let layout = Layout::new().add(&named("a"), "x");
    layout.write_archive(&place.path("a.tar")).unwrap();
    let archive: Reference = format!("oci-archive:{}:x", place.path("a.tar").display())
        .parse()
        .unwrap();
    let from_archive = place.store().resolve(&archive, &mut ignore).unwrap();
    let from_folder = place.store().resolve(&place.write(&layout), &mut ignore).unwrap();
    assert_eq!(from_archive.digest, from_folder.digest);
    assert_eq!(from_archive.layers, from_folder.layers);
    assert_eq!(std::fs::read(from_archive.layers[0].join("name")).unwrap(), b"a");
}

#[test]
fn the_second_resolution_reads_no_layer() {
    if !is_root("the_second_resolution_reads_no_layer") {
        return;
    }
    let place = Place::new();
    let image = named("a");
    let first = place.import(&image);
    let blob = image.write().unwrap().layers[0].digest.replace(':', "/");
    std::fs::remove_file(place.path("layout/blobs").join(blob)).unwrap();
    let reference: Reference = format!("oci:{}", place.path("layout").display()).parse().unwrap();
    let mut events = Vec::new();
    let second = place
        .store()
        .resolve(&reference, &mut |event| events.push(event))
        .unwrap();
    assert_eq!(first.layers, second.layers);
    assert!(events.is_empty(), "{events:?}");
}

#[test]
fn an_import_killed_before_its_last_step_is_completed_by_the_next() {
    if !is_root("an_import_killed_before_its_last_step_is_completed_by_the_next") {
        return;
    }
    let place = Place::new();
    place.import(&named("a"));
    let manifest = place.stored("manifests/sha256")[0].clone();
    std::fs::remove_file(place.path("store/manifests/sha256").join(&manifest)).unwrap();
    place.import(&named("a"));
    assert_eq!(place.stored("manifests/sha256"), [manifest]);
}

/// A layout that cannot be read, and what its message says.
fn refused(layout: &Layout, said: &[&str]) {
    let place = Place::new();
    let error = command(&place, &place.write(layout)).unwrap_err();
    for part in said {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
    assert!(place.stored("layers/sha256").is_empty(), "{error}");
    assert!(place.stored("manifests/sha256").is_empty(), "{error}");
}

fn damaged(damage: Damage, said: &[&str]) {
    refused(&Layout::new().add(&named("a").damage(damage), "latest"), said);
}

#[test]
fn what_is_no_layout_is_refused_with_the_missing_file() {
    refused(
        &Layout::new().without("oci-layout"),
        &["is no OCI image layout", "oci-layout"],
    );
    refused(
        &Layout::new().without("index.json"),
        &["is no OCI image layout", "index.json"],
    );
    refused(&Layout::new().version("2.0.0"), &["version 2.0.0", "only 1.0.0"]);
    refused(&Layout::new(), &["holds no image"]);
}

#[test]
fn a_changed_manifest_or_configuration_names_both_digests() {
    let written = named("a").write().unwrap();
    damaged(
        Damage::ManifestContent,
        &[
            "the image's manifest",
            &written.manifest.digest,
            "has the digest sha256:",
        ],
    );
    damaged(
        Damage::ConfigContent,
        &[
            "the configuration",
            &written.config.digest,
            "has the digest sha256:",
        ],
    );
}

#[test]
fn missing_and_resized_documents_are_named() {
    let written = named("a").write().unwrap();
    damaged(Damage::ManifestMissing, &[&written.manifest.digest, "is missing"]);
    damaged(
        Damage::ManifestSize(1),
        &[&written.manifest.digest, "its descriptor says 1:"],
    );
    damaged(Damage::ManifestSize(1 << 40), &["more than the 4194304 allowed"]);
    damaged(
        Damage::ManifestText("{}"),
        &["manifest sha256:", "is malformed", "missing field"],
    );
    damaged(Damage::ManifestText("not json"), &["is malformed"]);
}

#[test]
fn unknown_media_types_are_named_with_their_place() {
    let wrong = "application/x-wrong";
    damaged(
        Damage::ManifestMediaType(wrong),
        &["the image sha256:", "`application/x-wrong`", "not understood"],
    );
    damaged(
        Damage::ConfigMediaType(wrong),
        &["the configuration in manifest", "`application/x-wrong`"],
    );
    damaged(
        Damage::LayerMediaType(0, wrong),
        &["layer 1 of 1 in manifest", "`application/x-wrong`"],
    );
    damaged(
        Damage::LayerMediaType(0, "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"),
        &["tar+gzip+encrypted", "not understood"],
    );
}

#[test]
fn layers_and_diff_ids_that_do_not_match_are_refused() {
    damaged(
        Damage::DiffIdMissing,
        &["lists 1 layers, its configuration 0 diff ids"],
    );
    refused(
        &Layout::new().add(&Image::new(), ""),
        &["lists 0 layers", "between 1 and 500"],
    );
}

#[test]
fn changed_layers_are_named_with_blob_expected_and_actual() {
    if !is_root("changed_layers_are_named_with_blob_expected_and_actual") {
        return;
    }
    let written = named("a").write().unwrap();
    let blob = written.layers[0].digest.as_str();
    damaged(
        Damage::LayerContent(0),
        &[
            "importing layer 1 of 1",
            blob,
            "has the digest sha256:",
            "damaged",
        ],
    );
    damaged(
        Damage::LayerMissing(0),
        &["importing layer 1 of 1", blob, "is missing"],
    );
    damaged(Damage::LayerSize(0, 7), &[blob, "its descriptor says 7"]);
    damaged(
        Damage::LayerDiffId(0),
        &[&written.diff_ids[0], "the image's configuration says sha256:"],
    );
    let mislabelled = Damage::LayerMediaType(0, "application/vnd.oci.image.layer.v1.tar+zstd");
    damaged(
        mislabelled,
        &["importing layer 1 of 1", "reading the tar stream at byte 0"],
    );
}

#[test]
fn places_that_are_no_layout_at_all_are_refused() {
    let place = Place::new();
    std::fs::write(
        place.path("file"),
        "not a tar archive, but long enough to hold a header".repeat(20),
    )
    .unwrap();
    std::fs::write(place.path("gz"), b"\x1f\x8b\x08 and so on").unwrap();
    std::fs::write(place.path("empty"), b"").unwrap();
    std::fs::create_dir(place.path("folder")).unwrap();
    for (form, name, said) in [
        ("oci:", "nowhere", "No such file"),
        ("oci:", "file", "Not a directory"),
        ("oci:", "folder", "has no oci-layout"),
        ("oci-archive:", "nowhere", "No such file"),
        ("oci-archive:", "folder", "oci:DIR"),
        ("oci-archive:", "file", "checksum"),
        ("oci-archive:", "gz", "compressed with gzip"),
        ("oci-archive:", "empty", "has no oci-layout"),
    ] {
        let reference: Reference = format!("{form}{}", place.path(name).display()).parse().unwrap();
        let error = command(&place, &reference).unwrap_err();
        assert!(
            error.contains(said) && error.contains(name),
            "{form}{name}: {error}"
        );
    }
}

#[test]
fn a_blob_that_is_a_fifo_or_leads_out_is_refused_without_waiting() {
    let place = Place::new();
    let image = named("a");
    let reference = place.write(&Layout::new().add(&image, ""));
    let manifest = image.write().unwrap().manifest;
    let blob = place.path("layout/blobs").join(manifest.digest.replace(':', "/"));
    std::fs::remove_file(&blob).unwrap();
    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &blob, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let error = command(&place, &reference).unwrap_err();
    assert!(error.contains("is not a regular file"), "{error}");
    std::fs::remove_file(&blob).unwrap();
    std::fs::write(place.path("outside"), manifest.content.unwrap()).unwrap();
    std::os::unix::fs::symlink(place.path("outside"), &blob).unwrap();
    command(&place, &reference).unwrap_err();
}

#[test]
fn a_store_of_another_format_is_refused() {
    let place = Place::new();
    place.store();
    std::fs::write(place.path("store/version"), "7\n").unwrap();
    let error = Store::open(place.path("store")).unwrap_err().to_string();
    assert!(error.contains("the format 7, this program uses 1"), "{error}");
}

#[test]
fn documents_beyond_the_limit_are_refused() {
    let place = Place::new();
    let reference = place.write(&Layout::new().add(&named("a"), ""));
    let limits = Limits {
        document_bytes: 64,
        ..Limits::default()
    };
    let store = Store::open_with(place.path("store"), limits).unwrap();
    let error = chain(&store.resolve(&reference, &mut ignore).unwrap_err());
    assert!(
        error.contains("index.json") && error.contains("more than the 64 allowed"),
        "{error}"
    );
}
