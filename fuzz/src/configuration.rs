//! The OCI configuration: read, judged, planned, and its system call filter compiled.

use container::fuzzing::{Instruction, Planned, plan, read};
use container::{Bundle, BundleError, ContainerId, SpecError};

use crate::Target;

pub(crate) const TARGET: Target = Target {
    name: "configuration",
    run,
    seeds,
    is_json: true,
    memory: 16 << 20,
};

/// The parts of a configuration (`config.md` of the runtime specification).
const PARTS: [&str; 14] = [
    "ociVersion",
    "annotations",
    "domainname",
    "hooks",
    "hostname",
    "linux",
    "mounts",
    "process",
    "root",
    "solaris",
    "uidMappings",
    "vm",
    "windows",
    "zos",
];

fn seeds() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../seeds/shell.json").to_vec(),
        include_bytes!("../seeds/everything.json").to_vec(),
    ]
}

fn run(data: &[u8]) {
    let bundle = match read(data) {
        Ok(bundle) => bundle,
        Err(BundleError::Parse { field, .. }) => {
            assert!(!field.is_empty(), "the place of a mistake is not told");
            return;
        }
        Err(error) => panic!("a file was opened: {error}"),
    };
    let planned = planned(&bundle);
    match &planned {
        Ok(Planned { filter, .. }) => filter.iter().for_each(|filter| check_filter(filter)),
        Err(error) => check_place(error),
    }
    // Maps have another order each time they are read.
    let again = read(data).unwrap_or_else(|error| panic!("read once and not twice: {error}"));
    same(&self::planned(&again), &planned, "read twice");
    // What a container's state keeps is written by us.
    let written = serde_json::to_vec(bundle.spec()).unwrap_or_else(|error| panic!("not written: {error}"));
    let reread = read(&written).unwrap_or_else(|error| panic!("what was written is not read: {error}"));
    assert!(
        reread.spec() == bundle.spec(),
        "written and read, it says something else"
    );
    same(&self::planned(&reread), &planned, "written and read");
}

fn same(again: &Result<Planned, SpecError>, planned: &Result<Planned, SpecError>, when: &str) {
    match (again, planned) {
        (Ok(again), Ok(planned)) if again != planned => {
            let differ = |(one, other)| one != other;
            let place = again
                .words
                .bytes()
                .zip(planned.words.bytes())
                .position(differ)
                .unwrap_or(0);
            let around = |text: &str| {
                text.chars()
                    .skip(place.saturating_sub(80))
                    .take(160)
                    .collect::<String>()
            };
            panic!(
                "{when}, planned differently:\n{}\n{}",
                around(&again.words),
                around(&planned.words)
            );
        }
        (Err(again), Err(planned)) => assert_eq!(again, planned, "{when}, refused differently"),
        (Ok(_), Err(error)) | (Err(error), Ok(_)) => panic!("{when}, refused once only: {error}"),
        (Ok(_), Ok(_)) => {}
    }
}

fn planned(bundle: &Bundle) -> Result<Planned, SpecError> {
    let id: ContainerId = match "fuzz".parse() {
        Ok(id) => id,
        Err(error) => panic!("{error}"),
    };
    plan(bundle, &id)
}

/// It is a JSON path into the configuration.
fn check_place(error: &SpecError) {
    let field = error.field();
    let first = field.split(['.', '[']).next().unwrap_or_default();
    assert!(PARTS.contains(&first), "no place in a configuration: {error}");
    assert!(
        error.to_string().contains(field),
        "the place is not told: {error}"
    );
}

/// What the kernel demands of a filter: `bpf_check_classic` (net/core/filter.c) and `seccomp_check_filter`
/// (kernel/seccomp.c), as far as our compiler uses instructions.
fn check_filter(filter: &[Instruction]) {
    const LOAD_WORD: u16 = 0x20;
    const AND: u16 = 0x54;
    const JUMP: u16 = 0x05;
    const RETURN: u16 = 0x06;
    const TESTS: [u16; 3] = [0x15, 0x25, 0x35];
    const SECCOMP_DATA: u32 = 64;

    assert!(
        !filter.is_empty() && filter.len() <= 4096,
        "{} instructions",
        filter.len()
    );
    for (position, &(code, yes, no, operand)) in filter.iter().enumerate() {
        let is_inside = |distance: usize| position + 1 + distance < filter.len();
        let is_sound = match code {
            LOAD_WORD => operand % 4 == 0 && operand < SECCOMP_DATA,
            AND | RETURN => true,
            JUMP => is_inside(operand as usize),
            code if TESTS.contains(&code) => is_inside(yes.into()) && is_inside(no.into()),
            _ => false,
        };
        assert!(
            is_sound,
            "instruction {position}: {code:#x} {yes} {no} {operand:#x}"
        );
    }
    assert!(
        filter.last().is_some_and(|(code, ..)| *code == RETURN),
        "it does not end"
    );
}
