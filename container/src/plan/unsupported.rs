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
    match fields.first() {
        Some(field) => Err(SpecError::unsupported(*field)),
        None => Ok(()),
    }
}

fn refuse_of_linux(linux: &Linux, present: &mut impl FnMut(bool, &'static str)) {
    present(linux.intel_rdt().is_some(), "linux.intelRdt");
}
