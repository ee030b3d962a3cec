//! `execve(2)` and `execveat(2)`.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use rustix::io::Errno;

/// A NULL-terminated array of C strings, as `execve` wants its arguments and environment.
pub(crate) struct StringArray<'a> {
    pointers: Vec<*const libc::c_char>,
    strings: std::marker::PhantomData<&'a [CString]>,
}

impl<'a> StringArray<'a> {
    pub(crate) fn new(strings: impl IntoIterator<Item = &'a CStr>) -> StringArray<'a> {
        let mut pointers: Vec<_> = strings.into_iter().map(CStr::as_ptr).collect();
        pointers.push(ptr::null());
        StringArray {
            pointers,
            strings: std::marker::PhantomData,
        }
    }
}

/// Becomes another program. Returns only on failure.
pub(crate) fn execve(path: &CStr, arguments: &StringArray, environment: &StringArray) -> Errno {
    // SAFETY: the path and both arrays are NUL- and NULL-terminated and outlive the call.
    unsafe {
        libc::execve(
            path.as_ptr(),
            arguments.pointers.as_ptr(),
            environment.pointers.as_ptr(),
        )
    };
    last_error()
}

/// Becomes the program in the file of `program`. Returns only on failure.
pub(crate) fn execveat(program: BorrowedFd<'_>, arguments: &StringArray, environment: &StringArray) -> Errno {
    // SAFETY: the empty path and both arrays are NUL- and NULL-terminated and outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            arguments.pointers.as_ptr(),
            environment.pointers.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    last_error()
}

fn last_error() -> Errno {
    Errno::from_raw_os_error(
        std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO),
    )
}
