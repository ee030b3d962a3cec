//! vCPUs: one thread each, which runs the guest and serves what it leaves the guest for.

pub mod counters;
pub mod cpuid;
pub mod kick;
pub mod local_apic;
pub mod statistics;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, compiler_fence};
use std::sync::mpsc::Receiver;

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
    /// Set before the vCPU is [kicked](kick::kick) out of the guest to hear its orders.
    pub attention: Arc<AtomicBool>,
}

/// What a vCPU outside the guest is told.
pub enum Order {
    /// Let this be done with it.
    Examine(Box<dyn FnOnce(&VcpuFd) + Send>),
    /// Go back to the guest.
    Resume,
}

/// What came of one stay in the guest.
enum Step {
    /// The guest needed something and has it.
    Served,
    /// The vCPU was kicked, or has not been started yet. Everything the guest has seen done is done.
    Interrupted,
    /// The machine cannot go on.
    Stopped(Stop),
}

impl Vcpu {
    /// Runs the guest until it stops, which gives the reason, or until nobody has `orders` any more when
    /// [`attention`](Self::attention) was set and the thread [kicked](kick::kick).
    pub fn run(mut self, orders: &Receiver<Order>) -> Option<Stop> {
        let kickable = Kickable::new(&mut self.fd);
        let stop = loop {
            let next = if self.attention.load(Ordering::Acquire) {
                self.settle()
            } else {
                self.step()
            };
            match next {
                Step::Served => {}
                Step::Stopped(stop) => break Some(stop),
                Step::Interrupted if self.attention.load(Ordering::Acquire) => {
                    if !self.take_orders(orders) {
                        break None;
                    }
                }
                Step::Interrupted => self.allow_entry(),
            }
        };
        drop(kickable);
        stop
    }

    /// Finishes what the guest had begun, without entering it: KVM has the second half of an exit's instruction, and
    /// what a completed instruction changed, only after the next `KVM_RUN`.
    fn settle(&mut self) -> Step {
        self.fd.set_kvm_immediate_exit(1);
        self.step()
    }

    /// Does what is ordered until the vCPU is to enter the guest again; false when nobody gives orders any more.
    fn take_orders(&mut self, orders: &Receiver<Order>) -> bool {
        loop {
            match orders.recv() {
                Ok(Order::Examine(examine)) => examine(&self.fd),
                Ok(Order::Resume) => break,
                Err(_) => return false,
            }
        }
        // Spares the guest's watchdogs. A guest that does not use KVM's clock cannot be told.
        let _ = self.fd.kvmclock_ctrl();
        self.allow_entry();
        true
    }

    /// Takes back what a kick left. One that comes now has set `attention` before, which is looked at after this.
    fn allow_entry(&mut self) {
        self.fd.set_kvm_immediate_exit(0);
        // The kick is a signal handler on this thread.
        compiler_fence(Ordering::SeqCst);
    }

    /// Runs the guest until it needs something once.
    fn step(&mut self) -> Step {
        let stop = match self.fd.run() {
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
            // Kicked.
            Err(error) if error.errno() == libc::EINTR => return Step::Interrupted,
            // Woken by its first startup interrupt.
            Err(error) if error.errno() == libc::EAGAIN => None,
            Err(source) => Some(Stop::Run {
                vcpu: self.index,
                source,
            }),
        };
        stop.map_or(Step::Served, Step::Stopped)
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
