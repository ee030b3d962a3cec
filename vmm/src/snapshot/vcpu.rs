//! The state of a vCPU in KVM.

use std::time::Instant;

use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events,
    kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

use super::raw::Raw;
use super::time_stamp_counter::{move_by_its_offset, ticks, was_set};

/// IA32_TIME_STAMP_COUNTER and IA32_TSC_DEADLINE.
const TIME_STAMP_COUNTER: u32 = 0x10;
const TSC_DEADLINE: u32 = 0x6e0;

/// The memory type registers, which older KVMs leave out of their list: IA32_MTRR_PHYSBASE and _PHYSMASK 0 to 7, the
/// eleven fixed ranges, and IA32_MTRR_DEF_TYPE.
const MEMORY_TYPES: [std::ops::RangeInclusive<u32>; 5] = [
    0x200..=0x20f,
    0x250..=0x250,
    0x258..=0x259,
    0x268..=0x26f,
    0x2ff..=0x2ff,
];

/// Why a vCPU's or a machine's state cannot be read from KVM, or given to it.
#[derive(Debug, thiserror::Error)]
pub enum KvmStateError {
    /// KVM refuses.
    #[error("{0}")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    /// KVM does not take a model-specific register.
    #[error("KVM does not take {value:#x} as model-specific register {index:#x}")]
    ModelSpecific {
        /// The register.
        index: u32,
        /// What it should hold.
        value: u64,
    },
    /// KVM lets the time stamp counter be what it was.
    #[error("KVM has the time stamp counter be {now:#x} and not {wanted:#x}, and does not move it")]
    TimeStampCounter {
        /// What it is.
        now: u64,
        /// What it should be.
        wanted: u64,
        /// Why it is not moved.
        #[source]
        source: std::io::Error,
    },
    /// There are more model-specific registers than KVM takes at a time.
    #[error("{0} model-specific registers are more than KVM takes")]
    TooMany(usize),
}

/// For `map_err`: KVM refuses `act`.
pub(super) fn kvm(act: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmStateError {
    move |source| KvmStateError::Kvm(act, source)
}

/// What is kept of a vCPU. Its CPUID is not among it: that is made anew, and is the same
/// (see [`Dependencies`](super::description::Dependencies)).
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    activity: u32,
    general: Raw<kvm_regs>,
    system: Raw<kvm_sregs>,
    events: Raw<kvm_vcpu_events>,
    /// 4 KiB: this process never asks for the one component that needs more, AMX's tiles.
    extended: Raw<kvm_xsave>,
    extended_control: Raw<kvm_xcrs>,
    debug: Raw<kvm_debugregs>,
    local_apic: Raw<kvm_lapic_state>,
    /// The frequency of the time stamp counter in kHz.
    tsc_khz: u32,
    /// Number and value of each model-specific register.
    model_specific: Vec<(u32, u64)>,
}

/// The numbers of the model-specific registers that may be there.
///
/// # Errors
/// When KVM does not say.
pub fn model_specific_registers(kvm_fd: &Kvm) -> Result<Vec<u32>, KvmStateError> {
    let listed = kvm_fd
        .get_msr_index_list()
        .map_err(kvm("listing model-specific registers"))?;
    let mut indices: Vec<u32> = listed.as_slice().to_vec();
    indices.extend(MEMORY_TYPES.into_iter().flatten());
    indices.sort_unstable();
    indices.dedup();
    Ok(indices)
}

impl VcpuState {
    /// The state of `vcpu`, which is outside the guest with nothing left to complete.
    ///
    /// # Errors
    /// When KVM does not give a part of it.
    pub fn read(vcpu: &VcpuFd, model_specific_registers: &[u32]) -> Result<Self, KvmStateError> {
        Ok(Self {
            // First, because reading it makes KVM take in the startup interrupts that have come.
            activity: vcpu
                .get_mp_state()
                .map_err(kvm("reading a vCPU's activity"))?
                .mp_state,
            general: Raw(vcpu.get_regs().map_err(kvm("reading general registers"))?),
            system: Raw(vcpu.get_sregs().map_err(kvm("reading system registers"))?),
            extended: Raw(vcpu.get_xsave().map_err(kvm("reading extended state"))?),
            extended_control: Raw(vcpu
                .get_xcrs()
                .map_err(kvm("reading extended control registers"))?),
            debug: Raw(vcpu.get_debug_regs().map_err(kvm("reading debug registers"))?),
            local_apic: Raw(vcpu.get_lapic().map_err(kvm("reading a local APIC"))?),
            tsc_khz: vcpu
                .get_tsc_khz()
                .map_err(kvm("reading the frequency of the time stamp counter"))?,
            model_specific: read_model_specific(vcpu, model_specific_registers)?,
            events: Raw(vcpu
                .get_vcpu_events()
                .map_err(kvm("reading pending exceptions and interrupts"))?),
        })
    }

    /// Makes this the state of `vcpu`, which is new and has its CPUID.
    ///
    /// # Errors
    /// When KVM does not take a part of it.
    pub fn write(&self, vcpu: &VcpuFd) -> Result<(), KvmStateError> {
        self.write_frequency(vcpu)?;
        let activity = kvm_mp_state {
            mp_state: self.activity,
        };
        vcpu.set_mp_state(activity)
            .map_err(kvm("setting a vCPU's activity"))?;
        // The local APIC's address and mode are among these, so they come before the local APIC.
        vcpu.set_sregs(&self.system.0)
            .map_err(kvm("setting system registers"))?;
        vcpu.set_regs(&self.general.0)
            .map_err(kvm("setting general registers"))?;
        vcpu.set_xcrs(&self.extended_control.0)
            .map_err(kvm("setting extended control registers"))?;
        // SAFETY: KVM reads 4 KiB, the size of the structure: only a process that asked for larger components has
        // larger images, and this one never does.
        unsafe { vcpu.set_xsave(&self.extended.0) }.map_err(kvm("setting extended state"))?;
        vcpu.set_debug_regs(&self.debug.0)
            .map_err(kvm("setting debug registers"))?;
        // It says how the timer is used, without which the deadline is not taken.
        vcpu.set_lapic(&self.local_apic.0)
            .map_err(kvm("setting a local APIC"))?;
        self.write_model_specific(vcpu)?;
        // After the system registers, which also hold an interrupt.
        vcpu.set_vcpu_events(&self.events.0)
            .map_err(kvm("setting pending exceptions and interrupts"))
    }

    /// Has KVM scale the counter if this host's runs at another frequency; within 250 parts in a million it does not
    /// need to.
    fn write_frequency(&self, vcpu: &VcpuFd) -> Result<(), KvmStateError> {
        let here = vcpu
            .get_tsc_khz()
            .map_err(kvm("reading the frequency of the time stamp counter"))?;
        if here == self.tsc_khz {
            return Ok(());
        }
        vcpu.set_tsc_khz(self.tsc_khz)
            .map_err(kvm("setting the frequency of the time stamp counter"))
    }

    /// Has the counter go on from `wanted`, also where KVM does not take its value for what it is.
    fn write_time_stamp_counter(&self, vcpu: &VcpuFd, wanted: u64) -> Result<(), KvmStateError> {
        let refused = KvmStateError::ModelSpecific {
            index: TIME_STAMP_COUNTER,
            value: wanted,
        };
        // This process may have to wait between one call and the next.
        let begun = Instant::now();
        let taken = vcpu
            .set_msrs(&entries(&[(TIME_STAMP_COUNTER, wanted)])?)
            .map_err(kvm("setting the time stamp counter"))?;
        let read = read_model_specific(vcpu, &[TIME_STAMP_COUNTER])?;
        let (1, &[(_, now)]) = (taken, read.as_slice()) else {
            return Err(refused);
        };
        let since = begun.elapsed();
        if was_set(wanted, now, self.tsc_khz, since) {
            return Ok(());
        }
        let wanted = wanted.wrapping_add(ticks(self.tsc_khz, since));
        move_by_its_offset(vcpu, wanted, now).map_err(|source| KvmStateError::TimeStampCounter {
            now,
            wanted,
            source,
        })
    }

    /// The counter comes first and the deadline, which is a time of that counter, last.
    fn write_model_specific(&self, vcpu: &VcpuFd) -> Result<(), KvmStateError> {
        let rank = |index| match index {
            TIME_STAMP_COUNTER => 0,
            TSC_DEADLINE => 2,
            _ => 1,
        };
        let mut registers = self.model_specific.clone();
        registers.sort_by_key(|(index, _)| rank(*index));
        let mut rest = registers.as_slice();
        if let [(TIME_STAMP_COUNTER, wanted), after @ ..] = rest {
            self.write_time_stamp_counter(vcpu, *wanted)?;
            rest = after;
        }
        while let [(index, value), after @ ..] = rest {
            let taken = vcpu
                .set_msrs(&entries(rest)?)
                .map_err(kvm("setting model-specific registers"))?;
            rest = rest.get(taken..).unwrap_or_default();
            if taken > 0 {
                continue;
            }
            // KVM stopped at the first one. It may not be there to be set, and hold the value all the same.
            let there = read_model_specific(vcpu, &[*index])?;
            if there != [(*index, *value)] {
                return Err(KvmStateError::ModelSpecific {
                    index: *index,
                    value: *value,
                });
            }
            rest = after;
        }
        Ok(())
    }
}

/// The registers among `indices` that can be read.
fn read_model_specific(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, KvmStateError> {
    let wanted: Vec<(u32, u64)> = indices.iter().map(|index| (*index, 0)).collect();
    let mut registers = Vec::with_capacity(wanted.len());
    let mut rest = wanted.as_slice();
    while !rest.is_empty() {
        let mut buffer = entries(rest)?;
        let read = vcpu
            .get_msrs(&mut buffer)
            .map_err(kvm("reading model-specific registers"))?;
        let values = buffer.as_slice().iter().take(read);
        registers.extend(values.map(|entry| (entry.index, entry.data)));
        // KVM stops at the first one that this vCPU does not have.
        rest = rest.get(read + 1..).unwrap_or_default();
    }
    Ok(registers)
}

fn entries(registers: &[(u32, u64)]) -> Result<Msrs, KvmStateError> {
    let entries: Vec<kvm_msr_entry> = registers
        .iter()
        .map(|(index, data)| kvm_msr_entry {
            index: *index,
            data: *data,
            ..Default::default()
        })
        .collect();
    Msrs::from_entries(&entries).map_err(|_| KvmStateError::TooMany(entries.len()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_HALTED, KVM_MP_STATE_UNINITIALIZED, kvm_xcr};
    use kvm_ioctls::VmFd;

    use super::*;
    use crate::boot::registers::set_boot_registers;

    const KERNEL_GS_BASE: u32 = 0xc000_0102;
    const STAR: u32 = 0xc000_0081;

    /// Two vCPUs that never run.
    struct Vcpus {
        vcpus: [VcpuFd; 2],
        registers: Vec<u32>,
        _vm: VmFd,
    }

    fn vcpus() -> Option<Vcpus> {
        let Ok(kvm_fd) = Kvm::new() else {
            eprintln!("SKIPPED: /dev/kvm cannot be opened; nothing was tested");
            return None;
        };
        let vm = kvm_fd.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let cpuid = kvm_fd.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        let vcpus = [0, 1].map(|index| {
            let vcpu = vm.create_vcpu(index).unwrap();
            vcpu.set_cpuid2(&cpuid).unwrap();
            vcpu
        });
        Some(Vcpus {
            vcpus,
            registers: model_specific_registers(&kvm_fd).unwrap(),
            _vm: vm,
        })
    }

    /// Gives `vcpu` a value of its own in each kind of state.
    fn mark(vcpu: &VcpuFd) {
        set_boot_registers(vcpu, 0x1234_5678).unwrap();
        let mut regs = vcpu.get_regs().unwrap();
        (regs.rbx, regs.r15) = (0xb0b, 0xfeed_0000_0000_0015);
        vcpu.set_regs(&regs).unwrap();
        let mut sregs = vcpu.get_sregs().unwrap();
        sregs.cr2 = 0xdead_b000;
        vcpu.set_sregs(&sregs).unwrap();
        let mut xcrs = vcpu.get_xcrs().unwrap();
        xcrs.nr_xcrs = 1;
        xcrs.xcrs[0] = kvm_xcr {
            value: 7,
            ..Default::default()
        };
        vcpu.set_xcrs(&xcrs).unwrap();
        let mut xsave = vcpu.get_xsave().unwrap();
        // XSTATE_BV: x87, SSE and AVX; then XMM0 and, at the place the standard format has it, YMM0's upper half.
        xsave.region[128] = 7;
        xsave.region[40..44].fill(0x5353_4553);
        xsave.region[144..148].fill(0x5856_4121);
        // SAFETY: KVM reads 4 KiB, the size of the structure.
        unsafe { vcpu.set_xsave(&xsave) }.unwrap();
        let mut debug = vcpu.get_debug_regs().unwrap();
        debug.db[0] = 0x40_1000;
        vcpu.set_debug_regs(&debug).unwrap();
        let mut apic = vcpu.get_lapic().unwrap();
        // The timer's vector and mode (deadline), and an interrupt that is waiting (vector 0x31).
        apic.regs[0xf1] = 1;
        apic.regs[0x320..0x323].copy_from_slice(&[0x40, 0, 4]);
        apic.regs[0x212] = 2;
        vcpu.set_lapic(&apic).unwrap();
        let entries = entries(&[(STAR, 0x23_0010 << 32), (KERNEL_GS_BASE, 0xffff_8880_0000_0000)]).unwrap();
        assert_eq!(vcpu.set_msrs(&entries).unwrap(), 2);
        let mut events = vcpu.get_vcpu_events().unwrap();
        (events.exception.injected, events.exception.nr) = (1, 14);
        (events.exception.has_error_code, events.exception.error_code) = (1, 6);
        vcpu.set_vcpu_events(&events).unwrap();
    }

    /// What must be the same in the copy: all but the counter, which goes on.
    fn comparable(mut state: VcpuState) -> serde_json::Value {
        state
            .model_specific
            .retain(|(index, _)| *index != TIME_STAMP_COUNTER);
        serde_json::to_value(state).unwrap()
    }

    fn through_json(state: &VcpuState) -> VcpuState {
        serde_json::from_str(&serde_json::to_string(state).unwrap()).unwrap()
    }

    #[test]
    fn every_part_of_a_vcpus_state_reaches_another() {
        let (Some(from), Some(to)) = (vcpus(), vcpus()) else {
            return;
        };
        for vcpu in &from.vcpus {
            mark(vcpu);
        }
        for (from_vcpu, to_vcpu) in from.vcpus.iter().zip(&to.vcpus) {
            let state = VcpuState::read(from_vcpu, &from.registers).unwrap();
            through_json(&state).write(to_vcpu).unwrap();
            let copy = VcpuState::read(to_vcpu, &to.registers).unwrap();
            assert_eq!(comparable(copy), comparable(state));

            let xsave = to_vcpu.get_xsave().unwrap();
            assert_eq!(xsave.region[40..44], [0x5353_4553; 4]);
            assert_eq!(xsave.region[144..148], [0x5856_4121; 4]);
            assert_eq!(to_vcpu.get_regs().unwrap().rbx, 0xb0b);
            assert_eq!(to_vcpu.get_vcpu_events().unwrap().exception.error_code, 6);
            assert_eq!(to_vcpu.get_lapic().unwrap().regs[0x212], 2);
            let star = read_model_specific(to_vcpu, &[STAR]).unwrap();
            assert_eq!(star, [(STAR, 0x23_0010 << 32)]);
        }
    }

    #[test]
    fn the_counter_of_a_guest_in_its_first_second_goes_on_where_it_was() {
        let (Some(from), Some(to)) = (vcpus(), vcpus()) else {
            return;
        };
        let counter = |vcpu: &VcpuFd| read_model_specific(vcpu, &[TIME_STAMP_COUNTER]).unwrap()[0].1;
        let mut states = from
            .vcpus
            .each_ref()
            .map(|vcpu| VcpuState::read(vcpu, &from.registers).unwrap());
        let hundred_ms = u64::from(states[0].tsc_khz) * 100;
        let [probe, _] = &from.vcpus;
        let now = counter(probe);
        move_by_its_offset(probe, now + 1000 * hundred_ms, now).unwrap();
        if counter(probe) < now + 1000 * hundred_ms {
            eprintln!("SKIPPED: this KVM has guests see the host's time stamp counter; nothing was tested");
            return;
        }
        // Linux since 6.7 takes the first write of a machine for what it is, and those after it as all did before.
        for age in [1, 4, 2] {
            let wanted = age * hundred_ms;
            for state in &mut states {
                let mut registers = state.model_specific.iter_mut();
                let (_, value) = registers.find(|(index, _)| *index == TIME_STAMP_COUNTER).unwrap();
                *value = wanted;
            }
            let now = [0, 1].map(|index: usize| {
                states[index].write(&to.vcpus[index]).unwrap();
                counter(&to.vcpus[index])
            });
            // Others use this machine's processors too.
            let near = wanted - hundred_ms / 10..wanted + hundred_ms;
            assert!(
                now.iter().all(|now| near.contains(now)),
                "{now:?} are not {wanted}"
            );
        }
    }

    #[test]
    fn a_counter_is_where_it_was_set_a_moment_later_and_nowhere_else() {
        let khz = 2_000_000;
        let ms = u64::from(khz);
        let (at_once, later) = (Duration::from_micros(1), Duration::from_millis(400));
        for (wanted, now, since, expected) in [
            (500 * ms, 500 * ms + 2000, at_once, true),
            (500 * ms, 509 * ms, at_once, true),
            (500 * ms, 3 * ms, at_once, false),
            (3 * ms, 500 * ms, at_once, false),
            (u64::MAX, 5 * ms, at_once, true),
            (500 * ms, 900 * ms, later, true),
            (500 * ms, 500 * ms, later, false),
        ] {
            assert_eq!(was_set(wanted, now, khz, since), expected, "{wanted} {now}");
        }
        assert_eq!(ticks(khz, later), 400 * ms);
    }

    #[test]
    fn a_vcpu_that_was_never_started_stays_so() {
        let (Some(from), Some(to)) = (vcpus(), vcpus()) else {
            return;
        };
        let state = VcpuState::read(&from.vcpus[1], &from.registers).unwrap();
        assert_eq!(state.activity, KVM_MP_STATE_UNINITIALIZED);
        state.write(&to.vcpus[1]).unwrap();
        let halted = kvm_mp_state {
            mp_state: KVM_MP_STATE_HALTED,
        };
        from.vcpus[1].set_mp_state(halted).unwrap();
        let state = VcpuState::read(&from.vcpus[1], &from.registers).unwrap();
        state.write(&to.vcpus[1]).unwrap();
        assert_eq!(to.vcpus[1].get_mp_state().unwrap(), halted);
    }

    #[test]
    fn a_register_that_cannot_be_read_is_left_out_and_the_next_is_not() {
        let Some(Vcpus { vcpus: [vcpu, _], .. }) = vcpus() else {
            return;
        };
        let nobodys = 0x1234_5678;
        let read = read_model_specific(&vcpu, &[nobodys, STAR, nobodys, KERNEL_GS_BASE, nobodys]).unwrap();
        let indices: Vec<u32> = read.iter().map(|(index, _)| *index).collect();
        assert_eq!(indices, [STAR, KERNEL_GS_BASE]);
    }

    #[test]
    fn a_register_that_cannot_be_set_is_named() {
        let Some(Vcpus {
            vcpus: [vcpu, other],
            registers,
            _vm,
        }) = vcpus()
        else {
            return;
        };
        let mut state = VcpuState::read(&vcpu, &registers).unwrap();
        state.model_specific.insert(3, (0x1234_5678, 9));
        assert_eq!(
            state.write(&other).unwrap_err().to_string(),
            "KVM does not take 0x9 as model-specific register 0x12345678"
        );
    }
}
