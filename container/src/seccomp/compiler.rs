//! From decisions to a graph of steps.
//!
//! The graph is built from its ends to its beginning, and a step that exists is used again: calls that are decided
//! alike share their code, and so do the ends of chains.

use std::collections::HashMap;

use super::decision::{Decision, Table};
use super::profile::{Action, Comparison, Condition};

/// A step in a [`Graph`].
pub(super) type StepId = usize;

/// What a filter does at one point. The accumulator is the one register there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Step {
    Return(Action),
    /// Loads a word of `struct seccomp_data` by its offset in bytes.
    Load(u32, StepId),
    And(u32, StepId),
    Test {
        test: Test,
        operand: u32,
        yes: StepId,
        no: StepId,
    },
}

/// Tests of the accumulator against a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Test {
    Equal,
    Greater,
    GreaterOrEqual,
}

/// Steps, each of which leads only to earlier ones.
#[derive(Debug, Default)]
pub(super) struct Graph {
    steps: Vec<Step>,
    known: HashMap<Step, StepId>,
}

// Offsets in `struct seccomp_data` (`<linux/seccomp.h>`), little-endian.
const NUMBER: u32 = 0;
const MACHINE: u32 = 4;
const fn low_word(argument: u8) -> u32 {
    16 + 8 * argument as u32
}
const fn high_word(argument: u8) -> u32 {
    low_word(argument) + 4
}

/// The graph of all tables, and where it begins.
pub(super) fn compile(tables: &[Table]) -> (Graph, StepId) {
    let mut graph = Graph::default();
    // A machine without a table, as libseccomp has it.
    let mut step = graph.end(Action::KILL_THREAD);
    for table in tables.iter().rev() {
        let search = graph.search(&table.ranges);
        let search = graph.add(Step::Load(NUMBER, search));
        step = graph.test(Test::Equal, table.machine, search, step);
    }
    let beginning = graph.add(Step::Load(MACHINE, step));
    (graph, beginning)
}

impl Graph {
    pub(super) fn step(&self, id: StepId) -> Step {
        self.steps[id]
    }

    pub(super) fn len(&self) -> usize {
        self.steps.len()
    }

    pub(super) fn add(&mut self, step: Step) -> StepId {
        *self.known.entry(step).or_insert_with(|| {
            self.steps.push(step);
            self.steps.len() - 1
        })
    }

    fn end(&mut self, action: Action) -> StepId {
        self.add(Step::Return(action))
    }

    fn test(&mut self, test: Test, operand: u32, yes: StepId, no: StepId) -> StepId {
        if yes == no {
            return yes;
        }
        self.add(Step::Test {
            test,
            operand,
            yes,
            no,
        })
    }

    /// Binary search for the range of the number in the accumulator.
    fn search(&mut self, ranges: &[(u32, Decision)]) -> StepId {
        match ranges {
            [] => self.end(Action::KILL_THREAD),
            [(_, decision)] => self.decide(decision),
            // One number among others that are alike.
            [(_, around), (number, decision), (next, after)] if around == after && *next == number + 1 => {
                let (yes, no) = (self.decide(decision), self.decide(around));
                self.test(Test::Equal, *number, yes, no)
            }
            _ => {
                let (below, above) = ranges.split_at(ranges.len() / 2);
                let first = above.first().map_or(0, |(first, _)| *first);
                let (yes, no) = (self.search(above), self.search(below));
                self.test(Test::GreaterOrEqual, first, yes, no)
            }
        }
    }

    fn decide(&mut self, decision: &Decision) -> StepId {
        match decision {
            Decision::Always(action) => self.end(*action),
            Decision::ByArguments(rules, otherwise) => {
                let otherwise = self.end(*otherwise);
                rules
                    .iter()
                    .rev()
                    .fold(otherwise, |otherwise, (conditions, action)| {
                        let fits = self.end(*action);
                        conditions
                            .iter()
                            .rev()
                            .fold(fits, |fits, condition| self.condition(condition, fits, otherwise))
                    })
            }
        }
    }

    fn condition(&mut self, condition: &Condition, holds: StepId, fails: StepId) -> StepId {
        let (yes, no) = match condition.wanted {
            true => (holds, fails),
            false => (fails, holds),
        };
        let argument = condition.argument;
        match condition.comparison {
            Comparison::MaskedEqual { mask, value } => {
                let (high_mask, low_mask) = halves(mask);
                let (high, low) = halves(value);
                let yes = self.masked_equal(low_word(argument), low_mask, low, yes, no);
                self.masked_equal(high_word(argument), high_mask, high, yes, no)
            }
            Comparison::Greater(bound) => self.ordered(Test::Greater, argument, bound, yes, no),
            Comparison::GreaterOrEqual(bound) => self.ordered(Test::GreaterOrEqual, argument, bound, yes, no),
            Comparison::NarrowGreater(bound) => self.word(Test::Greater, low_word(argument), bound, yes, no),
            Comparison::NarrowGreaterOrEqual(bound) => {
                self.word(Test::GreaterOrEqual, low_word(argument), bound, yes, no)
            }
        }
    }

    fn masked_equal(&mut self, offset: u32, mask: u32, value: u32, yes: StepId, no: StepId) -> StepId {
        match mask {
            0 => yes,
            u32::MAX => self.word(Test::Equal, offset, value, yes, no),
            _ => {
                let test = self.test(Test::Equal, value, yes, no);
                let masked = self.add(Step::And(mask, test));
                self.add(Step::Load(offset, masked))
            }
        }
    }

    /// The high words decide unless they are equal.
    fn ordered(&mut self, test: Test, argument: u8, bound: u64, yes: StepId, no: StepId) -> StepId {
        let (high, low) = halves(bound);
        let offset = high_word(argument);
        let low = self.word(test, low_word(argument), low, yes, no);
        let no = self.with_loaded(offset, no);
        let equal = self.test(Test::Equal, high, low, no);
        self.word(Test::Greater, offset, high, yes, equal)
    }

    /// Loads a word and tests it.
    fn word(&mut self, test: Test, offset: u32, operand: u32, yes: StepId, no: StepId) -> StepId {
        if yes == no {
            return yes;
        }
        let (yes, no) = (self.with_loaded(offset, yes), self.with_loaded(offset, no));
        let test = self.test(test, operand, yes, no);
        self.add(Step::Load(offset, test))
    }

    /// Where `step` leads if the word that it loads first is loaded already.
    fn with_loaded(&self, offset: u32, step: StepId) -> StepId {
        match self.step(step) {
            Step::Load(loaded, next) if loaded == offset => next,
            _ => step,
        }
    }
}

fn halves(value: u64) -> (u32, u32) {
    ((value >> 32) as u32, value as u32)
}
