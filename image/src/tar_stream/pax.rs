//! PAX extended headers: `LENGTH KEY=VALUE\n` records that override the header they precede.

use super::Time;

/// Prefix of the keys that carry extended attributes, from star; what every image builder writes.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// The records of one extended header that matter to us.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Time>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether the entry is a sparse file in one of GNU's PAX forms.
    pub(super) sparse: bool,
}

impl Records {
    /// The records in `content`, or `None` if they are malformed.
    pub(super) fn parse(mut content: &[u8]) -> Option<Records> {
        let mut records = Records::default();
        while !content.is_empty() {
            let (key, value, rest) = record(content)?;
            records.set(key, value)?;
            content = rest;
        }
        Some(records)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"path" => self.path = Some(without_nul(value)?),
            b"linkpath" => self.link = Some(without_nul(value)?),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(decimal(value)?),
            b"gid" => self.gid = Some(decimal(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            _ if key.starts_with(b"GNU.sparse.") => self.sparse = true,
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    self.xattrs.push((without_nul(name)?, value.to_vec()));
                }
            }
        }
        Some(())
    }
}

/// The first record's key and value, and what follows it.
fn record(content: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = content.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(content.get(..space)?)?).ok()?;
    let (record, rest) = (content.get(space + 1..length)?, content.get(length..)?);
    let record = record.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (record.get(..equals)?, record.get(equals + 1..)?);
    (!key.is_empty()).then_some((key, value, rest))
}

fn without_nul(text: &[u8]) -> Option<Vec<u8>> {
    (!text.contains(&0)).then(|| text.to_vec())
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(digits).ok()?.parse().ok()
}

/// `[-]SECONDS[.FRACTION]`.
fn time(value: &[u8]) -> Option<Time> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(value) => (true, value),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
    let nanoseconds = digits.fold(0u32, |value, digit| value * 10 + u32::from(digit - b'0'));
    match (negative, nanoseconds) {
        (false, _) => Some(Time { seconds, nanoseconds }),
        (true, 0) => Some(Time {
            seconds: -seconds,
            nanoseconds: 0,
        }),
        // Half a second before the epoch is second -1 and half a second.
        (true, _) => Some(Time {
            seconds: -seconds - 1,
            nanoseconds: 1_000_000_000 - nanoseconds,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_with_newlines_and_equals_signs_are_kept() {
        let records = Records::parse(b"27 SCHILY.xattr.user.a=\n=\x00\n").unwrap();
        assert_eq!(records.xattrs, [(b"user.a".to_vec(), b"\n=\x00".to_vec())]);
    }

    #[test]
    fn the_last_of_two_records_wins() {
        let records = Records::parse(b"9 path=a\n9 path=b\n").unwrap();
        assert_eq!(records.path.as_deref(), Some(&b"b"[..]));
    }

    #[test]
    fn malformed_records_are_refused() {
        for content in [
            &b"path=a\n"[..],
            b"9 path=a",
            b"8 path=a\n",
            b"11 path=a\n",
            b"99999999999999999999 path=a\n",
            b"0 \n",
            b"1 ",
            b"5 =a\n",
            b"11 path=\x00a\n",
            b"11 size=-1\n",
        ] {
            assert_eq!(
                Records::parse(content),
                None,
                "{:?}",
                String::from_utf8_lossy(content)
            );
        }
    }

    #[test]
    fn times_keep_nanoseconds_on_both_sides_of_the_epoch() {
        assert_eq!(
            time(b"1.5"),
            Some(Time {
                seconds: 1,
                nanoseconds: 500_000_000
            })
        );
        assert_eq!(
            time(b"7"),
            Some(Time {
                seconds: 7,
                nanoseconds: 0
            })
        );
        assert_eq!(
            time(b"-0.5"),
            Some(Time {
                seconds: -1,
                nanoseconds: 500_000_000
            })
        );
        assert_eq!(
            time(b"-3"),
            Some(Time {
                seconds: -3,
                nanoseconds: 0
            })
        );
        assert_eq!(
            time(b"1.0000000019"),
            Some(Time {
                seconds: 1,
                nanoseconds: 1
            })
        );
        assert_eq!(time(b"1.x"), None);
        assert_eq!(time(b""), None);
    }
}
