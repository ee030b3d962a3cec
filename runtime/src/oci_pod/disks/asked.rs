//! What a configuration says of disks.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::DiskError;
use super::limits::DiskLimits;
use crate::annotations::{ROOT_SOURCE_ANNOTATION, ROOT_TYPE_ANNOTATION};

/// Major and minor number of a block device.
pub(super) type DeviceNumber = (u32, u32);

/// File systems that are mounted from a disk: their source is one, and anything else an error to be told as such. Those of
/// other names are, if their source is a disk.
const OF_DISKS: [&str; 12] = [
    "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "iso9660", "ntfs3", "squashfs", "vfat", "xfs",
];

/// Those among them that nobody can write.
const NEVER_WRITTEN: [&str; 3] = ["erofs", "iso9660", "squashfs"];

/// A disk that a container is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AskedDisk {
    /// Where the configuration names it, for people.
    pub(super) field: String,
    /// What it is for.
    pub(super) place: Place,
    /// The image or the node, or where the container is to have the device of that number.
    pub(super) path: PathBuf,
    /// The host's number of the device, where that is what the configuration names.
    pub(super) number: Option<DeviceNumber>,
    /// Whether the container may only read it.
    pub(super) read_only: bool,
    /// What is to be mounted from it.
    pub(super) file_system: Option<String>,
    /// How fast it is at most.
    pub(super) limits: DiskLimits,
}

/// What a disk is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The container's root.
    Root,
    /// The mount of this index.
    Mount(usize),
    /// The device of this index.
    Device(usize),
}

impl Place {
    pub(super) fn device(self) -> Option<usize> {
        match self {
            Self::Device(index) => Some(index),
            Self::Root | Self::Mount(_) => None,
        }
    }
}

/// All disks that the configuration asks for. Relative paths are of `bundle`.
pub(super) fn asked(config: &Value, bundle: &Path) -> Result<Vec<AskedDisk>, DiskError> {
    let mut asked: Vec<_> = root(config, bundle)?.into_iter().collect();
    let mounts = config.get("mounts").and_then(Value::as_array);
    let mounts = mounts.into_iter().flatten().enumerate();
    asked.extend(mounts.filter_map(|(index, mount)| asked_mount(index, mount, bundle)));
    let rules = rules(config);
    let devices = config.pointer("/linux/devices").and_then(Value::as_array);
    let devices = devices.into_iter().flatten().enumerate();
    asked.extend(devices.filter_map(|(index, device)| asked_device(index, device, rules)));
    Ok(asked)
}

fn root(config: &Value, bundle: &Path) -> Result<Option<AskedDisk>, DiskError> {
    let annotation = |name: &str| config.get("annotations")?.get(name)?.as_str();
    let (source, file_system) = match (
        annotation(ROOT_SOURCE_ANNOTATION),
        annotation(ROOT_TYPE_ANNOTATION),
    ) {
        (None, None) => return Ok(None),
        (Some(source), Some(file_system)) if !source.is_empty() && !file_system.is_empty() => {
            (source, file_system)
        }
        _ => return Err(DiskError::HalfARoot),
    };
    let read_only = config.pointer("/root/readonly") == Some(&Value::Bool(true));
    if !read_only && NEVER_WRITTEN.contains(&file_system) {
        return Err(DiskError::WritableRoot {
            file_system: file_system.to_owned(),
        });
    }
    Ok(Some(AskedDisk {
        field: format!("annotation {ROOT_SOURCE_ANNOTATION}"),
        place: Place::Root,
        path: bundle.join(source),
        number: None,
        read_only,
        file_system: Some(file_system.to_owned()),
        limits: DiskLimits::default(),
    }))
}

fn asked_mount(index: usize, mount: &Value, bundle: &Path) -> Option<AskedDisk> {
    let kind = text(mount, "type")?;
    let source = text(mount, "source")?;
    let options = || {
        let options = mount.get("options").and_then(Value::as_array);
        options.into_iter().flatten().filter_map(Value::as_str)
    };
    if matches!(kind, "" | "none" | "bind") || options().any(|option| matches!(option, "bind" | "rbind")) {
        return None;
    }
    let path = bundle.join(source);
    // Names like `tmpfs` and `proc` are no paths.
    let is_disk = || source.starts_with('/') && fs::metadata(&path).is_ok_and(|source| is_disk(&source));
    if !OF_DISKS.contains(&kind) && !is_disk() {
        return None;
    }
    let read_only = options().fold(false, |read_only, option| match option {
        "ro" | "rro" => true,
        "rw" => false,
        _ => read_only,
    });
    Some(AskedDisk {
        field: format!("mounts[{index}].source"),
        place: Place::Mount(index),
        path,
        number: None,
        read_only: read_only || NEVER_WRITTEN.contains(&kind),
        file_system: Some(kind.to_owned()),
        limits: DiskLimits::default(),
    })
}

fn is_disk(metadata: &fs::Metadata) -> bool {
    metadata.is_file() || metadata.file_type().is_block_device()
}

/// A block device is the container's if its cgroup may use it, by a rule that tells it from others. Who is allowed
/// everything, as a privileged container is, does not mean all disks of the host.
fn asked_device(index: usize, device: &Value, rules: &[Value]) -> Option<AskedDisk> {
    let number = block_device_number(device)?;
    let names = |rule: &&Value| allows(rule) && number_of(rule, "major").is_some() && covers(rule, number);
    if !rules.iter().any(|rule| names(&rule)) {
        return None;
    }
    let may_write = rules.iter().fold(false, |may, rule| {
        let access = text(rule, "access").unwrap_or("rwm");
        match covers(rule, number) && (access.is_empty() || access.contains('w')) {
            true => allows(rule),
            false => may,
        }
    });
    Some(AskedDisk {
        field: format!("linux.devices[{index}]"),
        place: Place::Device(index),
        path: text(device, "path").unwrap_or_default().into(),
        number: Some(number),
        read_only: !may_write,
        file_system: None,
        limits: DiskLimits::default(),
    })
}

/// Has the device nodes and rules of a configuration name block devices as the guest numbers them: `attached` are the
/// indices of those it has, each with its number on the host and in the guest. Numbers of others would mean something else
/// there, so nothing is left of them.
pub(super) fn leave_no_other_device(config: &mut Value, attached: &[(usize, DeviceNumber, DeviceNumber)]) {
    let is_left = |index: usize, device: &Value| {
        block_device_number(device).is_none() || attached.iter().any(|a| a.0 == index)
    };
    if let Some(devices) = config.pointer_mut("/linux/devices").and_then(Value::as_array_mut) {
        let all = std::mem::take(devices);
        let left = all.into_iter().enumerate();
        devices.extend(
            left.filter(|(index, device)| is_left(*index, device))
                .map(|(_, device)| device),
        );
    }
    if let Some(rules) = config
        .pointer_mut("/linux/resources/devices")
        .and_then(Value::as_array_mut)
    {
        let all = std::mem::take(rules);
        for rule in all {
            if text(&rule, "type") != Some("b") || number_of(&rule, "major").is_none() {
                rules.push(rule);
                continue;
            }
            for (_, _, guest) in attached.iter().filter(|(_, host, _)| covers(&rule, *host)) {
                let mut translated = rule.clone();
                if let Some(rule) = translated.as_object_mut() {
                    rule.insert("major".into(), json!(guest.0));
                    rule.insert("minor".into(), json!(guest.1));
                }
                rules.push(translated);
            }
        }
    }
}

/// Lets the container's cgroup open a disk of the guest's, which whoever mounts it for the container has to, and not make
/// a node of it.
pub(super) fn allow(config: &mut Value, (major, minor): DeviceNumber, read_only: bool) {
    let access = if read_only { "r" } else { "rw" };
    let rule = json!({"allow": true, "type": "b", "major": major, "minor": minor, "access": access});
    let mut place = Some(config);
    for name in ["linux", "resources", "devices"] {
        place = place.and_then(Value::as_object_mut).map(|object| {
            let member = object.entry(name).or_insert(Value::Null);
            if member.is_null() {
                *member = if name == "devices" { json!([]) } else { json!({}) };
            }
            member
        });
    }
    // A configuration of another form is refused by whoever reads it.
    if let Some(rules) = place.and_then(Value::as_array_mut) {
        rules.push(rule);
    }
}

fn rules(config: &Value) -> &[Value] {
    let rules = config
        .pointer("/linux/resources/devices")
        .and_then(Value::as_array);
    rules.map(Vec::as_slice).unwrap_or_default()
}

fn allows(rule: &Value) -> bool {
    rule.get("allow") == Some(&Value::Bool(true))
}

/// Whether a rule is also one for this block device.
fn covers(rule: &Value, (major, minor): DeviceNumber) -> bool {
    matches!(text(rule, "type"), None | Some("" | "a" | "b"))
        && number_of(rule, "major").is_none_or(|number| number == major)
        && number_of(rule, "minor").is_none_or(|number| number == minor)
}

fn block_device_number(device: &Value) -> Option<DeviceNumber> {
    if text(device, "type") != Some("b") {
        return None;
    }
    Some((number_of(device, "major")?, number_of(device, "minor")?))
}

/// Negative numbers stand for all.
pub(super) fn number_of(object: &Value, member: &str) -> Option<u32> {
    u32::try_from(object.get(member)?.as_i64()?).ok()
}

fn text<'a>(object: &'a Value, member: &str) -> Option<&'a str> {
    object.get(member).and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked_of(config: &Value) -> Vec<AskedDisk> {
        asked(config, Path::new("/bundle")).unwrap()
    }

    #[test]
    fn only_mounts_from_disks_are_disks() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let config = json!({ "mounts": [
            {"type": "proc", "source": "proc"},
            {"type": "tmpfs", "source": "tmpfs", "options": ["size=1k"]},
            {"type": "bind", "source": image.path()},
            {"type": "ext4", "source": image.path(), "options": ["bind"]},
            {"type": "ext4", "source": "disks/data.img", "options": ["ro", "noatime", "rw"]},
            {"type": "erofs", "source": "/gone"},
            {"type": "newfs", "source": image.path(), "options": ["ro"]},
            {"type": "virtiofs", "source": "/"},
            {"destination": "/x"},
        ]});
        let found: Vec<_> = asked_of(&config)
            .into_iter()
            .map(|disk| (disk.field, disk.path, disk.read_only, disk.file_system.unwrap()))
            .collect();
        let expected = [
            (
                "mounts[4].source",
                Path::new("/bundle/disks/data.img"),
                false,
                "ext4",
            ),
            ("mounts[5].source", Path::new("/gone"), true, "erofs"),
            ("mounts[6].source", image.path(), true, "newfs"),
        ];
        let expected = expected.map(|(field, path, ro, kind)| (field.into(), path.into(), ro, kind.into()));
        assert_eq!(found, expected);
    }

    fn with_rules(rules: &Value) -> Value {
        json!({ "linux": {
            "devices": [
                {"type": "c", "path": "/dev/x", "major": 8, "minor": 1},
                {"type": "b", "path": "/dev/y", "major": 8, "minor": 1},
            ],
            "resources": {"devices": rules},
        }})
    }

    #[test]
    fn a_block_device_is_asked_for_by_a_rule_that_tells_it_from_others() {
        let deny = json!({"allow": false, "access": "rwm"});
        for (rules, expected) in [
            (json!([]), None),
            (json!([deny]), None),
            (
                json!([deny, {"allow": true, "type": "b", "major": 8, "minor": 1, "access": "rwm"}]),
                Some(false),
            ),
            (
                json!([deny, {"allow": true, "type": "b", "major": 8, "minor": 1, "access": "rm"}]),
                Some(true),
            ),
            (
                json!([deny, {"allow": true, "type": "b", "major": 8, "minor": -1}]),
                Some(false),
            ),
            (
                json!([deny, {"allow": true, "type": "b", "major": 8, "minor": 2}]),
                None,
            ),
            (
                json!([deny, {"allow": true, "type": "c", "major": 8, "minor": 1}]),
                None,
            ),
            // A privileged container.
            (json!([{"allow": true, "access": "rwm"}]), None),
            (
                json!([{"allow": true, "type": "b", "major": 8, "minor": 1}, {"allow": false, "access": "w"}]),
                Some(true),
            ),
        ] {
            let found = asked_of(&with_rules(&rules));
            let read_only = found.first().map(|disk| disk.read_only);
            assert_eq!(read_only, expected, "{rules}");
            if let Some(disk) = found.first() {
                assert_eq!((disk.place, disk.number), (Place::Device(1), Some((8, 1))));
            }
        }
    }

    #[test]
    fn the_guest_is_told_its_own_numbers_and_none_of_the_hosts() {
        let mut config = with_rules(&json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 8, "minor": 1},
            {"allow": true, "type": "b", "major": 8, "access": "r"},
            {"allow": true, "type": "b", "major": 9, "minor": 0},
        ]));
        let mut none = config.clone();
        leave_no_other_device(&mut config, &[(1, (8, 1), (254, 16))]);
        let rules = &config["linux"]["resources"]["devices"];
        let expected = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 8, "minor": 1},
            {"allow": true, "type": "b", "major": 254, "minor": 16, "access": "r"},
        ]);
        assert_eq!(*rules, expected);
        assert_eq!(config["linux"]["devices"].as_array().unwrap().len(), 2);
        leave_no_other_device(&mut none, &[]);
        assert_eq!(none["linux"]["devices"].as_array().unwrap().len(), 1);
        assert_eq!(none["linux"]["resources"]["devices"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn whoever_mounts_a_disk_may_open_it() {
        let rule = json!({"allow": true, "type": "b", "major": 254, "minor": 0, "access": "r"});
        for mut config in [
            json!({}),
            json!({"linux": {"resources": null}}),
            json!({"linux": {"resources": {}}}),
        ] {
            allow(&mut config, (254, 0), true);
            assert_eq!(config["linux"]["resources"]["devices"], json!([rule]));
            allow(&mut config, (254, 1), false);
            assert_eq!(config["linux"]["resources"]["devices"][1]["access"], "rw");
        }
    }

    #[test]
    fn a_root_is_named_with_its_file_system_and_read_only_where_it_has_to_be() {
        let root = |annotations: Value, readonly: bool| {
            asked(
                &json!({"annotations": annotations, "root": {"readonly": readonly}}),
                Path::new("/b"),
            )
        };
        let both = json!({ROOT_SOURCE_ANNOTATION: "root.img", ROOT_TYPE_ANNOTATION: "ext4"});
        let found = root(both, false).unwrap();
        assert_eq!(
            (found[0].place, found[0].path.as_path()),
            (Place::Root, Path::new("/b/root.img"))
        );
        assert!(!found[0].read_only);
        let erofs = json!({ROOT_SOURCE_ANNOTATION: "/root", ROOT_TYPE_ANNOTATION: "erofs"});
        assert!(root(erofs.clone(), true).unwrap()[0].read_only);
        assert!(
            root(erofs, false)
                .unwrap_err()
                .to_string()
                .contains("set root.readonly")
        );
        for half in [
            json!({ROOT_SOURCE_ANNOTATION: "/x"}),
            json!({ROOT_TYPE_ANNOTATION: "ext4"}),
        ] {
            assert!(matches!(root(half, true), Err(DiskError::HalfARoot)));
        }
        assert!(root(json!({}), false).unwrap().is_empty());
    }
}
