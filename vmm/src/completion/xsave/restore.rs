//! From an area to the image: XRSTOR, XRSTORS (SDM volume 1, 13.8 and 13.12).

use super::RestoreForm;
use super::area::Area;
use super::image::{self, SSE, X87, XsaveImage};
use super::layout::{Component, XsaveLayout, carries_mxcsr};
use crate::completion::error::Stop;
use crate::completion::exception::Exception;

const COMPACTED: u64 = 1 << 63;
const HEADER_BYTES: usize = 64;

/// What to restore.
pub(super) struct Restore {
    /// The requested-feature bitmap: components that are enabled and asked for.
    pub(super) components: u64,
    /// All that are enabled.
    pub(super) enabled: u64,
    pub(super) form: RestoreForm,
    /// REX.W: x87 pointers of 64 bits.
    pub(super) wide_pointers: bool,
}

impl Restore {
    /// Whether nothing of the state before is left after it.
    pub(super) fn sets_everything(&self, layout: &XsaveLayout) -> bool {
        self.components & SSE != 0 && layout.user_components() & !self.components == 0
    }
}

/// How an area is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Standard,
    Compacted,
}

/// The 64 bytes behind the legacy region.
pub(super) struct Header {
    xstate_bv: u64,
    xcomp_bv: u64,
    /// Bytes 16 to 23 and 24 to 63.
    reserved: [bool; 2],
}

impl Header {
    pub(super) fn read(area: &mut impl Area) -> Result<Header, Stop> {
        let mut bytes = [0; HEADER_BYTES];
        area.read(image::XSTATE_BV.start, &mut bytes)?;
        let word = |index: usize| {
            bytes
                .as_chunks()
                .0
                .get(index)
                .map_or(0, |word: &[u8; 8]| u64::from_le_bytes(*word))
        };
        Ok(Header {
            xstate_bv: word(0),
            xcomp_bv: word(1),
            reserved: [word(2) != 0, (3..8).any(|index| word(index) != 0)],
        })
    }

    /// The components it speaks of.
    pub(super) fn components(&self) -> u64 {
        (self.xstate_bv | self.xcomp_bv) & !COMPACTED
    }

    /// #GP(0) unless the header is one that the instruction accepts.
    pub(super) fn check(&self, request: &Restore) -> Result<Format, Stop> {
        let compacted = self.xcomp_bv & COMPACTED != 0;
        let [reserved_first, reserved_rest] = self.reserved;
        let acceptable = if compacted {
            let present = self.xcomp_bv & !COMPACTED;
            present & !request.enabled == 0
                && self.xstate_bv & !present == 0
                && !reserved_first
                && !reserved_rest
        } else {
            request.form == RestoreForm::User
                && self.xstate_bv & !request.enabled == 0
                && self.xcomp_bv == 0
                && !reserved_first
        };
        match (acceptable, compacted) {
            (false, _) => Err(Stop::Fault(Exception::general_protection(0))),
            (true, true) => Ok(Format::Compacted),
            (true, false) => Ok(Format::Standard),
        }
    }
}

/// Sets the requested components of `image` from `area`: those in use to what it holds, others to their initial
/// configuration. On a fault the image is half changed, and the caller throws it away.
pub(super) fn restore(
    image: &mut XsaveImage,
    layout: &XsaveLayout,
    request: &Restore,
    header: &Header,
    format: Format,
    area: &mut impl Area,
) -> Result<(), Stop> {
    let loaded = request.components & header.xstate_bv;
    if request.components & X87 != 0 {
        image.initialise_x87();
        if loaded & X87 != 0 {
            read_into(
                image,
                image::X87_BEFORE_MXCSR,
                image::X87_BEFORE_MXCSR.start,
                area,
            )?;
            read_into(image, image::X87_REGISTERS, image::X87_REGISTERS.start, area)?;
            if !request.wide_pointers {
                image.narrow_pointers();
            }
        }
    }
    if request.components & SSE != 0 {
        image.initialise_sse();
        if loaded & SSE != 0 {
            read_into(image, image::XMM, image::XMM.start, area)?;
        }
    }
    let mxcsr_is_loaded = match format {
        Format::Standard => carries_mxcsr(request.components),
        Format::Compacted => loaded & SSE != 0,
    };
    if mxcsr_is_loaded {
        read_into(image, image::MXCSR, image::MXCSR.start, area)?;
        if image.mxcsr() & !layout.mxcsr_mask() != 0 {
            return Err(Stop::Fault(Exception::general_protection(0)));
        }
    } else if format == Format::Compacted && request.components & SSE != 0 {
        image.initialise_mxcsr();
    }
    let mut restore_component = |(component, in_area): (&Component, usize)| -> Result<(), Stop> {
        if component.bit() & request.components != 0 {
            image.initialise(component);
            if component.bit() & loaded != 0 {
                read_into(image, component.standard(), in_area, area)?;
            }
        }
        Ok(())
    };
    match format {
        Format::Standard => layout
            .standard(request.components)
            .try_for_each(&mut restore_component)?,
        Format::Compacted => {
            layout
                .compacted(header.xcomp_bv)
                .try_for_each(&mut restore_component)?;
            // Not in the area at all: initial.
            layout
                .standard(request.components & !header.xcomp_bv)
                .for_each(|(component, _)| image.initialise(component));
        }
    }
    image.set_components_in_use(image.components_in_use() | loaded);
    image.mark_sse_if_mxcsr_is_set();
    Ok(())
}

fn read_into(
    image: &mut XsaveImage,
    range: std::ops::Range<usize>,
    in_area: usize,
    area: &mut impl Area,
) -> Result<(), Stop> {
    area.read(in_area, image.bytes_mut().get_mut(range).unwrap_or_default())
}
