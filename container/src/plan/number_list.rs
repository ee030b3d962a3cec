//! Lists of numbers as the kernel writes them: `0-3,7`.

use std::ops::RangeInclusive;

use super::SpecError;

/// The ranges of a list of numbers below `limit`.
pub(super) fn parse(field: &str, text: &str, limit: u32) -> Result<Vec<RangeInclusive<u32>>, SpecError> {
    let number = |text: &str| match text.parse::<u32>() {
        Ok(number) if number < limit => Ok(number),
        Ok(number) => Err(SpecError::invalid(
            field,
            format!("{number} is above {}", limit - 1),
        )),
        Err(_) => Err(SpecError::invalid(
            field,
            format!("`{text}` is not a number: a list has the form 0-3,7"),
        )),
    };
    text.split(',')
        .map(|part| {
            let part = part.trim();
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let range = number(first)?..=number(last)?;
            match range.is_empty() {
                true => Err(SpecError::invalid(
                    field,
                    format!("`{part}` ends before it begins"),
                )),
                false => Ok(range),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ranges_are_read() {
        assert_eq!(parse("f", "0-3,7, 9-9", 10).unwrap(), [0..=3, 7..=7, 9..=9]);
    }

    #[test]
    fn what_is_no_list_of_numbers_in_bounds_is_refused() {
        for text in [
            "",
            "a",
            "1,",
            "-1",
            "3-1",
            "1-",
            "10",
            "0-10",
            "1--2",
            "4294967296",
        ] {
            assert_eq!(parse("f", text, 10).unwrap_err().field(), "f", "{text}");
        }
    }
}
