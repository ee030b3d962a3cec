//! A machine's life: its vCPU threads run, this thread waits for one to stop, a signal or a control request.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use nix::errno::Errno;
use rustix::event::{PollFd, PollFlags, poll};
use vmm_sys_util::eventfd::EventFd;

use super::build::Machine;
use super::controlled::RunningMachine;
use super::signals::StopSignals;
use super::vcpu_threads::{ThreadError, VcpuThreads};
use crate::control::{ControlServer, Controlled};
use crate::exit::{End, tell};
use crate::status::{Exit, Phase, StatusChannel, StatusError};
use crate::stop::FirstStop;
use crate::vcpu::kick;

/// Why a machine could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The signal that takes vCPUs out of the guest cannot be handled.
    #[error("installing the signal handler of the vCPU threads")]
    KickHandler(#[source] kvm_ioctls::Error),
    /// A thread could not be started.
    #[error(transparent)]
    Thread(#[from] ThreadError),
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
            kvm,
            vm,
            vcpus,
            monitors,
            bus,
            console,
            mut control,
            memory,
            dependencies,
            attention,
            first_stop,
        } = self;
        kick::install_handler().map_err(RunError::KickHandler)?;
        let mut threads = VcpuThreads::new(attention);
        let mut vcpus = vcpus.into_iter();
        let first = vcpus.next();
        for vcpu in vcpus {
            threads.start(vcpu, &first_stop)?;
        }
        status.phase(Phase::FirstRun)?;
        if let Some(first) = first {
            threads.start(first, &first_stop)?;
        }

        let mut machine = RunningMachine {
            kvm,
            vm,
            threads,
            monitors,
            bus,
            memory,
            dependencies,
            first_stop: Arc::clone(&first_stop),
            paused: false,
        };
        let asked = wait(&first_stop, signals, control.as_mut(), &mut machine)?;
        let statistics = machine.statistics().unwrap_or_default();
        let RunningMachine { vm, threads, bus, .. } = machine;
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

/// Waits until a vCPU stops, which gives `None`, or somebody asks for the end, which gives who.
fn wait(
    first_stop: &FirstStop,
    signals: &StopSignals,
    mut control: Option<&mut ControlServer>,
    machine: &mut RunningMachine,
) -> Result<Option<&'static str>, RunError> {
    loop {
        // A device of a paused machine has to sleep on.
        let dormant = match machine.paused {
            true => Vec::new(),
            false => machine.bus.dormant().map_err(RunError::Wait)?,
        };
        wait_for_any(first_stop, signals, control.as_deref(), &dormant)?;
        if !dormant.is_empty() {
            machine.bus.wake_notified();
        }
        if first_stop.get().is_some() {
            return Ok(None);
        }
        if let Some(signal) = signals.pending().map_err(RunError::Signal)? {
            return Ok(Some(signal));
        }
        if let Some(control) = &mut control
            && control.serve(machine).is_some()
        {
            return Ok(Some("a control request"));
        }
    }
}

fn wait_for_any(
    first_stop: &FirstStop,
    signals: &StopSignals,
    control: Option<&ControlServer>,
    dormant: &[EventFd],
) -> Result<(), RunError> {
    let borrow = |event: &EventFd| {
        // SAFETY: the events are borrowed for longer than the list of them lives, and so stay open.
        unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
    };
    let mut descriptors: Vec<PollFd<'_>> = [first_stop.as_fd(), signals.as_fd()]
        .into_iter()
        .chain(control.into_iter().flat_map(ControlServer::descriptors))
        .chain(dormant.iter().map(borrow))
        .map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN))
        .collect();
    match poll(&mut descriptors, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(RunError::Wait(error.into())),
    }
}
