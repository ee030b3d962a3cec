//! No instruction, register or page table that a guest can come up with makes the completion panic.

use kvm_bindings::kvm_regs;
use proptest::prelude::*;

use super::error::Stop;
use super::test_cpu::{TestMachine, fill_with_noise};

/// The opcodes that are completed, without prefixes and operands.
const OPCODES: [&[u8]; 14] = [
    &[0x0f, 0xae],
    &[0x0f, 0xc7],
    &[0x0f, 0xb8],
    &[0x0f, 0x01],
    &[0x0f, 0x00],
    &[0x0f, 0x02],
    &[0x0f, 0x03],
    &[0x0f, 0x0b],
    &[0x0f, 0xb9],
    &[0x0f, 0xff],
    &[0x9b],
    &[0xcc],
    &[0x48, 0x0f, 0xc7],
    &[0x48, 0x0f, 0xae],
];

prop_compose! {
    fn instruction()(
        prefixes in prop::collection::vec(prop::sample::select(vec![0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x64, 0x65, 0x2e]), 0..3),
        opcode in prop::sample::select(&OPCODES[..]),
        operands in any::<[u8; 10]>(),
    ) -> Vec<u8> {
        [&prefixes[..], opcode, &operands].concat()
    }
}

/// Any number, but mostly one that could be an address or lies at its edges.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..0x2_1000_u64,
        (0..0x800_u64).prop_map(|block| block * 64),
        (0..64_u64).prop_map(|below| u64::MAX - below),
        Just(0x7fff_ffff_ffff),
        Just(0x8000_0000_0000),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn any_instruction_with_any_registers_ends(
        bytes in instruction(),
        values in prop::collection::vec(value(), 16),
        seed in any::<u64>(),
        (control_0, control_4) in any::<(u64, u64)>(),
    ) {
        let mut machine = TestMachine::new();
        let regs = &mut machine.regs;
        let places = [
            &mut regs.rax, &mut regs.rbx, &mut regs.rcx, &mut regs.rdx, &mut regs.rsi, &mut regs.rdi, &mut regs.rbp,
            &mut regs.rsp, &mut regs.r8, &mut regs.r9, &mut regs.r10, &mut regs.r11, &mut regs.r12, &mut regs.r13,
            &mut regs.r14, &mut regs.r15,
        ];
        for (place, value) in places.into_iter().zip(values) {
            *place = value;
        }
        // All that can be fuzzed, but for what would end most instructions early.
        machine.sregs.cr0 ^= control_0 & 0x1_0000;
        machine.sregs.cr4 ^= control_4 & 0x70_0000;
        machine.extended.msrs = vec![(0x10, 1), (0xc000_0103, 2)];
        let mut operands = [0; 1024];
        fill_with_noise(&mut operands, seed);
        machine.write(0x8000, &operands);
        let before = machine.regs;
        if let Err(Stop::Fault(_) | Stop::Again | Stop::Failed(_)) = machine.execute(&bytes) {
            prop_assert_eq!(machine.regs, kvm_regs { rip: machine.regs.rip, ..before });
        }
    }

    #[test]
    fn any_page_table_ends_the_walk(
        seed in any::<u64>(),
        root in 0..0x2_0000_u64,
        address in value(),
        la57 in any::<bool>(),
    ) {
        let mut machine = TestMachine::new();
        let mut tables = [0; 0x4000];
        fill_with_noise(&mut tables, seed);
        for entry in tables.as_chunks_mut().0 {
            let noise = u64::from_le_bytes(*entry);
            // Mostly present, and pointing into memory.
            *entry = if noise % 8 == 0 { noise } else { noise & 0x1_f067 | 1 }.to_le_bytes();
        }
        machine.write(0x1_0000, &tables);
        machine.sregs.cr3 = root;
        machine.sregs.cr4 |= u64::from(la57) << 12;
        machine.regs.rdi = address & !63;
        (machine.regs.rax, machine.regs.rdx) = (u64::MAX, 0);
        // xsave64 [rdi], xrstor64 [rdi]: what they end with is the tables' business.
        let _ = machine.execute(&[0x48, 0x0f, 0xae, 0x27]);
        let _ = machine.execute(&[0x48, 0x0f, 0xae, 0x2f]);
    }
}
