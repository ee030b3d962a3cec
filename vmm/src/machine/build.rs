//! From open files to a machine whose next act is the guest's first instruction.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use kvm_bindings::{CpuId, KVM_CAP_EXIT_ON_EMULATION_FAILURE, kvm_enable_cap, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemory, GuestMemoryMmap, GuestMemoryRegion};

use super::opened::{BootFiles, OpenedMachine, Origin};
use super::wiring::{self, WiringError};
use crate::boot::command_line::{self, TooLong};
use crate::boot::initramfs::{self, InitramfsError};
use crate::boot::kernel::KernelError;
use crate::boot::registers::{self, RegistersError};
use crate::boot::{WriteError, mp_table, page_tables, segments, zero_page};
use crate::bus::Bus;
use crate::completion::Completer;
use crate::console_ring::ConsoleRing;
use crate::control::ControlServer;
use crate::devices::virtio::mmio_transport::RestoreError;
use crate::memory::{MemoryError, layout, reserve};
use crate::snapshot::MachineState;
use crate::snapshot::description::Dependencies;
use crate::snapshot::memory::{self, MemoryFileError};
use crate::snapshot::vcpu::KvmStateError;
use crate::status::{Phase, StatusChannel, StatusError};
use crate::stop::FirstStop;
use crate::vcpu::counters::ExitCounters;
use crate::vcpu::cpuid::{self, Place, TooManyEntries};
use crate::vcpu::statistics::{KvmStatistics, StatisticsError};
use crate::vcpu::{Vcpu, local_apic};

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// There is no guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel is not in it.
    #[error("loading the kernel")]
    Kernel(#[source] KernelError),
    /// The initial file system is not in it.
    #[error("loading the initramfs")]
    Initramfs(#[source] InitramfsError),
    /// A boot structure is not in it.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The snapshot's memory is not the guest's.
    #[error("mapping the snapshot's memory")]
    SnapshotMemory(#[source] MemoryFileError),
    /// KVM does not take the snapshot's state.
    #[error("restoring the state of the machine")]
    State(#[source] KvmStateError),
    /// KVM does not take the snapshot's state of a vCPU.
    #[error("restoring the state of vCPU {vcpu}")]
    VcpuState {
        /// The vCPU's number.
        vcpu: u8,
        /// The cause.
        #[source]
        source: KvmStateError,
    },
    /// A device does not take its state.
    #[error("restoring the state of the devices")]
    DeviceState(#[source] RestoreError),
    /// The snapshot has not the state of all parts of the machine.
    #[error("the snapshot has the state of {states} {of} for {parts}")]
    Missing {
        /// Of what.
        of: &'static str,
        /// How many states there are.
        states: usize,
        /// How many parts.
        parts: usize,
    },
    /// The kernel's command line does not fit.
    #[error(transparent)]
    CommandLine(#[from] TooLong),
    /// KVM does not do its part.
    #[error("{0}")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    /// A device is not tied to the machine.
    #[error(transparent)]
    Wiring(#[from] WiringError),
    /// A vCPU has no CPUID.
    #[error(transparent)]
    Cpuid(#[from] TooManyEntries),
    /// A vCPU has not the registers to start with.
    #[error(transparent)]
    Registers(#[from] RegistersError),
    /// A vCPU has no statistics.
    #[error(transparent)]
    Statistics(#[from] StatisticsError),
    /// There is no event to be had.
    #[error("making the event that ends the machine")]
    Event(#[source] io::Error),
    /// Nobody listens.
    #[error(transparent)]
    Status(#[from] StatusError),
}

fn kvm(act: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> BuildError {
    move |source| BuildError::Kvm(act, source)
}

/// A machine about to run.
pub struct Machine {
    /// KVM.
    pub kvm: Kvm,
    /// KVM's side of it. KVM forgets the devices' interrupts when this is closed, though the vCPUs go on.
    pub vm: VmFd,
    /// Its vCPUs.
    pub vcpus: Vec<Vcpu>,
    /// Where their figures are read.
    pub monitors: Vec<Monitor>,
    /// Its devices.
    pub bus: Arc<Bus>,
    /// Its console.
    pub console: Arc<ConsoleRing>,
    /// Its control socket.
    pub control: Option<ControlServer>,
    /// Its memory.
    pub memory: Arc<GuestMemoryMmap>,
    /// What another machine must have in common with it to go on from a snapshot of it.
    pub dependencies: Dependencies,
    /// What its vCPUs look at before they enter the guest.
    pub attention: Arc<AtomicBool>,
    /// Where vCPUs and devices say why they stop.
    pub first_stop: Arc<FirstStop>,
}

/// Where one vCPU's figures are read.
#[derive(Debug)]
pub struct Monitor {
    /// The vCPU's number.
    pub index: u8,
    /// This process's figures.
    pub counters: Arc<ExitCounters>,
    /// KVM's.
    pub kvm: KvmStatistics,
}

impl Machine {
    /// Builds the machine that `opened` is for.
    ///
    /// # Errors
    /// What the host or KVM refused.
    pub fn build(opened: OpenedMachine, status: &StatusChannel) -> Result<Self, BuildError> {
        let memory = Arc::new(fill_memory(&opened)?);
        status.phase(Phase::KernelLoaded)?;

        let OpenedMachine {
            kvm: host,
            kernel_mode,
            supported_cpuid,
            origin,
            dependencies,
            console,
            devices,
            control,
            vcpus: count,
            memory_bytes: _,
        } = opened;
        let vm = create_vm(&host, &memory)?;
        let first_stop = Arc::new(FirstStop::new().map_err(BuildError::Event)?);
        let transports = wiring::tie(&vm, &memory, devices, &first_stop)?;
        let bus = Arc::new(Bus::new(Arc::clone(&console), transports));
        let attention = Arc::new(AtomicBool::new(false));
        let (mut vcpus, mut monitors) = (Vec::new(), Vec::new());
        for index in 0..count {
            let place = Place { index, vcpus: count };
            let cpuid = cpuid::compose(&supported_cpuid, place, kernel_mode)?;
            let fd = create_vcpu(&vm, index, &cpuid)?;
            let counters = Arc::new(ExitCounters::default());
            monitors.push(Monitor {
                index,
                counters: Arc::clone(&counters),
                kvm: KvmStatistics::of(&fd)?,
            });
            vcpus.push(Vcpu {
                fd,
                index,
                memory: Arc::clone(&memory),
                bus: Arc::clone(&bus),
                completer: Completer::new(),
                counters,
                attention: Arc::clone(&attention),
            });
        }
        match origin {
            Origin::Boot(files) => set_initial_state(&vcpus, files.kernel.1.entry)?,
            Origin::Snapshot(snapshot) => restore(&snapshot.machine, &vm, &vcpus, &bus)?,
        }
        status.phase(Phase::MachineBuilt)?;
        Ok(Self {
            kvm: host,
            vm,
            vcpus,
            monitors,
            bus,
            console,
            control,
            memory,
            dependencies,
            attention,
            first_stop,
        })
    }
}

/// The guest's memory, with what it starts from in it.
fn fill_memory(opened: &OpenedMachine) -> Result<GuestMemoryMmap, BuildError> {
    match &opened.origin {
        Origin::Boot(files) => {
            let memory = reserve(opened.memory_bytes)?;
            load_guest(opened, files, &memory)?;
            Ok(memory)
        }
        Origin::Snapshot(snapshot) => {
            memory::map(&snapshot.memory, opened.memory_bytes).map_err(BuildError::SnapshotMemory)
        }
    }
}

/// Makes the first vCPU one that boots. The others wait for it to start them, as after a reset.
fn set_initial_state(vcpus: &[Vcpu], entry: u64) -> Result<(), BuildError> {
    for vcpu in vcpus {
        registers::set_model_specific_registers(&vcpu.fd)?;
        local_apic::set_pins(&vcpu.fd).map_err(kvm("setting a local APIC's pins"))?;
    }
    if let Some(first) = vcpus.first() {
        registers::set_boot_registers(&first.fd, entry)?;
    }
    Ok(())
}

/// Makes the machine, which has only its memory, what `state` says. The devices come last: once they run they write to
/// memory and raise interrupts.
fn restore(state: &MachineState, vm: &VmFd, vcpus: &[Vcpu], bus: &Bus) -> Result<(), BuildError> {
    let complete = |of, states, parts| match states == parts {
        true => Ok(()),
        false => Err(BuildError::Missing { of, states, parts }),
    };
    complete("vCPUs", state.vcpus.len(), vcpus.len())?;
    complete("devices", state.bus.transports.len(), bus.transports())?;
    for (vcpu, state) in vcpus.iter().zip(&state.vcpus) {
        state.write(&vcpu.fd).map_err(|source| BuildError::VcpuState {
            vcpu: vcpu.index,
            source,
        })?;
    }
    state
        .vm
        .write_interrupt_controllers(vm)
        .map_err(BuildError::State)?;
    state.vm.write_clock(vm).map_err(BuildError::State)?;
    bus.restore(&state.bus).map_err(BuildError::DeviceState)
}

/// Makes the kernel, the initial file system and the boot structures guest memory.
fn load_guest(opened: &OpenedMachine, files: &BootFiles, memory: &GuestMemoryMmap) -> Result<(), BuildError> {
    let (kernel_file, kernel) = &files.kernel;
    kernel.load(kernel_file, memory).map_err(BuildError::Kernel)?;
    let (initramfs_file, initramfs) = &files.initramfs;
    initramfs::load(initramfs_file, memory, initramfs).map_err(BuildError::Initramfs)?;

    let lines = wiring::interrupt_lines(opened.devices.len());
    let line = command_line::compose(opened.kernel_mode, lines, &files.command_line)?;
    command_line::write(memory, &line)?;
    let ram = layout::ram(opened.memory_bytes);
    zero_page::write(memory, &ram, line.len(), initramfs, &files.seed)?;
    mp_table::write(memory, opened.vcpus)?;
    segments::write(memory)?;
    page_tables::write(memory)?;
    Ok(())
}

fn create_vm(host: &Kvm, memory: &GuestMemoryMmap) -> Result<VmFd, BuildError> {
    let vm = host.create_vm().map_err(kvm("creating the VM"))?;
    vm.set_tss_address(layout::TASK_STATE_SEGMENT as usize)
        .map_err(kvm("placing KVM's task state segment"))?;
    vm.set_identity_map_address(layout::IDENTITY_MAP)
        .map_err(kvm("placing KVM's identity map"))?;
    // Without it a failed emulation ends in an exit that does not tell which instruction it was.
    if vm.check_extension_raw(KVM_CAP_EXIT_ON_EMULATION_FAILURE.into()) > 0 {
        let capability = kvm_enable_cap {
            cap: KVM_CAP_EXIT_ON_EMULATION_FAILURE,
            args: [1, 0, 0, 0],
            ..Default::default()
        };
        vm.enable_cap(&capability)
            .map_err(kvm("enabling the exit on failed emulation"))?;
    }
    for (slot, region) in (0..).zip(memory.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: The region is a mapping of that length, and `memory` keeps it until the last vCPU is gone: every
        // `Vcpu` holds a reference.
        unsafe { vm.set_user_memory_region(region) }.map_err(kvm("giving KVM the guest's memory"))?;
    }
    // After the memory: a change of memory once there are interrupt controllers waits for their readers, which takes
    // KVM 7 to 11 ms instead of 40 us.
    vm.create_irq_chip()
        .map_err(kvm("creating the interrupt controllers"))?;
    Ok(vm)
}

fn create_vcpu(vm: &VmFd, index: u8, cpuid: &CpuId) -> Result<VcpuFd, BuildError> {
    let vcpu = vm.create_vcpu(index.into()).map_err(kvm("creating a vCPU"))?;
    vcpu.set_cpuid2(cpuid).map_err(kvm("setting a vCPU's CPUID"))?;
    Ok(vcpu)
}
