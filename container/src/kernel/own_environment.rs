//! What this process was told by whoever executed it, which stays in its memory and in that of every copy.

use std::ffi::c_char;

unsafe extern "C" {
    /// The array of environ(7), which ends with a null pointer.
    static environ: *mut *mut c_char;
}

/// Overwrites the values of this process's environment, so that nobody finds them in a copy of its memory.
///
/// # Safety
/// The process has one thread, and nothing in it uses its environment any more.
pub(crate) unsafe fn forget() {
    // SAFETY: the array and its strings, which the kernel laid out or the standard library allocated, are writable and end
    // as environ(7) says; nobody reads them, by the caller's promise.
    unsafe {
        let mut variable = environ;
        while !variable.is_null() && !(*variable).is_null() {
            let length = libc::strlen(*variable);
            (*variable).write_bytes(0, length);
            variable = variable.add(1);
        }
    }
}
