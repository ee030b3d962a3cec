//! `seccomp(2)`.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

use super::checked;

/// Puts a filter between the calling thread and the kernel, for good. Returns the listener where `flags` has
/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`.
///
/// # Errors
/// `EACCES` without `no_new_privs` and without CAP_SYS_ADMIN in the user namespace; `EINVAL` for a program or a flag
/// that the kernel does not take.
pub(crate) fn set_filter(
    program: &[libc::sock_filter],
    flags: libc::c_ulong,
) -> Result<Option<OwnedFd>, Errno> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::INVAL)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel reads the instructions, which are alive for the call, and writes nothing.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    let returned = checked(returned)?;
    if flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER == 0 {
        return Ok(None);
    }
    // SAFETY: the kernel returned a fresh descriptor that nothing else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(returned as RawFd) }))
}

/// Whether the kernel knows these flags (`SECCOMP_FILTER_FLAG_*`), which it looks at before it looks for the program. There
/// is none, so nothing changes.
pub(crate) fn takes_filter_flags(flags: libc::c_ulong) -> bool {
    let none: *const libc::sock_fprog = std::ptr::null();
    // SAFETY: without a program the call fails and neither reads nor writes memory of ours.
    let returned = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, none) };
    checked(returned).err() == Some(Errno::FAULT)
}
