//! The guest's memory.

pub mod discard;
pub mod file;
pub mod layout;

use vm_memory::mmap::FromRangesError;
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// Why there is no guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host refused the address space.
    #[error("reserving {bytes} bytes of guest memory")]
    Reserve {
        /// The amount.
        bytes: u64,
        /// The cause.
        #[source]
        source: FromRangesError,
    },
}

/// Reserves `bytes` of RAM around the hole below 4 GiB. The mapping is anonymous, private and without swap
/// reservation: a page costs the host nothing until the guest touches it.
///
/// # Errors
/// When the host refuses the address space.
pub fn reserve(bytes: u64) -> Result<GuestMemoryMmap, MemoryError> {
    let ranges: Vec<(GuestAddress, usize)> = layout::ram(bytes)
        .into_iter()
        .map(|range| (GuestAddress(range.start), (range.end - range.start) as usize))
        .collect();
    GuestMemoryMmap::from_ranges(&ranges).map_err(|source| MemoryError::Reserve { bytes, source })
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemory;

    use super::*;

    #[test]
    fn four_gib_are_reserved_as_two_regions() {
        let memory = reserve(4 << 30).unwrap();
        assert_eq!(memory.num_regions(), 2);
        assert!(memory.address_in_range(GuestAddress(layout::HOLE.start - 1)));
        assert!(!memory.address_in_range(GuestAddress(layout::HOLE.start)));
        assert!(memory.address_in_range(GuestAddress(layout::HOLE.end)));
    }
}
