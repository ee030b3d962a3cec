//! Guests that are a few instructions: 64-bit code, entered with all of the first GiB mapped to itself.

use vmm::status::{Event, ExitKind, Phase};

use crate::program::{Machine, kvm_is_missing};

/// Where the code goes.
const ADDRESS: u64 = 0x20_0000;

/// `mov al, 0xfe; out 0x64, al`: pulls the reset line. Then `jmp $`, should that not have worked.
pub(crate) const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe];
/// `jmp $`
pub(crate) const LOOP: &[u8] = &[0xeb, 0xfe];

/// An ELF executable whose one segment is `code`, with `memory` bytes reserved for it.
pub(crate) fn elf_with_memory(code: &[u8], memory: u64) -> Vec<u8> {
    let mut file = Vec::from(b"\x7fELF\x02\x01\x01");
    file.resize(16, 0);
    file.extend(2_u16.to_le_bytes()); // executable
    file.extend(62_u16.to_le_bytes()); // x86-64
    file.extend(1_u32.to_le_bytes());
    file.extend(ADDRESS.to_le_bytes()); // entry point
    file.extend(64_u64.to_le_bytes()); // program headers
    file.extend([0; 12]);
    file.extend([64_u16, 56, 1, 0, 0, 0].map(u16::to_le_bytes).concat());
    file.extend(1_u32.to_le_bytes()); // load
    file.extend(7_u32.to_le_bytes());
    let offset = 120_u64;
    file.extend(
        [offset, ADDRESS, ADDRESS, code.len() as u64, memory, 16]
            .map(u64::to_le_bytes)
            .concat(),
    );
    file.extend(code);
    file
}

pub(crate) fn elf(code: &[u8]) -> Vec<u8> {
    elf_with_memory(code, 4096)
}

/// Code that writes `text` to the early console.
pub(crate) fn print(text: &str) -> Vec<u8> {
    // mov dx, 0x3f8; and for each byte mov al, byte; out dx, al
    let bytes = text.bytes().flat_map(|byte| [0xb0, byte, 0xee]);
    [0x66, 0xba, 0xf8, 0x03].into_iter().chain(bytes).collect()
}

#[test]
fn a_guest_that_prints_and_resets_is_told_with_its_words() {
    if kvm_is_missing() {
        return;
    }
    let machine = Machine::of(&elf(&[print("hello\nworld\n"), RESET.to_vec()].concat()));
    let finished = machine.run();
    assert_eq!(finished.exit().reason.kind, ExitKind::GuestReset);
    assert_eq!(finished.exit().console, ["hello", "world"]);
    assert_eq!(finished.status.code(), Some(1));
}

#[test]
fn every_phase_is_reported_once_in_order() {
    if kvm_is_missing() {
        return;
    }
    let finished = Machine::of(&elf(RESET)).run();
    let (names, times): (Vec<Phase>, Vec<u64>) = finished
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Phase { name, microseconds } => Some((*name, *microseconds)),
            Event::Exit(_) => None,
        })
        .unzip();
    assert_eq!(
        names,
        [
            Phase::FilesOpened,
            Phase::KernelLoaded,
            Phase::MachineBuilt,
            Phase::FirstRun
        ]
    );
    assert!(times.is_sorted(), "{times:?}");
}

#[test]
fn a_page_fault_without_handlers_is_a_triple_fault_with_its_addresses() {
    if kvm_is_missing() {
        return;
    }
    // mov al, [0x1_0000_0000], which is not mapped
    let finished = Machine::of(&elf(&[0xa0, 0, 0, 0, 0, 1, 0, 0, 0])).run();
    assert_eq!(finished.exit().reason.kind, ExitKind::TripleFault);
    let message = &finished.exit().reason.message;
    assert!(message.starts_with("vCPU 0 triple-faulted at 0x"), "{message}");
}

#[test]
fn an_undefined_instruction_without_handlers_is_a_triple_fault() {
    if kvm_is_missing() {
        return;
    }
    let finished = Machine::of(&elf(&[0x0f, 0x0b])).run();
    assert_eq!(
        finished.exit().reason.kind,
        ExitKind::TripleFault,
        "{:?}",
        finished.exit()
    );
}

#[test]
fn a_kernels_panic_before_its_reset_is_the_reason() {
    if kvm_is_missing() {
        return;
    }
    let words = print("[    0.5] Kernel panic - not syncing: VFS: no root\n");
    let finished = Machine::of(&elf(&[words, RESET.to_vec()].concat())).run();
    assert_eq!(finished.exit().reason.kind, ExitKind::GuestPanic);
    assert_eq!(finished.exit().reason.message, "VFS: no root");
    assert!(finished.errors.contains("VFS: no root"), "{}", finished.errors);
}

/// Code that maps the 2 MiB around `address`, which lie in the fourth GiB, and has the four bytes there in EAX.
fn read_device_memory(address: u32) -> Vec<u8> {
    const TABLE: u32 = 0x1_0000;
    const FOURTH_GIB: u32 = 0xa018;
    let entry = TABLE + (address >> 21 & 0x1ff) * 8;
    let page = address & !0x1f_ffff | 0x83;
    [
        store(FOURTH_GIB, TABLE | 3),
        store(entry, page),
        // mov ebx, address; mov eax, [rbx]
        vec![0xbb],
        address.to_le_bytes().to_vec(),
        vec![0x8b, 0x03],
    ]
    .concat()
}

/// `mov rax, value; mov [address], rax`
fn store(address: u32, value: u32) -> Vec<u8> {
    let value = u64::from(value).to_le_bytes();
    [
        &[0x48, 0xb8][..],
        &value,
        &[0x48, 0x89, 0x04, 0x25],
        &address.to_le_bytes(),
    ]
    .concat()
}

/// Code that writes the four bytes of EAX, lowest first, to the early console.
fn print_eax() -> Vec<u8> {
    // mov dx, 0x3f8; and four times out dx, al; shr eax, 8
    [&[0x66, 0xba, 0xf8, 0x03][..], &[0xee, 0xc1, 0xe8, 8].repeat(4)].concat()
}

#[test]
fn the_first_window_is_a_virtio_device() {
    if kvm_is_missing() {
        return;
    }
    let code = [read_device_memory(0xd000_0000), print_eax(), RESET.to_vec()].concat();
    assert_eq!(Machine::of(&elf(&code)).run().exit().console, ["virt"]);
}

#[test]
fn device_memory_that_is_nobodys_reads_as_ones() {
    if kvm_is_missing() {
        return;
    }
    let code = [read_device_memory(0xd800_0000), print_eax(), RESET.to_vec()].concat();
    assert_eq!(
        Machine::of(&elf(&code)).run().exit().console,
        ["\u{fffd}".repeat(4)]
    );
}

#[test]
fn the_exits_of_a_guest_are_counted() {
    if kvm_is_missing() {
        return;
    }
    let finished = Machine::of(&elf(&[print("12345"), RESET.to_vec()].concat())).run();
    let [vcpu] = &finished.exit().vcpus[..] else {
        panic!("{:?}", finished.exit().vcpus)
    };
    assert_eq!(vcpu.exits.port_writes, 6);
    assert_eq!(vcpu.exits.mmio_reads, 0);
    assert!(vcpu.kvm.contains_key("insn_emulation"), "{:?}", vcpu.kvm);
}

#[test]
fn the_console_outlives_the_machine() {
    if kvm_is_missing() {
        return;
    }
    let machine = Machine::of(&elf(&[print("still here\n"), RESET.to_vec()].concat()));
    machine.run();
    let ring = std::fs::read(machine.path("console")).unwrap();
    assert!(ring.windows(10).any(|window| window == b"still here"));
}
