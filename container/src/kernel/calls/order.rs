//! Which call comes before which, in a record of them.

/// Calls, in order: each a name, with what tells it from others of that name.
#[derive(Debug)]
pub(crate) struct Order(Vec<String>);

impl Order {
    /// The same call on different things of a kind in a row is one.
    pub(super) fn new(mut calls: Vec<String>) -> Order {
        calls.dedup();
        Order(calls)
    }

    pub(crate) fn calls(&self) -> &[String] {
        &self.0
    }

    fn places(&self, call: &str) -> impl DoubleEndedIterator<Item = usize> {
        let is_it = move |made: &str| {
            made.strip_prefix(call)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        };
        self.0
            .iter()
            .enumerate()
            .filter(move |(_, made)| is_it(made))
            .map(|(place, _)| place)
    }

    #[track_caller]
    pub(crate) fn first(&self, call: &str) -> usize {
        let place = self.places(call).next();
        place.unwrap_or_else(|| panic!("no {call} in:\n{}", self.0.join("\n")))
    }

    #[track_caller]
    pub(crate) fn last(&self, call: &str) -> usize {
        let place = self.places(call).next_back();
        place.unwrap_or_else(|| panic!("no {call} in:\n{}", self.0.join("\n")))
    }

    /// Every one of these before any of the next.
    #[track_caller]
    pub(crate) fn is(&self, calls: &[&str]) {
        for pair in calls.windows(2) {
            let (last, first) = (self.last(pair[0]), self.first(pair[1]));
            assert!(
                last < first,
                "{} is not before {} in:\n{}",
                pair[0],
                pair[1],
                self.0.join("\n")
            );
        }
    }

    pub(crate) fn has(&self, call: &str) -> bool {
        self.places(call).next().is_some()
    }
}
