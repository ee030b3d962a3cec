//! A machine's network devices.

use std::collections::HashSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::devices::rate_limiter::{BurstWithoutRate, RateLimit};

/// The MTU a device may announce (virtio 1.2, section 5.1.4.1).
pub const MTU: RangeInclusive<u16> = 68..=u16::MAX;

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
    /// The number of an open descriptor that this process inherited: a tap device opened with `IFF_TAP`, `IFF_NO_PI`
    /// and `IFF_VNET_HDR`. Without one the device has no link.
    #[serde(default)]
    pub tap_descriptor: Option<i32>,
    /// How fast it may be.
    #[serde(default)]
    pub rate_limit: NetworkRateLimit,
}

/// How fast a network device may be, without its frames' headers for the tap.
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
    /// One tap for two devices.
    #[error("two network devices have the tap of descriptor {descriptor}")]
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
        tap_descriptor,
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
        let Some(descriptor) = tap_descriptor else {
            continue;
        };
        if descriptor <= libc::STDERR_FILENO {
            return Err(NetworkError::Descriptor { mac, descriptor });
        }
        if !taps.insert(descriptor) {
            return Err(NetworkError::SameTap { descriptor });
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
        assert_eq!((plain.mtu, plain.tap_descriptor), (None, None));
        assert_eq!(
            serde_json::to_string(&plain).unwrap(),
            r#"{"mac":"02:0a:ff:00:00:01","mtu":null,"tap_descriptor":null,"rate_limit":{"receive":null,"transmit":null}}"#
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
        let plain = device(r#"{"mac":"02:00:00:00:00:01","tap_descriptor":5}"#);
        let second = device(r#"{"mac":"02:00:00:00:00:02","tap_descriptor":5}"#);
        let small = device(r#"{"mac":"02:00:00:00:00:03","mtu":67}"#);
        let standard = device(r#"{"mac":"02:00:00:00:00:04","tap_descriptor":2}"#);
        assert_eq!(
            refusal(&[plain.clone(), plain.clone()]),
            "two network devices have the address 02:00:00:00:00:01"
        );
        assert_eq!(
            refusal(&[plain, second]),
            "two network devices have the tap of descriptor 5"
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
}
