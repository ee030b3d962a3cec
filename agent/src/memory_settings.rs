//! How the guest's kernel treats memory.

use std::fs;
use std::io;

/// Settings that the kernel has otherwise by default, and that are right for every guest.
///
/// # Errors
/// When one cannot be written.
pub(crate) fn apply() -> io::Result<()> {
    // It promises whatever is asked (the kernel's Documentation/mm/overcommit-accounting.rst). A guest is as small as
    // its pod's limit, and its kernel would refuse at once what a host with more memory grants: a program that
    // overruns its limit is to meet the limit, the same behind either wall.
    fs::write("/proc/sys/vm/overcommit_memory", "1")?;
    // It gathers free pages when somebody needs them, and not in advance (Documentation/admin-guide/sysctl/vm.rst),
    // for which it would wake up twice a second in a guest that does nothing.
    fs::write("/proc/sys/vm/compaction_proactiveness", "0")
}
