//! The same names for unit tests: in a thread that records, a call is written down and succeeds without being made; in any
//! other it is made.

use std::cell::RefCell;
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};
use rustix::path::Arg;
use rustix::process::{DumpableBehavior, Gid, Pid, Resource, Rlimit, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets, CpuSet, ThreadNameSpaceType, UnshareFlags};

use super::order::Order;
use crate::kernel::clone::{Side, clone_for_parent as make_for_parent};
use crate::kernel::execve::StringArray;
use crate::kernel::mount_setattr::{MountAttributes, attribute};
use crate::kernel::pid_slot::PidSlot;
use crate::kernel::{
    close_range, execve as own_execve, keyring, label, loopback, own_environment, seccomp, signal_disposition,
};

thread_local! {
    static RECORD: RefCell<Option<Record>> = const { RefCell::new(None) };
}

/// What is being written down.
#[derive(Clone, Default)]
pub(crate) struct Record(Arc<Mutex<Vec<String>>>);

impl Record {
    /// Writes down what `work` calls in this thread.
    pub(crate) fn also<T>(&self, work: impl FnOnce() -> T) -> T {
        RECORD.set(Some(self.clone()));
        let made = work();
        RECORD.set(None);
        made
    }
}

/// What `work`, which is given the record for threads of its own, calls.
pub(crate) fn recorded(work: impl FnOnce(&Record)) -> Order {
    let record = Record::default();
    record.also(|| work(&record));
    Order::new(std::mem::take(&mut record.0.lock().unwrap()))
}

fn is_recorded(words: impl FnOnce() -> String) -> bool {
    match RECORD.with_borrow(Clone::clone) {
        Some(record) => {
            let words = words();
            record.0.lock().unwrap().push(words);
            true
        }
        None => false,
    }
}

macro_rules! calls {
    ($(fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty {
        $words:expr, otherwise $real:path, and it is $instead:expr
    })*) => {
        $(pub(crate) fn $name($($argument: $type),*) -> Result<$result, Errno> {
            if is_recorded(|| $words) {
                return $instead;
            }
            $real($($argument),*)
        })*
    };
}

calls! {
    fn mount_change(path: &str, flags: MountPropagationFlags) -> () {
        format!("mount_change {path} {}", names(flags)), otherwise rustix::mount::mount_change, and it is Ok(())
    }
    fn open_tree(folder: impl AsFd, path: impl Arg, flags: OpenTreeFlags) -> OwnedFd {
        "open_tree".to_owned(), otherwise rustix::mount::open_tree, and it is {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            match path.as_cow_c_str()?.is_empty() {
                true => fcntl_dupfd_cloexec(folder, 3),
                false => openat(folder, path, flags, Mode::empty()),
            }
        }
    }
    fn move_mount(
        from: impl AsFd, from_path: &str, to: impl AsFd, to_path: impl Arg, flags: MoveMountFlags
    ) -> () {
        match to_path.as_str() {
            Ok("") | Err(_) => format!("move_mount {}", path_of(&to)),
            Ok(path) => format!("move_mount {path}"),
        },
        otherwise rustix::mount::move_mount, and it is Ok(())
    }
    fn unmount(path: &str, flags: UnmountFlags) -> () {
        format!("unmount {path} {}", if flags.contains(UnmountFlags::DETACH) { "DETACH" } else { "" }),
        otherwise rustix::mount::unmount, and it is Ok(())
    }
    // A file system is a folder of the test's here, and proc itself where it has to be.
    fn fsopen(kind: &CStr, flags: FsOpenFlags) -> OwnedFd {
        format!("fsopen {}", kind.to_string_lossy()), otherwise rustix::mount::fsopen, and it is openat(
            CWD, if kind == c"proc" { c"/proc" } else { c"/dev" }, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()
        )
    }
    fn fsconfig_set_string(context: &OwnedFd, key: &str, value: impl Arg) -> () {
        format!("fsconfig {key}"), otherwise rustix::mount::fsconfig_set_string, and it is Ok(())
    }
    fn fsconfig_set_flag(context: &OwnedFd, key: &str) -> () {
        format!("fsconfig {key}"), otherwise rustix::mount::fsconfig_set_flag, and it is Ok(())
    }
    fn fsconfig_create(context: &OwnedFd) -> () {
        "fsconfig".to_owned(), otherwise rustix::mount::fsconfig_create, and it is Ok(())
    }
    fn fsmount(context: &OwnedFd, flags: FsMountFlags, attributes: MountAttrFlags) -> OwnedFd {
        "fsmount".to_owned(), otherwise rustix::mount::fsmount, and it is fcntl_dupfd_cloexec(context, 3)
    }
    fn mount_setattr(mount: impl AsFd, recursive: bool, attributes: &MountAttributes) -> () {
        format!(
            "mount_setattr{}{}",
            if attributes.set & attribute::RDONLY != 0 { " RDONLY" } else { "" },
            if attributes.propagation != 0 { " propagation" } else { "" },
        ),
        otherwise crate::kernel::mount_setattr::mount_setattr, and it is Ok(())
    }
    fn pivot_root(new: &str, old: &str) -> () {
        format!("pivot_root {new} {old}"), otherwise rustix::process::pivot_root, and it is Ok(())
    }
    fn chroot(path: &str) -> () { format!("chroot {path}"), otherwise rustix::process::chroot, and it is Ok(()) }
    fn chdir(path: &str) -> () { format!("chdir {path}"), otherwise rustix::process::chdir, and it is Ok(()) }
    fn fchdir(folder: impl AsFd) -> () {
        format!("fchdir {}", path_of(&folder)), otherwise rustix::process::fchdir, and it is Ok(())
    }
    fn write(file: &OwnedFd, bytes: &[u8]) -> usize {
        format!("write {}", path_of(file)), otherwise rustix::io::write, and it is Ok(bytes.len())
    }
    fn move_into_thread_name_spaces(process: BorrowedFd<'_>, kinds: ThreadNameSpaceType) -> () {
        format!("setns {}", kinds.iter_names().map(|(name, _)| name).collect::<Vec<_>>().join("|")),
        otherwise rustix::thread::move_into_thread_name_spaces, and it is Ok(())
    }
    fn sched_setaffinity(process: Option<Pid>, cpus: &CpuSet) -> () {
        "sched_setaffinity".to_owned(), otherwise rustix::thread::sched_setaffinity, and it is Ok(())
    }
    fn setsid() -> Pid { "setsid".to_owned(), otherwise rustix::process::setsid, and it is Ok(Pid::INIT) }
    fn begin_session_keyring() -> () {
        "keyctl".to_owned(), otherwise keyring::begin_session_keyring, and it is Ok(())
    }
    fn write_label(file: &str, text: &str) -> () {
        format!("write {file} {text}"), otherwise label::write_label, and it is Ok(())
    }
    fn setrlimit(resource: Resource, limit: Rlimit) -> () {
        "setrlimit".to_owned(), otherwise rustix::process::setrlimit, and it is Ok(())
    }
    fn sethostname(name: &[u8]) -> () {
        "sethostname".to_owned(), otherwise rustix::system::sethostname, and it is Ok(())
    }
    fn bring_loopback_up() -> () {
        "ioctl SIOCSIFFLAGS lo".to_owned(), otherwise loopback::bring_loopback_up, and it is Ok(())
    }
    fn dup2_stdin(file: &OwnedFd) -> () { "dup2".to_owned(), otherwise rustix::stdio::dup2_stdin, and it is Ok(()) }
    fn dup2_stdout(file: &OwnedFd) -> () { "dup2".to_owned(), otherwise rustix::stdio::dup2_stdout, and it is Ok(()) }
    fn dup2_stderr(file: &OwnedFd) -> () { "dup2".to_owned(), otherwise rustix::stdio::dup2_stderr, and it is Ok(()) }
    fn set_dumpable_behavior(behavior: DumpableBehavior) -> () {
        format!("prctl SET_DUMPABLE {}", u8::from(behavior != DumpableBehavior::NotDumpable)),
        otherwise rustix::process::set_dumpable_behavior, and it is Ok(())
    }
    // All there are.
    fn capabilities(process: Option<Pid>) -> CapabilitySets {
        "capget".to_owned(), otherwise rustix::thread::capabilities, and it is {
            let all = CapabilitySet::from_bits_retain((1 << 41) - 1);
            Ok(CapabilitySets { effective: all, permitted: all, inheritable: all })
        }
    }
    fn set_capabilities(process: Option<Pid>, sets: CapabilitySets) -> () {
        format!("capset {:#x}", sets.effective.bits()), otherwise rustix::thread::set_capabilities, and it is Ok(())
    }
    fn remove_capability_from_bounding_set(capability: CapabilitySet) -> () {
        "prctl CAPBSET_DROP".to_owned(), otherwise rustix::thread::remove_capability_from_bounding_set,
        and it is Ok(())
    }
    fn clear_ambient_capability_set() -> () {
        "prctl CAP_AMBIENT_CLEAR_ALL".to_owned(), otherwise rustix::thread::clear_ambient_capability_set,
        and it is Ok(())
    }
    fn configure_capability_in_ambient_set(capability: CapabilitySet, is_raised: bool) -> () {
        "prctl CAP_AMBIENT_RAISE".to_owned(), otherwise rustix::thread::configure_capability_in_ambient_set,
        and it is Ok(())
    }
    fn set_keep_capabilities(is_kept: bool) -> () {
        "prctl SET_KEEPCAPS".to_owned(), otherwise rustix::thread::set_keep_capabilities, and it is Ok(())
    }
    fn set_no_new_privs(is_set: bool) -> () {
        "prctl SET_NO_NEW_PRIVS".to_owned(), otherwise rustix::thread::set_no_new_privs, and it is Ok(())
    }
    fn set_thread_groups(groups: &[Gid]) -> () {
        "setgroups".to_owned(), otherwise rustix::thread::set_thread_groups, and it is Ok(())
    }
    fn set_thread_res_gid(real: Gid, effective: Gid, saved: Gid) -> () {
        format!("setresgid {real}"), otherwise rustix::thread::set_thread_res_gid, and it is Ok(())
    }
    fn set_thread_res_uid(real: Uid, effective: Uid, saved: Uid) -> () {
        format!("setresuid {real}"), otherwise rustix::thread::set_thread_res_uid, and it is Ok(())
    }
    fn set_filter(program: &[libc::sock_filter], flags: libc::c_ulong) -> Option<OwnedFd> {
        "seccomp".to_owned(), otherwise seccomp::set_filter, and it is Ok(None)
    }
    fn close_on_exec_all_but_stdio_and(kept: &mut [RawFd]) -> () {
        "close_range CLOEXEC".to_owned(), otherwise close_range::close_on_exec_all_but_stdio_and, and it is Ok(())
    }
}

/// # Safety
/// As that of the call.
pub(crate) unsafe fn close_all_but_stdio_and(kept: &mut [RawFd]) -> Result<(), Errno> {
    if is_recorded(|| "close_range CLOSE".to_owned()) {
        return Ok(());
    }
    // SAFETY: the caller's promise.
    unsafe { close_range::close_all_but_stdio_and(kept) }
}

/// # Safety
/// As that of the call.
pub(crate) unsafe fn unshare_unsafe(flags: UnshareFlags) -> Result<(), Errno> {
    if is_recorded(|| {
        let names: Vec<&str> = flags.iter_names().map(|(name, _)| name).collect();
        format!("unshare {}", names.join("|"))
    }) {
        return Ok(());
    }
    // SAFETY: the caller's promise.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// The way of the process that is made, which this thread then goes on as.
///
/// # Safety
/// As that of the call.
pub(crate) unsafe fn clone_for_parent(slot: &PidSlot) -> Result<Side, Errno> {
    if is_recorded(|| "clone PARENT".to_owned()) {
        return Ok(Side::Child);
    }
    // SAFETY: the caller's promise.
    unsafe { make_for_parent(slot) }
}

/// No system call, but as hard to take back; other tests need the environment.
///
/// # Safety
/// As that of the function.
pub(crate) unsafe fn forget_environment() {
    if !is_recorded(|| "forget the environment".to_owned()) {
        // SAFETY: the caller's promise.
        unsafe { own_environment::forget() };
    }
}

pub(crate) fn umask(mask: Mode) -> Mode {
    if is_recorded(|| format!("umask {:03o}", mask.bits())) {
        return Mode::empty();
    }
    rustix::process::umask(mask)
}

pub(crate) fn reset_for_exec() {
    if !is_recorded(|| "sigprocmask".to_owned()) {
        signal_disposition::reset_for_exec();
    }
}

/// Where it is recorded there is no such program: it would not return.
pub(crate) fn execve(path: &CStr, arguments: &StringArray, environment: &StringArray) -> Errno {
    if is_recorded(|| format!("execve {}", path.to_string_lossy())) {
        return Errno::NOENT;
    }
    own_execve::execve(path, arguments, environment)
}

fn names(flags: MountPropagationFlags) -> String {
    flags
        .iter_names()
        .map(|(name, _)| name)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Where the file is, from the container's root on.
fn path_of(file: &impl AsFd) -> String {
    let link = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let path = std::fs::read_link(link).unwrap_or_default();
    let path = path.to_string_lossy();
    match path.split_once("/rootfs") {
        Some((_, "")) => "/".to_owned(),
        Some((_, path)) => path.to_owned(),
        None => path.into_owned(),
    }
}
