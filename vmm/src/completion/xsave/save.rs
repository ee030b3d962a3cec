//! From the image to an area: XSAVE, XSAVEOPT, XSAVEC, XSAVES (SDM volume 1, 13.7, 13.9 to 13.11).

use super::SaveForm;
use super::area::Area;
use super::image::{self, SSE, X87, XsaveImage};
use super::layout::{XsaveLayout, carries_mxcsr};
use crate::completion::error::Stop;

const COMPACTED: u64 = 1 << 63;
/// XSTATE_BV and XCOMP_BV.
const HEADER_FIELDS: usize = 16;

/// What to save.
pub(super) struct Save {
    /// The requested-feature bitmap: components that are enabled and asked for.
    pub(super) components: u64,
    pub(super) form: SaveForm,
    /// REX.W: x87 pointers of 64 bits.
    pub(super) wide_pointers: bool,
}

/// A run of bytes to copy.
struct Segment {
    in_image: usize,
    in_area: usize,
    length: usize,
}

/// Writes the requested components to `area`. Nothing is written if any byte cannot be.
///
/// The image is a scratch copy afterwards: it may have been put in the form that memory gets.
pub(super) fn save(
    image: &mut XsaveImage,
    layout: &XsaveLayout,
    request: &Save,
    area: &mut impl Area,
) -> Result<(), Stop> {
    if is_compacted(request.form) {
        image.mark_sse_if_mxcsr_is_set();
    }
    image.set_mxcsr_mask(layout.mxcsr_mask());
    if !request.wide_pointers {
        image.narrow_pointers();
    }
    let in_use = image.components_in_use() & request.components;
    let written = match request.form {
        SaveForm::Standard => request.components,
        SaveForm::Optimised | SaveForm::Compacted | SaveForm::Supervisor => in_use,
    };
    if request.form == SaveForm::Standard {
        initialise_unused(image, layout, request.components & !in_use);
    }

    // First all faults, as writes, though the standard format reads XSTATE_BV too: a kernel that has to provide the
    // page should not provide it for reading first.
    let segments = segments(layout, request, written);
    for segment in &segments {
        area.check_write(segment.in_area, segment.length)?;
    }
    area.check_write(image::XSTATE_BV.start, HEADER_FIELDS)?;
    for segment in &segments {
        let bytes = image
            .bytes()
            .get(segment.in_image..segment.in_image + segment.length);
        area.write(segment.in_area, bytes.unwrap_or_default())?;
    }
    if is_compacted(request.form) {
        area.write(
            image::XCOMP_BV.start,
            &(request.components | COMPACTED).to_le_bytes(),
        )?;
        return area.write(image::XSTATE_BV.start, &in_use.to_le_bytes());
    }
    // The standard format keeps XCOMP_BV as it is, and in XSTATE_BV what it does not save.
    let mut before = [0; 8];
    area.read(image::XSTATE_BV.start, &mut before)?;
    let after = u64::from_le_bytes(before) & !request.components | in_use;
    area.write(image::XSTATE_BV.start, &after.to_le_bytes())
}

fn is_compacted(form: SaveForm) -> bool {
    matches!(form, SaveForm::Compacted | SaveForm::Supervisor)
}

/// XSAVE writes initial values for components that are not in use.
fn initialise_unused(image: &mut XsaveImage, layout: &XsaveLayout, unused: u64) {
    if unused & X87 != 0 {
        image.initialise_x87();
    }
    if unused & SSE != 0 {
        image.initialise_sse();
    }
    for (component, _) in layout.standard(unused) {
        image.initialise(component);
    }
}

fn segments(layout: &XsaveLayout, request: &Save, written: u64) -> Vec<Segment> {
    let mut segments = Vec::with_capacity(12);
    let mut legacy = |range: std::ops::Range<usize>| {
        segments.push(Segment {
            in_image: range.start,
            in_area: range.start,
            length: range.len(),
        });
    };
    if written & X87 != 0 {
        legacy(image::X87_BEFORE_MXCSR);
        legacy(image::X87_REGISTERS);
    }
    // In the standard format MXCSR belongs to SSE and AVX alike, in use or not; in the compacted one it is part of SSE.
    let mxcsr = if is_compacted(request.form) {
        written & SSE != 0
    } else {
        carries_mxcsr(request.components)
    };
    if mxcsr {
        legacy(image::MXCSR.start..image::MXCSR_MASK.end);
    }
    if written & SSE != 0 {
        legacy(image::XMM);
    }
    let mut push = |(component, in_area): (&super::layout::Component, usize)| {
        if component.bit() & written != 0 {
            let range = component.standard();
            segments.push(Segment {
                in_image: range.start,
                in_area,
                length: range.len(),
            });
        }
    };
    match is_compacted(request.form) {
        true => layout.compacted(request.components).for_each(&mut push),
        false => layout.standard(request.components).for_each(&mut push),
    }
    segments
}
