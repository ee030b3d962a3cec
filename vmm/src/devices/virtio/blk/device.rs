//! The device: one queue, one thread, one round of requests at a time.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::SECTOR;
use super::backing::{Backing, BackingError, Direction};
use super::request::{
    Answer, ID_BYTES, MAX_DISCARD_RANGES, MAX_DISCARD_SECTORS, MAX_SEGMENT_BYTES, MAX_SEGMENTS,
    MAX_ZERO_RANGES, MAX_ZERO_SECTORS, Operation, Request, Status,
};
use super::ring::{DEPTH, Ring, Transfer};
use crate::devices::rate_limiter::{RateLimit, RateLimiter};
use crate::devices::virtio::device::{
    ActivateError, Activation, DeviceState, Pausable, SaveError, VirtioDevice, read_config_space,
};
use crate::devices::virtio::device_queue::{Chain, DeviceQueue, EVENT_IDX, QueueError};
use crate::devices::virtio::worker::{Poller, Service, Worker, WorkerError};

/// One request of the greatest number of buffers, which are two more than its data's.
pub(super) const QUEUE_SIZES: [u16; 1] = [MAX_SEGMENTS as u16 + 2];

/// Requests that are served, and bytes that are moved, before the guest hears of it and the thread looks whether it is
/// to pause; sooner after a request that may have taken the disk long. Each interrupt costs the guest more than a small
/// request costs the host.
const ROUND_REQUESTS: usize = DEPTH;
const ROUND_BYTES: u64 = 1 << 20;

/// `struct virtio_blk_config` as far as the features that are offered (virtio 1.2, section 5.2.4).
pub(super) const CONFIG_BYTES: usize = 60;

/// A virtio block device.
pub struct Blk {
    disk: Arc<Disk>,
    limit: Option<RateLimit>,
    config: [u8; CONFIG_BYTES],
    worker: Option<Worker<DiskService>>,
}

/// What is behind it.
pub(super) struct Disk {
    id: [u8; ID_BYTES],
    backing: Backing,
}

impl Blk {
    /// A disk that is the file or block device at `path`, whose size it keeps. `id`, of which 20 bytes count, is what
    /// the guest knows it by.
    ///
    /// # Errors
    /// When there is nothing at `path` that can be a disk, or somebody else has it open so that this one would destroy
    /// what is on it.
    pub fn new(
        id: &str,
        path: &Path,
        read_only: bool,
        limit: Option<RateLimit>,
    ) -> Result<Self, BackingError> {
        let backing = Backing::open(path, read_only)?;
        Ok(Self {
            config: config(&Geometry::of(&backing)),
            disk: Arc::new(Disk::new(id, backing)),
            limit,
            worker: None,
        })
    }
}

/// What the configuration space says of a disk.
pub(super) struct Geometry {
    pub(super) sectors: u64,
    pub(super) logical_block: u32,
    pub(super) physical_block: u32,
    pub(super) zeroes_by_discarding: bool,
}

impl Geometry {
    fn of(backing: &Backing) -> Self {
        Self {
            sectors: backing.sectors(),
            logical_block: backing.logical_block(),
            physical_block: backing.physical_block(),
            zeroes_by_discarding: backing.zeroes_by_discarding(),
        }
    }
}

/// The configuration space of a disk.
pub(super) fn config(geometry: &Geometry) -> [u8; CONFIG_BYTES] {
    let (logical, physical) = (geometry.logical_block, geometry.physical_block);
    // The physical block in logical ones, as a power of two; a disk of other blocks is taken for one of simple ones.
    let ratio = match physical.checked_div(logical) {
        Some(ratio) if ratio.is_power_of_two() => u16::try_from(ratio).unwrap_or(1),
        _ => 1,
    };
    let exponent = ratio.trailing_zeros() as u8;
    let sectors_of_block = physical / SECTOR as u32;
    let parts: [&[u8]; 15] = [
        &geometry.sectors.to_le_bytes(),
        &MAX_SEGMENT_BYTES.to_le_bytes(),
        &MAX_SEGMENTS.to_le_bytes(),
        // The geometry, which is not offered.
        &[0; 4],
        &logical.to_le_bytes(),
        // Physical block exponent, offset of the first one, least and best size of requests (in logical blocks).
        &[exponent, 0],
        &ratio.to_le_bytes(),
        &0_u32.to_le_bytes(),
        // Cache mode and number of queues, which are not offered.
        &[0; 4],
        &MAX_DISCARD_SECTORS.to_le_bytes(),
        &MAX_DISCARD_RANGES.to_le_bytes(),
        &sectors_of_block.to_le_bytes(),
        &MAX_ZERO_SECTORS.to_le_bytes(),
        &MAX_ZERO_RANGES.to_le_bytes(),
        &[u8::from(geometry.zeroes_by_discarding), 0, 0, 0],
    ];
    let mut config = [0; CONFIG_BYTES];
    for (to, from) in config.iter_mut().zip(parts.iter().copied().flatten()) {
        *to = *from;
    }
    config
}

impl VirtioDevice for Blk {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn name(&self) -> &'static str {
        "blk"
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn offered_features(&self) -> u64 {
        let backing = &self.disk.backing;
        let when = |condition: bool, feature: u32| u64::from(condition) << feature;
        1 << VIRTIO_F_VERSION_1
            | EVENT_IDX
            | 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_TOPOLOGY
            | when(backing.is_read_only(), VIRTIO_BLK_F_RO)
            | when(!backing.is_read_only(), VIRTIO_BLK_F_FLUSH)
            | when(backing.discards(), VIRTIO_BLK_F_DISCARD)
            | when(backing.writes_zeroes(), VIRTIO_BLK_F_WRITE_ZEROES)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_space(&self.config, offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let mut service = DiskService::new(self.name(), &mut activation)?;
        let limits = Limits {
            both: self.limit,
            ..Limits::default()
        };
        service.put_in(Some((Arc::clone(&self.disk), limits)));
        self.worker = Some(Worker::start(
            self.name(),
            activation.interrupt,
            activation.failures,
            service,
        )?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }

    fn worker(&mut self) -> Option<&mut dyn Pausable> {
        self.worker.as_mut().map(|worker| worker as &mut dyn Pausable)
    }

    /// What was written is made durable: the snapshot's guest will not write it again, and must find it even if the
    /// host stops before the guest's next flush.
    fn save(&self) -> Result<DeviceState, SaveError> {
        self.disk.make_durable().map_err(|source| SaveError::Flush {
            id: self.disk.id(),
            source,
        })?;
        Ok(DeviceState::Blk {
            sectors: self.disk.backing.sectors(),
        })
    }

    /// The disk must have the size that its driver knows. That it also has the bytes its guest knows is for whoever
    /// made the copy.
    fn restore(&mut self, activation: Activation, state: &DeviceState) -> Result<(), ActivateError> {
        let here = self.disk.backing.sectors();
        match *state {
            DeviceState::Blk { sectors } if sectors == here => self.activate(activation),
            DeviceState::Blk { sectors: known } => Err(ActivateError::DiskSize { known, here }),
            _ => Err(ActivateError::ForeignState { device: self.name() }),
        }
    }
}

/// What the device's thread works on.
pub(super) struct DiskService {
    queues: Vec<DeviceQueue>,
    /// Nothing while a slot is empty.
    disk: Option<Arc<Disk>>,
    ring: Ring,
    limiters: Limiters,
    writes_through: bool,
}

/// How fast a disk is at most: in both directions together, or in each.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Limits {
    /// Whatever is asked of it.
    pub(super) both: Option<RateLimit>,
    /// What is read from it.
    pub(super) read: Option<RateLimit>,
    /// What is written, discarded or cleared.
    pub(super) write: Option<RateLimit>,
}

/// The same at work.
#[derive(Default)]
struct Limiters {
    both: Option<RateLimiter>,
    read: Option<RateLimiter>,
    write: Option<RateLimiter>,
}

impl Limiters {
    fn new(limits: &Limits, now: Instant) -> Self {
        let limiter = |limit: Option<RateLimit>| limit.map(|limit| RateLimiter::new(limit, now));
        Self {
            both: limiter(limits.both),
            read: limiter(limits.read),
            write: limiter(limits.write),
        }
    }

    /// Takes what an operation costs, or says how long to wait. One that waits for its direction's limit has been paid for
    /// with both directions' already, which is why no disk has limits of both kinds.
    fn take(&mut self, now: Instant, operation: Option<&Operation<'_>>) -> Result<(), Duration> {
        let bytes = operation.map_or(0, Operation::bytes);
        if let Some(limiter) = &mut self.both {
            limiter.take(now, bytes)?;
        }
        let of_direction = match operation {
            Some(Operation::Read { .. }) => &mut self.read,
            Some(operation) if operation.is_write() => &mut self.write,
            _ => return Ok(()),
        };
        of_direction
            .as_mut()
            .map_or(Ok(()), |limiter| limiter.take(now, bytes))
    }
}

impl DiskService {
    /// What serves the driver of `activation`, with no disk yet.
    pub(super) fn new(device: &'static str, activation: &mut Activation) -> Result<Self, ActivateError> {
        Ok(Self {
            queues: DeviceQueue::take_all(device, activation)?,
            disk: None,
            ring: Ring::default(),
            limiters: Limiters::default(),
            // A driver that will not ask for it wants each write to be durable (virtio 1.2, section 5.2.6.2).
            writes_through: activation.features & 1 << VIRTIO_BLK_F_FLUSH == 0,
        })
    }

    /// Whether the driver has notified a queue, which stays to be heard of.
    pub(super) fn is_notified(&self) -> bool {
        let is_raised = |event: &EventFd| {
            // SAFETY: the event is borrowed for the call, and so stays open.
            let event = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
            let now = Timespec::default();
            poll(&mut [PollFd::from_borrowed_fd(event, PollFlags::IN)], Some(&now)) == Ok(1)
        };
        self.queues.iter().any(|queue| is_raised(queue.notification()))
    }

    /// Serves another disk, or none, from now on. Its limits begin with full buckets.
    pub(super) fn put_in(&mut self, disk: Option<(Arc<Disk>, Limits)>) {
        let (disk, limits) = disk.unzip();
        self.disk = disk;
        self.limiters = Limiters::new(&limits.unwrap_or_default(), Instant::now());
    }
}

impl Service for DiskService {
    /// What is in the queue when the thread is to stop stays there: a device that goes on finds it, and a guest that is
    /// gone has lost no more than it had not been told was written.
    fn serve(&mut self, stop: &EventFd) -> Result<(), WorkerError> {
        const STOP: u64 = u64::MAX;
        let poller = Poller::new().map_err(WorkerError::host("creating an epoll set"))?;
        poller
            .add(stop, EventSet::IN, STOP)
            .map_err(WorkerError::host("watching the stop event"))?;
        for (index, queue) in self.queues.iter().enumerate() {
            poller
                .add(queue.notification(), EventSet::IN, index as u64)
                .map_err(WorkerError::host("watching a notification"))?;
        }
        let mut patience = Some(Duration::ZERO);
        loop {
            let events = poller
                .wait(patience)
                .map_err(WorkerError::host("waiting for notifications"))?;
            if events.iter().any(|(token, _)| *token == STOP) {
                return Ok(());
            }
            patience = None;
            for (index, queue) in self.queues.iter_mut().enumerate() {
                if events.iter().any(|(token, _)| *token == index as u64) {
                    queue.take_notification().map_err(WorkerError::queue(index))?;
                }
                let mut round = Round {
                    disk: self.disk.as_deref(),
                    ring: &mut self.ring,
                    limiters: &mut self.limiters,
                    writes_through: self.writes_through,
                };
                patience = round.serve(queue).map_err(WorkerError::queue(index))?;
            }
        }
    }

    fn queues(&self) -> &[DeviceQueue] {
        &self.queues
    }
}

/// What some requests are served with.
struct Round<'d> {
    disk: Option<&'d Disk>,
    ring: &'d mut Ring,
    limiters: &'d mut Limiters,
    writes_through: bool,
}

impl Round<'_> {
    /// Serves some requests, and announces them. Returns how long to wait before there may be more to do; without end, if
    /// the driver will tell.
    fn serve(&mut self, queue: &mut DeviceQueue) -> Result<Option<Duration>, QueueError> {
        queue.pause_notifications()?;
        let (chains, has_more) = take_chains(queue)?;
        let mut under_way = Vec::new();
        let (mut taken, mut moved, mut was_slow, mut wait) = (0, 0, false, None);
        for chain in &chains {
            if moved >= ROUND_BYTES || was_slow {
                break;
            }
            let request = Request::read(chain, self.disk.map_or(0, Disk::sectors));
            let operation = request
                .as_ref()
                .and_then(|request| request.operation.as_ref().ok());
            moved += operation.map_or(0, Operation::bytes);
            was_slow = self.writes_through || operation.is_some_and(Operation::is_slow);
            if let Err(time) = self.limiters.take(Instant::now(), operation) {
                wait = Some(time);
                break;
            }
            taken += 1;
            let head = chain.head_index();
            let Some(Request { operation, answer }) = request else {
                // Without a place for an answer there is none: the buffers go back as they are.
                queue.complete(head, 0)?;
                continue;
            };
            match (operation.map(|operation| self.transfer(operation)), self.disk) {
                (Ok(Ok(transfer)), Some(_)) => under_way.push((head, answer, transfer)),
                (Ok(Err(operation)), Some(disk)) => {
                    // What came before it is what it is about.
                    self.finish(&mut under_way, queue)?;
                    let status = disk.carry_out(operation, self.writes_through);
                    queue.complete(head, answer.give(status))?;
                }
                (Ok(_), None) => queue.complete(head, answer.give(Status::IoError))?,
                (Err(status), _) => queue.complete(head, answer.give(status))?,
            }
        }
        for _ in taken..chains.len() {
            // They wait where they were, for this thread, or for another machine's after a snapshot.
            queue.put_back();
        }
        self.finish(&mut under_way, queue)?;
        queue.interrupt_if_wanted()?;
        if wait.is_none() && !has_more && taken == chains.len() {
            return Ok(queue.resume_notifications()?.then_some(Duration::ZERO));
        }
        Ok(wait.or(Some(Duration::ZERO)))
    }

    /// The operation as one that can be under way with others; itself, if it cannot.
    fn transfer<'m>(&self, operation: Operation<'m>) -> Result<Transfer<'m>, Operation<'m>> {
        let is_read_only = self.disk.is_none_or(|disk| disk.backing.is_read_only());
        match operation {
            Operation::Read { offset, into } => Ok(Transfer {
                direction: Direction::Read,
                offset,
                segments: into,
            }),
            Operation::Write { offset, from } if !is_read_only && !self.writes_through => Ok(Transfer {
                direction: Direction::Write,
                offset,
                segments: from,
            }),
            other => Err(other),
        }
    }

    /// Has what is under way end, and gives the answers.
    fn finish(
        &mut self,
        under_way: &mut Vec<(u16, Answer<'_>, Transfer<'_>)>,
        queue: &mut DeviceQueue,
    ) -> Result<(), QueueError> {
        let Some(disk) = self.disk else { return Ok(()) };
        let (asked, transfers): (Vec<_>, Vec<_>) = under_way
            .drain(..)
            .map(|(head, answer, transfer)| ((head, answer), transfer))
            .unzip();
        let ended = self.ring.carry_out(&disk.backing, transfers);
        for ((head, answer), ended) in asked.into_iter().zip(ended) {
            queue.complete(head, answer.give(status_of(ended)))?;
        }
        Ok(())
    }
}

/// Takes what is in the queue, up to a round's requests, and tells whether there may be more. What is there before a ring
/// that the driver broke is served first.
fn take_chains(queue: &mut DeviceQueue) -> Result<(Vec<Chain>, bool), QueueError> {
    let mut chains = Vec::new();
    while chains.len() < ROUND_REQUESTS {
        match queue.pop() {
            Ok(Some(chain)) => chains.push(chain),
            Ok(None) => return Ok((chains, false)),
            Err(error) if chains.is_empty() => return Err(error),
            Err(_) => break,
        }
    }
    Ok((chains, true))
}

/// What the guest is told of how something ended.
fn status_of(done: io::Result<()>) -> Status {
    match done {
        Ok(()) => Status::Ok,
        // The guest is told what there is a word for; a full file system is an error of the disk to it.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Status::Unsupported,
        Err(_) => Status::IoError,
    }
}

impl Disk {
    /// `backing`, which the guest knows by the first bytes of `id`.
    pub(super) fn new(id: &str, backing: Backing) -> Self {
        let mut name = [0; ID_BYTES];
        for (to, from) in name.iter_mut().zip(id.bytes()) {
            *to = from;
        }
        Self { id: name, backing }
    }

    /// Its size in sectors.
    pub(super) fn sectors(&self) -> u64 {
        self.backing.sectors()
    }

    /// Waits until all that was written is on the host's disk.
    pub(super) fn make_durable(&self) -> io::Result<()> {
        if self.backing.is_read_only() {
            return Ok(());
        }
        self.backing.flush()
    }

    /// What the guest knows it by.
    pub(super) fn id(&self) -> String {
        let name = self.id.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(name).into_owned()
    }

    fn carry_out(&self, operation: Operation<'_>, writes_through: bool) -> Status {
        let backing = &self.backing;
        let is_write = operation.is_write();
        if is_write && backing.is_read_only() {
            return Status::IoError;
        }
        let done = match operation {
            Operation::Read { offset, into } => backing.transfer(Direction::Read, into, offset),
            Operation::Write { offset, from } => backing.transfer(Direction::Write, from, offset),
            Operation::Flush if backing.is_read_only() => Ok(()),
            Operation::Flush => backing.flush(),
            Operation::Id { into } => {
                into.fill(&self.id);
                Ok(())
            }
            Operation::Discard(_) if !backing.discards() => return Status::Unsupported,
            Operation::Discard(ranges) => ranges.into_iter().try_for_each(|range| backing.discard(range)),
            Operation::WriteZeroes { .. } if !backing.writes_zeroes() => return Status::Unsupported,
            Operation::WriteZeroes { range, may_discard } => backing.write_zeroes(range, may_discard),
        };
        status_of(match done {
            Ok(()) if is_write && writes_through => backing.flush(),
            other => other,
        })
    }
}
