//! The table that tells a kernel without ACPI about its processors and interrupt lines (Intel MultiProcessor
//! Specification 1.4, section 4).

use vm_memory::GuestMemoryMmap;

use super::WriteError;
use crate::memory::layout;

/// The table's revision, 1.4.
const SPECIFICATION: u8 = 4;
/// The version register of KVM's local APICs and of its IOAPIC.
const LOCAL_APIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
/// Processor flags: usable, and the one that boots.
const PROCESSOR_ENABLED: u8 = 1;
const PROCESSOR_BOOT: u8 = 2;
const IOAPIC_ENABLED: u8 = 1;
/// The one bus.
const ISA_BUS: u8 = 0;
/// Interrupt types.
const INTERRUPT: u8 = 0;
const NON_MASKABLE: u8 = 1;
const EXTERNAL_INTERRUPT: u8 = 3;
/// A local interrupt entry for all local APICs.
const ALL_LOCAL_APICS: u8 = 0xff;

const POINTER_BYTES: usize = 16;
const HEADER_BYTES: usize = 44;

/// The floating pointer and the table after it, for `vcpus` processors whose local APIC ids are their indices.
fn compose(vcpus: u8) -> Vec<u8> {
    let ioapic = vcpus;
    let mut entries: Vec<Vec<u8>> = (0..vcpus).map(processor).collect();
    entries.push([&[1, ISA_BUS][..], b"ISA   "].concat());
    entries.push(
        [
            &[2, ioapic, IOAPIC_VERSION, IOAPIC_ENABLED][..],
            &layout::IOAPIC.to_le_bytes(),
        ]
        .concat(),
    );
    // Line n of the bus is pin n of the IOAPIC, with the bus's own polarity and trigger.
    entries.extend(
        (0..=layout::LAST_GSI as u8).map(|line| vec![3, INTERRUPT, 0, 0, ISA_BUS, line, ioapic, line]),
    );
    entries.push(vec![4, EXTERNAL_INTERRUPT, 0, 0, ISA_BUS, 0, 0, 0]);
    entries.push(vec![4, NON_MASKABLE, 0, 0, ISA_BUS, 0, ALL_LOCAL_APICS, 1]);

    let count = entries.len() as u16;
    let body = entries.concat();
    let mut table = b"PCMP".to_vec();
    table.extend(((HEADER_BYTES + body.len()) as u16).to_le_bytes());
    table.extend([SPECIFICATION, 0]);
    table.extend(b"BULKHEADMICROVM     ");
    table.extend([0; 6]);
    table.extend(count.to_le_bytes());
    table.extend(layout::LOCAL_APIC.to_le_bytes());
    table.extend([0; 4]);
    table.extend(body);
    balance(&mut table, 7);

    let table_address = layout::MP_TABLE as u32 + POINTER_BYTES as u32;
    let mut pointer = b"_MP_".to_vec();
    pointer.extend(table_address.to_le_bytes());
    pointer.extend([1, SPECIFICATION, 0, 0, 0, 0, 0, 0]);
    balance(&mut pointer, 10);

    pointer.extend(table);
    pointer
}

fn processor(index: u8) -> Vec<u8> {
    let flags = if index == 0 {
        PROCESSOR_ENABLED | PROCESSOR_BOOT
    } else {
        PROCESSOR_ENABLED
    };
    // Signature and features stay zero: the kernel asks the processor itself.
    [&[0, index, LOCAL_APIC_VERSION, flags][..], &[0; 16]].concat()
}

/// Makes the sum of all bytes zero by the byte at `position`, which is zero before.
fn balance(bytes: &mut [u8], position: usize) {
    bytes[position] = 0_u8.wrapping_sub(sum(bytes));
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Writes the table for `vcpus` processors, at most [`layout::MAX_VCPUS`].
///
/// # Errors
/// When the guest has no memory there.
pub fn write(memory: &GuestMemoryMmap, vcpus: u8) -> Result<(), WriteError> {
    super::write(memory, "the MP table", &compose(vcpus), layout::MP_TABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_most_vcpus_fits_into_its_room() {
        assert!(compose(layout::MAX_VCPUS).len() as u64 <= layout::MP_TABLE_BYTES);
    }

    #[test]
    fn pointer_and_table_each_sum_to_zero() {
        let bytes = compose(3);
        assert_eq!(sum(&bytes[..POINTER_BYTES]), 0);
        assert_eq!(sum(&bytes[POINTER_BYTES..]), 0);
    }

    #[test]
    fn the_pointer_points_to_the_table_after_it() {
        let bytes = compose(1);
        assert_eq!(&bytes[..8], b"_MP_\x10\xfc\x09\x00");
        assert_eq!(&bytes[POINTER_BYTES..POINTER_BYTES + 4], b"PCMP");
    }

    #[test]
    fn the_header_counts_the_entries_and_bytes_that_follow() {
        let bytes = compose(2);
        let table = &bytes[POINTER_BYTES..];
        assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
        let entries = 2 + 1 + 1 + 24 + 2;
        assert_eq!(u16::from_le_bytes([table[34], table[35]]), entries);
        assert_eq!(
            table.len(),
            HEADER_BYTES + 2 * 20 + (usize::from(entries) - 2) * 8
        );
    }

    #[test]
    fn only_the_first_vcpu_is_the_boot_processor() {
        let bytes = compose(2);
        let processors = &bytes[POINTER_BYTES + HEADER_BYTES..];
        assert_eq!(processors[..4], [0, 0, 0x14, 3]);
        assert_eq!(processors[20..24], [0, 1, 0x14, 1]);
    }
}
