//! Whether an exception can reach the guest: its way through the IDT (SDM volume 3, 6.14 and table 6-5).
//!
//! KVM pushes the frame and enters the handler. What is decided here is what it may not be asked for: an exception
//! whose gate is missing turns into another one, and at the end of that road is the triple fault.

use kvm_bindings::kvm_sregs;

use super::error::{Cause, Stop};
use super::exception::{DOUBLE_FAULT, Exception, PAGE_FAULT};
use super::linear_memory::{Access, LinearMemory};

const GATE_BYTES: u64 = 16;
/// Error code bits: the index refers to the IDT; the event was not caused by an `int` instruction of the program.
const IDT: u32 = 1 << 1;
const EXTERNAL: u32 = 1;

/// What becomes of an instruction's exception.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// There is none.
    None,
    /// KVM shall inject this one.
    Inject(Exception),
    /// The guest can receive neither it nor the double fault.
    TripleFault,
}

/// Follows `exception` to the first gate that can take it. Stops with [`Stop::Again`] or [`Stop::Failed`] only.
pub(super) fn deliver(
    exception: Exception,
    sregs: &kvm_sregs,
    memory: &mut LinearMemory<'_>,
) -> Result<Delivery, Stop> {
    let mut current = exception;
    // int3 is an instruction of the program: it obeys the gate's privilege level and does not set EXTERNAL.
    let mut by_program = exception == Exception::BREAKPOINT;
    loop {
        let raised = match check_gate(current, by_program, sregs, memory) {
            Ok(()) => return Ok(Delivery::Inject(current)),
            Err(Stop::Fault(raised) | Stop::Trap(raised)) => raised,
            // The IDT is not in memory: the processor would read all ones there, which is no gate.
            Err(Stop::Failed(Cause::NotMemory(_))) => gate_fault(current.vector, by_program),
            Err(stop @ (Stop::Failed(_) | Stop::Again)) => return Err(stop),
        };
        current = match combine(current, raised) {
            Some(next) => next,
            None => return Ok(Delivery::TripleFault),
        };
        by_program = false;
    }
}

fn check_gate(
    exception: Exception,
    by_program: bool,
    sregs: &kvm_sregs,
    memory: &mut LinearMemory<'_>,
) -> Result<(), Stop> {
    let unusable = || Stop::Fault(gate_fault(exception.vector, by_program));
    let offset = u64::from(exception.vector) * GATE_BYTES;
    if offset + GATE_BYTES - 1 > u64::from(sregs.idt.limit) {
        return Err(unusable());
    }
    let mut gate = [0; 8];
    memory.read_as(Access::System, sregs.idt.base.wrapping_add(offset), &mut gate)?;
    let attributes = gate[5];
    let (kind, privilege, present) = (attributes & 0x1f, attributes >> 5 & 3, attributes & 0x80 != 0);
    let is_interrupt_or_trap_gate = matches!(kind, 0xe | 0xf);
    if !is_interrupt_or_trap_gate || by_program && privilege < sregs.ss.dpl {
        return Err(unusable());
    }
    if !present {
        let Exception { error_code, .. } = gate_fault(exception.vector, by_program);
        return Err(Stop::Fault(Exception::segment_not_present(
            error_code.unwrap_or(0),
        )));
    }
    Ok(())
}

fn gate_fault(vector: u8, by_program: bool) -> Exception {
    let external = if by_program { 0 } else { EXTERNAL };
    Exception::general_protection(u32::from(vector) << 3 | IDT | external)
}

/// What two exceptions in a row amount to; `None` is the triple fault.
fn combine(first: Exception, second: Exception) -> Option<Exception> {
    let contributory = |vector| matches!(vector, 0 | 10..=13);
    match (first.vector, second.vector) {
        (DOUBLE_FAULT, _) => None,
        (PAGE_FAULT, next) if next == PAGE_FAULT || contributory(next) => Some(Exception::DOUBLE),
        (first, next) if contributory(first) && contributory(next) => Some(Exception::DOUBLE),
        _ => Some(second),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::completion::test_cpu::TestMachine;

    /// A machine whose IDT, at linear address 0x3000, has `limit` and present interrupt gates for `vectors`.
    fn machine_with_gates(limit: u16, vectors: &[u8]) -> TestMachine {
        let mut machine = TestMachine::new();
        machine.sregs.idt.base = 0x3000;
        machine.sregs.idt.limit = limit;
        for vector in vectors {
            machine.write(0x3000 + u64::from(*vector) * 16, &[0, 0, 8, 0, 0, 0x8e, 0, 0]);
        }
        machine
    }

    fn delivered(machine: &TestMachine, exception: Exception) -> Delivery {
        deliver(exception, &machine.sregs, &mut machine.linear_memory()).unwrap()
    }

    #[test]
    fn an_exception_with_a_gate_is_injected() {
        let machine = machine_with_gates(0xfff, &[3]);
        assert_eq!(
            delivered(&machine, Exception::BREAKPOINT),
            Delivery::Inject(Exception::BREAKPOINT)
        );
    }

    #[test]
    fn an_empty_idt_is_a_triple_fault() {
        let machine = machine_with_gates(0, &[3, 8, 13]);
        assert_eq!(delivered(&machine, Exception::BREAKPOINT), Delivery::TripleFault);
        assert_eq!(
            delivered(&machine, Exception::INVALID_OPCODE),
            Delivery::TripleFault
        );
        assert_eq!(
            delivered(&machine, Exception::page_fault(0, 0)),
            Delivery::TripleFault
        );
    }

    #[test]
    fn an_idt_on_an_unmapped_page_is_a_triple_fault() {
        let mut machine = machine_with_gates(0xfff, &[]);
        machine.sregs.idt.base = machine.unmapped();
        assert_eq!(delivered(&machine, Exception::BREAKPOINT), Delivery::TripleFault);
    }

    #[test]
    fn an_idt_outside_memory_is_a_triple_fault() {
        let mut machine = machine_with_gates(0xfff, &[]);
        machine.sregs.idt.base = machine.mapped_outside_memory();
        assert_eq!(delivered(&machine, Exception::BREAKPOINT), Delivery::TripleFault);
    }

    #[test]
    fn a_breakpoint_without_a_gate_becomes_general_protection_naming_the_vector() {
        let machine = machine_with_gates(0xfff, &[13]);
        let expected = Exception::general_protection(3 << 3 | 2);
        assert_eq!(
            delivered(&machine, Exception::BREAKPOINT),
            Delivery::Inject(expected)
        );
    }

    #[test]
    fn a_fault_without_a_gate_says_that_no_int_instruction_caused_it() {
        let machine = machine_with_gates(0xfff, &[13]);
        let expected = Exception::general_protection(6 << 3 | 2 | 1);
        assert_eq!(
            delivered(&machine, Exception::INVALID_OPCODE),
            Delivery::Inject(expected)
        );
    }

    #[test]
    fn a_page_fault_without_a_gate_becomes_a_double_fault() {
        let machine = machine_with_gates(0xfff, &[8, 13]);
        assert_eq!(
            delivered(&machine, Exception::page_fault(0, 0)),
            Delivery::Inject(Exception::DOUBLE)
        );
    }

    #[test]
    fn a_gate_that_is_not_present_is_segment_not_present() {
        let machine = machine_with_gates(0xfff, &[11]);
        machine.write(0x3000 + 6 * 16, &[0, 0, 8, 0, 0, 0x0e, 0, 0]);
        let expected = Exception::segment_not_present(6 << 3 | 2 | 1);
        assert_eq!(
            delivered(&machine, Exception::INVALID_OPCODE),
            Delivery::Inject(expected)
        );
    }

    #[test]
    fn a_breakpoint_of_user_mode_through_a_kernel_gate_is_general_protection() {
        let mut machine = machine_with_gates(0xfff, &[3, 13]);
        machine.sregs.ss.dpl = 3;
        let expected = Exception::general_protection(3 << 3 | 2);
        assert_eq!(
            delivered(&machine, Exception::BREAKPOINT),
            Delivery::Inject(expected)
        );
    }
}
