//! Descriptors that the caller hands down to the program.

use std::os::fd::RawFd;

use oci_spec::runtime::Process;

use super::OciError;

/// How many descriptors after the standard streams a service manager has left (sd_listen_fds(3)).
const LISTEN_FDS: &str = "LISTEN_FDS";

/// How many descriptors from 3 on the program is to keep: those of LISTEN_FDS and `more`. All of them must be open, or
/// the program would get some of ours in their place.
///
/// # Errors
/// When one of them is not open.
pub(super) fn preserved(more: u32) -> Result<u32, OciError> {
    let count = listen_fds().saturating_add(more);
    let first = 3;
    for number in (first..).take(count as usize) {
        if !is_open(number) {
            return Err(OciError::NotOpen { number, count });
        }
    }
    Ok(count)
}

/// Passes LISTEN_FDS on. The process that it is meant for is the container's first.
pub(super) fn tell_listeners(process: &mut Process) {
    let count = listen_fds();
    if count > 0 {
        let mut environment = process.env().clone().unwrap_or_default();
        environment.push(format!("{LISTEN_FDS}={count}"));
        environment.push("LISTEN_PID=1".to_owned());
        process.set_env(Some(environment));
    }
}

fn listen_fds() -> u32 {
    std::env::var(LISTEN_FDS)
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(0)
}

fn is_open(number: RawFd) -> bool {
    // SAFETY: asks for a number's flags and changes nothing.
    unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 }
}
