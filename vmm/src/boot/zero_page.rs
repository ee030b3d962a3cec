//! The zero page (`struct boot_params`): how the kernel learns about its memory, command line and initial file
//! system. Offsets are those of Linux's Documentation/arch/x86/zero-page.rst and boot.rst.

use std::ops::Range;

use vm_memory::GuestMemoryMmap;

use super::WriteError;
use crate::memory::layout;

const E820_ENTRIES: usize = 0x1e8;
const BOOT_FLAG: usize = 0x1fe;
const HEADER: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const CMDLINE_SIZE: usize = 0x238;
const SETUP_DATA: usize = 0x250;
const E820_TABLE: usize = 0x2d0;

/// The size of an e820 entry: address, length, type.
const E820_ENTRY_BYTES: usize = 20;
/// The e820 type of RAM.
const E820_RAM: u32 = 1;
/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// `LOADED_HIGH`: the kernel is at or above 1 MiB.
const LOADED_HIGH: u8 = 1;
/// The protocol's version that has all the fields used here, 2.15.
const PROTOCOL: u16 = 0x020f;
/// `SETUP_RNG_SEED`: the node's bytes go into the kernel's random number generator and are wiped.
const SETUP_RNG_SEED: u32 = 9;

/// The length of the seed: what the kernel's generator needs to be ready.
pub const SEED_BYTES: usize = 32;

/// The e820 map of a guest with the given RAM: all of it but the legacy area below 1 MiB.
fn e820(ram: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut usable = Vec::new();
    for range in ram {
        if range.start < layout::MP_TABLE {
            usable.push(range.start..layout::MP_TABLE);
            usable.push(layout::HIGH_MEMORY..range.end);
        } else {
            usable.push(range.clone());
        }
    }
    usable
}

/// The zero page of a guest with the given RAM, whose command line takes `command_line_bytes` and whose initial file
/// system is at `initramfs`.
fn compose(
    ram: &[Range<u64>],
    command_line_bytes: usize,
    initramfs: &Range<u64>,
) -> [u8; layout::PAGE_BYTES as usize] {
    let mut page = [0; layout::PAGE_BYTES as usize];
    let mut put = |offset: usize, bytes: &[u8]| page[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(BOOT_FLAG, &0xaa55_u16.to_le_bytes());
    put(HEADER, b"HdrS");
    put(VERSION, &PROTOCOL.to_le_bytes());
    put(TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    put(LOADFLAGS, &[LOADED_HIGH]);
    // The initial file system lies below 4 GiB, so the fields for its upper halves stay zero.
    put(RAMDISK_IMAGE, &(initramfs.start as u32).to_le_bytes());
    put(
        RAMDISK_SIZE,
        &((initramfs.end - initramfs.start) as u32).to_le_bytes(),
    );
    put(CMD_LINE_PTR, &(layout::COMMAND_LINE as u32).to_le_bytes());
    put(CMDLINE_SIZE, &(command_line_bytes as u32).to_le_bytes());
    put(SETUP_DATA, &layout::SETUP_DATA.to_le_bytes());
    // At most three entries: the table has room for 128.
    let map = e820(ram);
    put(E820_ENTRIES, &[map.len() as u8]);
    for (index, range) in map.iter().enumerate() {
        let entry = E820_TABLE + index * E820_ENTRY_BYTES;
        put(entry, &range.start.to_le_bytes());
        put(entry + 8, &(range.end - range.start).to_le_bytes());
        put(entry + 16, &E820_RAM.to_le_bytes());
    }
    page
}

/// The one node of the `setup_data` chain: no next, type, length, bytes.
fn seed_node(seed: &[u8; SEED_BYTES]) -> Vec<u8> {
    let mut node = 0_u64.to_le_bytes().to_vec();
    node.extend(SETUP_RNG_SEED.to_le_bytes());
    node.extend((SEED_BYTES as u32).to_le_bytes());
    node.extend(seed);
    node
}

/// Writes the zero page and the seed of the kernel's random number generator. With it the generator is ready before
/// the first process, and needs no jitter loop, which is long where kernel mode is emulated.
///
/// # Errors
/// When the guest has no memory there.
pub fn write(
    memory: &GuestMemoryMmap,
    ram: &[Range<u64>],
    command_line_bytes: usize,
    initramfs: &Range<u64>,
    seed: &[u8; SEED_BYTES],
) -> Result<(), WriteError> {
    let page = compose(ram, command_line_bytes, initramfs);
    super::write(memory, "the zero page", &page, layout::ZERO_PAGE)?;
    super::write(memory, "the random seed", &seed_node(seed), layout::SETUP_DATA)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_map_of_128_mib_has_two_entries_around_the_legacy_area() {
        assert_eq!(e820(&layout::ram(128 * MIB)), vec![0..0x9_fc00, MIB..128 * MIB]);
    }

    #[test]
    fn the_map_of_4_gib_has_a_third_above_the_hole() {
        let map = e820(&layout::ram(4096 * MIB));
        assert_eq!(
            map,
            vec![0..0x9_fc00, MIB..0xd000_0000, 0x1_0000_0000..0x1_3000_0000]
        );
    }

    #[test]
    fn the_fields_are_where_the_kernel_reads_them() {
        let page = compose(&layout::ram(128 * MIB), 100, &(0x7ff_0000..0x7ff_1234));
        assert_eq!(page[0x1e8], 2);
        assert_eq!(page[0x1fe..0x200], [0x55, 0xaa]);
        assert_eq!(&page[0x202..0x206], b"HdrS");
        assert_eq!(page[0x218..0x220], [0, 0, 0xff, 0x07, 0x34, 0x12, 0, 0]);
        assert_eq!(page[0x228..0x22c], [0, 0, 2, 0]);
        assert_eq!(page[0x250..0x258], [0, 0x80, 0, 0, 0, 0, 0, 0]);
        assert_eq!(page[0x2e4..0x2ec], (MIB).to_le_bytes());
        assert_eq!(page[0x2ec..0x2f4], (127 * MIB).to_le_bytes());
        assert_eq!(page[0x2f4..0x2f8], [1, 0, 0, 0]);
    }

    #[test]
    fn the_sentinel_that_marks_a_page_as_unclean_is_zero() {
        assert_eq!(compose(&layout::ram(MIB * 64), 1, &(0..0))[0x1ef], 0);
    }

    #[test]
    fn the_seed_node_ends_its_chain_and_gives_its_length() {
        let node = seed_node(&[7; SEED_BYTES]);
        assert_eq!(node[..16], [0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 32, 0, 0, 0]);
        assert_eq!(node[16..], [7; SEED_BYTES]);
    }
}
