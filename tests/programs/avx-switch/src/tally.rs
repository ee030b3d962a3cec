//! How many context switches the kernel has counted, in all processes together.

use std::io;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU64, Ordering};

/// Calls that might switch, for one that does. Past this the processes have nobody to switch with.
const PATIENCE: u64 = 16;

/// A count in memory that is shared with all children.
pub(crate) struct Tally {
    counted: NonNull<AtomicU64>,
    wanted: u64,
}

impl Tally {
    /// An empty tally that is complete at `wanted`.
    pub(crate) fn new(wanted: u32) -> io::Result<Tally> {
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
        );
        // SAFETY: asks for new memory anywhere.
        let memory = unsafe { libc::mmap(null_mut(), size_of::<AtomicU64>(), protection, flags, -1, 0) };
        match NonNull::new(memory.cast::<AtomicU64>()) {
            Some(counted) if memory != libc::MAP_FAILED => Ok(Tally {
                counted,
                wanted: wanted.into(),
            }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Adds what the kernel counted for this process since the last time.
    pub(crate) fn add_own_switches(&self, before: &mut u64) {
        // SAFETY: an all-zero rusage is a valid one.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: the place is ours.
        unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
        let now = (usage.ru_nvcsw + usage.ru_nivcsw).unsigned_abs();
        self.shared().fetch_add(now - *before, Ordering::Relaxed);
        *before = now;
    }

    pub(crate) fn counted(&self) -> u64 {
        self.shared().load(Ordering::Relaxed)
    }

    pub(crate) fn wanted(&self) -> u64 {
        self.wanted
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.counted() >= self.wanted
    }

    /// Whether a process has tried so often that there must be something wrong.
    pub(crate) fn is_hopeless(&self, tries: u32) -> bool {
        u64::from(tries) > PATIENCE * self.wanted.max(1000)
    }

    fn shared(&self) -> &AtomicU64 {
        // SAFETY: the mapping is never unmapped, is page-aligned, begins as zero, and is used as an atomic only.
        unsafe { self.counted.as_ref() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_tally_is_complete_only_if_nothing_is_wanted() {
        assert!(Tally::new(0).unwrap().is_complete());
        assert!(!Tally::new(1).unwrap().is_complete());
    }

    #[test]
    fn own_switches_are_added_once() {
        let tally = Tally::new(1).unwrap();
        let mut before = 0;
        std::thread::sleep(std::time::Duration::from_millis(1));
        tally.add_own_switches(&mut before);
        assert!(tally.is_complete());
        assert_eq!(tally.counted(), before);
    }

    #[test]
    fn many_tries_without_a_switch_are_hopeless() {
        let tally = Tally::new(10).unwrap();
        assert!(!tally.is_hopeless(10_000));
        assert!(tally.is_hopeless(100_000));
    }
}
