//! Why no bundle could be made.

use std::io;
use std::path::PathBuf;

use super::values::InvalidValue;

/// Why no bundle could be made of an image and the user's wishes.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The root file system cannot be opened.
    #[error("opening the root file system {}", path.display())]
    Rootfs {
        /// Where it should be.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The bundle's configuration cannot be written.
    #[error("writing {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Neither the image nor the user names a program.
    #[error("the image names no command to run: give one after the image")]
    NoCommand,
    /// An argument or variable that cannot be passed to a program.
    #[error("{what} `{value}` contains a NUL, which no program can be given")]
    Nul {
        /// What it is.
        what: &'static str,
        /// The text, escaped.
        value: String,
    },
    /// A value in the image's configuration that is malformed.
    #[error("the image's configuration has a malformed {field}")]
    ImageValue {
        /// The field.
        field: &'static str,
        /// The cause.
        #[source]
        source: InvalidValue,
    },
    /// A user or group that the image does not know.
    #[error("the image has no {what} `{name}` in {file}: use a number or a name from there")]
    UnknownUser {
        /// `user` or `group`.
        what: &'static str,
        /// The name.
        name: String,
        /// Where it was looked for.
        file: &'static str,
    },
    /// The image's user database cannot be read.
    #[error("reading {file} of the image")]
    UserDatabase {
        /// `/etc/passwd` or `/etc/group`.
        file: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A working directory that is not absolute.
    #[error("the working directory `{0}` is not absolute")]
    RelativeWorkingDirectory(String),
    /// The working directory cannot be made in the image.
    #[error("making the working directory {} in the container", path.display())]
    WorkingDirectory {
        /// The folder, as the container sees it.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}
