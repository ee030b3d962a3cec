//! A machine for tests: registers, a little memory behind page tables, and extended state without any vCPU.

use iced_x86::{Decoder, DecoderOptions};
use kvm_bindings::{CpuId, kvm_cpuid_entry2, kvm_regs, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::cpu::Cpu;
use super::error::{Cause, Stop};
use super::extended_state::ExtendedState;
use super::instructions;
use super::linear_memory::LinearMemory;
use super::paging::Paging;
use super::xsave::image::XsaveImage;
use super::xsave::layout::XsaveLayout;

const RAM_BYTES: usize = 0x2_0000;
const PML4: u64 = 0x1_0000;
const PT: u64 = 0x1_3000;
const UNMAPPED: u64 = 0xa000;
const READ_ONLY: u64 = 0xc000;
const OUTSIDE: u64 = 0x1f_0000;

/// Fills `bytes` with noise of which `seed` decides, so that a failing case is one number.
pub(super) fn fill_with_noise(bytes: &mut [u8], seed: u64) {
    let mut state = seed | 1;
    for chunk in bytes.chunks_mut(8) {
        // Xorshift.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let word = state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
        chunk.iter_mut().zip(word).for_each(|(byte, noise)| *byte = noise);
    }
}

/// One subleaf of CPUID leaf 0xD.
pub(super) fn xstate_leaf(index: u32, eax: u32, ebx: u32, ecx: u32) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: 0xd,
        index,
        eax,
        ebx,
        ecx,
        ..Default::default()
    }
}

/// Linear addresses are physical ones, up to 128 KiB, save for the three pages that have a method.
pub(super) struct TestMachine {
    pub(super) regs: kvm_regs,
    pub(super) sregs: kvm_sregs,
    pub(super) layout: XsaveLayout,
    pub(super) extended: TestExtendedState,
    memory: GuestMemoryMmap,
}

impl TestMachine {
    pub(super) const RIP: u64 = 0x1000;

    /// 64-bit kernel mode on a Zen 4: x87, SSE, AVX and AVX-512 are enabled.
    pub(super) fn new() -> TestMachine {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).unwrap();
        let mut sregs = kvm_sregs {
            cr0: 0x8001_0033,
            cr3: PML4,
            cr4: 0x4_0620,
            efer: 0xd00,
            ..Default::default()
        };
        sregs.cs.l = 1;
        let leaves = [
            xstate_leaf(0, 0xe7, 2432, 2432),
            xstate_leaf(1, 0xf, 2432, 0x1800),
            xstate_leaf(2, 256, 576, 0),
            xstate_leaf(5, 64, 832, 0),
            xstate_leaf(6, 512, 896, 0),
            xstate_leaf(7, 1024, 1408, 0),
        ];
        let layout = XsaveLayout::from_cpuid(&CpuId::from_entries(&leaves).unwrap()).unwrap();
        let machine = TestMachine {
            regs: kvm_regs {
                rip: Self::RIP,
                rflags: 2,
                ..Default::default()
            },
            sregs,
            layout,
            extended: TestExtendedState {
                xcr0: 0xe7,
                ..Default::default()
            },
            memory,
        };
        for table in [PML4, PML4 + 0x1000, PML4 + 0x2000] {
            machine.write(table, &((table + 0x1000) | 7).to_le_bytes());
        }
        for page in (0..RAM_BYTES as u64).step_by(0x1000) {
            let flags = match page {
                UNMAPPED => 0,
                READ_ONLY => 1,
                _ => 3,
            };
            machine.set_page(page, page | flags);
        }
        machine.set_page(OUTSIDE, 0x4000_0000 | 3);
        machine
    }

    /// A page that is not mapped; those before and behind it are.
    pub(super) fn unmapped(&self) -> u64 {
        UNMAPPED
    }

    /// A page that is mapped but not writable.
    pub(super) fn read_only(&self) -> u64 {
        READ_ONLY
    }

    /// A page that is mapped to an address where there is no memory.
    pub(super) fn mapped_outside_memory(&self) -> u64 {
        OUTSIDE
    }

    pub(super) fn linear_memory(&self) -> LinearMemory<'_> {
        LinearMemory::new(&self.memory, Paging::new(&self.sregs, self.regs.rflags, 48, None))
    }

    pub(super) fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub(super) fn read<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Executes one instruction at [`Self::RIP`].
    pub(super) fn execute(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let instruction = Decoder::with_ip(64, bytes, Self::RIP, DecoderOptions::NONE).decode();
        self.regs.rip = instruction.next_ip();
        let paging = Paging::new(&self.sregs, self.regs.rflags, 48, None);
        let mut cpu = Cpu {
            regs: self.regs,
            sregs: &self.sregs,
            memory: LinearMemory::new(&self.memory, paging),
            layout: &self.layout,
            extended: &mut self.extended,
        };
        let executed = instructions::execute(&instruction, &mut cpu);
        if matches!(executed, Ok(()) | Err(Stop::Trap(_))) {
            self.regs = cpu.regs;
        }
        executed
    }

    fn set_page(&self, linear: u64, entry: u64) {
        self.write(PT + (linear >> 12) * 8, &entry.to_le_bytes());
    }
}

/// Extended state in plain fields, counting what would be ioctls.
#[derive(Default)]
pub(super) struct TestExtendedState {
    pub(super) image: XsaveImage,
    pub(super) xcr0: u64,
    pub(super) xss: u64,
    pub(super) msrs: Vec<(u32, u64)>,
    /// How often the image was read.
    pub(super) reads: usize,
    /// Whether the image was written back.
    pub(super) stored: bool,
}

impl ExtendedState for TestExtendedState {
    fn xcr0(&mut self) -> Result<u64, Cause> {
        Ok(self.xcr0)
    }

    fn xcr0_covering(&mut self, _wanted: u64) -> Result<u64, Cause> {
        Ok(self.xcr0)
    }

    fn xss(&mut self) -> Result<u64, Cause> {
        Ok(self.xss)
    }

    fn image(&mut self) -> Result<&mut XsaveImage, Cause> {
        self.reads += 1;
        Ok(&mut self.image)
    }

    fn initial_image(&mut self) -> &mut XsaveImage {
        self.image = XsaveImage::default();
        &mut self.image
    }

    fn store_image(&mut self) -> Result<(), Cause> {
        self.stored = true;
        Ok(())
    }

    fn msrs(&mut self, indices: [u32; 2]) -> Result<[u64; 2], Cause> {
        Ok(indices.map(|index| self.msrs.iter().find(|(known, _)| *known == index).unwrap().1))
    }
}
