//! The last lines of a guest's console, for errors.

use std::fmt;
use std::path::Path;

use vmm::console_ring::ConsoleRing;

use super::guest_text;

/// How many lines an error shows.
const LINES: usize = 12;

/// The last lines, cleaned of what a hostile guest could do to a terminal. Shown as a block below the error; nothing
/// when the guest has said nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConsoleTail(Vec<String>);

impl ConsoleTail {
    /// Reads the ring of a machine, running or not; empty when there is none.
    pub fn read(ring: &Path) -> Self {
        ConsoleRing::read_file(ring)
            .map(|bytes| Self::of(&bytes))
            .unwrap_or_default()
    }

    /// The lines.
    pub fn lines(&self) -> &[String] {
        &self.0
    }

    fn of(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let lines: Vec<String> = text
            .lines()
            .map(guest_text::shown)
            .filter(|line| !line.trim().is_empty())
            .collect();
        let first = lines.len().saturating_sub(LINES);
        Self(lines.into_iter().skip(first).collect())
    }
}

impl fmt::Display for ConsoleTail {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        write!(formatter, "\nthe guest's console ends with:")?;
        for line in &self.0 {
            write!(formatter, "\n  | {line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_guest_adds_nothing() {
        assert_eq!(ConsoleTail::of(b"\n \n").to_string(), "");
    }

    #[test]
    fn only_the_last_lines_are_shown() {
        let text: String = (0..100).map(|number| format!("line {number}\r\n")).collect();
        let shown = ConsoleTail::of(text.as_bytes()).to_string();
        assert!(
            shown.starts_with("\nthe guest's console ends with:\n  | line 88\n"),
            "{shown}"
        );
        assert!(shown.ends_with("| line 99"), "{shown}");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let shown = ConsoleTail::of(b"\x1b]0;owned\x07\x1b[2Jtext").to_string();
        assert!(!shown.contains('\x1b') && !shown.contains('\x07'), "{shown:?}");
    }
}
