//! Where state components lie: CPUID leaf 0xD.
//!
//! The offsets are the processor's own. AMD's differ from Intel's: its AVX-512 components start at 832, 896 and 1408,
//! where Intel's start at 1088, 1152 and 1664.

use std::arch::x86_64::_fxsave64;
use std::ops::Range;

use kvm_bindings::CpuId;

use super::image::{AVX, EXTENDED_START, IMAGE_BYTES, SSE, X87, XsaveImage};
use crate::completion::error::Cause;

const XSTATE_LEAF: u32 = 0xd;
const COMPONENTS: u32 = 63;
const PROTECTION_KEYS: u32 = 9;
/// Bits of the leaf's ECX for a component: it is a supervisor one; it is aligned to 64 bytes when compacted.
const SUPERVISOR: u32 = 1;
const ALIGNED: u32 = 1 << 1;
/// Bit of subleaf 1's EAX: XGETBV can be asked what is in use.
const IN_USE_REGISTER: u32 = 1 << 2;

/// One user component beyond the legacy region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::completion) struct Component {
    number: u32,
    offset: usize,
    size: usize,
    aligned: bool,
}

impl Component {
    pub(super) fn bit(&self) -> u64 {
        1 << self.number
    }

    /// Its bytes in the standard format, and so in KVM's image.
    pub(super) fn standard(&self) -> Range<usize> {
        self.offset..self.offset + self.size
    }
}

/// The layout of XSAVE areas on one processor.
#[derive(Debug, Clone)]
pub(in crate::completion) struct XsaveLayout {
    components: Vec<Component>,
    supervisor: u64,
    in_use_register: bool,
    mxcsr_mask: u32,
}

impl XsaveLayout {
    /// Reads a vCPU's CPUID.
    pub(in crate::completion) fn from_cpuid(cpuid: &CpuId) -> Result<XsaveLayout, Cause> {
        let subleaf = |index| {
            cpuid
                .as_slice()
                .iter()
                .find(|leaf| leaf.function == XSTATE_LEAF && leaf.index == index)
        };
        let user = subleaf(0).map_or(0, |leaf| u64::from(leaf.eax) | u64::from(leaf.edx) << 32);
        let supervisor = subleaf(1).map_or(0, |leaf| u64::from(leaf.ecx) | u64::from(leaf.edx) << 32);
        let mut components = Vec::new();
        for number in (2..COMPONENTS).filter(|number| user >> number & 1 != 0) {
            let Some(leaf) = subleaf(number).filter(|leaf| leaf.ecx & SUPERVISOR == 0) else {
                continue;
            };
            let (offset, size) = (leaf.ebx as usize, leaf.eax as usize);
            let end = offset.saturating_add(size);
            if offset < EXTENDED_START || end > IMAGE_BYTES {
                return Err(Cause::ComponentOutsideImage {
                    component: number,
                    offset,
                    size,
                });
            }
            components.push(Component {
                number,
                offset,
                size,
                aligned: leaf.ecx & ALIGNED != 0,
            });
        }
        Ok(XsaveLayout {
            components,
            supervisor,
            in_use_register: subleaf(1).is_some_and(|leaf| leaf.eax & IN_USE_REGISTER != 0),
            mxcsr_mask: host_mxcsr_mask(),
        })
    }

    /// All components that can be enabled in XCR0.
    pub(in crate::completion) fn user_components(&self) -> u64 {
        self.components
            .iter()
            .fold(X87 | SSE, |all, component| all | component.bit())
    }

    /// All components that can be enabled in IA32_XSS.
    pub(in crate::completion) fn supervisor_components(&self) -> u64 {
        self.supervisor
    }

    /// Whether `xgetbv` knows register 1.
    pub(in crate::completion) fn has_in_use_register(&self) -> bool {
        self.in_use_register
    }

    /// The bits of MXCSR that can be set.
    pub(in crate::completion) fn mxcsr_mask(&self) -> u32 {
        self.mxcsr_mask
    }

    /// PKRU, which is a component like another.
    pub(in crate::completion) fn protection_keys(&self, image: &XsaveImage) -> u32 {
        let component = self
            .components
            .iter()
            .find(|component| component.number == PROTECTION_KEYS);
        component
            .filter(|component| image.components_in_use() & component.bit() != 0)
            .and_then(|component| image.bytes().get(component.standard())?.first_chunk())
            .map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    /// The components beyond the legacy region that are in `components`, each with its offset in the standard format.
    pub(super) fn standard(&self, components: u64) -> impl Iterator<Item = (&Component, usize)> {
        self.components
            .iter()
            .filter(move |component| component.bit() & components != 0)
            .map(|component| (component, component.offset))
    }

    /// The same in the compacted format, where `components` (XCOMP_BV) follow one another without gaps.
    pub(super) fn compacted(&self, components: u64) -> impl Iterator<Item = (&Component, usize)> {
        let mut next = EXTENDED_START;
        self.standard(components).map(move |(component, _)| {
            let offset = if component.aligned {
                next.next_multiple_of(64)
            } else {
                next
            };
            next = offset + component.size;
            (component, offset)
        })
    }
}

/// MXCSR_MASK of the processor we run on, which is the guest's. 0 stands for the value of the first processors that
/// had no mask (SDM volume 1, 11.6.6).
fn host_mxcsr_mask() -> u32 {
    #[repr(align(16))]
    struct LegacyRegion([u8; 512]);

    let mut region = LegacyRegion([0; 512]);
    // SAFETY: FXSAVE writes 512 bytes to 16-byte aligned memory, and every x86-64 processor has it.
    unsafe { _fxsave64(region.0.as_mut_ptr()) };
    match region.0[28..]
        .first_chunk()
        .map_or(0, |bytes| u32::from_le_bytes(*bytes))
    {
        0 => 0xffbf,
        mask => mask,
    }
}

/// Whether MXCSR is among `components` in the standard format, where SSE and AVX both carry it.
pub(super) const fn carries_mxcsr(components: u64) -> bool {
    components & (SSE | AVX) != 0
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_cpuid_entry2;

    use super::*;
    use crate::completion::test_cpu::xstate_leaf as leaf;

    fn layout(leaves: &[kvm_cpuid_entry2]) -> Result<XsaveLayout, Cause> {
        XsaveLayout::from_cpuid(&CpuId::from_entries(leaves).unwrap())
    }

    /// Zen 4: AVX, AVX-512 and PKRU.
    fn amd() -> XsaveLayout {
        let leaves = [
            leaf(0, 0x2e7, 0, 0),
            leaf(1, 0xf, 0, 0x1800),
            leaf(2, 256, 576, 0),
            leaf(5, 64, 832, 0),
            leaf(6, 512, 896, 0),
            leaf(7, 1024, 1408, 0),
            leaf(9, 8, 2432, 0),
        ];
        layout(&leaves).unwrap()
    }

    fn offsets<'a>(places: impl Iterator<Item = (&'a Component, usize)>) -> Vec<(u32, usize)> {
        places
            .map(|(component, offset)| (component.number, offset))
            .collect()
    }

    #[test]
    fn standard_offsets_are_those_of_cpuid() {
        let expected = [(2, 576), (5, 832), (6, 896), (7, 1408), (9, 2432)];
        assert_eq!(offsets(amd().standard(u64::MAX)), expected);
    }

    #[test]
    fn compacted_components_follow_one_another() {
        assert_eq!(
            offsets(amd().compacted(0x2a4)),
            [(2, 576), (5, 832), (7, 896), (9, 1920)]
        );
        assert_eq!(offsets(amd().compacted(0x240)), [(6, 576), (9, 1088)]);
    }

    #[test]
    fn a_compacted_component_that_asks_for_it_is_aligned() {
        let leaves = [
            leaf(0, 0x60203, 0, 0),
            leaf(9, 8, 2432, 0),
            leaf(17, 64, 2752, 2),
            leaf(18, 1024, 2816, 2),
        ];
        assert_eq!(
            offsets(layout(&leaves).unwrap().compacted(0x60200)),
            [(9, 576), (17, 640), (18, 704)]
        );
    }

    #[test]
    fn all_components_of_cpuid_are_known_with_the_legacy_ones() {
        assert_eq!(amd().user_components(), 0x2e7);
        assert_eq!(amd().supervisor_components(), 0x1800);
    }

    #[test]
    fn a_processor_without_the_leaf_has_the_legacy_components() {
        assert_eq!(layout(&[]).unwrap().user_components(), 3);
    }

    #[test]
    fn a_component_outside_the_image_is_refused() {
        for (offset, size) in [(2816, 8192), (512, 64), (u32::MAX, u32::MAX)] {
            let error = layout(&[leaf(0, 1 << 18, 0, 0), leaf(18, size, offset, 0)]).unwrap_err();
            assert!(
                matches!(error, Cause::ComponentOutsideImage { component: 18, .. }),
                "{error}"
            );
        }
    }

    #[test]
    fn protection_keys_are_read_where_they_are_in_use() {
        let mut image = XsaveImage::default();
        image.bytes_mut()[2432..2436].copy_from_slice(&0x5555_5554_u32.to_le_bytes());
        assert_eq!(amd().protection_keys(&image), 0);
        image.set_components_in_use(1 << 9);
        assert_eq!(amd().protection_keys(&image), 0x5555_5554);
    }

    #[test]
    fn the_hosts_mxcsr_mask_allows_the_initial_value() {
        assert_eq!(host_mxcsr_mask() & 0x1f80, 0x1f80);
        assert_eq!(host_mxcsr_mask() >> 18, 0);
    }
}
