//! The words in a mount's `options`, as mount(8) knows them, and what each does.

use super::SpecError;
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
    /// What only the file system understands, comma-separated.
    pub(crate) data: String,
}

/// How much a bind mount binds.
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

    /// The same as flags of mount(2), for a file system mounted anew.
    fn mount_flags(&self) -> u64 {
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
        pairs
            .iter()
            .filter(|(bit, _)| self.set & bit != 0)
            .fold(0, |flags, (_, flag)| flags | flag)
    }
}

/// libc has no constant for it; value of `<linux/mount.h>`.
const MS_NOSYMFOLLOW: u64 = 1 << 8;
const MS_LAZYTIME: u64 = 1 << 25;
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
    Unsupported,
}

use Effect::{Clear, ClearSuperblock, Nothing, Propagation, Set, Superblock, Unsupported};

/// Words of mount(8). The per-mount ones also exist with an `r` in front: for all mounts below too.
const WORDS: [(&str, Effect); 45] = [
    ("async", ClearSuperblock(libc::MS_SYNCHRONOUS)),
    ("atime", Clear(attribute::NOATIME)),
    ("bind", Effect::Bind(Bind::One)),
    ("defaults", Nothing),
    ("dev", Clear(attribute::NODEV)),
    ("diratime", Clear(attribute::NODIRATIME)),
    ("dirsync", Superblock(libc::MS_DIRSYNC)),
    ("exec", Clear(attribute::NOEXEC)),
    ("idmap", Unsupported),
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
    ("remount", Unsupported),
    ("ridmap", Unsupported),
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
    ("tmpcopyup", Unsupported),
    ("unbindable", Propagation(libc::MS_UNBINDABLE)),
    ("copyfrom", Unsupported),
];

impl MountOptions {
    /// Reads the words in order; `field` gives the JSON path of the one at an index.
    pub(super) fn parse(
        words: &[String],
        field: impl Fn(usize) -> String,
    ) -> Result<MountOptions, SpecError> {
        let mut options = MountOptions::default();
        for (index, word) in words.iter().enumerate() {
            match effect(word) {
                Some((Unsupported, _)) => {
                    return Err(SpecError::unsupported(format!("{} (`{word}`)", field(index))));
                }
                Some((effect, recursive)) => options.apply(effect, recursive),
                None => {
                    if !options.data.is_empty() {
                        options.data.push(',');
                    }
                    options.data.push_str(word);
                }
            }
        }
        Ok(options)
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
            Nothing | Unsupported => {}
        }
    }

    /// The flags of mount(2) for a file system mounted anew, which has no mounts below it.
    pub(crate) fn mount_flags(&self) -> u64 {
        self.attributes.mount_flags() | self.recursive_attributes.mount_flags() | self.superblock
    }
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

/// The propagation that a word names, and whether it is for all mounts below too.
pub(crate) fn propagation_flag(word: &str) -> Option<(u64, bool)> {
    match effect(word)? {
        (Propagation(flags), _) => Some((flags & !libc::MS_REC, flags & libc::MS_REC != 0)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> MountOptions {
        let words: Vec<String> = words.iter().map(|word| word.to_string()).collect();
        MountOptions::parse(&words, |index| format!("mounts[0].options[{index}]")).unwrap()
    }

    #[test]
    fn the_usual_options_of_proc_become_flags_and_no_data() {
        let options = parse(&["nosuid", "noexec", "nodev"]);
        assert_eq!(
            options.mount_flags(),
            libc::MS_NOSUID | libc::MS_NOEXEC | libc::MS_NODEV
        );
        assert_eq!(options.data, "");
    }

    #[test]
    fn words_of_the_file_system_are_passed_on_in_order() {
        let options = parse(&["nosuid", "strictatime", "mode=755", "size=65536k"]);
        assert_eq!(options.mount_flags(), libc::MS_NOSUID | libc::MS_STRICTATIME);
        assert_eq!(options.data, "mode=755,size=65536k");
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
    fn options_not_honoured_are_refused_by_their_place() {
        let words = ["ro".to_owned(), "tmpcopyup".to_owned()];
        let error = MountOptions::parse(&words, |index| format!("mounts[2].options[{index}]")).unwrap_err();
        assert!(
            error.to_string().contains("mounts[2].options[1] (`tmpcopyup`)"),
            "{error}"
        );
    }
}
