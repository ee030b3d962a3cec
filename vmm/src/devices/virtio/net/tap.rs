//! The host's end: a tap device, opened by whoever started this process.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use libc::{IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_VNET_HDR};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vm_memory::VolatileSlice;
use vm_memory::volatile_memory::PtrGuardMut;

use super::features::ALL_OFFLOADS;
use super::header::{HEADER_BYTES, Header};

/// The flags that every tap has.
const NEEDED: [(libc::c_int, &str); 3] = [
    (IFF_TAP, "IFF_TAP"),
    (IFF_NO_PI, "IFF_NO_PI"),
    (IFF_VNET_HDR, "IFF_VNET_HDR"),
];

/// Why an inherited descriptor is no tap for a device.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// Nothing is open under the number.
    #[error(
        "taking descriptor {descriptor} as a tap; whoever starts this process opens the tap and hands it down"
    )]
    Descriptor {
        /// The number.
        descriptor: i32,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is something else, or a tap without a network device.
    #[error(
        "asking descriptor {descriptor} which tap it is; it is /dev/net/tun opened and attached by TUNSETIFF"
    )]
    NoTap {
        /// The number.
        descriptor: i32,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It was attached with other flags.
    #[error("descriptor {descriptor} is the device {name:?} attached without {missing}")]
    Flags {
        /// The number.
        descriptor: i32,
        /// The name of its network device.
        name: String,
        /// The flag that it lacks.
        missing: &'static str,
    },
    /// The descriptors of one device's pairs are of different taps.
    #[error("descriptor {descriptor} is the device {name:?}, and those before it are {others:?}")]
    OtherTap {
        /// The number.
        descriptor: i32,
        /// The name of its network device.
        name: String,
        /// That of the others'.
        others: String,
    },
    /// The kernel refuses what the device needs.
    #[error("{doing} of the tap {name:?}")]
    Configure {
        /// What was being done.
        doing: &'static str,
        /// The name of its network device.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// What frames come from and go to, each with its header, one in each read or write. It is not waited for: when there is
/// nothing to read or no room to write, that is [`io::ErrorKind::WouldBlock`].
pub(super) trait Port: AsFd + Send + Sync {
    /// Lets frames from it leave to the guest what is in `offloads`, in the numbers of `TUNSETOFFLOAD`.
    fn set_offloads(&self, offloads: u32) -> io::Result<()>;

    /// Has frames come from it, or not. Those that have come and were not read are lost with the latter.
    fn set_attached(&self, attached: bool) -> io::Result<()>;
}

/// A tap, or one of its queues.
#[derive(Debug)]
pub struct Tap {
    descriptor: OwnedFd,
    /// Whether it gets its share of the frames. The kernel refuses to be told twice.
    attached: Mutex<bool>,
}

impl Tap {
    /// The tap that this process inherited under the numbers `descriptors`, which stay open beside it: each is a queue of
    /// it, if they are several.
    ///
    /// # Errors
    /// When one is none, or not one for this.
    pub fn inherit(descriptors: &[i32]) -> Result<Vec<Self>, TapError> {
        let several = (IFF_MULTI_QUEUE, "IFF_MULTI_QUEUE");
        let needed = match descriptors {
            [] | [_] => &NEEDED[..],
            _ => &[&NEEDED[..], &[several]].concat(),
        };
        let mut common = None;
        let mut taps = Vec::with_capacity(descriptors.len());
        for &descriptor in descriptors {
            let (tap, name) = Self::inherit_one(descriptor, needed)?;
            let others = common.get_or_insert_with(|| name.clone());
            if *others != name {
                let others = others.clone();
                return Err(TapError::OtherTap {
                    descriptor,
                    name,
                    others,
                });
            }
            taps.push(tap);
        }
        Ok(taps)
    }

    /// One descriptor, which was attached with the flags `needed`, and the name of its network device.
    fn inherit_one(
        descriptor: i32,
        needed: &[(libc::c_int, &'static str)],
    ) -> Result<(Self, String), TapError> {
        // SAFETY: The call takes no pointer, and any number: it fails for one that is not open.
        let own = unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 3) };
        if own < 0 {
            let source = io::Error::last_os_error();
            return Err(TapError::Descriptor { descriptor, source });
        }
        // SAFETY: The descriptor was made by the call above, and nobody else knows it.
        let own = unsafe { OwnedFd::from_raw_fd(own) };
        let (name, flags) =
            interface(own.as_fd()).map_err(|source| TapError::NoTap { descriptor, source })?;
        if let Some((_, missing)) = needed.iter().find(|(flag, _)| flags & flag == 0) {
            return Err(TapError::Flags {
                descriptor,
                name,
                missing,
            });
        }
        let tap = Self {
            descriptor: own,
            attached: Mutex::new(flags & IFF_DETACH_QUEUE == 0),
        };
        match tap.configure() {
            Ok(()) => Ok((tap, name)),
            Err((doing, source)) => Err(TapError::Configure { doing, name, source }),
        }
    }

    /// Has it speak as the device does. Until a driver chooses otherwise it hands over only complete frames.
    fn configure(&self) -> Result<(), (&'static str, io::Error)> {
        let failed = |doing| move |source: io::Error| (doing, source);
        fcntl_getfl(&self.descriptor)
            .and_then(|flags| fcntl_setfl(&self.descriptor, flags | OFlags::NONBLOCK))
            .map_err(io::Error::from)
            .map_err(failed("making the descriptor non-blocking"))?;
        self.set_header_length()
            .map_err(failed("setting the length of the frames' headers"))?;
        self.set_offloads(ALL_OFFLOADS)
            .and_then(|()| self.set_offloads(0))
            .map_err(failed("setting the offloads"))
    }

    fn set_header_length(&self) -> io::Result<()> {
        let length = HEADER_BYTES as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int through the pointer, which is valid for the call.
        let result = unsafe {
            libc::ioctl(
                self.descriptor.as_raw_fd(),
                libc::TUNSETVNETHDRSZ,
                &raw const length,
            )
        };
        check(result)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Port for Tap {
    fn set_offloads(&self, offloads: u32) -> io::Result<()> {
        let offloads = libc::c_ulong::from(offloads);
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        let result = unsafe { libc::ioctl(self.descriptor.as_raw_fd(), libc::TUNSETOFFLOAD, offloads) };
        check(result)
    }

    fn set_attached(&self, attached: bool) -> io::Result<()> {
        let mut is_attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_attached == attached {
            return Ok(());
        }
        let change = match attached {
            true => IFF_ATTACH_QUEUE,
            false => IFF_DETACH_QUEUE,
        };
        // SAFETY: All of `ifreq` is numbers, for which zero is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_ifru.ifru_flags = change as libc::c_short;
        // SAFETY: TUNSETQUEUE reads one `ifreq` through the pointer, which is valid for the call.
        let result = unsafe { libc::ioctl(self.descriptor.as_raw_fd(), libc::TUNSETQUEUE, &raw mut request) };
        if let Err(error) = check(result) {
            // It does not say of itself that the network device is gone.
            interface(self.as_fd())?;
            return Err(error);
        }
        *is_attached = attached;
        Ok(())
    }
}

/// The name and the flags of a tap's network device.
fn interface(tap: BorrowedFd<'_>) -> io::Result<(String, libc::c_int)> {
    // SAFETY: All of `ifreq` is numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one `ifreq` through the pointer, which is valid for the call.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    let name = request.ifr_name.map(libc::c_char::cast_unsigned);
    let name = CStr::from_bytes_until_nul(&name)
        .map_or_else(|_| String::new(), |name| name.to_string_lossy().into_owned());
    // SAFETY: Every field of the union is a number of at most its size, all of which is initialised.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    // The flags fill the 16 bits.
    Ok((name, libc::c_int::from(flags.cast_unsigned())))
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Reads one frame: the header, and the rest into `slices`. Returns its length with the header.
pub(super) fn read(port: &dyn Port, header: &mut Header, slices: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let guards: Vec<_> = slices.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let parts = parts(header.0.as_mut_ptr(), &guards);
    uninterrupted(|| {
        // SAFETY: The first part is all of `header`, which is borrowed mutably. The others are `slices`, which are the
        // guest's memory and stay mapped as long as they are borrowed; nothing in this process relies on what is in
        // them. There are no more parts than the array has.
        unsafe { libc::readv(port.as_fd().as_raw_fd(), parts.as_ptr(), count(&parts)) }
    })
}

/// Writes one frame: the header, and the rest from `slices`.
pub(super) fn write(port: &dyn Port, header: &Header, slices: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let guards: Vec<_> = slices.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let parts = parts(header.0.as_ptr().cast_mut(), &guards);
    uninterrupted(|| {
        // SAFETY: As above; the parts are only read.
        unsafe { libc::writev(port.as_fd().as_raw_fd(), parts.as_ptr(), count(&parts)) }
    })
}

fn parts(header: *mut u8, guards: &[PtrGuardMut]) -> Vec<libc::iovec> {
    let guest = guards.iter().map(|guard| (guard.as_ptr(), guard.len()));
    [(header, HEADER_BYTES)]
        .into_iter()
        .chain(guest)
        .map(|(start, length)| libc::iovec {
            iov_base: start.cast(),
            iov_len: length,
        })
        .collect()
}

/// The system takes 1024 parts at most, and a frame of more is one that no sane driver lays out: it fails with EINVAL.
fn count(parts: &[libc::iovec]) -> libc::c_int {
    libc::c_int::try_from(parts.len()).unwrap_or(libc::c_int::MAX)
}

fn uninterrupted(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        let Ok(length) = usize::try_from(call()) else {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        };
        return Ok(length);
    }
}

/// Whether `error` is that of a tap whose network device was removed.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBADFD)
}
