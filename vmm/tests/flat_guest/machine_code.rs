//! Machine code from assembly.

/// The bytes of a program written as lines of Intel-syntax assembly, assembled with the test itself.
#[macro_export]
macro_rules! machine_code {
    ($($line:literal),+ $(,)?) => {{
        let (start, end): (*const u8, *const u8);
        // SAFETY: the lines are jumped over, never executed here; only the addresses around them are taken, and
        // they bound initialised, immutable bytes of this program's text.
        unsafe {
            core::arch::asm!(
                "lea {0}, [rip + 90f]", "lea {1}, [rip + 91f]", "jmp 91f", "90:", $($line,)+ "91:",
                out(reg) start, out(reg) end, options(nomem, nostack, preserves_flags)
            );
            core::slice::from_raw_parts(start, end.offset_from(start) as usize)
        }
    }};
}
