//! Names that nothing had before.

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// Sixteen random hexadecimal digits: several processes choose names at once, and what a guest remembers of a name it has
/// seen does not concern the next one to have it.
///
/// # Errors
/// When the host gives no random bytes.
pub fn unused_name() -> Result<String, Errno> {
    let mut random = [0; 8];
    getrandom(&mut random, GetRandomFlags::empty())?;
    Ok(format!("{:016x}", u64::from_ne_bytes(random)))
}
