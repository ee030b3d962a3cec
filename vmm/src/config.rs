//! What a machine is made of: the document that `bulkhead-vmm --config` reads.

mod network;

use std::collections::HashSet;
use std::io;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use self::network::{
    MTU, MacAddress, MacAddressError, NetworkDevice, NetworkError, NetworkRateLimit, QUEUE_PAIRS,
};
use crate::devices::rate_limiter::{BurstWithoutRate, RateLimit};
use crate::memory::layout;

/// The longest file system tag: virtio-fs has 36 bytes for it (virtio 1.2, section 5.11.4).
pub const MAX_TAG_BYTES: usize = 36;
/// The longest name of a disk: virtio-blk has 20 bytes for it (virtio 1.2, section 5.2.6).
pub const MAX_DISK_ID_BYTES: usize = 20;
/// The least context id of a guest; 0, 1 and 2 belong to the hypervisor, the local loopback and the host.
pub const MIN_GUEST_CID: u32 = 3;
/// The greatest context id of a guest; the one above is the wildcard.
pub const MAX_GUEST_CID: u32 = u32::MAX - 1;
/// The greatest memory of a machine: 1 TiB.
pub const MAX_MEMORY_MIB: u32 = 1 << 20;
/// The longest text that may be added to the kernel's command line. The kernel takes 2047 bytes in all, and the
/// built-in words and the announcements of the greatest number of devices fit into the rest.
pub const MAX_COMMAND_LINE_BYTES: usize = 1024;

/// One machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// The guest's kernel: an uncompressed x86-64 ELF `vmlinux`.
    pub kernel: PathBuf,
    /// The guest's initial file system: an uncompressed cpio archive.
    pub initramfs: PathBuf,
    /// Words appended to the built-in kernel command line.
    #[serde(default)]
    pub command_line: String,
    /// The number of vCPUs, from 1 to [`layout::MAX_VCPUS`].
    pub vcpus: u8,
    /// The guest's memory in MiB.
    pub memory_mib: u32,
    /// The file that receives the guest's console; it outlives this process.
    pub console_ring: PathBuf,
    /// The guest's vsock device, if it has one.
    #[serde(default)]
    pub vsock: Option<VsockConfig>,
    /// Host directories the guest can mount, at most [`layout::MAX_SHARED_DIRECTORIES`].
    #[serde(default)]
    pub shared_directories: Vec<SharedDirectory>,
    /// Disks, which share the interrupt lines of [`layout::MAX_SHARED_DIRECTORIES`] with the directories
    /// and network devices.
    #[serde(default)]
    pub block_devices: Vec<BlockDevice>,
    /// Empty slots for disks that are [attached](crate::control::Request::AttachDisk) while the machine runs. They share
    /// the interrupt lines as well.
    #[serde(default)]
    pub disk_slots: u8,
    /// Network devices, which share them too.
    #[serde(default)]
    pub network_devices: Vec<NetworkDevice>,
    /// Where to listen for [control requests](crate::control), if at all.
    #[serde(default)]
    pub control_socket: Option<PathBuf>,
    /// Whether the machine is killed when the thread that started it ends.
    #[serde(default)]
    pub die_with_parent: bool,
    /// Whether the process [makes the directory it is started in its root](crate::own_root) once its files are open, and
    /// sees nothing else of the host's. The names of the files it makes and of the shared directories must then be
    /// relative, without `..`.
    #[serde(default)]
    pub own_root: bool,
    /// The directory of a [snapshot](crate::snapshot) to go on from, if the machine is not to boot. The kernel, the
    /// initial file system and the command line are then in the guest's memory already and their files are not opened.
    /// The vCPUs, the memory and the devices must be those of the snapshot; what the host gives them may differ.
    #[serde(default)]
    pub restore: Option<PathBuf>,
}

/// A vsock device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context id, from [`MIN_GUEST_CID`] to [`MAX_GUEST_CID`].
    pub guest_cid: u32,
    /// The unix socket that stands for the guest on the host.
    pub socket: PathBuf,
}

/// A host directory shared with the guest over virtio-fs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedDirectory {
    /// The name the guest mounts it by, 1 to [`MAX_TAG_BYTES`] bytes.
    pub tag: String,
    /// The directory on the host.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub read_only: bool,
}

/// A file or block device of the host that is a disk of the guest's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockDevice {
    /// The name the guest can know it by, at most [`MAX_DISK_ID_BYTES`] bytes; Linux shows it as the disk's `serial`.
    #[serde(default)]
    pub id: String,
    /// The raw file or the block device. Its size must be a multiple of 512 bytes.
    pub path: PathBuf,
    /// Whether the guest may only read it. Machines can share a disk that all only read.
    #[serde(default)]
    pub read_only: bool,
    /// How fast it is at most.
    #[serde(default)]
    pub rate_limit: Option<RateLimit>,
}

/// Why a machine's description was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The document could not be read.
    #[error("reading the machine's description from {}", .path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The document is not a machine's description.
    #[error("parsing the machine's description from {}", .path.display())]
    Parse {
        /// Its path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A number of vCPUs no machine has.
    #[error("{vcpus} vcpus: a machine has 1 to {}", layout::MAX_VCPUS)]
    Vcpus {
        /// The number asked for.
        vcpus: u8,
    },
    /// An amount of memory no machine has.
    #[error("{memory_mib} MiB of memory: a machine has 1 to {MAX_MEMORY_MIB}")]
    Memory {
        /// The amount asked for.
        memory_mib: u32,
    },
    /// A command line the kernel cannot take.
    #[error(
        "the command line {reason}: it is one line of at most {MAX_COMMAND_LINE_BYTES} printable ASCII bytes"
    )]
    CommandLine {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A context id that is not a guest's.
    #[error("guest_cid {guest_cid}: a guest has {MIN_GUEST_CID} to {MAX_GUEST_CID}")]
    GuestCid {
        /// The context id asked for.
        guest_cid: u32,
    },
    /// A tag that the device cannot hold.
    #[error("the tag {tag:?} of {} has {} bytes: a tag has 1 to {MAX_TAG_BYTES} and no NUL", .path.display(), .tag.len())]
    Tag {
        /// The tag.
        tag: String,
        /// The directory it is to name.
        path: PathBuf,
    },
    /// One tag for two directories.
    #[error("two shared directories have the tag {tag:?}")]
    SameTag {
        /// The tag.
        tag: String,
    },
    /// A file that would lie outside the process's own root.
    #[error("{}: with own_root it is a relative path below the folder the VMM is started in", .path.display())]
    OutsideOwnRoot {
        /// The path.
        path: PathBuf,
    },
    /// More directories than interrupt lines.
    #[error(
        "{count} shared directories: a machine has at most {}",
        layout::MAX_SHARED_DIRECTORIES
    )]
    SharedDirectories {
        /// The number asked for.
        count: usize,
    },
    /// More devices than interrupt lines are left.
    #[error(
        "{directories} shared directories, {disks} disks and slots for disks, and {networks} network devices: a machine has \
         at most {} of all together",
        layout::MAX_SHARED_DIRECTORIES
    )]
    TooManyDevices {
        /// The number of shared directories.
        directories: usize,
        /// The number of disks and of slots for disks.
        disks: usize,
        /// The number of network devices.
        networks: usize,
    },
    /// Network devices that cannot be.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A disk that cannot be.
    #[error("the disk {}", .path.display())]
    Disk {
        /// The disk.
        path: PathBuf,
        /// The cause.
        #[source]
        source: InvalidDisk,
    },
    /// One name for two disks.
    #[error("two disks have the id {id:?}")]
    SameDiskId {
        /// The name.
        id: String,
    },
}

/// What is wrong with what is said of a disk.
#[derive(Debug, thiserror::Error)]
pub enum InvalidDisk {
    /// A name that the device cannot hold.
    #[error("the id {id:?}: an id has at most {MAX_DISK_ID_BYTES} printable ASCII bytes")]
    Id {
        /// The name.
        id: String,
    },
    /// A rate limit that says less than it seems to.
    #[error("its rate limit")]
    RateLimit(#[source] BurstWithoutRate),
}

/// Checks what is said of a disk.
pub(crate) fn check_disk(id: &str, rate_limit: Option<&RateLimit>) -> Result<(), InvalidDisk> {
    if let Some(limit) = rate_limit {
        limit.validate().map_err(InvalidDisk::RateLimit)?;
    }
    if id.len() > MAX_DISK_ID_BYTES || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(InvalidDisk::Id { id: id.to_owned() });
    }
    Ok(())
}

impl MachineConfig {
    /// Reads and validates the description in the file at `path`; `-` is the standard input.
    ///
    /// # Errors
    /// When it cannot be read, is not a description, or describes a machine that cannot be.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = if path == Path::new("-") {
            io::read_to_string(io::stdin())
        } else {
            std::fs::read_to_string(path)
        }
        .map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let config: Self = serde_json::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source,
        })?;
        config.validate()?;
        Ok(config)
    }

    /// Checks all that can be checked without opening a file.
    ///
    /// # Errors
    /// The first thing found wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.vcpus == 0 || self.vcpus > layout::MAX_VCPUS {
            return Err(ConfigError::Vcpus { vcpus: self.vcpus });
        }
        if self.memory_mib == 0 || self.memory_mib > MAX_MEMORY_MIB {
            return Err(ConfigError::Memory {
                memory_mib: self.memory_mib,
            });
        }
        if self.command_line.len() > MAX_COMMAND_LINE_BYTES {
            return Err(ConfigError::CommandLine {
                reason: "is too long",
            });
        }
        if !self
            .command_line
            .bytes()
            .all(|byte| byte == b' ' || byte.is_ascii_graphic())
        {
            return Err(ConfigError::CommandLine {
                reason: "holds a byte that is not printable ASCII",
            });
        }
        if let Some(VsockConfig { guest_cid, .. }) = self.vsock
            && !(MIN_GUEST_CID..=MAX_GUEST_CID).contains(&guest_cid)
        {
            return Err(ConfigError::GuestCid { guest_cid });
        }
        self.validate_own_root()?;
        self.validate_shared_directories()?;
        self.validate_number_of_devices()?;
        self.validate_block_devices()?;
        Ok(network::validate(&self.network_devices)?)
    }

    fn validate_own_root(&self) -> Result<(), ConfigError> {
        let made = [
            Some(&self.console_ring),
            self.control_socket.as_ref(),
            self.vsock.as_ref().map(|vsock| &vsock.socket),
        ];
        let shared = self.shared_directories.iter().map(|shared| &shared.path);
        let is_below = |path: &Path| {
            let mut parts = path.components();
            parts.all(|part| matches!(part, Component::Normal(_))) && path != Path::new("")
        };
        match made
            .into_iter()
            .flatten()
            .chain(shared)
            .find(|path| self.own_root && !is_below(path))
        {
            Some(path) => Err(ConfigError::OutsideOwnRoot { path: path.clone() }),
            None => Ok(()),
        }
    }

    fn validate_shared_directories(&self) -> Result<(), ConfigError> {
        let count = self.shared_directories.len();
        if count > layout::MAX_SHARED_DIRECTORIES {
            return Err(ConfigError::SharedDirectories { count });
        }
        let mut tags = HashSet::new();
        for SharedDirectory { tag, path, .. } in &self.shared_directories {
            if tag.is_empty() || tag.len() > MAX_TAG_BYTES || tag.contains('\0') {
                return Err(ConfigError::Tag {
                    tag: tag.clone(),
                    path: path.clone(),
                });
            }
            if !tags.insert(tag) {
                return Err(ConfigError::SameTag { tag: tag.clone() });
            }
        }
        Ok(())
    }

    fn validate_number_of_devices(&self) -> Result<(), ConfigError> {
        let directories = self.shared_directories.len();
        let disks = self.block_devices.len() + usize::from(self.disk_slots);
        let networks = self.network_devices.len();
        if directories + disks + networks > layout::MAX_SHARED_DIRECTORIES {
            return Err(ConfigError::TooManyDevices {
                directories,
                disks,
                networks,
            });
        }
        Ok(())
    }

    fn validate_block_devices(&self) -> Result<(), ConfigError> {
        let mut ids = HashSet::new();
        for BlockDevice {
            id, path, rate_limit, ..
        } in &self.block_devices
        {
            check_disk(id, rate_limit.as_ref()).map_err(|source| ConfigError::Disk {
                path: path.clone(),
                source,
            })?;
            if !id.is_empty() && !ids.insert(id) {
                return Err(ConfigError::SameDiskId { id: id.clone() });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> MachineConfig {
        MachineConfig {
            kernel: "vmlinux".into(),
            initramfs: "initramfs".into(),
            command_line: String::new(),
            vcpus: 1,
            memory_mib: 128,
            console_ring: "console".into(),
            vsock: None,
            shared_directories: Vec::new(),
            block_devices: Vec::new(),
            disk_slots: 0,
            network_devices: Vec::new(),
            control_socket: None,
            die_with_parent: false,
            own_root: false,
            restore: None,
        }
    }

    fn shared(tag: &str) -> SharedDirectory {
        SharedDirectory {
            tag: tag.into(),
            path: "/srv".into(),
            read_only: true,
        }
    }

    fn disk(id: &str) -> BlockDevice {
        BlockDevice {
            id: id.into(),
            path: "/disk".into(),
            read_only: false,
            rate_limit: None,
        }
    }

    fn refusal(config: &MachineConfig) -> String {
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn a_plain_machine_is_accepted_and_survives_the_trip_through_json() {
        let config = MachineConfig {
            vsock: Some(VsockConfig {
                guest_cid: 3,
                socket: "vsock".into(),
            }),
            shared_directories: vec![shared("rootfs")],
            block_devices: vec![disk("data"), disk(""), disk("")],
            ..config()
        };
        config.validate().unwrap();
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<MachineConfig>(&json).unwrap(), config);
    }

    #[test]
    fn only_five_fields_are_required() {
        let json = r#"{"kernel":"k","initramfs":"i","vcpus":1,"memory_mib":64,"console_ring":"c"}"#;
        let config: MachineConfig = serde_json::from_str(json).unwrap();
        assert_eq!(config.command_line, "");
        assert_eq!(config.vsock, None);
        assert!(!config.die_with_parent);
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let json =
            r#"{"kernel":"k","initramfs":"i","vcpus":1,"memory_mib":64,"console_ring":"c","memroy_mib":1}"#;
        let error = serde_json::from_str::<MachineConfig>(json)
            .unwrap_err()
            .to_string();
        assert!(error.contains("unknown field `memroy_mib`"), "{error}");
    }

    #[test]
    fn no_vcpu_and_too_many_are_refused_with_the_range() {
        assert_eq!(
            refusal(&MachineConfig { vcpus: 0, ..config() }),
            "0 vcpus: a machine has 1 to 32"
        );
        assert_eq!(
            refusal(&MachineConfig {
                vcpus: 33,
                ..config()
            }),
            "33 vcpus: a machine has 1 to 32"
        );
    }

    #[test]
    fn with_a_root_of_its_own_every_file_is_below_it() {
        let with = |path: &str| MachineConfig {
            console_ring: path.into(),
            own_root: true,
            ..config()
        };
        with("console").validate().unwrap();
        for path in ["/console", "../console", "a/../../console", ""] {
            let error = refusal(&with(path));
            assert!(error.starts_with(&format!("{path}: with own_root")), "{error}");
        }
    }

    #[test]
    fn no_memory_is_refused() {
        let error = refusal(&MachineConfig {
            memory_mib: 0,
            ..config()
        });
        assert_eq!(error, "0 MiB of memory: a machine has 1 to 1048576");
    }

    #[test]
    fn a_command_line_with_a_newline_is_refused() {
        let error = refusal(&MachineConfig {
            command_line: "quiet\ninit=/bin/sh".into(),
            ..config()
        });
        assert!(error.contains("not printable"), "{error}");
    }

    #[test]
    fn the_hosts_context_id_is_refused() {
        let vsock = Some(VsockConfig {
            guest_cid: 2,
            socket: "vsock".into(),
        });
        let error = refusal(&MachineConfig { vsock, ..config() });
        assert!(error.starts_with("guest_cid 2: a guest has 3 to"), "{error}");
    }

    #[test]
    fn a_tag_of_37_bytes_is_refused() {
        let shared_directories = vec![shared(&"x".repeat(37))];
        let error = refusal(&MachineConfig {
            shared_directories,
            ..config()
        });
        assert!(error.contains("has 37 bytes: a tag has 1 to 36"), "{error}");
    }

    #[test]
    fn one_tag_for_two_directories_is_refused() {
        let shared_directories = vec![shared("data"), shared("data")];
        let error = refusal(&MachineConfig {
            shared_directories,
            ..config()
        });
        assert_eq!(error, "two shared directories have the tag \"data\"");
    }

    #[test]
    fn directories_disks_and_network_devices_share_the_interrupt_lines() {
        let network = r#"{"mac":"02:00:00:00:00:01"}"#;
        let mut config = MachineConfig {
            block_devices: vec![disk(""); layout::MAX_SHARED_DIRECTORIES - 2],
            shared_directories: vec![shared("one")],
            network_devices: vec![serde_json::from_str(network).unwrap()],
            ..config()
        };
        config.validate().unwrap();
        config.shared_directories.push(shared("two"));
        assert_eq!(
            refusal(&config),
            "2 shared directories, 13 disks and slots for disks, and 1 network devices: a machine has at most 15 of all together"
        );
    }

    #[test]
    fn an_id_that_a_disk_cannot_hold_and_one_for_two_disks_are_refused() {
        let error = |ids: &[&str]| {
            refusal(&MachineConfig {
                block_devices: ids.iter().map(|id| disk(id)).collect(),
                ..config()
            })
        };
        for id in ["x".repeat(21).as_str(), "a b", "\0", "\u{e4}"] {
            assert_eq!(error(&[id]), "the disk /disk", "{id:?}");
            let reason = check_disk(id, None).unwrap_err().to_string();
            assert!(
                reason.ends_with("an id has at most 20 printable ASCII bytes"),
                "{id:?}: {reason}"
            );
        }
        assert_eq!(error(&["data", "data"]), "two disks have the id \"data\"");
    }

    #[test]
    fn a_rate_limit_with_a_burst_alone_is_refused_with_its_disk() {
        let limit = RateLimit {
            burst_bytes: std::num::NonZeroU64::new(1),
            ..RateLimit::default()
        };
        let limited = BlockDevice {
            rate_limit: Some(limit),
            ..disk("")
        };
        let error = refusal(&MachineConfig {
            block_devices: vec![limited],
            ..config()
        });
        assert_eq!(error, "the disk /disk");
    }
}
