//! Our XSAVE formats against the processor's, on random states, component masks and areas.

use std::ops::Range;

use proptest::prelude::*;

use super::area::Area;
use super::image::XsaveImage;
use super::layout::XsaveLayout;
use super::native::{self, NativeArea};
use super::restore::{Format, Header, Restore, restore};
use super::save::{Save, save};
use super::{RestoreForm, SaveForm};
use crate::completion::error::Stop;
use crate::completion::test_cpu::fill_with_noise;

const XSTATE_BV: Range<usize> = 512..520;
const HEADER: Range<usize> = 512..576;
const COMPACTED: u64 = 1 << 63;
/// Bits of MXCSR that every processor has.
const USABLE_MXCSR: u32 = 0xffbf;

impl Area for NativeArea {
    fn read(&mut self, offset: usize, bytes: &mut [u8]) -> Result<(), Stop> {
        bytes.copy_from_slice(&self.0[offset..offset + bytes.len()]);
        Ok(())
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Stop> {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn check_write(&mut self, _offset: usize, _length: usize) -> Result<(), Stop> {
        Ok(())
    }
}

/// An area of random bytes.
fn noise() -> impl Strategy<Value = NativeArea> {
    any::<u64>().prop_map(|seed| {
        let mut area = NativeArea::new();
        fill_with_noise(&mut area.0, seed);
        area
    })
}

/// An area that XRSTOR accepts, in the standard format: random bytes in a random choice of components.
fn state(layout: &XsaveLayout) -> impl Strategy<Value = NativeArea> + use<> {
    let all = layout.user_components();
    (noise(), any::<u64>()).prop_map(move |(mut area, components)| {
        area.0[HEADER].fill(0);
        area.0[XSTATE_BV].copy_from_slice(&(components & all).to_le_bytes());
        limit_mxcsr(&mut area);
        area
    })
}

/// The same with a compacted header whose XCOMP_BV and XSTATE_BV are random.
fn compacted(layout: &XsaveLayout) -> impl Strategy<Value = NativeArea> + use<> {
    let all = layout.user_components();
    (state(layout), any::<u64>()).prop_map(move |(mut area, present)| {
        let in_use = u64::from_le_bytes(area.0[XSTATE_BV].try_into().unwrap());
        area.0[XSTATE_BV].copy_from_slice(&(in_use & present & all).to_le_bytes());
        area.0[520..528].copy_from_slice(&(present & all | COMPACTED).to_le_bytes());
        area
    })
}

fn limit_mxcsr(area: &mut NativeArea) {
    let mxcsr = u32::from_le_bytes(area.0[24..28].try_into().unwrap()) & USABLE_MXCSR;
    area.0[24..28].copy_from_slice(&mxcsr.to_le_bytes());
}

fn image_of(area: &NativeArea) -> XsaveImage {
    let mut image = XsaveImage::default();
    image.bytes_mut().copy_from_slice(&area.0);
    image
}

type NativeSave = fn(&NativeArea, u64, &mut NativeArea, &mut NativeArea);

/// Saves the same state into two copies of `before`: the processor's area, and ours.
fn save_both(
    layout: &XsaveLayout,
    form: SaveForm,
    wide_pointers: bool,
    native: NativeSave,
    state: &NativeArea,
    components: u64,
    before: &NativeArea,
) -> (NativeArea, NativeArea) {
    let (mut image, mut expected, mut ours) = (NativeArea::new(), before.clone(), before.clone());
    // The processor may have components that the layout leaves out: protection keys and AMX.
    let components = components & layout.user_components();
    native(state, components, &mut image, &mut expected);
    let request = Save {
        components,
        form,
        wide_pointers,
    };
    save(&mut image_of(&image), layout, &request, &mut ours).unwrap();
    (expected, ours)
}

/// Compares byte by byte, and names the first difference.
fn assert_same(expected: &NativeArea, ours: &NativeArea) {
    for (offset, (expected, ours)) in expected.0.iter().zip(&ours.0).enumerate() {
        assert_eq!(expected, ours, "byte {offset}");
    }
}

/// Restores the same area over the same state. Both results pass through the processor, which drops bits that it does
/// not have, and are saved by it with initial values for what is not in use. Whether it counts a component as in use
/// that holds initial values is its own business.
fn restore_both(
    layout: &XsaveLayout,
    wide_pointers: bool,
    state: &NativeArea,
    components: u64,
    area: &NativeArea,
) -> (NativeArea, NativeArea) {
    let all = layout.user_components();
    let restore_natively = if wide_pointers {
        native::xrstor64
    } else {
        native::xrstor
    };
    let components = components & all;
    let mut expected = restore_natively(state, components, area);
    let before = native::xrstor64(state, 0, area);
    let request = Restore {
        components,
        enabled: all,
        form: RestoreForm::User,
        wide_pointers,
    };
    let mut area = area.clone();
    let header = Header::read(&mut area).unwrap();
    let format = header.check(&request).unwrap();
    let mut image = match request.sets_everything(layout) {
        true => XsaveImage::default(),
        false => image_of(&before),
    };
    restore(&mut image, layout, &request, &header, format, &mut area).unwrap();
    let mut ours = NativeArea::new();
    ours.0.copy_from_slice(image.bytes());
    let mut ours = native::xrstor64(&ours, 0, &ours);
    expected.0[XSTATE_BV].fill(0);
    ours.0[XSTATE_BV].fill(0);
    (expected, ours)
}

macro_rules! save_agrees_with_the_processor {
    ($name:ident, $form:expr, $wide:expr, $native:path, $ignored:expr) => {
        #[test]
        fn $name() {
            let Some(layout) = native::layout_or_skip(stringify!($name)) else { return };
            proptest!(|(state in state(&layout), before in noise(), components in any::<u64>())| {
                let (mut expected, mut ours) =
                    save_both(&layout, $form, $wide, $native, &state, components, &before);
                for range in $ignored {
                    let range: Range<usize> = range;
                    expected.0[range.clone()].fill(0);
                    ours.0[range].fill(0);
                }
                assert_same(&expected, &ours);
            });
        }
    };
}

/// Without REX.W a processor may still save selectors of the x87 pointers; KVM's image does not have them.
const SELECTORS: [Range<usize>; 2] = [12..16, 20..24];

save_agrees_with_the_processor!(
    xsave64_agrees_with_the_processor,
    SaveForm::Standard,
    true,
    native::xsave64,
    []
);
save_agrees_with_the_processor!(
    xsaveopt64_agrees_with_the_processor,
    SaveForm::Optimised,
    true,
    native::xsaveopt64,
    []
);
save_agrees_with_the_processor!(
    xsavec64_agrees_with_the_processor,
    SaveForm::Compacted,
    true,
    native::xsavec64,
    []
);
save_agrees_with_the_processor!(
    xsave_agrees_with_the_processor,
    SaveForm::Standard,
    false,
    native::xsave,
    SELECTORS
);
save_agrees_with_the_processor!(
    xsavec_agrees_with_the_processor,
    SaveForm::Compacted,
    false,
    native::xsavec,
    SELECTORS
);

#[test]
fn xrstor64_of_the_standard_format_agrees_with_the_processor() {
    let Some(layout) = native::layout_or_skip("xrstor64, standard") else {
        return;
    };
    proptest!(|(before in state(&layout), area in state(&layout), components in any::<u64>())| {
        let (expected, ours) = restore_both(&layout, true, &before, components, &area);
        assert_same(&expected, &ours);
    });
}

#[test]
fn xrstor64_of_the_compacted_format_agrees_with_the_processor() {
    let Some(layout) = native::layout_or_skip("xrstor64, compacted") else {
        return;
    };
    proptest!(|(before in state(&layout), area in compacted(&layout), components in any::<u64>())| {
        let (expected, ours) = restore_both(&layout, true, &before, components, &area);
        assert_same(&expected, &ours);
    });
}

#[test]
fn xrstor_agrees_with_the_processor() {
    let Some(layout) = native::layout_or_skip("xrstor") else {
        return;
    };
    proptest!(|(before in state(&layout), area in state(&layout), components in any::<u64>())| {
        let (expected, ours) = restore_both(&layout, false, &before, components, &area);
        assert_same(&expected, &ours);
    });
}

#[test]
fn xrstor64_of_everything_agrees_with_the_processor() {
    let Some(layout) = native::layout_or_skip("xrstor64, all components") else {
        return;
    };
    proptest!(|(before in state(&layout), area in compacted(&layout))| {
        let (expected, ours) = restore_both(&layout, true, &before, u64::MAX, &area);
        assert_same(&expected, &ours);
    });
}

#[test]
fn what_xsavec_wrote_is_restored_whole() {
    let Some(layout) = native::layout_or_skip("xsavec and back") else {
        return;
    };
    proptest!(|(state in state(&layout), components in any::<u64>())| {
        let (_, mut area) = save_both(
            &layout, SaveForm::Compacted, true, native::xsavec64, &state, components, &NativeArea::new(),
        );
        let (expected, ours) = restore_both(&layout, true, &NativeArea::new(), components, &area);
        assert_same(&expected, &ours);
        let request = Restore {
            components, enabled: layout.user_components(), form: RestoreForm::Supervisor, wide_pointers: true,
        };
        let format = Header::read(&mut area).unwrap().check(&request).unwrap();
        prop_assert_eq!(format, Format::Compacted);
    });
}

/// Whether we accept the header for XRSTOR.
fn we_accept(layout: &XsaveLayout, area: &NativeArea) -> bool {
    let all = layout.user_components();
    let request = Restore {
        components: all,
        enabled: all,
        form: RestoreForm::User,
        wide_pointers: true,
    };
    let mut area = area.clone();
    let header = Header::read(&mut area).unwrap();
    let mut image = XsaveImage::default();
    header
        .check(&request)
        .and_then(|format| restore(&mut image, layout, &request, &header, format, &mut area))
        .is_ok()
}

#[test]
fn headers_are_refused_where_the_processor_refuses_them() {
    let Some(layout) = native::layout_or_skip("headers") else {
        return;
    };
    let all = layout.user_components();
    let beyond = 1_u64 << 40;
    let avx = 4_u64;
    let header = |words: [u64; 8]| {
        let mut area = NativeArea::new();
        area.0[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        area.0[HEADER].copy_from_slice(&words.map(u64::to_le_bytes).concat());
        area
    };
    let headers = [
        ("standard, all in use", header([all, 0, 0, 0, 0, 0, 0, 0])),
        (
            "standard, in use beyond XCR0",
            header([all | beyond, 0, 0, 0, 0, 0, 0, 0]),
        ),
        ("standard with XCOMP_BV", header([all, all, 0, 0, 0, 0, 0, 0])),
        ("standard with byte 16 set", header([all, 0, 1, 0, 0, 0, 0, 0])),
        ("standard with byte 24 set", header([all, 0, 0, 1, 0, 0, 0, 0])),
        (
            "standard with byte 63 set",
            header([all, 0, 0, 0, 0, 0, 0, 1 << 56]),
        ),
        ("compacted, all", header([all, all | COMPACTED, 0, 0, 0, 0, 0, 0])),
        ("compacted, none", header([0, COMPACTED, 0, 0, 0, 0, 0, 0])),
        (
            "compacted, in use but absent",
            header([avx, 3 | COMPACTED, 0, 0, 0, 0, 0, 0]),
        ),
        (
            "compacted, present beyond XCR0",
            header([avx, all | beyond | COMPACTED, 0, 0, 0, 0, 0, 0]),
        ),
        (
            "compacted with byte 16 set",
            header([avx, all | COMPACTED, 1, 0, 0, 0, 0, 0]),
        ),
        (
            "compacted with byte 24 set",
            header([avx, all | COMPACTED, 0, 1, 0, 0, 0, 0]),
        ),
        (
            "compacted with byte 63 set",
            header([avx, all | COMPACTED, 0, 0, 0, 0, 0, 1 << 56]),
        ),
    ];
    for (name, area) in headers {
        let processor = native::xrstor64_accepts(u64::MAX, &area);
        assert_eq!(
            we_accept(&layout, &area),
            processor,
            "{name}: the processor says {processor}"
        );
    }
}

#[test]
fn reserved_mxcsr_bits_are_refused_where_the_processor_refuses_them() {
    let Some(layout) = native::layout_or_skip("MXCSR") else {
        return;
    };
    let all = layout.user_components();
    for bit in 0..32 {
        for (name, in_use, format) in [
            ("standard", 0, 0),
            ("compacted", 2, all | COMPACTED),
            ("compacted, SSE initial", 0, all | COMPACTED),
        ] {
            let mut area = NativeArea::new();
            area.0[24..28].copy_from_slice(&(1_u32 << bit).to_le_bytes());
            area.0[XSTATE_BV].copy_from_slice(&u64::to_le_bytes(in_use));
            area.0[520..528].copy_from_slice(&format.to_le_bytes());
            let processor = native::xrstor64_accepts(all, &area);
            assert_eq!(
                we_accept(&layout, &area),
                processor,
                "{name}, bit {bit}: the processor says {processor}"
            );
        }
    }
}
