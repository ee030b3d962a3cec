//! One target of `fuzz`, chosen by `BULKHEAD_FUZZ_TARGET`, under libFuzzer. `fuzz/run` builds and starts it.
//! With `BULKHEAD_FUZZ_SEEDS` it writes the target's seeds there when it begins.

#![no_main]

use std::sync::LazyLock;

use fuzz::Target;
use fuzz::mutation::{Numbers, mutate};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("BULKHEAD_FUZZ_TARGET").unwrap_or_default();
    let target = fuzz::target(&name).unwrap_or_else(|| {
        let names = fuzz::TARGETS.map(|target| target.name).join(", ");
        eprintln!("BULKHEAD_FUZZ_TARGET is `{name}`, and the targets are {names}");
        std::process::exit(2)
    });
    if let Ok(folder) = std::env::var("BULKHEAD_FUZZ_SEEDS") {
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            std::fs::write(format!("{folder}/seed-{number}"), seed).expect("a seed");
        }
    }
    target
});

fuzz_target!(|data: &[u8]| (TARGET.run)(data));

// Every second mutant of a document is one of its values, which libFuzzer does not know.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if TARGET.is_json && seed % 2 == 0 {
        let mutant = mutate(&data[..size], true, &mut Numbers::new(seed.into()));
        if !mutant.is_empty() && mutant.len() <= max_size {
            data[..mutant.len()].copy_from_slice(&mutant);
            return mutant.len();
        }
    }
    fuzzer_mutate(data, size, max_size)
});
