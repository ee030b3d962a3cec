//! A direction's rate limit, and how long it has to wait.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::devices::rate_limiter::{RateLimit, RateLimiter};

/// It is looked at again after this time at the latest, which keeps the clock's numbers in their range.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// The limit of one direction, which all pairs of queues share.
#[derive(Debug, Clone)]
pub(super) struct SharedLimit(Option<Arc<Mutex<Gate>>>);

/// A limit, and until when it lets nobody through: behind small frames of other pairs, a large one would else wait for ever.
#[derive(Debug)]
struct Gate {
    limiter: RateLimiter,
    closed_until: Option<Instant>,
}

impl SharedLimit {
    pub(super) fn new(limit: Option<RateLimit>) -> Self {
        let gate = limit.map(|limit| Gate {
            limiter: RateLimiter::new(limit, Instant::now()),
            closed_until: None,
        });
        Self(gate.map(|gate| Arc::new(Mutex::new(gate))))
    }
}

/// How fast frames may go in one direction of one pair.
#[derive(Debug)]
pub(super) struct Pace {
    limit: SharedLimit,
    until: Option<Instant>,
}

impl Pace {
    pub(super) fn new(limit: SharedLimit) -> Self {
        Self { limit, until: None }
    }

    /// Whether there is a limit at all.
    pub(super) fn is_limited(&self) -> bool {
        self.limit.0.is_some()
    }

    /// Whether the last frame still has to wait.
    pub(super) fn is_resting(&mut self, now: Instant) -> bool {
        self.until = self.until.filter(|until| now < *until);
        self.until.is_some()
    }

    /// When the frame that has to wait may go.
    pub(super) fn rests_until(&self) -> Option<Instant> {
        self.until
    }

    /// Forgets the frame that has to wait.
    pub(super) fn end_rest(&mut self) {
        self.until = None;
    }

    /// Whether a frame of `bytes` may go now. If not, it is to be asked for again when the rest is over; another pair may
    /// have been faster then.
    pub(super) fn admits(&mut self, now: Instant, bytes: usize) -> bool {
        let SharedLimit(Some(gate)) = &self.limit else {
            return true;
        };
        let mut gate = gate.lock().unwrap_or_else(PoisonError::into_inner);
        gate.closed_until = gate.closed_until.filter(|until| now < *until);
        if gate.closed_until.is_none()
            && let Err(wait) = gate.limiter.take(now, bytes as u64)
        {
            gate.closed_until = now.checked_add(wait.min(LONGEST_WAIT));
        }
        self.until = gate.closed_until;
        self.until.is_none()
    }
}
