//! Causes that a caller must tell apart without reading prose, carried in the details of a ttrpc status.

use protobuf::{EnumOrUnknown, Message};
use ttrpc::proto::{Any, Code, Status};

use crate::generated::failure::Failure;
pub use crate::generated::failure::FailureKind;

/// Names [`Failure`] among the details of a status.
const TYPE_URL: &str = "bulkhead.failure.v1.Failure";

/// A ttrpc error with `message` for people and `kind` for programs.
pub fn error(code: Code, kind: FailureKind, message: String) -> ttrpc::Error {
    let mut status = Status {
        code: EnumOrUnknown::new(code),
        message,
        ..Status::default()
    };
    if kind != FailureKind::OTHER {
        let failure = Failure {
            kind: EnumOrUnknown::new(kind),
            ..Failure::default()
        };
        // Encoding fails only where a required field is missing, and proto3 has none; without the detail the caller
        // still has the message.
        if let Ok(value) = failure.write_to_bytes() {
            status.details.push(Any {
                type_url: TYPE_URL.to_owned(),
                value,
                ..Any::default()
            });
        }
    }
    ttrpc::Error::RpcStatus(status)
}

/// The kind an error carries; [`FailureKind::OTHER`] when it carries none.
pub fn kind(error: &ttrpc::Error) -> FailureKind {
    let ttrpc::Error::RpcStatus(status) = error else {
        return FailureKind::OTHER;
    };
    status
        .details
        .iter()
        .filter(|detail| detail.type_url == TYPE_URL)
        .find_map(|detail| Failure::parse_from_bytes(&detail.value).ok())
        .map_or(FailureKind::OTHER, |failure| failure.kind.enum_value_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_survives_the_status() {
        let error = error(
            Code::NOT_FOUND,
            FailureKind::COMMAND_NOT_FOUND,
            "no such command".to_owned(),
        );

        assert_eq!(kind(&error), FailureKind::COMMAND_NOT_FOUND);
    }

    #[test]
    fn a_status_without_details_is_of_kind_other() {
        let error = ttrpc::Error::RpcStatus(ttrpc::get_status(Code::INTERNAL, "broken"));

        assert_eq!(kind(&error), FailureKind::OTHER);
    }

    #[test]
    fn details_that_do_not_parse_are_of_kind_other() {
        let mut status = ttrpc::get_status(Code::INTERNAL, "broken");
        status.details.push(Any {
            type_url: TYPE_URL.to_owned(),
            value: vec![0xff; 9],
            ..Any::default()
        });

        assert_eq!(kind(&ttrpc::Error::RpcStatus(status)), FailureKind::OTHER);
    }
}
