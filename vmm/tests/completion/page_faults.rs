//! Page faults of operands: CR2, error code, and that the instruction can be executed again.

use vmm::completion::Mnemonic;

use crate::flat_guest::{CODE, DATA, FlatGuest, PRESENT, Stop, Trap, USER, WRITABLE, kvm_or_skip};
use crate::machine_code;
use crate::runner::{Run, run};

const CR0_WRITE_PROTECT: u64 = 1 << 16;
const CR4_SMAP: u64 = 1 << 21;

fn xsave_guest(test: &str) -> Option<FlatGuest> {
    let kvm = kvm_or_skip(test)?;
    let guest = FlatGuest::new(&kvm, machine_code!("xsave64 [rdi]", "out 0xf4, al"));
    guest.set_regs(|regs| (regs.rdi, regs.rax, regs.rdx) = (DATA, 7, 0));
    Some(guest)
}

#[track_caller]
fn page_fault(run: &Run) -> (u64, u64) {
    match &run.stop {
        Stop::Exception(Trap {
            vector: 14,
            error_code,
            cr2,
            rip: CODE,
            ..
        }) => (*error_code, *cr2),
        other => panic!("{other:?}"),
    }
}

#[test]
fn xsave_to_an_unmapped_page_faults_as_a_write() {
    let Some(mut guest) = xsave_guest("xsave to an unmapped page") else {
        return;
    };
    guest.set_page(DATA, 0);
    let run = run(&mut guest);
    run.assert_completed(Mnemonic::Xsave64);
    assert_eq!(page_fault(&run), (2, DATA));
}

#[test]
fn xsave_that_reaches_an_unmapped_page_faults_at_its_start() {
    let Some(mut guest) = xsave_guest("xsave that reaches an unmapped page") else {
        return;
    };
    guest.set_page(DATA + 0x1000, 0);
    guest.set_regs(|regs| regs.rdi = DATA + 0x1000 - 576);
    assert_eq!(page_fault(&run(&mut guest)), (2, DATA + 0x1000));
}

#[test]
fn xsave_to_a_read_only_page_faults_only_with_write_protection() {
    let Some(mut guest) = xsave_guest("xsave to a read-only page") else {
        return;
    };
    guest.set_page(DATA, DATA | PRESENT);
    assert_eq!(page_fault(&run(&mut guest)), (3, DATA));

    let Some(mut guest) = xsave_guest("xsave to a read-only page") else {
        return;
    };
    guest.set_page(DATA, DATA | PRESENT);
    guest.set_sregs(|sregs| sregs.cr0 &= !CR0_WRITE_PROTECT);
    run(&mut guest).assert_finished_completing(Mnemonic::Xsave64);
}

#[test]
fn xsave_to_a_user_page_under_smap_faults_until_stac() {
    let Some(kvm) = kvm_or_skip("xsave under SMAP") else {
        return;
    };
    let user_page = DATA | PRESENT | WRITABLE | USER;
    let guest_with = |code| {
        let guest = FlatGuest::new(&kvm, code);
        guest.set_regs(|regs| (regs.rdi, regs.rax, regs.rdx) = (DATA, 7, 0));
        guest.set_page(DATA, user_page);
        guest.set_sregs(|sregs| sregs.cr4 |= CR4_SMAP);
        guest
    };
    let mut without = guest_with(machine_code!("xsave64 [rdi]", "out 0xf4, al"));
    assert_eq!(page_fault(&run(&mut without)), (3, DATA));
    let mut with = guest_with(machine_code!("stac", "xsave64 [rdi]", "clac", "out 0xf4, al"));
    run(&mut with).assert_finished_completing(Mnemonic::Xsave64);
}

#[test]
fn xrstor_from_an_unmapped_page_faults_as_a_read() {
    let Some(kvm) = kvm_or_skip("xrstor from an unmapped page") else {
        return;
    };
    let mut guest = FlatGuest::new(&kvm, machine_code!("xrstor64 [rdi]", "out 0xf4, al"));
    guest.set_page(DATA, 0);
    guest.set_regs(|regs| (regs.rdi, regs.rax, regs.rdx) = (DATA, 7, 0));
    let run = run(&mut guest);
    run.assert_completed(Mnemonic::Xrstor64);
    let (error_code, cr2) = page_fault(&run);
    // Which of the area's bytes is read first is the processor's choice.
    assert_eq!((error_code, cr2 & !0xfff), (0, DATA));
}

#[test]
fn popcnt_of_an_unmapped_page_faults_at_the_operand() {
    let Some(kvm) = kvm_or_skip("popcnt of an unmapped page") else {
        return;
    };
    let mut guest = FlatGuest::new(&kvm, machine_code!("popcnt rax, [rdi]", "out 0xf4, al"));
    guest.set_page(DATA, 0);
    guest.set_regs(|regs| regs.rdi = DATA + 0x128);
    assert_eq!(page_fault(&run(&mut guest)), (0, DATA + 0x128));
}

/// A signal frame on a fresh stack page.
#[test]
fn xsave_is_executed_again_after_the_handler_provided_the_page() {
    let Some(mut guest) = xsave_guest("xsave, fault, xsave") else {
        return;
    };
    let handler = DATA + 0x8000;
    // Writes the missing page table entry, whose address is in R8 and whose value is in R9.
    guest.write(
        handler,
        machine_code!(
            "add rsp, 8",
            "mov [r8], r9",
            "mov r10, cr2",
            "invlpg [r10]",
            "inc r11",
            "iretq"
        ),
    );
    guest.set_gate(14, handler);
    guest.set_page(DATA, 0);
    guest.set_regs(|regs| {
        regs.r8 = 0x4000 + (DATA >> 12) * 8;
        regs.r9 = (DATA + 0x5000) | PRESENT | WRITABLE;
        regs.r11 = 0;
    });
    guest.write(DATA + 0x5000, &[0xee; 576]);
    run(&mut guest).assert_finished_completing(Mnemonic::Xsave64);
    assert_eq!(guest.regs().r11, 1);
    assert_ne!(guest.read::<2>(DATA + 0x5000), [0xee; 2], "the x87 control word");
}

#[test]
fn the_operands_page_is_marked_accessed_and_dirty() {
    let Some(mut guest) = xsave_guest("accessed and dirty flags") else {
        return;
    };
    run(&mut guest).assert_finished_completing(Mnemonic::Xsave64);
    let (accessed, dirty) = (1 << 5, 1 << 6);
    assert_eq!(guest.page(DATA) & (accessed | dirty), accessed | dirty);
}
