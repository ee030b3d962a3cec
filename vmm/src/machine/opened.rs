//! Everything a machine needs from the host, open and checked before anything of the guest exists. After this no path
//! is looked up any more.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::Kvm;

use crate::boot::initramfs::{self, InitramfsError, TooLittleMemory};
use crate::boot::kernel::{Kernel, KernelError};
use crate::boot::zero_page::SEED_BYTES;
use crate::config::{MacAddress, MachineConfig};
use crate::console_ring::{ConsoleRing, ConsoleRingError};
use crate::control::ControlServer;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::blk::{BackingError, Blk, DiskSlot};
use crate::devices::virtio::console::Console;
use crate::devices::virtio::device::VirtioDevice;
use crate::devices::virtio::fs::{Fs, FsError};
use crate::devices::virtio::net::{Net, Tap, TapError};
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::vsock::{Vsock, VsockSocketError};
use crate::kernel_mode::KernelMode;
use crate::snapshot::description::Dependencies;
use crate::snapshot::{Snapshot, SnapshotError};
use crate::vcpu::cpuid::TooManyEntries;

/// Why a machine cannot have what it needs.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no KVM.
    #[error("opening /dev/kvm; a microVM needs a host with KVM, and this user's permission to use it")]
    Kvm(#[source] kvm_ioctls::Error),
    /// There is a KVM of another time, or something else.
    #[error(
        "/dev/kvm answers with API version {version}, not {KVM_API_VERSION}: it is no KVM this program can use"
    )]
    KvmVersion {
        /// Its answer; a negative one is a refusal.
        version: i32,
    },
    /// The kernel cannot be opened.
    #[error("opening the kernel {}", .path.display())]
    OpenKernel {
        /// Its path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The kernel is none.
    #[error("checking the kernel {}", .path.display())]
    Kernel {
        /// Its path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: KernelError,
    },
    /// The initial file system cannot be opened.
    #[error("opening the initramfs {}", .path.display())]
    OpenInitramfs {
        /// Its path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The initial file system is none.
    #[error("checking the initramfs {}", .path.display())]
    Initramfs {
        /// Its path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: InitramfsError,
    },
    /// The guest could not boot.
    #[error(transparent)]
    TooLittleMemory(#[from] TooLittleMemory),
    /// The console's file cannot be made.
    #[error("making the console ring {}", .path.display())]
    ConsoleRing {
        /// Its path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: ConsoleRingError,
    },
    /// There is no vsock device.
    #[error("making the vsock device at {}", .path.display())]
    Vsock {
        /// The path of its socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: VsockSocketError,
    },
    /// A directory cannot be shared.
    #[error("sharing the directory {} as {tag:?}", .path.display())]
    Fs {
        /// Its tag.
        tag: String,
        /// Its path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: FsError,
    },
    /// A disk is none.
    #[error("using {} as a disk", .path.display())]
    Blk {
        /// Its path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: BackingError,
    },
    /// A network device has no tap.
    #[error("connecting the network device {mac}")]
    Tap {
        /// Its address.
        mac: MacAddress,
        /// The cause.
        #[source]
        source: TapError,
    },
    /// The control socket cannot be listened at.
    #[error("listening for control requests at {}", .path.display())]
    Control {
        /// Its path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// KVM does not say what it supports.
    #[error("asking KVM for the CPUID it supports")]
    SupportedCpuid(#[source] kvm_ioctls::Error),
    /// A vCPU has no CPUID.
    #[error(transparent)]
    Cpuid(#[from] TooManyEntries),
    /// The machine cannot go on from its snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The host gives no random bytes.
    #[error("drawing the guest's random seed")]
    Seed(#[source] io::Error),
}

/// The capacity of the console ring: what is left of a guest's words when nobody reads them.
pub const CONSOLE_RING_BYTES: u32 = 256 << 10;

/// Where the guest's memory and the vCPUs' state come from.
pub enum Origin {
    /// A kernel that is to boot.
    Boot(Box<BootFiles>),
    /// A machine that ran.
    Snapshot(Box<Snapshot>),
}

/// What a guest boots from.
pub struct BootFiles {
    /// The kernel's file and what is in it.
    pub kernel: (File, Kernel),
    /// The initial file system's file and where in the guest it goes.
    pub initramfs: (File, Range<u64>),
    /// The words to append to the kernel's command line.
    pub command_line: String,
    /// What the guest's random number generator starts from.
    pub seed: [u8; SEED_BYTES],
}

/// What a machine needs from the host.
pub struct OpenedMachine {
    /// KVM.
    pub kvm: Kvm,
    /// How it runs the guest's kernel mode.
    pub kernel_mode: KernelMode,
    /// What it can tell a vCPU that it is.
    pub supported_cpuid: CpuId,
    /// What the guest starts from.
    pub origin: Origin,
    /// What another machine must have in common with this one to go on from a snapshot of it.
    pub dependencies: Dependencies,
    /// The console's ring.
    pub console: Arc<ConsoleRing>,
    /// The virtio devices, in the order of their windows.
    pub devices: Vec<Box<dyn VirtioDevice>>,
    /// The control socket.
    pub control: Option<ControlServer>,
    /// The number of vCPUs.
    pub vcpus: u8,
    /// The guest's memory in bytes.
    pub memory_bytes: u64,
}

impl OpenedMachine {
    /// Opens all that `config`, which is valid, names.
    ///
    /// # Errors
    /// The first thing that is not there, is not what it should be, or does not fit.
    pub fn open(config: &MachineConfig) -> Result<Self, OpenError> {
        let memory_bytes = u64::from(config.memory_mib) << 20;
        // What is wrong with the files is told also where there is no KVM.
        let boot = match &config.restore {
            None => Ok(BootFiles::open(config, memory_bytes)?),
            Some(directory) => Err(directory),
        };
        let kvm = open_kvm()?;
        let kernel_mode = KernelMode::detect();
        let supported_cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(OpenError::SupportedCpuid)?;
        let dependencies = Dependencies::of(config, kernel_mode, &supported_cpuid)?;
        let origin = match boot {
            Ok(files) => Origin::Boot(Box::new(files)),
            Err(snapshot) => Origin::Snapshot(Box::new(Snapshot::open(snapshot, &dependencies)?)),
        };
        let console = ConsoleRing::create(&config.console_ring, CONSOLE_RING_BYTES)
            .map(Arc::new)
            .map_err(|source| OpenError::ConsoleRing {
                path: config.console_ring.clone(),
                source,
            })?;
        let devices = open_devices(config, &console)?;
        let control = config
            .control_socket
            .as_ref()
            .map(|path| {
                ControlServer::bind(path).map_err(|source| OpenError::Control {
                    path: path.clone(),
                    source,
                })
            })
            .transpose()?;
        Ok(Self {
            kvm,
            kernel_mode,
            supported_cpuid,
            origin,
            dependencies,
            console,
            devices,
            control,
            vcpus: config.vcpus,
            memory_bytes,
        })
    }
}

impl BootFiles {
    fn open(config: &MachineConfig, memory_bytes: u64) -> Result<Self, OpenError> {
        let kernel = open_kernel(&config.kernel)?;
        let (initramfs_file, initramfs_bytes) = open_initramfs(&config.initramfs)?;
        let initramfs = initramfs::locate(memory_bytes, kernel.1.end, initramfs_bytes)?;
        Ok(Self {
            kernel,
            initramfs: (initramfs_file, initramfs),
            command_line: config.command_line.clone(),
            seed: draw_seed().map_err(OpenError::Seed)?,
        })
    }
}

fn open_kernel(path: &Path) -> Result<(File, Kernel), OpenError> {
    let file = File::open(path).map_err(|source| OpenError::OpenKernel {
        path: path.to_owned(),
        source,
    })?;
    let kernel = Kernel::read(&file).map_err(|source| OpenError::Kernel {
        path: path.to_owned(),
        source,
    })?;
    Ok((file, kernel))
}

fn open_initramfs(path: &Path) -> Result<(File, u64), OpenError> {
    let file = File::open(path).map_err(|source| OpenError::OpenInitramfs {
        path: path.to_owned(),
        source,
    })?;
    let bytes = initramfs::check(&file).map_err(|source| OpenError::Initramfs {
        path: path.to_owned(),
        source,
    })?;
    Ok((file, bytes))
}

fn open_kvm() -> Result<Kvm, OpenError> {
    let kvm = Kvm::new().map_err(OpenError::Kvm)?;
    let version = kvm.get_api_version();
    if version != KVM_API_VERSION.cast_signed() {
        return Err(OpenError::KvmVersion { version });
    }
    Ok(kvm)
}

fn open_devices(
    config: &MachineConfig,
    console: &Arc<ConsoleRing>,
) -> Result<Vec<Box<dyn VirtioDevice>>, OpenError> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = vec![
        Box::new(Console::new(Arc::clone(console))),
        Box::new(Rng::new()),
        Box::new(Balloon::new()),
    ];
    if let Some(vsock) = &config.vsock {
        let device =
            Vsock::new(u64::from(vsock.guest_cid), &vsock.socket).map_err(|source| OpenError::Vsock {
                path: vsock.socket.clone(),
                source,
            })?;
        devices.push(Box::new(device));
    }
    for shared in &config.shared_directories {
        let device =
            Fs::new(&shared.tag, &shared.path, shared.read_only).map_err(|source| OpenError::Fs {
                tag: shared.tag.clone(),
                path: shared.path.clone(),
                source,
            })?;
        devices.push(Box::new(device));
    }
    for disk in &config.block_devices {
        let device = Blk::new(&disk.id, &disk.path, disk.read_only, disk.rate_limit).map_err(|source| {
            OpenError::Blk {
                path: disk.path.clone(),
                source,
            }
        })?;
        devices.push(Box::new(device));
    }
    for _ in 0..config.disk_slots {
        devices.push(Box::new(DiskSlot::new()));
    }
    for network in &config.network_devices {
        let mac = network.mac;
        let taps = Tap::inherit(&network.tap_descriptors).map_err(|source| OpenError::Tap { mac, source })?;
        devices.push(Box::new(Net::new(network, taps)));
    }
    Ok(devices)
}

fn draw_seed() -> io::Result<[u8; SEED_BYTES]> {
    let mut seed = [0; SEED_BYTES];
    // Reads of up to 256 bytes are never cut short once the host's generator is ready, which the call waits for.
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())?;
    Ok(seed)
}
