//! The parts of the guest's memory that descriptors name.

use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, VolatileSlice};

use crate::devices::virtio::device_queue::Chain;

/// A descriptor's part of memory, which was found to be there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Area {
    address: GuestAddress,
    length: usize,
}

/// Which side writes to a descriptor's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// The device.
    ToGuest,
    /// The driver.
    FromGuest,
}

/// The areas of `chain` in one direction, put into `areas`, and their length together. Nothing for a chain that names
/// memory that is not there, or more than `limit` areas.
pub(super) fn collect(
    chain: &Chain,
    direction: Direction,
    limit: usize,
    areas: &mut Vec<Area>,
) -> Option<usize> {
    areas.clear();
    let mut bytes: usize = 0;
    for (count, descriptor) in chain.clone().enumerate() {
        if count >= limit {
            return None;
        }
        let length = usize::try_from(descriptor.len()).ok()?;
        let is_wanted = descriptor.is_write_only() == (direction == Direction::ToGuest);
        if !is_wanted || length == 0 {
            continue;
        }
        if !chain.memory().check_range(descriptor.addr(), length) {
            return None;
        }
        bytes = bytes.checked_add(length)?;
        areas.push(Area {
            address: descriptor.addr(),
            length,
        });
    }
    Some(bytes)
}

/// The memory of `areas` without the first `skip` bytes, `limit` bytes at most.
pub(super) fn slices<'m>(
    memory: &'m GuestMemoryMmap,
    areas: impl Iterator<Item = Area>,
    skip: usize,
    limit: usize,
) -> Result<Vec<VolatileSlice<'m>>, vm_memory::GuestMemoryError> {
    let (mut skip, mut left) = (skip, limit);
    let mut slices = Vec::new();
    for area in areas {
        // An area around the hole below 4 GiB is two slices.
        for slice in memory.get_slices(area.address, area.length) {
            let slice = slice?;
            let skipped = skip.min(slice.len());
            let length = (slice.len() - skipped).min(left);
            skip -= skipped;
            left -= length;
            if length > 0 {
                slices.push(slice.subslice(skipped, length)?);
            }
        }
        if left == 0 {
            break;
        }
    }
    Ok(slices)
}

/// Copies `bytes` to where `slices` begin.
pub(super) fn scatter(slices: &[VolatileSlice<'_>], bytes: &[u8]) {
    let mut rest = bytes;
    for slice in slices {
        let (now, later) = rest.split_at(rest.len().min(slice.len()));
        slice.copy_from(now);
        rest = later;
    }
}

/// Fills `bytes` from where `slices` begin.
pub(super) fn gather(slices: &[VolatileSlice<'_>], bytes: &mut [u8]) {
    let mut rest = bytes;
    for slice in slices {
        let (now, later) = rest.split_at_mut(rest.len().min(slice.len()));
        slice.copy_to(now);
        rest = later;
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    /// Two regions that touch, so that an area can lie in both.
    fn memory() -> GuestMemoryMmap {
        let ranges = [(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)];
        GuestMemoryMmap::from_ranges(&ranges).unwrap()
    }

    fn areas() -> [Area; 3] {
        [(0x100, 10), (0xffe, 4), (0x1800, 20)].map(|(address, length)| Area {
            address: GuestAddress(address),
            length,
        })
    }

    #[test]
    fn what_is_scattered_is_gathered_again_whatever_is_skipped() {
        let memory = memory();
        let whole: Vec<u8> = (1..=34).collect();
        scatter(
            &slices(&memory, areas().into_iter(), 0, usize::MAX).unwrap(),
            &whole,
        );
        let mut crossing = [0; 4];
        memory.read_slice(&mut crossing, GuestAddress(0xffe)).unwrap();
        assert_eq!(crossing, [11, 12, 13, 14]);
        for skip in 0..=34 {
            for limit in 0..=34 - skip {
                let slices = slices(&memory, areas().into_iter(), skip, limit).unwrap();
                assert!(slices.iter().all(|slice| !slice.is_empty()));
                let mut got = vec![0; limit];
                gather(&slices, &mut got);
                assert_eq!(got, whole[skip..skip + limit]);
            }
        }
    }

    #[test]
    fn more_bytes_than_there_is_room_for_go_no_further() {
        let memory = memory();
        let slices = slices(&memory, areas().into_iter(), 30, 2).unwrap();
        scatter(&slices, &[1; 100]);
        let mut end = [0; 5];
        memory.read_slice(&mut end, GuestAddress(0x180f)).unwrap();
        assert_eq!(end, [0, 1, 1, 0, 0]);
    }
}
