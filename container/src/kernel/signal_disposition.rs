//! What an `execve` would carry over: ignored signals and the mask.

use std::{mem, ptr};

/// Gives SIGPIPE, which Rust's start-up code ignores, its default action again, and unblocks every signal. Signals
/// that the caller's own parent left ignored stay so, as with any program that starts another.
pub(crate) fn reset_for_exec() {
    // SAFETY: both calls get valid signal numbers and pointers to initialized sets on this stack; they fail only for
    // arguments other than these.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}
