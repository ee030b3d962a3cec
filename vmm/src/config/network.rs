//! A machine's network devices.

use std::collections::HashSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::devices::rate_limiter::{BurstWithoutRate, RateLimit};

/// The MTU a device may announce (virtio 1.2, section 5.1.4.1).
pub const MTU: RangeInclusive<u16> = 68..=u16::MAX;

/// The pairs of queues that a device may have. Each has a thread.
pub const QUEUE_PAIRS: RangeInclusive<u8> = 1..=8;

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkDevice {
    /// Its address. A guest that goes on from a snapshot keeps using the one it has read before until its own software
    /// sets this one.
    pub mac: MacAddress,
    /// The greatest MTU the guest may use, in [`MTU`]; without one it chooses. It must be the same as in the snapshot.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// How many pairs of a receive and a transmit queue it has, in [`QUEUE_PAIRS`]; one is of use for each vCPU. It must
    /// be the same as in the snapshot.
    #[serde(default = "one_pair")]
    pub queue_pairs: u8,
    /// The numbers of open descriptors that this process inherited, one for each pair: a tap device opened with `IFF_TAP`,
    /// `IFF_NO_PI` and `IFF_VNET_HDR`, and if there are several with `IFF_MULTI_QUEUE`. Without any the device has no
    /// link.
    #[serde(default)]
    pub tap_descriptors: Vec<i32>,
    /// How fast it may be.
    #[serde(default)]
    pub rate_limit: NetworkRateLimit,
}

fn one_pair() -> u8 {
    1
}

/// How fast a network device may be, in all of its queues together, without its frames' headers for the tap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkRateLimit {
    /// To the guest.
    #[serde(default)]
    pub receive: Option<RateLimit>,
    /// From the guest.
    #[serde(default)]
    pub transmit: Option<RateLimit>,
}

/// An Ethernet address of one station, in JSON a string like `02:00:00:00:00:01`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddress([u8; 6]);

/// Why a text is no station's address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MacAddressError {
    /// It has another form.
    #[error("{0:?} is no MAC address: it has the form 02:00:00:00:00:01")]
    Form(String),
    /// It is the address of several stations, or of none.
    #[error("{0} is not the address of one station: the lowest bit of its first byte is set, or it is zero")]
    Group(MacAddress),
}

impl MacAddress {
    /// The address of these bytes.
    ///
    /// # Errors
    /// When it is a group's, or zero.
    pub fn new(octets: [u8; 6]) -> Result<Self, MacAddressError> {
        let address = Self(octets);
        if octets[0] & 1 != 0 || octets == [0; 6] {
            return Err(MacAddressError::Group(address));
        }
        Ok(address)
    }

    /// Its bytes, in the order they are sent.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = MacAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || MacAddressError::Form(text.to_owned());
        let octet = |part: &str| match part.as_bytes() {
            [a, b] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => u8::from_str_radix(part, 16).ok(),
            _ => None,
        };
        let octets: Vec<u8> = text
            .split(':')
            .map(octet)
            .collect::<Option<_>>()
            .ok_or_else(form)?;
        Self::new(octets.try_into().map_err(|_| form())?)
    }
}

impl Serialize for MacAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Why a machine cannot have such network devices.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// An MTU no device announces.
    #[error("the network device {mac} has an MTU of {mtu}: it has {} to {}", MTU.start(), MTU.end())]
    Mtu {
        /// Which device.
        mac: MacAddress,
        /// The MTU asked for.
        mtu: u16,
    },
    /// A number of queue pairs that no device has.
    #[error(
        "the network device {mac} has {queue_pairs} pairs of queues: it has {} to {}",
        QUEUE_PAIRS.start(),
        QUEUE_PAIRS.end()
    )]
    QueuePairs {
        /// Which device.
        mac: MacAddress,
        /// The number asked for.
        queue_pairs: u8,
    },
    /// Pairs without a descriptor, or descriptors without a pair.
    #[error(
        "the network device {mac} has {descriptors} tap descriptors and {queue_pairs} pairs of queues: it has one for \
         each pair, or none"
    )]
    DescriptorCount {
        /// Which device.
        mac: MacAddress,
        /// How many descriptors it has.
        descriptors: usize,
        /// How many pairs.
        queue_pairs: u8,
    },
    /// A descriptor that is a standard stream, or none.
    #[error(
        "the tap of the network device {mac} is descriptor {descriptor}: an inherited tap has a number above 2"
    )]
    Descriptor {
        /// Which device.
        mac: MacAddress,
        /// The number.
        descriptor: i32,
    },
    /// One address for two devices.
    #[error("two network devices have the address {mac}")]
    SameAddress {
        /// The address.
        mac: MacAddress,
    },
    /// One descriptor twice, for one device or for two.
    #[error(
        "the tap descriptor {descriptor} is there twice: each pair of queues of each network device has its own"
    )]
    SameTap {
        /// The number.
        descriptor: i32,
    },
    /// A rate limit that says less than it seems to.
    #[error("the rate limit of the network device {mac}")]
    RateLimit {
        /// Which device.
        mac: MacAddress,
        /// The cause.
        #[source]
        source: BurstWithoutRate,
    },
}

/// Checks all that can be checked without looking at a tap.
pub(super) fn validate(devices: &[NetworkDevice]) -> Result<(), NetworkError> {
    let (mut addresses, mut taps) = (HashSet::new(), HashSet::new());
    for &NetworkDevice {
        mac,
        mtu,
        queue_pairs,
        ref tap_descriptors,
        rate_limit,
    } in devices
    {
        for limit in [rate_limit.receive, rate_limit.transmit].into_iter().flatten() {
            limit
                .validate()
                .map_err(|source| NetworkError::RateLimit { mac, source })?;
        }
        if let Some(mtu) = mtu.filter(|mtu| !MTU.contains(mtu)) {
            return Err(NetworkError::Mtu { mac, mtu });
        }
        if !addresses.insert(mac) {
            return Err(NetworkError::SameAddress { mac });
        }
        if !QUEUE_PAIRS.contains(&queue_pairs) {
            return Err(NetworkError::QueuePairs { mac, queue_pairs });
        }
        let descriptors = tap_descriptors.len();
        if descriptors != 0 && descriptors != usize::from(queue_pairs) {
            return Err(NetworkError::DescriptorCount {
                mac,
                descriptors,
                queue_pairs,
            });
        }
        for &descriptor in tap_descriptors {
            if descriptor <= libc::STDERR_FILENO {
                return Err(NetworkError::Descriptor { mac, descriptor });
            }
            if !taps.insert(descriptor) {
                return Err(NetworkError::SameTap { descriptor });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(json: &str) -> NetworkDevice {
        serde_json::from_str(json).unwrap()
    }

    fn refusal(devices: &[NetworkDevice]) -> String {
        validate(devices).unwrap_err().to_string()
    }

    #[test]
    fn only_the_address_is_required_and_it_survives_the_trip_through_json() {
        let plain = device(r#"{"mac":"02:0a:FF:00:00:01"}"#);
        assert_eq!(
            (plain.mtu, plain.queue_pairs, plain.tap_descriptors.len()),
            (None, 1, 0)
        );
        assert_eq!(
            serde_json::to_string(&plain).unwrap(),
            r#"{"mac":"02:0a:ff:00:00:01","mtu":null,"queue_pairs":1,"tap_descriptors":[],"rate_limit":{"receive":null,"transmit":null}}"#
        );
        validate(&[plain]).unwrap();
    }

    #[test]
    fn what_is_no_stations_address_is_refused() {
        for text in [
            "",
            "02",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "02:00:00:00:00:+1",
            "2:0:0:0:0:1",
            "02-00-00-00-00-01",
        ] {
            let error = text.parse::<MacAddress>().unwrap_err();
            assert!(matches!(error, MacAddressError::Form(_)), "{text}: {error}");
        }
        for text in ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "00:00:00:00:00:00"] {
            let error = text.parse::<MacAddress>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text} is not the address of one station")));
        }
    }

    #[test]
    fn devices_that_cannot_be_are_refused_by_name() {
        let plain = device(r#"{"mac":"02:00:00:00:00:01","tap_descriptors":[5]}"#);
        let second = device(r#"{"mac":"02:00:00:00:00:02","tap_descriptors":[5]}"#);
        let small = device(r#"{"mac":"02:00:00:00:00:03","mtu":67}"#);
        let standard = device(r#"{"mac":"02:00:00:00:00:04","tap_descriptors":[2]}"#);
        assert_eq!(
            refusal(&[plain.clone(), plain.clone()]),
            "two network devices have the address 02:00:00:00:00:01"
        );
        assert_eq!(
            refusal(&[plain, second]),
            "the tap descriptor 5 is there twice: each pair of queues of each network device has its own"
        );
        assert_eq!(
            refusal(&[small]),
            "the network device 02:00:00:00:00:03 has an MTU of 67: it has 68 to 65535"
        );
        let limit = r#"{"mac":"02:00:00:00:00:05","rate_limit":{"transmit":{"burst_bytes":1}}}"#;
        assert_eq!(
            refusal(&[device(limit)]),
            "the rate limit of the network device 02:00:00:00:00:05"
        );
        assert!(refusal(&[standard]).ends_with("is descriptor 2: an inherited tap has a number above 2"));
    }

    #[test]
    fn pairs_of_queues_have_a_descriptor_each_or_none_at_all() {
        let device = |pairs: u8, descriptors: &str| {
            device(&format!(
                r#"{{"mac":"02:00:00:00:00:01","queue_pairs":{pairs},"tap_descriptors":{descriptors}}}"#
            ))
        };
        for (pairs, descriptors) in [(1, "[5]"), (3, "[5,6,7]"), (8, "[]")] {
            validate(&[device(pairs, descriptors)]).unwrap();
        }
        for pairs in [0, 9, 255] {
            assert_eq!(
                refusal(&[device(pairs, "[]")]),
                format!("the network device 02:00:00:00:00:01 has {pairs} pairs of queues: it has 1 to 8")
            );
        }
        for (pairs, descriptors, count) in [(1, "[5,6]", 2), (2, "[5]", 1), (3, "[5,6,7,8]", 4)] {
            assert_eq!(
                refusal(&[device(pairs, descriptors)]),
                format!(
                    "the network device 02:00:00:00:00:01 has {count} tap descriptors and {pairs} pairs of queues: it \
                     has one for each pair, or none"
                )
            );
        }
        assert!(refusal(&[device(2, "[5,5]")]).starts_with("the tap descriptor 5 is there twice"));
        // There is one way to say it.
        let old = r#"{"mac":"02:00:00:00:00:01","tap_descriptor":5}"#;
        assert!(serde_json::from_str::<NetworkDevice>(old).is_err());
    }
}
