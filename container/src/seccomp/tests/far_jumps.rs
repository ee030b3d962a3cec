//! Jumps over more instructions than a conditional jump can.

use super::super::assembler::assemble;
use super::super::compiler::{Graph, Step, StepId, Test};
use super::super::profile::Action;
use super::interpreter::{CallData, run};

fn equal(graph: &mut Graph, operand: u32, yes: StepId, no: StepId) -> StepId {
    graph.add(Step::Test {
        test: Test::Equal,
        operand,
        yes,
        no,
    })
}

/// Two targets, `between` instructions, and behind those tests that lead to either target in either way.
fn program(between: u32) -> Vec<libc::sock_filter> {
    let mut graph = Graph::default();
    let [one, two] = [1, 2].map(|value| {
        let end = graph.add(Step::Return(Action(value)));
        graph.add(Step::Load(16 * value, end))
    });
    let mut far = equal(&mut graph, 10, one, two);
    for _ in 0..between {
        far = graph.add(Step::And(u32::MAX, far));
    }
    let straight = equal(&mut graph, 20, one, two);
    let crossed = equal(&mut graph, 30, two, one);
    let which = equal(&mut graph, 30, crossed, straight);
    let test = equal(&mut graph, 10, far, which);
    let beginning = graph.add(Step::Load(0, test));
    assemble(&graph, beginning)
}

#[test]
fn targets_are_reached_over_any_distance() {
    for between in (0..20).chain(235..275).chain([500, 1000]) {
        let program = program(between);
        for (number, expected) in [(10, 1), (20, 1), (30, 2), (40, 2)] {
            let data = CallData {
                number,
                ..CallData::default()
            };
            assert_eq!(run(&program, &data).0, expected, "{number} over {between}");
        }
    }
}
