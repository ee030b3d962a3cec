//! `kernel-timers ROUNDS`: keeps the processor busy for a while, then waits in the kernel for a time that its timer wheel
//! counts in ticks, and holds that against the clock. Prints `ok` and how late the latest came, or fails with how early
//! the earliest did.
//!
//! A guest's kernel may tick less often while one process keeps a processor busy, and so know the time only roughly when
//! it is told how long to wait. Waiting for a datagram that never comes is done by that wheel (`SO_RCVTIMEO`, socket(7)).

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

/// The longest that the processor is kept busy, more than the longest time between two ticks.
const LONGEST_BUSY: u64 = 130;
/// The unit of what is waited for: one tick at a hundred a second.
const TICK: u64 = 10;
/// The longest wait, in ticks.
const LONGEST_WAIT: u64 = 6;

fn main() -> anyhow::Result<()> {
    let rounds: u32 = std::env::args()
        .nth(1)
        .context("usage: kernel-timers ROUNDS")?
        .parse()
        .context("the number of rounds is none")?;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("making a socket")?;
    let mut numbers = Numbers(1);
    let mut latest = Duration::ZERO;
    for round in 0..rounds {
        stay_busy(Duration::from_millis(numbers.below(LONGEST_BUSY)));
        let wanted = Duration::from_millis(TICK * (1 + numbers.below(LONGEST_WAIT)));
        let waited = wait(&socket, wanted)?;
        ensure!(
            waited >= wanted,
            "in round {round} {wanted:?} were over after {waited:?}"
        );
        latest = latest.max(waited - wanted);
    }
    println!("ok, late by {latest:?} at most");
    Ok(())
}

fn stay_busy(time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// How long the kernel waited for a datagram that never came.
fn wait(socket: &UdpSocket, time: Duration) -> anyhow::Result<Duration> {
    socket
        .set_read_timeout(Some(time))
        .context("setting how long to wait")?;
    let begun = Instant::now();
    match socket.recv(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(begun.elapsed()),
        Err(error) => Err(error).context("waiting"),
        Ok(_) => bail!("somebody sent something"),
    }
}

/// The same numbers in each run (a linear congruential generator, Knuth's MMIX).
struct Numbers(u64);

impl Numbers {
    /// Less than `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}
