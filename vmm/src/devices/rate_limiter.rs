//! How fast a device may work for its guest.
//!
//! A token bucket for bytes and one for operations: each fills with its rate, up to its burst, and a request takes what
//! it costs out of both at once, or has to wait. There is no clock in here: the caller says what time it is, and waits.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The most a device may do. What is left out is not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// Bytes a second, in both directions together.
    #[serde(default)]
    pub bytes_per_second: Option<NonZeroU64>,
    /// Bytes that may be moved at once after a rest; what a second brings, if it is left out.
    #[serde(default)]
    pub burst_bytes: Option<NonZeroU64>,
    /// Operations a second.
    #[serde(default)]
    pub operations_per_second: Option<NonZeroU64>,
    /// Operations that may be done at once after a rest; what a second brings, if it is left out.
    #[serde(default)]
    pub burst_operations: Option<NonZeroU64>,
}

/// A rate limit that says less than it seems to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{burst} limits nothing without {rate}")]
pub struct BurstWithoutRate {
    burst: &'static str,
    rate: &'static str,
}

impl RateLimit {
    /// Checks that each burst is one of a rate.
    ///
    /// # Errors
    /// When one is not.
    pub fn validate(&self) -> Result<(), BurstWithoutRate> {
        for (burst, burst_name, rate, rate_name) in [
            (
                self.burst_bytes,
                "burst_bytes",
                self.bytes_per_second,
                "bytes_per_second",
            ),
            (
                self.burst_operations,
                "burst_operations",
                self.operations_per_second,
                "operations_per_second",
            ),
        ] {
            if burst.is_some() && rate.is_none() {
                return Err(BurstWithoutRate {
                    burst: burst_name,
                    rate: rate_name,
                });
            }
        }
        Ok(())
    }
}

/// A rate limit and what is left of it.
#[derive(Debug)]
pub struct RateLimiter {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
    /// When the buckets were filled last.
    filled: Instant,
}

impl RateLimiter {
    /// A limiter that is rested: both bursts are there.
    pub fn new(limit: RateLimit, now: Instant) -> Self {
        let bucket = |rate: Option<NonZeroU64>, burst| rate.map(|rate| Bucket::new(rate, burst));
        Self {
            bytes: bucket(limit.bytes_per_second, limit.burst_bytes),
            operations: bucket(limit.operations_per_second, limit.burst_operations),
            filled: now,
        }
    }

    /// Takes one operation of `bytes` bytes. One that is larger than the burst needs the whole burst, and what it has
    /// more makes the next one wait longer: it is late, but never stuck, and the rate holds.
    ///
    /// # Errors
    /// How long to wait before it is worth asking again. Nothing was taken.
    pub fn take(&mut self, now: Instant, bytes: u64) -> Result<(), Duration> {
        // A clock that goes backwards brings nothing.
        let elapsed = now.saturating_duration_since(self.filled);
        self.filled = self.filled.max(now);
        let costs = [(&mut self.bytes, bytes), (&mut self.operations, 1)];
        let mut costs = costs.map(|(bucket, cost)| bucket.as_mut().map(|bucket| (bucket, cost)));
        let mut wait = Duration::ZERO;
        for (bucket, cost) in costs.iter_mut().flatten() {
            bucket.fill(elapsed);
            wait = wait.max(bucket.wait_for(*cost));
        }
        if !wait.is_zero() {
            return Err(wait);
        }
        for (bucket, cost) in costs.iter_mut().flatten() {
            bucket.level -= tokens(*cost);
        }
        Ok(())
    }
}

/// Tokens are counted in billionths, of which a second brings a rate's worth each nanosecond: nothing is lost to
/// rounding, however often the bucket is looked at.
#[derive(Debug)]
struct Bucket {
    rate: NonZeroU64,
    burst: i128,
    /// At most `burst`; below zero after a request that was larger.
    level: i128,
}

const BILLION: i128 = 1_000_000_000;

/// At most 2^64 * 10^9 < 2^94.
fn tokens(count: u64) -> i128 {
    i128::from(count) * BILLION
}

impl Bucket {
    fn new(rate: NonZeroU64, burst: Option<NonZeroU64>) -> Self {
        let burst = tokens(burst.unwrap_or(rate).get());
        Self {
            rate,
            burst,
            level: burst,
        }
    }

    fn fill(&mut self, elapsed: Duration) {
        let nanoseconds = i128::try_from(elapsed.as_nanos()).unwrap_or(i128::MAX);
        let brought = nanoseconds.saturating_mul(i128::from(self.rate.get()));
        self.level = self.level.saturating_add(brought).min(self.burst);
    }

    /// How long it takes until the bucket has enough for `count`; nothing, if it has.
    fn wait_for(&self, count: u64) -> Duration {
        let missing = tokens(count).min(self.burst) - self.level;
        let Ok(missing @ 1..) = u128::try_from(missing) else {
            return Duration::ZERO;
        };
        let nanoseconds = missing.div_ceil(u128::from(self.rate.get()));
        // Five hundred years are as good as more.
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// A clock that goes when it is told to.
    struct Clock(Instant);

    impl Clock {
        fn new() -> Self {
            Self(Instant::now())
        }

        fn pass(&mut self, time: Duration) -> Instant {
            self.0 += time;
            self.0
        }
    }

    fn bytes(rate: u64, burst: Option<u64>) -> RateLimit {
        RateLimit {
            bytes_per_second: NonZeroU64::new(rate),
            burst_bytes: burst.and_then(NonZeroU64::new),
            ..RateLimit::default()
        }
    }

    fn operations(rate: u64, burst: Option<u64>) -> RateLimit {
        RateLimit {
            operations_per_second: NonZeroU64::new(rate),
            burst_operations: burst.and_then(NonZeroU64::new),
            ..RateLimit::default()
        }
    }

    #[test]
    fn no_limit_never_waits() {
        let clock = Clock::new();
        let mut limiter = RateLimiter::new(RateLimit::default(), clock.0);
        for _ in 0..1000 {
            assert_eq!(limiter.take(clock.0, u64::MAX), Ok(()));
        }
    }

    #[test]
    fn a_burst_is_there_at_once_and_the_rest_at_the_rate() {
        let mut clock = Clock::new();
        let mut limiter = RateLimiter::new(bytes(MIB, Some(4 * MIB)), clock.0);
        for _ in 0..4 {
            assert_eq!(limiter.take(clock.0, MIB), Ok(()));
        }
        assert_eq!(limiter.take(clock.0, MIB), Err(Duration::from_secs(1)));
        let now = clock.pass(Duration::from_millis(400));
        assert_eq!(limiter.take(now, MIB), Err(Duration::from_millis(600)));
        let now = clock.pass(Duration::from_millis(600));
        assert_eq!(limiter.take(now, MIB), Ok(()));
        assert_eq!(limiter.take(now, 1), Err(Duration::from_nanos(954)));
    }

    #[test]
    fn without_a_burst_a_second_is_one() {
        let mut clock = Clock::new();
        let mut limiter = RateLimiter::new(operations(10, None), clock.0);
        for _ in 0..10 {
            assert_eq!(limiter.take(clock.0, 0), Ok(()));
        }
        assert_eq!(limiter.take(clock.0, 0), Err(Duration::from_millis(100)));
        // A rest of an hour brings no more than that.
        let now = clock.pass(Duration::from_secs(3600));
        let taken = (0..100).filter(|_| limiter.take(now, 0).is_ok()).count();
        assert_eq!(taken, 10);
    }

    #[test]
    fn a_request_larger_than_the_burst_passes_and_the_next_ones_pay_for_it() {
        let mut clock = Clock::new();
        let mut limiter = RateLimiter::new(bytes(1000, Some(1000)), clock.0);
        assert_eq!(limiter.take(clock.0, 5000), Ok(()));
        assert_eq!(limiter.take(clock.0, 1), Err(Duration::from_millis(4001)));
        // Another one of that size needs the whole burst.
        assert_eq!(limiter.take(clock.0, 5000), Err(Duration::from_secs(5)));
        let now = clock.pass(Duration::from_millis(4001));
        assert_eq!(limiter.take(now, 1), Ok(()));
    }

    #[test]
    fn a_refused_request_takes_from_neither_bucket() {
        let mut clock = Clock::new();
        let limit = RateLimit {
            operations_per_second: NonZeroU64::new(2),
            ..bytes(100, None)
        };
        let mut limiter = RateLimiter::new(limit, clock.0);
        assert_eq!(limiter.take(clock.0, 100), Ok(()));
        for _ in 0..50 {
            assert!(limiter.take(clock.0, 1).is_err());
        }
        // One operation is left, although fifty were refused for their bytes.
        let now = clock.pass(Duration::from_millis(10));
        assert_eq!(limiter.take(now, 1), Ok(()));
        // Now it is the operations that are missed, for longer than the bytes.
        assert_eq!(limiter.take(now, 1), Err(Duration::from_millis(490)));
    }

    #[test]
    fn a_clock_that_goes_backwards_brings_nothing() {
        let clock = Clock::new();
        let later = clock.0 + Duration::from_secs(10);
        let mut limiter = RateLimiter::new(operations(1, None), later);
        assert_eq!(limiter.take(later, 0), Ok(()));
        for _ in 0..3 {
            assert_eq!(limiter.take(clock.0, 0), Err(Duration::from_secs(1)));
            assert_eq!(limiter.take(later, 0), Err(Duration::from_secs(1)));
        }
    }

    #[test]
    fn the_greatest_numbers_do_not_overflow() {
        let mut clock = Clock::new();
        let mut limiter = RateLimiter::new(bytes(u64::MAX, None), clock.0);
        assert_eq!(limiter.take(clock.0, u64::MAX), Ok(()));
        assert_eq!(limiter.take(clock.0, u64::MAX), Err(Duration::from_secs(1)));
        let now = clock.pass(Duration::from_secs(1 << 40));
        assert_eq!(limiter.take(now, u64::MAX), Ok(()));
        let mut limiter = RateLimiter::new(bytes(1, Some(u64::MAX)), now);
        assert_eq!(limiter.take(now, u64::MAX), Ok(()));
        assert_eq!(limiter.take(now, u64::MAX), Err(Duration::from_nanos(u64::MAX)));
    }

    #[test]
    fn a_burst_without_a_rate_is_refused_by_name() {
        let limit = RateLimit {
            burst_operations: NonZeroU64::new(1),
            ..bytes(1, Some(1))
        };
        let error = limit.validate().unwrap_err().to_string();
        assert_eq!(
            error,
            "burst_operations limits nothing without operations_per_second"
        );
        bytes(1, Some(1)).validate().unwrap();
        RateLimit::default().validate().unwrap();
    }

    #[test]
    fn a_limit_of_nothing_and_an_unknown_word_are_refused() {
        let parse = serde_json::from_str::<RateLimit>;
        assert!(parse(r#"{"bytes_per_second":0}"#).is_err());
        let error = parse(r#"{"bytes_per_minute":1}"#).unwrap_err().to_string();
        assert!(error.contains("bytes_per_minute"), "{error}");
        assert_eq!(
            parse(r#"{"bytes_per_second":1048576}"#).unwrap(),
            bytes(MIB, None)
        );
    }

    proptest! {
        /// Whoever waits as long as he is told gets what he asked for, and nobody gets more than the burst, the rate and
        /// one request beyond.
        #[test]
        fn the_rate_holds_for_any_requests(
            rate in 1..1_000_000_u64,
            burst in 1..1_000_000_u64,
            requests in prop::collection::vec((0..100_000_u64, 0..2_000_u64), 1..60),
        ) {
            let mut clock = Clock::new();
            let start = clock.0;
            let mut limiter = RateLimiter::new(bytes(rate, Some(burst)), start);
            let mut taken = 0;
            let mut largest = 0;
            for (size, rest) in requests {
                clock.pass(Duration::from_millis(rest));
                if let Err(wait) = limiter.take(clock.0, size) {
                    prop_assert!(wait > Duration::ZERO);
                    let now = clock.pass(wait);
                    prop_assert_eq!(limiter.take(now, size), Ok(()));
                }
                taken += size;
                largest = largest.max(size);
                let brought = (clock.0 - start).as_nanos() * u128::from(rate) / 1_000_000_000;
                prop_assert!(u128::from(taken) <= u128::from(burst) + brought + u128::from(largest));
            }
        }
    }
}
