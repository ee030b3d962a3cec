//! The buffers of a request: stretches of the guest's memory, one after the other.

use std::collections::VecDeque;

use vm_memory::{Bytes, VolatileSlice};

/// Buffers that are read or written as if they were one.
#[derive(Debug, Default)]
pub(super) struct Segments<'m> {
    slices: VecDeque<VolatileSlice<'m>>,
    bytes: u64,
}

impl<'m> Segments<'m> {
    /// Appends a buffer.
    pub(super) fn push(&mut self, slice: VolatileSlice<'m>) {
        if !slice.is_empty() {
            self.bytes += slice.len() as u64;
            self.slices.push_back(slice);
        }
    }

    /// How many bytes there are.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The buffers that are left, none of them empty.
    pub(super) fn slices(&self) -> impl Iterator<Item = &VolatileSlice<'m>> {
        self.slices.iter()
    }

    /// How many buffers are left.
    pub(super) fn count(&self) -> usize {
        self.slices.len()
    }

    /// Leaves the first `count` bytes out, or all if there are fewer.
    pub(super) fn advance(&mut self, count: usize) {
        let mut left = count;
        while left > 0 {
            let Some(first) = self.slices.pop_front() else {
                return;
            };
            let passed = left.min(first.len());
            left -= passed;
            self.bytes -= passed as u64;
            // It fails only beyond the end.
            if let Ok(rest) = first.offset(passed)
                && !rest.is_empty()
            {
                self.slices.push_front(rest);
            }
        }
    }

    /// The last byte, which is then none of them any more.
    pub(super) fn split_last_byte(&mut self) -> Option<VolatileSlice<'m>> {
        let last = self.slices.pop_back()?;
        // No slice is empty.
        let (rest, byte) = last.split_at(last.len().checked_sub(1)?).ok()?;
        self.bytes -= 1;
        if !rest.is_empty() {
            self.slices.push_back(rest);
        }
        Some(byte)
    }

    /// The first `N` bytes, which are then left out; `None` if there are fewer.
    pub(super) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        if self.bytes < N as u64 {
            return None;
        }
        let mut taken = [0; N];
        let mut filled = 0;
        for slice in &self.slices {
            let Some(rest @ [_, ..]) = taken.get_mut(filled..) else {
                break;
            };
            // Reading memory that is there cannot fail.
            filled += slice.read(rest, 0).ok()?;
        }
        self.advance(N);
        Some(taken)
    }

    /// Writes `bytes`, or as many as there is room for.
    pub(super) fn fill(&self, bytes: &[u8]) {
        let mut rest = bytes;
        for slice in &self.slices {
            if rest.is_empty() {
                return;
            }
            // Writing memory that is there cannot fail.
            let Ok(written) = slice.write(rest, 0) else { return };
            rest = rest.get(written..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments<'m>(parts: &'m mut [Vec<u8>]) -> Segments<'m> {
        let mut segments = Segments::default();
        for part in parts {
            segments.push(VolatileSlice::from(part.as_mut_slice()));
        }
        segments
    }

    #[test]
    fn bytes_are_taken_across_buffers_and_empty_ones_do_not_count() {
        let mut parts = [vec![1, 2], vec![], vec![3], vec![4, 5, 6]];
        let mut segments = segments(&mut parts);
        assert_eq!(segments.bytes(), 6);
        assert_eq!(segments.take(), Some([1, 2, 3, 4]));
        assert_eq!(segments.take::<3>(), None);
        assert_eq!(segments.bytes(), 2);
        assert_eq!(segments.take(), Some([5, 6]));
        assert!(segments.is_empty());
        assert_eq!(segments.take::<0>(), Some([]));
    }

    #[test]
    fn the_last_byte_is_split_off_wherever_it_is() {
        let mut parts = [vec![1, 2], vec![3]];
        let mut segments = segments(&mut parts);
        for (expected, left) in [(3, 2), (2, 1), (1, 0)] {
            let byte = segments.split_last_byte().unwrap();
            assert_eq!(
                (byte.read_obj::<u8>(0).unwrap(), segments.bytes()),
                (expected, left)
            );
        }
        assert!(segments.split_last_byte().is_none());
    }

    #[test]
    fn filling_stops_where_either_side_ends() {
        let mut parts = [vec![0; 2], vec![0; 2]];
        segments(&mut parts).fill(&[1, 2, 3]);
        assert_eq!(parts.concat(), [1, 2, 3, 0]);
        segments(&mut parts).fill(&[4; 9]);
        assert_eq!(parts.concat(), [4; 4]);
    }

    #[test]
    fn advancing_beyond_the_end_leaves_nothing() {
        let mut parts = [vec![1, 2, 3]];
        let mut segments = segments(&mut parts);
        segments.advance(1);
        assert_eq!(segments.bytes(), 2);
        segments.advance(100);
        assert!(segments.is_empty());
        assert_eq!(segments.slices().count(), 0);
    }
}
