//! An XSAVE area, addressed from its start.

use crate::completion::error::Stop;
use crate::completion::linear_memory::{Access, LinearMemory};

/// Where an area lies is no concern of the formats.
pub(super) trait Area {
    fn read(&mut self, offset: usize, bytes: &mut [u8]) -> Result<(), Stop>;

    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Stop>;

    /// Raises the fault that a write of these bytes would raise.
    fn check_write(&mut self, offset: usize, length: usize) -> Result<(), Stop>;
}

/// An area in the guest's linear memory.
pub(super) struct LinearArea<'a, 'm> {
    pub(super) memory: &'a mut LinearMemory<'m>,
    pub(super) start: u64,
}

impl Area for LinearArea<'_, '_> {
    fn read(&mut self, offset: usize, bytes: &mut [u8]) -> Result<(), Stop> {
        self.memory.read(self.start.wrapping_add(offset as u64), bytes)
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Stop> {
        self.memory.write(self.start.wrapping_add(offset as u64), bytes)
    }

    fn check_write(&mut self, offset: usize, length: usize) -> Result<(), Stop> {
        self.memory
            .check(self.start.wrapping_add(offset as u64), length, Access::Write)
    }
}
