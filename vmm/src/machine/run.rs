//! A machine's life: its vCPU threads run, this thread waits for one to stop, a signal or a control request.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use rustix::event::{PollFd, PollFlags, poll};

use super::build::{Machine, Monitor};
use super::signals::StopSignals;
use crate::control::{ControlServer, VcpuStatistics};
use crate::exit::{End, tell};
use crate::status::{Exit, Phase, StatusChannel, StatusError, chain};
use crate::stop::FirstStop;
use crate::vcpu::statistics::StatisticsError;
use crate::vcpu::{Vcpu, kick};

/// How long vCPU threads have to leave the guest, which takes them microseconds on a host that is not overloaded. One
/// that does not is left to the end of the process.
const LEAVE_GUEST: Duration = Duration::from_secs(5);
const LEAVE_GUEST_STEP: Duration = Duration::from_micros(200);

/// Why a machine could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The signal that takes vCPUs out of the guest cannot be handled.
    #[error("installing the signal handler of the vCPU threads")]
    KickHandler(#[source] kvm_ioctls::Error),
    /// A thread could not be started.
    #[error("starting the thread of vCPU {vcpu}")]
    Thread {
        /// The vCPU's number.
        vcpu: u8,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Waiting failed.
    #[error("waiting for the machine")]
    Wait(#[source] io::Error),
    /// Signals cannot be read.
    #[error("reading a signal")]
    Signal(#[source] Errno),
    /// Nobody listens.
    #[error(transparent)]
    Status(#[from] StatusError),
}

impl Machine {
    /// Runs the machine to its end and tells how that was.
    ///
    /// # Errors
    /// When the host does not do its part. The machine is over in any case.
    pub fn run(self, signals: &StopSignals, status: &StatusChannel) -> Result<Exit, RunError> {
        let Self {
            vm,
            vcpus,
            monitors,
            bus,
            console,
            mut control,
            stopping,
            first_stop,
        } = self;
        kick::install_handler().map_err(RunError::KickHandler)?;
        let mut threads = VcpuThreads {
            threads: Vec::new(),
            stopping,
        };
        let mut vcpus = vcpus.into_iter();
        let first = vcpus.next();
        for vcpu in vcpus {
            threads.start(vcpu, &first_stop)?;
        }
        status.phase(Phase::FirstRun)?;
        if let Some(first) = first {
            threads.start(first, &first_stop)?;
        }

        let asked = wait(&first_stop, signals, control.as_mut(), &monitors)?;
        let statistics = read_statistics(&monitors).unwrap_or_default();
        drop(threads);
        bus.reset();
        drop(vm);
        // Whoever asks, what had stopped before is the reason.
        let end = match (first_stop.get(), asked) {
            (Some(stop), _) => End::Itself(stop),
            (None, by) => End::Stopped(by.unwrap_or("nobody")),
        };
        Ok(Exit {
            vcpus: statistics,
            ..tell(&end, &console.tail())
        })
    }
}

/// The threads of the vCPUs; dropping it takes them out of the guest.
struct VcpuThreads {
    threads: Vec<JoinHandle<()>>,
    stopping: Arc<AtomicBool>,
}

impl VcpuThreads {
    fn start(&mut self, vcpu: Vcpu, first_stop: &Arc<FirstStop>) -> Result<(), RunError> {
        let index = vcpu.index;
        let first_stop = Arc::clone(first_stop);
        let body = move || {
            if let Some(stop) = vcpu.run() {
                first_stop.report(stop);
            }
        };
        let thread = thread::Builder::new()
            .name(format!("vcpu{index}"))
            .spawn(body)
            .map_err(|source| RunError::Thread { vcpu: index, source })?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        for thread in &self.threads {
            // A thread that is gone needs no kick.
            let _ = kick::kick(thread);
        }
        let deadline = Instant::now() + LEAVE_GUEST;
        while !self.threads.iter().all(JoinHandle::is_finished) && Instant::now() < deadline {
            thread::sleep(LEAVE_GUEST_STEP);
        }
        for thread in self.threads.iter().filter(|thread| !thread.is_finished()) {
            let name = thread.thread().name().unwrap_or("a vCPU");
            eprintln!("bulkhead-vmm: {name} did not leave the guest within {LEAVE_GUEST:?}");
        }
    }
}

/// Waits until a vCPU stops, which gives `None`, or somebody asks for the end, which gives who.
fn wait(
    first_stop: &FirstStop,
    signals: &StopSignals,
    mut control: Option<&mut ControlServer>,
    monitors: &[Monitor],
) -> Result<Option<&'static str>, RunError> {
    loop {
        wait_for_any(first_stop, signals, control.as_deref())?;
        if first_stop.get().is_some() {
            return Ok(None);
        }
        if let Some(signal) = signals.pending().map_err(RunError::Signal)? {
            return Ok(Some(signal));
        }
        if let Some(control) = &mut control {
            let statistics = || read_statistics(monitors).map_err(|error| chain(&error));
            if control.serve(&statistics).is_some() {
                return Ok(Some("a control request"));
            }
        }
    }
}

fn wait_for_any(
    first_stop: &FirstStop,
    signals: &StopSignals,
    control: Option<&ControlServer>,
) -> Result<(), RunError> {
    let mut descriptors: Vec<PollFd<'_>> = [first_stop.as_fd(), signals.as_fd()]
        .into_iter()
        .chain(control.into_iter().flat_map(ControlServer::descriptors))
        .map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN))
        .collect();
    match poll(&mut descriptors, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(RunError::Wait(error.into())),
    }
}

fn read_statistics(monitors: &[Monitor]) -> Result<Vec<VcpuStatistics>, StatisticsError> {
    monitors
        .iter()
        .map(|Monitor { index, counters, kvm }| {
            Ok(VcpuStatistics {
                index: *index,
                kvm: kvm.read()?,
                exits: counters.read(),
            })
        })
        .collect()
}
