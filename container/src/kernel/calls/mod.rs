//! The system calls in whose order a container's safety lies: what they change cannot be taken back, or decides what may
//! be changed after them. This is nothing but their names: with them in one place the engine's unit tests can have them
//! recorded instead of made, and say what the order is (`init/order.rs`, `join/order.rs`).

#[cfg(not(test))]
pub(crate) use rustix::{
    io::write,
    mount::{
        fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount,
        open_tree, unmount,
    },
    process::{chdir, chroot, fchdir, pivot_root, set_dumpable_behavior, setrlimit, setsid, umask},
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout},
    system::sethostname,
    thread::{
        capabilities, clear_ambient_capability_set, configure_capability_in_ambient_set,
        move_into_thread_name_spaces, remove_capability_from_bounding_set, sched_setaffinity,
        set_capabilities, set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
        set_thread_res_uid, unshare_unsafe,
    },
};

#[cfg(not(test))]
pub(crate) use super::{
    clone::clone_for_parent,
    close_range::{close_all_but_stdio_and, close_on_exec_all_but_stdio_and},
    execve::execve,
    keyring::begin_session_keyring,
    label::write_label,
    loopback::bring_loopback_up,
    mount_setattr::mount_setattr,
    own_environment::forget as forget_environment,
    seccomp::set_filter,
    signal_disposition::reset_for_exec,
};

#[cfg(test)]
mod order;
#[cfg(test)]
mod recorded;
#[cfg(test)]
pub(crate) use order::Order;
#[cfg(test)]
pub(crate) use recorded::*;
