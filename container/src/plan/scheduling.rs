//! `process.scheduler`, `process.ioPriority` and `process.execCPUAffinity`: when and where a process runs.

use oci_spec::runtime::{
    ExecCPUAffinity, IOPriorityClass, LinuxIOPriority, LinuxSchedulerFlag, LinuxSchedulerPolicy, Process,
    Scheduler,
};
use rustix::thread::CpuSet;

use super::{SpecError, number_list};
use crate::kernel::scheduling::SchedulingAttributes;

/// When and where a process runs.
#[derive(Debug, Default)]
pub(crate) struct SchedulingPlan {
    pub(crate) scheduler: Option<SchedulingAttributes>,
    /// As `ioprio_set(2)` takes it.
    pub(crate) io_priority: Option<u16>,
    /// Of a process that joins a container, while it is on its way there.
    pub(crate) initial_affinity: Option<CpuSet>,
    /// Of one that has arrived.
    pub(crate) final_affinity: Option<CpuSet>,
}

impl SchedulingPlan {
    pub(super) fn new(process: &Process) -> Result<SchedulingPlan, SpecError> {
        let affinity = process.exec_cpu_affinity().as_ref();
        let cpus = |part: fn(&ExecCPUAffinity) -> &Option<String>, field| {
            let text = affinity.and_then(|affinity| part(affinity).as_ref());
            text.filter(|text| !text.is_empty())
                .map(|text| cpu_set(field, text))
                .transpose()
        };
        Ok(SchedulingPlan {
            scheduler: process.scheduler().as_ref().map(attributes).transpose()?,
            io_priority: process.io_priority().as_ref().map(io_priority).transpose()?,
            initial_affinity: cpus(ExecCPUAffinity::initial, "process.execCPUAffinity.initial")?,
            final_affinity: cpus(
                ExecCPUAffinity::cpu_affinity_final,
                "process.execCPUAffinity.final",
            )?,
        })
    }
}

fn cpu_set(field: &str, text: &str) -> Result<CpuSet, SpecError> {
    let mut set = CpuSet::new();
    for cpu in number_list::parse(field, text, CpuSet::MAX_CPU as u32)?
        .into_iter()
        .flatten()
    {
        set.set(cpu as usize);
    }
    Ok(set)
}

/// Class and level share a number: `IOPRIO_PRIO_VALUE` of `<linux/ioprio.h>`.
fn io_priority(priority: &LinuxIOPriority) -> Result<u16, SpecError> {
    let class: u16 = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let level = u16::try_from(priority.priority())
        .ok()
        .filter(|level| *level < 8)
        .ok_or_else(|| {
            let problem = format!("{} is not within 0 to 7", priority.priority());
            SpecError::invalid("process.ioPriority.priority", problem)
        })?;
    Ok(class << 13 | level)
}

fn attributes(scheduler: &Scheduler) -> Result<SchedulingAttributes, SpecError> {
    let invalid =
        |field: &str, problem: String| Err(SpecError::invalid(format!("process.scheduler.{field}"), problem));
    let policy = *scheduler.policy();
    let number = match policy {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        // A number was set aside for it, and that is all Linux ever had of it.
        LinuxSchedulerPolicy::SchedIso => return invalid("policy", "Linux has no SCHED_ISO".into()),
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let nice = scheduler.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        return invalid("nice", format!("{nice} is not within -20 to 19"));
    }
    let is_real_time = matches!(
        policy,
        LinuxSchedulerPolicy::SchedFifo | LinuxSchedulerPolicy::SchedRr
    );
    let priority = scheduler.priority().unwrap_or(0);
    match priority {
        1..=99 if is_real_time => {}
        0 if !is_real_time => {}
        _ if is_real_time => return invalid("priority", format!("{priority} is not within 1 to 99")),
        _ => {
            return invalid(
                "priority",
                format!("only SCHED_FIFO and SCHED_RR have one, and this is {policy}"),
            );
        }
    }
    let times = [
        ("runtime", scheduler.runtime().unwrap_or(0)),
        ("deadline", scheduler.deadline().unwrap_or(0)),
        ("period", scheduler.period().unwrap_or(0)),
    ];
    let is_deadline = policy == LinuxSchedulerPolicy::SchedDeadline;
    if let Some((field, _)) = times.iter().find(|(_, time)| *time != 0 && !is_deadline) {
        return invalid(
            field,
            format!("only SCHED_DEADLINE has one, and this is {policy}"),
        );
    }
    let [(_, runtime), (_, deadline), (_, period)] = times;
    // A period of 0 is as long as the deadline (sched(7)).
    if is_deadline && !(1..=deadline).contains(&runtime) {
        return invalid(
            "runtime",
            format!("{runtime} ns is not within 1 to the deadline of {deadline} ns"),
        );
    }
    if period != 0 && period < deadline {
        return invalid(
            "period",
            format!("{period} ns is below the deadline of {deadline} ns"),
        );
    }
    Ok(SchedulingAttributes {
        policy: number,
        flags: scheduler
            .flags()
            .iter()
            .flatten()
            .fold(0, |flags, flag| flags | bit(*flag)),
        nice,
        priority: priority.unsigned_abs(),
        runtime,
        deadline,
        period,
    })
}

/// `SCHED_FLAG_*` of `<linux/sched.h>`.
fn bit(flag: LinuxSchedulerFlag) -> u64 {
    match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn plan(field: &str, value: Value) -> Result<SchedulingPlan, SpecError> {
        let process = json!({ "user": {}, "cwd": "/", field: value });
        SchedulingPlan::new(&serde_json::from_value(process).unwrap())
    }

    #[test]
    fn a_scheduler_has_the_kernels_numbers() {
        let scheduler = |value| plan("scheduler", value).unwrap().scheduler.unwrap();
        let batch = scheduler(json!({ "policy": "SCHED_BATCH", "nice": -5 }));
        assert_eq!((batch.policy, batch.nice, batch.flags), (3, -5, 0));
        let round = scheduler(json!({
            "policy": "SCHED_RR", "priority": 7, "flags": ["SCHED_FLAG_RECLAIM", "SCHED_FLAG_UTIL_CLAMP_MAX"]
        }));
        assert_eq!((round.policy, round.priority, round.flags), (2, 7, 0x42));
        let deadline =
            scheduler(json!({ "policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3 }));
        assert_eq!(
            (
                deadline.policy,
                deadline.runtime,
                deadline.deadline,
                deadline.period
            ),
            (6, 1, 2, 3)
        );
    }

    #[test]
    fn an_io_priority_has_the_kernels_number() {
        let priority =
            |class: &str, level: i32| plan("ioPriority", json!({ "class": class, "priority": level }));
        for (class, number) in [
            ("IOPRIO_CLASS_RT", 1 << 13 | 7),
            ("IOPRIO_CLASS_BE", 2 << 13 | 7),
            ("IOPRIO_CLASS_IDLE", 3 << 13 | 7),
        ] {
            assert_eq!(priority(class, 7).unwrap().io_priority, Some(number));
        }
        for level in [-1, 8] {
            let error = priority("IOPRIO_CLASS_BE", level).unwrap_err();
            assert_eq!(error.field(), "process.ioPriority.priority");
        }
    }

    #[test]
    fn affinities_are_sets_of_cpus() {
        let plan = plan("execCPUAffinity", json!({ "initial": "0-1,3", "final": "2" })).unwrap();
        let (initial, last) = (plan.initial_affinity.unwrap(), plan.final_affinity.unwrap());
        assert_eq!(
            [0, 1, 2, 3].map(|cpu| initial.is_set(cpu)),
            [true, true, false, true]
        );
        assert!(last.is_set(2) && last.count() == 1);
    }

    #[test]
    fn mistakes_are_refused_by_their_place() {
        for (field, value, place) in [
            ("scheduler", json!({ "policy": "SCHED_ISO" }), "scheduler.policy"),
            (
                "scheduler",
                json!({ "policy": "SCHED_OTHER", "nice": 20 }),
                "scheduler.nice",
            ),
            (
                "scheduler",
                json!({ "policy": "SCHED_OTHER", "priority": 1 }),
                "scheduler.priority",
            ),
            (
                "scheduler",
                json!({ "policy": "SCHED_FIFO" }),
                "scheduler.priority",
            ),
            (
                "scheduler",
                json!({ "policy": "SCHED_FIFO", "priority": 100 }),
                "scheduler.priority",
            ),
            (
                "scheduler",
                json!({ "policy": "SCHED_IDLE", "period": 1 }),
                "scheduler.period",
            ),
            (
                "scheduler",
                json!({ "policy": "SCHED_DEADLINE" }),
                "scheduler.runtime",
            ),
            (
                "scheduler",
                json!({ "policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 3, "period": 2 }),
                "scheduler.period",
            ),
            (
                "execCPUAffinity",
                json!({ "initial": "3-1" }),
                "execCPUAffinity.initial",
            ),
            (
                "execCPUAffinity",
                json!({ "final": "1024" }),
                "execCPUAffinity.final",
            ),
        ] {
            let error = plan(field, value).unwrap_err();
            assert_eq!(error.field(), format!("process.{place}"));
        }
    }
}
