//! Words of strangers, made fit for a terminal and a log.

/// How much of one text is shown, in characters.
const LONGEST: usize = 8 << 10;

/// The same on one line, with what would command a terminal, or turn the direction of what follows, written as an escape,
/// and cut where nobody reads on.
pub fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len().min(LONGEST));
    for (number, character) in text.chars().enumerate() {
        if number == LONGEST {
            printable.push('…');
            break;
        }
        match character {
            '\n' | '\t' => printable.push(' '),
            other if other.is_control() || is_direction(other) => printable.extend(other.escape_unicode()),
            other => printable.push(other),
        }
    }
    printable
}

/// Characters that only order others (Unicode, UAX 9: marks, embeddings, overrides, isolates).
pub fn is_direction(character: char) -> bool {
    matches!(
        character,
        '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_commands_a_terminal_is_seen_and_not_obeyed() {
        assert_eq!(
            printable("\x1b]0;owned\x07one\r\ntwo\t\u{9b}31m\u{202e}three\0"),
            "\\u{1b}]0;owned\\u{7}one\\u{d} two \\u{9b}31m\\u{202e}three\\u{0}"
        );
        let text = "plain, `quoted`, \\ and ä";
        assert_eq!(printable(text), text);
        assert_eq!(printable(&printable("\x1b")), printable("\x1b"));
    }

    #[test]
    fn a_long_text_is_cut_and_says_so() {
        assert_eq!(printable(&"ä".repeat(LONGEST)), "ä".repeat(LONGEST));
        let cut = printable(&"ä".repeat(LONGEST * 100));
        assert_eq!(cut.chars().count(), LONGEST + 1);
        assert!(cut.ends_with('…'));
        assert_eq!(printable(&cut), cut);
    }
}
