//! Host randomness for the guest's kernel.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// The most the host may send at once, in bytes; the kernel's pool holds no more (random(4)).
const LARGEST_SEED: usize = 512;

/// The least, in bytes: the size of a key of the kernel's generator. With fewer a clone would be a twin.
const SMALLEST_SEED: usize = 32;

/// `_IOW('R', 0x03, int[2])` (linux/random.h).
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;

/// `_IO('R', 0x07)` (linux/random.h).
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

/// `struct rand_pool_info` (linux/random.h) with room for [`LARGEST_SEED`].
#[repr(C)]
struct RandPoolInfo {
    entropy_bits: libc::c_int,
    size: libc::c_int,
    bytes: [u8; LARGEST_SEED],
}

/// Credits `seed` to the kernel's random number generator and has it draw a new key at once; bytes beyond 512 are not
/// used. Without the second step the generator would go on with its key for up to a minute: clones of one machine
/// would draw the same numbers.
///
/// # Errors
/// When there are fewer than 32 bytes, or `/dev/random` refuses them.
pub(crate) fn add(seed: &[u8]) -> io::Result<()> {
    if seed.len() < SMALLEST_SEED {
        let message = format!(
            "the host sent {} bytes of entropy, and {SMALLEST_SEED} are the least",
            seed.len()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let used = seed.len().min(LARGEST_SEED);
    let mut info = RandPoolInfo {
        entropy_bits: 8 * used as i32,
        size: used as i32,
        bytes: [0; LARGEST_SEED],
    };
    info.bytes[..used].copy_from_slice(&seed[..used]);
    let random = File::options().write(true).open("/dev/random")?;
    // SAFETY: RNDADDENTROPY reads a rand_pool_info of `size` bytes behind its header, all of it within `info`.
    checked(unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, &raw const info) })?;
    // SAFETY: RNDRESEEDCRNG takes no argument.
    checked(unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG) })
}

fn checked(returned: libc::c_int) -> io::Result<()> {
    match returned {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_entropy_is_refused_before_any_is_used() {
        for bytes in [0, 1, 31] {
            let error = add(&vec![7; bytes]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            assert!(
                error.to_string().contains(&format!("sent {bytes} bytes")),
                "{error}"
            );
        }
    }
}
