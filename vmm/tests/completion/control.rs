//! Instructions on control state: flags, MXCSR, XCR0, time stamps, descriptors.

use vmm::completion::Mnemonic;

use crate::flat_guest::{DATA, FlatGuest, Stop, kvm_or_skip};
use crate::machine_code;
use crate::runner::run;

#[test]
fn fwait_without_a_pending_error_goes_on() {
    let Some(kvm) = kvm_or_skip("fwait") else { return };
    let mut guest = FlatGuest::new(&kvm, machine_code!("fninit", "fwait", "out 0xf4, al"));
    run(&mut guest).assert_finished_completing(Mnemonic::Wait);
}

#[test]
fn fwait_with_a_pending_error_is_the_x87_exception() {
    let Some(kvm) = kvm_or_skip("fwait with a pending error") else {
        return;
    };
    let mut guest = FlatGuest::new(
        &kvm,
        machine_code!("fxrstor64 [rdi]", "5:", "fwait", "out 0xf4, al"),
    );
    // Control word: invalid operation unmasked. Status word: it is pending.
    let mut area = [0; 512];
    area[..4].copy_from_slice(&[0x7e, 0x03, 0x81, 0x80]);
    area[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    guest.write(DATA, &area);
    guest.set_regs(|regs| regs.rdi = DATA);
    let run = run(&mut guest);
    run.assert_completed(Mnemonic::Wait);
    let Stop::Exception(trap) = run.stop else {
        panic!("{:?}", run.stop)
    };
    assert_eq!(trap.vector, 16);
}

#[test]
fn stac_and_clac_set_and_clear_the_flag() {
    let Some(kvm) = kvm_or_skip("stac and clac") else {
        return;
    };
    let code = machine_code!(
        "stac",
        "pushfq",
        "pop rax",
        "clac",
        "pushfq",
        "pop rbx",
        "out 0xf4, al"
    );
    let mut guest = FlatGuest::new(&kvm, code);
    let run = run(&mut guest);
    run.assert_completed(Mnemonic::Stac);
    run.assert_finished_completing(Mnemonic::Clac);
    let alignment_check = 1 << 18;
    assert_eq!(
        (
            guest.regs().rax & alignment_check,
            guest.regs().rbx & alignment_check
        ),
        (alignment_check, 0)
    );
}

#[test]
fn mxcsr_is_loaded_and_stored() {
    let Some(kvm) = kvm_or_skip("mxcsr") else { return };
    let mut guest = FlatGuest::new(
        &kvm,
        machine_code!("ldmxcsr [rdi]", "stmxcsr [rdi + 4]", "out 0xf4, al"),
    );
    guest.write(DATA, &0x3fa0_u32.to_le_bytes());
    guest.set_regs(|regs| regs.rdi = DATA);
    let run = run(&mut guest);
    run.assert_completed(Mnemonic::Ldmxcsr);
    run.assert_finished_completing(Mnemonic::Stmxcsr);
    assert_eq!(guest.read(DATA + 4), 0x3fa0_u32.to_le_bytes());
}

#[test]
fn xgetbv_sees_what_xsetbv_set_before_and_after() {
    let Some(kvm) = kvm_or_skip("xgetbv") else { return };
    let code = machine_code!(
        "xor ecx, ecx",
        "xgetbv",
        "mov ebx, eax",
        "mov eax, 3",
        "xsetbv",
        "xgetbv",
        "out 0xf4, al",
    );
    let mut guest = FlatGuest::new(&kvm, code);
    let all = guest.vcpu.get_xcrs().unwrap().xcrs[0].value;
    let run = run(&mut guest);
    run.assert_completed(Mnemonic::Xgetbv);
    assert_eq!(run.stop, Stop::Finished(3));
    assert_eq!(guest.regs().rbx, all);
}

#[test]
fn rdtscp_lies_between_two_reads_of_the_counter() {
    let Some(kvm) = kvm_or_skip("rdtscp") else { return };
    let code = machine_code!(
        "rdtsc",
        "mov esi, eax",
        "mov edi, edx",
        "rdtscp",
        "mov r8d, eax",
        "mov r9d, edx",
        "rdtsc",
        "out 0xf4, al",
    );
    let mut guest = FlatGuest::new(&kvm, code);
    run(&mut guest).assert_finished_completing(Mnemonic::Rdtscp);
    let regs = guest.regs();
    let (first, second, third) = (
        regs.rdi << 32 | regs.rsi,
        regs.r9 << 32 | regs.r8,
        regs.rdx << 32 | regs.rax & 0xffff_ffff,
    );
    assert!(first < second && second < third, "{first} {second} {third}");
}

#[test]
fn verw_and_lsl_answer_for_the_data_segment() {
    let Some(kvm) = kvm_or_skip("verw and lsl") else {
        return;
    };
    let code = machine_code!(
        "mov ebx, 16",
        "verw bx",
        "sete al",
        "lsl ecx, ebx",
        "setz ah",
        "and al, ah",
        "out 0xf4, al"
    );
    let mut guest = FlatGuest::new(&kvm, code);
    let run = run(&mut guest);
    run.assert_completed(Mnemonic::Verw);
    run.assert_completed(Mnemonic::Lsl);
    assert_eq!(run.stop, Stop::Finished(1));
    assert_eq!(guest.regs().rcx, 0xffff_ffff);
}

#[test]
fn clwb_of_mapped_memory_goes_on() {
    let Some(kvm) = kvm_or_skip("clwb") else { return };
    let mut guest = FlatGuest::new(&kvm, machine_code!("clwb [rdi]", "out 0xf4, al"));
    guest.set_regs(|regs| regs.rdi = DATA);
    run(&mut guest).assert_finished_completing(Mnemonic::Clwb);
}
