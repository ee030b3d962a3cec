//! What the guest wants of its disk, in the form of its requests (virtio 1.2, section 5.2.6).

use std::ops::Range;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::{Bytes, GuestMemory, VolatileSlice};

use super::SECTOR;
use super::segments::Segments;
use crate::devices::virtio::device_queue::Chain;

/// The bytes of type, reserved field and sector.
const HEADER_BYTES: usize = 16;
/// The bytes of a disk's name.
pub(super) const ID_BYTES: usize = 20;

/// Requests are served one at a time, and a pause waits for the one under way; so there is a limit to each. The driver
/// learns the number of buffers and the size of each, whose product is the greatest request.
pub(super) const MAX_SEGMENTS: u32 = 254;
pub(super) const MAX_SEGMENT_BYTES: u32 = 32 << 10;
const MAX_DATA: u64 = MAX_SEGMENTS as u64 * MAX_SEGMENT_BYTES as u64;
/// Ranges that one request discards, and sectors of each: 128 MiB, which is some change of metadata.
pub(super) const MAX_DISCARD_RANGES: u32 = 16;
pub(super) const MAX_DISCARD_SECTORS: u32 = 1 << 18;
/// Ranges that one request makes zero, and sectors of each: 16 MiB, which some disks have to write.
pub(super) const MAX_ZERO_RANGES: u32 = 1;
pub(super) const MAX_ZERO_SECTORS: u32 = 1 << 15;

/// The bytes of a range in a request to discard or to write zeros.
const RANGE_BYTES: usize = 16;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    IoError,
    Unsupported,
}

impl Status {
    fn code(self) -> u8 {
        (match self {
            Self::Ok => VIRTIO_BLK_S_OK,
            Self::IoError => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        }) as u8
    }
}

/// What is to be done. All offsets are in bytes and lie on the disk.
#[derive(Debug)]
pub(super) enum Operation<'m> {
    Read { offset: u64, into: Segments<'m> },
    Write { offset: u64, from: Segments<'m> },
    Flush,
    Id { into: Segments<'m> },
    Discard(Vec<Range<u64>>),
    WriteZeroes { range: Range<u64>, may_discard: bool },
}

impl Operation<'_> {
    /// The bytes it moves or makes.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Read { into, .. } => into.bytes(),
            Self::Write { from, .. } => from.bytes(),
            Self::WriteZeroes { range, .. } => range.end - range.start,
            Self::Flush | Self::Id { .. } | Self::Discard(_) => 0,
        }
    }

    /// Whether it changes what is on the disk.
    pub(super) fn is_write(&self) -> bool {
        matches!(
            self,
            Self::Write { .. } | Self::Discard(_) | Self::WriteZeroes { .. }
        )
    }

    /// Whether it may take the disk long, however little it moves.
    pub(super) fn is_slow(&self) -> bool {
        matches!(self, Self::Flush | Self::Discard(_) | Self::WriteZeroes { .. })
    }
}

/// A request with a place for its answer.
#[derive(Debug)]
pub(super) struct Request<'m> {
    /// What is to be done, or why nothing is.
    pub(super) operation: Result<Operation<'m>, Status>,
    /// Where to say how it went.
    pub(super) answer: Answer<'m>,
}

impl<'m> Request<'m> {
    /// The request in `chain` to a disk of `sectors` sectors; `None` if it has no place for an answer, or no end.
    pub(super) fn read(chain: &'m Chain, sectors: u64) -> Option<Self> {
        let mut buffers = Buffers::of(chain)?;
        let status = buffers.writable.split_last_byte()?;
        let answer = Answer {
            status,
            data_bytes: buffers.writable.bytes(),
        };
        let operation = match buffers.are_sound {
            true => parse(buffers, sectors),
            false => Err(Status::IoError),
        };
        Some(Self { operation, answer })
    }
}

/// The place for an answer.
#[derive(Debug)]
pub(super) struct Answer<'m> {
    status: VolatileSlice<'m>,
    /// The bytes the driver gave for data, all of them before the status.
    data_bytes: u64,
}

impl Answer<'_> {
    /// Answers with `status`, and returns how many bytes of its buffers the driver may believe, from the first on.
    pub(super) fn give(self, status: Status) -> u32 {
        // Writing memory that is there cannot fail.
        let _ = self.status.write_obj(status.code(), 0);
        let written = match status {
            Status::Ok => self.data_bytes + 1,
            // Data that was to be before the status may not have been written.
            _ => u64::from(self.data_bytes == 0),
        };
        // A request that was carried out is within the limit of bytes.
        u32::try_from(written).unwrap_or(0)
    }
}

/// The buffers of a chain.
struct Buffers<'m> {
    readable: Segments<'m>,
    writable: Segments<'m>,
    /// Whether all lie in the guest's memory, those the device reads first, and are no more than allowed.
    are_sound: bool,
}

impl<'m> Buffers<'m> {
    /// Those of `chain`; `None` if it does not end, or its last writable buffer is not there.
    fn of(chain: &'m Chain) -> Option<Self> {
        // Header and status are two more.
        let most = MAX_SEGMENTS as usize + 2;
        let (mut readable, mut writable) = (Segments::default(), Segments::default());
        let mut are_sound = true;
        let mut last_is_there = true;
        let mut goes_on = false;
        for (index, descriptor) in chain.clone().enumerate() {
            // More than a queue full is an indirect table, which is not offered.
            goes_on = descriptor.has_next() || index >= most;
            if index >= most {
                break;
            }
            if descriptor.len() == 0 {
                continue;
            }
            let slice = chain
                .memory()
                .get_slice(descriptor.addr(), descriptor.len() as usize);
            let is_there = slice.is_ok();
            are_sound &= is_there;
            if descriptor.is_write_only() {
                last_is_there = is_there;
                slice.into_iter().for_each(|slice| writable.push(slice));
            } else {
                are_sound &= writable.is_empty() && last_is_there;
                slice.into_iter().for_each(|slice| readable.push(slice));
            }
        }
        are_sound &= readable.bytes() + writable.bytes() <= MAX_DATA + HEADER_BYTES as u64 + 1;
        (!goes_on && last_is_there).then_some(Self {
            readable,
            writable,
            are_sound,
        })
    }
}

/// What the request in `buffers`, which have no status any more, is.
fn parse(buffers: Buffers<'_>, sectors: u64) -> Result<Operation<'_>, Status> {
    let Buffers {
        mut readable,
        writable,
        ..
    } = buffers;
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = readable.take::<HEADER_BYTES>().ok_or(Status::IoError)?;
    let sector = u64::from_le_bytes(sector);
    // What has data for the device has no room for data of the device's, and the other way round.
    let only = |wrong: &Segments<'_>| {
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(Status::IoError)
        }
    };
    match u32::from_le_bytes([t0, t1, t2, t3]) {
        VIRTIO_BLK_T_IN => {
            only(&readable)?;
            let offset = data_offset(sector, writable.bytes(), sectors)?;
            Ok(Operation::Read {
                offset,
                into: writable,
            })
        }
        VIRTIO_BLK_T_OUT => {
            only(&writable)?;
            let offset = data_offset(sector, readable.bytes(), sectors)?;
            Ok(Operation::Write {
                offset,
                from: readable,
            })
        }
        VIRTIO_BLK_T_FLUSH => {
            only(&readable)?;
            only(&writable)?;
            Ok(Operation::Flush)
        }
        VIRTIO_BLK_T_GET_ID => {
            only(&readable)?;
            if writable.bytes() != ID_BYTES as u64 {
                return Err(Status::IoError);
            }
            Ok(Operation::Id { into: writable })
        }
        VIRTIO_BLK_T_DISCARD => {
            only(&writable)?;
            let ranges = ranges(readable, MAX_DISCARD_RANGES, MAX_DISCARD_SECTORS, sectors)?;
            // To unmap what is discarded has no meaning.
            if ranges.iter().any(|(_, unmap)| *unmap) {
                return Err(Status::Unsupported);
            }
            Ok(Operation::Discard(
                ranges.into_iter().map(|(range, _)| range).collect(),
            ))
        }
        VIRTIO_BLK_T_WRITE_ZEROES => {
            only(&writable)?;
            let ranges = ranges(readable, MAX_ZERO_RANGES, MAX_ZERO_SECTORS, sectors)?;
            let (range, may_discard) = ranges.into_iter().next().ok_or(Status::IoError)?;
            Ok(Operation::WriteZeroes { range, may_discard })
        }
        _ => Err(Status::Unsupported),
    }
}

/// Where `bytes` bytes from `sector` on begin, if they are whole sectors, at least one, and all on the disk.
fn data_offset(sector: u64, bytes: u64, sectors: u64) -> Result<u64, Status> {
    if !bytes.is_multiple_of(SECTOR) {
        return Err(Status::IoError);
    }
    on_disk(sector, bytes / SECTOR, sectors).map(|range| range.start)
}

/// The bytes of `count` sectors from `sector` on, if there are any and all are on the disk.
fn on_disk(sector: u64, count: u64, sectors: u64) -> Result<Range<u64>, Status> {
    match sector.checked_add(count) {
        // The disk's bytes can be counted, and these are among them.
        Some(end) if count > 0 && end <= sectors => Ok(sector * SECTOR..end * SECTOR),
        _ => Err(Status::IoError),
    }
}

/// The ranges in `data`, 1 to `most` of up to `most_sectors` sectors, each with whether it may be done without.
fn ranges(
    mut data: Segments<'_>,
    most: u32,
    most_sectors: u32,
    sectors: u64,
) -> Result<Vec<(Range<u64>, bool)>, Status> {
    let bytes = data.bytes();
    let count = bytes / RANGE_BYTES as u64;
    if !bytes.is_multiple_of(RANGE_BYTES as u64) || count == 0 || count > u64::from(most) {
        return Err(Status::IoError);
    }
    let mut ranges = Vec::new();
    while let Some(range) = data.take::<RANGE_BYTES>() {
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = range;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let count = u32::from_le_bytes([n0, n1, n2, n3]);
        let flags = u32::from_le_bytes(flags);
        if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
            return Err(Status::Unsupported);
        }
        if count > most_sectors {
            return Err(Status::IoError);
        }
        ranges.push((on_disk(sector, count.into(), sectors)?, flags != 0));
    }
    Ok(ranges)
}
