//! Cgroups for processes that are no container's: those of a virtual machine, where the pod's own would be.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::plan;
use super::resources::Resources;
use super::{Cgroup, CgroupError, Hierarchies, Hierarchy, OutOfMemoryWatch, Statistics, setting};
use crate::id::ContainerId;
use crate::plan::SpecError;

/// What the processes of a [`PodCgroup`] may use together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodLimits {
    /// Bytes of memory; none for no limit.
    pub memory: Option<u64>,
    /// Microseconds of CPU time in each period; none for no limit.
    pub cpu_quota: Option<u64>,
    /// Microseconds; none for the kernel's 100,000.
    pub cpu_period: Option<u64>,
    /// The share of the CPUs where they are wanted by more, 2 to 262,144; none for the kernel's 1024.
    pub cpu_shares: Option<u64>,
}

/// One cgroup in each hierarchy, for processes that are no container's. Which devices they may use is not limited.
///
/// It can be written down before it is made, and what was written is enough to remove it by, also when making it was cut
/// short. Dropping it changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodCgroup {
    cgroup: Cgroup,
    limits: PodLimits,
}

/// The way into a [`PodCgroup`] for a process between its fork and its execution.
#[derive(Debug)]
struct PodEntrance(Vec<OwnedFd>);

impl PodCgroup {
    /// Decides where the cgroups will be, by the rules for a container: `cgroups_path` is `linux.cgroupsPath` of the
    /// configuration, and `id` names the cgroup where there is none. Makes nothing.
    ///
    /// # Errors
    /// When the path or a limit makes no sense, or processes are in the cgroup already.
    pub fn locate(
        cgroups_path: Option<&Path>,
        id: &ContainerId,
        limits: PodLimits,
    ) -> Result<PodCgroup, CgroupError> {
        resources(&PodLimits::default(), &limits)?;
        let path = plan::path(cgroups_path, id).map_err(CgroupError::Spec)?;
        Ok(PodCgroup {
            cgroup: Cgroup::locate(&Hierarchies::mounted()?, &path)?,
            limits,
        })
    }

    /// Makes the cgroups with their limits, all or none. What could not be taken back is left to [`remove`](Self::remove).
    pub fn make(&self) -> Result<(), CgroupError> {
        self.cgroup
            .make(&Hierarchies::mounted()?)
            .map_err(CgroupError::of_path)?;
        let limited = resources(&PodLimits::default(), &self.limits)
            .and_then(|resources| setting::apply(&self.cgroup.settings(&resources)?));
        limited.inspect_err(|_| {
            // The limit that was refused is what to tell, and nothing is forgotten: this names what is left.
            let _ = self.cgroup.remove();
        })
    }

    /// Locates the cgroups and makes them.
    pub fn create(
        cgroups_path: Option<&Path>,
        id: &ContainerId,
        limits: PodLimits,
    ) -> Result<PodCgroup, CgroupError> {
        let made = PodCgroup::locate(cgroups_path, id, limits)?;
        made.make()?;
        Ok(made)
    }

    /// The limits it was made with, or last [given](Self::update).
    pub fn limits(&self) -> &PodLimits {
        &self.limits
    }

    /// Sets other limits, all or none: one that is none is lifted.
    ///
    /// # Errors
    /// When more memory is in use than is to be allowed, among others.
    pub fn update(&mut self, limits: PodLimits) -> Result<(), CgroupError> {
        self.cgroup.set_limits(&resources(&self.limits, &limits)?)?;
        self.limits = limits;
        Ok(())
    }

    /// Moves a process with all its threads into the cgroups, but none of its children: what it starts from now on is
    /// in them. A process that is yet to be made gets there sooner by [`Self::take_in`].
    ///
    /// # Errors
    /// `ESRCH` in the error's source when there is no such process.
    pub fn add_process(&self, pid: u32) -> Result<(), CgroupError> {
        for member in &self.cgroup.members {
            let file = member.path.join("cgroup.procs");
            if pid == 0 {
                // To the kernel that is the caller.
                return Err(CgroupError::io("move process 0 by", &file, Errno::SRCH));
            }
            super::write(&file, &pid.to_string())
                .map_err(|errno| CgroupError::io("move a process by", &file, errno))?;
        }
        Ok(())
    }

    /// Has the process that `command` will be in the cgroups from its first instruction.
    pub fn take_in(&self, command: &mut Command) -> Result<(), CgroupError> {
        let entrance = self.entrance()?;
        // SAFETY: between fork and execution it writes to open files, and allocates nothing.
        unsafe { command.pre_exec(move || entrance.enter()) };
        Ok(())
    }

    fn entrance(&self) -> Result<PodEntrance, CgroupError> {
        let open = |member: &super::Member| {
            // Through `tasks` it is the one thread that moves, for which the kernel needs not wait for others.
            let file = member.path.join(match member.hierarchy {
                Hierarchy::Unified => "cgroup.procs",
                Hierarchy::Version1(_) => "tasks",
            });
            rustix::fs::open(&file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|errno| CgroupError::io("open", &file, errno))
        };
        self.cgroup
            .members
            .iter()
            .map(open)
            .collect::<Result<_, _>>()
            .map(PodEntrance)
    }

    /// The processes in the cgroups, by the caller's numbers; empty where there are no cgroups.
    pub fn processes(&self) -> Result<Vec<i32>, CgroupError> {
        self.cgroup.processes()
    }

    /// What the processes use.
    pub fn statistics(&self) -> Result<Statistics, CgroupError> {
        self.cgroup.statistics()
    }

    /// Watches for the kernel killing for want of memory; none where no controller limits memory.
    pub fn watch_memory(&self) -> Result<Option<OutOfMemoryWatch>, CgroupError> {
        self.cgroup.watch_memory()
    }

    /// Kills every process and waits until none is left.
    pub fn kill_all(&self) -> Result<(), CgroupError> {
        self.cgroup.kill()
    }

    /// Kills the processes that are left and removes the cgroups, with the parents that were made for them and are
    /// empty. Done again, or for what was never made, it does nothing.
    pub fn remove(&self) -> Result<(), CgroupError> {
        self.cgroup.remove()
    }
}

impl PodEntrance {
    /// Moves the calling process, which has one thread, into the cgroups. Allocates nothing: it may be called between
    /// fork and execution.
    fn enter(&self) -> io::Result<()> {
        for entrance in &self.0 {
            rustix::io::write(entrance, b"0").map_err(io::Error::from)?;
        }
        Ok(())
    }
}

/// What to set to come from one set of limits to another.
fn resources(present: &PodLimits, wanted: &PodLimits) -> Result<Resources, CgroupError> {
    const DEFAULT_PERIOD: u64 = 100_000;
    const DEFAULT_SHARES: u64 = 1024;
    let invalid = |field: &str, problem| Err(CgroupError::Spec(SpecError::invalid(field, problem)));
    let limit = |present: Option<u64>, wanted: Option<u64>, field: &str| match wanted.map(i64::try_from) {
        Some(Ok(0)) => invalid(field, "is 0, with which nothing could run"),
        Some(Ok(wanted)) => Ok(Some(wanted)),
        Some(Err(_)) => invalid(field, "is larger than the kernel counts"),
        None => Ok(present.map(|_| -1)),
    };
    let or_default = |present: Option<u64>, wanted: Option<u64>, default| wanted.or(present.map(|_| default));
    Ok(Resources {
        memory_limit: limit(present.memory, wanted.memory, super::update::MEMORY_LIMIT)?,
        check_memory_in_use: true,
        cpu_quota: limit(present.cpu_quota, wanted.cpu_quota, "linux.resources.cpu.quota")?,
        cpu_period: or_default(present.cpu_period, wanted.cpu_period, DEFAULT_PERIOD),
        cpu_shares: or_default(present.cpu_shares, wanted.cpu_shares, DEFAULT_SHARES),
        ..Resources::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_longer_limited_is_lifted_and_what_never_was_is_not_touched() {
        let before = PodLimits {
            memory: Some(4096),
            cpu_quota: None,
            cpu_period: Some(50_000),
            cpu_shares: None,
        };
        let after = PodLimits {
            memory: None,
            cpu_quota: Some(10_000),
            ..PodLimits::default()
        };
        let change = resources(&before, &after).unwrap();
        assert_eq!(change.memory_limit, Some(-1));
        assert_eq!(change.cpu_quota, Some(10_000));
        assert_eq!(change.cpu_period, Some(100_000));
        assert_eq!(change.cpu_shares, None);
    }

    #[test]
    fn limits_without_sense_are_refused_by_their_place() {
        for (memory, cpu_quota, field) in [
            (Some(0), None, "linux.resources.memory.limit"),
            (Some(u64::MAX), None, "linux.resources.memory.limit"),
            (None, Some(0), "linux.resources.cpu.quota"),
        ] {
            let limits = PodLimits {
                memory,
                cpu_quota,
                ..PodLimits::default()
            };
            let error = resources(&PodLimits::default(), &limits).unwrap_err();
            assert!(error.to_string().contains(field), "{error}");
        }
    }
}
