//! Instructions on general registers and memory.

use vmm::completion::{Completer, EmulationFailure, InstructionBytes, Mnemonic};

use crate::flat_guest::{CODE, DATA, FlatGuest, Stop, kvm_or_skip};
use crate::machine_code;
use crate::runner::{kvm_is_pvm, run, run_with};

#[test]
fn popcnt_of_a_register_counts_and_clears_the_upper_half() {
    let Some(kvm) = kvm_or_skip("popcnt of a register") else {
        return;
    };
    let mut guest = FlatGuest::new(&kvm, machine_code!("popcnt eax, ebx", "out 0xf4, al"));
    guest.set_regs(|regs| (regs.rax, regs.rbx) = (u64::MAX, 0xf_0000_00ff));
    run(&mut guest).assert_finished_completing(Mnemonic::Popcnt);
    assert_eq!(guest.regs().rax, 8);
}

#[test]
fn popcnt_of_memory_across_two_pages_reads_both() {
    let Some(kvm) = kvm_or_skip("popcnt of memory") else {
        return;
    };
    let mut guest = FlatGuest::new(
        &kvm,
        machine_code!("popcnt rax, [rdi + rcx * 8 + 4]", "out 0xf4, al"),
    );
    // The second page lies elsewhere in physical memory.
    guest.set_page(DATA + 0x1000, (DATA + 0x5000) | 3);
    guest.write(DATA + 0xffc, &[0xff; 4]);
    guest.write(DATA + 0x5000, &[1, 1, 1, 1]);
    guest.set_regs(|regs| (regs.rdi, regs.rcx) = (DATA + 0xff0, 1));
    run(&mut guest).assert_finished_completing(Mnemonic::Popcnt);
    assert_eq!(guest.regs().rax, 36);
}

#[test]
fn popcnt_through_a_2_mib_page_reads_it() {
    let Some(kvm) = kvm_or_skip("popcnt through a large page") else {
        return;
    };
    let mut guest = FlatGuest::new(&kvm, machine_code!("popcnt rax, [0x312340]", "out 0xf4, al"));
    guest.write(0x31_2340, &[0xff; 8]);
    run(&mut guest).assert_finished_completing(Mnemonic::Popcnt);
    assert_eq!(guest.regs().rax, 64);
}

#[test]
fn bytes_that_kvm_did_not_hand_over_are_fetched() {
    let Some(kvm) = kvm_or_skip("fetching an instruction") else {
        return;
    };
    let mut guest = FlatGuest::new(&kvm, machine_code!("popcnt rax, rbx", "out 0xf4, al"));
    guest.set_regs(|regs| regs.rbx = 7);
    let nothing = |_| EmulationFailure {
        bytes: InstructionBytes::default(),
    };
    run_with(&mut guest, nothing).assert_finished_completing(Mnemonic::Popcnt);
    assert_eq!(guest.regs().rax, 3);
}

#[test]
fn bytes_that_kvm_handed_over_in_part_are_fetched() {
    let Some(kvm) = kvm_or_skip("fetching the rest of an instruction") else {
        return;
    };
    let mut guest = FlatGuest::new(&kvm, machine_code!("popcnt rax, rbx", "out 0xf4, al"));
    guest.set_regs(|regs| regs.rbx = 7);
    let half = |failure: EmulationFailure| EmulationFailure {
        bytes: failure.bytes.as_slice().iter().take(3).copied().collect(),
    };
    run_with(&mut guest, half).assert_finished_completing(Mnemonic::Popcnt);
    assert_eq!(guest.regs().rax, 3);
}

#[test]
fn lock_cmpxchg16b_exchanges() {
    let Some(kvm) = kvm_or_skip("cmpxchg16b") else {
        return;
    };
    let mut guest = FlatGuest::new(
        &kvm,
        machine_code!("lock cmpxchg16b [rdi]", "sete al", "out 0xf4, al"),
    );
    guest.write(DATA, &(3_u128 << 64 | 4).to_le_bytes());
    guest.set_regs(|regs| {
        (regs.rdi, regs.rdx, regs.rax, regs.rcx, regs.rbx) = (DATA, 3, 4, 5, 6);
    });
    let run = run(&mut guest);
    run.assert_completed(Mnemonic::Cmpxchg16b);
    assert_eq!(run.stop, Stop::Finished(1));
    assert_eq!(guest.read(DATA), (5_u128 << 64 | 6).to_le_bytes());
}

#[test]
fn an_unknown_instruction_is_named_with_its_bytes_and_address() {
    let Some(kvm) = kvm_or_skip("an unknown instruction") else {
        return;
    };
    if !kvm_is_pvm() {
        eprintln!("SKIPPED an unknown instruction: this KVM executes every instruction; nothing was tested");
        return;
    }
    let mut guest = FlatGuest::new(&kvm, machine_code!("vmovups ymm0, [rdi]", "out 0xf4, al"));
    let before = guest.regs();
    let mut message = String::new();
    let stop = guest.run(|vcpu, memory| {
        let failure = EmulationFailure::from_run(vcpu.get_kvm_run()).expect("an emulation failure");
        let error = Completer::new()
            .complete(vcpu, memory, &failure)
            .expect_err("no such completion");
        message = format!("{error}: {}", error.cause);
        false
    });
    assert_eq!(stop, Stop::InternalError);
    let expected = format!("complete the guest's instruction Vmovups (c5 fc 10 07) at {CODE:#x}: ");
    assert!(message.starts_with(&expected), "{message}");
    assert_eq!(guest.regs(), before);
}
