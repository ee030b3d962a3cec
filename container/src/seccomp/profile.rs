//! `linux.seccomp`, judged and in the kernel's terms, before it is about any architecture.

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
    LinuxSyscall,
};

use crate::plan::SpecError;

/// What the kernel does with a system call: a return value of a filter (`SECCOMP_RET_*` in `<linux/seccomp.h>`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Action(pub(super) u32);

impl Action {
    pub(super) const KILL_THREAD: Action = Action(0);
    pub(super) const NO_SUCH_CALL: Action = Action::errno(libc::ENOSYS as u32);
    const KILL_PROCESS: Action = Action(0x8000_0000);
    const TRAP: Action = Action(0x0003_0000);
    const ERRNO: u32 = 0x0005_0000;
    const NOTIFY: Action = Action(0x7fc0_0000);
    const TRACE: u32 = 0x7ff0_0000;
    const LOG: Action = Action(0x7ffc_0000);
    const ALLOW: Action = Action(0x7fff_0000);

    const fn errno(number: u32) -> Action {
        Action(Action::ERRNO | number)
    }

    /// Whether a call that meets it is made, or may be by a tracer who knows better.
    fn lets_through(self) -> bool {
        matches!(self, Action::ALLOW | Action::LOG) || self.0 & 0xffff_0000 == Action::TRACE
    }

    /// Whether the kernel makes a call that meets it, whoever else there is.
    pub(super) fn makes_the_call(self) -> bool {
        matches!(self, Action::ALLOW | Action::LOG)
    }

    fn new(
        action: LinuxSeccompAction,
        errno: Option<u32>,
        errno_field: impl FnOnce() -> String,
    ) -> Result<Action, SpecError> {
        // The kernel cuts an error number to this (MAX_ERRNO) and gives a tracer 16 bits.
        let limit = match action {
            LinuxSeccompAction::ScmpActErrno => 4095,
            LinuxSeccompAction::ScmpActTrace => 0xffff,
            _ if errno.is_some() => {
                return Err(SpecError::invalid(
                    errno_field(),
                    format!("{action} returns no error"),
                ));
            }
            _ => 0,
        };
        let number = errno.unwrap_or(libc::EPERM as u32);
        if errno.is_some_and(|number| number > limit) {
            return Err(SpecError::invalid(
                errno_field(),
                format!("{number} is above {limit}"),
            ));
        }
        Ok(match action {
            LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => Action::KILL_THREAD,
            LinuxSeccompAction::ScmpActKillProcess => Action::KILL_PROCESS,
            LinuxSeccompAction::ScmpActTrap => Action::TRAP,
            LinuxSeccompAction::ScmpActErrno => Action::errno(number),
            LinuxSeccompAction::ScmpActNotify => Action::NOTIFY,
            LinuxSeccompAction::ScmpActTrace => Action(Action::TRACE | number),
            LinuxSeccompAction::ScmpActLog => Action::LOG,
            LinuxSeccompAction::ScmpActAllow => Action::ALLOW,
        })
    }
}

/// A question about one argument of a call, and the answer that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    /// 0 to 5.
    pub(super) argument: u8,
    pub(super) comparison: Comparison,
    pub(super) wanted: bool,
}

/// Comparisons of an unsigned argument; the other operators are these with the other answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    /// `argument & mask == value`, where no bit of the value is outside the mask.
    MaskedEqual {
        mask: u64,
        value: u64,
    },
    Greater(u64),
    GreaterOrEqual(u64),
    /// Of the lower half alone.
    NarrowGreater(u32),
    NarrowGreaterOrEqual(u32),
}

impl Condition {
    pub(super) fn equal(argument: u8, value: u64) -> Condition {
        Condition {
            argument,
            comparison: Comparison::MaskedEqual {
                mask: u64::MAX,
                value,
            },
            wanted: true,
        }
    }

    /// Whether the call's arguments are as the condition wants them.
    pub(super) fn holds(&self, arguments: &[u64; 6]) -> bool {
        let argument = arguments.get(usize::from(self.argument)).copied().unwrap_or(0);
        let low = argument as u32;
        let answer = match self.comparison {
            Comparison::MaskedEqual { mask, value } => argument & mask == value,
            Comparison::Greater(bound) => argument > bound,
            Comparison::GreaterOrEqual(bound) => argument >= bound,
            Comparison::NarrowGreater(bound) => low > bound,
            Comparison::NarrowGreaterOrEqual(bound) => low >= bound,
        };
        answer == self.wanted
    }

    /// The same for an architecture whose arguments have 32 bits: the higher halves, of the configuration's values too,
    /// are not looked at, so that -1 written with 64 bits is -1.
    pub(super) fn narrowed(self) -> Condition {
        let low = u64::from(u32::MAX);
        let comparison = match self.comparison {
            Comparison::MaskedEqual { mask, value } => Comparison::MaskedEqual {
                mask: mask & low,
                value: value & low,
            },
            Comparison::Greater(bound) => Comparison::NarrowGreater(bound as u32),
            Comparison::GreaterOrEqual(bound) => Comparison::NarrowGreaterOrEqual(bound as u32),
            narrow => narrow,
        };
        Condition { comparison, ..self }
    }

    fn new(argument: &LinuxSeccompArg, field: impl Fn(&str) -> String) -> Result<Condition, SpecError> {
        let index = u8::try_from(argument.index())
            .ok()
            .filter(|&index| index < 6)
            .ok_or_else(|| SpecError::invalid(field("index"), "a system call has the arguments 0 to 5"))?;
        let value = argument.value();
        let (comparison, wanted) = match argument.op() {
            LinuxSeccompOperator::ScmpCmpEq => return Ok(Condition::equal(index, value)),
            LinuxSeccompOperator::ScmpCmpNe => (Condition::equal(index, value).comparison, false),
            LinuxSeccompOperator::ScmpCmpLt => (Comparison::GreaterOrEqual(value), false),
            LinuxSeccompOperator::ScmpCmpLe => (Comparison::Greater(value), false),
            LinuxSeccompOperator::ScmpCmpGe => (Comparison::GreaterOrEqual(value), true),
            LinuxSeccompOperator::ScmpCmpGt => (Comparison::Greater(value), true),
            // The mask comes first. libseccomp masks the value too.
            LinuxSeccompOperator::ScmpCmpMaskedEq => {
                let mask = value;
                let value = argument.value_two().unwrap_or(0) & mask;
                (Comparison::MaskedEqual { mask, value }, true)
            }
        };
        Ok(Condition {
            argument: index,
            comparison,
            wanted,
        })
    }
}

/// What to do with calls of these names.
#[derive(Debug)]
pub(super) struct Rule<'a> {
    pub(super) names: &'a [String],
    pub(super) action: Action,
    /// One of these has to hold in all its conditions; without conditions it always does.
    pub(super) alternatives: Vec<Vec<Condition>>,
}

/// A profile that makes sense.
#[derive(Debug)]
pub(super) struct Profile<'a> {
    pub(super) default: Action,
    pub(super) rules: Vec<Rule<'a>>,
    /// Of every entry, also of those that are no rules.
    pub(super) names: Vec<&'a [String]>,
    /// Whether a call newer than all those the profile names gets ENOSYS.
    ///
    /// A program that tries a new call falls back to an old one when it hears ENOSYS, and only then; EPERM makes it
    /// fail. A profile that denies by default was written when those calls did not exist, so the container is told
    /// that they still do not. This is runc's rule, with its exceptions: profiles that let unknown calls through have
    /// no such trouble, and a default of ENOSYS needs no help.
    pub(super) hides_newer_calls: bool,
    pub(super) notifies: bool,
}

impl Profile<'_> {
    pub(super) fn new(seccomp: &LinuxSeccomp) -> Result<Profile<'_>, SpecError> {
        let default = Action::new(seccomp.default_action(), seccomp.default_errno_ret(), || {
            "linux.seccomp.defaultErrnoRet".to_owned()
        })?;
        let mut rules = Vec::new();
        let mut names = Vec::new();
        let mut notifies = default == Action::NOTIFY;
        for (index, call) in seccomp.syscalls().iter().flatten().enumerate() {
            let rule = Rule::new(call, index)?;
            names.push(rule.names);
            notifies |= rule.action == Action::NOTIFY;
            // What happens anyway is no rule, for runc as for libseccomp: it must not stand before one that says
            // something else.
            if rule.action != default {
                rules.push(rule);
            }
        }
        Ok(Profile {
            default,
            rules,
            names,
            hides_newer_calls: !default.lets_through() && default != Action::NO_SUCH_CALL,
            notifies,
        })
    }
}

impl Rule<'_> {
    fn new(call: &LinuxSyscall, index: usize) -> Result<Rule<'_>, SpecError> {
        let field = |name: &str| format!("linux.seccomp.syscalls[{index}].{name}");
        let names = call.names().as_slice();
        if names.is_empty() {
            return Err(SpecError::invalid(
                field("names"),
                "has to name at least one system call",
            ));
        }
        if let Some(empty) = names.iter().position(String::is_empty) {
            return Err(SpecError::invalid(field(&format!("names[{empty}]")), "is empty"));
        }
        let action = Action::new(call.action(), call.errno_ret(), || field("errnoRet"))?;
        let conditions: Vec<Condition> = call
            .args()
            .iter()
            .flatten()
            .enumerate()
            .map(|(number, argument)| {
                Condition::new(argument, |name| field(&format!("args[{number}].{name}")))
            })
            .collect::<Result<_, _>>()?;
        // Conditions on different arguments have to hold together. libseccomp takes no two on the same argument, so
        // where that happens runc makes a rule of each condition, and profiles count on it.
        let repeats = conditions.iter().enumerate().any(|(place, condition)| {
            conditions[..place]
                .iter()
                .any(|earlier| earlier.argument == condition.argument)
        });
        let alternatives = if repeats {
            conditions.into_iter().map(|condition| vec![condition]).collect()
        } else {
            vec![conditions]
        };
        Ok(Rule {
            names,
            action,
            alternatives,
        })
    }
}

/// The flags of `seccomp(2)` that the profile asks for (`SECCOMP_FILTER_FLAG_*`).
///
/// None is added: runc asks for SPEC_ALLOW where a profile has no list of flags, which takes a mitigation away that
/// nobody asked to lose.
pub(super) fn flags(seccomp: &LinuxSeccomp, notifies: bool) -> libc::c_ulong {
    let mut flags = 0;
    for flag in seccomp.flags().iter().flatten() {
        flags |= match flag {
            // With a listener the kernel wants failure to be told by an error rather than a thread's number.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => {
                libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH
            }
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            // About waiting for a listener: the kernel refuses it where there is none to wait for.
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if notifies => {
                libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
            }
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
        };
    }
    if notifies {
        flags |= libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    }
    flags
}
