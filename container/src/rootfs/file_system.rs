//! New file systems, made where nobody can see them yet (fsopen(2), Linux 5.2).
//!
//! A mount that is a descriptor first and gets its place at the end needs its mount point looked up only once, and is
//! never seen half done.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, fsconfig_reconfigure, fsconfig_set_fd, fspick,
};

use crate::kernel::calls::{fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen};
use crate::kernel::mount_setattr::attribute;
use crate::plan::{MS_LAZYTIME, MountOptions};

/// As much as fsconfig(2) takes of a key or a value; mount(2) takes a page of all together.
const FSCONFIG_LIMIT: usize = 255;
/// What proc calls whose processes it shows.
const PID_NAMESPACE: &CStr = c"pidns";

/// Why the kernel made no file system of it.
#[derive(Debug)]
pub(super) struct Refusal {
    /// In the file system's own words where it has some.
    pub(super) said: String,
    pub(super) errno: Errno,
}

/// Whether fsconfig(2) can say all this.
pub(super) fn can_be_configured(options: &MountOptions) -> bool {
    options.superblock & libc::MS_I_VERSION == 0
        && options.data.iter().all(|word| {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            key.len() <= FSCONFIG_LIMIT && value.len() <= FSCONFIG_LIMIT
        })
}

/// Makes a file system, and a mount of it with the given attributes. It is itself read-only if `read_only`: one that
/// is about to be filled is not, however its mount will be. A proc file system shows the processes of a pid namespace.
pub(super) fn make(
    kind: &CStr,
    source: &CStr,
    options: &MountOptions,
    read_only: bool,
    attributes: u64,
    processes_of: Option<&OwnedFd>,
) -> Result<OwnedFd, Refusal> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| Refusal {
        said: match errno {
            Errno::NODEV => "the kernel has no such file system".to_owned(),
            _ => "it cannot be opened".to_owned(),
        },
        errno,
    })?;
    if !source.is_empty() {
        let set = fsconfig_set_string(&context, "source", source);
        set.map_err(|errno| refusal(&context, "the source is refused", errno))?;
    }
    if let Some(namespace) = processes_of {
        let set = fsconfig_set_fd(&context, PID_NAMESPACE, namespace);
        set.map_err(|errno| refusal(&context, "the pid namespace is refused", errno))?;
    }
    configure(&context, options)?;
    if read_only {
        let set = fsconfig_set_flag(&context, "ro");
        set.map_err(|errno| refusal(&context, "`ro` is refused", errno))?;
    }
    fsconfig_create(&context).map_err(|errno| refusal(&context, "it cannot be made", errno))?;
    let attributes = MountAttrFlags::from_bits_retain(attributes as u32);
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|errno| refusal(&context, "it cannot be mounted", errno))
}

/// Whether a proc file system can show the processes of a namespace that its maker is not in (Linux 6.17).
pub(super) fn can_show_processes_of(namespace: &OwnedFd) -> bool {
    fsopen(c"proc", FsOpenFlags::FSOPEN_CLOEXEC)
        .and_then(|context| fsconfig_set_fd(&context, PID_NAMESPACE, namespace))
        .is_ok()
}

/// Gives the file system that `mount` shows other options.
pub(super) fn reconfigure(mount: &OwnedFd, options: &MountOptions) -> Result<(), Refusal> {
    let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
    let context = fspick(mount, "", flags).map_err(|errno| Refusal {
        said: match errno {
            Errno::INVAL => "nothing is mounted there".to_owned(),
            _ => "it cannot be changed".to_owned(),
        },
        errno,
    })?;
    configure(&context, options)?;
    let word = match (options.attributes.set, options.attributes.clear) {
        (set, _) if set & attribute::RDONLY != 0 => Some("ro"),
        (_, clear) if clear & attribute::RDONLY != 0 => Some("rw"),
        _ => None,
    };
    if let Some(word) = word {
        let set = fsconfig_set_flag(&context, word);
        set.map_err(|errno| refusal(&context, "`ro` and `rw` are refused", errno))?;
    }
    fsconfig_reconfigure(&context).map_err(|errno| refusal(&context, "it cannot be changed", errno))
}

fn configure(context: &OwnedFd, options: &MountOptions) -> Result<(), Refusal> {
    for word in &options.data {
        let set = match word.split_once('=') {
            Some((key, value)) => fsconfig_set_string(context, key, value),
            None => fsconfig_set_flag(context, word.as_str()),
        };
        set.map_err(|errno| refusal(context, &format!("`{word}` is refused"), errno))?;
    }
    // MS_SILENT concerns the kernel's log alone, and this interface has its own.
    for (flag, word) in [
        (libc::MS_SYNCHRONOUS, "sync"),
        (libc::MS_DIRSYNC, "dirsync"),
        (libc::MS_MANDLOCK, "mand"),
        (MS_LAZYTIME, "lazytime"),
    ] {
        if options.superblock & flag != 0 {
            let set = fsconfig_set_flag(context, word);
            set.map_err(|errno| refusal(context, &format!("`{word}` is refused"), errno))?;
        }
    }
    Ok(())
}

/// Asks the context for the errors it kept.
fn refusal(context: &OwnedFd, otherwise: &str, errno: Errno) -> Refusal {
    let mut said = Vec::new();
    let mut message = [0; 1024];
    // One message each time, until there are none.
    while let Ok(length @ 1..) = rustix::io::read(context, &mut message) {
        let text = String::from_utf8_lossy(message.get(..length).unwrap_or_default());
        if let Some(error) = text.strip_prefix("e ") {
            said.push(error.trim().to_owned());
        }
    }
    if said.is_empty() {
        said.push(otherwise.to_owned());
    }
    Refusal {
        said: said.join(", "),
        errno,
    }
}
