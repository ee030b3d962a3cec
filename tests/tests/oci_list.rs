//! `bulkhead-oci list`, `spec` and `features`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use serde_json::{Value, json};
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
    // Without a word it is the default wall's, which another program knows.
    for wall in [&["features"][..], &["features", "--isolation", "microvm"]] {
        let features = containers.json(wall);
        assert_eq!(features["annotations"]["dev.bulkhead.isolation"], "microvm");
        assert_eq!(features["linux"]["cgroup"]["v1"], false);
        assert!(
            !features["hooks"]
                .as_array()
                .unwrap()
                .contains(&json!("createContainer"))
        );
    }
    let features = containers.json(&["features", "--isolation", "shared-kernel"]);
    assert_eq!(features["ociVersionMin"], "1.0.0");
    let unsafe_annotations = features["potentiallyUnsafeConfigAnnotations"].as_array().unwrap();
    assert!(unsafe_annotations.contains(&json!("dev.bulkhead.")));
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

/// Whether a terminal would show every character as it is.
fn is_harmless(text: &str) -> bool {
    !text.contains(|character: char| {
        character.is_control() && character != '\n' || ('\u{202a}'..='\u{202e}').contains(&character)
    })
}

/// What would clear a terminal, end a line, and turn around what follows.
const HOSTILE: &str = "x\u{1b}[2J\u{1b}]0;owned\u{7}\r\n\u{9b}31m\u{202e}y";

#[test]
fn hostile_words_of_a_configuration_are_told_and_harmless() {
    let Some(containers) = Containers::new() else {
        return;
    };
    let bundle = containers.bundle("hostile", "true", |_| {});
    let path = bundle.folder.join("config.json");
    let good: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let log = containers.directory().join("log");
    let (log_path, folder) = (log.to_str().unwrap(), bundle.folder.to_str().unwrap());
    let absolute = format!("/{HOSTILE}");
    for (pointer, value) in [
        ("/process/args", json!([absolute])),
        ("/process/cwd", json!("/bin/sh/\u{1b}[2J")),
        ("/process/env", json!([format!("={HOSTILE}")])),
        ("/process/env", json!(["A=\u{0}"])),
        ("/root/path", json!(absolute)),
        ("/root/path", json!("rootfs\u{0}")),
        ("/hostname", json!(HOSTILE.repeat(10))),
        (
            "/mounts",
            json!([{ "destination": "/x", "source": absolute, "options": ["bind"] }]),
        ),
        (
            "/mounts",
            json!([{ "destination": "/x", "type": HOSTILE, "source": "none" }]),
        ),
        (
            "/mounts",
            json!([{ "destination": "/x\u{0}", "type": "tmpfs", "source": "none" }]),
        ),
        ("/hooks", json!({ "createRuntime": [{ "path": absolute }] })),
        ("/hooks", json!({ "createRuntime": [{ "path": "/bin/sh\u{0}" }] })),
        ("/linux/cgroupsPath", json!(absolute)),
        ("/linux/cgroupsPath", json!("/x\u{0}y")),
        ("/linux/sysctl", json!({ HOSTILE: "1" })),
        ("/linux/maskedPaths", json!(["/x\u{0}"])),
        ("/annotations", json!({ format!("dev.bulkhead.{HOSTILE}"): "1" })),
        ("/annotations", json!({ "dev.bulkhead.isolation": HOSTILE })),
        (
            "/annotations",
            json!({ "dev.bulkhead.isolation": "x".repeat(1 << 20) }),
        ),
        ("/ociVersion", json!(HOSTILE)),
    ] {
        let mut configuration = good.clone();
        match pointer {
            "/annotations" => configuration["annotations"] = value.clone(),
            "/hooks" => configuration["hooks"] = value.clone(),
            "/linux/cgroupsPath" => configuration["linux"]["cgroupsPath"] = value.clone(),
            "/linux/sysctl" => configuration["linux"]["sysctl"] = value.clone(),
            pointer => *configuration.pointer_mut(pointer).unwrap() = value.clone(),
        }
        std::fs::write(&path, configuration.to_string()).unwrap();
        let words = [
            "--log",
            log_path,
            "--log-format",
            "json",
            "run",
            "--bundle",
            folder,
        ];
        let mut run = containers.command(&words);
        if pointer != "/annotations" {
            run.args(["--isolation", "shared-kernel"]);
        }
        let finished = tests::finish(run.arg(&bundle.id));
        let value = value.to_string();
        assert_ne!(finished.code, 0, "{pointer} {value}: {finished:?}");
        assert!(is_harmless(&finished.stderr), "{pointer}: {:?}", finished.stderr);
        assert_eq!(
            finished.stderr.lines().count(),
            1,
            "{pointer}: {}",
            finished.stderr
        );
        assert!(finished.stderr.len() < 64 << 10, "{pointer}");
        let entries = std::fs::read_to_string(&log).unwrap();
        let entry: Value = serde_json::from_str(entries.lines().last().unwrap()).unwrap();
        assert!(is_harmless(entry["msg"].as_str().unwrap()), "{pointer}: {entry}");
        assert_eq!(entry["level"], "error");
    }
    for words in [&["state", HOSTILE][..], &[HOSTILE], &["list", HOSTILE]] {
        let said = containers.run(words).expect(2).stderr;
        assert!(is_harmless(&said), "{said:?}");
    }
}

#[test]
fn hostile_names_and_annotations_are_kept_as_they_are_and_listed_harmless() {
    let Some(containers) = Containers::new() else {
        return;
    };
    let annotations = json!({
        HOSTILE: HOSTILE, "org.example.nul": "a\u{0}b", "org.example.large": "x".repeat(1 << 20), "org.example.empty": "",
        "dev.bulkhead.isolation": "shared-kernel"
    });
    let bundle = containers.start(HOSTILE, "sleep 60", |configuration| {
        configuration["annotations"] = annotations.clone();
    });
    let state = containers.json(&["state", &bundle.id]);
    assert_eq!(state["annotations"], annotations);
    let folder = bundle.folder.canonicalize().unwrap();
    assert_eq!(state["bundle"], folder.to_str().unwrap());
    let listed = containers.json(&["list", "--format", "json"]);
    assert_eq!(listed[0]["bundle"], state["bundle"]);
    let table = containers.run(&["list"]).expect(0).stdout;
    assert!(is_harmless(&table), "{table:?}");
    assert_eq!(table.lines().count(), 2);
    assert!(table.contains("\\u{1b}[2J"), "{table}");
    containers.run(&["delete", "-f", &bundle.id]).expect(0);
}
