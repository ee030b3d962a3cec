//! A disk (virtio 1.2, section 5.2): a raw file or a block device of the host, one queue, one thread.
//!
//! A [slot](DiskSlot) is a disk of no sectors until one is put into it while the machine runs.
//!
//! `backing` is the host's side, `request` finds out what the guest wants, of which it believes nothing, and
//! [`device`](self::device::Blk) serves requests in rounds on a thread of its own: what has come by then, up to a limit, is
//! taken out of the queue, and its reads are under way at once (`ring`), straight between the file and the guest's memory.
//! A round has ended when all of it has: there is nothing under way when a machine is saved. Reads and writes go through
//! the host's page cache, so that machines with the same read-only image share its pages; nothing is taken for durable
//! before the host says that it is.

mod backing;
mod device;
#[cfg(test)]
mod hostile_tests;
mod request;
mod ring;
mod segments;
mod slot;
#[cfg(test)]
mod slot_tests;
#[cfg(test)]
mod tests;

pub use self::backing::BackingError;
pub use self::device::Blk;
pub use self::slot::{DiskSlot, NewDisk, SlotError};

/// The unit of a disk's capacity and of requests, whatever its blocks are.
const SECTOR: u64 = 512;
