//! `linux.netDevices`: network devices of the host that become the container's.

use std::collections::HashSet;

use oci_spec::runtime::Linux;

use super::map_order::by_key;
use super::{Namespace, NamespacePlan, SpecError};

/// A device to move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NetDevice {
    /// Its name in the caller's network namespace.
    pub(crate) host_name: String,
    /// Its name in the container's.
    pub(crate) name: String,
}

/// The devices, sorted by their names on the host.
pub(super) fn plan(linux: &Linux, namespaces: &NamespacePlan) -> Result<Vec<NetDevice>, SpecError> {
    let mut devices = Vec::new();
    for (host_name, device) in linux.net_devices().iter().flat_map(by_key) {
        let name = device.name().as_ref().filter(|name| !name.is_empty());
        devices.push(NetDevice {
            host_name: host_name.to_owned(),
            name: name.map_or(host_name, String::as_str).to_owned(),
        });
    }
    if !devices.is_empty() && !namespaces.isolates(Namespace::Network) {
        let problem = "needs a network namespace that is not the caller's";
        return Err(SpecError::invalid("linux.netDevices", problem));
    }
    let mut names = HashSet::new();
    for NetDevice { host_name, name } in &devices {
        let field = format!("linux.netDevices.{host_name}");
        if !is_name(host_name) {
            return Err(SpecError::invalid(field, "is not the name of a network device"));
        }
        let field = format!("{field}.name");
        if !is_name(name) {
            let problem = format!("`{name}` is not the name of a network device");
            return Err(SpecError::invalid(field, problem));
        }
        if !names.insert(name) {
            let problem = format!("`{name}` is the name of another device already");
            return Err(SpecError::invalid(field, problem));
        }
    }
    Ok(devices)
}

/// What the kernel takes for a name; a `%d`, which it would fill in itself, is not one yet.
fn is_name(name: &str) -> bool {
    (1..16).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name
            .bytes()
            .any(|byte| matches!(byte, b'/' | b':' | b'%' | 0) || byte.is_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_json(devices: &str, namespace: &str) -> Result<Vec<NetDevice>, SpecError> {
        let json = format!(r#"{{"namespaces":[{{"type":"mount"}}{namespace}],"netDevices":{devices}}}"#);
        let linux: Linux = serde_json::from_str(&json).unwrap();
        plan(&linux, &NamespacePlan::new(&linux).unwrap())
    }

    const NETWORK: &str = r#",{"type":"network"}"#;

    #[test]
    fn a_device_keeps_its_name_or_gets_another() {
        let planned = plan_json(
            r#"{"eth1":{"name":"eth0"},"eth0":{"name":"eth1"},"eth2":{}}"#,
            NETWORK,
        )
        .unwrap();
        let device = |host_name: &str, name: &str| NetDevice {
            host_name: host_name.to_owned(),
            name: name.to_owned(),
        };
        assert_eq!(
            planned,
            [
                device("eth0", "eth1"),
                device("eth1", "eth0"),
                device("eth2", "eth2")
            ]
        );
        assert!(plan_json("{}", "").unwrap().is_empty());
    }

    #[test]
    fn devices_that_cannot_be_are_refused_by_their_place() {
        for (devices, namespace, field) in [
            (r#"{"eth0":{}}"#, "", "linux.netDevices"),
            (r#"{"eth0/x":{}}"#, NETWORK, "linux.netDevices.eth0/x"),
            (r#"{"":{}}"#, NETWORK, "linux.netDevices."),
            (
                r#"{"eth0":{"name":"eth%d"}}"#,
                NETWORK,
                "linux.netDevices.eth0.name",
            ),
            (
                r#"{"eth0":{"name":"a-name-of-16-byt"}}"#,
                NETWORK,
                "linux.netDevices.eth0.name",
            ),
            (
                r#"{"eth0":{"name":"x"},"eth1":{"name":"x"}}"#,
                NETWORK,
                "linux.netDevices.eth1.name",
            ),
        ] {
            assert_eq!(plan_json(devices, namespace).unwrap_err().field(), field);
        }
    }
}
