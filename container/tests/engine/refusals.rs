//! Configurations that are refused, by the place of what is wrong, before anything is made.

use container::{CreateError, Stdio};
use serde_json::{Value, json};

use crate::bundle::{TestBundle, chain};

crate::tests!(
    fields_not_honoured_yet_are_refused_by_their_place,
    labels_of_security_modules_are_refused_by_their_place,
    empty_fields_not_honoured_yet_are_no_reason,
    a_root_file_system_that_is_missing_is_named,
    a_configuration_without_process_or_root_is_refused,
    another_major_version_of_the_specification_is_refused,
);

/// Sets the value at a JSON pointer, making the objects on the way.
fn set(config: &mut Value, pointer: &str, value: Value) {
    let mut place = config;
    for part in pointer.split('/').skip(1) {
        place = match part.parse::<usize>() {
            Ok(index) => &mut place[index],
            Err(_) => &mut place[part],
        };
    }
    *place = value;
}

fn fields_not_honoured_yet_are_refused_by_their_place() {
    let mut bundle = TestBundle::command(&["true"]);
    set(&mut bundle.config, "/linux/intelRdt", json!({}));
    let error = bundle.create(Stdio::Inherit).unwrap_err();
    assert!(
        error.is(
            |error| matches!(error, CreateError::Spec(_)),
            " linux.intelRdt: is not supported yet"
        ),
        "{}",
        chain(&error)
    );
}

fn labels_of_security_modules_are_refused_by_their_place() {
    for (pointer, field, module) in [
        ("/process/apparmorProfile", "process.apparmorProfile", "AppArmor"),
        ("/process/selinuxLabel", "process.selinuxLabel", "SELinux"),
        ("/linux/mountLabel", "linux.mountLabel", "SELinux"),
    ] {
        let mut bundle = TestBundle::command(&["true"]);
        set(&mut bundle.config, pointer, json!("some-label"));
        let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
        assert!(
            message.contains(&format!("{field}: `some-label`")) && message.contains(module),
            "{message}"
        );
        std::fs::remove_dir_all(&bundle.folder).unwrap();
    }
}

fn empty_fields_not_honoured_yet_are_no_reason() {
    let mut bundle = TestBundle::command(&["true"]);
    set(
        &mut bundle.config,
        "/hooks",
        json!({ "prestart": [], "poststop": [] }),
    );
    for label in [
        "/process/apparmorProfile",
        "/process/selinuxLabel",
        "/linux/mountLabel",
    ] {
        set(&mut bundle.config, label, json!(""));
    }
    set(&mut bundle.config, "/linux/resources/hugepageLimits", json!([]));
    bundle.output();
}

fn a_root_file_system_that_is_missing_is_named() {
    let mut bundle = TestBundle::command(&["true"]);
    bundle.config["root"]["path"] = "not-there".into();
    let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
    assert!(
        message.contains("bundle/not-there") && message.contains("No such file"),
        "{message}"
    );
}

fn a_configuration_without_process_or_root_is_refused() {
    for field in ["process", "root", "linux"] {
        let mut bundle = TestBundle::command(&["true"]);
        bundle.config.as_object_mut().unwrap().remove(field);
        let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
        assert!(message.contains(&format!("{field}: is required")), "{message}");
        std::fs::remove_dir_all(&bundle.folder).unwrap();
    }
}

fn another_major_version_of_the_specification_is_refused() {
    for version in ["2.0.0", "0.9.0", "1", "1.", "1.x.0", "invalid", ""] {
        let mut bundle = TestBundle::command(&["true"]);
        bundle.config["ociVersion"] = version.into();
        let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
        assert!(
            message.contains("ociVersion") && message.contains("1.x.y"),
            "{message}"
        );
        std::fs::remove_dir_all(&bundle.folder).unwrap();
    }
    let mut bundle = TestBundle::command(&["true"]);
    for version in ["1.0.0", "1.2.1", "1.3.0-rc.1+dev"] {
        bundle.config["ociVersion"] = version.into();
        bundle.output();
    }
}
