//! How much memory the guest's kernel promises.

use std::fs;
use std::io;

/// Promises whatever is asked (`vm.overcommit_memory` 1; the kernel's Documentation/mm/overcommit-accounting.rst). A
/// guest is as small as its pod's limit, and its kernel would refuse at once what a host with more memory grants: a
/// program that overruns its limit is to meet the limit, the same behind either wall.
///
/// # Errors
/// When the setting cannot be written.
pub(crate) fn promise_everything() -> io::Result<()> {
    fs::write("/proc/sys/vm/overcommit_memory", "1")
}
