//! Names in a layer: which part of the tree they mean, and which of them are whiteouts.

use super::LayerError;
use crate::tar_stream::Entry;

/// Prefix of a name that deletes another (image-spec, `layer.md`, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
/// The name that hides everything the layers below have in its folder.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Prefix of AUFS's own bookkeeping, which older builders left in layers.
const AUFS: &[u8] = b".wh..wh.";

/// The longest component a file system takes (`NAME_MAX`).
const LONGEST_COMPONENT: usize = 255;

/// A checked name, as components below the layer's root.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct EntryPath<'a> {
    /// The folders on the way.
    pub(super) folders: Vec<&'a [u8]>,
    /// The last component, or `None` for the root itself.
    pub(super) base: Option<&'a [u8]>,
}

/// What an entry's last component says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning<'a> {
    /// The entry stands for itself.
    Itself(&'a [u8]),
    /// The lower layers' file of this name is deleted.
    Whiteout(&'a [u8]),
    /// The lower layers' content of the folder is hidden.
    Opaque,
    /// AUFS's bookkeeping, meaningless to anyone else.
    Ignored,
}

/// Why a name is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Climbs(&'static str),
    Invalid(&'static str),
}

impl Fault {
    pub(super) fn of(self, entry: &Entry) -> LayerError {
        let entry = shown(&entry.name);
        match self {
            Fault::Climbs(reason) => LayerError::Climbs { entry, reason },
            Fault::Invalid(reason) => LayerError::Name { entry, reason },
        }
    }

    /// The same fault in the name a hard link points to.
    pub(super) fn of_target(self, entry: &Entry) -> LayerError {
        let (entry, target) = (shown(&entry.name), shown(&entry.link));
        match self {
            Fault::Climbs(_) => LayerError::TargetClimbs { entry, target },
            Fault::Invalid(_) => LayerError::HardLinkTarget { entry, target },
        }
    }
}

/// A name for a message: what a stranger chose must not reach a terminal as it is.
pub(super) fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).escape_debug().to_string()
}

/// Splits a name into components. `.` and doubled slashes mean nothing, as everywhere.
pub(super) fn parse(name: &[u8]) -> Result<EntryPath<'_>, Fault> {
    if name.is_empty() {
        return Err(Fault::Invalid("it is empty"));
    }
    if name.contains(&0) {
        return Err(Fault::Invalid("it contains a NUL"));
    }
    if name.starts_with(b"/") {
        return Err(Fault::Climbs("its name is absolute"));
    }
    let mut folders = Vec::new();
    for component in name.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(Fault::Climbs("its name contains `..`")),
            _ if component.len() > LONGEST_COMPONENT => {
                return Err(Fault::Invalid("a part of it is longer than 255 bytes"));
            }
            _ => folders.push(component),
        }
    }
    let base = folders.pop();
    Ok(EntryPath { folders, base })
}

/// Tells whiteouts from ordinary names.
pub(super) fn meaning(base: &[u8]) -> Result<Meaning<'_>, Fault> {
    if base == OPAQUE {
        return Ok(Meaning::Opaque);
    }
    if is_aufs(base) {
        return Ok(Meaning::Ignored);
    }
    let Some(hidden) = base.strip_prefix(WHITEOUT) else {
        return Ok(Meaning::Itself(base));
    };
    match hidden {
        b"" => Err(Fault::Invalid("it is a whiteout of nothing")),
        b"." | b".." => Err(Fault::Climbs("it is a whiteout of a folder on its own path")),
        _ => Ok(Meaning::Whiteout(hidden)),
    }
}

/// Whether a component belongs to AUFS's bookkeeping.
pub(super) fn is_aufs(component: &[u8]) -> bool {
    component.starts_with(AUFS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn joined(name: &str) -> Option<String> {
        let path = parse(name.as_bytes()).ok()?;
        let parts: Vec<_> = path.folders.into_iter().chain(path.base).collect();
        Some(String::from_utf8(parts.join(&b'/')).unwrap())
    }

    #[test]
    fn plain_names_are_split() {
        for (name, expected) in [
            ("a", "a"),
            ("a/b", "a/b"),
            ("./a//b/", "a/b"),
            ("./", ""),
            (".", ""),
            ("a/./b", "a/b"),
        ] {
            assert_eq!(joined(name).as_deref(), Some(expected), "{name}");
        }
    }

    #[test]
    fn climbing_names_are_refused() {
        for name in [
            "/",
            "/a",
            "//a",
            "..",
            "../a",
            "a/..",
            "a/../b",
            "./../a",
            "a/b/../../../c",
        ] {
            assert!(matches!(parse(name.as_bytes()), Err(Fault::Climbs(_))), "{name}");
        }
    }

    #[test]
    fn names_that_only_look_like_climbing_pass() {
        for name in ["...", "..a", "a..", ".a/..b", "a/..."] {
            assert_eq!(joined(name).as_deref(), Some(name));
        }
    }

    #[test]
    fn whiteouts_and_opaque_markers_are_told_apart() {
        assert_eq!(meaning(b"a"), Ok(Meaning::Itself(b"a")));
        assert_eq!(meaning(b".wh.a"), Ok(Meaning::Whiteout(b"a")));
        assert_eq!(meaning(b".wh..hidden"), Ok(Meaning::Whiteout(b".hidden")));
        assert_eq!(meaning(b".wh..wh..opq"), Ok(Meaning::Opaque));
        assert_eq!(meaning(b".wh..wh.plnk"), Ok(Meaning::Ignored));
        assert_eq!(meaning(b".wh.aufs"), Ok(Meaning::Whiteout(b"aufs")));
    }

    #[test]
    fn whiteouts_of_dot_and_dot_dot_are_refused() {
        assert!(matches!(meaning(b".wh.."), Err(Fault::Climbs(_))));
        assert!(matches!(meaning(b".wh..."), Err(Fault::Climbs(_))));
        assert!(matches!(meaning(b".wh."), Err(Fault::Invalid(_))));
    }

    proptest! {
        #[test]
        fn no_component_ever_climbs_or_nests(name in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(path) = parse(&name) {
                for part in path.folders.iter().copied().chain(path.base) {
                    prop_assert!(!part.is_empty() && part != b"." && part != b"..");
                    prop_assert!(!part.contains(&b'/') && !part.contains(&0));
                }
            }
        }

        #[test]
        fn no_whiteout_hides_more_than_one_name_beside_it(base in "(\\.wh)?[.wh]{0,8}[a-z.]{0,8}") {
            prop_assume!(!base.is_empty() && base != "." && base != "..");
            if let Ok(Meaning::Whiteout(hidden) | Meaning::Itself(hidden)) = meaning(base.as_bytes()) {
                prop_assert!(!hidden.is_empty() && hidden != b"." && hidden != b"..");
            }
        }

        #[test]
        fn a_whiteout_of_any_ordinary_name_hides_that_name(hidden in "[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,20}") {
            let base = format!(".wh.{hidden}");
            prop_assert_eq!(meaning(base.as_bytes()), Ok(Meaning::Whiteout(hidden.as_bytes())));
        }
    }
}
