//! An error that happened in the container's process and was told through a socket.

use crate::process::CommandFailure;

/// What the container's process reported: a message, and as its source what caused it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct InitFailure {
    message: String,
    #[source]
    source: Option<Box<InitFailure>>,
    command_failure: Option<CommandFailure>,
}

impl InitFailure {
    /// Builds the chain again; `messages` has the outermost first.
    pub(super) fn new(command_failure: Option<CommandFailure>, messages: Vec<String>) -> InitFailure {
        let mut messages = messages.into_iter().rev();
        let innermost = messages
            .next()
            .unwrap_or_else(|| "no reason was given".to_owned());
        let wrap = |source, message| InitFailure {
            message,
            source,
            command_failure,
        };
        messages.fold(wrap(None, innermost), |source, message| {
            wrap(Some(Box::new(source)), message)
        })
    }

    /// Whether this is about the program, and how: it decides the exit code.
    pub fn command_failure(&self) -> Option<CommandFailure> {
        self.command_failure
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    #[test]
    fn the_chain_of_causes_is_the_one_that_was_sent() {
        let failure = InitFailure::new(None, vec!["a".into(), "b".into(), "c".into()]);
        assert_eq!(failure.to_string(), "a");
        let cause = failure.source().unwrap();
        assert_eq!(cause.to_string(), "b");
        assert_eq!(cause.source().unwrap().to_string(), "c");
    }

    #[test]
    fn no_message_at_all_still_says_something() {
        assert!(!InitFailure::new(None, Vec::new()).to_string().is_empty());
    }
}
