//! The time stamp counter of a restored vCPU, where KVM takes what is written to it for something else.
//!
//! To let virtual machines start the counters of their vCPUs at the same value, KVM takes a write that is within a second
//! of what it would have a counter be for an attempt at that, and lets the counter be what it was (`kvm_synchronize_tsc`
//! of Linux). Until Linux 6.7 that held for the first write of a new machine as well, whose counters begin at zero: those
//! of a guest that was saved in its first second fell back by up to its age, and its clocks stood still for as long. The
//! offset that KVM adds to the host's counter can be set since Linux 5.16, and is taken as it is
//! (Documentation/virt/kvm/devices/vcpu.rst, section 4). Older ones have the counters fall back, which a guest survives.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::ioctl_iow_nr;

mod request {
    #![allow(missing_docs, reason = "the macro makes functions without them")]

    use super::{KVMIO, ioctl_iow_nr, kvm_device_attr};

    ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
    ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
}

/// Further from its value than this, in milliseconds, a counter has not been set. The counters of one machine's vCPUs are
/// nearer to each other, and stay as KVM has them.
const TOLERANCE_MS: u64 = 10;

/// Whether a counter of `khz` that was set to `wanted` and read to be `now` so long afterwards has been set.
pub(super) fn was_set(wanted: u64, now: u64, khz: u32, since: Duration) -> bool {
    let expected = wanted.wrapping_add(ticks(khz, since));
    let apart = now.wrapping_sub(expected).cast_signed().unsigned_abs();
    apart <= TOLERANCE_MS * u64::from(khz)
}

/// How far a counter of `khz` gets in this time.
pub(super) fn ticks(khz: u32, time: Duration) -> u64 {
    let ticks = time.as_nanos().saturating_mul(u128::from(khz)) / 1_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

/// Has the counter of `vcpu`, which is `now`, be `wanted`, where KVM has offsets that can be set.
///
/// # Errors
/// When KVM does not give the offset or does not take it.
pub(super) fn move_by_its_offset(vcpu: &impl AsRawFd, wanted: u64, now: u64) -> io::Result<()> {
    let mut offset = 0_u64;
    let mut attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: (&raw mut offset).expose_provenance() as u64,
        flags: 0,
    };
    // SAFETY: KVM writes eight bytes to the attribute's address, which is `offset`'s.
    if unsafe { ioctl_with_mut_ref(vcpu, request::KVM_GET_DEVICE_ATTR(), &mut attribute) } != 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            // A vCPU has no attributes (before Linux 5.16 the request is an unknown one), or not this one.
            Some(libc::EINVAL | libc::ENOTTY | libc::ENXIO) => Ok(()),
            _ => Err(error),
        };
    }
    offset = offset.wrapping_add(wanted.wrapping_sub(now));
    attribute.addr = (&raw const offset).expose_provenance() as u64;
    // SAFETY: KVM reads eight bytes from there.
    match unsafe { ioctl_with_ref(vcpu, request::KVM_SET_DEVICE_ATTR(), &attribute) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
