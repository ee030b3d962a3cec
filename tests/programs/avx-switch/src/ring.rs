//! Four processes that switch among one another until the kernel has counted enough.
//!
//! Each gives up the CPU again and again, which switches to the other process that is kept on the same CPU. From time to
//! time it hands a token to its neighbour in a ring of pipes and waits for its own, so that some switches come from
//! blocking and waking.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::exit;

use crate::pattern::{difference, pattern};
use crate::registers::{Registers, VectorUnit};
use crate::tally::Tally;

/// How many processes take part.
pub(crate) const PROCESSES: u32 = 4;
/// Exit code of a process whose registers changed.
pub(crate) const REGISTERS_DIFFER: i32 = 1;
/// Exit code of a process whose neighbour went away too early.
const RING_BROKEN: i32 = 3;
/// CPUs the processes are spread over: so few that each CPU has several of them to switch between.
const CPUS: u32 = 2;
const YIELDS_BETWEEN_TOKENS: u32 = 15;

/// The pipes: process n reads from pipe n and writes to pipe n + 1.
pub(crate) struct Ring {
    pipes: Vec<(OwnedFd, OwnedFd)>,
}

/// What a process has of the ring.
struct Place {
    from_neighbour: OwnedFd,
    to_neighbour: OwnedFd,
}

impl Ring {
    pub(crate) fn new() -> io::Result<Ring> {
        let pipes = (0..PROCESSES).map(|_| pipe()).collect::<io::Result<Vec<_>>>()?;
        Ok(Ring { pipes })
    }

    /// What process `process` does, until its end.
    pub(crate) fn take_part(self, process: u32, tally: &Tally, unit: VectorUnit) -> ! {
        keep_on_cpu(process % CPUS);
        let Some(place) = self.place_of(process) else {
            exit(RING_BROKEN)
        };
        let mut player = Player {
            process,
            round: 0,
            unit,
            found: Box::default(),
        };
        let mut counted = 0;
        while !tally.is_complete() && !tally.is_hopeless(player.round) {
            for _ in 0..YIELDS_BETWEEN_TOKENS {
                player.switch(libc::SYS_sched_yield, [0; 3]);
            }
            let moved = player.pass_token(libc::SYS_write, place.to_neighbour.as_raw_fd())
                && player.pass_token(libc::SYS_read, place.from_neighbour.as_raw_fd());
            tally.add_own_switches(&mut counted);
            // The neighbours end when there are enough switches, each in its own time.
            if !moved && !tally.is_complete() {
                exit(RING_BROKEN);
            }
        }
        exit(0)
    }

    /// Keeps the two ends that `process` uses and closes the rest, so that the end of a neighbour is seen.
    fn place_of(self, process: u32) -> Option<Place> {
        let (mut from_neighbour, mut to_neighbour) = (None, None);
        for (index, (read, write)) in (0..).zip(self.pipes) {
            if index == process {
                from_neighbour = Some(read);
            }
            if index == (process + 1) % PROCESSES {
                to_neighbour = Some(write);
            }
        }
        Some(Place {
            from_neighbour: from_neighbour?,
            to_neighbour: to_neighbour?,
        })
    }
}

struct Player {
    process: u32,
    round: u32,
    unit: VectorUnit,
    found: Box<Registers>,
}

impl Player {
    /// Reads or writes the token. `false` if nobody is at the other end any more.
    fn pass_token(&mut self, call: i64, pipe: RawFd) -> bool {
        let mut token = 0_u8;
        self.switch(call, [pipe as u64, &raw mut token as u64, 1]) == 1
    }

    /// Makes a system call with a new pattern in the registers, and looks at them afterwards.
    fn switch(&mut self, call: i64, arguments: [u64; 3]) -> i64 {
        self.round += 1;
        let expected = pattern(self.process, self.round, self.unit);
        let result = self.unit.system_call(&expected, &mut self.found, call, arguments);
        if let Some(difference) = difference(&expected, &self.found, self.unit) {
            println!(
                "process {}, round {}, after system call {call}: {difference}",
                self.process, self.round
            );
            exit(REGISTERS_DIFFER);
        }
        result
    }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: the array takes both descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let [read, write] = ends;
    // SAFETY: both were made here, and nobody else knows them.
    Ok(unsafe { (OwnedFd::from_raw_fd(read), OwnedFd::from_raw_fd(write)) })
}

/// Where there is no such CPU the scheduler places the process among fewer, which is as good.
fn keep_on_cpu(cpu: u32) {
    // SAFETY: an all-zero set is a valid one, the CPU's number is below its size, and the kernel only reads it.
    unsafe {
        let mut cpus: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu as usize, &mut cpus);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const cpus);
    }
}
