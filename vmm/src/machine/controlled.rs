//! What clients of the control socket can have done with a running machine.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use kvm_ioctls::{Kvm, VmFd};
use vm_memory::{GuestMemory as _, GuestMemoryMmap, GuestMemoryRegion as _};

use super::build::Monitor;
use super::vcpu_threads::{ExamineError, VcpuThreads};
use crate::bus::Bus;
use crate::control::{Controlled, MemoryRange, VcpuStatistics};
use crate::devices::virtio::blk::{DiskSlot, NewDisk, SlotError};
use crate::devices::virtio::device::SaveError;
use crate::devices::virtio::net::NetCounts;
use crate::snapshot::description::Dependencies;
use crate::snapshot::vcpu::{self, KvmStateError, VcpuState};
use crate::snapshot::vm::VmState;
use crate::snapshot::{self, MachineState, SnapshotError};
use crate::status::chain;
use crate::stop::FirstStop;
use crate::vcpu::statistics::StatisticsError;

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// A vCPU is not there.
    #[error(transparent)]
    Vcpus(#[from] ExamineError),
    /// The machine is about to end.
    #[error("the machine has stopped")]
    Stopped,
    /// A device cannot be in a snapshot.
    #[error("the machine cannot be in a snapshot")]
    Device(#[from] SaveError),
    /// KVM does not give its state.
    #[error("reading the machine's state")]
    State(#[from] KvmStateError),
    /// It cannot be written.
    #[error(transparent)]
    Write(#[from] SnapshotError),
}

/// A machine while it runs, or is paused.
pub struct RunningMachine {
    /// KVM.
    pub kvm: Kvm,
    /// KVM's side of it.
    pub vm: VmFd,
    /// Its vCPUs' threads.
    pub threads: VcpuThreads,
    /// Where its vCPUs' figures are read.
    pub monitors: Vec<Monitor>,
    /// Its devices.
    pub bus: Arc<Bus>,
    /// Its memory.
    pub memory: Arc<GuestMemoryMmap>,
    /// What another machine must have in common with it.
    pub dependencies: Dependencies,
    /// Where vCPUs and devices say why they stop.
    pub first_stop: Arc<FirstStop>,
    /// Whether it was asked to pause.
    pub paused: bool,
}

impl RunningMachine {
    /// First the vCPUs, whose last requests the devices then serve.
    fn hold(&self) -> Result<(), ExamineError> {
        self.threads.pause()?;
        self.bus.pause();
        Ok(())
    }

    fn release(&self) {
        self.bus.resume();
        self.threads.resume();
    }

    /// Writes a snapshot of the machine, which is held.
    fn capture(&self, directory: &Path) -> Result<(), CaptureError> {
        if self.first_stop.get().is_some() {
            return Err(CaptureError::Stopped);
        }
        let bus = self.bus.save()?;
        let registers = vcpu::model_specific_registers(&self.kvm)?;
        let vcpus = self
            .threads
            .examine(move |vcpu| VcpuState::read(vcpu, &registers))?
            .into_iter()
            .collect::<Result<_, _>>()?;
        let vm = VmState::read(&self.vm)?;
        let machine = MachineState { vm, vcpus, bus };
        Ok(snapshot::write(
            directory,
            &self.dependencies,
            &machine,
            &self.memory,
        )?)
    }

    fn with_disk_slot<T>(
        &self,
        number: u8,
        work: impl FnOnce(&mut DiskSlot) -> Result<T, SlotError>,
    ) -> Result<T, String> {
        if self.paused {
            return Err("the machine is paused: resume it first".to_owned());
        }
        let done = self.bus.with_disk_slot(number, work);
        let done = done.ok_or_else(|| format!("the machine has no slot {number} for disks"))?;
        done.map_err(|error| format!("slot {number}: {}", chain(&error)))
    }

    fn read_statistics(&self) -> Result<Vec<VcpuStatistics>, StatisticsError> {
        self.monitors
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
}

impl Controlled for RunningMachine {
    fn statistics(&mut self) -> Result<Vec<VcpuStatistics>, String> {
        self.read_statistics().map_err(|error| chain(&error))
    }

    fn guest_memory(&self) -> Vec<MemoryRange> {
        self.memory
            .iter()
            .map(|region| MemoryRange {
                start: region.as_ptr() as u64,
                bytes: region.len(),
            })
            .collect()
    }

    fn network(&self) -> Vec<NetCounts> {
        self.bus.network_counts()
    }

    fn pause(&mut self) -> Result<(), String> {
        if !self.paused {
            self.hold().map_err(|error| chain(&error))?;
            self.paused = true;
        }
        Ok(())
    }

    fn resume(&mut self) {
        if self.paused {
            self.release();
            self.paused = false;
        }
    }

    fn attach_disk(&mut self, slot: u8, disk: &NewDisk, descriptor: OwnedFd) -> Result<u64, String> {
        self.with_disk_slot(slot, |slot| slot.attach(disk, descriptor))
    }

    fn detach_disk(&mut self, slot: u8) -> Result<(), String> {
        self.with_disk_slot(slot, DiskSlot::detach)
    }

    fn snapshot(&mut self, directory: &Path) -> Result<(), String> {
        let was_paused = self.paused;
        self.pause()?;
        let captured = self.capture(directory).map_err(|error| chain(&error));
        if captured.is_err() && !was_paused {
            self.resume();
        }
        captured
    }
}
