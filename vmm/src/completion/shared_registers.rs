//! Registers and events in the page that KVM shares with us, `kvm_run` (`KVM_CAP_SYNC_REGS`): no ioctl reads or writes
//! them.

use kvm_bindings::{kvm_regs, kvm_vcpu_events__bindgen_ty_1};
use kvm_ioctls::{SyncReg, VcpuFd};

use super::Outcome;
use super::delivery::Delivery;
use super::error::Cause;
use super::exception::Exception;

const RFLAGS_RESUME: u64 = 1 << 16;
const DR6_SINGLE_STEP: u64 = 1 << 14;

/// Sees to it that the shared `kvm_run` page holds the vCPU's registers and events: now, and after each `KVM_RUN`.
pub(super) fn share_registers(vcpu: &mut VcpuFd) -> Result<(), Cause> {
    let all = [SyncReg::Register, SyncReg::SystemRegister, SyncReg::VcpuEvents];
    let mask = all.iter().fold(0, |mask, reg| mask | *reg as u64);
    if vcpu.get_kvm_run().kvm_valid_regs & mask == mask {
        return Ok(());
    }
    let regs = vcpu.get_regs().map_err(Cause::kvm("KVM_GET_REGS"))?;
    let sregs = vcpu.get_sregs().map_err(Cause::kvm("KVM_GET_SREGS"))?;
    let events = vcpu
        .get_vcpu_events()
        .map_err(Cause::kvm("KVM_GET_VCPU_EVENTS"))?;
    let shared = vcpu.sync_regs_mut();
    (shared.regs, shared.sregs, shared.events) = (regs, sregs, events);
    all.into_iter().for_each(|reg| vcpu.set_sync_valid_reg(reg));
    Ok(())
}

/// Leaves the registers and the exception, if any, in the `kvm_run` page for the next `KVM_RUN`.
pub(super) fn commit(vcpu: &mut VcpuFd, regs: kvm_regs, delivery: Delivery) -> Result<Outcome, Cause> {
    let resume_flag = match delivery {
        Delivery::None => 0,
        Delivery::Inject(exception) => {
            inject(vcpu, exception)?;
            if exception.is_fault() { RFLAGS_RESUME } else { 0 }
        }
        Delivery::TripleFault => return Ok(Outcome::TripleFault),
    };
    vcpu.sync_regs_mut().regs = kvm_regs {
        rflags: regs.rflags & !RFLAGS_RESUME | resume_flag,
        ..regs
    };
    vcpu.set_sync_dirty_reg(SyncReg::Register);
    Ok(Outcome::Resume)
}

fn inject(vcpu: &mut VcpuFd, exception: Exception) -> Result<(), Cause> {
    if exception == Exception::SINGLE_STEP {
        let mut debug = vcpu.get_debug_regs().map_err(Cause::kvm("KVM_GET_DEBUGREGS"))?;
        debug.dr6 |= DR6_SINGLE_STEP;
        vcpu.set_debug_regs(&debug)
            .map_err(Cause::kvm("KVM_SET_DEBUGREGS"))?;
    }
    let shared = vcpu.sync_regs_mut();
    shared.events.exception = kvm_vcpu_events__bindgen_ty_1 {
        injected: 1,
        pending: 0,
        nr: exception.vector,
        has_error_code: exception.error_code.is_some().into(),
        error_code: exception.error_code.unwrap_or(0),
    };
    // No flags: what other threads may have queued since the exit (an NMI, an INIT) stays KVM's.
    shared.events.flags = 0;
    if let Some(address) = exception.fault_address {
        shared.sregs.cr2 = address;
        vcpu.set_sync_dirty_reg(SyncReg::SystemRegister);
    }
    vcpu.set_sync_dirty_reg(SyncReg::VcpuEvents);
    Ok(())
}
