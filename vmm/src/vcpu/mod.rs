//! vCPUs: one thread each, which runs the guest and serves what it leaves the guest for.

pub mod counters;
pub mod cpuid;
pub mod kick;
pub mod local_apic;
pub mod statistics;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::GuestMemoryMmap;

use crate::bus::{Bus, PortWrite};
use crate::completion::{Completer, EmulationFailure, Outcome};
use crate::stop::Stop;
use counters::ExitCounters;
use kick::Kickable;

/// A vCPU, ready to run.
pub struct Vcpu {
    /// KVM's side of it.
    pub fd: VcpuFd,
    /// Its number.
    pub index: u8,
    /// The guest's memory.
    pub memory: Arc<GuestMemoryMmap>,
    /// The devices.
    pub bus: Arc<Bus>,
    /// What completes the instructions KVM cannot emulate.
    pub completer: Completer,
    /// What it counts.
    pub counters: Arc<ExitCounters>,
    /// Set before the vCPU is kicked out for good.
    pub stopping: Arc<AtomicBool>,
}

impl Vcpu {
    /// Runs the guest until it stops, or, after [`stopping`](Self::stopping) was set and the thread
    /// [kicked](kick::kick), until then: that gives `None`.
    pub fn run(mut self) -> Option<Stop> {
        let kickable = Kickable::new(&mut self.fd);
        let stop = loop {
            if self.stopping.load(Ordering::Acquire) {
                break None;
            }
            if let Some(stop) = self.step() {
                break Some(stop);
            }
        };
        drop(kickable);
        stop
    }

    /// Runs the guest until it needs something once.
    fn step(&mut self) -> Option<Stop> {
        match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                self.counters.port_read();
                self.bus.read_port(port, data);
                None
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                self.counters.port_write();
                match self.bus.write_port(port, data) {
                    PortWrite::Taken => None,
                    PortWrite::Reset => Some(Stop::Reset),
                }
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.counters.mmio_read();
                self.bus.read_memory(address, data);
                None
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.counters.mmio_write();
                self.bus.write_memory(address, data);
                None
            }
            Ok(VcpuExit::InternalError) => self.serve_internal_error(),
            Ok(VcpuExit::Shutdown) => Some(self.triple_fault()),
            Ok(VcpuExit::FailEntry(reason, _)) => Some(Stop::EntryRefused {
                vcpu: self.index,
                reason,
            }),
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => None,
            Ok(other) => Some(Stop::UnexpectedExit {
                vcpu: self.index,
                exit: format!("{other:?}"),
            }),
            // Kicked, or woken by its first startup interrupt.
            Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => None,
            Err(source) => Some(Stop::Run {
                vcpu: self.index,
                source,
            }),
        }
    }

    fn serve_internal_error(&mut self) -> Option<Stop> {
        let run = self.fd.get_kvm_run();
        let Some(failure) = EmulationFailure::from_run(run) else {
            // SAFETY: On this exit KVM has filled in the union's `internal` member, and all its bits are numbers.
            let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
            return Some(Stop::InternalError {
                vcpu: self.index,
                suberror,
            });
        };
        match self.completer.complete(&mut self.fd, &self.memory, &failure) {
            Ok(completed) => {
                self.counters.completed(completed.mnemonic);
                match completed.outcome {
                    Outcome::Resume => None,
                    Outcome::TripleFault => Some(self.triple_fault()),
                }
            }
            Err(source) => Some(Stop::Completion {
                vcpu: self.index,
                source,
            }),
        }
    }

    fn triple_fault(&self) -> Stop {
        // The registers only embellish the message; a vCPU that has none any more still stopped for this reason.
        let rip = self.fd.get_regs().ok().map(|registers| registers.rip);
        let cr2 = self.fd.get_sregs().ok().map(|registers| registers.cr2);
        Stop::TripleFault {
            vcpu: self.index,
            rip,
            cr2,
        }
    }
}
