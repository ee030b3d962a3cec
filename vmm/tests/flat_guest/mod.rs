//! Flat guests: a few bytes of machine code at CPL 0 in long mode, under real KVM, without any kernel.
//!
//! A program is written in assembly with [`machine_code!`], loaded into a [`FlatGuest`] and run until it stops: by
//! writing to [`STOP_PORT`] (`hlt` does not leave a VM with an in-kernel interrupt controller), by an exception, which
//! a handler in the guest records, or by a triple fault. Each takes about a millisecond.
//!
//! | guest physical and virtual address | what is there |
//! |---|---|
//! | `0x1000`–`0x4fff` | page tables: PML4, PDPT, PD, and a PT that maps the first 2 MiB one to one in 4 KiB pages |
//! | `0x5000` | GDT: 0x08 and 0x10 are kernel code and data, 0x1b and 0x23 user data and code; TSS |
//! | `0x6000` | IDT |
//! | `0x7000`, `0x8000` | exception stubs, and the record they leave |
//! | [`CODE`] | the program |
//! | [`STACK_TOP`] | where RSP starts |
//! | [`DATA`] to `0x1fffff` | free |
//! | `0x200000`–`0x3fffff` | free, mapped by one 2 MiB page |

mod machine_code;

use kvm_bindings::{
    CpuId, KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_MAX_CPUID_ENTRIES, kvm_dtable, kvm_enable_cap, kvm_regs,
    kvm_segment, kvm_sregs, kvm_xcr, kvm_xcrs,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};

use crate::machine_code;

/// A write to this port ends the program.
pub(crate) const STOP_PORT: u16 = 0xf4;
/// Where the program is loaded and starts.
pub(crate) const CODE: u64 = 0x1_0000;
/// RSP at the start; the stack is 32 KiB.
pub(crate) const STACK_TOP: u64 = 0x2_8000;
/// First byte a program may use as it likes.
pub(crate) const DATA: u64 = 0x3_0000;
/// A page table entry's flags: present, writable, accessible to user mode.
pub(crate) const PRESENT: u64 = 1;
pub(crate) const WRITABLE: u64 = 1 << 1;
pub(crate) const USER: u64 = 1 << 2;

const EXCEPTION_PORT: u16 = 0xf5;
const RAM_BYTES: usize = 4 << 20;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const PT: u64 = 0x4000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const STUBS: u64 = 0x7000;
const TRAP_RECORD: u64 = 0x8000;
const HUGE_PAGE: u64 = 1 << 7;
const TSS: u64 = GDT + 0x100;
const CODE_SELECTOR: u16 = 8;
const DATA_SELECTOR: u16 = 16;

/// Why a flat guest stopped.
#[derive(Debug, PartialEq)]
pub(crate) enum Stop {
    /// It wrote this byte to [`STOP_PORT`].
    Finished(u8),
    /// An exception was delivered through its IDT.
    Exception(Trap),
    /// KVM reported a shutdown: a triple fault.
    Shutdown,
    /// KVM gave up (`KVM_EXIT_INTERNAL_ERROR`), and `on_internal_error` did not go on.
    InternalError,
}

/// What the exception stubs recorded.
#[derive(Debug, PartialEq)]
pub(crate) struct Trap {
    pub(crate) vector: u64,
    /// Zero where the vector has none.
    pub(crate) error_code: u64,
    pub(crate) rip: u64,
    pub(crate) cr2: u64,
    pub(crate) rflags: u64,
}

/// One VM with one vCPU, ready to run a program.
pub(crate) struct FlatGuest {
    pub(crate) vcpu: VcpuFd,
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) cpuid: CpuId,
    _vm: VmFd,
}

/// Opens `/dev/kvm`, or says loudly that the calling test is skipped.
pub(crate) fn kvm_or_skip(test: &str) -> Option<Kvm> {
    match Kvm::new() {
        Ok(kvm) => Some(kvm),
        Err(error) => {
            eprintln!("SKIPPED {test}: /dev/kvm cannot be opened ({error}); nothing was tested");
            None
        }
    }
}

impl FlatGuest {
    /// A guest in long mode at `code`'s first byte, with XCR0 holding all that KVM offers.
    pub(crate) fn new(kvm: &Kvm, code: &[u8]) -> FlatGuest {
        let vm = kvm.create_vm().expect("create the VM");
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).expect("map guest memory");
        let region = memory.iter().next().expect("one region");
        let slot = kvm_bindings::kvm_userspace_memory_region {
            slot: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: memory.get_host_address(GuestAddress(0)).expect("host address") as u64,
            flags: 0,
        };
        // SAFETY: the mapping lives as long as the VM: both are fields of one struct, and nothing unmaps it.
        unsafe { vm.set_user_memory_region(slot) }.expect("give the VM its memory");
        vm.create_irq_chip().expect("create the interrupt controller");
        let mut exit_on_failure = kvm_enable_cap {
            cap: KVM_CAP_EXIT_ON_EMULATION_FAILURE,
            ..Default::default()
        };
        exit_on_failure.args[0] = 1;
        vm.enable_cap(&exit_on_failure)
            .expect("ask for an exit when an instruction cannot be emulated");
        let vcpu = vm.create_vcpu(0).expect("create the vCPU");
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .expect("read CPUID");
        vcpu.set_cpuid2(&cpuid).expect("set CPUID");

        let guest = FlatGuest {
            vcpu,
            memory,
            cpuid,
            _vm: vm,
        };
        guest.write(CODE, code);
        guest.build_page_tables();
        guest.build_exception_stubs();
        guest.enter_long_mode();
        guest
    }

    /// Runs until the program stops. `on_internal_error` sees each `KVM_EXIT_INTERNAL_ERROR` and says whether to
    /// go on.
    pub(crate) fn run(
        &mut self,
        mut on_internal_error: impl FnMut(&mut VcpuFd, &GuestMemoryMmap) -> bool,
    ) -> Stop {
        loop {
            match self.vcpu.run().expect("KVM_RUN") {
                VcpuExit::IoOut(EXCEPTION_PORT, _) => return Stop::Exception(self.trap()),
                VcpuExit::IoOut(STOP_PORT, &[value]) => return Stop::Finished(value),
                VcpuExit::Shutdown => return Stop::Shutdown,
                VcpuExit::InternalError => {
                    if !on_internal_error(&mut self.vcpu, &self.memory) {
                        return Stop::InternalError;
                    }
                }
                other => panic!("unexpected exit {other:?}"),
            }
        }
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .expect("write guest memory");
    }

    pub(crate) fn read<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .expect("read guest memory");
        bytes
    }

    pub(crate) fn read_u64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.read(address))
    }

    pub(crate) fn regs(&self) -> kvm_regs {
        self.vcpu.get_regs().expect("KVM_GET_REGS")
    }

    pub(crate) fn set_regs(&self, change: impl FnOnce(&mut kvm_regs)) {
        let mut regs = self.regs();
        change(&mut regs);
        self.vcpu.set_regs(&regs).expect("KVM_SET_REGS");
    }

    pub(crate) fn set_sregs(&self, change: impl FnOnce(&mut kvm_sregs)) {
        let mut sregs = self.vcpu.get_sregs().expect("KVM_GET_SREGS");
        change(&mut sregs);
        self.vcpu.set_sregs(&sregs).expect("KVM_SET_SREGS");
    }

    /// Sets the page table entry of the 4 KiB page at `address`, below 2 MiB. Zero unmaps the page.
    pub(crate) fn set_page(&self, address: u64, entry: u64) {
        self.write(self.page_entry_address(address), &entry.to_le_bytes());
    }

    /// The page table entry of the 4 KiB page at `address`, below 2 MiB.
    pub(crate) fn page(&self, address: u64) -> u64 {
        self.read_u64(self.page_entry_address(address))
    }

    /// Points the IDT's gate for `vector`, which user mode may call, at `handler`.
    pub(crate) fn set_gate(&self, vector: u8, handler: u64) {
        let present_interrupt_gate = 0xee00_u64;
        let low = handler & 0xffff
            | u64::from(CODE_SELECTOR) << 16
            | present_interrupt_gate << 32
            | (handler >> 16 & 0xffff) << 48;
        let gate = IDT + u64::from(vector) * 16;
        self.write(gate, &low.to_le_bytes());
        self.write(gate + 8, &(handler >> 32).to_le_bytes());
    }

    fn page_entry_address(&self, address: u64) -> u64 {
        assert!(address < 2 << 20, "{address:#x} is not mapped by a 4 KiB page");
        PT + (address >> 12) * 8
    }

    fn trap(&self) -> Trap {
        let field = |index: u64| self.read_u64(TRAP_RECORD + index * 8);
        Trap {
            vector: field(0),
            error_code: field(1),
            rip: field(2),
            cr2: field(3),
            rflags: field(4),
        }
    }

    fn build_page_tables(&self) {
        // Upper levels allow everything, so that each test decides in the last one.
        let table = PRESENT | WRITABLE | USER;
        self.write(PML4, &(PDPT | table).to_le_bytes());
        self.write(PDPT, &(PD | table).to_le_bytes());
        self.write(PD, &(PT | table).to_le_bytes());
        self.write(PD + 8, &(2 << 20 | HUGE_PAGE | PRESENT | WRITABLE).to_le_bytes());
        for page in (0..2 << 20).step_by(4096) {
            self.set_page(page, page | PRESENT | WRITABLE);
        }
    }

    fn build_exception_stubs(&self) {
        let record = machine_code!(
            "pop rax",
            "mov [0x8000], rax",
            "pop rax",
            "mov [0x8008], rax",
            "mov rax, [rsp]",
            "mov [0x8010], rax",
            "mov rax, cr2",
            "mov [0x8018], rax",
            "mov rax, [rsp + 16]",
            "mov [0x8020], rax",
            "out 0xf5, al",
        );
        let record_address = STUBS + 0x800;
        self.write(record_address, record);
        for vector in 0..32_u8 {
            let stub = STUBS + u64::from(vector) * 16;
            let pushes_error_code = matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30);
            let mut code = if pushes_error_code { vec![] } else { vec![0x6a, 0] };
            code.extend([0x6a, vector, 0xe9]);
            let next = stub + code.len() as u64 + 4;
            code.extend(((record_address - next) as u32).to_le_bytes());
            self.write(stub, &code);
            self.set_gate(vector, stub);
        }
    }

    fn enter_long_mode(&self) {
        const CODE_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
        const DATA_DESCRIPTOR: u64 = 0x00cf_9300_0000_ffff;
        const USER: u64 = 3 << 45;
        let descriptors = [
            0,
            CODE_DESCRIPTOR,
            DATA_DESCRIPTOR,
            DATA_DESCRIPTOR | USER,
            CODE_DESCRIPTOR | USER,
        ];
        self.write(GDT, &descriptors.map(u64::to_le_bytes).concat());
        // RSP0, where an exception from user mode starts its stack.
        self.write(TSS + 4, &STACK_TOP.to_le_bytes());
        let code = kvm_segment {
            limit: u32::MAX,
            selector: CODE_SELECTOR,
            type_: 11,
            present: 1,
            s: 1,
            l: 1,
            g: 1,
            ..Default::default()
        };
        let data = kvm_segment {
            selector: DATA_SELECTOR,
            type_: 3,
            l: 0,
            db: 1,
            ..code
        };
        let task = kvm_segment {
            base: TSS,
            limit: 103,
            type_: 11,
            present: 1,
            ..Default::default()
        };
        self.set_sregs(|sregs| {
            sregs.cs = code;
            (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
            sregs.tr = task;
            sregs.gdt = kvm_dtable {
                base: GDT,
                limit: 5 * 8 - 1,
                ..Default::default()
            };
            sregs.idt = kvm_dtable {
                base: IDT,
                limit: 32 * 16 - 1,
                ..Default::default()
            };
            sregs.cr3 = PML4;
            sregs.cr0 = 0x8001_0033; // PG, WP, NE, ET, MP, PE
            sregs.cr4 = 0x4_0620; // OSXSAVE, OSXMMEXCPT, OSFXSR, PAE
            sregs.efer = 0xd00; // NXE, LMA, LME
        });
        self.set_regs(|regs| {
            regs.rip = CODE;
            regs.rsp = STACK_TOP;
            regs.rflags = 2;
        });
        let features = self
            .cpuid
            .as_slice()
            .iter()
            .find(|leaf| leaf.function == 0xd && leaf.index == 0);
        let features = features.map_or(3, |leaf| u64::from(leaf.eax) | u64::from(leaf.edx) << 32);
        let mut xcrs = kvm_xcrs {
            nr_xcrs: 1,
            ..Default::default()
        };
        xcrs.xcrs[0] = kvm_xcr {
            xcr: 0,
            value: features,
            ..Default::default()
        };
        self.vcpu.set_xcrs(&xcrs).expect("KVM_SET_XCRS");
    }
}
