//! The network of a pod in a virtual machine. The guest holds one pod and nothing else, so the guest's own network
//! namespace is the pod's: its containers share it as they would share one made for them.

use serde_json::{Value, json};

/// The namespace as containers are to join it: that of the agent, which is the guest's first process.
pub const NAMESPACE: &str = "/proc/1/ns/net";

/// Has a container that asks for a network namespace join the pod's, also where it names one by a path, which is a path
/// of the host. One that asks for none has the guest's anyway.
pub(super) fn join(config: &mut Value) {
    let namespaces = config
        .pointer_mut("/linux/namespaces")
        .and_then(Value::as_array_mut);
    for namespace in namespaces.into_iter().flatten() {
        let is_network = namespace.get("type").and_then(Value::as_str) == Some("network");
        if let Some(namespace) = namespace.as_object_mut().filter(|_| is_network) {
            namespace.insert("path".into(), json!(NAMESPACE));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_network_becomes_the_pods_and_nothing_else_changes() {
        let mut config = json!({"linux": {"namespaces": [{"type": "pid"}, {"type": "network"}]}, "x": 1});
        join(&mut config);
        let expected = json!({
            "linux": {"namespaces": [{"type": "pid"}, {"type": "network", "path": "/proc/1/ns/net"}]},
            "x": 1,
        });
        assert_eq!(config, expected);
    }

    #[test]
    fn a_configuration_without_namespaces_is_left_alone() {
        let mut config = json!({"process": {}});
        join(&mut config);
        assert_eq!(config, json!({"process": {}}));
    }
}
