//! A disk (virtio 1.2, section 5.2): a raw file or a block device of the host, one queue, one thread.
//!
//! A [slot](DiskSlot) is a disk of no sectors until one is put into it while the machine runs.
//!
//! `backing` is the host's side, `request` finds out what the guest wants, of which it believes nothing, and
//! [`device`](self::device::Blk) serves one request after the other. Reads and writes are system calls on the device's
//! own thread, straight between the file and the guest's memory: the queue is served in order, and a slow disk keeps
//! nobody but its guest waiting. That is also its limit, one request under way at a time; a ring of the kernel's
//! (io_uring) would keep more, and is the next step if disks turn out to wait for each other's seeks. They go through
//! the host's page cache, so that machines with the same read-only image share its pages; nothing is taken for durable
//! before the host says that it is.

mod backing;
mod device;
#[cfg(test)]
mod hostile_tests;
mod request;
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
