//! Mounts that a test makes, in a namespace of its own.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::finish;

/// Does something in a mount namespace of its own, on a thread of its own, whose children are in it too.
///
/// # Panics
/// When the work does, or the namespace cannot be made.
pub fn with_own_mounts(work: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            // SAFETY: what the thread stops sharing is its root and current folder, which nothing in it relies on.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.unwrap();
            finish(Command::new("mount").args(["--make-rprivate", "/"])).expect(0);
            work();
        });
        if let Err(panic) = inside.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Takes one away, so that the folder can be removed.
///
/// # Panics
/// When it is not there.
pub fn unmount(folder: &Path) {
    finish(Command::new("umount").arg("--lazy").arg(folder)).expect(0);
}

/// A file system in memory with these options, such as its size.
///
/// # Panics
/// When it cannot be mounted.
pub fn mount_memory(folder: &Path, options: &str) {
    fs::create_dir_all(folder).unwrap();
    finish(
        Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "memory"])
            .arg(folder),
    )
    .expect(0);
}
