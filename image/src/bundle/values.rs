//! What a person writes for a limit, a variable or a bind mount.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A value that could not be understood, and what would have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` is not {expected}")]
pub struct InvalidValue {
    value: String,
    expected: &'static str,
}

impl InvalidValue {
    pub(super) fn new(value: &str, expected: &'static str) -> InvalidValue {
        InvalidValue {
            value: value.escape_debug().to_string(),
            expected,
        }
    }
}

/// A number of bytes: `64m`, `1g`, `1.5g`, `65536`, `512k`, also `64MiB`; units are powers of 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<ByteSize, InvalidValue> {
        let invalid =
            || InvalidValue::new(text, "a size such as 64m, 1.5g or 65536: units are b, k, m, g, t");
        let digits = text.len()
            - text
                .trim_start_matches(|c: char| c.is_ascii_digit() || c == '.')
                .len();
        let (number, unit) = text.split_at(digits);
        let shift = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(invalid()),
        };
        let billionths = decimal(number).ok_or_else(invalid)?;
        let bytes = (billionths << shift) / BILLION;
        // Limits are signed in the runtime specification.
        match i64::try_from(bytes) {
            Ok(bytes @ 1..) => Ok(ByteSize(bytes.unsigned_abs())),
            _ => Err(invalid()),
        }
    }
}

/// A share of processors: `2`, `0.5`; to a thousandth, at least a hundredth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CpuCount {
    thousandths: u32,
}

impl CpuCount {
    /// The scheduler's period in microseconds, as Docker sets it.
    pub const PERIOD: u64 = 100_000;

    /// Microseconds of processor time in each period. At least 1000, the least the kernel takes.
    pub fn quota(&self) -> i64 {
        i64::from(self.thousandths) * 100
    }

    /// Thousandths of a processor.
    pub fn thousandths(&self) -> u32 {
        self.thousandths
    }
}

impl FromStr for CpuCount {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<CpuCount, InvalidValue> {
        let invalid =
            || InvalidValue::new(text, "a number of processors such as 2 or 0.5, from 0.01 to 8192");
        let billionths = decimal(text).ok_or_else(invalid)?;
        match u32::try_from(billionths / (BILLION / 1000)) {
            Ok(thousandths @ 10..=8_192_000) => Ok(CpuCount { thousandths }),
            _ => Err(invalid()),
        }
    }
}

/// How many processes and threads: a number from 1, or `-1` for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PidsLimit(pub i64);

impl FromStr for PidsLimit {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<PidsLimit, InvalidValue> {
        match text.parse() {
            Ok(limit) if limit == -1 || (1..=4_194_304).contains(&limit) => Ok(PidsLimit(limit)),
            _ => Err(InvalidValue::new(
                text,
                "a number of processes from 1 to 4194304, or -1 for no limit",
            )),
        }
    }
}

/// A variable of the environment: `NAME=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// Without `=`.
    pub name: String,
    /// Anything.
    pub value: String,
}

impl FromStr for Variable {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Variable, InvalidValue> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() && !text.contains('\0') => Ok(Variable {
                name: name.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err(InvalidValue::new(text, "a variable of the form NAME=VALUE")),
        }
    }
}

impl fmt::Display for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.value)
    }
}

/// A host's folder or file shown in the container: `HOST:DEST[:ro|rw]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Absolute path on the host.
    pub host: PathBuf,
    /// Absolute path in the container, without `.` and `..`, not the root.
    pub destination: PathBuf,
    /// Whether the container may not write to it.
    pub read_only: bool,
}

impl FromStr for Bind {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Bind, InvalidValue> {
        const FORM: &str = "a mount of the form HOST:DEST[:ro|rw] with two absolute paths without colons";
        let invalid = |expected| InvalidValue::new(text, expected);
        let mut parts = text.split(':');
        let (Some(host), Some(destination)) = (parts.next(), parts.next()) else {
            return Err(invalid(FORM));
        };
        let read_only = match (parts.next(), parts.next()) {
            (None | Some("rw"), None) => false,
            (Some("ro"), None) => true,
            _ => return Err(invalid(FORM)),
        };
        if text.contains('\0') || !destination.starts_with('/') {
            return Err(invalid(FORM));
        }
        if !host.starts_with('/') {
            return Err(invalid(
                "a mount whose host path is absolute: named volumes are not offered",
            ));
        }
        let components: Vec<&str> = destination
            .split('/')
            .filter(|part| !matches!(*part, "" | "."))
            .collect();
        if components.is_empty() || components.contains(&"..") {
            return Err(invalid("a mount below the container's root, without `..`"));
        }
        let destination = PathBuf::from(format!("/{}", components.join("/")));
        Ok(Bind {
            host: host.into(),
            destination,
            read_only,
        })
    }
}

const BILLION: u128 = 1_000_000_000;

/// A decimal number with at most nine digits behind the point, in billionths. Exact, unlike a float.
fn decimal(text: &str) -> Option<u128> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) {
        return None;
    }
    if whole.len() > 19 || fraction.len() > 9 {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let fraction: u128 = format!("{fraction:0<9}").parse().ok()?;
    Some(whole * BILLION + fraction)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_in_every_unit_are_powers_of_1024() {
        for (text, bytes) in [
            ("65536", 65536),
            ("1b", 1),
            ("2k", 2048),
            ("64m", 64 << 20),
            ("64M", 64 << 20),
            ("64MiB", 64 << 20),
            ("1g", 1 << 30),
            ("1.5g", 3 << 29),
            (".5k", 512),
            ("1T", 1 << 40),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn sizes_that_are_none_are_refused_with_an_example() {
        for text in [
            "",
            "m",
            ".",
            "-1m",
            "0",
            "0.1",
            "1 m",
            "64q",
            "1..5m",
            "1.5.5m",
            "9999999999999t",
            "١m",
            "+1",
        ] {
            let error = text.parse::<ByteSize>().unwrap_err();
            assert!(error.to_string().contains("64m"), "{text}: {error}");
        }
    }

    #[test]
    fn cpu_counts_become_quotas() {
        for (text, quota) in [
            ("1", 100_000),
            ("0.5", 50_000),
            ("2.25", 225_000),
            ("0.01", 1_000),
            (".5", 50_000),
        ] {
            assert_eq!(text.parse::<CpuCount>().unwrap().quota(), quota, "{text}");
        }
        for text in ["", "0", "0.009", "-1", "1e3", "nan", "inf", "9000", "1,5"] {
            assert!(text.parse::<CpuCount>().is_err(), "{text}");
        }
    }

    #[test]
    fn pids_limits_are_positive_or_none() {
        assert_eq!("100".parse(), Ok(PidsLimit(100)));
        assert_eq!("-1".parse(), Ok(PidsLimit(-1)));
        for text in ["0", "-2", "", "x", "99999999999999999999"] {
            assert!(text.parse::<PidsLimit>().is_err(), "{text}");
        }
    }

    #[test]
    fn variables_are_split_at_the_first_equals_sign() {
        let variable: Variable = "A=b=c".parse().unwrap();
        assert_eq!((variable.name.as_str(), variable.value.as_str()), ("A", "b=c"));
        assert_eq!("A=".parse::<Variable>().unwrap().value, "");
        for text in ["", "A", "=b", "A=\0"] {
            assert!(text.parse::<Variable>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn binds_with_and_without_mode_are_read() {
        let bind: Bind = "/data:/srv//./data/".parse().unwrap();
        assert_eq!(bind.destination, PathBuf::from("/srv/data"));
        assert!(!bind.read_only);
        assert!("/data:/d:ro".parse::<Bind>().unwrap().read_only);
        assert!(!"/data:/d:rw".parse::<Bind>().unwrap().read_only);
    }

    #[test]
    fn malformed_binds_are_refused() {
        for text in [
            "",
            "/a",
            "/a:b",
            "a:/b",
            "./a:/b",
            "/a:/b:xx",
            "/a:/b:ro:ro",
            "/a:/",
            "/a:/../b",
            "/a:/b/..",
            ":/b",
            "/a:",
        ] {
            assert!(text.parse::<Bind>().is_err(), "{text}");
        }
    }

    #[test]
    fn messages_show_control_characters_escaped() {
        let error = "\u{1b}[31m".parse::<ByteSize>().unwrap_err().to_string();
        assert!(!error.contains('\u{1b}'), "{error:?}");
    }

    proptest! {
        #[test]
        fn whole_sizes_keep_every_byte(bytes in 1..=i64::MAX as u64) {
            prop_assert_eq!(bytes.to_string().parse(), Ok(ByteSize(bytes)));
        }

        #[test]
        fn sizes_with_units_are_exact(number in 1u64..8_000_000, unit in 0usize..4) {
            let text = format!("{number}{}", ["b", "k", "m", "g"][unit]);
            prop_assert_eq!(text.parse(), Ok(ByteSize(number << (10 * unit))));
        }

        #[test]
        fn any_text_is_read_or_refused_without_panic(text in "\\PC{0,40}") {
            let _ = text.parse::<ByteSize>();
            let _ = text.parse::<CpuCount>();
            let _ = text.parse::<PidsLimit>();
            let _ = text.parse::<Variable>();
            let _ = text.parse::<Bind>();
        }
    }
}
