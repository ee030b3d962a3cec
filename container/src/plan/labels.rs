//! `process.apparmorProfile`, `process.selinuxLabel` and `linux.mountLabel`: what security modules of the kernel know a
//! container by.

use oci_spec::runtime::{Linux, Process};

use super::{MountKind, MountPlan, SpecError};

/// The labels that a program is executed with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LabelPlan {
    /// The name of a profile that is loaded into the kernel.
    pub(crate) apparmor: Option<String>,
    /// A context of the policy.
    pub(crate) selinux: Option<String>,
}

impl LabelPlan {
    /// An empty label is none.
    pub(super) fn new(process: &Process) -> Result<LabelPlan, SpecError> {
        Ok(LabelPlan {
            apparmor: label("process.apparmorProfile", process.apparmor_profile())?,
            selinux: label("process.selinuxLabel", process.selinux_label())?,
        })
    }
}

/// The label of the container's own file systems.
pub(super) fn mount_label(linux: &Linux) -> Result<Option<String>, SpecError> {
    label("linux.mountLabel", linux.mount_label())
}

fn label(field: &str, label: &Option<String>) -> Result<Option<String>, SpecError> {
    let Some(label) = label.as_ref().filter(|label| !label.is_empty()) else {
        return Ok(None);
    };
    // The kernel reads a label up to either.
    if label.contains(['\0', '\n']) {
        return Err(SpecError::invalid(field, "holds a NUL character or a line break"));
    }
    Ok(Some(label.clone()))
}

/// Gives the file systems that are made for the container its label. Binds have that of their files, and what the kernel
/// shows of itself has its own.
pub(super) fn label_mounts(mounts: &mut [MountPlan], label: &str) {
    const WITH_LABELS_OF_THEIR_OWN: [&std::ffi::CStr; 2] = [c"proc", c"sysfs"];
    for mount in mounts {
        let MountKind::FileSystem { kind, .. } = &mount.kind else {
            continue;
        };
        let data = &mut mount.options.data;
        let has_one = data.iter().any(|word| word.starts_with("context="));
        if !has_one && !WITH_LABELS_OF_THEIR_OWN.contains(&kind.as_c_str()) {
            data.push(format!("context={label}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::Bundle;
    use crate::plan::Plan;

    fn plan(process: &str, linux: &str) -> Result<Plan, SpecError> {
        let text = format!(
            r#"{{"ociVersion":"1.0.2","root":{{"path":"r"}},"process":{{"user":{{}},"args":["a"],"cwd":"/"{process}}},
                "mounts":[{{"destination":"/proc","type":"proc","source":"proc"}},
                          {{"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["mode=755"]}},
                          {{"destination":"/own","type":"tmpfs","source":"tmpfs","options":["context=mine"]}},
                          {{"destination":"/bound","source":"/tmp","options":["bind"]}}],
                "linux":{{"namespaces":[{{"type":"mount"}}]{linux}}}}}"#
        );
        let bundle = Bundle::new("/b".into(), serde_json::from_str(&text).unwrap());
        Plan::new(&bundle, &"box".parse().unwrap())
    }

    #[test]
    fn labels_are_the_processs_and_an_empty_one_is_none() {
        let process = r#","apparmorProfile":"docker-default","selinuxLabel":"u:r:t:s0:c1,c2""#;
        let labelled = plan(process, "").unwrap().process.labels;
        assert_eq!(labelled.apparmor.as_deref(), Some("docker-default"));
        assert_eq!(labelled.selinux.as_deref(), Some("u:r:t:s0:c1,c2"));
        let empty = plan(
            r#","apparmorProfile":"","selinuxLabel":"""#,
            r#","mountLabel":"""#,
        )
        .unwrap();
        assert_eq!(empty.process.labels, LabelPlan::default());
        assert_eq!(empty.mount_label, None);
    }

    #[test]
    fn file_systems_of_the_container_have_its_label() {
        let plan = plan("", r#","mountLabel":"u:r:t:s0:c1,c2""#).unwrap();
        assert_eq!(plan.mount_label.as_deref(), Some("u:r:t:s0:c1,c2"));
        let data: Vec<String> = plan
            .mounts
            .iter()
            .map(|mount| mount.options.data.join(" "))
            .collect();
        assert_eq!(data, ["", "mode=755 context=u:r:t:s0:c1,c2", "context=mine", ""]);
    }

    #[test]
    fn labels_that_the_kernel_would_cut_are_refused_by_their_place() {
        for (process, linux, field) in [
            (r#","apparmorProfile":"a\u0000b""#, "", "process.apparmorProfile"),
            (r#","selinuxLabel":"a\nb""#, "", "process.selinuxLabel"),
            ("", r#","mountLabel":"a\u0000""#, "linux.mountLabel"),
        ] {
            assert_eq!(plan(process, linux).unwrap_err().field(), field);
        }
    }
}
