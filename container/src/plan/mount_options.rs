//! The words in a mount's `options`, as mount(8) knows them, and what each does.

use crate::kernel::mount_setattr::attribute;

/// What a list of mount options comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MountOptions {
    /// For the mount itself.
    pub(crate) attributes: AttributeChange,
    /// For the mount and all below it.
    pub(crate) recursive_attributes: AttributeChange,
    /// MS_ flags of the file system, beside those of the mount.
    pub(crate) superblock: u64,
    /// One of MS_PRIVATE, MS_SLAVE, MS_SHARED, MS_UNBINDABLE, and whether for all mounts below too.
    pub(crate) propagation: Option<(u64, bool)>,
    /// Whether this is a bind mount, and if so, whether it takes along the mounts below its source.
    pub(crate) bind: Option<Bind>,
    /// Whether the ids of a bind mount are mapped, and if so, whether those of the mounts below too.
    pub(crate) id_mapping: Option<Bind>,
    /// Whether this changes what is mounted at the destination already.
    pub(crate) remount: bool,
    /// Whether a tmpfs begins with what is at its destination in the image.
    pub(crate) copy_up: bool,
    /// What only the file system understands, one by one: `key` or `key=value`.
    pub(crate) data: Vec<String>,
}

/// How much a bind mount binds or maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bind {
    One,
    Recursive,
}

/// Attributes to set and to clear, in the terms of mount_setattr(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AttributeChange {
    pub(crate) set: u64,
    pub(crate) clear: u64,
}

impl AttributeChange {
    /// A later word overrides an earlier one.
    fn set(&mut self, bits: u64) {
        if bits & attribute::ATIME != 0 || bits == RELATIME {
            self.set &= !attribute::ATIME;
            // The kernel wants the whole field cleared when any of it is set.
            self.clear |= attribute::ATIME;
            self.set |= bits & !RELATIME;
        } else {
            self.clear &= !bits;
            self.set |= bits;
        }
    }

    fn clear(&mut self, bits: u64) {
        if bits & attribute::ATIME != 0 || bits == RELATIME {
            self.set &= !attribute::ATIME;
            self.clear |= attribute::ATIME;
        } else {
            self.set &= !bits;
            self.clear |= bits;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == AttributeChange::default()
    }
}

/// libc has no constant for it; value of `<linux/mount.h>`.
const MS_NOSYMFOLLOW: u64 = 1 << 8;
pub(crate) const MS_LAZYTIME: u64 = 1 << 25;
/// relatime is the zero of its field in mount_setattr(2); this bit, which the kernel does not use, stands for it here.
const RELATIME: u64 = 1 << 63;

enum Effect {
    Nothing,
    Set(u64),
    Clear(u64),
    Superblock(u64),
    ClearSuperblock(u64),
    Propagation(u64),
    Bind(Bind),
    MapIds(Bind),
    Remount,
    CopyUp,
}

use Effect::{Clear, ClearSuperblock, CopyUp, MapIds, Nothing, Propagation, Remount, Set, Superblock};

/// Words of mount(8) and of the runtime specification ("Linux mount options"). The per-mount ones also exist with an
/// `r` in front: for all mounts below too.
const WORDS: [(&str, Effect); 44] = [
    ("async", ClearSuperblock(libc::MS_SYNCHRONOUS)),
    ("atime", Clear(attribute::NOATIME)),
    ("bind", Effect::Bind(Bind::One)),
    ("defaults", Nothing),
    ("dev", Clear(attribute::NODEV)),
    ("diratime", Clear(attribute::NODIRATIME)),
    ("dirsync", Superblock(libc::MS_DIRSYNC)),
    ("exec", Clear(attribute::NOEXEC)),
    ("idmap", MapIds(Bind::One)),
    ("iversion", Superblock(libc::MS_I_VERSION)),
    ("lazytime", Superblock(MS_LAZYTIME)),
    ("loud", ClearSuperblock(libc::MS_SILENT)),
    ("mand", Superblock(libc::MS_MANDLOCK)),
    ("noatime", Set(attribute::NOATIME)),
    ("nodev", Set(attribute::NODEV)),
    ("nodiratime", Set(attribute::NODIRATIME)),
    ("noexec", Set(attribute::NOEXEC)),
    ("noiversion", ClearSuperblock(libc::MS_I_VERSION)),
    ("nolazytime", ClearSuperblock(MS_LAZYTIME)),
    ("nomand", ClearSuperblock(libc::MS_MANDLOCK)),
    ("norelatime", Clear(RELATIME)),
    ("nostrictatime", Clear(attribute::STRICTATIME)),
    ("nosuid", Set(attribute::NOSUID)),
    ("nosymfollow", Set(attribute::NOSYMFOLLOW)),
    ("private", Propagation(libc::MS_PRIVATE)),
    ("rbind", Effect::Bind(Bind::Recursive)),
    ("relatime", Set(RELATIME)),
    ("remount", Remount),
    ("ridmap", MapIds(Bind::Recursive)),
    ("ro", Set(attribute::RDONLY)),
    ("rprivate", Propagation(libc::MS_PRIVATE | libc::MS_REC)),
    ("rshared", Propagation(libc::MS_SHARED | libc::MS_REC)),
    ("rslave", Propagation(libc::MS_SLAVE | libc::MS_REC)),
    ("runbindable", Propagation(libc::MS_UNBINDABLE | libc::MS_REC)),
    ("rw", Clear(attribute::RDONLY)),
    ("shared", Propagation(libc::MS_SHARED)),
    ("silent", Superblock(libc::MS_SILENT)),
    ("slave", Propagation(libc::MS_SLAVE)),
    ("strictatime", Set(attribute::STRICTATIME)),
    ("suid", Clear(attribute::NOSUID)),
    ("symfollow", Clear(attribute::NOSYMFOLLOW)),
    ("sync", Superblock(libc::MS_SYNCHRONOUS)),
    ("tmpcopyup", CopyUp),
    ("unbindable", Propagation(libc::MS_UNBINDABLE)),
];

impl MountOptions {
    /// Reads the words in order.
    pub(super) fn parse(words: &[String]) -> MountOptions {
        let mut options = MountOptions::default();
        for word in words {
            match effect(word) {
                Some((effect, recursive)) => options.apply(effect, recursive),
                None => options.data.extend(split(word)),
            }
        }
        options
    }

    fn apply(&mut self, effect: &Effect, recursive: bool) {
        let attributes = if recursive {
            &mut self.recursive_attributes
        } else {
            &mut self.attributes
        };
        match *effect {
            Set(bits) => attributes.set(bits),
            Clear(bits) => attributes.clear(bits),
            Superblock(flag) => self.superblock |= flag,
            ClearSuperblock(flag) => self.superblock &= !flag,
            Propagation(flags) => self.propagation = Some((flags & !libc::MS_REC, flags & libc::MS_REC != 0)),
            Effect::Bind(bind) => self.bind = Some(bind),
            MapIds(bind) => self.id_mapping = Some(bind),
            Remount => self.remount = true,
            CopyUp => self.copy_up = true,
            Nothing => {}
        }
    }

    /// The attributes of a file system mounted anew, which has no mounts below it.
    pub(crate) fn new_attributes(&self) -> u64 {
        self.recursive_attributes.set & !self.attributes.clear | self.attributes.set
    }

    /// Whether the words ask for a mount that cannot be written to.
    pub(crate) fn is_read_only(&self) -> bool {
        self.new_attributes() & attribute::RDONLY != 0
    }

    /// The flags of mount(2) for a file system mounted anew.
    pub(crate) fn mount_flags(&self) -> u64 {
        let pairs = [
            (attribute::RDONLY, libc::MS_RDONLY),
            (attribute::NOSUID, libc::MS_NOSUID),
            (attribute::NODEV, libc::MS_NODEV),
            (attribute::NOEXEC, libc::MS_NOEXEC),
            (attribute::NOATIME, libc::MS_NOATIME),
            (attribute::STRICTATIME, libc::MS_STRICTATIME),
            (attribute::NODIRATIME, libc::MS_NODIRATIME),
            (attribute::NOSYMFOLLOW, MS_NOSYMFOLLOW),
        ];
        let attributes = self.new_attributes();
        pairs
            .iter()
            .filter(|(bit, _)| attributes & bit != 0)
            .fold(self.superblock, |flags, (_, flag)| flags | flag)
    }
}

/// A word that is a list, as in `mode=755,size=1m`, one by one. A comma after a backslash is a part of its option.
fn split(word: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut is_escaped = false;
    for character in word.chars() {
        match parts.last_mut() {
            Some(part) if character != ',' || is_escaped => part.push(character),
            _ => parts.push(String::new()),
        }
        is_escaped = character == '\\' && !is_escaped;
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// The effect of a word and whether it reaches the mounts below; none for a word that belongs to the file system.
fn effect(word: &str) -> Option<(&'static Effect, bool)> {
    let find = |word: &str| {
        WORDS
            .iter()
            .find(|(known, _)| *known == word)
            .map(|(_, effect)| effect)
    };
    if let Some(effect) = find(word) {
        return Some((effect, false));
    }
    match find(word.strip_prefix('r')?)? {
        effect @ (Set(_) | Clear(_)) => Some((effect, true)),
        _ => None,
    }
}

/// Every word with a meaning of its own.
pub(crate) fn mount_option_words() -> Vec<String> {
    let recursive = |(word, effect): &(&str, Effect)| match effect {
        Set(_) | Clear(_) => Some(format!("r{word}")),
        _ => None,
    };
    let mut words: Vec<String> = WORDS.iter().map(|(word, _)| (*word).to_owned()).collect();
    words.extend(WORDS.iter().filter_map(recursive));
    words.sort_unstable();
    words
}

/// The propagation that a word names, and whether it is for all mounts below too.
pub(crate) fn propagation_flag(word: &str) -> Option<(u64, bool)> {
    match effect(word)? {
        (Propagation(flags), _) => Some((flags & !libc::MS_REC, flags & libc::MS_REC != 0)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(words: &[&str]) -> MountOptions {
        let words: Vec<String> = words.iter().map(|word| word.to_string()).collect();
        MountOptions::parse(&words)
    }

    #[test]
    fn the_usual_options_of_proc_become_flags_and_no_data() {
        let options = parse(&["nosuid", "noexec", "nodev"]);
        assert_eq!(
            options.mount_flags(),
            libc::MS_NOSUID | libc::MS_NOEXEC | libc::MS_NODEV
        );
        assert!(options.data.is_empty());
    }

    #[test]
    fn words_of_the_file_system_are_passed_on_in_order() {
        let options = parse(&["nosuid", "strictatime", "mode=755", "size=65536k"]);
        assert_eq!(options.mount_flags(), libc::MS_NOSUID | libc::MS_STRICTATIME);
        assert_eq!(options.data, ["mode=755", "size=65536k"]);
    }

    #[test]
    fn the_last_of_two_contradicting_words_wins() {
        assert_eq!(
            parse(&["ro", "rw"]).attributes,
            AttributeChange {
                set: 0,
                clear: attribute::RDONLY
            }
        );
        assert_eq!(
            parse(&["rw", "ro"]).attributes,
            AttributeChange {
                set: attribute::RDONLY,
                clear: 0
            }
        );
        assert_eq!(parse(&["sync", "async"]).superblock, 0);
    }

    #[test]
    fn access_time_words_clear_the_whole_field_they_share() {
        let noatime = AttributeChange {
            set: attribute::NOATIME,
            clear: attribute::ATIME,
        };
        assert_eq!(parse(&["strictatime", "noatime"]).attributes, noatime);
        let relatime = AttributeChange {
            set: 0,
            clear: attribute::ATIME,
        };
        assert_eq!(parse(&["noatime", "relatime"]).attributes, relatime);
    }

    #[test]
    fn a_leading_r_reaches_the_mounts_below() {
        let options = parse(&["rbind", "rro", "rnosuid", "rprivate"]);
        assert_eq!(options.bind, Some(Bind::Recursive));
        assert_eq!(
            options.recursive_attributes.set,
            attribute::RDONLY | attribute::NOSUID
        );
        assert!(options.attributes.is_empty());
        assert_eq!(options.propagation, Some((libc::MS_PRIVATE, true)));
    }

    #[test]
    fn a_word_that_is_a_list_is_taken_apart_but_not_at_escaped_commas() {
        let options = parse(&["mode=755,,size=1m", r"lowerdir=/a\,b:/c"]);
        assert_eq!(options.data, ["mode=755", "size=1m", r"lowerdir=/a\,b:/c"]);
    }

    #[test]
    fn words_that_are_no_flags_have_their_own_places() {
        let options = parse(&["ridmap", "remount", "tmpcopyup"]);
        assert_eq!(options.id_mapping, Some(Bind::Recursive));
        assert!(options.remount && options.copy_up && options.data.is_empty());
    }

    /// What the runtime specification lists ("Linux mount options").
    const OF_THE_SPECIFICATION: [&str; 60] = [
        "async",
        "atime",
        "bind",
        "defaults",
        "dev",
        "diratime",
        "dirsync",
        "exec",
        "iversion",
        "lazytime",
        "loud",
        "noatime",
        "nodev",
        "nodiratime",
        "noexec",
        "noiversion",
        "nolazytime",
        "norelatime",
        "nostrictatime",
        "nosuid",
        "nosymfollow",
        "private",
        "ratime",
        "rbind",
        "rdev",
        "rdiratime",
        "relatime",
        "remount",
        "rexec",
        "rnoatime",
        "rnodev",
        "rnodiratime",
        "rnoexec",
        "rnorelatime",
        "rnostrictatime",
        "rnosuid",
        "rnosymfollow",
        "ro",
        "rprivate",
        "rrelatime",
        "rro",
        "rrw",
        "rshared",
        "rslave",
        "rstrictatime",
        "rsuid",
        "rsymfollow",
        "runbindable",
        "rw",
        "shared",
        "silent",
        "slave",
        "strictatime",
        "suid",
        "symfollow",
        "sync",
        "tmpcopyup",
        "unbindable",
        "idmap",
        "ridmap",
    ];

    #[test]
    fn every_word_of_the_specification_is_known() {
        for word in OF_THE_SPECIFICATION {
            assert!(effect(word).is_some(), "{word}");
        }
    }

    proptest! {
        /// What mount_setattr(2) is told never contradicts itself, and the last word on each attribute is what counts.
        #[test]
        fn attributes_are_consistent_in_any_order(
            words in proptest::collection::vec(proptest::sample::select(&OF_THE_SPECIFICATION[..]), 0..12)
        ) {
            let options = parse(&words);
            prop_assert!(options.data.is_empty());
            for change in [options.attributes, options.recursive_attributes] {
                prop_assert_eq!(change.set & change.clear & !attribute::ATIME, 0);
                let atime = change.set & attribute::ATIME;
                prop_assert!([0, attribute::NOATIME, attribute::STRICTATIME].contains(&atime));
                prop_assert!(atime == 0 || change.clear & attribute::ATIME == attribute::ATIME);
                prop_assert!((change.set | change.clear) & RELATIME == 0);
            }
            for (on, off, bit) in [
                ("ro", "rw", attribute::RDONLY),
                ("nosuid", "suid", attribute::NOSUID),
                ("nodev", "dev", attribute::NODEV),
                ("noexec", "exec", attribute::NOEXEC),
                ("nodiratime", "diratime", attribute::NODIRATIME),
                ("nosymfollow", "symfollow", attribute::NOSYMFOLLOW),
            ] {
                for (prefix, change) in [("", options.attributes), ("r", options.recursive_attributes)] {
                    let (on, off) = (format!("{prefix}{on}"), format!("{prefix}{off}"));
                    let last = words.iter().rev().find(|word| **word == on || **word == off);
                    prop_assert_eq!(change.set & bit != 0, last.is_some_and(|word| **word == on));
                    prop_assert_eq!(change.clear & bit != 0, last.is_some_and(|word| **word == off));
                }
            }
        }

        /// Words of file systems reach them whole and in order, whatever stands between them.
        #[test]
        fn words_of_file_systems_are_kept(words in proptest::collection::vec("[a-z]{1,8}=[a-z0-9/:]{0,12}", 0..6)) {
            let mut mixed = vec!["ro"];
            for word in &words {
                mixed.extend([word.as_str(), "nosuid"]);
            }
            prop_assert_eq!(parse(&mixed).data, words);
        }
    }
}
