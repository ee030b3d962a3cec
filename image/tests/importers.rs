//! Several processes importing at once, and processes killed while they do. A test starts itself again as the other
//! process: the test named `an_importer` then imports what its environment says.

// In tests an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod fixture;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fixture::{Place, ignore, is_root, lines};
use image::{Progress, Store};
use image_builder::{Compression, Entry, Image, Layout};

const WORKPLACE: &str = "IMAGE_TEST_IMPORTER";
const NAME: &str = "IMAGE_TEST_IMPORTER_NAME";

/// Longest wait for another process.
const PATIENCE: Duration = Duration::from_secs(60);

/// Not a test by itself: the process other tests start. It notes each event in a file of its name, and stops in the
/// midst of the first layer until a file `go` appears.
#[test]
fn an_importer() {
    let Some(place) = std::env::var_os(WORKPLACE).map(PathBuf::from) else {
        return;
    };
    let name = std::env::var(NAME).unwrap();
    let store = Store::open(place.join("store")).unwrap();
    let reference = format!("oci:{}", place.join("layout").display()).parse().unwrap();
    let mut events = String::new();
    let mut note = |event: &str| {
        events.push_str(event);
        events.push('\n');
        fs::write(place.join(format!("{name}.new")), &events).unwrap();
        fs::rename(place.join(format!("{name}.new")), place.join(&name)).unwrap();
    };
    let resolved = store.resolve(&reference, &mut |progress| match progress {
        Progress::Waiting { .. } => note("waiting"),
        Progress::Unpacking { read: 0, .. } => note("started"),
        Progress::Unpacking { .. } => {
            note("halfway");
            while !place.join("go").exists() {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Progress::Unpacked { .. } => note("unpacked"),
    });
    note(if resolved.is_ok() { "resolved" } else { "failed" });
}

fn start(place: &Place, name: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "an_importer"])
        .env(WORKPLACE, place.path("."))
        .env(NAME, name)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn wait_for(file: &Path, event: &str) {
    let start = Instant::now();
    while !fs::read_to_string(file)
        .unwrap_or_default()
        .lines()
        .any(|line| line == event)
    {
        assert!(
            start.elapsed() < PATIENCE,
            "{} never said `{event}`",
            file.display()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Two layers, the first of more than a mebibyte that does not compress, so that its import has a middle.
fn image() -> Image {
    let mut state = 1u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    })
    .take(3 << 20)
    .collect();
    Image::new()
        .layer(
            Compression::Gzip,
            [Entry::file("first", "1"), Entry::file("noise", noise)],
        )
        .layer(Compression::Gzip, [Entry::file("second", "2")])
}

fn count(place: &Place, names: &[&str], event: &str) -> usize {
    let text: String = names
        .iter()
        .map(|name| fs::read_to_string(place.path(name)).unwrap())
        .collect();
    text.lines().filter(|line| *line == event).count()
}

#[test]
fn two_processes_unpack_each_layer_once() {
    if !is_root("two_processes_unpack_each_layer_once") {
        return;
    }
    let place = Place::new();
    place.write(&Layout::new().add(&image(), "latest"));
    let mut first = start(&place, "first");
    wait_for(&place.path("first"), "halfway");
    let mut second = start(&place, "second");
    wait_for(&place.path("second"), "waiting");
    fs::write(place.path("go"), "").unwrap();
    for child in [&mut first, &mut second] {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(count(&place, &["first", "second"], "unpacked"), 2);
    assert_eq!(count(&place, &["first", "second"], "resolved"), 2);
    assert!(place.stored("discarded").is_empty());
}

#[test]
fn an_importer_killed_halfway_leaves_a_store_that_works() {
    if !is_root("an_importer_killed_halfway_leaves_a_store_that_works") {
        return;
    }
    let place = Place::new();
    let reference = place.write(&Layout::new().add(&image(), "latest"));
    let mut killed = start(&place, "killed");
    wait_for(&place.path("killed"), "halfway");
    killed.kill().unwrap();
    killed.wait().unwrap();

    let layers = place.stored("layers/sha256");
    assert_eq!(layers.len(), 1);
    assert_eq!(
        place.stored(&format!("layers/sha256/{}", layers[0])),
        ["incoming"]
    );
    assert!(place.stored("manifests/sha256").is_empty());

    let image = place.store().resolve(&reference, &mut ignore).unwrap();
    assert_eq!(lines(&image.layers[1]), ["second: file 2"]);
    assert_eq!(fs::read(image.layers[0].join("noise")).unwrap().len(), 3 << 20);
    for layer in place.stored("layers/sha256") {
        assert_eq!(
            place.stored(&format!("layers/sha256/{layer}")),
            ["fs", "layer.json"]
        );
    }
    assert!(place.stored("discarded").is_empty());
}

#[test]
fn a_killed_importer_lets_the_one_that_waits_go_on() {
    if !is_root("a_killed_importer_lets_the_one_that_waits_go_on") {
        return;
    }
    let place = Place::new();
    place.write(&Layout::new().add(&image(), "latest"));
    let mut killed = start(&place, "killed");
    wait_for(&place.path("killed"), "halfway");
    let mut waiting = start(&place, "waiting-one");
    wait_for(&place.path("waiting-one"), "waiting");
    killed.kill().unwrap();
    killed.wait().unwrap();
    fs::write(place.path("go"), "").unwrap();
    assert!(waiting.wait().unwrap().success());
    assert_eq!(count(&place, &["waiting-one"], "unpacked"), 2);
    assert_eq!(count(&place, &["waiting-one"], "resolved"), 1);
    assert!(place.stored("discarded").is_empty());
}

#[test]
fn what_a_killed_importer_left_of_one_image_goes_with_the_import_of_another() {
    if !is_root("what_a_killed_importer_left_of_one_image_goes_with_the_import_of_another") {
        return;
    }
    let place = Place::new();
    place.write(&Layout::new().add(&image(), "latest"));
    let mut killed = start(&place, "killed");
    wait_for(&place.path("killed"), "halfway");
    killed.kill().unwrap();
    killed.wait().unwrap();
    place.import(&Image::new().layer(Compression::None, [Entry::file("other", "")]));
    assert_eq!(place.stored("layers/sha256").len(), 1);
    assert!(place.stored("discarded").is_empty());
}
