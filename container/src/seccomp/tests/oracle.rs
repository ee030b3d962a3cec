//! libseccomp, where it is installed, asked about the same profiles.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsRawFd;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompArg};

/// The functions that are needed of the library (`<seccomp.h>`).
pub(super) struct Libseccomp {
    init: unsafe extern "C" fn(u32) -> *mut c_void,
    release: unsafe extern "C" fn(*mut c_void),
    add_architecture: unsafe extern "C" fn(*mut c_void, u32) -> c_int,
    resolve: unsafe extern "C" fn(*const c_char) -> c_int,
    add_rule: unsafe extern "C" fn(*mut c_void, u32, c_int, c_uint, *const Comparison) -> c_int,
    export: unsafe extern "C" fn(*const c_void, c_int) -> c_int,
}

/// `struct scmp_arg_cmp`.
#[repr(C)]
struct Comparison {
    argument: c_uint,
    operator: c_int,
    first: u64,
    second: u64,
}

impl Libseccomp {
    /// None, and a word about it, where there is no such library.
    pub(super) fn load() -> Option<Libseccomp> {
        // SAFETY: loading runs the library's own set-up only; a null result is checked below.
        let library = unsafe { libc::dlopen(c"libseccomp.so.2".as_ptr(), libc::RTLD_NOW) };
        if library.is_null() {
            println!("SKIPPED: there is no libseccomp.so.2 to compare with");
            return None;
        }
        let symbol = |name: &CStr| {
            // SAFETY: the library stays loaded.
            let symbol = unsafe { libc::dlsym(library, name.as_ptr()) };
            assert!(!symbol.is_null(), "{name:?}");
            symbol
        };
        // SAFETY: the types are those of the library's header.
        unsafe {
            Some(Libseccomp {
                init: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(u32) -> *mut c_void>(symbol(
                    c"seccomp_init",
                )),
                release: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void)>(symbol(
                    c"seccomp_release",
                )),
                add_architecture: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(*mut c_void, u32) -> c_int,
                >(symbol(c"seccomp_arch_add")),
                resolve: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*const c_char) -> c_int>(
                    symbol(c"seccomp_syscall_resolve_name"),
                ),
                add_rule: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(*mut c_void, u32, c_int, c_uint, *const Comparison) -> c_int,
                >(symbol(c"seccomp_rule_add_array")),
                export: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*const c_void, c_int) -> c_int>(
                    symbol(c"seccomp_export_bpf"),
                ),
            })
        }
    }

    /// The library's program for a profile, made with the calls that runc makes.
    pub(super) fn compile(&self, seccomp: &LinuxSeccomp) -> Vec<libc::sock_filter> {
        let default = seccomp.default_action().as_u32(seccomp.default_errno_ret());
        // SAFETY: the context is used by this function alone and released once.
        unsafe {
            let context = (self.init)(default);
            assert!(!context.is_null());
            for architecture in seccomp.architectures().iter().flatten() {
                let added = (self.add_architecture)(context, *architecture as u32);
                assert!(added == 0 || added == -libc::EEXIST, "{architecture}: {added}");
            }
            for entry in seccomp.syscalls().iter().flatten() {
                let action = entry.action().as_u32(entry.errno_ret());
                for name in entry.names() {
                    let text = CString::new(name.as_str()).unwrap();
                    let number = (self.resolve)(text.as_ptr());
                    if action == default || number == -1 {
                        continue;
                    }
                    let comparisons: Vec<Comparison> =
                        entry.args().iter().flatten().map(Comparison::new).collect();
                    let count = comparisons.len() as c_uint;
                    let added = (self.add_rule)(context, action, number, count, comparisons.as_ptr());
                    assert_eq!(added, 0, "{name}");
                }
            }
            let mut file = memory_file();
            assert_eq!((self.export)(context, file.as_raw_fd()), 0);
            (self.release)(context);
            file.rewind().unwrap();
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            bytes.chunks_exact(8).map(instruction).collect()
        }
    }
}

impl Comparison {
    fn new(argument: &LinuxSeccompArg) -> Comparison {
        Comparison {
            argument: argument.index() as c_uint,
            operator: argument.op() as c_int,
            first: argument.value(),
            second: argument.value_two().unwrap_or(0),
        }
    }
}

fn memory_file() -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    rustix::fs::memfd_create("program", flags).unwrap().into()
}

fn instruction(bytes: &[u8]) -> libc::sock_filter {
    libc::sock_filter {
        code: u16::from_ne_bytes([bytes[0], bytes[1]]),
        jt: bytes[2],
        jf: bytes[3],
        k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    }
}
