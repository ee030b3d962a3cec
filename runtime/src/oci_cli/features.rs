//! `bulkhead-oci features`

use serde_json::{Value, json};

use super::{OciError, print_json};
use crate::annotations::ISOLATION_ANNOTATION;

#[derive(Debug, clap::Args)]
pub(super) struct FeaturesArguments {}

impl FeaturesArguments {
    pub(super) fn run(&self) -> Result<(), OciError> {
        let mut features =
            serde_json::to_value(container::features()).map_err(|error| OciError::Output(error.into()))?;
        leave_out_unknowns(&mut features);
        // Whoever lets a stranger's configuration have these lets him choose the wall.
        features["potentiallyUnsafeConfigAnnotations"] = json!([ISOLATION_ANNOTATION]);
        features["annotations"] = json!({ "dev.bulkhead.version": env!("CARGO_PKG_VERSION") });
        print_json(&features)
    }
}

/// A member that says nothing is left out.
fn leave_out_unknowns(value: &mut Value) {
    if let Value::Object(members) = value {
        members.retain(|_, member| !member.is_null());
        members.values_mut().for_each(leave_out_unknowns);
    }
}
