//! How another thread makes a vCPU thread leave the guest.
//!
//! A signal interrupts `KVM_RUN`, but one that arrives just before it would be lost. So the handler, which runs on the
//! vCPU's own thread, sets `immediate_exit` in the structure that KVM shares with that thread: the next `KVM_RUN`
//! returns at once (Linux's Documentation/virt/kvm/api.rst, section 5).

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::ptr;
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

thread_local! {
    /// The vCPU's `immediate_exit`, on a thread that runs one.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

extern "C" fn leave_guest(_signal: c_int, _information: *mut libc::siginfo_t, _context: *mut c_void) {
    let immediate_exit = IMMEDIATE_EXIT.get();
    if !immediate_exit.is_null() {
        // SAFETY: A pointer that is not null belongs to the vCPU whose thread this is, which clears it before the
        // vCPU is dropped (`Kickable::drop`). KVM reads the byte only when this thread calls `KVM_RUN`.
        unsafe { immediate_exit.write_volatile(1) };
    }
}

/// Installs the handler, once for the process.
///
/// # Errors
/// When the signal cannot be handled.
pub fn install_handler() -> Result<(), errno::Error> {
    register_signal_handler(SIGRTMIN(), leave_guest)
}

/// Makes the thread leave the guest, or not enter it.
///
/// # Errors
/// When the thread cannot be signalled.
pub fn kick(thread: &JoinHandle<()>) -> Result<(), errno::Error> {
    thread.kill(SIGRTMIN())
}

/// While it lives, the thread it was made on can be [kicked](kick) out of its vCPU.
#[derive(Debug)]
pub struct Kickable {
    /// It must be dropped where it was made.
    not_send: PhantomData<*mut u8>,
}

impl Kickable {
    /// Ties the current thread to `vcpu`, which must outlive the value returned.
    pub fn new(vcpu: &mut VcpuFd) -> Self {
        IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
        Self {
            not_send: PhantomData,
        }
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}
