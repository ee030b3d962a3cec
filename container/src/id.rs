//! The name of a container.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// A container's id: 1 to 255 letters, digits, `_`, `+`, `-` and `.`, but not `.` or `..`. It names a folder of state
/// and a cgroup, so it can never hold a slash.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerId(String);

/// A word that cannot be a container's id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{0}` cannot be a container id: use 1 to 255 letters, digits, `_`, `+`, `-` and `.`, not just `.` or `..`"
)]
pub struct InvalidContainerId(String);

impl ContainerId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ContainerId {
    type Err = InvalidContainerId;

    fn from_str(text: &str) -> Result<ContainerId, InvalidContainerId> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
        let valid =
            (1..=255).contains(&text.len()) && text.bytes().all(allowed) && text != "." && text != "..";
        if valid {
            Ok(ContainerId(text.to_owned()))
        } else {
            Err(InvalidContainerId(text.to_owned()))
        }
    }
}

impl TryFrom<&str> for ContainerId {
    type Error = InvalidContainerId;

    fn try_from(text: &str) -> Result<ContainerId, InvalidContainerId> {
        text.parse()
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl AsRef<Path> for ContainerId {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_ids_are_accepted() {
        for id in ["a", "web-1", "A_b+c.d", "..."] {
            assert_eq!(id.parse::<ContainerId>().unwrap().as_str(), id);
        }
    }

    #[test]
    fn ids_that_would_leave_the_state_folder_are_refused() {
        for id in ["", ".", "..", "a/b", "../x", "a\0b", "ä", "a b", &"x".repeat(256)] {
            assert!(id.parse::<ContainerId>().is_err(), "{id:?}");
        }
    }
}
