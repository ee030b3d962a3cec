//! Maps of the configuration in an order, without which a container would be made, or refused, differently each time.

use std::collections::HashMap;

/// The entries of `map` in the order of their keys.
pub(crate) fn by_key<V>(map: &HashMap<String, V>) -> Vec<(&str, &V)> {
    let mut entries: Vec<_> = map.iter().map(|(key, value)| (key.as_str(), value)).collect();
    entries.sort_unstable_by_key(|(key, _)| *key);
    entries
}
