//! Where the files of a machine are.

use std::path::{Path, PathBuf};

/// The folder of one machine:
///
/// ```text
/// console.ring        the guest's last words on its console
/// control.sock        where the VMM takes requests
/// export/             what virtio-fs serves; mounts below it exist for the VMM alone
/// proc/               where the VMM, whose root this folder is, has its /proc
/// vmm.log             what the VMM says to people
/// vmm.status          what it says to programs
/// volumes/            which container has which of the host's folders and files
/// vsock.sock          stands for the guest's vsock ports
/// vsock.sock_<port>   where the guest reaches a port of the host
/// ```
#[derive(Debug, Clone)]
pub struct MachineFiles {
    directory: PathBuf,
}

impl MachineFiles {
    /// What virtio-fs serves, below the folder.
    pub const EXPORT: &str = "export";
    /// The console's ring, below the folder.
    pub const CONSOLE_RING: &str = "console.ring";
    /// The control socket, below the folder.
    pub const CONTROL_SOCKET: &str = "control.sock";
    /// The socket of the guest's vsock ports, below the folder.
    pub const VSOCK: &str = "vsock.sock";

    /// The files of the machine in `directory`.
    pub fn of(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// The folder.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The console's ring.
    pub fn console_ring(&self) -> PathBuf {
        self.directory.join(Self::CONSOLE_RING)
    }

    /// The control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.directory.join(Self::CONTROL_SOCKET)
    }

    /// The socket that stands for the guest's vsock ports.
    pub fn vsock(&self) -> PathBuf {
        self.directory.join(Self::VSOCK)
    }

    /// The socket that the guest's connections to `port` of the host arrive at.
    pub fn host_port(&self, port: u32) -> PathBuf {
        self.directory.join(format!("{}_{port}", Self::VSOCK))
    }

    /// What virtio-fs serves.
    pub fn export(&self) -> PathBuf {
        self.directory.join(Self::EXPORT)
    }

    /// Who has which volume.
    pub fn volumes(&self) -> PathBuf {
        self.directory.join("volumes")
    }

    /// The VMM's messages for people.
    pub fn log(&self) -> PathBuf {
        self.directory.join("vmm.log")
    }

    /// The VMM's messages for programs.
    pub fn status(&self) -> PathBuf {
        self.directory.join("vmm.status")
    }
}
