//! KVM's structures in a JSON document: their bytes, as a string of hexadecimal digits.

use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A structure whose every pattern of bytes is a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Raw<T>(pub T);

impl<T: IntoBytes + Immutable> Serialize for Raw<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = self.0.as_bytes();
        let mut digits = String::with_capacity(bytes.len() * 2);
        for byte in bytes {
            digits.extend([byte >> 4, byte & 0xf].map(digit));
        }
        serializer.serialize_str(&digits)
    }
}

impl<'de, T: IntoBytes + FromBytes> Deserialize<'de> for Raw<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = T::new_zeroed();
        deserializer.deserialize_str(Digits(value.as_mut_bytes()))?;
        Ok(Self(value))
    }
}

/// Takes digits for all the bytes it borrows.
struct Digits<'a>(&'a mut [u8]);

impl Visitor<'_> for Digits<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} hexadecimal digits", self.0.len() * 2)
    }

    fn visit_str<E: Error>(self, digits: &str) -> Result<(), E> {
        let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
        if pairs.len() != self.0.len() || !rest.is_empty() {
            return Err(E::invalid_length(digits.len(), &self));
        }
        for (byte, [high, low]) in self.0.iter_mut().zip(pairs) {
            match (value(*high), value(*low)) {
                (Some(high), Some(low)) => *byte = high << 4 | low,
                _ => return Err(E::custom("a character that is no hexadecimal digit")),
            }
        }
        Ok(())
    }
}

fn digit(value: u8) -> char {
    char::from(match value {
        0..=9 => b'0' + value,
        _ => b'a' + value - 10,
    })
}

fn value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Raw<[u8; 3]>, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn bytes_survive_the_trip_through_json() {
        let json = serde_json::to_string(&Raw([0u8, 0x9f, 0xff])).unwrap();
        assert_eq!(json, "\"009fff\"");
        assert_eq!(read(&json).unwrap().0, [0, 0x9f, 0xff]);
    }

    #[test]
    fn too_few_too_many_and_odd_digits_are_refused() {
        for json in ["\"\"", "\"0000\"", "\"00000\"", "\"0000000\"", "\"00000000\""] {
            assert!(
                read(json).unwrap_err().contains("expected 6 hexadecimal digits"),
                "{json}"
            );
        }
    }

    #[test]
    fn other_characters_and_other_values_are_refused() {
        for json in [
            "\"00000g\"",
            "\"00000F\"",
            "\"0000\\u00e9\"",
            "\" 00000\"",
            "7",
            "null",
            "[0,0,0]",
        ] {
            assert!(read(json).is_err(), "{json}");
        }
    }
}
