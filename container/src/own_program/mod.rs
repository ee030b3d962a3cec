//! Keeping the runtime's own program out of a container's reach (CVE-2019-5736).
//!
//! A process on its way into a container is a copy of the runtime, and an image may even have it executed again, by a
//! script whose interpreter is `/proc/self/exe`. Whoever opens that link from inside would hold the runtime's file on
//! the host, and could write to it once it is no longer executed. So the runtime first of all has that link lead to a
//! read-only mount of the file that is attached nowhere, which nobody can make writable, because nobody can name it:
//! in its place where the kernel allows it, and otherwise by executing itself again by way of that mount.

mod exchange;

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::fs::{
    AtFlags, MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags, StatxAttributes, StatxFlags,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::kernel::execve::{StringArray, execveat};
use crate::kernel::mount_setattr::set_read_only;

/// The program cannot be kept out of reach, and so nothing is let into a container.
#[derive(Debug, thiserror::Error)]
#[error("cannot keep this program out of the reach of containers: cannot {doing}")]
pub struct ProgramError {
    doing: &'static str,
    source: io::Error,
}

fn failed(doing: &'static str) -> impl FnOnce(Errno) -> ProgramError {
    move |errno| ProgramError {
        doing,
        source: errno.into(),
    }
}

/// Where the program was before its file was exchanged: `/proc` has no path for where it is now.
static PATH_BEFORE: OnceLock<PathBuf> = OnceLock::new();

/// The mount that the program was exchanged for, by the descriptor that made it. With that the kernel takes apart what the
/// mount is in, and waits for every processor to have noticed: a tenth of a millisecond, for which there is a better time
/// than the beginning.
static EXCHANGED: Mutex<Option<OwnedFd>> = Mutex::new(None);

/// The number of a descriptor that a copy of this process has no use for.
pub(crate) fn left_open() -> Option<RawFd> {
    let exchanged = EXCHANGED.lock().unwrap_or_else(PoisonError::into_inner);
    exchanged.as_ref().map(AsRawFd::as_raw_fd)
}

/// Closes it, when there is nothing to do but wait for others.
pub(crate) fn close_left_open() {
    drop(EXCHANGED.lock().unwrap_or_else(PoisonError::into_inner).take());
}

/// Returns when this process executes a program that nobody can write to by way of it: at once where it does already or
/// the file can be exchanged, otherwise in a new execution with the same arguments and environment. Descriptors without
/// close-on-exec stay open.
///
/// To be called first of all by a program that puts processes into containers.
///
/// # Errors
/// When none of the ways works.
pub fn keep_own_program_out_of_reach() -> Result<(), ProgramError> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let program =
        rustix::fs::open("/proc/self/exe", flags, Mode::empty()).map_err(failed("open /proc/self/exe"))?;
    if is_read_only_mount(&program).map_err(failed("look at the mount of /proc/self/exe"))?
        || is_sealed_copy()
    {
        take_name_back();
        return Ok(());
    }
    let unreachable = match read_only_mount(&program) {
        Ok(mount) if exchange_for(&program, &mount) => {
            *EXCHANGED.lock().unwrap_or_else(PoisonError::into_inner) = Some(mount);
            return Ok(());
        }
        Ok(mount) => mount,
        // A mount may be locked to its place, or its file system be of a kind that has no copies.
        Err(_) => sealed_copy().map_err(failed("copy it"))?,
    };
    Err(failed("execute it again")(execute(&unreachable)))
}

/// A program executed by descriptor is named after its number, which says nothing to those who list processes.
fn take_name_back() {
    let path = own_program_path().ok();
    let name = path
        .as_deref()
        .and_then(Path::file_name)
        .and_then(|name| CString::new(name.as_bytes()).ok());
    if let Some(name) = name {
        // A name is for people; the kernel cuts it to 15 bytes and refuses none.
        let _ = rustix::thread::set_name(&name);
    }
}

/// Whether the file is a read-only mount by itself. A whole file system that is read-only may be made writable some day.
fn is_read_only_mount(program: &OwnedFd) -> Result<bool, Errno> {
    let statx = rustix::fs::statx(program, "", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
    let flags = rustix::fs::fstatvfs(program)?.f_flag;
    Ok(statx.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
        && flags.contains(StatVfsMountFlags::RDONLY))
}

fn read_only_mount(program: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = open_tree(program, "", flags)?;
    set_read_only(&mount)?;
    Ok(mount)
}

/// Whether `/proc/self/exe` leads to the mount from now on; where it does not, there is another way.
fn exchange_for(program: &OwnedFd, mount: &OwnedFd) -> bool {
    let by_number = format!("/proc/self/fd/{}", mount.as_raw_fd());
    let (Ok(path), Ok(replacement)) = (std::env::current_exe(), std::fs::File::open(by_number)) else {
        return false;
    };
    if exchange::exchange(program.as_fd(), replacement.as_fd()).is_err() {
        return false;
    }
    PATH_BEFORE.get_or_init(|| path);
    true
}

const NO_MORE_CHANGES: SealFlags = SealFlags::from_bits_retain(
    SealFlags::SEAL.bits() | SealFlags::SHRINK.bits() | SealFlags::GROW.bits() | SealFlags::WRITE.bits(),
);

fn sealed_copy() -> Result<OwnedFd, Errno> {
    let io_error = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = std::fs::File::from(rustix::fs::memfd_create("bulkhead", flags)?);
    let mut program = std::fs::File::open("/proc/self/exe").map_err(io_error)?;
    io::copy(&mut program, &mut copy).map_err(io_error)?;
    rustix::fs::fcntl_add_seals(&copy, NO_MORE_CHANGES)?;
    Ok(copy.into())
}

fn is_sealed_copy() -> bool {
    // Only a file in memory has seals; of any other the question is an error.
    std::fs::File::open("/proc/self/exe")
        .ok()
        .and_then(|program| rustix::fs::fcntl_get_seals(&program).ok())
        .is_some_and(|seals| seals.contains(NO_MORE_CHANGES))
}

/// Where this program's file is, also after it was exchanged or executed again and the kernel has no path for it any more.
///
/// # Errors
/// When `/proc` does not tell.
pub fn own_program_path() -> io::Result<PathBuf> {
    if let Some(path) = PATH_BEFORE.get() {
        return Ok(path.clone());
    }
    let path = std::env::current_exe()?;
    let is_nowhere = path.file_name().is_none() || path.starts_with("/memfd:bulkhead (deleted)");
    match std::env::args_os().next() {
        // `execute` has put it there.
        Some(name) if is_nowhere => Ok(name.into()),
        _ => Ok(path),
    }
}

/// Returns only on failure.
fn execute(program: &OwnedFd) -> Errno {
    let path = std::env::current_exe().map(PathBuf::into_os_string);
    let others = std::env::args_os().skip(1);
    let arguments: Result<Vec<CString>, _> = path.into_iter().chain(others).map(c_string).collect();
    let variables: Result<Vec<CString>, _> = std::env::vars_os()
        .map(|(mut variable, value)| {
            variable.push("=");
            variable.push(value);
            c_string(variable)
        })
        .collect();
    let (Ok(arguments), Ok(variables)) = (arguments, variables) else {
        return Errno::INVAL;
    };
    execveat(
        program.as_fd(),
        &StringArray::new(arguments.iter().map(CString::as_c_str)),
        &StringArray::new(variables.iter().map(CString::as_c_str)),
    )
}

fn c_string(text: OsString) -> Result<CString, std::ffi::NulError> {
    CString::new(text.into_vec())
}
