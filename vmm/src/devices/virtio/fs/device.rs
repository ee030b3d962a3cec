//! The device: a queue for requests that must not wait, one for the others, one thread.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuse_backend_rs::abi::fuse_abi::{InHeader, OutHeader};
use fuse_backend_rs::api::filesystem::FileSystem;
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::passthrough::{CachePolicy, Config, PassthroughFs};
use fuse_backend_rs::transport::{Reader, VirtioFsWriter, Writer};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};
use rustix::thread::{CapabilitiesSecureBits, set_capabilities_secure_bits};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use vmm_sys_util::eventfd::EventFd;

use super::guarded::{GuardedFs, Limits};
use crate::devices::virtio::device::{
    ActivateError, Activation, DeviceState, Pausable, SaveError, VirtioDevice, read_config_space,
};
use crate::devices::virtio::device_queue::{Chain, DeviceQueue, EVENT_IDX};
use crate::devices::virtio::worker::{Service, Worker, WorkerError, serve_queues};

/// The high-priority queue carries FORGET; the request queue has room for three requests of the greatest size, 256
/// pages, without indirect descriptors, which would cost the guest an allocation for each request.
const QUEUE_SIZES: [u16; 2] = [128, 1024];
/// `num_request_queues` in the configuration space.
const REQUEST_QUEUES: u32 = 1;
/// Bytes of the tag in the configuration space.
const TAG_SIZE: usize = 36;

/// The most a request or its answer may have: 1 MiB of data and a page for what is around it, as FUSE counts.
const MAX_MESSAGE: usize = (1 << 20) + 4096;

/// Descriptors of this process that are not for the share: queues, sockets, the machine.
const OTHER_DESCRIPTORS: usize = 2048;
/// Files the guest may know however many descriptors there are: each holds about a kilobyte of the host's kernel memory.
const MAX_NODES: usize = 1 << 18;
/// Descriptors are shared between files known and files open in this proportion.
const NODES_PER_HANDLE: usize = 3;

/// Why a share cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The tag has no bytes, too many, or a zero among them.
    #[error("the tag {0:?} has not 1 to {TAG_SIZE} bytes other than zero")]
    Tag(String),
    /// The directory could not be opened.
    #[error("opening the shared directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file server could not be made.
    #[error("preparing the file server for {}", path.display())]
    Server {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// A virtio file system device.
pub struct Fs {
    tag: String,
    config: [u8; TAG_SIZE + 4],
    fs: Arc<GuardedFs>,
    worker: Option<Worker<FileService>>,
    /// What the server's root is reached through, see [`Fs::new`].
    _directory: OwnedFd,
}

impl Fs {
    /// A device that shares `directory`, and what is mounted in it, under `tag`.
    ///
    /// The directory is opened here and reached through its descriptor ever after, so the process may lose sight of
    /// the path. It must keep `/proc/self/fd`, where the server opens what it holds. To serve files of any owner it must
    /// run as root with CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH (hard links), CAP_FOWNER, CAP_FSETID,
    /// CAP_MKNOD, CAP_SETFCAP, CAP_SETGID, CAP_SETPCAP (at activation only), CAP_SETUID and, for `trusted` attributes,
    /// CAP_SYS_ADMIN.
    ///
    /// As many files can be known and open at once as the process's hard limit of descriptors allows at this call, up
    /// to 262,144; a guest that wants more gets ENFILE. The soft limit is raised to the hard one.
    ///
    /// # Errors
    /// When the tag has not 1 to 36 bytes or the directory cannot be opened.
    pub fn new(tag: &str, directory: &Path, read_only: bool) -> Result<Self, FsError> {
        if tag.is_empty() || tag.len() > TAG_SIZE || tag.contains('\0') {
            return Err(FsError::Tag(tag.to_owned()));
        }
        let mut config = [0; TAG_SIZE + 4];
        for (to, from) in config.iter_mut().zip(tag.bytes()) {
            *to = from;
        }
        config[TAG_SIZE..].copy_from_slice(&REQUEST_QUEUES.to_le_bytes());

        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = open(directory, flags, Mode::empty()).map_err(|source| FsError::Directory {
            path: directory.to_owned(),
            source: source.into(),
        })?;
        let inner = PassthroughFs::new(Config {
            // The dot makes it the directory itself and not the link to it, which is opened without following.
            root_dir: format!("/proc/self/fd/{}/.", opened.as_raw_fd()),
            // The library then checks names too; without it, it leaves that to a layer that is not there.
            do_import: true,
            cache_policy: CachePolicy::Auto,
            writeback: false,
            xattr: true,
            // Without it the guest asks for security.capability before every write.
            killpriv_v2: true,
            ..Config::default()
        })
        .map_err(|source| FsError::Server {
            path: directory.to_owned(),
            source,
        })?;
        Ok(Self {
            tag: tag.to_owned(),
            config,
            fs: Arc::new(GuardedFs::new(inner, read_only, limits())),
            worker: None,
            _directory: opened,
        })
    }
}

/// What its thread works on.
struct FileService {
    queues: Vec<DeviceQueue>,
    fs: Arc<GuardedFs>,
    server: Server<Arc<GuardedFs>>,
}

impl Service for FileService {
    fn serve(&mut self, stop: &EventFd) -> Result<(), WorkerError> {
        prepare_thread()?;
        serve_queues(&mut self.queues, stop, |chain| serve(&self.server, chain))
    }

    /// A driver that is gone holds nothing open.
    fn finish(self) -> Result<(), WorkerError> {
        self.fs.destroy();
        Ok(())
    }

    fn queues(&self) -> &[DeviceQueue] {
        &self.queues
    }
}

/// What the limit of descriptors leaves for the share. The hard limit is the one that is meant: the soft one is there
/// for programs that use `select`, and is raised to it.
fn limits() -> Limits {
    let mut limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // Refused only where the lower limit is wanted; then that is what there is.
    if setrlimit(Resource::Nofile, raised).is_ok() {
        limit = raised;
    }
    let descriptors = limit
        .current
        .map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    // A limit this low is not meant for a share; half of it is then tried.
    let available = descriptors.saturating_sub(OTHER_DESCRIPTORS).max(descriptors / 2);
    let handles = available / (NODES_PER_HANDLE + 1);
    Limits {
        nodes: (available - handles).min(MAX_NODES),
        handles: handles.min(MAX_NODES),
    }
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn name(&self) -> &'static str {
        "fs"
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn offered_features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | EVENT_IDX
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_space(&self.config, offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let queues = DeviceQueue::take_all(self.name(), &mut activation)?;
        self.worker = Some(Worker::start(
            self.name(),
            activation.interrupt,
            activation.failures,
            FileService {
                queues,
                fs: Arc::clone(&self.fs),
                server: Server::new(Arc::clone(&self.fs)),
            },
        )?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }

    fn worker(&mut self) -> Option<&mut dyn Pausable> {
        self.worker.as_mut().map(|worker| worker as &mut dyn Pausable)
    }

    /// Before the guest mounts the share there is nothing to save. Afterwards it knows files by numbers that stand for
    /// what this process has open.
    fn save(&self) -> Result<DeviceState, SaveError> {
        if self.fs.has_session() {
            return Err(SaveError::Mounted {
                tag: self.tag.clone(),
            });
        }
        Ok(DeviceState::Stateless)
    }
}

/// Gives the server's thread what it needs and other threads must not have.
fn prepare_thread() -> Result<(), WorkerError> {
    // The library clears the umask, which would otherwise be the whole process's.
    unshare(CloneFlags::CLONE_FS)
        .map_err(io::Error::from)
        .map_err(WorkerError::host("separating the umask of the file server"))?;
    // The library makes files under their owner's ids, of which it knows one group. The guest's kernel has checked
    // permissions with all of them, so privileges are kept meanwhile. A server without root cannot change ids anyway.
    if geteuid().is_root() {
        set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)
            .map_err(io::Error::from)
            .map_err(WorkerError::host(
                "keeping the file server's privileges across user ids",
            ))?;
    }
    Ok(())
}

/// Serves the request in `chain` and returns the length of the answer.
fn serve<F: FileSystem + Sync>(server: &Server<F>, chain: &Chain) -> u32 {
    let memory = chain.memory();
    let (Ok(reader), Ok(writer)) = (
        Reader::from_descriptor_chain(memory, chain.clone()),
        VirtioFsWriter::new(memory, chain.clone()),
    ) else {
        return 0;
    };
    if reader.available_bytes() > MAX_MESSAGE || writer.available_bytes() > MAX_MESSAGE {
        return refuse(chain, libc::EOVERFLOW);
    }
    match server.handle_message(reader, Writer::VirtioFs(writer), None, None) {
        Ok(length) => u32::try_from(length).unwrap_or(0),
        Err(_) => refuse(chain, libc::EIO),
    }
}

/// Answers a request that the server did not understand, if there is room for an answer.
fn refuse(chain: &Chain, errno: i32) -> u32 {
    let memory = chain.memory();
    let header = Reader::from_descriptor_chain(memory, chain.clone())
        .ok()
        .and_then(|mut reader| reader.read_obj::<InHeader>().ok());
    let (Some(header), Ok(mut writer)) = (header, VirtioFsWriter::new(memory, chain.clone())) else {
        return 0;
    };
    let length = size_of::<OutHeader>() as u32;
    let answer = OutHeader {
        len: length,
        error: -errno,
        unique: header.unique,
    };
    writer.write_obj(answer).map_or(0, |()| length)
}
