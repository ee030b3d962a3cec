//! Code for flat guests that drive a virtio-mmio device: just enough of a driver, written out register by register.

/// The first window of device memory (`vmm::memory::layout::VIRTIO_MMIO`).
const FIRST_WINDOW: u32 = 0xd000_0000;
/// Where the rings of queue 0 are: descriptors, available and used ring a page each. Other queues follow.
const RINGS: u32 = 0x40_0000;
const QUEUE_STRIDE: u32 = 0x1_0000;
/// Descriptors of each queue.
const QUEUE_SIZE: u32 = 16;

/// A device and where its registers are.
#[derive(Clone, Copy)]
pub(crate) struct Device {
    window: u32,
}

/// `mov ebx, address; mov dword [rbx], value`
pub(crate) fn store(address: u32, value: u32) -> Vec<u8> {
    [
        &[0xbb][..],
        &address.to_le_bytes(),
        &[0xc7, 0x03],
        &value.to_le_bytes(),
    ]
    .concat()
}

/// Bytes of machine code that jump `over` bytes back, themselves included.
pub(crate) fn jump_back(over: usize) -> Vec<u8> {
    let distance = -i32::try_from(over + 5).unwrap();
    [&[0xe9][..], &distance.to_le_bytes()].concat()
}

impl Device {
    /// The device in the window of this number.
    pub(crate) fn at(number: u32) -> Self {
        Self {
            window: FIRST_WINDOW + number * 4096,
        }
    }

    /// Maps all windows, and takes the device over with `queues` queues and the low 32 feature bits `features`.
    pub(crate) fn start(self, queues: u32, features: u32) -> Vec<u8> {
        const TABLE: u32 = 0x1_0000;
        const FOURTH_GIB: u32 = 0xa018;
        let mut code = [
            store(FOURTH_GIB, TABLE | 3),
            store(FOURTH_GIB + 4, 0),
            store(TABLE + (FIRST_WINDOW >> 21 & 0x1ff) * 8, FIRST_WINDOW | 0x83),
            // Reset, acknowledge, driver.
            self.set(0x70, 0),
            self.set(0x70, 1),
            self.set(0x70, 3),
            // The features, with VIRTIO_F_VERSION_1; features ok.
            self.set(0x24, 0),
            self.set(0x20, features),
            self.set(0x24, 1),
            self.set(0x20, 1),
            self.set(0x70, 11),
        ]
        .concat();
        for queue in 0..queues {
            let rings = RINGS + queue * QUEUE_STRIDE;
            code.extend(self.set(0x30, queue));
            code.extend(self.set(0x38, QUEUE_SIZE));
            for (register, area) in [(0x80, rings), (0x90, rings + 0x1000), (0xa0, rings + 0x2000)] {
                code.extend(self.set(register, area));
                code.extend(self.set(register + 4, 0));
            }
            code.extend(self.set(0x44, 1));
        }
        code.extend(self.set(0x70, 15));
        code
    }

    /// Makes the chain that begins with descriptor 0 available once more, and waits until the device has used it.
    pub(crate) fn submit(self, queue: u32) -> Vec<u8> {
        let rings = RINGS + queue * QUEUE_STRIDE;
        let (available, used) = ((rings + 0x1002).to_le_bytes(), (rings + 0x2002).to_le_bytes());
        [
            // mov ax, [available]; inc eax; mov [available], ax
            &[0x66, 0x8b, 0x04, 0x25][..],
            &available,
            &[0xff, 0xc0, 0x66, 0x89, 0x04, 0x25],
            &available,
            &self.set(0x50, queue),
            // wait: cmp ax, [used]; jne wait
            &[0x66, 0x3b, 0x04, 0x25],
            &used,
            &[0x75, 0xf6],
        ]
        .concat()
    }

    fn set(self, register: u32, value: u32) -> Vec<u8> {
        store(self.window + register, value)
    }
}

/// What a buffer is to the device.
#[derive(Clone, Copy)]
pub(crate) enum Access {
    /// It reads it.
    Read,
    /// It writes to it.
    Write,
}

/// Writes a chain of `buffers`, each with its address and length, into the descriptors of `queue` from the first on.
pub(crate) fn describe(queue: u32, buffers: &[(u32, u32, Access)]) -> Vec<u8> {
    let table = RINGS + queue * QUEUE_STRIDE;
    let mut code = Vec::new();
    for (index, (address, length, access)) in (0..).zip(buffers) {
        let writable = match access {
            Access::Read => 0,
            Access::Write => 2,
        };
        let next = if (index as usize) + 1 < buffers.len() {
            1 | (index + 1) << 16
        } else {
            0
        };
        for (offset, value) in [(0, *address), (4, 0), (8, *length), (12, writable | next)] {
            code.extend(store(table + index * 16 + offset, value));
        }
    }
    code
}
