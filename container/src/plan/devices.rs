//! The device nodes in a container's `/dev`: those every container has, and `linux.devices`.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType};
use rustix::fs::{Dev, FileType, Mode, makedev};
use rustix::process::{Gid, Uid};

use super::SpecError;

/// A node to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceNode {
    /// Its place in `linux.devices`; none for one that every container has.
    pub(crate) index: Option<usize>,
    pub(crate) path: PathBuf,
    pub(crate) kind: DeviceKind,
    pub(crate) number: Dev,
    pub(crate) mode: Mode,
    pub(crate) owner: Option<(Uid, Gid)>,
}

/// What a node gives access to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceKind {
    Character,
    Block,
    Fifo,
}

impl DeviceKind {
    pub(crate) fn file_type(self) -> FileType {
        match self {
            DeviceKind::Character => FileType::CharacterDevice,
            DeviceKind::Block => FileType::BlockDevice,
            DeviceKind::Fifo => FileType::Fifo,
        }
    }
}

/// Devices that the runtime specification promises every Linux container ("Default Devices"). `/dev/console` and
/// `/dev/ptmx`, also promised, belong to the terminal.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

pub(super) fn plan(linux: &Linux) -> Result<Vec<DeviceNode>, SpecError> {
    let mut nodes: Vec<DeviceNode> = DEFAULT
        .iter()
        .map(|&(path, major, minor)| DeviceNode {
            index: None,
            path: path.into(),
            kind: DeviceKind::Character,
            number: makedev(major, minor),
            mode: Mode::from_raw_mode(0o666),
            owner: None,
        })
        .collect();
    for (index, device) in linux.devices().as_deref().unwrap_or_default().iter().enumerate() {
        let node = node(index, device)?;
        match nodes.iter_mut().find(|known| known.path == node.path) {
            Some(known) => *known = node,
            None => nodes.push(node),
        }
    }
    Ok(nodes)
}

fn node(index: usize, device: &LinuxDevice) -> Result<DeviceNode, SpecError> {
    let field = |name: &str| format!("linux.devices[{index}].{name}");
    let path = device.path();
    if !path.is_absolute() || path.file_name().is_none() || path == Path::new("/dev") {
        return Err(SpecError::invalid(
            field("path"),
            "is not the absolute path of a node",
        ));
    }
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Character,
        LinuxDeviceType::B => DeviceKind::Block,
        LinuxDeviceType::P => DeviceKind::Fifo,
        LinuxDeviceType::A => {
            return Err(SpecError::invalid(
                field("type"),
                "a node is of type c, u, b or p",
            ));
        }
    };
    // The kernel's own numbers have 12 and 20 bits.
    let part = |value: i64, bits: u32, name: &str| {
        u32::try_from(value)
            .ok()
            .filter(|&value| value < 1 << bits)
            .ok_or_else(|| SpecError::invalid(field(name), format!("{value} is not a device number")))
    };
    let number = match kind {
        DeviceKind::Fifo => 0,
        _ => makedev(
            part(device.major(), 12, "major")?,
            part(device.minor(), 20, "minor")?,
        ),
    };
    let owner = match (device.uid(), device.gid()) {
        (None, None) => None,
        (uid, gid) => Some((Uid::from_raw(uid.unwrap_or(0)), Gid::from_raw(gid.unwrap_or(0)))),
    };
    // Only permissions: some writers put the file type in too.
    let mode = Mode::from_raw_mode(device.file_mode().unwrap_or(0o666) & 0o7777);
    Ok(DeviceNode {
        index: Some(index),
        path: path.clone(),
        kind,
        number,
        mode,
        owner,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_json(devices: &str) -> Result<Vec<DeviceNode>, SpecError> {
        plan(&serde_json::from_str::<Linux>(&format!(r#"{{"devices":{devices}}}"#)).unwrap())
    }

    #[test]
    fn a_device_of_the_configuration_replaces_the_default_of_the_same_path() {
        let nodes =
            plan_json(r#"[{"path":"/dev/null","type":"c","major":1,"minor":3,"fileMode":384,"uid":7}]"#)
                .unwrap();
        assert_eq!(nodes.len(), DEFAULT.len());
        let null = nodes
            .iter()
            .find(|node| node.path == Path::new("/dev/null"))
            .unwrap();
        assert_eq!(null.mode, Mode::from_raw_mode(0o600));
        assert_eq!(null.owner, Some((Uid::from_raw(7), Gid::from_raw(0))));
    }

    #[test]
    fn nodes_that_cannot_be_are_refused_by_their_place() {
        for (devices, field) in [
            (
                r#"[{"path":"x","type":"c","major":1,"minor":3}]"#,
                "linux.devices[0].path",
            ),
            (
                r#"[{"path":"/dev/x","type":"a","major":1,"minor":3}]"#,
                "linux.devices[0].type",
            ),
            (
                r#"[{"path":"/dev/x","type":"c","major":-1,"minor":3}]"#,
                "linux.devices[0].major",
            ),
            (
                r#"[{"path":"/dev/x","type":"b","major":1,"minor":1048576}]"#,
                "linux.devices[0].minor",
            ),
        ] {
            assert_eq!(plan_json(devices).unwrap_err().field(), field);
        }
    }
}
