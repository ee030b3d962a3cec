//! What a profile decides about every call number of an architecture.

use std::collections::BTreeMap;

use super::architecture::{Architecture, Call, X32_BIT};
use super::profile::{Action, Condition, Profile};

/// What happens to calls of one number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Always(Action),
    /// The first whose conditions all hold, or else what stands last.
    ByArguments(Vec<(Vec<Condition>, Action)>, Action),
}

/// Decisions over all numbers of one machine as the kernel tells them apart (`AUDIT_ARCH_*`).
#[derive(Debug)]
pub(super) struct Table {
    /// `<linux/audit.h>`.
    pub(super) machine: u32,
    /// Each from its number to that of the next, the first from 0, no two equal ones side by side.
    pub(super) ranges: Vec<(u32, Decision)>,
}

impl Table {
    /// What happens to one call.
    pub(super) fn action(&self, number: u32, arguments: [u64; 6]) -> Action {
        let after = self.ranges.partition_point(|(first, _)| *first <= number);
        let range = after.checked_sub(1).and_then(|place| self.ranges.get(place));
        match range.map(|(_, decision)| decision) {
            // The ranges begin at 0.
            None => Action::KILL_THREAD,
            Some(Decision::Always(action)) => *action,
            Some(Decision::ByArguments(rules, otherwise)) => {
                let fits = |(conditions, _): &&(Vec<Condition>, Action)| {
                    conditions.iter().all(|condition| condition.holds(&arguments))
                };
                rules.iter().find(fits).map_or(*otherwise, |(_, action)| *action)
            }
        }
    }
}

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const AUDIT_ARCH_I386: u32 = 0x4000_0003;

/// The tables of the architectures that programs in the container may use: those named and the native one. A call
/// of another has no table.
pub(super) fn tables(profile: &Profile<'_>, architectures: &[Architecture]) -> Vec<Table> {
    let mut native = Ranges::default();
    native.add(profile, Architecture::X86_64, 0);
    if architectures.contains(&Architecture::X32) {
        native.add(profile, Architecture::X32, X32_BIT);
    } else {
        // As libseccomp has it. The last number is no x32 call: a tracer puts it in place of a call to be skipped.
        native.push(X32_BIT, Decision::Always(Action::KILL_THREAD));
        native.push(u32::MAX, Decision::Always(profile.default));
    }
    let mut tables = vec![Table {
        machine: AUDIT_ARCH_X86_64,
        ranges: native.0,
    }];
    if architectures.contains(&Architecture::X86) {
        let mut ranges = Ranges::default();
        ranges.add(profile, Architecture::X86, 0);
        tables.push(Table {
            machine: AUDIT_ARCH_I386,
            ranges: ranges.0,
        });
    }
    tables
}

/// Ranges from the lowest number up.
#[derive(Default)]
struct Ranges(Vec<(u32, Decision)>);

impl Ranges {
    fn push(&mut self, first: u32, decision: Decision) {
        if self.0.last().is_some_and(|(before, _)| *before == first) {
            self.0.pop();
        }
        if self.0.last().is_none_or(|(_, before)| *before != decision) {
            self.0.push((first, decision));
        }
    }

    /// The numbers of `architecture`, which begin at `first`.
    fn add(&mut self, profile: &Profile<'_>, architecture: Architecture, first: u32) {
        self.push(first, Decision::Always(profile.default));
        for (number, decision) in decisions(profile, architecture) {
            self.push(number, decision);
            self.push(number + 1, Decision::Always(profile.default));
        }
        if profile.hides_newer_calls
            && let Some(newest) = newest_named(profile, architecture)
        {
            self.push(newest + 1, Decision::Always(Action::NO_SUCH_CALL));
        }
    }
}

/// The decisions that differ from the default, by number.
///
/// A rule without conditions decides about its call alone, wherever it stands, and the first such one does: so it is
/// with libseccomp. Where several rules with conditions fit, libseccomp's choice hangs on how it sorts them; here the
/// first in the profile is taken.
fn decisions(profile: &Profile<'_>, architecture: Architecture) -> BTreeMap<u32, Decision> {
    let mut calls: BTreeMap<Call, Chain> = BTreeMap::new();
    for (place, rule) in profile.rules.iter().enumerate() {
        for call in rule.names.iter().flat_map(|name| architecture.calls(name)) {
            let chain = calls.entry(call).or_default();
            for conditions in &rule.alternatives {
                let conditions = for_call(conditions, call, architecture);
                chain.add(place, conditions, rule.action);
            }
        }
    }
    let mut numbers: BTreeMap<u32, Chain> = BTreeMap::new();
    for (call, chain) in calls {
        let merged = numbers.entry(call.number).or_default();
        for (place, mut conditions, action) in chain.0 {
            if let Some(selector) = call.selector {
                conditions.insert(0, Condition::equal(0, selector.into()).narrowed());
            }
            merged.add(place, conditions, action);
        }
    }
    let decide = |(number, chain): (u32, Chain)| (number, chain.decide(profile.default));
    numbers.into_iter().map(decide).collect()
}

/// The conditions that can be asked of a call. The first argument of a multiplexed one is its selector, which takes
/// the place of any condition on it.
fn for_call(conditions: &[Condition], call: Call, architecture: Architecture) -> Vec<Condition> {
    conditions
        .iter()
        .filter(|condition| call.selector.is_none() || condition.argument != 0)
        .map(|condition| match architecture.is_narrow() {
            true => condition.narrowed(),
            false => *condition,
        })
        .collect()
}

/// The rules about one call, each with its place in the profile.
#[derive(Default)]
struct Chain(Vec<(usize, Vec<Condition>, Action)>);

impl Chain {
    fn add(&mut self, place: usize, conditions: Vec<Condition>, action: Action) {
        if self.decides_alone() {
            return;
        }
        if conditions.is_empty() {
            self.0.clear();
        }
        self.0.push((place, conditions, action));
    }

    fn decides_alone(&self) -> bool {
        matches!(self.0.as_slice(), [(_, conditions, _)] if conditions.is_empty())
    }

    fn decide(mut self, default: Action) -> Decision {
        if self.decides_alone() {
            return Decision::Always(self.0.first().map_or(default, |(_, _, action)| *action));
        }
        self.0.sort_by_key(|(place, _, _)| *place);
        let rules = self
            .0
            .into_iter()
            .map(|(_, conditions, action)| (conditions, action));
        Decision::ByArguments(rules.collect(), default)
    }
}

/// The highest number among the calls the profile names, in whatever rule.
fn newest_named(profile: &Profile<'_>, architecture: Architecture) -> Option<u32> {
    let names = profile.names.iter().flat_map(|names| names.iter());
    names
        .flat_map(|name| architecture.calls(name))
        .map(|call| call.number)
        .max()
}
