//! Whether limits and memory suffice.

use rustix::process::{Resource, getrlimit};
use serde_json::Value;

use super::finding::{Finding, causes};
use crate::isolation::Isolation;
use crate::oci_pod::sandbox::PodSandbox;

/// A share's server holds one for each file that its guest knows.
const DESCRIPTORS: u64 = 4096;

/// The kernel's own default before Linux 5.16.
const LOCKED_BYTES: u64 = 64 << 10;

pub(super) fn descriptors() -> Finding {
    // The VMM raises the soft limit to the hard one.
    judge_descriptors(getrlimit(Resource::Nofile).maximum).only_for(Isolation::MicroVm)
}

fn judge_descriptors(limit: Option<u64>) -> Finding {
    const CHECK: &str = "file descriptors";
    match limit {
        None => Finding::ok(CHECK, "without limit (RLIMIT_NOFILE)"),
        Some(limit) if limit >= DESCRIPTORS => Finding::ok(CHECK, format!("up to {limit} (RLIMIT_NOFILE)")),
        Some(limit) => Finding::warning(
            CHECK,
            format!("up to {limit} (RLIMIT_NOFILE)"),
            format!(
                "containers with many open files run short of them: raise the hard limit to {DESCRIPTORS} or more"
            ),
        ),
    }
}

pub(super) fn locked_memory() -> Finding {
    judge_locked_memory(getrlimit(Resource::Memlock).current)
}

fn judge_locked_memory(limit: Option<u64>) -> Finding {
    const CHECK: &str = "locked memory";
    match limit {
        None => Finding::ok(CHECK, "without limit (RLIMIT_MEMLOCK)"),
        Some(limit) if limit >= LOCKED_BYTES => {
            Finding::ok(CHECK, format!("up to {} KiB (RLIMIT_MEMLOCK)", limit >> 10))
        }
        Some(limit) => Finding::warning(
            CHECK,
            format!("up to {} KiB (RLIMIT_MEMLOCK)", limit >> 10),
            "before Linux 5.11 the programs that limit devices count against it: raise it",
        ),
    }
}

pub(super) fn memory() -> Finding {
    const CHECK: &str = "memory";
    let finding = match std::fs::read_to_string("/proc/meminfo") {
        Ok(meminfo) => judge_memory(CHECK, available(&meminfo)),
        Err(error) => Finding::warning(CHECK, format!("reading /proc/meminfo: {error}"), "mount /proc"),
    };
    finding.only_for(Isolation::MicroVm)
}

/// Against what the smallest configuration there is, one without limits, may use of the host.
fn judge_memory(check: &'static str, available: Option<u64>) -> Finding {
    let Some(available) = available else {
        return Finding::warning(
            check,
            "/proc/meminfo has no MemAvailable",
            "use Linux 3.14 or later",
        );
    };
    let needed = match PodSandbox::limits_on_host(&Value::Null) {
        Ok(limits) => limits.memory.unwrap_or_default(),
        Err(error) => {
            return Finding::warning(check, causes(error), "see `bulkhead explain`");
        }
    };
    let detail = format!(
        "{} MiB available; a machine without limits may use {} MiB",
        available >> 20,
        needed >> 20
    );
    if available >= needed {
        Finding::ok(check, detail)
    } else {
        Finding::warning(
            check,
            detail,
            "free memory, or limit pods: see `bulkhead explain`",
        )
    }
}

/// What `MemAvailable` says (proc_meminfo(5)), in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::*;

    #[test]
    fn available_memory_is_read_in_bytes() {
        let meminfo = "MemTotal:       100 kB\nMemAvailable:        3 kB\n";
        assert_eq!(available(meminfo), Some(3072));
        assert_eq!(available("MemTotal:       100 kB\n"), None);
    }

    #[test]
    fn memory_is_held_against_the_machine_of_a_pod_without_limits() {
        let needed = PodSandbox::limits_on_host(&Value::Null).unwrap().memory.unwrap();
        assert_eq!(judge_memory("x", Some(needed)).status, Status::Ok);
        assert_eq!(judge_memory("x", Some(needed - 1)).status, Status::Warning);
        assert_eq!(judge_memory("x", None).status, Status::Warning);
    }

    #[test]
    fn small_limits_are_warnings() {
        assert_eq!(judge_descriptors(Some(1024)).status, Status::Warning);
        assert_eq!(judge_descriptors(None).status, Status::Ok);
        assert_eq!(judge_locked_memory(Some(0)).status, Status::Warning);
        assert_eq!(judge_locked_memory(Some(8 << 20)).status, Status::Ok);
    }
}
