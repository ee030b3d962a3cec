//! The page tables a kernel is entered with: the first GiB, address for address, in pages of 2 MiB. The kernel builds
//! its own as its first act; until then it touches itself, the zero page and the command line.

use vm_memory::GuestMemoryMmap;

use super::WriteError;
use crate::memory::layout::{PAGE_BYTES, PAGE_TABLES};

/// Entry bits: present and writable, and a page of 2 MiB (Intel SDM volume 3, section 4.5).
const TABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 0b1000_0011;
const ENTRIES: u64 = PAGE_BYTES / 8;
const LARGE_PAGE_BYTES: u64 = 2 << 20;

/// Writes the three tables.
///
/// # Errors
/// When the guest has no memory there.
pub fn write(memory: &GuestMemoryMmap) -> Result<(), WriteError> {
    let (directory_pointers, directory) = (PAGE_TABLES + PAGE_BYTES, PAGE_TABLES + 2 * PAGE_BYTES);
    let pages: Vec<u8> = (0..ENTRIES)
        .flat_map(|index| ((index * LARGE_PAGE_BYTES) | LARGE_PAGE).to_le_bytes())
        .collect();
    super::write(
        memory,
        "page tables",
        &(directory_pointers | TABLE).to_le_bytes(),
        PAGE_TABLES,
    )?;
    super::write(
        memory,
        "page tables",
        &(directory | TABLE).to_le_bytes(),
        directory_pointers,
    )?;
    super::write(memory, "page tables", &pages, directory)
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory::reserve;

    fn entry(memory: &GuestMemoryMmap, table: u64, index: u64) -> u64 {
        memory
            .read_obj(GuestAddress((table & !0xfff) + index * 8))
            .unwrap()
    }

    #[test]
    fn an_address_in_the_first_gib_is_translated_to_itself() {
        let memory = reserve(1 << 20).unwrap();
        write(&memory).unwrap();
        let directory_pointers = entry(&memory, PAGE_TABLES, 0);
        let directory = entry(&memory, directory_pointers, 0);
        let page = entry(&memory, directory, 0x1234_5678 >> 21);
        assert_eq!(page & !0x1f_ffff, 0x1220_0000);
        assert_eq!(page & 0xff, 0x83);
    }

    #[test]
    fn the_second_gib_is_not_mapped() {
        let memory = reserve(1 << 20).unwrap();
        write(&memory).unwrap();
        assert_eq!(entry(&memory, entry(&memory, PAGE_TABLES, 0), 1), 0);
    }
}
