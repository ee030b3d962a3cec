//! Descriptors that the caller hands down to the program.

use std::os::fd::RawFd;

use oci_spec::runtime::Process;

/// As many as are looked at; a process can hardly have more.
const MOST: u32 = 1 << 20;
/// How many descriptors after the standard streams a service manager has left (sd_listen_fds(3)).
const LISTEN_FDS: &str = "LISTEN_FDS";

/// The descriptors that the program keeps: of those of LISTEN_FDS and `more`, counted from 3 on, the ones that were handed
/// to us. Everything that this program opens itself is close-on-exec, and that tells them apart.
pub(super) fn preserved(more: u32) -> Vec<RawFd> {
    let count = listen_fds().saturating_add(more).min(MOST);
    (3..)
        .take(count as usize)
        .filter(|&number| was_handed_down(number))
        .collect()
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

fn was_handed_down(number: RawFd) -> bool {
    // SAFETY: asks for a number's flags and changes nothing; the answer is negative where nothing is open.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    flags >= 0 && flags & libc::FD_CLOEXEC == 0
}
