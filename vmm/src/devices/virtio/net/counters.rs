//! What became of the frames.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Counts frames while the device's threads move them; any thread may read it.
#[derive(Debug, Default)]
pub(super) struct NetCounters {
    pub(super) received: Counter,
    pub(super) receive_dropped: Counter,
    pub(super) transmitted: Counter,
    pub(super) transmit_dropped: Counter,
}

/// The figures at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetCounts {
    /// Frames the guest was given.
    pub received: u64,
    /// Frames it could not be given: its buffers are too small for them, or it does not understand their headers.
    pub receive_dropped: u64,
    /// Frames the tap took.
    pub transmitted: u64,
    /// Frames nobody took: there is no tap, it refused them, or they were none.
    pub transmit_dropped: u64,
}

impl NetCounters {
    /// The figures now.
    pub(super) fn counts(&self) -> NetCounts {
        NetCounts {
            received: self.received.get(),
            receive_dropped: self.receive_dropped.get(),
            transmitted: self.transmitted.get(),
            transmit_dropped: self.transmit_dropped.get(),
        }
    }
}

/// One figure.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
