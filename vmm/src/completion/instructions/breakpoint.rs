//! Instructions that exist to raise an exception: `int3`, and `ud0`, `ud1`, `ud2`.
//!
//! Linux uses `int3` to patch its own code and, with an empty IDT, to reset the machine; `ud1` and `ud2` are its WARN
//! and BUG.

use crate::completion::error::Stop;
use crate::completion::exception::Exception;

/// #BP: the saved RIP is behind the instruction.
pub(super) fn breakpoint() -> Stop {
    Stop::Trap(Exception::BREAKPOINT)
}

/// #UD: the saved RIP is the instruction's own.
pub(super) fn invalid_opcode() -> Stop {
    Stop::Fault(Exception::INVALID_OPCODE)
}

#[cfg(test)]
mod tests {
    use crate::completion::error::Stop;
    use crate::completion::exception::Exception;
    use crate::completion::test_cpu::TestMachine;

    #[test]
    fn int3_is_a_breakpoint_trap_behind_itself() {
        let mut machine = TestMachine::new();
        let stop = machine.execute(&[0xcc]).unwrap_err();
        assert!(matches!(stop, Stop::Trap(Exception::BREAKPOINT)), "{stop:?}");
        assert_eq!(machine.regs.rip, TestMachine::RIP + 1);
    }

    #[test]
    fn ud0_ud1_and_ud2_are_invalid_opcode_faults() {
        for bytes in [&[0x0f, 0xff, 0xc0][..], &[0x0f, 0xb9, 0xc0], &[0x0f, 0x0b]] {
            let stop = TestMachine::new().execute(bytes).unwrap_err();
            assert!(
                matches!(stop, Stop::Fault(Exception::INVALID_OPCODE)),
                "{bytes:02x?}: {stop:?}"
            );
        }
    }

    #[test]
    fn a_lock_prefix_where_none_is_allowed_is_invalid_opcode() {
        let stop = TestMachine::new().execute(&[0xf0, 0x0f, 0xae, 0x27]).unwrap_err();
        assert!(matches!(stop, Stop::Fault(Exception::INVALID_OPCODE)), "{stop:?}");
    }
}
