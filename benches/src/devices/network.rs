//! The host's end of a guest's network: a tap in a network namespace of our own, whose counters tell what has gone
//! through it, and somebody who sends as much as it takes.

use std::fs::{self, File};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::thread::UnshareFlags;

use crate::tap;

const TAP: &str = "peer-tap";
/// The header that a packet socket takes (packet(7), `PACKET_VNET_HDR`): without a number of buffers.
pub(super) const SOCKET_HEADER_BYTES: usize = 10;
/// How long the sender leaves a full tap alone.
const REST: Duration = Duration::from_micros(50);

/// Leaves the host's network for an empty one.
pub(super) fn leave_the_hosts() -> anyhow::Result<()> {
    // SAFETY: the process has one thread, which shares nothing that the call would tear apart.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.context("making a network namespace")?;
    // Nobody else is to say anything on it.
    fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").context("forbidding IPv6")
}

/// A tap, which goes with the value.
#[derive(Debug)]
pub(super) struct Tap {
    pub(super) descriptor: File,
    index: libc::c_int,
}

/// Frames and their bytes, without headers, as the host's kernel has counted them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Count {
    pub(super) frames: u64,
    pub(super) bytes: u64,
}

impl Tap {
    pub(super) fn open() -> anyhow::Result<Self> {
        let descriptor = tap::open(TAP)?;
        let status = Command::new("ip")
            .args(["link", "set", TAP, "up"])
            .status()
            .context("starting ip")?;
        ensure!(status.success(), "`ip link set {TAP} up` ended with {status}");
        let index = fs::read_to_string(format!("/sys/class/net/{TAP}/ifindex"));
        let index = match index {
            Ok(text) => text.trim().parse()?,
            // The folder shows another namespace's network where it was mounted in that.
            Err(_) => interface_index()?,
        };
        Ok(Self { descriptor, index })
    }

    /// What the machine has sent and received.
    pub(super) fn counts(&self) -> anyhow::Result<(Count, Count)> {
        let text = fs::read_to_string("/proc/thread-self/net/dev")?;
        let line = text
            .lines()
            .find_map(|line| line.trim().strip_prefix(TAP)?.strip_prefix(':'))
            .with_context(|| format!("the counters of {TAP}"))?;
        let figures: Vec<u64> = line
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let count = |first: usize| -> anyhow::Result<Count> {
            Ok(Count {
                bytes: *figures.get(first).context("a figure")?,
                frames: *figures.get(first + 1).context("a figure")?,
            })
        };
        Ok((count(0)?, count(8)?))
    }
}

fn interface_index() -> anyhow::Result<libc::c_int> {
    let name = std::ffi::CString::new(TAP)?;
    // SAFETY: the call reads a string that ends with a zero.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    ensure!(index != 0, "looking for {TAP}: {}", io::Error::last_os_error());
    Ok(index.cast_signed())
}

/// A thread that sends the same frame, until the value is dropped.
#[derive(Debug)]
pub(super) struct Sender {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sender {
    /// Sends `frame`, which begins with a header of [`SOCKET_HEADER_BYTES`].
    pub(super) fn start(tap: &Tap, frame: Vec<u8>) -> anyhow::Result<Self> {
        // SAFETY: the call takes no pointer.
        let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        ensure!(
            socket >= 0,
            "opening a packet socket: {}",
            io::Error::last_os_error()
        );
        // SAFETY: the descriptor was made by the call above, and nobody else knows it.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        let one: libc::c_int = 1;
        for (level, option) in [
            (libc::SOL_PACKET, PACKET_VNET_HDR),
            (libc::SOL_PACKET, PACKET_QDISC_BYPASS),
        ] {
            // SAFETY: the call reads one number where the pointer says.
            let result = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    level,
                    option,
                    (&raw const one).cast(),
                    size_of::<libc::c_int>() as u32,
                )
            };
            ensure!(
                result == 0,
                "preparing the packet socket: {}",
                io::Error::last_os_error()
            );
        }
        // SAFETY: all of the structure is numbers, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_IP as u16).to_be();
        address.sll_ifindex = tap.index;
        // SAFETY: the call reads one structure where the pointer says.
        let result = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        ensure!(
            result == 0,
            "binding the packet socket: {}",
            io::Error::last_os_error()
        );
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if rustix::io::write(&socket, &frame).is_err() {
                    // The tap is full.
                    thread::sleep(REST);
                }
            }
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

/// Options of packet sockets (`linux/if_packet.h`).
const PACKET_VNET_HDR: libc::c_int = 15;
const PACKET_QDISC_BYPASS: libc::c_int = 20;

impl Drop for Sender {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say but that it has ended.
            let _ = thread.join();
        }
    }
}
