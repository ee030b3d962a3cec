//! From a graph of steps to a program of classic BPF.

use super::compiler::{Graph, Step, StepId, Test};

/// `BPF_MAXINSNS`: the kernel takes no longer program.
pub(super) const LONGEST: usize = 4096;

// Instruction codes (`<linux/bpf_common.h>`): class | size or operation | mode or source.
pub(super) const LOAD_WORD: u16 = 0x20;
pub(super) const AND: u16 = 0x54;
pub(super) const JUMP: u16 = 0x05;
pub(super) const JUMP_EQUAL: u16 = 0x15;
pub(super) const JUMP_GREATER: u16 = 0x25;
pub(super) const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
pub(super) const RETURN: u16 = 0x06;

/// A conditional jump has eight bits for its distance.
const FARTHEST: usize = 255;

/// Lays the steps out from `beginning`, which comes first. All jumps go forward, as the kernel demands.
pub(super) fn assemble(graph: &Graph, beginning: StepId) -> Vec<libc::sock_filter> {
    let mut program = Backward {
        graph,
        instructions: Vec::new(),
        places: vec![None; graph.len()],
    };
    program.write_all(beginning);
    program.instructions.reverse();
    program.instructions
}

/// A program in the making, its end first: what a step leads to is in place before the step.
struct Backward<'a> {
    graph: &'a Graph,
    instructions: Vec<libc::sock_filter>,
    /// Where each step is to be found; the place nearest to what is written next.
    places: Vec<Option<usize>>,
}

impl Backward<'_> {
    fn write_all(&mut self, beginning: StepId) {
        // Chains can be long, so what is to be done is not kept on the call stack.
        let mut to_do = vec![(beginning, false)];
        while let Some((step, targets_are_written)) = to_do.pop() {
            if self.places[step].is_some() {
                continue;
            }
            if targets_are_written {
                self.write(step);
                continue;
            }
            to_do.push((step, true));
            match self.graph.step(step) {
                Step::Return(_) => {}
                Step::Load(_, next) | Step::And(_, next) => to_do.push((next, false)),
                // What is popped last stands right behind the test.
                Step::Test { yes, no, .. } => to_do.extend([(no, false), (yes, false)]),
            }
        }
    }

    fn write(&mut self, step: StepId) {
        let instruction = match self.graph.step(step) {
            Step::Return(action) => instruction(RETURN, action.0),
            Step::Load(offset, next) => {
                self.bring_within(next, 0);
                instruction(LOAD_WORD, offset)
            }
            Step::And(mask, next) => {
                self.bring_within(next, 0);
                instruction(AND, mask)
            }
            Step::Test {
                test,
                operand,
                yes,
                no,
            } => {
                // The second of the two may push the first one instruction away.
                self.bring_within(yes, FARTHEST - 1);
                self.bring_within(no, FARTHEST);
                let code = match test {
                    Test::Equal => JUMP_EQUAL,
                    Test::Greater => JUMP_GREATER,
                    Test::GreaterOrEqual => JUMP_GREATER_OR_EQUAL,
                };
                libc::sock_filter {
                    jt: self.distance(yes) as u8,
                    jf: self.distance(no) as u8,
                    ..instruction(code, operand)
                }
            }
        };
        self.push(step, instruction);
    }

    /// How many instructions lie between the next one written and `step`, which is in place.
    fn distance(&self, step: StepId) -> usize {
        self.instructions.len() - 1 - self.places[step].unwrap_or(0)
    }

    /// Sees to it that a jump over `limit` instructions gets to `step`: by a copy of it where it is an end, which is
    /// as short as the jump to it, and by a jump with a longer reach otherwise.
    fn bring_within(&mut self, step: StepId, limit: usize) {
        let distance = self.distance(step);
        if distance <= limit {
            return;
        }
        let instruction = match self.graph.step(step) {
            Step::Return(action) => instruction(RETURN, action.0),
            _ => instruction(JUMP, distance as u32),
        };
        self.push(step, instruction);
    }

    fn push(&mut self, step: StepId, instruction: libc::sock_filter) {
        self.places[step] = Some(self.instructions.len());
        self.instructions.push(instruction);
    }
}

fn instruction(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}
