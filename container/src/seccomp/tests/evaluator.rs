//! What a profile means for one call, read straight from the configuration and with no thought of speed.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};

use super::super::architecture::{Architecture, Call};
use super::interpreter::CallData;

const MACHINE_64: u32 = 0xc000_003e;
const MACHINE_32: u32 = 0x4000_0003;
const NO_SUCH_CALL: u32 = 0x0005_0000 | libc::ENOSYS as u32;

pub(super) fn evaluate(seccomp: &LinuxSeccomp, data: &CallData) -> u32 {
    let has = |arch| {
        seccomp
            .architectures()
            .iter()
            .flatten()
            .any(|&named| named == arch)
    };
    let is_x32 = data.number >= 1 << 30;
    let default = seccomp.default_action().as_u32(seccomp.default_errno_ret());
    let architecture = match data.machine {
        MACHINE_64 if is_x32 && has(Arch::ScmpArchX32) => Architecture::X32,
        MACHINE_64 if data.number == u32::MAX => return default,
        MACHINE_64 if !is_x32 => Architecture::X86_64,
        MACHINE_32 if has(Arch::ScmpArchX86) => Architecture::X86,
        _ => return 0,
    };
    let empty = Vec::new();
    let entries = seccomp.syscalls().as_ref().unwrap_or(&empty);
    let named = || entries.iter().flat_map(|entry| entry.names());
    let newest = named()
        .flat_map(|name| architecture.calls(name))
        .map(|call| call.number)
        .max();
    let hides = !matches!(
        seccomp.default_action(),
        LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog | LinuxSeccompAction::ScmpActTrace
    ) && default != NO_SUCH_CALL;
    if hides && newest.is_some_and(|newest| data.number > newest) {
        return NO_SUCH_CALL;
    }
    // Each rule about this number, with the way of making the call that it is about.
    let rules: Vec<(&LinuxSyscall, Call, u32)> = entries
        .iter()
        .map(|entry| (entry, entry.action().as_u32(entry.errno_ret())))
        .filter(|(_, action)| *action != default)
        .flat_map(|(entry, action)| {
            let calls = entry.names().iter().flat_map(|name| architecture.calls(name));
            calls.map(move |call| (entry, call, action))
        })
        .filter(|(_, call, _)| call.number == data.number)
        .collect();
    let is_unconditional = |entry: &LinuxSyscall, call: &Call| {
        let arguments = entry.args().iter().flatten();
        arguments.clone().count() == 0
            || call.selector.is_some() && {
                // Nothing is left to ask, of the whole rule or of one of its alternatives.
                match repeats(entry) {
                    true => arguments.clone().any(|argument| argument.index() == 0),
                    false => arguments.clone().all(|argument| argument.index() == 0),
                }
            }
    };
    let selected = |call: &Call| {
        call.selector
            .is_none_or(|selector| data.arguments[0] as u32 == selector)
    };
    let whole = |(entry, call, _): &&(&LinuxSyscall, Call, u32)| {
        call.selector.is_none() && is_unconditional(entry, call)
    };
    if let Some((_, _, action)) = rules.iter().find(whole) {
        return *action;
    }
    let selected_rules: Vec<_> = rules.iter().filter(|(_, call, _)| selected(call)).collect();
    for (entry, call, action) in &selected_rules {
        // A rule with conditions counts for nothing beside one without on the same call.
        let overruled = selected_rules
            .iter()
            .any(|(other, same, _)| same == call && is_unconditional(other, same));
        let holds = if overruled {
            is_unconditional(entry, call)
        } else {
            fits(entry, call, architecture, data)
        };
        if holds {
            return *action;
        }
    }
    default
}

fn repeats(entry: &LinuxSyscall) -> bool {
    let mut seen = [0; 6];
    entry
        .args()
        .iter()
        .flatten()
        .for_each(|argument| seen[argument.index()] += 1);
    seen.iter().any(|&count| count > 1)
}

fn fits(entry: &LinuxSyscall, call: &Call, architecture: Architecture, data: &CallData) -> bool {
    let mut arguments = entry.args().iter().flatten();
    let holds = |argument: &LinuxSeccompArg| {
        call.selector.is_some() && argument.index() == 0 || compare(argument, architecture, data)
    };
    match repeats(entry) {
        true => arguments.any(holds),
        false => arguments.all(holds),
    }
}

fn compare(argument: &LinuxSeccompArg, architecture: Architecture, data: &CallData) -> bool {
    let width = if architecture == Architecture::X86_64 {
        u64::MAX
    } else {
        u64::from(u32::MAX)
    };
    let actual = data.arguments[argument.index()] & width;
    let value = argument.value() & width;
    match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => actual != value,
        LinuxSeccompOperator::ScmpCmpLt => actual < value,
        LinuxSeccompOperator::ScmpCmpLe => actual <= value,
        LinuxSeccompOperator::ScmpCmpEq => actual == value,
        LinuxSeccompOperator::ScmpCmpGe => actual >= value,
        LinuxSeccompOperator::ScmpCmpGt => actual > value,
        LinuxSeccompOperator::ScmpCmpMaskedEq => actual & value == argument.value_two().unwrap_or(0) & value,
    }
}
