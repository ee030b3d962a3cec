//! The vCPU's state beyond its general and system registers: x87, vectors, XCR0, model-specific registers.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::error::Cause;
use super::xsave::image::XsaveImage;
use super::xsave::layout::XsaveLayout;

const IA32_XSS: u32 = 0xda0;

/// Extended state as instructions use it. Each method may cost an ioctl, so each is called only where it must be.
pub(super) trait ExtendedState {
    /// XCR0.
    fn xcr0(&mut self) -> Result<u64, Cause>;

    /// XCR0, known to be current only in the components of `wanted` that it has.
    ///
    /// An ioctl is saved while an earlier value covers what is wanted. A guest would have to take a component out of
    /// XCR0 and then save it to see the difference, in its own memory. Kernels set XCR0 once for each vCPU.
    fn xcr0_covering(&mut self, wanted: u64) -> Result<u64, Cause>;

    /// IA32_XSS.
    fn xss(&mut self) -> Result<u64, Cause>;

    /// The registers, in the standard XSAVE format.
    fn image(&mut self) -> Result<&mut XsaveImage, Cause>;

    /// An image in which every component is in its initial configuration, for one who will set them all.
    fn initial_image(&mut self) -> &mut XsaveImage;

    /// Makes the image the vCPU's state.
    fn store_image(&mut self) -> Result<(), Cause>;

    /// Reads model-specific registers.
    fn msrs(&mut self, indices: [u32; 2]) -> Result<[u64; 2], Cause>;
}

/// What outlives one instruction: the buffer, and XCR0 when it was last read.
#[derive(Default)]
pub(super) struct StateCache {
    image: XsaveImage,
    xcr0: u64,
}

/// The extended state of a vCPU of KVM.
pub(super) struct KvmExtendedState<'a> {
    vcpu: &'a VcpuFd,
    cache: &'a mut StateCache,
    layout: &'a XsaveLayout,
    image_is_current: bool,
}

impl<'a> KvmExtendedState<'a> {
    pub(super) fn new(
        vcpu: &'a VcpuFd,
        cache: &'a mut StateCache,
        layout: &'a XsaveLayout,
    ) -> KvmExtendedState<'a> {
        KvmExtendedState {
            vcpu,
            cache,
            layout,
            image_is_current: false,
        }
    }
}

impl ExtendedState for KvmExtendedState<'_> {
    fn xcr0(&mut self) -> Result<u64, Cause> {
        let xcrs = self.vcpu.get_xcrs().map_err(Cause::kvm("KVM_GET_XCRS"))?;
        let count = usize::try_from(xcrs.nr_xcrs).unwrap_or(0);
        // A vCPU without XSAVE has no XCR0; x87 state is there all the same.
        self.cache.xcr0 = xcrs
            .xcrs
            .iter()
            .take(count)
            .find(|register| register.xcr == 0)
            .map_or(1, |register| register.value);
        Ok(self.cache.xcr0)
    }

    fn xcr0_covering(&mut self, wanted: u64) -> Result<u64, Cause> {
        // Before the first read the cached value is 0, which no XCR0 is.
        let can_be_set = wanted & self.layout.user_components();
        if self.cache.xcr0 != 0 && can_be_set & !self.cache.xcr0 == 0 {
            return Ok(self.cache.xcr0);
        }
        self.xcr0()
    }

    fn xss(&mut self) -> Result<u64, Cause> {
        if self.layout.supervisor_components() == 0 {
            return Ok(0);
        }
        let [xss, _] = self.msrs([IA32_XSS, IA32_XSS])?;
        Ok(xss)
    }

    fn image(&mut self) -> Result<&mut XsaveImage, Cause> {
        if !self.image_is_current {
            // KVM_GET_XSAVE fails where the image does not fit 4 KiB. That takes a component (AMX's tiles) which KVM
            // offers only to a process that asked for it, and this one never does.
            let xsave = self.vcpu.get_xsave().map_err(Cause::kvm("KVM_GET_XSAVE"))?;
            self.cache.image = XsaveImage::from_kvm(&xsave);
            self.image_is_current = true;
        }
        Ok(&mut self.cache.image)
    }

    fn initial_image(&mut self) -> &mut XsaveImage {
        self.cache.image = XsaveImage::default();
        self.image_is_current = true;
        &mut self.cache.image
    }

    fn store_image(&mut self) -> Result<(), Cause> {
        let xsave = self.cache.image.to_kvm();
        // SAFETY: KVM reads 4 KiB, the size of `xsave`: only a process that asked for larger components has larger
        // images, and this one never does.
        unsafe { self.vcpu.set_xsave(&xsave) }.map_err(Cause::kvm("KVM_SET_XSAVE"))
    }

    fn msrs(&mut self, indices: [u32; 2]) -> Result<[u64; 2], Cause> {
        let failed = |errno| Cause::Kvm {
            call: "KVM_GET_MSRS",
            source: kvm_ioctls::Error::new(errno),
        };
        let entries = indices.map(|index| kvm_msr_entry {
            index,
            ..Default::default()
        });
        let mut msrs = Msrs::from_entries(&entries).map_err(|_| failed(libc::ENOMEM))?;
        let read = self
            .vcpu
            .get_msrs(&mut msrs)
            .map_err(Cause::kvm("KVM_GET_MSRS"))?;
        match (read, msrs.as_slice()) {
            (2, [first, second]) => Ok([first.data, second.data]),
            // KVM stops at the first one it does not have.
            _ => Err(failed(libc::ENOENT)),
        }
    }
}
