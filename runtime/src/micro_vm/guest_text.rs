//! Text that a guest has a say in, made fit for a terminal and a log.

use crate::printable::is_direction;

/// How much is shown of one text, in characters.
const LONGEST: usize = 2048;

/// How many of a list are shown.
const MOST: usize = 64;

/// The same on one line, without what would command a terminal or turn the direction of what follows, and cut where it
/// is longer than a person reads.
pub fn shown(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .map(|character| match character {
            '\n' | '\t' => ' ',
            other => other,
        })
        .filter(|character| !character.is_control() && !is_direction(*character))
        .take(LONGEST + 1)
        .collect();
    if let Some((cut, _)) = shown.char_indices().nth(LONGEST) {
        shown.truncate(cut);
        shown.push('…');
    }
    shown
}

/// The same for each of several, of which only so many are shown as a person reads.
pub fn shown_list(texts: &[String]) -> Vec<String> {
    texts.iter().take(MOST).map(|text| shown(text)).collect()
}

/// The error with its message made fit: the agent wrote it.
pub fn shown_error(error: ttrpc::Error) -> ttrpc::Error {
    match error {
        ttrpc::Error::RpcStatus(mut status) => {
            status.message = shown(&status.message);
            ttrpc::Error::RpcStatus(status)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_ends_where_nobody_reads_on() {
        let texts = vec!["a\nb".to_owned(); 1000];
        assert_eq!(shown_list(&texts), vec!["a b"; MOST]);
    }

    #[test]
    fn nothing_commands_the_terminal() {
        assert_eq!(
            shown("\x1b]0;owned\x07\x1b[2Jone\r\ntwo\u{9b}31m\u{202e}three"),
            "]0;owned[2Jone two31mthree"
        );
    }

    #[test]
    fn a_long_text_is_cut_and_says_so() {
        assert_eq!(shown(&"ä".repeat(LONGEST)), "ä".repeat(LONGEST));
        let cut = shown(&"ä".repeat(LONGEST * 10));
        assert_eq!(cut.chars().count(), LONGEST + 1);
        assert!(cut.ends_with('…'), "{cut}");
    }

    #[test]
    fn the_agents_message_is_made_fit_and_its_code_kept() {
        let error = ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::NOT_FOUND, "\x1b[31mgone"));
        let ttrpc::Error::RpcStatus(status) = shown_error(error) else {
            panic!("another kind of error");
        };
        assert_eq!(status.message, "[31mgone");
        assert_eq!(status.code(), ttrpc::Code::NOT_FOUND);
    }
}
