//! The XSAVE family between a vCPU's registers and the guest's memory.

use kvm_bindings::kvm_xsave;
use vmm::completion::Mnemonic;

use crate::flat_guest::{DATA, FlatGuest, PRESENT, Stop, USER, WRITABLE, kvm_or_skip};
use crate::machine_code;
use crate::runner::{kvm_is_pvm, run};

const XSTATE_BV: usize = 512;
const XCOMP_BV: usize = 520;
const COMPACTED: u64 = 1 << 63;
const PKRU: u64 = 1 << 9;
const AMX: u64 = 3 << 17;

/// A component beyond the legacy region, as CPUID describes it.
struct Component {
    bit: u64,
    offset: usize,
    size: usize,
    aligned: bool,
}

/// The components that a test can fill with any bytes.
fn components(guest: &FlatGuest) -> Vec<Component> {
    let xcr0 = guest.vcpu.get_xcrs().unwrap().xcrs[0].value & !(PKRU | AMX);
    let cpuid = guest
        .vcpu
        .get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .unwrap();
    let subleaf = |index| {
        cpuid
            .as_slice()
            .iter()
            .find(|leaf| leaf.function == 0xd && leaf.index == index)
    };
    (2..63)
        .filter(|index| xcr0 >> index & 1 != 0)
        .map(|index| {
            let leaf = subleaf(index).expect("a subleaf for every component of XCR0");
            let (offset, size) = (leaf.ebx as usize, leaf.eax as usize);
            Component {
                bit: 1 << index,
                offset,
                size,
                aligned: leaf.ecx & 2 != 0,
            }
        })
        .collect()
}

/// A standard-format state in which every component is in use with bytes of its own.
fn pattern(components: &[Component]) -> [u8; 4096] {
    let mut area = [0; 4096];
    area[..4].copy_from_slice(&[0x7f, 0x03, 0x00, 0x38]); // control word, status word with TOP = 7
    area[4] = 0x80; // one register in use
    area[24..28].copy_from_slice(&0x1fa0_u32.to_le_bytes());
    area[32..42].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 0x88, 0xff, 0x3f]);
    fill(&mut area[160..416], 0x31);
    for component in components {
        fill(
            &mut area[component.offset..component.offset + component.size],
            0x40 + component.offset as u8,
        );
    }
    let in_use = components.iter().fold(3, |all, component| all | component.bit);
    area[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&in_use.to_le_bytes());
    area
}

fn fill(bytes: &mut [u8], seed: u8) {
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = seed.wrapping_add((index * 7) as u8) | 1;
    }
}

fn set_state(guest: &FlatGuest, area: &[u8; 4096]) {
    let mut xsave = kvm_xsave::default();
    for (word, bytes) in xsave.region.iter_mut().zip(area.chunks_exact(4)) {
        *word = u32::from_le_bytes(bytes.try_into().unwrap());
    }
    // SAFETY: KVM reads no more than 4 KiB: this process has not asked for larger components.
    unsafe { guest.vcpu.set_xsave(&xsave) }.expect("KVM_SET_XSAVE");
}

fn state(guest: &FlatGuest) -> [u8; 4096] {
    let mut area = [0; 4096];
    for (bytes, word) in area
        .chunks_exact_mut(4)
        .zip(guest.vcpu.get_xsave().expect("KVM_GET_XSAVE").region)
    {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    area
}

fn word(area: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(area[offset..offset + 8].try_into().unwrap())
}

/// Compares what programs can see: registers and components, not reserved or software bytes.
#[track_caller]
fn assert_same_state(left: &[u8], right: &[u8], components: &[Component]) {
    let legacy =
        [(0, 5), (6, 22), (32, 10), (160, 256)].map(|(offset, size)| ("legacy region", offset, size));
    let extended = components
        .iter()
        .map(|component| ("component", component.offset, component.size));
    for (name, offset, size) in legacy.into_iter().chain(extended) {
        let range = offset..offset + size;
        assert_eq!(left[range.clone()], right[range], "{name} at {offset}");
    }
}

/// A guest with the pattern in its registers and an area that is split over two pages far apart.
fn guest_with_pattern(test: &str, code: &[u8]) -> Option<(FlatGuest, Vec<Component>)> {
    let kvm = kvm_or_skip(test)?;
    let guest = FlatGuest::new(&kvm, code);
    guest.set_page(DATA + 0x1000, (DATA + 0x9000) | PRESENT | WRITABLE);
    let components = components(&guest);
    set_state(&guest, &pattern(&components));
    guest.set_regs(|regs| (regs.rdi, regs.rax, regs.rdx) = (AREA, u64::MAX, u64::MAX));
    Some((guest, components))
}

/// Its header is on the first page, the components beyond AVX are on the second.
const AREA: u64 = DATA + 0x1000 - 704;

fn read_area(guest: &FlatGuest) -> [u8; 4096] {
    let mut area = [0; 4096];
    area[..704].copy_from_slice(&guest.read::<704>(AREA));
    area[704..].copy_from_slice(&guest.read::<3392>(DATA + 0x9000));
    area
}

fn write_area(guest: &FlatGuest, area: &[u8; 4096]) {
    guest.write(AREA, &area[..704]);
    guest.write(DATA + 0x9000, &area[704..]);
}

#[test]
fn xsave_writes_every_component_at_its_standard_place() {
    let code = machine_code!("xsave64 [rdi]", "out 0xf4, al");
    let Some((mut guest, components)) = guest_with_pattern("xsave64", code) else {
        return;
    };
    run(&mut guest).assert_finished_completing(Mnemonic::Xsave64);
    let area = read_area(&guest);
    assert_same_state(&area, &pattern(&components), &components);
    assert_eq!(
        word(&area, XSTATE_BV) & !PKRU,
        word(&pattern(&components), XSTATE_BV)
    );
    assert_eq!(word(&area, XCOMP_BV), 0);
}

#[test]
fn xsaveopt_writes_what_is_in_use() {
    let code = machine_code!("xsaveopt64 [rdi]", "out 0xf4, al");
    let Some((mut guest, components)) = guest_with_pattern("xsaveopt64", code) else {
        return;
    };
    run(&mut guest).assert_finished_completing(Mnemonic::Xsaveopt64);
    assert_same_state(&read_area(&guest), &pattern(&components), &components);
}

#[test]
fn xsavec_writes_the_chosen_components_without_gaps() {
    let code = machine_code!("xsavec64 [rdi]", "out 0xf4, al");
    let Some((mut guest, components)) = guest_with_pattern("xsavec64", code) else {
        return;
    };
    // Without AVX, so that all behind it move.
    let chosen = !4_u64;
    guest.set_regs(|regs| (regs.rax, regs.rdx) = (chosen & 0xffff_ffff, chosen >> 32));
    run(&mut guest).assert_finished_completing(Mnemonic::Xsavec64);
    let (area, pattern) = (read_area(&guest), pattern(&components));
    let expected_bits = word(&pattern, XSTATE_BV) & chosen;
    assert_eq!(word(&area, XSTATE_BV) & !PKRU, expected_bits);
    assert_eq!(word(&area, XCOMP_BV) & !PKRU, expected_bits | COMPACTED);
    let mut next = 576_usize;
    for component in components.iter().filter(|component| component.bit & chosen != 0) {
        let place = if component.aligned {
            next.next_multiple_of(64)
        } else {
            next
        };
        let expected = &pattern[component.offset..component.offset + component.size];
        assert_eq!(
            &area[place..place + component.size],
            expected,
            "component {:#x}",
            component.bit
        );
        next = place + component.size;
    }
}

#[test]
fn xrstor_loads_the_standard_format() {
    let code = machine_code!("xrstor64 [rdi]", "out 0xf4, al");
    let Some((mut guest, components)) = guest_with_pattern("xrstor64", code) else {
        return;
    };
    write_area(&guest, &pattern(&components));
    set_state(&guest, &initial_state());
    run(&mut guest).assert_finished_completing(Mnemonic::Xrstor64);
    assert_same_state(&state(&guest), &pattern(&components), &components);
}

#[test]
fn xrstor_of_some_components_keeps_the_others() {
    let code = machine_code!("xrstor64 [rdi]", "out 0xf4, al");
    let Some((mut guest, components)) = guest_with_pattern("xrstor64, some", code) else {
        return;
    };
    write_area(&guest, &initial_state());
    guest.set_regs(|regs| (regs.rax, regs.rdx) = (1, 0));
    run(&mut guest).assert_finished_completing(Mnemonic::Xrstor64);
    let mut expected = pattern(&components);
    expected[..24].copy_from_slice(&initial_state()[..24]);
    expected[32..160].fill(0);
    assert_same_state(&state(&guest), &expected, &components);
}

#[test]
fn xrstor_loads_what_xsavec_wrote() {
    let code = machine_code!(
        "xsavec64 [rdi]",
        "mov byte ptr [rsi], 1",
        "xrstor64 [rdi]",
        "out 0xf4, al"
    );
    let Some((mut guest, components)) = guest_with_pattern("xsavec64, xrstor64", code) else {
        return;
    };
    guest.set_regs(|regs| regs.rsi = DATA + 0x4000);
    let run = run(&mut guest);
    run.assert_completed(Mnemonic::Xsavec64);
    run.assert_finished_completing(Mnemonic::Xrstor64);
    assert_same_state(&state(&guest), &pattern(&components), &components);
}

/// kvm-pvm does not offer XSAVES in CPUID, but a guest that was given it by its VMM's CPUID executes it all the same.
#[test]
fn xrstors_loads_what_xsaves_wrote() {
    let code = machine_code!("xsaves64 [rdi]", "xrstors64 [rdi]", "out 0xf4, al");
    let Some((mut guest, components)) = guest_with_pattern("xsaves64, xrstors64", code) else {
        return;
    };
    if !kvm_is_pvm() {
        eprintln!("SKIPPED xsaves64, xrstors64: this KVM may refuse them; nothing was tested");
        return;
    }
    let run = run(&mut guest);
    run.assert_completed(Mnemonic::Xsaves64);
    run.assert_finished_completing(Mnemonic::Xrstors64);
    assert_same_state(&state(&guest), &pattern(&components), &components);
}

#[test]
fn xrstor_of_a_bad_header_is_general_protection_and_keeps_the_state() {
    let code = machine_code!("xrstor64 [rdi]", "out 0xf4, al");
    let Some((mut guest, components)) = guest_with_pattern("xrstor64 of a bad header", code) else {
        return;
    };
    let mut area = initial_state();
    area[XSTATE_BV + 7] = 0x40;
    write_area(&guest, &area);
    let run = run(&mut guest);
    run.assert_completed(Mnemonic::Xrstor64);
    let Stop::Exception(trap) = run.stop else {
        panic!("{:?}", run.stop)
    };
    assert_eq!((trap.vector, trap.error_code), (13, 0));
    assert_same_state(&state(&guest), &pattern(&components), &components);
}

#[test]
fn an_unaligned_area_is_general_protection() {
    let code = machine_code!("xsave64 [rdi]", "out 0xf4, al");
    let Some((mut guest, _)) = guest_with_pattern("an unaligned area", code) else {
        return;
    };
    guest.set_regs(|regs| regs.rdi = AREA + 8);
    let Stop::Exception(trap) = run(&mut guest).stop else {
        panic!("no exception")
    };
    assert_eq!((trap.vector, trap.error_code), (13, 0));
}

/// A component that XSETBV enabled after the first save is saved by the next one.
#[test]
fn xsave_follows_xcr0() {
    let code = machine_code!(
        "xsave64 [rdi]",
        "mov r8, [rdi + 512]",
        "xor ecx, ecx",
        "mov eax, 7",
        "xor edx, edx",
        "xsetbv",
        "mov rax, -1",
        "mov rdx, -1",
        "xsave64 [rdi]",
        "out 0xf4, al",
    );
    let Some((mut guest, components)) = guest_with_pattern("xsave64 after xsetbv", code) else {
        return;
    };
    let mut xcrs = guest.vcpu.get_xcrs().unwrap();
    xcrs.xcrs[0].value = 3;
    guest.vcpu.set_xcrs(&xcrs).unwrap();
    run(&mut guest).assert_finished_completing(Mnemonic::Xsave64);
    assert_eq!(guest.regs().r8, 3);
    let area = read_area(&guest);
    assert_eq!(word(&area, XSTATE_BV), 7);
    assert_eq!(area[576..832], pattern(&components)[576..832]);
}

/// The registers that `xrstor` loaded are those that user mode, which runs natively, finds; and what user mode put
/// there is what `xsave` writes.
#[test]
fn user_mode_sees_what_was_restored_and_its_registers_are_saved() {
    let code = machine_code!(
        "xrstor64 [rdi]",
        "push 0x1b", // SS, RSP, RFLAGS, CS, RIP
        "push r9",
        "push 2",
        "push 0x23",
        "push r8",
        "iretq",
    );
    let Some((mut guest, components)) = guest_with_pattern("user mode", code) else {
        return;
    };
    let (user_code, user_data, handler) = (DATA + 0x6000, DATA + 0x7000, DATA + 0x8000);
    let in_user_mode = machine_code!(
        "vmovups [rsi], ymm0",
        "vmovups [rsi + 0x20], ymm15",
        "vmovups ymm3, [rsi + 0x40]",
        "int3",
    );
    guest.write(user_code, in_user_mode);
    guest.set_page(user_code, user_code | PRESENT | USER);
    let values: [u8; 32] = std::array::from_fn(|index| 0xa0 + index as u8);
    guest.write(user_data + 0x40, &values);
    guest.set_page(user_data, user_data | PRESENT | WRITABLE | USER);
    guest.write(
        handler,
        machine_code!("mov rax, -1", "mov rdx, -1", "xsave64 [rdi]", "out 0xf4, al"),
    );
    guest.set_gate(3, handler);
    guest.set_regs(|regs| (regs.r8, regs.r9, regs.rsi) = (user_code, user_data + 0x1000, user_data));
    let pattern = pattern(&components);
    write_area(&guest, &pattern);
    set_state(&guest, &initial_state());

    run(&mut guest).assert_finished_completing(Mnemonic::Xsave64);
    let register = |area: &[u8; 4096], number: usize| {
        [&area[160 + number * 16..][..16], &area[576 + number * 16..][..16]].concat()
    };
    assert_eq!(guest.read::<32>(user_data)[..], register(&pattern, 0));
    assert_eq!(guest.read::<32>(user_data + 0x20)[..], register(&pattern, 15));
    let saved = read_area(&guest);
    assert_eq!(register(&saved, 3), values);
    assert_eq!(register(&saved, 4), register(&pattern, 4));
}

fn initial_state() -> [u8; 4096] {
    let mut area = [0; 4096];
    area[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    area[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    area
}
