//! A vCPU's extended state as KVM gives and takes it: the standard XSAVE format.

use std::ops::Range;

use kvm_bindings::kvm_xsave;

use super::layout::Component;

/// Bits of XCR0, and of what follows it.
pub(in crate::completion) const X87: u64 = 1;
pub(in crate::completion) const SSE: u64 = 1 << 1;
pub(in crate::completion) const AVX: u64 = 1 << 2;

/// `KVM_GET_XSAVE` fills this much.
pub(super) const IMAGE_BYTES: usize = 4096;

/// x87 control, status and pointers, up to MXCSR; and the x87 registers behind it.
pub(super) const X87_BEFORE_MXCSR: Range<usize> = 0..24;
pub(super) const X87_REGISTERS: Range<usize> = 32..160;
/// MXCSR and the mask of its usable bits.
pub(super) const MXCSR: Range<usize> = 24..28;
pub(super) const MXCSR_MASK: Range<usize> = 28..32;
pub(super) const XMM: Range<usize> = 160..416;
/// The header.
pub(super) const XSTATE_BV: Range<usize> = 512..520;
pub(super) const XCOMP_BV: Range<usize> = 520..528;
/// Where components beyond the legacy region begin, in both formats.
pub(super) const EXTENDED_START: usize = 576;

const X87_CONTROL: Range<usize> = 0..2;
const X87_STATUS: Range<usize> = 2..4;
/// The upper halves of the x87 pointers: selectors, if the pointers are 32 bits wide.
const UPPER_POINTER_HALVES: [Range<usize>; 2] = [12..16, 20..24];
const INITIAL_X87_CONTROL: u16 = 0x37f;
const INITIAL_MXCSR: u32 = 0x1f80;

/// The whole image. Components that are not marked in use are in their initial configuration, whatever their bytes.
#[derive(Clone, PartialEq, Eq)]
#[repr(align(64))]
pub(in crate::completion) struct XsaveImage([u8; IMAGE_BYTES]);

impl Default for XsaveImage {
    /// All components in their initial configuration.
    fn default() -> XsaveImage {
        let mut image = XsaveImage([0; IMAGE_BYTES]);
        image.set_field(X87_CONTROL, INITIAL_X87_CONTROL.to_le_bytes());
        image.set_field(MXCSR, INITIAL_MXCSR.to_le_bytes());
        image
    }
}

impl XsaveImage {
    pub(in crate::completion) fn from_kvm(xsave: &kvm_xsave) -> XsaveImage {
        let mut image = XsaveImage([0; IMAGE_BYTES]);
        for (bytes, word) in image.0.chunks_exact_mut(4).zip(xsave.region) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        image
    }

    pub(in crate::completion) fn to_kvm(&self) -> kvm_xsave {
        let mut xsave = kvm_xsave::default();
        for (word, bytes) in xsave.region.iter_mut().zip(self.0.as_chunks().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        xsave
    }

    pub(in crate::completion) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(in crate::completion) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// XSTATE_BV: which components are not in their initial configuration.
    pub(in crate::completion) fn components_in_use(&self) -> u64 {
        u64::from_le_bytes(self.field(XSTATE_BV))
    }

    pub(in crate::completion) fn set_components_in_use(&mut self, components: u64) {
        self.set_field(XSTATE_BV, components.to_le_bytes());
    }

    pub(in crate::completion) fn x87_status(&self) -> u16 {
        if self.components_in_use() & X87 == 0 {
            0
        } else {
            u16::from_le_bytes(self.field(X87_STATUS))
        }
    }

    pub(in crate::completion) fn mxcsr(&self) -> u32 {
        u32::from_le_bytes(self.field(MXCSR))
    }

    /// Sets MXCSR, and marks SSE in use where that is needed to keep it.
    pub(in crate::completion) fn set_mxcsr(&mut self, value: u32) {
        self.set_field(MXCSR, value.to_le_bytes());
        self.mark_sse_if_mxcsr_is_set();
    }

    pub(super) fn set_mxcsr_mask(&mut self, mask: u32) {
        self.set_field(MXCSR_MASK, mask.to_le_bytes());
    }

    /// Makes SSE, which carries MXCSR, count as in use while MXCSR is not initial. Processors do so for the compacted
    /// format only; KVM needs it too.
    pub(super) fn mark_sse_if_mxcsr_is_set(&mut self) {
        let in_use = self.components_in_use();
        if self.mxcsr() != INITIAL_MXCSR && in_use & SSE == 0 {
            self.0[XMM].fill(0);
            self.set_components_in_use(in_use | SSE);
        }
    }

    /// Puts the x87 state in its initial configuration.
    pub(super) fn initialise_x87(&mut self) {
        self.0[X87_BEFORE_MXCSR].fill(0);
        self.0[X87_REGISTERS].fill(0);
        self.set_field(X87_CONTROL, INITIAL_X87_CONTROL.to_le_bytes());
        self.set_components_in_use(self.components_in_use() & !X87);
    }

    /// Puts the XMM registers, not MXCSR, in their initial configuration.
    pub(super) fn initialise_sse(&mut self) {
        self.0[XMM].fill(0);
        self.set_components_in_use(self.components_in_use() & !SSE);
    }

    pub(super) fn initialise_mxcsr(&mut self) {
        self.set_field(MXCSR, INITIAL_MXCSR.to_le_bytes());
    }

    /// Puts a component beyond the legacy region in its initial configuration, which is all zero.
    pub(super) fn initialise(&mut self, component: &Component) {
        if let Some(bytes) = self.0.get_mut(component.standard()) {
            bytes.fill(0);
        }
        self.set_components_in_use(self.components_in_use() & !component.bit());
    }

    /// Cuts the x87 pointers to 32 bits. The selectors of that format are 0, as on processors that no longer save them
    /// (CPUID leaf 7, EBX bit 13); in 64-bit mode they mean nothing.
    pub(super) fn narrow_pointers(&mut self) {
        for half in UPPER_POINTER_HALVES {
            self.0[half].fill(0);
        }
    }

    fn field<const N: usize>(&self, range: Range<usize>) -> [u8; N] {
        self.0[range].first_chunk().copied().unwrap_or([0; N])
    }

    fn set_field<const N: usize>(&mut self, range: Range<usize>, bytes: [u8; N]) {
        self.0[range].copy_from_slice(&bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_goes_to_kvm_and_back_unchanged() {
        let mut image = XsaveImage::default();
        for (index, byte) in image.bytes_mut().iter_mut().enumerate() {
            *byte = (index % 251) as u8;
        }
        assert!(XsaveImage::from_kvm(&image.to_kvm()) == image);
    }

    #[test]
    fn setting_mxcsr_marks_sse_in_use_with_clear_registers() {
        let mut image = XsaveImage::default();
        image.bytes_mut()[XMM].fill(0xee);
        image.set_mxcsr(0x1fa0);
        assert_eq!(image.components_in_use(), SSE);
        assert!(image.bytes()[XMM].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn setting_mxcsr_keeps_registers_that_are_in_use() {
        let mut image = XsaveImage::default();
        image.bytes_mut()[XMM].fill(0xee);
        image.set_components_in_use(SSE);
        image.set_mxcsr(0x1fa0);
        assert!(image.bytes()[XMM].iter().all(|byte| *byte == 0xee));
    }

    #[test]
    fn the_status_of_an_initial_x87_is_zero_whatever_its_bytes() {
        let mut image = XsaveImage::default();
        image.bytes_mut()[2] = 0x80;
        assert_eq!(image.x87_status(), 0);
        image.set_components_in_use(X87);
        assert_eq!(image.x87_status(), 0x80);
    }
}
