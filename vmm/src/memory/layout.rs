//! Where everything is in the guest's physical address space.
//!
//! ```text
//! 0x0000_0500   boot GDT
//! 0x0000_7000   zero page (boot_params)
//! 0x0000_8000   setup_data: the seed of the guest's random number generator
//! 0x0000_9000   boot page tables, three pages
//! 0x0002_0000   kernel command line
//! 0x0009_fc00   MP table; RAM as the guest knows it ends here and goes on at 1 MiB
//! 0x0010_0000   RAM: kernel, initramfs at the end of the part below the hole
//! 0xd000_0000   hole: virtio-mmio windows, a page each
//! 0xfec0_0000   IOAPIC
//! 0xfee0_0000   local APICs
//! 0xfffb_c000   KVM's identity map page and task state segment
//! 0x1_0000_0000 the RAM that did not fit below the hole
//! ```

use std::ops::Range;

/// The size of a page.
pub const PAGE_BYTES: u64 = 4096;
/// The boot GDT.
pub const GDT: u64 = 0x500;
/// The zero page.
pub const ZERO_PAGE: u64 = 0x7000;
/// The chain of `setup_data`.
pub const SETUP_DATA: u64 = 0x8000;
/// The top boot page table; the two below it follow.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// The greatest command line with its NUL (`COMMAND_LINE_SIZE` of the kernel's x86 setup.h).
pub const COMMAND_LINE_BYTES: usize = 2048;
/// The MP table: the last KiB of conventional memory is one of the places where a kernel looks for it
/// (MultiProcessor Specification 1.4, section 4).
pub const MP_TABLE: u64 = 0x9_fc00;
/// The room for the MP table.
pub const MP_TABLE_BYTES: u64 = 0x400;
/// Where RAM goes on after the legacy area, and the lowest address a kernel may be loaded at.
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// The hole below 4 GiB, where there is no RAM.
pub const HOLE: Range<u64> = 0xd000_0000..0x1_0000_0000;
/// The first virtio-mmio window.
pub const VIRTIO_MMIO: u64 = HOLE.start;
/// The size of a virtio-mmio window.
pub const VIRTIO_MMIO_BYTES: u64 = PAGE_BYTES;
/// The interrupt controller, where KVM emulates it.
pub const IOAPIC: u32 = 0xfec0_0000;
/// The local APICs, where KVM emulates them.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// A page KVM uses for real mode on VT-x processors that cannot run it natively.
pub const IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages KVM uses for the same purpose.
pub const TASK_STATE_SEGMENT: u64 = 0xfffb_d000;

/// The first interrupt line given to a device; those below are the PC's timer, keyboard, cascade and serial ports.
pub const FIRST_GSI: u32 = 5;
/// The last line of KVM's IOAPIC.
pub const LAST_GSI: u32 = 23;
/// Console, entropy, balloon and vsock.
const DEVICES_OF_EVERY_MACHINE: usize = 4;
/// The lines that are left for shared directories and disks.
pub const MAX_SHARED_DIRECTORIES: usize = (LAST_GSI - FIRST_GSI + 1) as usize - DEVICES_OF_EVERY_MACHINE;
/// The vCPUs whose entries fit into the MP table's KiB.
pub const MAX_VCPUS: u8 = 32;

/// The RAM of a machine of `bytes`: one range, or two around the hole. `bytes` is at most 2^40.
pub fn ram(bytes: u64) -> Vec<Range<u64>> {
    let below = bytes.min(HOLE.start);
    [0..below, HOLE.end..HOLE.end + (bytes - below)]
        .into_iter()
        .filter(|range| !range.is_empty())
        .collect()
}

/// `address` or the next address above it that begins a page; `None` beyond the address space.
pub fn page_up(address: u64) -> Option<u64> {
    address.checked_next_multiple_of(PAGE_BYTES)
}

/// `address` or the next address below it that begins a page.
pub fn page_down(address: u64) -> u64 {
    address - address % PAGE_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_that_ends_at_the_hole_is_one_range() {
        let ranges = ram(HOLE.start);
        assert_eq!((ranges.len(), ranges.first()), (1, Some(&(0..HOLE.start))));
    }

    #[test]
    fn a_page_more_than_that_continues_at_4_gib() {
        assert_eq!(
            ram(HOLE.start + PAGE_BYTES),
            vec![0..HOLE.start, HOLE.end..HOLE.end + PAGE_BYTES]
        );
    }

    #[test]
    fn the_windows_of_all_devices_lie_below_the_ioapic() {
        let devices = u64::from(LAST_GSI - FIRST_GSI + 1);
        assert!(VIRTIO_MMIO + devices * VIRTIO_MMIO_BYTES <= u64::from(IOAPIC));
    }

    #[test]
    fn fifteen_directories_can_be_shared() {
        assert_eq!(MAX_SHARED_DIRECTORIES, 15);
    }

    #[test]
    fn the_structures_of_low_memory_do_not_overlap() {
        let structures = [
            GDT..GDT + 0x100,
            ZERO_PAGE..ZERO_PAGE + PAGE_BYTES,
            SETUP_DATA..SETUP_DATA + PAGE_BYTES,
            PAGE_TABLES..PAGE_TABLES + 3 * PAGE_BYTES,
            COMMAND_LINE..COMMAND_LINE + COMMAND_LINE_BYTES as u64,
            MP_TABLE..MP_TABLE + MP_TABLE_BYTES,
        ];
        assert!(structures.windows(2).all(|pair| pair[0].end <= pair[1].start));
    }

    #[test]
    fn the_last_page_has_no_page_above_it() {
        assert_eq!(page_up(u64::MAX), None);
        assert_eq!(page_up(PAGE_BYTES + 1), Some(2 * PAGE_BYTES));
        assert_eq!(page_down(PAGE_BYTES + 1), PAGE_BYTES);
    }
}
