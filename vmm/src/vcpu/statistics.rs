//! KVM's own statistics of a vCPU, through `KVM_GET_STATS_FD` (Linux's Documentation/virt/kvm/api.rst, section
//! 4.133). Among them `insn_emulation`, the guest instructions KVM emulated: a cost that does not depend on how busy
//! the host is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;

use kvm_bindings::KVMIO;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

mod request {
    #![allow(missing_docs, reason = "the macro makes a function without them")]

    use super::{KVMIO, ioctl_io_nr};

    ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);
}

/// The header: flags, name size, descriptor count, and the offsets of id, descriptors and values.
const HEADER_BYTES: usize = 24;
/// A descriptor without its name: flags, exponent, size, offset, bucket size.
const DESCRIPTOR_BYTES: usize = 16;
/// Bounds far above any KVM's, so that a damaged header cannot make this process large.
const MAX_NAME_BYTES: u32 = 256;
const MAX_DESCRIPTORS: u32 = 1024;
const MAX_BYTES: usize = 64 << 10;
/// A value is eight bytes.
const VALUE_BYTES: usize = 8;

/// Why a vCPU's statistics cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum StatisticsError {
    /// KVM does not give them.
    #[error("asking KVM for a vCPU's statistics")]
    Open(#[source] io::Error),
    /// They cannot be read.
    #[error("reading a vCPU's statistics")]
    Read(#[source] io::Error),
    /// They are not in the documented form.
    #[error("a vCPU's statistics announce {descriptors} values with names of {name_bytes} bytes")]
    Form {
        /// The number of values.
        descriptors: u32,
        /// The size of their names.
        name_bytes: u32,
    },
}

/// A vCPU's statistics; they can be read from any thread while the vCPU runs.
#[derive(Debug)]
pub struct KvmStatistics {
    file: File,
    /// Where the values begin, and how far they are of interest.
    offset: u64,
    bytes: usize,
    /// The name and the place among the values of each that is one number.
    values: Vec<(String, usize)>,
}

impl KvmStatistics {
    /// Asks KVM for the statistics of `vcpu`.
    ///
    /// # Errors
    /// When this KVM has none.
    pub fn of(vcpu: &VcpuFd) -> Result<Self, StatisticsError> {
        // SAFETY: The request takes no argument and gives a new descriptor or -1.
        let descriptor = unsafe { ioctl(vcpu, request::KVM_GET_STATS_FD()) };
        if descriptor < 0 {
            return Err(StatisticsError::Open(io::Error::last_os_error()));
        }
        // SAFETY: The descriptor is new, and nobody else's.
        let file = unsafe { File::from_raw_fd(descriptor) };
        Self::describe(file)
    }

    fn describe(file: File) -> Result<Self, StatisticsError> {
        let read = |bytes: &mut [u8], offset: u32| {
            file.read_exact_at(bytes, offset.into())
                .map_err(StatisticsError::Read)
        };
        let mut header = [0; HEADER_BYTES];
        read(&mut header, 0)?;
        let (name_bytes, descriptors) = (u32_at(&header, 4), u32_at(&header, 8));
        if name_bytes > MAX_NAME_BYTES || descriptors > MAX_DESCRIPTORS {
            return Err(StatisticsError::Form {
                descriptors,
                name_bytes,
            });
        }
        let stride = DESCRIPTOR_BYTES + name_bytes as usize;
        let mut table = vec![0; stride * descriptors as usize];
        read(&mut table, u32_at(&header, 16))?;
        let values: Vec<_> = table.chunks_exact(stride).filter_map(parse).collect();
        let bytes = values
            .iter()
            .map(|(_, place)| place.saturating_add(VALUE_BYTES))
            .max()
            .unwrap_or(0);
        if bytes > MAX_BYTES {
            return Err(StatisticsError::Form {
                descriptors,
                name_bytes,
            });
        }
        Ok(Self {
            offset: u32_at(&header, 20).into(),
            file,
            bytes,
            values,
        })
    }

    /// The values at this moment, by name.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn read(&self) -> Result<BTreeMap<String, u64>, StatisticsError> {
        let mut bytes = vec![0; self.bytes];
        self.file
            .read_exact_at(&mut bytes, self.offset)
            .map_err(StatisticsError::Read)?;
        let value = |place: usize| {
            bytes
                .get(place..)?
                .first_chunk()
                .map(|value| u64::from_le_bytes(*value))
        };
        Ok(self
            .values
            .iter()
            .filter_map(|(name, place)| Some((name.clone(), value(*place)?)))
            .collect())
    }
}

/// The name and place among the values of the one that `descriptor` describes, if it is one number and no histogram.
fn parse(descriptor: &[u8]) -> Option<(String, usize)> {
    let (fixed, name) = descriptor.split_at_checked(DESCRIPTOR_BYTES)?;
    let count = u16::from_le_bytes([fixed[6], fixed[7]]);
    let name = name.split(|byte| *byte == 0).next()?;
    (count == 1).then(|| {
        (
            String::from_utf8_lossy(name).into_owned(),
            u32_at(fixed, 8) as usize,
        )
    })
}

/// The little-endian number at `offset`, a constant inside the fixed part that every caller has read whole.
fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes([
        bytes[offset],
        bytes[offset + 1],
        bytes[offset + 2],
        bytes[offset + 3],
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(count: u16, offset: u32) -> Vec<u8> {
        let mut bytes = vec![0; 6];
        bytes.extend(count.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(b"exits\0\0\0");
        bytes
    }

    #[test]
    fn a_number_is_named_and_placed() {
        assert_eq!(parse(&descriptor(1, 24)), Some(("exits".into(), 24)));
    }

    #[test]
    fn a_histogram_is_left_out() {
        assert_eq!(parse(&descriptor(8, 24)), None);
    }
}
