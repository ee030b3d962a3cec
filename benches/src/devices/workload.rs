//! What is asked of a device, as the flat guest's program of it.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::ensure;

use super::guest::{self, Buffer, Program, QUEUE_SIZE};

/// The size of the disk.
const DISK_BYTES: u64 = 256 << 20;
const SECTOR: u64 = 512;
/// A request's header, and the greatest buffer that it has (`size_max`, as the narrower of the devices has it).
const HEADER_BYTES: u32 = 16;
const SEGMENT_BYTES: u32 = 32 << 10;
/// Requests in the order of the disk, and places anywhere, until they are asked for again.
const PLACES: u64 = 4096;
/// Types of requests (virtio 1.2, section 5.2.6).
const READ: u32 = 0;
const WRITE: u32 = 1;
/// Devices' numbers (section 5).
const NET: u32 = 1;
const BLOCK: u32 = 2;
const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;
const FLUSH: u64 = 1 << 9;
/// Checksums and TCP segmentation both ways, and frames spread over buffers.
const OFFLOADS: u64 = 1 | 1 << 1 | 1 << 7 | 1 << 11 | 1 << 15;
const RECEIVE_QUEUE: u32 = 0;
const TRANSMIT_QUEUE: u32 = 1;
/// The header of a frame between driver and device, with room for a number of buffers.
const FRAME_HEADER_BYTES: usize = 12;
/// Ethernet, IPv4 and TCP.
const PROTOCOL_BYTES: usize = 54;
const TCP_SEGMENT: usize = 1460;
/// Frames of a full queue round.
const FRAMES: usize = 64;

/// One kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Workload {
    Disk {
        kind: Kind,
        in_order: bool,
        depth: u16,
    },
    Network {
        direction: Direction,
        /// Segments of 1,460 bytes in each frame: one, or as many as TCP segmentation offload has.
        segments: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Transmit,
    Receive,
}

/// Segments of the longest frame: 64,294 bytes.
const OFFLOADED: usize = 44;

/// All of them, in the order in which they are done.
pub(super) fn all() -> Vec<Workload> {
    let mut all = Vec::new();
    // A disk that was written to has not what is expected of it any more.
    for kind in [Kind::Read, Kind::Write] {
        for in_order in [true, false] {
            all.extend([1, 32].map(|depth| Workload::Disk {
                kind,
                in_order,
                depth,
            }));
        }
    }
    for direction in [Direction::Transmit, Direction::Receive] {
        all.extend([1, OFFLOADED].map(|segments| Workload::Network { direction, segments }));
    }
    all
}

impl Workload {
    /// What it is, for people.
    pub(super) fn title(self) -> String {
        match self {
            Self::Disk {
                kind,
                in_order,
                depth,
            } => {
                let kind = match kind {
                    Kind::Read => "read",
                    Kind::Write => "write",
                };
                let place = if in_order {
                    "in order, 128 KiB"
                } else {
                    "anywhere, 4 KiB"
                };
                format!("disk, {kind} {place}, {depth} at once")
            }
            Self::Network { direction, segments } => {
                let direction = match direction {
                    Direction::Transmit => "transmit",
                    Direction::Receive => "receive",
                };
                format!("network, {direction}, frames of {} bytes", frame_bytes(segments))
            }
        }
    }

    /// Whether its bytes are what is counted, and not its requests or frames.
    pub(super) fn counts_bytes(self) -> bool {
        match self {
            Self::Disk { in_order, .. } => in_order,
            Self::Network { segments, .. } => segments > 1,
        }
    }

    pub(super) fn is_of_disk(self) -> bool {
        matches!(self, Self::Disk { .. })
    }

    /// The bytes of a request or of a frame.
    pub(super) fn bytes(self) -> u64 {
        match self {
            Self::Disk { in_order: true, .. } => 128 << 10,
            Self::Disk { in_order: false, .. } => 4 << 10,
            Self::Network { segments, .. } => frame_bytes(segments) as u64,
        }
    }

    /// Requests between two marks of the guest's; of frames that are received, buffers.
    pub(super) fn between_marks(self) -> u64 {
        let program = self.program();
        u64::from(program.in_round) * program.rounds
    }

    /// What the guest does.
    pub(super) fn program(self) -> Program {
        match self {
            Self::Disk { kind, depth, .. } => self.disk_program(kind, depth),
            Self::Network {
                direction: Direction::Transmit,
                segments,
            } => transmit_program(segments),
            Self::Network {
                direction: Direction::Receive,
                segments,
            } => receive_program(segments),
        }
    }

    fn disk_program(self, kind: Kind, depth: u16) -> Program {
        let bytes = self.bytes();
        let is_written = kind == Kind::Read;
        let chain = |index: u64| {
            let header = Buffer {
                address: guest::HEADERS + index * u64::from(HEADER_BYTES),
                length: HEADER_BYTES,
                is_written: false,
            };
            let start = guest::BUFFERS + index * bytes;
            let data = (0..bytes).step_by(SEGMENT_BYTES as usize).map(|offset| Buffer {
                address: start + offset,
                length: SEGMENT_BYTES.min((bytes - offset) as u32),
                is_written,
            });
            let status = Buffer {
                address: guest::STATUSES + index,
                length: 1,
                is_written: true,
            };
            [header].into_iter().chain(data).chain([status]).collect()
        };
        let places = DISK_BYTES / bytes;
        // A multiplier that is odd leaves out none of a power of two.
        let place = |number: u64| match self {
            Self::Disk { in_order: true, .. } => number % places,
            _ => number.wrapping_mul(0x9e37_79b9) % places,
        };
        let kind_number = if is_written { READ } else { WRITE };
        Program {
            device: BLOCK,
            features: VERSION_1 | EVENT_IDX | FLUSH,
            queue: 0,
            last_queue: 0,
            chains: (0..u64::from(depth)).map(chain).collect(),
            in_round: depth,
            requests: (0..PLACES.min(if bytes > 4096 { places } else { PLACES }))
                .map(|number| (kind_number, place(number) * (bytes / SECTOR)))
                .collect(),
            reads_to: is_written.then_some(guest::BUFFERS),
            rounds: if depth == 1 { 64 } else { 8 },
            memory: match kind {
                Kind::Read => Vec::new(),
                Kind::Write => (0..u64::from(depth))
                    .map(|index| (guest::BUFFERS + index * bytes, vec![WRITTEN; bytes as usize]))
                    .collect(),
            },
        }
    }

    /// Whether the disk has what was written to it.
    pub(super) fn check_disk(self, disk: &Path) -> anyhow::Result<()> {
        let Self::Disk {
            kind: Kind::Write, ..
        } = self
        else {
            return Ok(());
        };
        let disk = File::open(disk)?;
        let bytes = self.bytes() as usize;
        let mut content = vec![0; bytes];
        for (_, sector) in self.program().requests.iter().take(64) {
            disk.read_exact_at(&mut content, sector * SECTOR)?;
            ensure!(
                content.iter().all(|byte| *byte == WRITTEN),
                "what the guest wrote to sector {sector} is not on the disk"
            );
        }
        Ok(())
    }
}

/// What every byte is that is written to a disk.
const WRITTEN: u8 = 0xa5;

/// Makes a disk of which each sector begins with its number.
pub(super) fn make_disk(path: &Path) -> anyhow::Result<()> {
    let mut disk = File::create(path)?;
    let sectors = (1 << 20) / SECTOR;
    for mib in 0..DISK_BYTES >> 20 {
        let mut bytes = Vec::with_capacity(1 << 20);
        for sector in mib * sectors..(mib + 1) * sectors {
            bytes.extend(sector.to_le_bytes());
            bytes.resize(bytes.len() + SECTOR as usize - 8, 0x11);
        }
        disk.write_all(&bytes)?;
    }
    disk.sync_all()?;
    Ok(())
}

fn frame_bytes(segments: usize) -> usize {
    PROTOCOL_BYTES + segments * TCP_SEGMENT
}

/// A TCP frame for nobody, which whoever receives it drops by its address, behind its header of `header_bytes` bytes.
pub(super) fn frame(segments: usize, header_bytes: usize) -> Vec<u8> {
    let mut frame = vec![0; header_bytes];
    if segments > 1 {
        // The checksum is to be made (1), of a frame to be segmented as TCP over IPv4 (1), whose headers have 54 bytes; the
        // checksum begins at 34, and is to go 16 bytes behind that.
        let header = [
            &[1, 1][..],
            &(PROTOCOL_BYTES as u16).to_le_bytes(),
            &(TCP_SEGMENT as u16).to_le_bytes(),
            &34_u16.to_le_bytes(),
            &16_u16.to_le_bytes(),
        ]
        .concat();
        frame.splice(..header.len(), header);
    }
    frame.extend([2, 0, 0, 0, 0, 0x99, 2, 0, 0, 0, 0, 1, 8, 0]);
    let length = (frame_bytes(segments) - 14) as u16;
    frame.extend([0x45, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 2, 192, 0, 2, 99]);
    // Ports, sequence, acknowledged; a header of five words with ACK; window.
    frame.extend([
        0x13, 0x88, 0x13, 0x89, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0,
    ]);
    frame.resize(header_bytes + frame_bytes(segments), WRITTEN);
    frame
}

fn network_program(queue: u32, chains: Vec<Vec<Buffer>>, in_round: u16) -> Program {
    Program {
        device: NET,
        features: VERSION_1 | EVENT_IDX | OFFLOADS,
        queue,
        last_queue: TRANSMIT_QUEUE,
        chains,
        in_round,
        requests: Vec::new(),
        reads_to: None,
        rounds: 8,
        memory: Vec::new(),
    }
}

/// All chains are the one frame, in buffers as Linux has them: headers, and 32 KiB of data each.
fn transmit_program(segments: usize) -> Program {
    let frame = frame(segments, FRAME_HEADER_BYTES);
    let first = FRAME_HEADER_BYTES + PROTOCOL_BYTES;
    let mut chain = vec![(0, first)];
    chain.extend(
        (first..frame.len())
            .step_by(SEGMENT_BYTES as usize)
            .map(|start| (start, (frame.len() - start).min(SEGMENT_BYTES as usize))),
    );
    let chain: Vec<Buffer> = chain
        .into_iter()
        .map(|(start, length)| Buffer {
            address: guest::BUFFERS + start as u64,
            length: length as u32,
            is_written: false,
        })
        .collect();
    let mut program = network_program(TRANSMIT_QUEUE, vec![chain; FRAMES], FRAMES as u16);
    program.memory = vec![(guest::BUFFERS, frame)];
    program
}

/// A full queue of buffers, of which half are taken at a time.
fn receive_program(segments: usize) -> Program {
    let length: u32 = if segments > 1 { 4096 } else { 2048 };
    let chains = (0..u64::from(QUEUE_SIZE))
        .map(|index| {
            vec![Buffer {
                address: guest::BUFFERS + index * u64::from(length),
                length,
                is_written: true,
            }]
        })
        .collect();
    network_program(RECEIVE_QUEUE, chains, QUEUE_SIZE / 2)
}
