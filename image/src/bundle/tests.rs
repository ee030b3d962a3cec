use super::*;
use oci_spec::runtime::Capability;
use serde_json::Value;

fn image(config: &str) -> ImageConfiguration {
    let document = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{config},"rootfs":{{"type":"layers","diff_ids":[]}}}}"#
    );
    serde_json::from_str(&document).unwrap()
}

fn rootfs() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("etc")).unwrap();
    std::fs::write(
        root.path().join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n",
    )
    .unwrap();
    root
}

fn options(command: &[&str]) -> BundleOptions {
    BundleOptions {
        hostname: "0123456789ab".to_owned(),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        ..BundleOptions::default()
    }
}

fn config_of(image_config: &str, options: &BundleOptions) -> Result<Value, BundleError> {
    let root = rootfs();
    config(&image(image_config), root.path(), options).map(|spec| serde_json::to_value(spec).unwrap())
}

fn strings(value: &Value) -> Vec<&str> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item.as_str().unwrap())
        .collect()
}

#[test]
fn entry_point_and_command_of_the_image_are_joined() {
    let spec = config_of(r#"{"Entrypoint":["/e","1"],"Cmd":["c"]}"#, &options(&[])).unwrap();
    assert_eq!(strings(&spec["process"]["args"]), ["/e", "1", "c"]);
}

#[test]
fn a_given_command_replaces_the_images_and_keeps_the_entry_point() {
    let spec = config_of(r#"{"Entrypoint":["/e"],"Cmd":["c"]}"#, &options(&["x", "y"])).unwrap();
    assert_eq!(strings(&spec["process"]["args"]), ["/e", "x", "y"]);
}

#[test]
fn a_given_entry_point_drops_the_images_command() {
    let wishes = BundleOptions {
        entrypoint: Some(vec!["/n".to_owned()]),
        ..options(&[])
    };
    let spec = config_of(r#"{"Entrypoint":["/e"],"Cmd":["c"]}"#, &wishes).unwrap();
    assert_eq!(strings(&spec["process"]["args"]), ["/n"]);
}

#[test]
fn no_command_anywhere_is_an_error() {
    for config in ["{}", r#"{"Entrypoint":null,"Cmd":[]}"#] {
        assert!(matches!(
            config_of(config, &options(&[])),
            Err(BundleError::NoCommand)
        ));
    }
}

#[test]
fn variables_of_the_user_replace_those_of_the_image_in_place() {
    let wishes = BundleOptions {
        env: vec!["B=user".parse().unwrap(), "C=new".parse().unwrap()],
        tty: true,
        ..options(&["x"])
    };
    let spec = config_of(r#"{"Env":["PATH=/p","B=image","A=1"]}"#, &wishes).unwrap();
    assert_eq!(
        strings(&spec["process"]["env"]),
        [
            "PATH=/p",
            "B=user",
            "A=1",
            "C=new",
            "HOSTNAME=0123456789ab",
            "HOME=/root",
            "TERM=xterm"
        ]
    );
}

#[test]
fn without_a_terminal_there_is_no_term_and_path_has_its_default() {
    let spec = config_of("{}", &options(&["x"])).unwrap();
    let env = strings(&spec["process"]["env"]);
    assert_eq!(
        env[0],
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    );
    assert!(!env.iter().any(|variable| variable.starts_with("TERM=")));
    assert_eq!(spec["process"]["terminal"], false);
}

#[test]
fn a_malformed_variable_of_the_image_is_named() {
    let error = config_of(r#"{"Env":["no-equals-sign"]}"#, &options(&["x"])).unwrap_err();
    assert!(
        matches!(error, BundleError::ImageValue { field: "Env", .. }),
        "{error}"
    );
}

#[test]
fn working_directories_are_absolute_and_plain() {
    for (image_config, wish, expected) in [
        ("{}", None, "/"),
        (r#"{"WorkingDir":""}"#, None, "/"),
        (r#"{"WorkingDir":"/app/../srv"}"#, None, "/srv"),
        (r#"{"WorkingDir":"app"}"#, None, "/app"),
        (r#"{"WorkingDir":"/app"}"#, Some("/../../x/./y/"), "/x/y"),
    ] {
        let wishes = BundleOptions {
            working_directory: wish.map(str::to_owned),
            ..options(&["x"])
        };
        assert_eq!(
            config_of(image_config, &wishes).unwrap()["process"]["cwd"],
            expected
        );
    }
    let wishes = BundleOptions {
        working_directory: Some("x".to_owned()),
        ..options(&["x"])
    };
    assert!(matches!(
        config_of("{}", &wishes),
        Err(BundleError::RelativeWorkingDirectory(_))
    ));
}

#[test]
fn root_holds_dockers_fourteen_capabilities_and_no_others() {
    let spec = config_of("{}", &options(&["x"])).unwrap();
    let capabilities = &spec["process"]["capabilities"];
    for set in ["bounding", "effective", "permitted"] {
        let held = strings(&capabilities[set]);
        assert_eq!(held.len(), 14);
        for missing in [
            "CAP_SYS_ADMIN",
            "CAP_NET_ADMIN",
            "CAP_SYS_PTRACE",
            "CAP_SYS_MODULE",
            "CAP_DAC_READ_SEARCH",
        ] {
            assert!(!held.contains(&missing), "{missing} in {set}");
        }
    }
    for set in ["inheritable", "ambient"] {
        assert!(capabilities[set].is_null(), "{set}");
    }
}

#[test]
fn another_user_holds_no_capability_but_may_gain_the_default_ones() {
    let spec = config(&image(r#"{"User":"web"}"#), rootfs().path(), &options(&["x"])).unwrap();
    let process = spec.process().as_ref().unwrap();
    assert_eq!((process.user().uid(), process.user().gid()), (33, 34));
    let capabilities = process.capabilities().as_ref().unwrap();
    assert_eq!(capabilities.bounding().as_ref().unwrap().len(), 14);
    assert!(
        capabilities
            .bounding()
            .as_ref()
            .unwrap()
            .contains(&Capability::Chown)
    );
    assert!(capabilities.effective().as_ref().unwrap().is_empty());
    assert!(capabilities.permitted().as_ref().unwrap().is_empty());
}

#[test]
fn a_given_user_replaces_the_images() {
    let wishes = BundleOptions {
        user: Some("0:7".parse().unwrap()),
        ..options(&["x"])
    };
    let spec = config_of(r#"{"User":"web"}"#, &wishes).unwrap();
    assert_eq!(spec["process"]["user"]["uid"], 0);
    assert_eq!(spec["process"]["user"]["gid"], 7);
    assert_eq!(spec["process"]["user"]["additionalGids"], serde_json::json!([7]));
}

#[test]
fn limits_appear_in_the_kernels_units() {
    let wishes = BundleOptions {
        memory: Some("64m".parse().unwrap()),
        cpus: Some("0.5".parse().unwrap()),
        pids_limit: Some("100".parse().unwrap()),
        ..options(&["x"])
    };
    let resources = &config_of("{}", &wishes).unwrap()["linux"]["resources"];
    assert_eq!(resources["memory"]["limit"], 67_108_864);
    assert_eq!(resources["cpu"]["quota"], 50_000);
    assert_eq!(resources["cpu"]["period"], 100_000);
    assert_eq!(resources["pids"]["limit"], 100);
}

#[test]
fn without_limits_only_devices_are_limited() {
    let spec = config_of("{}", &options(&["x"])).unwrap();
    let resources = spec["linux"]["resources"].as_object().unwrap();
    assert_eq!(resources.keys().collect::<Vec<_>>(), ["devices"]);
    assert_eq!(
        resources["devices"],
        serde_json::json!([{"allow": false, "access": "rwm"}])
    );
}

#[test]
fn binds_follow_the_defaults_outer_first_and_may_replace_one() {
    let wishes = BundleOptions {
        binds: ["/h/a:/a/b/c:ro", "/h/b:/a", "/h/s:/dev/shm"]
            .map(|bind| bind.parse().unwrap())
            .to_vec(),
        ..options(&["x"])
    };
    let spec = config_of("{}", &wishes).unwrap();
    let mounts = spec["mounts"].as_array().unwrap();
    let destinations: Vec<_> = mounts
        .iter()
        .map(|mount| mount["destination"].as_str().unwrap())
        .collect();
    assert_eq!(
        destinations,
        [
            "/proc",
            "/dev",
            "/dev/pts",
            "/dev/mqueue",
            "/sys",
            "/sys/fs/cgroup",
            "/a",
            "/dev/shm",
            "/a/b/c"
        ]
    );
    let last = mounts.last().unwrap();
    assert_eq!(last["type"], "bind");
    assert_eq!(strings(&last["options"]), ["rbind", "rprivate", "ro"]);
}

#[test]
fn namespaces_are_the_six_of_an_ordinary_container() {
    let spec = config_of("{}", &options(&["x"])).unwrap();
    let kinds: Vec<_> = spec["linux"]["namespaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n["type"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["pid", "network", "ipc", "uts", "mount", "cgroup"]);
    assert!(spec["linux"]["seccomp"].is_null());
}

#[test]
fn creating_a_bundle_writes_the_configuration_and_the_working_directory() {
    let (root, bundle) = (rootfs(), tempfile::tempdir().unwrap());
    let config = image(r#"{"Cmd":["x"],"WorkingDir":"/srv/app"}"#);
    let spec = create(bundle.path(), &config, root.path(), &options(&[])).unwrap();
    let written = std::fs::read_to_string(bundle.path().join("config.json")).unwrap();
    assert_eq!(serde_json::from_str::<Spec>(&written).unwrap(), spec);
    assert_eq!(spec.root().as_ref().unwrap().path(), root.path());
    assert!(root.path().join("srv/app").is_dir());
}
