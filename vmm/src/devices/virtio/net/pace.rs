//! A direction's rate limit, and how long it has to wait.

use std::time::{Duration, Instant};

use crate::devices::rate_limiter::{RateLimit, RateLimiter};

/// It is looked at again after this time at the latest, which keeps the clock's numbers in their range.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// How fast frames may go in one direction.
#[derive(Debug)]
pub(super) struct Pace {
    limiter: Option<RateLimiter>,
    until: Option<Instant>,
}

impl Pace {
    pub(super) fn new(limit: Option<RateLimit>) -> Self {
        Self {
            limiter: limit.map(|limit| RateLimiter::new(limit, Instant::now())),
            until: None,
        }
    }

    /// Whether there is a limit at all.
    pub(super) fn is_limited(&self) -> bool {
        self.limiter.is_some()
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

    /// Whether a frame of `bytes` may go now. If not, it is to be asked for again when the rest is over.
    pub(super) fn admits(&mut self, now: Instant, bytes: usize) -> bool {
        let Some(limiter) = &mut self.limiter else {
            return true;
        };
        self.until = match limiter.take(now, bytes as u64) {
            Ok(()) => None,
            Err(wait) => now.checked_add(wait.min(LONGEST_WAIT)),
        };
        self.until.is_none()
    }
}
