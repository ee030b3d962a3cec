//! Moments as text: RFC 3339 in UTC.

use std::time::Duration;

/// A moment, given as its distance from 1970, to the second.
pub(super) fn seconds(since_epoch: Duration) -> String {
    format!("{}Z", date_and_time(since_epoch.as_secs()))
}

/// The same to the nanosecond, without trailing zeros.
pub(super) fn nanoseconds(since_epoch: Duration) -> String {
    let fraction = format!("{:09}", since_epoch.subsec_nanos());
    match fraction.trim_end_matches('0') {
        "" => seconds(since_epoch),
        fraction => format!("{}.{fraction}Z", date_and_time(since_epoch.as_secs())),
    }
}

/// The date and the time of day without a zone. The calendar is computed in eras of 400 years that begin in March, so that the
/// leap day is the last of a year.
fn date_and_time(seconds: u64) -> String {
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let days_since_march_of_year_0 = days + 719_468;
    let (era, day_of_era) = (
        days_since_march_of_year_0 / 146_097,
        days_since_march_of_year_0 % 146_097,
    );
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second_of_day / 3_600, second_of_day / 60 % 60, second_of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(super::seconds(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn fractions_have_no_trailing_zeros() {
        for (nanos, text) in [
            (0, "1970-01-01T00:00:07Z"),
            (120_000_000, "1970-01-01T00:00:07.12Z"),
            (1, "1970-01-01T00:00:07.000000001Z"),
        ] {
            assert_eq!(nanoseconds(Duration::new(7, nanos)), text);
        }
    }
}
