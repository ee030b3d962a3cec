//! The fields of the runtime specification that are not honoured yet. Each is refused: a container that looks
//! confined but is not would be worse than none.

use oci_spec::runtime::{Linux, Spec};

use super::SpecError;

pub(super) fn refuse(spec: &Spec) -> Result<(), SpecError> {
    let mut fields = Vec::new();
    let mut present = |is_present: bool, field: &'static str| {
        if is_present {
            fields.push(field);
        }
    };
    present(spec.solaris().is_some(), "solaris");
    present(spec.windows().is_some(), "windows");
    present(spec.vm().is_some(), "vm");
    present(spec.zos().is_some(), "zos");
    if let Some(linux) = spec.linux() {
        refuse_of_linux(linux, &mut present);
    }
    refuse_labels(spec)?;
    match fields.first() {
        Some(field) => Err(SpecError::unsupported(*field)),
        None => Ok(()),
    }
}

/// Profiles and labels of security modules. None asked for is what a container gets.
fn refuse_labels(spec: &Spec) -> Result<(), SpecError> {
    let process = spec.process().as_ref();
    let labels = [
        (
            process.and_then(|process| process.apparmor_profile().as_ref()),
            "process.apparmorProfile",
            "AppArmor",
        ),
        (
            process.and_then(|process| process.selinux_label().as_ref()),
            "process.selinuxLabel",
            "SELinux",
        ),
        (
            spec.linux()
                .as_ref()
                .and_then(|linux| linux.mount_label().as_ref()),
            "linux.mountLabel",
            "SELinux",
        ),
    ];
    for (label, field, module) in labels {
        if let Some(label) = label.filter(|label| !label.is_empty()) {
            let problem =
                format!("`{label}` cannot be applied: this engine does not use {module}; remove it");
            return Err(SpecError::invalid(field, problem));
        }
    }
    Ok(())
}

fn refuse_of_linux(linux: &Linux, present: &mut impl FnMut(bool, &'static str)) {
    present(linux.intel_rdt().is_some(), "linux.intelRdt");
}
