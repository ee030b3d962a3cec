//! What stands in the guest's memory and registers when its first instruction runs: a kernel entered at its 64-bit
//! entry point without firmware (Linux's Documentation/arch/x86/boot.rst, "64-bit boot protocol").

pub mod command_line;
pub mod initramfs;
pub mod kernel;
pub mod mp_table;
pub mod page_tables;
pub mod registers;
pub mod segments;
pub mod zero_page;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// Why a boot structure is not in guest memory.
#[derive(Debug, thiserror::Error)]
#[error("writing {what} to guest address {address:#x}")]
pub struct WriteError {
    /// The structure's name.
    pub what: &'static str,
    /// Its address.
    pub address: u64,
    /// The cause.
    #[source]
    pub source: GuestMemoryError,
}

/// Writes one boot structure.
fn write(memory: &GuestMemoryMmap, what: &'static str, bytes: &[u8], address: u64) -> Result<(), WriteError> {
    memory
        .write_slice(bytes, GuestAddress(address))
        .map_err(|source| WriteError {
            what,
            address,
            source,
        })
}
