//! Session keyrings (keyrings(7)).

use std::ptr;

use rustix::io::Errno;

use super::checked;

/// Leaves the session keyring this process has inherited for a new one without a name, which nobody else can join.
pub(crate) fn begin_session_keyring() -> Result<(), Errno> {
    // SAFETY: integers and a null name, which asks for an anonymous keyring.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_JOIN_SESSION_KEYRING,
            ptr::null::<libc::c_char>(),
        )
    };
    match checked(returned) {
        Ok(_) => Ok(()),
        // A kernel without keys has none to hide.
        Err(Errno::NOSYS) => Ok(()),
        Err(errno) => Err(errno),
    }
}
