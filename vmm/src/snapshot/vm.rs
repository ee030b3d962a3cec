//! The state of a machine in KVM beside its vCPUs.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::raw::Raw;
use super::vcpu::{KvmStateError, kvm};

const CONTROLLERS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// What is kept of a machine beside its vCPUs. There is no timer (PIT) in it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmState {
    /// The two PICs and the IOAPIC.
    interrupt_controllers: [Raw<kvm_irqchip>; 3],
    /// KVM's clock in nanoseconds.
    clock: u64,
}

impl VmState {
    /// The state of `vm`, none of whose vCPUs is in the guest.
    ///
    /// # Errors
    /// When KVM does not give a part of it.
    pub fn read(vm: &VmFd) -> Result<Self, KvmStateError> {
        let clock = vm.get_clock().map_err(kvm("reading KVM's clock"))?.clock;
        let mut interrupt_controllers = [Raw(kvm_irqchip::default()); 3];
        for (Raw(state), chip_id) in interrupt_controllers.iter_mut().zip(CONTROLLERS) {
            state.chip_id = chip_id;
            vm.get_irqchip(state)
                .map_err(kvm("reading an interrupt controller"))?;
        }
        Ok(Self {
            interrupt_controllers,
            clock,
        })
    }

    /// Makes the interrupt controllers those of `vm`. It comes after the vCPUs' local APICs, because the IOAPIC hands
    /// on to them what is pending.
    ///
    /// # Errors
    /// When KVM does not take one.
    pub fn write_interrupt_controllers(&self, vm: &VmFd) -> Result<(), KvmStateError> {
        for (Raw(state), chip_id) in self.interrupt_controllers.iter().zip(CONTROLLERS) {
            vm.set_irqchip(&kvm_irqchip { chip_id, ..*state })
                .map_err(kvm("setting an interrupt controller"))?;
        }
        Ok(())
    }

    /// Makes KVM's clock of `vm` go on from where it was, as if no time had passed. It comes last.
    ///
    /// # Errors
    /// When KVM does not take it.
    pub fn write_clock(&self, vm: &VmFd) -> Result<(), KvmStateError> {
        // Without the flag that would add the time of day that has passed.
        let clock = kvm_clock_data {
            clock: self.clock,
            ..Default::default()
        };
        vm.set_clock(&clock).map_err(kvm("setting KVM's clock"))
    }
}
