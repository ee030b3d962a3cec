//! The flat segments of the 64-bit boot protocol, in memory (the GDT) and as vCPU registers.

use kvm_bindings::kvm_segment;
use vm_memory::GuestMemoryMmap;

use super::WriteError;
use crate::memory::layout::GDT;

/// `__BOOT_CS`, the selector the protocol names for code.
const CODE_SELECTOR: u16 = 0x10;
/// `__BOOT_DS`, for data.
const DATA_SELECTOR: u16 = 0x18;
/// A task state segment, which the processor insists on having.
const TASK_SELECTOR: u16 = 0x20;

/// Segment types: code that can be executed and read, data that can be written, a busy 64-bit task, each accessed
/// (Intel SDM volume 3, section 3.4.5.1 and 3.5).
const CODE: u8 = 0xb;
const DATA: u8 = 0x3;
const TASK: u8 = 0xb;

/// The segments of a vCPU about to be entered.
pub struct Segments {
    /// CS.
    pub code: kvm_segment,
    /// DS, ES, SS, FS and GS.
    pub data: kvm_segment,
    /// TR.
    pub task: kvm_segment,
}

/// The segments of the protocol: all of memory, code in 64-bit mode.
pub fn boot_segments() -> Segments {
    let memory = kvm_segment {
        base: 0,
        limit: u32::MAX,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    Segments {
        code: kvm_segment {
            selector: CODE_SELECTOR,
            type_: CODE,
            l: 1,
            ..memory
        },
        data: kvm_segment {
            selector: DATA_SELECTOR,
            type_: DATA,
            db: 1,
            ..memory
        },
        task: kvm_segment {
            selector: TASK_SELECTOR,
            type_: TASK,
            s: 0,
            ..memory
        },
    }
}

/// The GDT's limit: five entries.
pub const GDT_LIMIT: u16 = 5 * 8 - 1;

/// Writes the GDT: two empty entries, code, data, task.
///
/// # Errors
/// When the guest has no memory there.
pub fn write(memory: &GuestMemoryMmap) -> Result<(), WriteError> {
    let Segments { code, data, task } = boot_segments();
    let table = [0, 0, descriptor(&code), descriptor(&data), descriptor(&task)];
    super::write(memory, "the GDT", &table.map(u64::to_le_bytes).concat(), GDT)
}

/// The eight bytes that describe `segment`, whose base is zero.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    (limit & 0xffff) | access << 40 | (limit >> 16 & 0xf) << 48 | flags << 52
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_descriptor_is_64_bit_code_of_all_memory() {
        assert_eq!(descriptor(&boot_segments().code), 0x00af_9b00_0000_ffff);
    }

    #[test]
    fn the_data_descriptor_is_writable_data_of_all_memory() {
        assert_eq!(descriptor(&boot_segments().data), 0x00cf_9300_0000_ffff);
    }
}
