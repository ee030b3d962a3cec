//! Many clones of one machine: how fast they start at once and in turn, and what the host gives for idle ones.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use comfy_table::{Table, presets};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vmm::control::MemoryRange;

use crate::chart::{self, Line};
use crate::machine::{MEMORY_MIB, Machine, Memory, Parts};
use crate::rounds::{median, milliseconds};

/// Idle clones between two measurements.
const STEP: usize = 25;
/// From the last start to the measurement: a guest that has just started still has things to do.
const SETTLING: Duration = Duration::from_secs(3);
/// For how long idle clones' processor time is counted.
const WINDOW: Duration = Duration::from_secs(10);
/// What is left to everybody else, in KiB.
const MEMORY_LEFT: u64 = 1 << 20;
/// The part of all processors that idle clones may take; beyond it only their memory can be told, of paused ones.
const BUSY: f64 = 0.9;

/// What to measure.
#[derive(Debug)]
pub(crate) struct Options {
    /// Clones that start at once.
    pub(crate) at_once: usize,
    /// Clones that idle together.
    pub(crate) idle: usize,
    /// Where the chart of idle clones goes.
    pub(crate) svg: Option<PathBuf>,
}

/// Boots and saves a machine, clones it many times, and prints what that took.
pub(crate) fn measure(parts: Parts<'_>, options: &Options) -> anyhow::Result<()> {
    allow_descriptors()?;
    let template = tempfile::tempdir()?;
    Machine::start(parts, None)?.save(template.path())?;
    // The first clone reads the template from the disk, if anything does.
    drop(Machine::start(parts, Some(template.path()))?);
    compare(parts, template.path(), options.at_once)?;
    idle(parts, template.path(), options)
}

/// Two for each machine are ours.
fn allow_descriptors() -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).context("raising the number of open files")
}

/// What many starts have taken.
#[derive(Debug, Default)]
struct Starts {
    /// Until the last agent was ready.
    all: Duration,
    /// Each one's, from its process's start to its agent.
    each: Vec<Duration>,
    processor_time: Vec<Duration>,
    errors: Vec<String>,
}

impl Starts {
    fn add(&mut self, since_the_first: Duration, start: anyhow::Result<(Duration, Duration)>) {
        match start {
            Ok((ready, processor_time)) => {
                self.all = self.all.max(since_the_first);
                self.each.push(ready);
                self.processor_time.push(processor_time);
            }
            Err(error) => self.errors.push(format!("{error:#}")),
        }
    }
}

fn compare(parts: Parts<'_>, template: &Path, count: usize) -> anyhow::Result<()> {
    let at_once = at_once(parts, template, count);
    let in_turn = in_turn(parts, template, count);
    let processors = thread::available_parallelism()?.get();
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        &format!("{count} clones of {MEMORY_MIB} MiB, {processors} processors"),
        "at once",
        "one after the other",
    ]);
    let mut row = |heading: &str, figure: &dyn Fn(&Starts) -> String| {
        table.add_row([heading.to_owned(), figure(&at_once), figure(&in_turn)]);
    };
    row("until the last agent was ready", &|starts| {
        milliseconds(starts.all)
    });
    row("starts a second and processor", &|starts| {
        let rate = starts.each.len() as f64 / starts.all.as_secs_f64() / processors as f64;
        format!("{rate:.1}")
    });
    row("process start to agent ready, median", &|starts| {
        milliseconds(median(&starts.each))
    });
    row("the slowest of them", &|starts| {
        milliseconds(starts.each.iter().max().copied().unwrap_or_default())
    });
    row("processor time of a start, median", &|starts| {
        milliseconds(median(&starts.processor_time))
    });
    row("failed", &|starts| starts.errors.len().to_string());
    println!("{table}");
    for error in at_once.errors.iter().chain(&in_turn.errors) {
        println!("failed: {error}");
    }
    println!();
    Ok(())
}

/// One thread for each machine. All stay until the last is ready, and no machine outlives its thread.
fn at_once(parts: Parts<'_>, template: &Path, count: usize) -> Starts {
    let over = Barrier::new(count);
    let begun = Instant::now();
    let mut starts = Starts::default();
    thread::scope(|scope| {
        let start = || {
            let machine = Machine::start(parts, Some(template));
            let since = begun.elapsed();
            let cost = machine.as_ref().ok().map(Machine::processor_time);
            over.wait();
            let start = machine.and_then(|machine| Ok((machine.ready, cost.context("a machine")??)));
            (since, start)
        };
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(start)).collect();
        for thread in threads {
            match thread.join() {
                Ok((since, start)) => starts.add(since, start),
                Err(_) => starts.errors.push("the thread panicked".to_owned()),
            }
        }
    });
    starts
}

fn in_turn(parts: Parts<'_>, template: &Path, count: usize) -> Starts {
    let begun = Instant::now();
    let mut starts = Starts::default();
    let mut machines = Vec::new();
    for _ in 0..count {
        let machine = Machine::start(parts, Some(template));
        let since = begun.elapsed();
        let start = machine.and_then(|machine| {
            let cost = (machine.ready, machine.processor_time()?);
            machines.push(machine);
            Ok(cost)
        });
        starts.add(since, start);
    }
    starts
}

/// What the whole host has, in KiB (proc(5), `/proc/meminfo`).
#[derive(Debug, Clone, Copy)]
struct Host {
    available: u64,
    /// Kernel memory that cannot be reclaimed: slab, stacks, page tables of processes and of KVM.
    kernel: u64,
}

impl Host {
    fn now() -> anyhow::Result<Self> {
        let text = fs::read_to_string("/proc/meminfo")?;
        let figure = |name: &str| -> anyhow::Result<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            // Older kernels do not count everything.
            line.and_then(|figure| figure.split_whitespace().next())
                .map_or(Ok(0), |figure| Ok(figure.parse()?))
        };
        Ok(Self {
            available: figure("MemAvailable:")?,
            kernel: figure("SUnreclaim:")?
                + figure("KernelStack:")?
                + figure("PageTables:")?
                + figure("SecPageTables:")?,
        })
    }
}

/// So many idle clones, and what they take.
#[derive(Debug)]
struct Sample {
    clones: usize,
    /// The start of the last of them.
    last_start: Duration,
    /// The median of those that were started since the last measurement.
    start: Duration,
    memory: Memory,
    /// By how much the host's figures have changed since there were none.
    less_available: i64,
    more_kernel: i64,
    /// Of one processor; nothing where they are paused.
    processor: Option<f64>,
}

fn idle(parts: Parts<'_>, template: &Path, options: &Options) -> anyhow::Result<()> {
    let before = Host::now()?;
    let processors = thread::available_parallelism()?.get() as f64;
    let mut clones: Vec<(Machine, Vec<MemoryRange>)> = Vec::new();
    let mut samples: Vec<Sample> = Vec::new();
    let (mut paused_from, mut stopped) = (None, None);
    while clones.len() < options.idle && stopped.is_none() {
        let mut starts = Vec::new();
        let earlier = clones.len();
        for _ in 0..STEP.min(options.idle - clones.len()) {
            let start = Machine::start(parts, Some(template))
                .and_then(|machine| Ok((machine.statistics()?.1, machine)));
            match start {
                Ok((guest_memory, machine)) => {
                    starts.push(machine.ready);
                    clones.push((machine, guest_memory));
                }
                Err(error) => {
                    stopped = Some(format!("the next did not start: {error:#}"));
                    break;
                }
            }
        }
        let Some(last_start) = starts.last().copied() else {
            break;
        };
        thread::sleep(SETTLING);
        let processor = if paused_from.is_some() {
            pause(clones.get(earlier..).unwrap_or_default())?;
            None
        } else {
            Some(processors_taken(&clones)?)
        };
        let sample = Sample {
            processor,
            ..sample(&clones, before, last_start, median(&starts))?
        };
        eprintln!(
            "{} clones: {} MiB, {} % of a processor",
            sample.clones,
            sample.memory.total() / 1024,
            percent(sample.processor)
        );
        if processor.is_some_and(|taken| taken >= BUSY * processors) {
            pause(&clones)?;
            paused_from = Some(clones.len());
        }
        if Host::now()?.available < MEMORY_LEFT {
            stopped = Some(format!("less than {} MiB are left", MEMORY_LEFT / 1024));
        }
        samples.push(sample);
    }
    print(&samples);
    if let Some(clones) = paused_from {
        println!(
            "{clones} idle clones take {:.0} % of all processors or more: beyond that they are paused 3 s after their start",
            BUSY * 100.0
        );
    }
    if let Some(reason) = stopped {
        println!("stopped at {} clones: {reason}", clones.len());
    }
    if let Some(path) = &options.svg {
        fs::write(path, draw(&samples)).with_context(|| format!("writing {}", path.display()))?;
    }
    println!();
    Ok(())
}

fn pause(clones: &[(Machine, Vec<MemoryRange>)]) -> anyhow::Result<()> {
    clones.iter().try_for_each(|(machine, _)| machine.pause())
}

fn percent(part: Option<f64>) -> String {
    part.map_or_else(|| "-".to_owned(), |part| format!("{:.1}", part * 100.0))
}

/// The processors that they keep busy, as a number of them.
fn processors_taken(clones: &[(Machine, Vec<MemoryRange>)]) -> anyhow::Result<f64> {
    let processor_time = || -> anyhow::Result<Vec<Duration>> {
        clones
            .iter()
            .map(|(machine, _)| machine.processor_time())
            .collect()
    };
    let begun = Instant::now();
    let first = processor_time()?;
    thread::sleep(WINDOW.saturating_sub(begun.elapsed()));
    // Each is read as long after its first reading as the others, or nearly so.
    let window = begun.elapsed();
    let spent: Duration = processor_time()?
        .iter()
        .zip(&first)
        .map(|(last, first)| last.saturating_sub(*first))
        .sum();
    Ok(spent.as_secs_f64() / window.as_secs_f64())
}

/// Everything of a sample but the processors' time.
fn sample(
    clones: &[(Machine, Vec<MemoryRange>)],
    before: Host,
    last_start: Duration,
    start: Duration,
) -> anyhow::Result<Sample> {
    let memory = clones
        .iter()
        .map(|(machine, guest_memory)| machine.memory(guest_memory))
        .sum::<anyhow::Result<Memory>>()?;
    let now = Host::now()?;
    Ok(Sample {
        clones: clones.len(),
        last_start,
        start,
        memory,
        less_available: before.available.cast_signed() - now.available.cast_signed(),
        more_kernel: now.kernel.cast_signed() - before.kernel.cast_signed(),
        processor: None,
    })
}

fn print(samples: &[Sample]) {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        &format!("idle clones of {MEMORY_MIB} MiB; all together, in MiB"),
        "VMMs",
        "guests, private",
        "guests, shared",
        "page tables",
        "sum",
        "for each, in KiB",
        "the host's kernel, more",
        "the host, less available",
        "% of a processor",
        "the last one's start",
        "median of the step's starts",
    ]);
    let mib = |kib: u64| format!("{:.1}", kib as f64 / 1024.0);
    for sample in samples {
        let memory = sample.memory;
        table.add_row([
            sample.clones.to_string(),
            mib(memory.beside_guest),
            mib(memory.guest_private),
            mib(memory.guest_shared),
            mib(memory.page_tables),
            mib(memory.total()),
            (memory.total() / sample.clones as u64).to_string(),
            (sample.more_kernel / 1024).to_string(),
            (sample.less_available / 1024).to_string(),
            percent(sample.processor),
            milliseconds(sample.last_start),
            milliseconds(sample.start),
        ]);
    }
    println!("{table}");
}

fn draw(samples: &[Sample]) -> String {
    let points = |value: &dyn Fn(&Sample) -> Option<f64>| {
        let measured = samples
            .iter()
            .filter_map(|sample| Some((sample.clones as f64, value(sample)?)));
        [(0.0, 0.0)].into_iter().chain(measured).collect()
    };
    let memory = Line {
        label: "memory of all, MiB",
        colour: "#1f5fa8",
        points: points(&|sample| Some(sample.memory.total() as f64 / 1024.0)),
    };
    let processor = Line {
        label: "processor time of all, % of one",
        colour: "#b0441f",
        points: points(&|sample| sample.processor.map(|part| part * 100.0)),
    };
    let title = format!("Clones of one {MEMORY_MIB} MiB machine");
    chart::svg(&title, "clones alive", &memory, &processor)
}
