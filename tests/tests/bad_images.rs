//! Images that are not what they say: refused by name, nothing kept, nothing run.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use image_builder::{Compression, Damage, Entry, Image, Layout};
use tests::{Finished, Installation, Wall};

/// Runs `true` from the image.
fn run(bulkhead: Installation, image: &Image) -> Finished {
    let layout = bulkhead.scratch("image");
    Layout::new().add(image, "latest").write_folder(&layout).unwrap();
    bulkhead
        .with_image(layout)
        .run(Wall::SharedKernel, &[], &["true"])
}

fn two_layers() -> Image {
    Image::new()
        .layer(
            Compression::Gzip,
            [Entry::folder("etc"), Entry::file("etc/one", "1")],
        )
        .layer(Compression::None, [Entry::file("etc/two", "2")])
        .cmd(["/bin/true"])
}

#[test]
fn a_layer_of_another_digest_is_named_with_both_digests() {
    let Some(bulkhead) = Installation::for_wall(Wall::SharedKernel) else {
        return;
    };
    run(bulkhead, &two_layers().damage(Damage::LayerContent(1)))
        .expect(125)
        .complains_of(&["sha256:", "digest"]);
}

#[test]
fn a_manifest_of_another_digest_is_refused() {
    let Some(bulkhead) = Installation::for_wall(Wall::SharedKernel) else {
        return;
    };
    run(bulkhead, &two_layers().damage(Damage::ManifestContent))
        .expect(125)
        .complains_of(&["sha256:"]);
}

#[test]
fn an_unknown_media_type_is_named() {
    let Some(bulkhead) = Installation::for_wall(Wall::SharedKernel) else {
        return;
    };
    let strange = "application/vnd.example.layer.v9.tar+brotli";
    run(bulkhead, &two_layers().damage(Damage::LayerMediaType(0, strange)))
        .expect(125)
        .complains_of(&[strange]);
}

#[test]
fn a_layer_that_climbs_out_is_refused_and_writes_nothing_outside() {
    let Some(bulkhead) = Installation::for_wall(Wall::SharedKernel) else {
        return;
    };
    let outside = bulkhead.scratch("outside");
    let target = outside.join("planted");
    let climbing = format!("../../../../../../../../../..{}", target.display());
    let image = Image::new()
        .layer(Compression::None, [Entry::file(climbing, "planted")])
        .cmd(["/bin/true"]);
    run(bulkhead, &image).expect(125).complains_of(&["planted"]);
    assert!(!target.exists());
}

#[test]
fn a_layer_that_climbs_out_through_its_own_link_is_refused() {
    let Some(bulkhead) = Installation::for_wall(Wall::SharedKernel) else {
        return;
    };
    let outside = bulkhead.scratch("outside");
    let link = Entry::symlink("way", outside.to_str().unwrap());
    let image = Image::new()
        .layer(Compression::None, [link, Entry::file("way/planted", "x")])
        .cmd(["/bin/true"]);
    // Refused, or written below the root where the link would lead from there: never outside.
    run(bulkhead, &image);
    assert!(!outside.join("planted").exists());
}
