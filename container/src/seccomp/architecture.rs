//! The system call tables of an x86-64 kernel, and how names lead into them.

use oci_spec::runtime::Arch;
use syscalls::{x86, x86_64};

/// A table of system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Architecture {
    X86_64,
    /// 32-bit pointers in 64-bit mode. To the kernel it is x86-64 with a bit in the call's number.
    X32,
    X86,
}

/// What tells x32 calls from those of x86-64 (`__X32_SYSCALL_BIT`).
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// One way to make a call that has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Call {
    /// As the kernel gives it to a filter.
    pub(super) number: u32,
    /// The first argument of a call that stands for several.
    pub(super) selector: Option<u32>,
}

impl Architecture {
    /// The architecture that programs on this machine are made for.
    pub(super) const NATIVE: Architecture = Architecture::X86_64;

    /// The architecture of a profile's word; none for one whose calls this kernel never sees, and about which there is
    /// nothing to decide.
    pub(super) fn named(arch: Arch) -> Option<Architecture> {
        match arch {
            Arch::ScmpArchNative => Some(Architecture::NATIVE),
            Arch::ScmpArchX86_64 => Some(Architecture::X86_64),
            Arch::ScmpArchX32 => Some(Architecture::X32),
            Arch::ScmpArchX86 => Some(Architecture::X86),
            _ => None,
        }
    }

    /// Whether arguments have 32 bits. libseccomp treats x32 so too.
    pub(super) fn is_narrow(self) -> bool {
        self != Architecture::X86_64
    }

    /// The ways to make the call `name`. None where the architecture has no such call.
    ///
    /// Names that no architecture has are left out in the same way, as runc and crun do, whatever the rule says about
    /// them: profiles name the calls of every architecture and of kernels to come, and one that could not be loaded
    /// for that would be of no use. Where the default denies, a call left out is denied. Where the default allows, a
    /// rule against a call newer than our table is lost, as it is lost with every libseccomp older than the call.
    pub(super) fn calls(self, name: &str) -> Vec<Call> {
        let direct = self.number(name).map(|number| Call {
            number,
            selector: None,
        });
        let multiplexed = match self {
            Architecture::X86 => multiplexed(name),
            Architecture::X86_64 | Architecture::X32 => None,
        };
        direct.into_iter().chain(multiplexed).collect()
    }

    fn number(self, name: &str) -> Option<u32> {
        let number = match self {
            Architecture::X86 => name.parse::<x86::Sysno>().ok()?.id().cast_unsigned(),
            Architecture::X86_64 => native_number(name)?,
            Architecture::X32 => X32_BIT | x32_number(name)?,
        };
        Some(number)
    }
}

fn native_number(name: &str) -> Option<u32> {
    Some(name.parse::<x86_64::Sysno>().ok()?.id().cast_unsigned())
}

/// The calls of x32 are those of x86-64, but for some that have their own numbers and some that it never had.
fn x32_number(name: &str) -> Option<u32> {
    if let Some(place) = X32_CALLS.iter().position(|call| *call == name) {
        return Some(X32_FIRST + place as u32);
    }
    if NOT_IN_X32.contains(&name) {
        return None;
    }
    native_number(name)
}

/// Calls that x32 has under numbers of its own, from the first number on, as `syscall_64.tbl` of the kernel lists
/// them.
const X32_CALLS: [&str; 36] = [
    "rt_sigaction",
    "rt_sigreturn",
    "ioctl",
    "readv",
    "writev",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "execve",
    "ptrace",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigqueueinfo",
    "sigaltstack",
    "timer_create",
    "mq_notify",
    "kexec_load",
    "waitid",
    "set_robust_list",
    "get_robust_list",
    "vmsplice",
    "move_pages",
    "preadv",
    "pwritev",
    "rt_tgsigqueueinfo",
    "recvmmsg",
    "sendmmsg",
    "process_vm_readv",
    "process_vm_writev",
    "setsockopt",
    "getsockopt",
    "io_setup",
    "io_submit",
    "execveat",
    "preadv2",
    "pwritev2",
];
const X32_FIRST: u32 = 512;

/// Calls marked `64` in the kernel's table, but for those above.
const NOT_IN_X32: [&str; 12] = [
    "uselib",
    "_sysctl",
    "create_module",
    "get_kernel_syms",
    "query_module",
    "nfsservctl",
    "set_thread_area",
    "get_thread_area",
    "epoll_ctl_old",
    "epoll_wait_old",
    "vserver",
    "uretprobe",
];

/// On x86 sockets and System V IPC were first reached through one call each, whose first argument says which is meant
/// (`<linux/net.h>`, `<linux/ipc.h>`). Such a call hands its arguments over in memory, where a filter cannot look: only
/// the selector can be compared, and libseccomp leaves it at that.
fn multiplexed(name: &str) -> Option<Call> {
    let (number, calls): (_, &[(&str, u32)]) = match SOCKET_CALLS.iter().any(|(call, _)| *call == name) {
        true => (x86::Sysno::socketcall, &SOCKET_CALLS),
        false => (x86::Sysno::ipc, &IPC_CALLS),
    };
    let (_, selector) = calls.iter().find(|(call, _)| *call == name)?;
    Some(Call {
        number: number.id().cast_unsigned(),
        selector: Some(*selector),
    })
}

const SOCKET_CALLS: [(&str, u32); 20] = [
    ("socket", 1),
    ("bind", 2),
    ("connect", 3),
    ("listen", 4),
    ("accept", 5),
    ("getsockname", 6),
    ("getpeername", 7),
    ("socketpair", 8),
    ("send", 9),
    ("recv", 10),
    ("sendto", 11),
    ("recvfrom", 12),
    ("shutdown", 13),
    ("setsockopt", 14),
    ("getsockopt", 15),
    ("sendmsg", 16),
    ("recvmsg", 17),
    ("accept4", 18),
    ("recvmmsg", 19),
    ("sendmmsg", 20),
];

const IPC_CALLS: [(&str, u32); 12] = [
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_has_the_number_of_each_table() {
        let direct =
            |architecture: Architecture, name| architecture.calls(name).first().map(|call| call.number);
        for (name, numbers) in [
            ("read", [Some(0), Some(X32_BIT), Some(3)]),
            ("ioctl", [Some(16), Some(X32_BIT | 514), Some(54)]),
            ("pwritev2", [Some(328), Some(X32_BIT | 547), Some(379)]),
            ("uselib", [Some(134), None, Some(86)]),
            ("openat2", [Some(437), Some(X32_BIT | 437), Some(437)]),
            ("clock_gettime64", [None, None, Some(403)]),
            ("arm_fadvise64_64", [None; 3]),
            ("no_such_call", [None; 3]),
        ] {
            let tables = [Architecture::X86_64, Architecture::X32, Architecture::X86];
            assert_eq!(tables.map(|table| direct(table, name)), numbers, "{name}");
        }
    }

    #[test]
    fn sockets_of_x86_have_two_ways() {
        let calls = |name| {
            let calls = Architecture::X86.calls(name);
            calls
                .iter()
                .map(|call| (call.number, call.selector))
                .collect::<Vec<_>>()
        };
        assert_eq!(calls("socket"), [(359, None), (102, Some(1))]);
        assert_eq!(calls("accept"), [(102, Some(5))]);
        assert_eq!(calls("semop"), [(117, Some(1))]);
        assert_eq!(calls("shmctl"), [(396, None), (117, Some(24))]);
    }
}
