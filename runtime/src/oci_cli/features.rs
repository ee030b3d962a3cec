//! `bulkhead-oci features`

use serde_json::{Value, json};

#[cfg(not(feature = "microvm"))]
use super::guest::hand_over;
use super::{GlobalOptions, OciError, print_json};
use crate::annotations::ANNOTATION_PREFIX;
use crate::isolation::Isolation;

/// What containerd's CRI plugin and CRI-O tell of a pod, by which a container finds its machine.
const PODS_ANNOTATIONS: [&str; 2] = ["io.kubernetes.cri.", "io.kubernetes.cri-o."];

#[derive(Debug, clap::Args)]
pub(super) struct FeaturesArguments {}

impl FeaturesArguments {
    /// Tells what there is behind the wall that is asked for, or would be taken without a word.
    pub(super) fn run(&self, global: &GlobalOptions) -> Result<(), OciError> {
        // What else decides is known there.
        #[cfg(not(feature = "microvm"))]
        if global.isolation.is_none() {
            return hand_over();
        }
        let configured = super::guest::configured_isolation(global)?;
        print_json(&features(Isolation::choose(global.isolation, None, configured))?)
    }
}

fn features(wall: Isolation) -> Result<Value, OciError> {
    let mut features =
        serde_json::to_value(container::features()).map_err(|error| OciError::Output(error.into()))?;
    leave_out_unknowns(&mut features);
    if wall == Isolation::MicroVm {
        leave_out_what_guests_lack(&mut features);
    }
    // Whoever lets a stranger's configuration have these lets him choose the wall, the machine and the disks of the host
    // that it has.
    let unsafe_annotations: Vec<&str> = [ANNOTATION_PREFIX].into_iter().chain(PODS_ANNOTATIONS).collect();
    features["potentiallyUnsafeConfigAnnotations"] = json!(unsafe_annotations);
    features["annotations"] = json!({
        "dev.bulkhead.version": env!("CARGO_PKG_VERSION"), "dev.bulkhead.isolation": wall.as_str()
    });
    Ok(features)
}

/// Behind the microVM wall this is refused, or there is no such thing in the guest (`docs/parity.md`).
fn leave_out_what_guests_lack(features: &mut Value) {
    without(&mut features["hooks"], &["createContainer"]);
    without(&mut features["mountOptions"], &["idmap", "ridmap"]);
    let linux = &mut features["linux"];
    linux["cgroup"]["v1"] = json!(false);
    linux["cgroup"]["rdma"] = json!(false);
    linux["mountExtensions"]["idmap"]["enabled"] = json!(false);
    for part in ["netDevices", "apparmor", "selinux"] {
        linux[part]["enabled"] = json!(false);
    }
    if let Some(linux) = linux.as_object_mut() {
        linux.remove("memoryPolicy");
    }
    // The flag is about agents too.
    without(&mut linux["seccomp"]["actions"], &["SCMP_ACT_NOTIFY"]);
    without(
        &mut linux["seccomp"]["supportedFlags"],
        &["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
    );
}

fn without(list: &mut Value, words: &[&str]) {
    if let Some(list) = list.as_array_mut() {
        list.retain(|word| word.as_str().is_none_or(|word| !words.contains(&word)));
    }
}

/// A member that says nothing is left out.
fn leave_out_unknowns(value: &mut Value) {
    if let Value::Object(members) = value {
        members.retain(|_, member| !member.is_null());
        members.values_mut().for_each(leave_out_unknowns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wall_claims_what_is_behind_it() {
        let [host, guest] = [Isolation::SharedKernel, Isolation::MicroVm].map(|wall| features(wall).unwrap());
        for (pointer, of_host, of_guest) in [
            ("/linux/cgroup/v1", json!(true), json!(false)),
            ("/linux/cgroup/v2", json!(true), json!(true)),
            ("/linux/cgroup/rdma", json!(true), json!(false)),
            ("/linux/netDevices/enabled", json!(true), json!(false)),
            ("/linux/apparmor/enabled", json!(true), json!(false)),
            ("/linux/selinux/enabled", json!(true), json!(false)),
            ("/linux/mountExtensions/idmap/enabled", json!(true), json!(false)),
            (
                "/annotations/dev.bulkhead.isolation",
                json!("shared-kernel"),
                json!("microvm"),
            ),
        ] {
            assert_eq!(host.pointer(pointer), Some(&of_host), "{pointer}");
            assert_eq!(guest.pointer(pointer), Some(&of_guest), "{pointer}");
        }
        assert!(host["linux"].get("memoryPolicy").is_some());
        assert!(guest["linux"].get("memoryPolicy").is_none());
        for (pointer, word) in [
            ("/hooks", "createContainer"),
            ("/mountOptions", "ridmap"),
            ("/linux/seccomp/actions", "SCMP_ACT_NOTIFY"),
        ] {
            let holds = |claims: &Value| {
                let list = claims.pointer(pointer).and_then(Value::as_array).unwrap();
                list.iter().any(|known| known == word)
            };
            assert_eq!((holds(&host), holds(&guest)), (true, false), "{word}");
        }
    }

    /// What the guest's own engine and kernel lack is tested with a guest, as `docs/parity.md` tells.
    #[cfg(feature = "microvm")]
    #[test]
    fn what_a_guest_does_not_claim_is_refused_there() {
        use crate::oci_pod::guest_configuration::fit_for_guest;
        let fit = |config: Value| {
            let mut config = config;
            config["linux"]["namespaces"] = json!([{ "type": "network" }]);
            let folder = tempfile::tempdir().unwrap();
            fit_for_guest(&mut config, folder.path(), folder.path(), &"box".parse().unwrap()).map(|_| ())
        };
        fit(json!({})).unwrap();
        for config in [
            json!({ "hooks": { "createContainer": [{ "path": "/bin/true" }] } }),
            json!({ "linux": { "seccomp": { "listenerPath": "/agent" } } }),
            json!({ "mounts": [{ "destination": "/x", "source": "/usr", "options": ["bind", "idmap"] }] }),
            json!({ "mounts": [{ "destination": "/x", "source": "/usr", "options": ["rbind", "ridmap"] }] }),
        ] {
            fit(config.clone()).expect_err(&config.to_string());
        }
    }
}
