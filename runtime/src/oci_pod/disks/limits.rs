//! `linux.resources.blockIO.throttle…Device`: how fast a container's disks are at most. The machine's devices see to it, on
//! the host's side of the wall, so the guest's cgroups are not told.

use std::fs;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use rustix::fs::{major, minor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vmm::devices::rate_limiter::RateLimit;

use super::DiskError;
use super::asked::{AskedDisk, DeviceNumber, number_of};

/// How fast a disk is at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DiskLimits {
    /// What is read from it.
    pub(super) read: Option<RateLimit>,
    /// What is written to it.
    pub(super) write: Option<RateLimit>,
}

/// Each name with whether it is about reading, and about bytes.
const FIELDS: [(&str, bool, bool); 4] = [
    ("throttleReadBpsDevice", true, true),
    ("throttleReadIOPSDevice", true, false),
    ("throttleWriteBpsDevice", false, true),
    ("throttleWriteIOPSDevice", false, false),
];

/// Takes the limits out of the configuration, and gives each to the disks it is for.
pub(super) fn take(config: &mut Value, asked: &mut [AskedDisk]) -> Result<(), DiskError> {
    let Some(block_io) = config
        .pointer_mut("/linux/resources/blockIO")
        .and_then(Value::as_object_mut)
    else {
        return Ok(());
    };
    for (name, is_read, is_bytes) in FIELDS {
        let limits = block_io.remove(name).unwrap_or_default();
        for (index, limit) in limits.as_array().into_iter().flatten().enumerate() {
            let (Some(major), Some(minor)) = (number_of(limit, "major"), number_of(limit, "minor")) else {
                continue;
            };
            // The kernel takes zero for no limit.
            let rate = limit
                .get("rate")
                .and_then(Value::as_u64)
                .and_then(NonZeroU64::new);
            let mut is_ours = false;
            for disk in asked
                .iter_mut()
                .filter(|disk| device(disk) == Some((major, minor)))
            {
                is_ours = true;
                let limit = match is_read {
                    true => disk.limits.read.get_or_insert_default(),
                    false => disk.limits.write.get_or_insert_default(),
                };
                match is_bytes {
                    true => limit.bytes_per_second = rate,
                    false => limit.operations_per_second = rate,
                }
            }
            if !is_ours {
                return Err(DiskError::NotOurs {
                    field: format!("{name}[{index}]"),
                    major,
                    minor,
                });
            }
        }
    }
    Ok(())
}

/// The number of the block device that a disk is.
fn device(disk: &AskedDisk) -> Option<DeviceNumber> {
    disk.number.or_else(|| {
        let status = fs::metadata(&disk.path).ok()?;
        let number = status.rdev();
        status
            .file_type()
            .is_block_device()
            .then_some((major(number), minor(number)))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::asked::Place;
    use super::*;

    fn disk(number: DeviceNumber) -> AskedDisk {
        AskedDisk {
            field: "linux.devices[0]".into(),
            place: Place::Device(0),
            path: "/dev/x".into(),
            number: Some(number),
            read_only: false,
            file_system: None,
            limits: DiskLimits::default(),
        }
    }

    #[test]
    fn each_disk_gets_its_limits_and_the_guest_none() {
        let mut asked = [disk((8, 0)), disk((8, 16))];
        let mut config = json!({"linux": {"resources": {"blockIO": {
            "weight": 10,
            "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}],
            "throttleReadIOPSDevice": [{"major": 8, "minor": 0, "rate": 5}],
            "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 7}, {"major": 8, "minor": 0, "rate": 0}],
        }}}});
        take(&mut config, &mut asked).unwrap();
        assert_eq!(config["linux"]["resources"]["blockIO"], json!({"weight": 10}));
        let read = RateLimit {
            bytes_per_second: NonZeroU64::new(1000),
            operations_per_second: NonZeroU64::new(5),
            ..RateLimit::default()
        };
        assert_eq!(asked[0].limits.read, Some(read));
        assert_eq!(asked[0].limits.write, Some(RateLimit::default()));
        assert_eq!(asked[1].limits.read, None);
        let operations = asked[1].limits.write.unwrap().operations_per_second;
        assert_eq!(operations, NonZeroU64::new(7));
    }

    #[test]
    fn a_limit_for_a_disk_that_the_container_has_not_is_refused() {
        let mut config = json!({"linux": {"resources": {"blockIO": {
            "throttleWriteBpsDevice": [{"major": 8, "minor": 32, "rate": 1000}],
        }}}});
        let error = take(&mut config, &mut [disk((8, 0))]).unwrap_err().to_string();
        assert!(
            error.contains("throttleWriteBpsDevice[0]: 8:32 is no disk"),
            "{error}"
        );
        take(&mut json!({}), &mut []).unwrap();
    }
}
