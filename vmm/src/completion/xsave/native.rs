//! The processor's own XSAVE family, for tests to compare with: user mode may execute all but XSAVES and XRSTORS.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::fmt;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use super::layout::XsaveLayout;

/// An area in this process's memory.
#[derive(Clone, PartialEq)]
#[repr(align(64))]
pub(super) struct NativeArea(pub(super) [u8; 4096]);

impl fmt::Debug for NativeArea {
    /// The header and MXCSR: the rest is noise, but for what a failed comparison names.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "area with MXCSR {:02x?} and header {:02x?}",
            &self.0[24..28],
            &self.0[512..576]
        )
    }
}

impl NativeArea {
    pub(super) fn new() -> NativeArea {
        NativeArea([0; 4096])
    }
}

/// The layout of the processor we run on; `None`, said loudly, if it or its kernel has no XSAVEC.
pub(super) fn layout_or_skip(test: &str) -> Option<XsaveLayout> {
    if !is_x86_feature_detected!("xsavec") || !is_x86_feature_detected!("xsaveopt") {
        eprintln!("SKIPPED {test}: this processor has no XSAVEC and XSAVEOPT; nothing was tested");
        return None;
    }
    let leaves: Vec<kvm_cpuid_entry2> = (0..63)
        .map(|index| {
            let leaf = __cpuid_count(0xd, index);
            let (eax, ebx, ecx, edx) = (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx);
            kvm_cpuid_entry2 {
                function: 0xd,
                index,
                eax,
                ebx,
                ecx,
                edx,
                ..Default::default()
            }
        })
        .map(|leaf| match leaf.index {
            // Not AMX, which a process has to ask for, and not PKRU, which would lock the test out of its own memory.
            0 => kvm_cpuid_entry2 {
                eax: leaf.eax & 0xff,
                edx: 0,
                ..leaf
            },
            _ => leaf,
        })
        .collect();
    Some(XsaveLayout::from_cpuid(&CpuId::from_entries(&leaves).unwrap()).unwrap())
}

/// How often the processor is asked again when the kernel took it away in between. Each time is a few instructions long.
const ATTEMPTS: usize = 1000;

/// `$save [area]` and `xrstor64 [state]` with all registers as they were afterwards.
macro_rules! save_with {
    ($name:ident, $instruction:literal) => {
        /// Loads `state`, gives all of it as `image`, and executes the instruction on `area`.
        ///
        /// A kernel that switches to another task meanwhile may come back with less: components that hold their initial
        /// values as not in use, and on AMD without the x87 pointers. So the state is saved once more afterwards, and all
        /// is done again where it has changed.
        pub(super) fn $name(
            state: &NativeArea,
            components: u64,
            image: &mut NativeArea,
            area: &mut NativeArea,
        ) {
            let before = area.clone();
            for _ in 0..ATTEMPTS {
                *area = before.clone();
                let (mut own, mut after) = (NativeArea::new(), NativeArea::new());
                // SAFETY: every area is aligned and larger than all components; extended state is restored at the end,
                // and no compiler-generated code runs in between.
                unsafe {
                    asm!(
                        "mov eax, 0xff", "xor edx, edx", "xsave64 [{own}]", "xrstor64 [{state}]",
                        "xsave64 [{image}]",
                        "mov eax, {low:e}", "mov edx, {high:e}",
                        concat!($instruction, " [{area}]"),
                        "mov eax, 0xff", "xor edx, edx", "xsave64 [{after}]", "xrstor64 [{own}]",
                        own = in(reg) own.0.as_mut_ptr(), state = in(reg) state.0.as_ptr(),
                        image = in(reg) image.0.as_mut_ptr(), area = in(reg) area.0.as_mut_ptr(),
                        after = in(reg) after.0.as_mut_ptr(),
                        low = in(reg) components as u32, high = in(reg) (components >> 32) as u32,
                        out("rax") _, out("rdx") _, options(nostack)
                    )
                }
                if after == *image {
                    return;
                }
            }
            panic!("a state that nobody changed was another in each of {ATTEMPTS} attempts");
        }
    };
}

save_with!(xsave64, "xsave64");
save_with!(xsaveopt64, "xsaveopt64");
save_with!(xsavec64, "xsavec64");
save_with!(xsave, "xsave");
save_with!(xsavec, "xsavec");

macro_rules! restore_with {
    ($name:ident, $instruction:literal) => {
        /// Loads `state`, executes the instruction on `area` and gives all of the result: the one that came twice in a row,
        /// for the reason that a state is saved twice.
        pub(super) fn $name(state: &NativeArea, components: u64, area: &NativeArea) -> NativeArea {
            let once = || {
                let mut own = NativeArea::new();
                let mut result = NativeArea::new();
                // SAFETY: as above. An area that the processor refuses ends the process: callers offer none.
                unsafe {
                    asm!(
                        "mov eax, 0xff", "xor edx, edx", "xsave64 [{own}]", "xrstor64 [{state}]",
                        "mov eax, {low:e}", "mov edx, {high:e}",
                        concat!($instruction, " [{area}]"),
                        "mov eax, 0xff", "xor edx, edx", "xsave64 [{result}]", "xrstor64 [{own}]",
                        own = in(reg) own.0.as_mut_ptr(), state = in(reg) state.0.as_ptr(),
                        area = in(reg) area.0.as_ptr(), result = in(reg) result.0.as_mut_ptr(),
                        low = in(reg) components as u32, high = in(reg) (components >> 32) as u32,
                        out("rax") _, out("rdx") _, options(nostack)
                    )
                }
                result
            };
            let mut last = once();
            for _ in 0..ATTEMPTS {
                let result = once();
                if result == last {
                    return result;
                }
                last = result;
            }
            panic!("the same area was restored to another state in each of {ATTEMPTS} attempts");
        }
    };
}

restore_with!(xrstor64, "xrstor64");
restore_with!(xrstor, "xrstor");

/// Whether the processor accepts `area`: a child process tries, and dies of #GP if not.
pub(super) fn xrstor64_accepts(components: u64, area: &NativeArea) -> bool {
    // SAFETY: the child executes one instruction and leaves by _exit: nothing that needs a lock.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork: {}", std::io::Error::last_os_error());
    if child == 0 {
        // SAFETY: extended state of this child matters to nobody. The default action of SIGSEGV replaces the test
        // runtime's, which would print.
        unsafe {
            libc::signal(libc::SIGSEGV, libc::SIG_DFL);
            asm!(
                "xrstor64 [{area}]", area = in(reg) area.0.as_ptr(),
                in("eax") components as u32, in("edx") (components >> 32) as u32, options(nostack)
            );
            libc::_exit(0);
        }
    }
    let mut status = 0;
    // SAFETY: waits for the child made above.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(waited, child);
    let refused = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV;
    assert!(
        refused || libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
        "child ended with {status:#x}"
    );
    !refused
}
