//! Labels of this process, by files of `/proc/self/attr`.

use rustix::io::Errno;

use crate::procfs;

/// Writes a label to the file at this path below `/proc`, in one write as the kernel wants it.
///
/// # Errors
/// `ENOENT` without the module whose file it is, `EINVAL` without a module at all or for words that it does not take.
pub(crate) fn write_label(file: &str, text: &str) -> Result<(), Errno> {
    procfs::write(file, text.as_bytes())
}
