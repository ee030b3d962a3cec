//! The name of content: its SHA-256.

use std::fmt;
use std::str::FromStr;

use sha2::Digest as _;

/// A SHA-256, written `sha256:` and 64 lower-case hexadecimal digits (image-spec, `descriptor.md`, "Digests").
///
/// The specification also registers SHA-512. No registry or builder is known to write it, so it is refused by
/// name instead of being carried through every path of the store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// Why a text is no digest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DigestError {
    /// Another algorithm than SHA-256, or none.
    #[error("digest `{0}` is not of the form sha256:<64 hexadecimal digits>, the only algorithm offered")]
    Algorithm(String),
    /// `sha256:` followed by something else than 64 lower-case hexadecimal digits.
    #[error("digest `{0}` does not end in 64 lower-case hexadecimal digits")]
    Hex(String),
}

impl Digest {
    /// The digest of `content`.
    pub fn of(content: &[u8]) -> Digest {
        Digest(sha2::Sha256::digest(content).into())
    }

    pub(crate) fn finish(hasher: sha2::Sha256) -> Digest {
        Digest(hasher.finalize().into())
    }

    /// The 64 hexadecimal digits, without the algorithm: a file name.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The first twelve hexadecimal digits: how people refer to it.
    pub fn short(&self) -> String {
        self.0.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Digest, DigestError> {
        let shown = || text.escape_debug().to_string();
        let hex = text
            .strip_prefix("sha256:")
            .ok_or_else(|| DigestError::Algorithm(shown()))?;
        parse_hex(hex)
            .map(Digest)
            .ok_or_else(|| DigestError::Hex(shown()))
    }
}

fn parse_hex(hex: &str) -> Option<[u8; 32]> {
    fn nibble(digit: u8) -> Option<u8> {
        match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        }
    }
    let bytes = hex
        .as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => Some(nibble(*high)? << 4 | nibble(*low)?),
            _ => None,
        })
        .collect::<Option<Vec<u8>>>()?;
    bytes.try_into().ok()
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_of_nothing_is_the_known_one_and_parses_back() {
        let empty = Digest::of(b"");
        assert_eq!(
            empty.to_string(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(empty.to_string().parse(), Ok(empty));
        assert_eq!(empty.short(), "e3b0c44298fc");
    }

    #[test]
    fn another_algorithm_is_refused_by_name() {
        let error = "sha512:00".parse::<Digest>().unwrap_err();
        assert!(error.to_string().contains("sha512:00"), "{error}");
    }

    #[test]
    fn upper_case_short_and_odd_digits_are_refused() {
        for hex in [
            "",
            "0",
            "00",
            &"A".repeat(64),
            &"0".repeat(63),
            &"0".repeat(66),
            "../../etc",
        ] {
            let text = format!("sha256:{hex}");
            assert!(
                matches!(text.parse::<Digest>(), Err(DigestError::Hex(_))),
                "{text}"
            );
        }
    }
}
