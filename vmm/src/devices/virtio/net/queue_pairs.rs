//! How many of a device's pairs of queues are in use (virtio 1.2, section 5.1.6.5.6): the driver says so, and where in the
//! host frames come from follows.

use std::io;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Instant;

use super::tap::{Port, is_gone};
use crate::devices::rate_limiter::{RateLimit, RateLimiter};

/// How often a driver may change the number: for each pair that comes or goes the host's kernel stops all changes to its
/// network for a moment, and not only this guest's. Linux asks once, when it finds the device.
const CHANGES_PER_SECOND: u64 = 2;
const CHANGES_AT_ONCE: u64 = 16;

/// The pairs of one device, which its threads share. They outlive its drivers.
pub(super) struct QueuePairs {
    /// One for each pair, or none at all.
    ports: Vec<Arc<dyn Port>>,
    in_use: RwLock<u16>,
    changes: Mutex<RateLimiter>,
}

impl QueuePairs {
    pub(super) fn new(ports: Vec<Arc<dyn Port>>) -> Self {
        let limit = RateLimit {
            operations_per_second: NonZeroU64::new(CHANGES_PER_SECOND),
            burst_operations: NonZeroU64::new(CHANGES_AT_ONCE),
            ..RateLimit::default()
        };
        Self {
            ports,
            in_use: RwLock::new(1),
            changes: Mutex::new(RateLimiter::new(limit, Instant::now())),
        }
    }

    /// What frames come from, of each pair.
    pub(super) fn ports(&self) -> &[Arc<dyn Port>] {
        &self.ports
    }

    /// The number of pairs in use, which stays what it is as long as the answer is kept. A pair keeps it for a turn: once
    /// the guest was told that a pair is not in use, that pair moves no frame.
    pub(super) fn hold_in_use(&self) -> RwLockReadGuard<'_, u16> {
        self.in_use.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the first `count` pairs in use, and no others.
    ///
    /// # Errors
    /// When the host refuses; then it is as it was.
    pub(super) fn use_first(&self, count: u16) -> io::Result<()> {
        let mut in_use = self.in_use.write().unwrap_or_else(PoisonError::into_inner);
        let attached = self.attach_first(count);
        if attached.is_err() {
            // What is refused as well was not changed.
            let _ = self.attach_first(*in_use);
            return attached;
        }
        *in_use = count;
        Ok(())
    }

    /// Has as many pairs in use as the driver asks for. Returns false if the host refuses, or the driver has asked too often.
    pub(super) fn use_as_asked(&self, count: u16) -> bool {
        if *self.hold_in_use() == count {
            return true;
        }
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.take(Instant::now(), 0).is_ok() && self.use_first(count).is_ok()
    }

    /// A tap numbers its queues in the order they are attached, and gives the place of one that leaves to the last: so
    /// each has the number of its pair.
    fn attach_first(&self, count: u16) -> io::Result<()> {
        let (used, unused) = self.ports.split_at(usize::from(count).min(self.ports.len()));
        let unused = unused.iter().rev().map(|port| (port, false));
        for (port, attached) in unused.chain(used.iter().map(|port| (port, true))) {
            match port.set_attached(attached) {
                // Nothing comes from it either way.
                Err(error) if is_gone(&error) => {}
                result => result?,
            }
        }
        Ok(())
    }
}
