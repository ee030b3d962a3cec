//! A guest whose driver is a list of acts: loads and stores of any width anywhere, port accesses, storms of either, and
//! waits. The list is made by the test, so what a guest does can be drawn at random and done again from its seed.

use crate::flat_guest::elf_with_memory;
use crate::machine_code;

/// Where the guest's image is loaded, and its list of acts.
const IMAGE: u32 = 0x20_0000;
const ACTS: u32 = 0x20_1000;
/// The first byte behind the acts that a test may fill as it likes, and the byte behind the last one.
pub(crate) const FREE: u32 = 0x24_0000;
const FREE_END: u32 = 0x2c_0000;
/// What is written to ports by the thousand.
pub(crate) const SCRATCH_OF_PORTS: u32 = FREE + 0x4_0000;
/// The first window of device memory.
pub(crate) const WINDOWS: u32 = 0xd000_0000;
/// The early console's port.
const CONSOLE: u16 = 0x3f8;

/// How wide an access is, in bytes; also the number of the act that stores so.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Width {
    One = 1,
    Two = 2,
    Four = 4,
    Eight = 8,
}

impl Width {
    pub(crate) const ALL: [Self; 4] = [Self::One, Self::Two, Self::Four, Self::Eight];
}

/// Acts in the order they were added, and what the guest's memory holds when it starts.
#[derive(Clone)]
pub(crate) struct Script {
    acts: Vec<u8>,
    free: Vec<u8>,
}

impl Script {
    /// Begins with the windows of device memory mapped.
    pub(crate) fn new() -> Self {
        const TABLE: u32 = 0x1_0000;
        const FOURTH_GIB: u32 = 0xa018;
        let mut script = Self {
            acts: Vec::new(),
            free: Vec::new(),
        };
        script.store(Width::Eight, FOURTH_GIB, u64::from(TABLE | 3));
        let entry = TABLE + (WINDOWS >> 21 & 0x1ff) * 8;
        script.store(Width::Eight, entry, u64::from(WINDOWS | 0x83));
        script
    }

    fn act(&mut self, number: u32, target: u32, value: u64) {
        self.acts.extend(number.to_le_bytes());
        self.acts.extend(target.to_le_bytes());
        self.acts.extend(value.to_le_bytes());
    }

    pub(crate) fn store(&mut self, width: Width, address: u32, value: u64) {
        self.act(width as u32, address, value);
    }

    pub(crate) fn load(&mut self, width: Width, address: u32) {
        self.act(16 + width as u32, address, 0);
    }

    /// `out` of one, two or four bytes.
    pub(crate) fn port_write(&mut self, width: Width, port: u16, value: u32) {
        self.act(32 + width as u32, port.into(), value.into());
    }

    /// `in` of one, two or four bytes.
    pub(crate) fn port_read(&mut self, width: Width, port: u16) {
        self.act(48 + width as u32, port.into(), 0);
    }

    /// The same store of four bytes, `times` times.
    pub(crate) fn storm(&mut self, address: u32, value: u32, times: u32) {
        self.act(64, address, u64::from(times) << 32 | u64::from(value));
    }

    /// `bytes` bytes from `address` on to a port, in one repeated instruction.
    pub(crate) fn port_flood(&mut self, port: u16, address: u32, bytes: u32) {
        self.act(65, port.into(), u64::from(address) << 32 | u64::from(bytes));
    }

    /// Waits until the two bytes at `address` are `value`; complains if that takes 2^35 ticks.
    pub(crate) fn wait_for(&mut self, address: u32, value: u16) {
        self.act(66, address, value.into());
    }

    /// Complains if the four bytes at `address` are not `value`.
    pub(crate) fn expect(&mut self, address: u32, value: u32) {
        self.act(67, address, value.into());
    }

    /// Lets so many ticks of the time stamp counter pass.
    pub(crate) fn rest(&mut self, ticks: u32) {
        self.act(68, 0, ticks.into());
    }

    /// Writes `text` to the early console.
    pub(crate) fn say(&mut self, text: &str) {
        for byte in text.bytes() {
            self.port_write(Width::One, CONSOLE, byte.into());
        }
    }

    /// Writes the digit of all complaints so far to the early console: 0 for none, 1 for what took too long, 2 for another
    /// value, 3 for both.
    pub(crate) fn say_complaints(&mut self) {
        self.act(70, 0, 0);
    }

    /// Does everything from the first act on once more, for ever.
    pub(crate) fn repeat(&mut self) {
        self.act(69, 0, 0);
    }

    /// Has `bytes` at `address` when the guest starts.
    pub(crate) fn preset(&mut self, address: u32, bytes: &[u8]) {
        assert!(address >= FREE && address + bytes.len() as u32 <= FREE_END);
        let start = (address - FREE) as usize;
        let end = start + bytes.len();
        self.free.resize(self.free.len().max(end), 0);
        self.free[start..end].copy_from_slice(bytes);
    }

    /// The guest as the kernel of a machine: it halts behind its last act.
    pub(crate) fn kernel(&self) -> Vec<u8> {
        let mut image = interpreter().to_vec();
        assert!(image.len() <= (ACTS - IMAGE) as usize);
        image.resize((ACTS - IMAGE) as usize, 0);
        image.extend(&self.acts);
        // The act that ends them is zeroes.
        assert!(
            image.len() + 16 <= (FREE - IMAGE) as usize,
            "{} bytes",
            self.acts.len()
        );
        image.resize((FREE - IMAGE) as usize, 0);
        image.extend(&self.free);
        elf_with_memory(&image, image.len() as u64)
    }
}

/// Takes one act after the other from the list.
fn interpreter() -> &'static [u8] {
    machine_code!(
        "xor r9d, r9d",
        "mov r12d, 0x201000",
        "2:",
        "mov eax, [r12]",
        "mov edi, [r12 + 4]",
        "mov rbx, [r12 + 8]",
        "add r12, 16",
        "cmp eax, 4",
        "jne 3f",
        "mov [rdi], ebx",
        "jmp 2b",
        "3:",
        "cmp eax, 1",
        "jne 3f",
        "mov [rdi], bl",
        "jmp 2b",
        "3:",
        "cmp eax, 2",
        "jne 3f",
        "mov [rdi], bx",
        "jmp 2b",
        "3:",
        "cmp eax, 8",
        "jne 3f",
        "mov [rdi], rbx",
        "jmp 2b",
        "3:",
        "cmp eax, 17",
        "jne 3f",
        "mov al, [rdi]",
        "jmp 2b",
        "3:",
        "cmp eax, 18",
        "jne 3f",
        "mov ax, [rdi]",
        "jmp 2b",
        "3:",
        "cmp eax, 20",
        "jne 3f",
        "mov eax, [rdi]",
        "jmp 2b",
        "3:",
        "cmp eax, 24",
        "jne 3f",
        "mov rax, [rdi]",
        "jmp 2b",
        "3:",
        "mov edx, edi",
        "cmp eax, 33",
        "jne 3f",
        "mov eax, ebx",
        "out dx, al",
        "jmp 2b",
        "3:",
        "cmp eax, 34",
        "jne 3f",
        "mov eax, ebx",
        "out dx, ax",
        "jmp 2b",
        "3:",
        "cmp eax, 36",
        "jne 3f",
        "mov eax, ebx",
        "out dx, eax",
        "jmp 2b",
        "3:",
        "cmp eax, 49",
        "jne 3f",
        "in al, dx",
        "jmp 2b",
        "3:",
        "cmp eax, 50",
        "jne 3f",
        "in ax, dx",
        "jmp 2b",
        "3:",
        "cmp eax, 52",
        "jne 3f",
        "in eax, dx",
        "jmp 2b",
        "3:",
        "cmp eax, 64",
        "jne 3f",
        "mov rcx, rbx",
        "shr rcx, 32",
        "4:",
        "mov [rdi], ebx",
        "dec rcx",
        "jnz 4b",
        "jmp 2b",
        "3:",
        "cmp eax, 65",
        "jne 3f",
        "mov ecx, ebx",
        "shr rbx, 32",
        "mov esi, ebx",
        "rep outsb",
        "jmp 2b",
        "3:",
        "cmp eax, 66",
        "jne 3f",
        "rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "mov r14, rax",
        "mov r15, 0x800000000",
        "4:",
        "cmp [rdi], bx",
        "je 2b",
        "rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "sub rax, r14",
        "cmp rax, r15",
        "jb 4b",
        "or r9d, 1",
        "jmp 2b",
        "3:",
        "cmp eax, 67",
        "jne 3f",
        "cmp [rdi], ebx",
        "je 2b",
        "or r9d, 2",
        "jmp 2b",
        "3:",
        "cmp eax, 68",
        "jne 3f",
        "rdtsc",
        "mov esi, eax",
        "4:",
        "rdtsc",
        "sub eax, esi",
        "cmp eax, ebx",
        "jb 4b",
        "jmp 2b",
        "3:",
        "cmp eax, 69",
        "jne 3f",
        "mov r12d, 0x201000",
        "jmp 2b",
        "3:",
        "cmp eax, 70",
        "jne 3f",
        "mov edx, 0x3f8",
        "mov eax, r9d",
        "add eax, 48",
        "out dx, al",
        "jmp 2b",
        "3:",
        "hlt",
        "jmp 3b",
    )
}
