//! A machine's start to an agent that is ready, booted and cloned, measured on the VMM itself: the guest kernel's
//! instructions where the KVM emulates (and so counts) them, the VMM's own start, its memory beside the guest's.

use std::path::Path;
use std::time::Duration;

use comfy_table::{Table, presets};

use crate::machine::{MEMORY_MIB, Machine, Memory, Parts};
use crate::rounds::{median, milliseconds};

/// What one start has cost.
#[derive(Debug)]
struct Start {
    /// From the start of the process to the first guest instruction.
    first_run: Duration,
    /// From the start of the process to the agent's first word.
    ready: Duration,
    /// Guest kernel instructions that KVM emulated until then.
    emulated: u64,
    memory: Memory,
}

/// Boots machines one after the other, clones the last, and prints the medians.
pub(crate) fn measure(parts: Parts<'_>, boots: usize, clones: usize) -> anyhow::Result<()> {
    let template = tempfile::tempdir()?;
    let mut booted = Vec::new();
    for number in 0..boots {
        let save = (number + 1 == boots).then_some(template.path());
        booted.push(start(parts, None, save)?);
    }
    let mut cloned = Vec::new();
    for _ in 0..clones {
        cloned.push(start(parts, Some(template.path()), None)?);
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        format!("{MEMORY_MIB} MiB, 1 vCPU: medians of"),
        format!("{boots} boots"),
        format!("{clones} clones"),
    ]);
    let mut row = |heading: &str, figure: &dyn Fn(&Start) -> u64, shown: fn(u64) -> String| {
        let of = |starts: &[Start]| shown(median(&starts.iter().map(figure).collect::<Vec<_>>()));
        table.add_row([heading.to_owned(), of(&booted), of(&cloned)]);
    };
    let time: fn(u64) -> String = |micros| milliseconds(Duration::from_micros(micros));
    let size: fn(u64) -> String = |kib| format!("{kib} KiB");
    row(
        "process start to first KVM_RUN",
        &|start| start.first_run.as_micros() as u64,
        time,
    );
    row(
        "process start to agent ready",
        &|start| start.ready.as_micros() as u64,
        time,
    );
    row(
        "emulated guest kernel instructions to agent ready",
        &|start| start.emulated,
        |count| count.to_string(),
    );
    row(
        "VMM memory beside the guest's (Pss)",
        &|start| start.memory.beside_guest,
        size,
    );
    row(
        "guest memory private to the VMM",
        &|start| start.memory.guest_private,
        size,
    );
    println!("{table}\n");
    Ok(())
}

/// Starts one machine, from nothing or from a snapshot, and saves it if asked to.
fn start(parts: Parts<'_>, restore: Option<&Path>, save: Option<&Path>) -> anyhow::Result<Start> {
    let machine = Machine::start(parts, restore)?;
    let (emulated, guest_memory) = machine.statistics()?;
    let memory = machine.memory(&guest_memory)?;
    if let Some(directory) = save {
        machine.save(directory)?;
    }
    Ok(Start {
        first_run: machine.first_run,
        ready: machine.ready,
        emulated,
        memory,
    })
}
