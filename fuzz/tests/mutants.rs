//! A fixed number of mutants through every target: seconds of what `fuzz/run` does for hours.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use fuzz::mutation::{Numbers, mutate};
use fuzz::{TARGETS, Target, target};

/// Counts what the thread holds.
struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static MOST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is handed on as it is to the system's allocator, which keeps the promises. The counters are
// constants at first and have no destructor, so that using them allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.get().saturating_add(layout.size());
        HELD.set(held);
        MOST.set(MOST.get().max(held));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        HELD.set(HELD.get().saturating_sub(layout.size()));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A reader that does not come to an end; on a busy machine a second passes soon.
const PATIENCE: Duration = Duration::from_secs(10);

fn run(target: &Target, input: &[u8]) {
    HELD.set(0);
    MOST.set(0);
    let begun = Instant::now();
    (target.run)(input);
    let taken = begun.elapsed();
    let limit = target.memory + 100 * input.len();
    assert!(taken < PATIENCE, "{taken:?}");
    assert!(
        MOST.get() <= limit,
        "{} bytes were held, {limit} are allowed",
        MOST.get()
    );
}

/// Names the input when a run of it panics.
struct Running<'a>(&'a Target, &'a [u8]);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = String::from_utf8_lossy(self.1);
            eprintln!("{} panicked over {} bytes: {text}", self.0.name, self.1.len());
        }
    }
}

fn run_mutants(name: &str, count: u64) {
    let target = target(name).expect("a target");
    let seeds = (target.seeds)();
    let mut pool = seeds.clone();
    let mut numbers = Numbers::new(0x6b6b);
    for round in 0..count {
        let parent = &pool[(round % pool.len() as u64) as usize];
        let mutant = mutate(parent, target.is_json, &mut numbers);
        let running = Running(&target, &mutant);
        run(&target, &mutant);
        drop(running);
        // Some go on from where others came to, without growing for ever.
        if round % 16 == 0 && mutant.len() < 4 * seeds[0].len() + 4096 {
            let place = seeds.len() + (round / 16 % 16) as usize;
            match pool.get_mut(place) {
                Some(old) => *old = mutant,
                None => pool.push(mutant),
            }
        }
    }
}

#[test]
fn seeds_keep_the_promises() {
    for target in &TARGETS {
        for seed in (target.seeds)() {
            run(target, &seed);
        }
    }
}

#[test]
fn mutants_of_a_configuration() {
    run_mutants("configuration", 4000);
}

#[test]
fn mutants_of_a_layer() {
    run_mutants("layer", 2000);
}

#[test]
fn mutants_of_a_snapshots_frame() {
    run_mutants("snapshot-frame", 20_000);
}

#[test]
fn mutants_of_a_snapshots_description() {
    run_mutants("snapshot-description", 10_000);
}

#[test]
fn mutants_of_a_snapshots_machine() {
    run_mutants("snapshot-machine", 1000);
}

#[test]
fn mutants_of_a_templates_inputs() {
    run_mutants("template", 20_000);
}
