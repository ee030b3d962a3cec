//! `fwait`: raises a pending x87 exception, and does nothing otherwise. Linux executes it when a task ends.

use crate::completion::cpu::Cpu;
use crate::completion::error::Stop;
use crate::completion::exception::Exception;

const CR0_MONITOR_COPROCESSOR: u64 = 1 << 1;
const CR0_TASK_SWITCHED: u64 = 1 << 3;
const ERROR_SUMMARY: u16 = 1 << 7;

pub(super) fn execute(cpu: &mut Cpu<'_>) -> Result<(), Stop> {
    let lazy = CR0_MONITOR_COPROCESSOR | CR0_TASK_SWITCHED;
    if cpu.sregs.cr0 & lazy == lazy {
        return Err(Stop::Fault(Exception::DEVICE_NOT_AVAILABLE));
    }
    // With CR0.NE clear the error would leave by the FERR# pin of a PC/AT; no 64-bit kernel clears it.
    if cpu.extended.image()?.x87_status() & ERROR_SUMMARY != 0 {
        return Err(Stop::Fault(Exception::X87_ERROR));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::completion::error::Stop;
    use crate::completion::exception::Exception;
    use crate::completion::test_cpu::TestMachine;

    const FWAIT: [u8; 1] = [0x9b];

    #[test]
    fn without_a_pending_error_it_is_skipped() {
        let mut machine = TestMachine::new();
        machine.execute(&FWAIT).unwrap();
        assert_eq!(machine.regs.rip, TestMachine::RIP + 1);
    }

    #[test]
    fn with_a_pending_error_it_raises_the_x87_exception() {
        let mut machine = TestMachine::new();
        machine.extended.image.bytes_mut()[2] = 0x80;
        machine.extended.image.set_components_in_use(1);
        let stop = machine.execute(&FWAIT).unwrap_err();
        assert!(matches!(stop, Stop::Fault(Exception::X87_ERROR)), "{stop:?}");
    }

    #[test]
    fn with_cr0_mp_and_ts_it_raises_device_not_available() {
        let mut machine = TestMachine::new();
        machine.sregs.cr0 |= 0b1010;
        let stop = machine.execute(&FWAIT).unwrap_err();
        assert!(
            matches!(stop, Stop::Fault(Exception::DEVICE_NOT_AVAILABLE)),
            "{stop:?}"
        );
    }
}
