//! The time namespace (time_namespaces(7)).

use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::process::SetUpError;
use crate::procfs;

/// Makes a time namespace, sets its clocks, which is possible only while nobody is in it, and enters it.
pub(super) fn enter_time_namespace(offsets: &[(&str, i64, u32)]) -> Result<(), SetUpError> {
    // SAFETY: a new time namespace touches no descriptors.
    unsafe { unshare_unsafe(UnshareFlags::NEWTIME) }.map_err(SetUpError::step("make the time namespace"))?;
    for (clock, seconds, nanoseconds) in offsets {
        let line = format!("{clock} {seconds} {nanoseconds}\n");
        procfs::write("self/timens_offsets", line.as_bytes()).map_err(SetUpError::field(
            format!("linux.timeOffsets.{clock}"),
            "set the clock",
        ))?;
    }
    let enter = || -> Result<(), Errno> {
        let path = "/proc/self/ns/time_for_children";
        let namespace = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Time))
    };
    enter().map_err(SetUpError::step("enter the time namespace"))
}
