//! What is refused before anything is made.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use tests::{Installation, Wall, finish};

#[test]
fn an_unknown_flag_is_refused_by_name() {
    let Some(bulkhead) = Installation::for_wall(Wall::SharedKernel) else {
        return;
    };
    finish(bulkhead.bulkhead().args(["run", "--isolate", "x"]))
        .expect(125)
        .complains_of(&["--isolate"]);
}

#[test]
fn an_unknown_isolation_names_both_walls() {
    let Some(bulkhead) = Installation::for_wall(Wall::SharedKernel) else {
        return;
    };
    let image = bulkhead.image();
    finish(
        bulkhead
            .bulkhead()
            .args(["run", "--isolation", "jail", &image, "true"]),
    )
    .expect(125)
    .complains_of(&["jail", "microvm or shared-kernel"]);
}

#[test]
fn an_unknown_key_of_the_configuration_is_refused_by_name() {
    let Some(bulkhead) = Installation::for_wall(Wall::SharedKernel) else {
        return;
    };
    let configuration = bulkhead.configuration("isolatoin = \"microvm\"");
    let image = bulkhead.image();
    finish(
        bulkhead
            .bulkhead()
            .arg("--config")
            .arg(&configuration)
            .args(["run", &image, "true"]),
    )
    .expect(125)
    .complains_of(&["isolatoin", "config.toml"]);
}

#[test]
fn a_reference_without_a_transport_names_the_forms() {
    let Some(bulkhead) = Installation::for_wall(Wall::SharedKernel) else {
        return;
    };
    finish(
        bulkhead
            .bulkhead()
            .args(["run", "--isolation", "shared-kernel", "busybox", "true"]),
    )
    .expect(125)
    .complains_of(&["busybox", "oci:", "oci-archive:"]);
}

#[test]
fn hostile_names_are_refused() {
    let Some(bulkhead) = Installation::for_wall(Wall::SharedKernel) else {
        return;
    };
    let image = bulkhead.image();
    for name in ["../escape", "a/b", "", ".", "a\nb"] {
        let run = [
            "run",
            "--isolation",
            "shared-kernel",
            "--name",
            name,
            &image,
            "true",
        ];
        finish(bulkhead.bulkhead().args(run)).expect(125);
    }
}

#[test]
fn bad_sizes_and_numbers_are_refused_with_the_form() {
    let Some(bulkhead) = Installation::for_wall(Wall::SharedKernel) else {
        return;
    };
    for (option, value) in [
        ("--memory", "lots"),
        ("--cpus", "-1"),
        ("--pids-limit", "few"),
        ("-v", "relative"),
    ] {
        let finished = bulkhead.run(Wall::SharedKernel, &[&format!("{option}={value}")], &["true"]);
        finished.expect(125).complains_of(&[value]);
    }
}

#[test]
fn removing_what_never_was_says_so() {
    let Some(bulkhead) = Installation::for_wall(Wall::SharedKernel) else {
        return;
    };
    finish(bulkhead.bulkhead().args(["rm", "nobody"]))
        .expect(1)
        .complains_of(&["nobody", "bulkhead ps"]);
}
