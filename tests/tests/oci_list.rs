//! `bulkhead-oci list`, `spec` and `features`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use serde_json::json;
use tests::oci::{Containers, wait_until};

#[test]
fn containers_are_listed_with_their_state_whatever_became_of_one() {
    let Some(containers) = Containers::new() else {
        return;
    };
    assert_eq!(containers.json(&["list", "-f", "json"]), json!([]));
    let one = containers.start("one", "sleep 60", |_| {});
    let two = containers.start("two", "true", |_| {});
    wait_until(|| containers.json(&["state", &two.id])["status"] == "stopped");
    // One whose maker died before it wrote a record, one with half a record, and what is no container.
    for (name, record) in [("half-made", None), ("damaged", Some("{\"bundle\":"))] {
        std::fs::create_dir(containers.states().join(name)).unwrap();
        if let Some(record) = record {
            std::fs::write(containers.states().join(name).join("state.json"), record).unwrap();
        }
    }
    std::fs::write(containers.states().join("a-file"), "").unwrap();
    let listed = containers
        .run(&["list", "--format", "json"])
        .expect(0)
        .complains_of(&["damaged"]);
    let listed: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
    let find = |id: &str| {
        let list = listed.as_array().unwrap();
        list.iter()
            .find(|container| container["id"] == id)
            .unwrap()
            .clone()
    };
    assert_eq!(listed.as_array().unwrap().len(), 4);
    assert_eq!(find("damaged")["status"], "unknown");
    assert_eq!(find("half-made")["status"], "creating");
    assert_eq!(find(&two.id)["status"], "stopped");
    let running = find(&one.id);
    assert_eq!(running["status"], "running");
    assert_eq!(running["owner"], "root");
    assert_eq!(
        running["bundle"],
        one.folder.canonicalize().unwrap().to_str().unwrap()
    );
    let state = containers.json(&["state", &one.id]);
    assert_eq!(
        (&state["pid"], &state["created"]),
        (&running["pid"], &running["created"])
    );
    assert!(running["created"].as_str().unwrap().ends_with('Z'));

    let table = containers.run(&["list"]).expect(0).stdout;
    assert_eq!(table.lines().count(), 5, "{table}");
    let heading: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(heading, ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
    let quiet = containers.run(&["list", "-q"]).expect(0).stdout;
    assert_eq!(quiet.lines().count(), 4);
    assert!(quiet.lines().any(|line| line == one.id));

    containers.run(&["delete", "-f", &one.id]).expect(0);
    containers.run(&["delete", &two.id]).expect(0);
    containers.run(&["delete", "half-made"]).expect(0);
    std::fs::remove_dir_all(containers.states().join("damaged")).unwrap();
    std::fs::remove_file(containers.states().join("a-file")).unwrap();
}

#[test]
fn a_written_configuration_is_never_overwritten_and_rootless_maps_the_caller() {
    let Some(containers) = Containers::new() else {
        return;
    };
    let folder = containers.directory().join("bundle");
    std::fs::create_dir(&folder).unwrap();
    let folder = folder.to_str().unwrap();
    containers.run(&["spec", "--bundle", folder]).expect(0);
    let path = containers.directory().join("bundle/config.json");
    let read = || -> serde_json::Value { serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap() };
    assert_eq!(read()["process"]["args"], json!(["sh"]));
    containers
        .run(&["spec", "-b", folder])
        .expect(1)
        .complains_of(&["config.json exists"]);
    std::fs::remove_file(&path).unwrap();
    containers.run(&["spec", "--rootless", "-b", folder]).expect(0);
    let rootless = read();
    assert_eq!(
        rootless["linux"]["uidMappings"],
        json!([{ "containerID": 0, "hostID": 0, "size": 1 }])
    );
    let kinds = rootless["linux"]["namespaces"].to_string();
    assert!(kinds.contains("user") && !kinds.contains("network"), "{kinds}");
    assert!(rootless["linux"].get("resources").is_none());
}

#[test]
fn features_are_told_in_the_words_of_the_specification() {
    let Some(containers) = Containers::new() else {
        return;
    };
    let features = containers.json(&["features"]);
    assert_eq!(features["ociVersionMin"], "1.0.0");
    let linux = &features["linux"];
    assert_eq!(
        (&linux["cgroup"]["v1"], &linux["cgroup"]["v2"]),
        (&json!(true), &json!(true))
    );
    assert_eq!(linux["cgroup"]["systemd"], false);
    assert!(
        linux["capabilities"]
            .as_array()
            .unwrap()
            .contains(&json!("CAP_CHOWN"))
    );
    assert!(
        features["mountOptions"]
            .as_array()
            .unwrap()
            .contains(&json!("rro"))
    );
    assert!(!features.to_string().contains("null"));
}
