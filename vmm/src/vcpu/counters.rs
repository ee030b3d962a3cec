//! How often a vCPU left the guest, and why.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::completion::Mnemonic;

/// A vCPU's counters; its thread counts, any thread reads.
#[derive(Debug, Default)]
pub struct ExitCounters {
    port_reads: AtomicU64,
    port_writes: AtomicU64,
    mmio_reads: AtomicU64,
    mmio_writes: AtomicU64,
    completed: Mutex<HashMap<Mnemonic, u64>>,
}

/// What the counters showed at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitCounts {
    /// `in` instructions that reached this process.
    pub port_reads: u64,
    /// `out` instructions that reached this process.
    pub port_writes: u64,
    /// Reads of device memory.
    pub mmio_reads: u64,
    /// Writes to device memory, without those that KVM turned into events itself.
    pub mmio_writes: u64,
    /// Instructions completed for a KVM that could not emulate them, by mnemonic.
    pub completed: BTreeMap<String, u64>,
}

impl ExitCounters {
    /// Counts an `in`.
    pub fn port_read(&self) {
        self.port_reads.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an `out`.
    pub fn port_write(&self) {
        self.port_writes.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a read of device memory.
    pub fn mmio_read(&self) {
        self.mmio_reads.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a write to device memory.
    pub fn mmio_write(&self) {
        self.mmio_writes.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an instruction completed for KVM.
    pub fn completed(&self, mnemonic: Mnemonic) {
        *self
            .completed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(mnemonic)
            .or_default() += 1;
    }

    /// The counts at this moment.
    pub fn read(&self) -> ExitCounts {
        ExitCounts {
            port_reads: self.port_reads.load(Ordering::Relaxed),
            port_writes: self.port_writes.load(Ordering::Relaxed),
            mmio_reads: self.mmio_reads.load(Ordering::Relaxed),
            mmio_writes: self.mmio_writes.load(Ordering::Relaxed),
            completed: self
                .completed
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .iter()
                .map(|(mnemonic, count)| (format!("{mnemonic:?}").to_lowercase(), *count))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completed_instructions_are_counted_by_mnemonic() {
        let counters = ExitCounters::default();
        counters.completed(Mnemonic::Xsave);
        counters.completed(Mnemonic::Popcnt);
        counters.completed(Mnemonic::Xsave);
        assert_eq!(
            counters.read().completed,
            BTreeMap::from([("popcnt".into(), 1), ("xsave".into(), 2)])
        );
    }
}
