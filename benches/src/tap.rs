//! Taps as machines have them: frames with the header that virtio puts before them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use anyhow::ensure;

/// Makes the tap `name`, which goes with the last that has its descriptor.
pub(crate) fn open(name: &str) -> anyhow::Result<File> {
    let tap = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all of `ifreq` is numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which is valid for the call.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    ensure!(
        result == 0,
        "attaching the tap {name}: {}",
        io::Error::last_os_error()
    );
    Ok(tap)
}
