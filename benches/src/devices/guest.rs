//! The guest: a flat program that drives one queue of a virtio-mmio device and nothing else, and the image it lies in.
//! Any VMM that loads an ELF file and enters it in 64-bit mode, or as PVH says in 32-bit mode, can run it.
//!
//! It finds the device, writes the registers it is told to write, and then makes rounds without end: make so many chains
//! available, notify, halt until the device says that all are used, look whether they were served, and after so many
//! rounds write a byte to the first serial port. All it works on, rings, descriptors and requests, is laid out here
//! beforehand, so that a round is some ten instructions and not a driver's thousands: where KVM emulates the guest's
//! kernel, those would be all that is measured.

use std::arch::global_asm;

/// Where the image is loaded; its addresses are the same for the guest and for the device.
pub(super) const BASE: u64 = 0x20_0000;
/// The parameters of the program, numbers of 64 bits, to which R15 points.
const PARAMETERS: u64 = BASE + 0x1000;
const GDT: u64 = BASE + 0x2000;
/// What LGDT and LIDT read.
const GDT_POINTER: u64 = BASE + 0x2f00;
const IDT_POINTER: u64 = BASE + 0x2f10;
const IDT: u64 = BASE + 0x3000;
/// The top page table, the one below it, and those of the four GiB.
const PAGE_TABLES: u64 = BASE + 0x4000;
/// Writes of registers: absolute, and relative to the device.
const SYSTEM_WRITES: u64 = BASE + 0xa000;
const DEVICE_WRITES: u64 = BASE + 0xb000;
const STACK_TOP: u64 = BASE + 0xd000;
/// The two queues, each with a page for descriptors, one for the available and one for the used ring.
const QUEUES: u64 = BASE + 0xd000;
/// The headers of the requests that are under way, and their statuses.
pub(super) const HEADERS: u64 = BASE + 0x1_3000;
pub(super) const STATUSES: u64 = BASE + 0x1_4000;
/// The headers of all requests, which are put in their place a round at a time.
pub(super) const TABLE: u64 = BASE + 0x2_0000;
/// What is read and written.
pub(super) const BUFFERS: u64 = BASE + 0x20_0000;
/// Where the guest's part of its memory ends. A VMM that expects a kernel wants more behind it.
const MEMORY_END: u64 = 24 << 20;
pub(super) const MEMORY_MIB: u32 = 64;

/// Entries of each ring.
pub(super) const QUEUE_SIZE: u16 = 256;

const IOAPIC: u32 = 0xfec0_0000;
const LOCAL_APIC: u32 = 0xfee0_0000;
/// The vector of all devices.
const VECTOR: u8 = 0x40;
/// What the program writes to the serial port: a mark for rounds that went well, or why it has stopped.
pub(super) const MARK: u8 = b'.';
pub(super) const NO_DEVICE: u8 = b'D';
pub(super) const NOT_ACCEPTED: u8 = b'A';
pub(super) const EXCEPTION: u8 = b'E';
pub(super) const BAD_STATUS: u8 = b'S';
pub(super) const WRONG_DATA: u8 = b'W';

/// Where the parameters are, from the first on.
mod parameter {
    // Where the windows of virtio-mmio begin, and how far the next is from one.
    pub(super) const FIRST_WINDOW: u64 = 0;
    pub(super) const STRIDE: u64 = 8;
    // The device's number.
    pub(super) const DEVICE: u64 = 16;
    // The rings of the queue, and where the available one says of which request the device is to tell.
    pub(super) const AVAILABLE: u64 = 24;
    pub(super) const USED: u64 = 32;
    pub(super) const USED_EVENT: u64 = 40;
    // Requests of a round.
    pub(super) const IN_ROUND: u64 = 48;
    // What is written to notify the device.
    pub(super) const QUEUE: u64 = 56;
    // Requests that are available beyond those of the round.
    pub(super) const AHEAD: u64 = 64;
    // Numbers of 64 bits in a round's headers, and where those of all rounds begin and end.
    pub(super) const HEADER_WORDS: u64 = 72;
    pub(super) const TABLE_START: u64 = 80;
    pub(super) const TABLE_END: u64 = 88;
    // How many times eight statuses there are, and which of their bits.
    pub(super) const STATUS_GROUPS: u64 = 96;
    pub(super) const STATUS_MASK: u64 = 104;
    // Where the number of the first sector is, and where it is to be read to; zero if nothing is read.
    pub(super) const WANTED_SECTOR: u64 = 112;
    pub(super) const READ_SECTOR: u64 = 120;
    // Rounds from one mark to the next.
    pub(super) const ROUNDS: u64 = 128;
}

global_asm!(
    ".pushsection .rodata.flat_guest, \"a\", @progbits",
    "flat_guest_start:",
    // As PVH has it: 32-bit protected mode without paging.
    ".code32",
    "flat_guest_protected_mode:",
    "mov eax, cr4",
    "or eax, 0x20",
    "mov cr4, eax",
    "mov eax, {page_tables}",
    "mov cr3, eax",
    "mov ecx, 0xc0000080", // EFER
    "rdmsr",
    "or eax, 0x100", // LME
    "wrmsr",
    "lgdt [{gdt_pointer}]",
    "mov eax, cr0",
    "or eax, 0x80000000",
    "mov cr0, eax",
    ".byte 0xea", // jmp 8:flat_guest_long_mode
    ".long {base} + flat_guest_long_mode - flat_guest_start",
    ".word 8",
    ".code64",
    "flat_guest_long_mode:",
    "mov eax, {page_tables}",
    "mov cr3, rax",
    "mov edi, {gdt_pointer}",
    "lgdt [rdi]",
    "mov edi, {idt_pointer}",
    "lidt [rdi]",
    "mov eax, 16",
    "mov ss, eax",
    "mov ds, eax",
    "mov es, eax",
    "mov esp, {stack_top}",
    "cld",
    "mov r15d, {parameters}",
    "xor ebx, ebx",
    "mov esi, {system_writes}",
    "call flat_guest_write_registers",
    // Find the device among sixteen windows.
    "mov r10, [r15 + {first_window}]",
    "mov ecx, 16",
    "2: mov eax, [r10 + 8]",
    "cmp eax, [r15 + {device}]",
    "je 3f",
    "add r10, [r15 + {stride}]",
    "dec ecx",
    "jnz 2b",
    "mov al, {no_device}",
    "jmp flat_guest_stop",
    "3: mov rbx, r10",
    "mov esi, {device_writes}",
    "call flat_guest_write_registers",
    "mov eax, [r10 + 0x70]",
    "cmp eax, 15", // all that a driver sets, and nothing of the device's
    "mov al, {not_accepted}",
    "jne flat_guest_stop",
    "mov r8, [r15 + {available}]",
    "mov r9, [r15 + {used}]",
    "mov rbp, [r15 + {used_event}]",
    "mov r13, [r15 + {in_round}]",
    "mov r11, [r15 + {table_start}]",
    "mov r14, [r15 + {rounds}]",
    "xor r12d, r12d",
    // A round: headers first, if there are any.
    "flat_guest_round:",
    "mov ecx, [r15 + {header_words}]",
    "test ecx, ecx",
    "jz 5f",
    "mov rsi, r11",
    "mov edi, {headers}",
    "rep movsq",
    "mov r11, rsi",
    "cmp rsi, [r15 + {table_end}]",
    "jb 5f",
    "mov r11, [r15 + {table_start}]",
    // Tell when the last one is used, not before.
    "5: add r12d, r13d",
    "lea eax, [r12 - 1]",
    "mov [rbp], ax",
    "mov eax, r12d",
    "add eax, [r15 + {ahead}]",
    "mov [r8 + 2], ax",
    "mov eax, [r15 + {queue}]",
    "mov [r10 + 0x50], eax",
    // Each round has its interrupt, and waits for it even if all is used by then: one that comes later would be taken for
    // the next round's, and acknowledged while QEMU's iothread is about to raise that. Only where chains are available
    // beyond those of the round they may have been used before it was said when to tell.
    "cmp dword ptr [r15 + {ahead}], 0",
    "je flat_guest_halt",
    "flat_guest_wait:",
    "mov ax, [r9 + 2]",
    "sub ax, r12w",
    "jns flat_guest_used",
    "flat_guest_halt:",
    "sti",
    "hlt",
    "jmp flat_guest_wait",
    // An interrupt comes here, only ever from HLT: what it pushed is dropped.
    "flat_guest_interrupt:",
    "mov esp, {stack_top}",
    "mov eax, [r10 + 0x60]",
    "mov [r10 + 0x64], eax",
    "mov edi, {end_of_interrupt}",
    "mov dword ptr [rdi], 0",
    "jmp flat_guest_wait",
    "flat_guest_used:",
    "mov ecx, [r15 + {status_groups}]",
    "test ecx, ecx",
    "jz 8f",
    "mov esi, {statuses}",
    "xor ebx, ebx",
    "6: or rbx, [rsi]",
    "mov qword ptr [rsi], -1",
    "add rsi, 8",
    "dec ecx",
    "jnz 6b",
    "and rbx, [r15 + {status_mask}]",
    "mov al, {bad_status}",
    "jnz flat_guest_stop",
    // Each sector of the disk begins with its number.
    "mov rdi, [r15 + {wanted_sector}]",
    "test rdi, rdi",
    "jz 8f",
    "mov rbx, [rdi]",
    "mov rdi, [r15 + {read_sector}]",
    "cmp rbx, [rdi]",
    "mov al, {wrong_data}",
    "jne flat_guest_stop",
    "8: dec r14d",
    "jnz flat_guest_round",
    "mov r14, [r15 + {rounds}]",
    "mov edx, 0x3f8",
    "mov al, {mark}",
    "out dx, al",
    "jmp flat_guest_round",
    "flat_guest_exception:",
    "mov al, {exception}",
    "flat_guest_stop:",
    "mov edx, 0x3f8",
    "out dx, al",
    "cli",
    "9: hlt",
    "jmp 9b",
    // Writes the pairs of offset and value at RSI, which end with an offset of ones, to RBX and on.
    "flat_guest_write_registers:",
    "mov edi, [rsi]",
    "cmp edi, -1",
    "je 4f",
    "mov eax, [rsi + 4]",
    "mov [rbx + rdi], eax",
    "add rsi, 8",
    "jmp flat_guest_write_registers",
    "4: ret",
    "flat_guest_end:",
    ".popsection",
    base = const BASE,
    page_tables = const PAGE_TABLES,
    gdt_pointer = const GDT_POINTER,
    idt_pointer = const IDT_POINTER,
    stack_top = const STACK_TOP,
    parameters = const PARAMETERS,
    system_writes = const SYSTEM_WRITES,
    device_writes = const DEVICE_WRITES,
    headers = const HEADERS,
    statuses = const STATUSES,
    end_of_interrupt = const LOCAL_APIC + 0xb0,
    no_device = const NO_DEVICE,
    not_accepted = const NOT_ACCEPTED,
    bad_status = const BAD_STATUS,
    wrong_data = const WRONG_DATA,
    mark = const MARK,
    exception = const EXCEPTION,
    first_window = const parameter::FIRST_WINDOW,
    stride = const parameter::STRIDE,
    device = const parameter::DEVICE,
    available = const parameter::AVAILABLE,
    used = const parameter::USED,
    used_event = const parameter::USED_EVENT,
    in_round = const parameter::IN_ROUND,
    queue = const parameter::QUEUE,
    ahead = const parameter::AHEAD,
    header_words = const parameter::HEADER_WORDS,
    table_start = const parameter::TABLE_START,
    table_end = const parameter::TABLE_END,
    status_groups = const parameter::STATUS_GROUPS,
    status_mask = const parameter::STATUS_MASK,
    wanted_sector = const parameter::WANTED_SECTOR,
    read_sector = const parameter::READ_SECTOR,
    rounds = const parameter::ROUNDS,
);

unsafe extern "C" {
    static flat_guest_start: u8;
    static flat_guest_long_mode: u8;
    static flat_guest_interrupt: u8;
    static flat_guest_exception: u8;
    static flat_guest_end: u8;
}

/// How far behind the program's beginning one of its labels is.
fn offset_of(label: *const u8) -> u64 {
    (label.addr() - (&raw const flat_guest_start).addr()) as u64
}

fn program() -> &'static [u8] {
    let length = offset_of(&raw const flat_guest_end) as usize;
    // SAFETY: both labels are of one section, which nothing writes, and the bytes between them are the program's.
    unsafe { std::slice::from_raw_parts(&raw const flat_guest_start, length) }
}

/// Where a VMM has its virtio-mmio windows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Windows {
    pub(super) first: u64,
    pub(super) stride: u64,
}

/// What the program is to do.
#[derive(Debug, Clone)]
pub(super) struct Program {
    /// The device's number (virtio 1.2, section 5).
    pub(super) device: u32,
    /// Feature bits that the device must have.
    pub(super) features: u64,
    /// The queue that is used, and the last of those that are set up.
    pub(super) queue: u32,
    pub(super) last_queue: u32,
    /// The chains of a round, each a list of buffers.
    pub(super) chains: Vec<Vec<Buffer>>,
    /// How many of them a round makes available and waits for. Those beyond it are available from the beginning.
    pub(super) in_round: u16,
    /// Requests of a disk: type, and sector, of one round after the other.
    pub(super) requests: Vec<(u32, u64)>,
    /// Where the first sector of a round's first request is read to, if it is.
    pub(super) reads_to: Option<u64>,
    /// Rounds from a mark to the next.
    pub(super) rounds: u64,
    /// What is in the guest's memory at the beginning.
    pub(super) memory: Vec<(u64, Vec<u8>)>,
}

/// A buffer of a chain.
#[derive(Debug, Clone, Copy)]
pub(super) struct Buffer {
    pub(super) address: u64,
    pub(super) length: u32,
    /// Whether the device writes to it.
    pub(super) is_written: bool,
}

/// The bytes from [`BASE`] on.
struct Image(Vec<u8>);

impl Image {
    fn put(&mut self, address: u64, bytes: &[u8]) {
        let start = (address - BASE) as usize;
        let end = start + bytes.len();
        if self.0.len() < end {
            self.0.resize(end, 0);
        }
        if let Some(place) = self.0.get_mut(start..end) {
            place.copy_from_slice(bytes);
        }
    }

    fn put_numbers(&mut self, address: u64, numbers: &[u64]) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.put(address, &bytes);
    }

    fn put_writes(&mut self, address: u64, writes: &[(u32, u32)]) {
        let end = [(u32::MAX, 0)];
        let bytes: Vec<u8> = writes
            .iter()
            .chain(&end)
            .flat_map(|(offset, value)| [offset.to_le_bytes(), value.to_le_bytes()].concat())
            .collect();
        self.put(address, &bytes);
    }
}

/// An ELF file with the program, for a VMM with its devices in these windows.
pub(super) fn elf(program: &Program, windows: Windows) -> Vec<u8> {
    let mut image = Image(Vec::new());
    image.put(BASE, self::program());
    put_tables(&mut image);
    put_queues(&mut image, program);
    let rings = rings(program.queue);
    let in_round = u64::from(program.in_round);
    let ahead = program.chains.len() as u64 - in_round;
    let headers = if program.requests.is_empty() { 0 } else { in_round };
    let table: Vec<u64> = program
        .requests
        .iter()
        .flat_map(|(kind, sector)| [u64::from(*kind), *sector])
        .collect();
    image.put_numbers(TABLE, &table);
    // Statuses are looked at eight at a time; of a single one the others are left out.
    let status_mask = if headers == 1 { 0xff } else { u64::MAX };
    for (offset, value) in [
        (parameter::FIRST_WINDOW, windows.first),
        (parameter::STRIDE, windows.stride),
        (parameter::DEVICE, u64::from(program.device)),
        (parameter::AVAILABLE, rings.available),
        (parameter::USED, rings.used),
        (
            parameter::USED_EVENT,
            rings.available + 4 + u64::from(QUEUE_SIZE) * 2,
        ),
        (parameter::IN_ROUND, in_round),
        (parameter::QUEUE, u64::from(program.queue)),
        (parameter::AHEAD, ahead),
        (parameter::HEADER_WORDS, headers * 2),
        (parameter::TABLE_START, TABLE),
        (parameter::TABLE_END, TABLE + table.len() as u64 * 8),
        (parameter::STATUS_GROUPS, headers.div_ceil(8)),
        (parameter::STATUS_MASK, status_mask),
        (
            parameter::WANTED_SECTOR,
            program.reads_to.map_or(0, |_| HEADERS + 8),
        ),
        (parameter::READ_SECTOR, program.reads_to.unwrap_or(0)),
        (parameter::ROUNDS, program.rounds),
    ] {
        image.put_numbers(PARAMETERS + offset, &[value]);
    }
    for (address, bytes) in &program.memory {
        image.put(*address, bytes);
    }
    file(&image.0)
}

/// Segments, interrupts and pages.
fn put_tables(image: &mut Image) {
    const TABLE_ENTRY: u64 = 3;
    const LARGE_PAGE: u64 = 0x83;
    image.put_numbers(GDT, &[0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]);
    image.put(
        GDT_POINTER,
        &[&23_u16.to_le_bytes()[..], &GDT.to_le_bytes()].concat(),
    );
    image.put(
        IDT_POINTER,
        &[&4095_u16.to_le_bytes()[..], &IDT.to_le_bytes()].concat(),
    );
    for vector in 0..=u8::MAX {
        let handler = match vector {
            VECTOR => &raw const flat_guest_interrupt,
            _ => &raw const flat_guest_exception,
        };
        let handler = BASE + offset_of(handler);
        let gate = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
        image.put_numbers(IDT + u64::from(vector) * 16, &[gate, 0]);
    }
    // Four GiB, address for address, in pages of 2 MiB.
    image.put_numbers(PAGE_TABLES, &[(PAGE_TABLES + 0x1000) | TABLE_ENTRY]);
    for gib in 0..4 {
        let directory = PAGE_TABLES + 0x2000 + gib * 0x1000;
        image.put_numbers(PAGE_TABLES + 0x1000 + gib * 8, &[directory | TABLE_ENTRY]);
        let pages: Vec<u64> = (0..512).map(|page| gib << 30 | page << 21 | LARGE_PAGE).collect();
        image.put_numbers(directory, &pages);
    }
    // The local APIC is on and hears nothing of the older interrupt controller; all lines of devices raise the one
    // vector, at edges, on the only CPU.
    let mut writes = vec![
        (LOCAL_APIC + 0xf0, 0x1ff),
        (LOCAL_APIC + 0x350, 0x1_0000),
        (LOCAL_APIC + 0x80, 0),
    ];
    for line in 5..24 {
        for (register, value) in [(line * 2 + 0x11, 0), (line * 2 + 0x10, u32::from(VECTOR))] {
            writes.extend([(IOAPIC, register), (IOAPIC + 0x10, value)]);
        }
    }
    image.put_writes(SYSTEM_WRITES, &writes);
}

struct Rings {
    descriptors: u64,
    available: u64,
    used: u64,
}

fn rings(queue: u32) -> Rings {
    let descriptors = QUEUES + u64::from(queue) * 0x3000;
    Rings {
        descriptors,
        available: descriptors + 0x1000,
        used: descriptors + 0x2000,
    }
}

/// The registers that make the device ready, and the rings of its queue with all chains in them.
fn put_queues(image: &mut Image, program: &Program) {
    const STATUS: u32 = 0x70;
    let (low, high) = (program.features as u32, (program.features >> 32) as u32);
    let mut writes = vec![(STATUS, 0), (STATUS, 1), (STATUS, 3)];
    writes.extend([(0x24, 0), (0x20, low), (0x24, 1), (0x20, high), (STATUS, 11)]);
    for queue in 0..=program.last_queue {
        let rings = rings(queue);
        writes.extend([(0x30, queue), (0x38, u32::from(QUEUE_SIZE))]);
        for (register, address) in [
            (0x80, rings.descriptors),
            (0x90, rings.available),
            (0xa0, rings.used),
        ] {
            writes.extend([(register, address as u32), (register + 4, 0)]);
        }
        writes.push((0x44, 1));
    }
    writes.push((STATUS, 15));
    image.put_writes(DEVICE_WRITES, &writes);

    let rings = rings(program.queue);
    let mut heads = Vec::new();
    let mut next = 0_u16;
    for chain in &program.chains {
        heads.push(next);
        for (index, buffer) in chain.iter().enumerate() {
            let goes_on = index + 1 < chain.len();
            let flags = u64::from(goes_on) | u64::from(buffer.is_written) << 1;
            let rest = u64::from(buffer.length) | flags << 32 | u64::from(next + 1) << 48;
            let address = rings.descriptors + u64::from(next) * 16;
            image.put_numbers(address, &[buffer.address, rest]);
            next += 1;
        }
    }
    let entries: Vec<u8> = heads
        .iter()
        .cycle()
        .take(usize::from(QUEUE_SIZE))
        .flat_map(|head| head.to_le_bytes())
        .collect();
    image.put(rings.available + 4, &entries);
    // All of the statuses are there to be overwritten.
    image.put(STATUSES, &[0xff; 64]);
    // A page more, so that the used ring is there.
    image.put(rings.used, &[0; 0x1000]);
}

/// An ELF executable with the one segment `image`, that also has a PVH entry point.
fn file(image: &[u8]) -> Vec<u8> {
    const NOTE: u64 = 64 + 2 * 56;
    const SEGMENT: u64 = 4096;
    let entry = BASE + offset_of(&raw const flat_guest_long_mode);
    // XEN_ELFNOTE_PHYS32_ENTRY
    let mut note: Vec<u8> = [4_u32, 8, 18]
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect();
    note.extend(b"Xen\0");
    note.extend(BASE.to_le_bytes());
    let mut file = Vec::from(b"\x7fELF\x02\x01\x01");
    file.resize(16, 0);
    file.extend([2_u16, 62].map(u16::to_le_bytes).concat()); // an executable for x86-64
    file.extend(1_u32.to_le_bytes());
    file.extend([entry, 64, 0].map(u64::to_le_bytes).concat());
    file.extend(0_u32.to_le_bytes());
    file.extend([64_u16, 56, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
    let memory = MEMORY_END - BASE;
    for (kind, offset, address, length, memory, alignment) in [
        (1_u32, SEGMENT, BASE, image.len() as u64, memory, 4096),
        (4, NOTE, 0, note.len() as u64, note.len() as u64, 4),
    ] {
        file.extend([kind, 7].map(u32::to_le_bytes).concat());
        file.extend(
            [offset, address, address, length, memory, alignment]
                .map(u64::to_le_bytes)
                .concat(),
        );
    }
    file.extend(note);
    file.resize(SEGMENT as usize, 0);
    file.extend(image);
    file
}
