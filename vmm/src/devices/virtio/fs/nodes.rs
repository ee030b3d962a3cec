//! The files that the guest holds a number for.

use std::collections::HashMap;
use std::ffi::CStr;
use std::time::Duration;

use fuse_backend_rs::api::filesystem::ROOT_ID;

/// The name, in a directory of the owner's, below which hardly anyone but the guest changes anything: a client that copies
/// files into a running container does.
const EXCLUSIVE_NAME: &CStr = c"rootfs";

/// After this time what somebody else has changed all the same shows in the guest. Seldom enough that asking again costs
/// little: once for each name in use.
const LONG: Duration = Duration::from_secs(10);
/// The same where others change things as a matter of course.
const SHORT: Duration = Duration::from_secs(1);

/// Where in the share a file is, which decides who changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The root of the share.
    Share,
    /// A directory in the root, or a file.
    Owned,
    /// The root of a container's own file system, or something in it.
    Exclusive,
    /// Anything else.
    Common,
}

impl Place {
    /// The place of `name` in a directory that is here.
    pub(super) fn child(self, name: &CStr) -> Self {
        match self {
            Self::Share => Self::Owned,
            Self::Owned if name == EXCLUSIVE_NAME => Self::Exclusive,
            Self::Exclusive => Self::Exclusive,
            Self::Owned | Self::Common => Self::Common,
        }
    }

    /// How long the guest may keep the attributes of a file that is here and, if it is a directory, the names in it.
    pub(super) fn kept_for(self) -> Duration {
        match self {
            Self::Share | Self::Owned => Duration::ZERO,
            Self::Exclusive => LONG,
            Self::Common => SHORT,
        }
    }
}

/// A file the guest has looked up more often than it has forgotten it.
#[derive(Debug)]
struct Node {
    lookups: u64,
    place: Place,
}

/// The files the guest knows. For each the server holds a descriptor, so there is a limit.
#[derive(Debug)]
pub(super) struct Nodes {
    nodes: HashMap<u64, Node>,
    limit: usize,
}

impl Nodes {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            nodes: HashMap::new(),
            limit,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.nodes.len() >= self.limit
    }

    /// Counts one more lookup of `number`, found at `place`; false when it is new and there is no room. A file with
    /// several names keeps the place it was found at first.
    #[must_use]
    pub(super) fn look_up(&mut self, number: u64, place: Place) -> bool {
        if number == ROOT_ID {
            return true;
        }
        if let Some(node) = self.nodes.get_mut(&number) {
            node.lookups = node.lookups.saturating_add(1);
            return true;
        }
        if self.is_full() {
            return false;
        }
        self.nodes.insert(number, Node { lookups: 1, place });
        true
    }

    /// Takes back `count` lookups.
    pub(super) fn forget(&mut self, number: u64, count: u64) {
        if let Some(node) = self.nodes.get_mut(&number) {
            node.lookups = node.lookups.saturating_sub(count);
            if node.lookups == 0 {
                self.nodes.remove(&number);
            }
        }
    }

    /// Where `number` is; one that is not known is treated as the least cacheable.
    pub(super) fn place(&self, number: u64) -> Place {
        if number == ROOT_ID {
            return Place::Share;
        }
        self.nodes.get(&number).map_or(Place::Owned, |node| node.place)
    }

    pub(super) fn clear(&mut self) {
        self.nodes = HashMap::new();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_follow_the_layout_of_the_share() {
        let container = Place::Share.child(c"rootfs");
        assert_eq!(container, Place::Owned);
        let root = container.child(c"rootfs");
        assert_eq!(root, Place::Exclusive);
        assert_eq!(root.child(c"etc").child(c"passwd"), Place::Exclusive);
        let volume = container.child(c"volume");
        assert_eq!(volume, Place::Common);
        assert_eq!(volume.child(c"rootfs"), Place::Common);
    }

    #[test]
    fn a_node_stays_until_every_lookup_is_forgotten() {
        let mut nodes = Nodes::new(2);
        assert!(nodes.look_up(5, Place::Exclusive));
        assert!(nodes.look_up(5, Place::Common));
        assert_eq!(nodes.place(5), Place::Exclusive);
        nodes.forget(5, 1);
        assert_eq!(nodes.len(), 1);
        nodes.forget(5, u64::MAX);
        nodes.forget(5, 1);
        assert_eq!(nodes.len(), 0);
        assert_eq!(nodes.place(5), Place::Owned);
    }

    #[test]
    fn a_full_table_takes_no_new_node_but_counts_old_ones() {
        let mut nodes = Nodes::new(1);
        assert!(nodes.look_up(5, Place::Common));
        assert!(!nodes.look_up(6, Place::Common));
        assert!(nodes.look_up(5, Place::Common));
        assert!(nodes.look_up(ROOT_ID, Place::Share));
        nodes.forget(5, 2);
        assert!(nodes.look_up(6, Place::Common));
    }

    #[test]
    fn the_root_cannot_be_forgotten() {
        let mut nodes = Nodes::new(1);
        nodes.forget(ROOT_ID, u64::MAX);
        assert_eq!(nodes.place(ROOT_ID), Place::Share);
    }
}
