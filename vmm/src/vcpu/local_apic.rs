//! The local APIC's pins, as firmware leaves them: LINT0 takes the interrupt controller's line, LINT1 is the
//! non-maskable interrupt (MultiProcessor Specification 1.4, section 3.6.2.2).

use kvm_bindings::kvm_lapic_state;
use kvm_ioctls::VcpuFd;

/// Offsets of the pins' entries in the local vector table (Intel SDM volume 3, section 11.5.1).
const LINT0: usize = 0x350;
const LINT1: usize = 0x360;
/// The delivery mode field and its values.
const DELIVERY_MODE: u32 = 0x700;
const NON_MASKABLE: u32 = 0x400;
const EXTERNAL_INTERRUPT: u32 = 0x700;

/// Sets the two pins of `vcpu`.
///
/// # Errors
/// When KVM has no local APIC for it.
pub fn set_pins(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut state = vcpu.get_lapic()?;
    set_delivery_mode(&mut state, LINT0, EXTERNAL_INTERRUPT);
    set_delivery_mode(&mut state, LINT1, NON_MASKABLE);
    vcpu.set_lapic(&state)
}

/// `entry` is one of the constants above, far inside the page of registers.
fn set_delivery_mode(state: &mut kvm_lapic_state, entry: usize, mode: u32) {
    let register = &mut state.regs[entry..entry + 4];
    let mut bytes = [0; 4];
    for (byte, signed) in bytes.iter_mut().zip(register.iter()) {
        *byte = signed.cast_unsigned();
    }
    let value = u32::from_le_bytes(bytes) & !DELIVERY_MODE | mode;
    for (signed, byte) in register.iter_mut().zip(value.to_le_bytes()) {
        *signed = byte.cast_signed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delivery_mode_changes_and_the_mask_bit_stays() {
        let mut state = kvm_lapic_state::default();
        state.regs[LINT1 + 2] = 1;
        set_delivery_mode(&mut state, LINT1, NON_MASKABLE);
        assert_eq!(state.regs[LINT1..LINT1 + 4], [0, 4, 1, 0]);
    }
}
