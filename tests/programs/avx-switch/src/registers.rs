//! The vector registers of this thread, around one system call.

use std::arch::asm;
use std::mem::offset_of;

/// How many vector registers there are at most, and mask registers.
pub(crate) const VECTORS: usize = 32;
pub(crate) const MASKS: usize = 8;

/// The registers, as far as the processor has them. A narrower register uses the beginning of its place.
#[derive(Clone, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub(crate) struct Registers {
    pub(crate) vectors: [[u64; 8]; VECTORS],
    pub(crate) masks: [u64; MASKS],
    pub(crate) mxcsr: u32,
    /// MXCSR of the program itself, meanwhile.
    own_mxcsr: u32,
}

/// Which registers there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VectorUnit {
    /// 16 registers of 256 bits.
    Avx,
    /// 32 registers of 512 bits, and 8 mask registers.
    Avx512,
}

impl VectorUnit {
    /// `None` without AVX.
    pub(crate) fn of_this_processor() -> Option<VectorUnit> {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
            Some(VectorUnit::Avx512)
        } else if is_x86_feature_detected!("avx") {
            Some(VectorUnit::Avx)
        } else {
            None
        }
    }

    /// How many vector registers, and how many 64-bit lanes of each.
    pub(crate) fn shape(self) -> (usize, usize) {
        match self {
            VectorUnit::Avx => (16, 4),
            VectorUnit::Avx512 => (VECTORS, 8),
        }
    }

    /// How many mask registers.
    pub(crate) fn masks(self) -> usize {
        match self {
            VectorUnit::Avx => 0,
            VectorUnit::Avx512 => MASKS,
        }
    }

    /// Loads `before` into the registers, makes the system call, and stores the registers in `after`. No other code of
    /// this process runs in between. Gives what the call returned, an error as a negative number.
    pub(crate) fn system_call(
        self,
        before: &Registers,
        after: &mut Registers,
        call: i64,
        arguments: [u64; 3],
    ) -> i64 {
        match self {
            VectorUnit::Avx => system_call_with_avx(before, after, call, arguments),
            VectorUnit::Avx512 => system_call_with_avx512(before, after, call, arguments),
        }
    }
}

/// One register after another by the assembler's own loop. R8 and R9 survive a system call.
macro_rules! system_call_between {
    ($name:ident, $load:expr, $store:expr) => {
        fn $name(before: &Registers, after: &mut Registers, call: i64, arguments: [u64; 3]) -> i64 {
            let result;
            let [first, second, third] = arguments;
            // SAFETY: loads and stores stay within the two structures, whose layout is fixed. The callers' system calls
            // write no memory but the token, which they pass by raw pointer. All vector registers are declared as
            // changed, and MXCSR is put back.
            unsafe {
                asm!(
                    "stmxcsr [r9 + {own_mxcsr}]",
                    "ldmxcsr [r8 + {mxcsr}]",
                    $load,
                    "syscall",
                    $store,
                    "stmxcsr [r9 + {mxcsr}]",
                    "ldmxcsr [r9 + {own_mxcsr}]",
                    "vzeroupper",
                    mxcsr = const offset_of!(Registers, mxcsr),
                    own_mxcsr = const offset_of!(Registers, own_mxcsr),
                    masks = const offset_of!(Registers, masks),
                    in("r8") &raw const *before, in("r9") &raw mut *after,
                    inlateout("rax") call => result,
                    in("rdi") first, in("rsi") second, in("rdx") third,
                    clobber_abi("sysv64"), options(nostack)
                );
            }
            result
        }
    };
}

system_call_between!(
    system_call_with_avx,
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
         vmovdqu ymm\\n, [r8 + 64 * \\n]
     .endr
     # {masks}: there are none",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
         vmovdqu [r9 + 64 * \\n], ymm\\n
     .endr"
);

system_call_between!(
    system_call_with_avx512,
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
         vmovdqu64 zmm\\n, [r8 + 64 * \\n]
     .endr
     .irp n,0,1,2,3,4,5,6,7
         kmovq k\\n, [r8 + {masks} + 8 * \\n]
     .endr",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
         vmovdqu64 [r9 + 64 * \\n], zmm\\n
     .endr
     .irp n,0,1,2,3,4,5,6,7
         kmovq [r9 + {masks} + 8 * \\n], k\\n
     .endr"
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::{difference, pattern};

    #[test]
    fn registers_survive_a_system_call_that_does_not_switch() {
        let Some(unit) = VectorUnit::of_this_processor() else {
            eprintln!("SKIPPED: this processor has no AVX; nothing was tested");
            return;
        };
        let (before, mut after) = (pattern(1, 2, unit), Registers::default());
        let pid = unit.system_call(&before, &mut after, libc::SYS_getpid, [0; 3]);
        assert_eq!(pid, i64::from(std::process::id()));
        assert!(difference(&before, &after, unit).is_none());
        assert_eq!(after.mxcsr, before.mxcsr);
    }
}
