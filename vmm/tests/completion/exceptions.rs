//! Exceptions that instructions raise, delivered through the guest's IDT or not at all.

use vmm::completion::Mnemonic;

use crate::flat_guest::{CODE, DATA, FlatGuest, Stop, kvm_or_skip};
use crate::machine_code;
use crate::runner::run;

#[test]
fn int3_is_delivered_as_a_breakpoint_behind_itself() {
    let Some(kvm) = kvm_or_skip("int3") else { return };
    let mut guest = FlatGuest::new(&kvm, machine_code!("nop", "int3", "out 0xf4, al"));
    let run = run(&mut guest);
    run.assert_completed(Mnemonic::Int3);
    let Stop::Exception(trap) = run.stop else {
        panic!("{:?}", run.stop)
    };
    assert_eq!((trap.vector, trap.rip), (3, CODE + 2));
    assert_eq!(trap.rflags & 1 << 16, 0, "a trap does not set RFLAGS.RF");
}

#[test]
fn a_breakpoint_handler_returns_behind_the_instruction() {
    let Some(kvm) = kvm_or_skip("int3 and iretq") else {
        return;
    };
    let mut guest = FlatGuest::new(
        &kvm,
        machine_code!("int3", "inc eax", "int3", "inc eax", "out 0xf4, al"),
    );
    let handler = DATA;
    guest.write(handler, machine_code!("add eax, 16", "iretq"));
    guest.set_gate(3, handler);
    guest.set_regs(|regs| regs.rax = 0);
    let run = run(&mut guest);
    assert_eq!(run.stop, Stop::Finished(34));
}

#[test]
fn ud2_is_delivered_as_an_invalid_opcode_at_itself() {
    let Some(kvm) = kvm_or_skip("ud2") else { return };
    let mut guest = FlatGuest::new(&kvm, machine_code!("nop", "ud2", "out 0xf4, al"));
    let Stop::Exception(trap) = run(&mut guest).stop else {
        panic!("no exception")
    };
    assert_eq!((trap.vector, trap.rip), (6, CODE + 1));
}

#[test]
fn ud1_is_delivered_as_an_invalid_opcode_at_itself() {
    let Some(kvm) = kvm_or_skip("ud1") else { return };
    let mut guest = FlatGuest::new(&kvm, machine_code!("nop", "ud1 eax, eax", "out 0xf4, al"));
    let run = run(&mut guest);
    run.assert_completed(Mnemonic::Ud1);
    let Stop::Exception(trap) = run.stop else {
        panic!("{:?}", run.stop)
    };
    assert_eq!((trap.vector, trap.rip), (6, CODE + 1));
    assert_ne!(trap.rflags & 1 << 16, 0, "a fault sets RFLAGS.RF");
}

/// What Linux does for `reboot=t`.
#[test]
fn int3_after_loading_an_empty_idt_is_a_triple_fault() {
    let Some(kvm) = kvm_or_skip("int3 with an empty IDT") else {
        return;
    };
    let code = machine_code!("push 0", "push 0", "lidt [rsp]", "int3", "out 0xf4, al");
    let run = run(&mut FlatGuest::new(&kvm, code));
    run.assert_completed(Mnemonic::Int3);
    assert_eq!(run.stop, Stop::Shutdown);
}

#[test]
fn ud2_after_loading_an_empty_idt_is_a_triple_fault() {
    let Some(kvm) = kvm_or_skip("ud2 with an empty IDT") else {
        return;
    };
    let code = machine_code!("push 0", "push 0", "lidt [rsp]", "ud2", "out 0xf4, al");
    assert_eq!(run(&mut FlatGuest::new(&kvm, code)).stop, Stop::Shutdown);
}

#[test]
fn int3_with_the_idt_on_an_unmapped_page_is_a_triple_fault() {
    let Some(kvm) = kvm_or_skip("int3 with an unmapped IDT") else {
        return;
    };
    let mut guest = FlatGuest::new(&kvm, machine_code!("int3", "out 0xf4, al"));
    guest.set_page(DATA, 0);
    guest.set_sregs(|sregs| sregs.idt.base = DATA);
    let run = run(&mut guest);
    run.assert_completed(Mnemonic::Int3);
    assert_eq!(run.stop, Stop::Shutdown);
}

#[test]
fn int3_behind_the_end_of_the_idt_is_a_double_fault() {
    let Some(kvm) = kvm_or_skip("int3 behind the end of the IDT") else {
        return;
    };
    let mut guest = FlatGuest::new(&kvm, machine_code!("int3", "out 0xf4, al"));
    // Vectors 0 to 8. #BP's gate is damaged; #GP, which that raises, has none.
    guest.set_sregs(|sregs| sregs.idt.limit = 9 * 16 - 1);
    guest.write(0x6000 + 3 * 16, &[0; 16]);
    let run = run(&mut guest);
    let Stop::Exception(trap) = run.stop else {
        panic!("{:?}", run.stop)
    };
    assert_eq!((trap.vector, trap.error_code), (8, 0));
}

#[test]
fn a_single_stepped_instruction_traps_behind_itself() {
    let Some(kvm) = kvm_or_skip("single step") else {
        return;
    };
    let code = machine_code!(
        "pushfq",
        "or dword ptr [rsp], 0x100",
        "popfq",
        "popcnt eax, ebx",
        "5:",
        "nop",
        "out 0xf4, al",
    );
    let behind_popcnt = CODE + code.len() as u64 - 3;
    let mut guest = FlatGuest::new(&kvm, code);
    let run = run(&mut guest);
    run.assert_completed(Mnemonic::Popcnt);
    let Stop::Exception(trap) = run.stop else {
        panic!("{:?}", run.stop)
    };
    assert_eq!((trap.vector, trap.rip), (1, behind_popcnt));
    assert_ne!(guest.vcpu.get_debug_regs().unwrap().dr6 & 1 << 14, 0, "DR6.BS");
}
