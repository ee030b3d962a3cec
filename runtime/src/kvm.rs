//! Whether a microVM can be had here at all.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// `KVM_GET_API_VERSION` (linux/kvm.h): `_IO(0xAE, 0x00)`.
const KVM_GET_API_VERSION: libc::Ioctl = 0xAE00;

/// `KVM_CHECK_EXTENSION` (linux/kvm.h): `_IO(0xAE, 0x03)`.
const KVM_CHECK_EXTENSION: libc::Ioctl = 0xAE03;

/// The only version there is (Documentation/virt/kvm/api.rst).
pub const API_VERSION: i32 = 12;

/// Why there can be no microVM. The way out is the other wall, and the message says how to ask for it: falling back by
/// ourselves would weaken the wall silently.
#[derive(Debug, thiserror::Error)]
pub enum KvmUnusable {
    /// The device is missing or closed to us.
    #[error(
        "microvm isolation needs {}, which cannot be opened; `--isolation shared-kernel` runs the container on the host's kernel instead",
        .device.display()
    )]
    Open {
        /// The device.
        device: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file is no KVM.
    #[error(
        "microvm isolation needs KVM, and {} does not speak its interface (version {version}, not {API_VERSION}); `--isolation shared-kernel` runs the container on the host's kernel instead",
        .device.display()
    )]
    Interface {
        /// The device.
        device: PathBuf,
        /// What it answered; negative when it refused the question.
        version: i32,
    },
}

/// An open KVM that speaks the interface there is.
#[derive(Debug)]
pub struct Kvm(File);

impl Kvm {
    /// What it answers when asked for a capability, by the number of `<linux/kvm.h>`: 0 where it has none.
    ///
    /// # Errors
    /// When the question is refused.
    pub fn capability(&self, number: u32) -> io::Result<i32> {
        // SAFETY: this ioctl takes a number and only returns one.
        match unsafe {
            libc::ioctl(
                self.0.as_raw_fd(),
                KVM_CHECK_EXTENSION,
                libc::c_ulong::from(number),
            )
        } {
            -1 => Err(io::Error::last_os_error()),
            answer => Ok(answer),
        }
    }
}

/// Checks that `device` is a KVM that can be used.
///
/// # Errors
/// Why not, and what to ask for instead.
pub fn check(device: &Path) -> Result<(), KvmUnusable> {
    open(device).map(drop)
}

/// Opens the KVM at `device`.
///
/// # Errors
/// Why there can be no microVM, and what to ask for instead.
pub fn open(device: &Path) -> Result<Kvm, KvmUnusable> {
    let file = File::options()
        .read(true)
        .write(true)
        .open(device)
        .map_err(|source| KvmUnusable::Open {
            device: device.to_owned(),
            source,
        })?;
    // SAFETY: this ioctl takes no argument and only returns a number.
    let version = unsafe { libc::ioctl(file.as_raw_fd(), KVM_GET_API_VERSION, 0) };
    match version {
        API_VERSION => Ok(Kvm(file)),
        version => Err(KvmUnusable::Interface {
            device: device.to_owned(),
            version,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_names_the_other_wall() {
        let error = check(Path::new("/nonexistent/kvm")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/kvm"), "{error}");
        assert!(error.contains("--isolation shared-kernel"), "{error}");
    }

    #[test]
    fn another_device_is_no_kvm() {
        let error = check(Path::new("/dev/null")).unwrap_err();
        assert!(matches!(error, KvmUnusable::Interface { .. }), "{error}");
    }
}
