//! Guest memory by linear address, as the program being completed sees it.

use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, VolatileSlice};

use super::error::{Cause, Stop};
use super::paging::Paging;

pub(super) use super::paging::Access;

const PAGE_BYTES: u64 = 4096;
/// An XSAVE area and the stack or global it sits beside: more pages than this are rarely met in one instruction.
const REMEMBERED_PAGES: usize = 4;

/// The program's address space during one instruction.
pub(super) struct LinearMemory<'a> {
    memory: &'a GuestMemoryMmap,
    paging: Paging,
    remembered: [Option<Page>; REMEMBERED_PAGES],
    oldest: usize,
}

/// A translation made earlier in the same instruction.
#[derive(Clone, Copy)]
struct Page {
    linear: u64,
    physical: u64,
    access: Access,
}

impl<'a> LinearMemory<'a> {
    pub(super) fn new(memory: &'a GuestMemoryMmap, paging: Paging) -> LinearMemory<'a> {
        LinearMemory {
            memory,
            paging,
            remembered: [None; REMEMBERED_PAGES],
            oldest: 0,
        }
    }

    pub(super) fn is_canonical(&self, linear: u64) -> bool {
        self.paging.is_canonical(linear)
    }

    /// Reads for the program.
    pub(super) fn read(&mut self, linear: u64, bytes: &mut [u8]) -> Result<(), Stop> {
        self.read_as(Access::Read, linear, bytes)
    }

    /// Reads for the program or for the processor itself.
    pub(super) fn read_as(&mut self, access: Access, linear: u64, bytes: &mut [u8]) -> Result<(), Stop> {
        let mut linear = linear;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (piece, next) = rest.split_at_mut(bytes_in_page(linear, rest.len()));
            let physical = self.physical(linear, access)?;
            self.memory
                .read_slice(piece, physical)
                .map_err(|_| Cause::NotMemory(physical.0))?;
            linear = linear.wrapping_add(piece.len() as u64);
            rest = next;
        }
        Ok(())
    }

    /// Writes for the program. Pages before one that faults have been written; see [`Self::check`].
    pub(super) fn write(&mut self, linear: u64, bytes: &[u8]) -> Result<(), Stop> {
        let mut linear = linear;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (piece, next) = rest.split_at(bytes_in_page(linear, rest.len()));
            let physical = self.physical(linear, Access::Write)?;
            self.memory
                .write_slice(piece, physical)
                .map_err(|_| Cause::NotMemory(physical.0))?;
            linear = linear.wrapping_add(piece.len() as u64);
            rest = next;
        }
        Ok(())
    }

    /// Raises the fault that an access to these bytes would raise, without making it.
    pub(super) fn check(&mut self, linear: u64, length: usize, access: Access) -> Result<(), Stop> {
        let mut done = 0;
        while done < length {
            let address = linear.wrapping_add(done as u64);
            self.physical(address, access)?;
            done += bytes_in_page(address, length - done);
        }
        Ok(())
    }

    /// Memory for an atomic operation: bytes that lie in one page.
    pub(super) fn slice(
        &mut self,
        linear: u64,
        length: usize,
        access: Access,
    ) -> Result<VolatileSlice<'a, ()>, Stop> {
        let physical = self.physical(linear, access)?;
        Ok(self
            .memory
            .get_slice(physical, length)
            .map_err(|_| Cause::NotMemory(physical.0))?)
    }

    fn physical(&mut self, linear: u64, access: Access) -> Result<GuestAddress, Stop> {
        let within = linear % PAGE_BYTES;
        let page = linear - within;
        let known = self
            .remembered
            .iter()
            .flatten()
            .find(|known| known.linear == page && known.access == access);
        if let Some(known) = known {
            return Ok(GuestAddress(known.physical + within));
        }
        let physical = self.paging.translate(self.memory, linear, access)?;
        if let Some(place) = self.remembered.get_mut(self.oldest) {
            *place = Some(Page {
                linear: page,
                physical: physical.0 - within,
                access,
            });
        }
        self.oldest = (self.oldest + 1) % REMEMBERED_PAGES;
        Ok(physical)
    }
}

fn bytes_in_page(linear: u64, wanted: usize) -> usize {
    wanted.min((PAGE_BYTES - linear % PAGE_BYTES) as usize)
}
