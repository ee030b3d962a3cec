//! Who the container's process is: names are looked up in the image's own user database.

use std::fs::File;
use std::io::{self, Read as _};
use std::str::FromStr;

use oci_spec::image::ImageConfiguration;
use rustix::fd::BorrowedFd;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{BundleError, InvalidValue};

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// Bytes of a user database at most. A process in an earlier container may have written it.
const LARGEST: u64 = 4 << 20;

/// The largest id Docker and runc take.
const LARGEST_ID: u32 = i32::MAX as u32;

/// A user and perhaps a group, each by name or number: `USER[:GROUP]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserName {
    user: String,
    group: Option<String>,
}

impl FromStr for UserName {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<UserName, InvalidValue> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        // What separates fields and lines in the database can be in no name.
        let plain = |name: &str| !name.is_empty() && !name.contains([':', '\n', '\0']);
        if !plain(user) || !group.is_none_or(plain) {
            return Err(InvalidValue::new(
                text,
                "a user of the form USER[:GROUP], by name or number",
            ));
        }
        Ok(UserName {
            user: user.to_owned(),
            group: group.map(str::to_owned),
        })
    }
}

/// A user resolved to numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ResolvedUser {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// All groups, `gid` among them: without it a file could be readable to everyone but its group, and be read
    /// (CVE-2022-36109).
    pub(super) groups: Vec<u32>,
    /// The user's home folder, or `/` if the database has none.
    pub(super) home: String,
}

/// The user the image's configuration names: root if it names none.
pub(super) fn of_image(image: &ImageConfiguration) -> Result<UserName, BundleError> {
    let named = image
        .config()
        .as_ref()
        .and_then(|config| config.user().as_deref());
    match named {
        None | Some("") => Ok(UserName {
            user: "0".to_owned(),
            group: None,
        }),
        Some(user) => user.parse().map_err(|source| BundleError::ImageValue {
            field: "User",
            source,
        }),
    }
}

/// Looks `name` up in the database of the root file system `rootfs`, as runc does: a number need not be in the
/// database; a group given with the user replaces all the user's groups.
pub(super) fn resolve(rootfs: BorrowedFd<'_>, name: &UserName) -> Result<ResolvedUser, BundleError> {
    let number = id(&name.user);
    let passwd = read(rootfs, PASSWD)?;
    let account = passwd
        .lines()
        .filter_map(Account::parse)
        .find(|account| match number {
            Some(uid) => account.uid == uid,
            None => account.name == name.user,
        });
    let uid = number
        .or(account.as_ref().map(|account| account.uid))
        .ok_or_else(|| BundleError::UnknownUser {
            what: "user",
            name: name.user.escape_debug().to_string(),
            file: PASSWD,
        })?;
    let database = read(rootfs, GROUP)?;
    let listed = || database.lines().filter_map(Group::parse);
    let (gid, mut groups) = match &name.group {
        Some(group) => {
            let found = listed().find(|entry| entry.name == *group).map(|entry| entry.gid);
            let gid = id(group).or(found).ok_or_else(|| BundleError::UnknownUser {
                what: "group",
                name: group.escape_debug().to_string(),
                file: GROUP,
            })?;
            (gid, Vec::new())
        }
        None => {
            let member = |account: &Account<'_>| {
                listed()
                    .filter(|group| group.members.split(',').any(|m| m == account.name))
                    .map(|g| g.gid)
                    .collect()
            };
            let groups = account.as_ref().map(member).unwrap_or_default();
            (account.as_ref().map_or(0, |account| account.gid), groups)
        }
    };
    groups.push(gid);
    groups.sort_unstable();
    groups.dedup();
    let home = account
        .map(|account| account.home)
        .filter(|home| home.starts_with('/'))
        .unwrap_or("/");
    Ok(ResolvedUser {
        uid,
        gid,
        groups,
        home: home.to_owned(),
    })
}

/// A line of `/etc/passwd`: name, password, uid, gid, comment, home, shell (passwd(5)).
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl Account<'_> {
    fn parse(line: &str) -> Option<Account<'_>> {
        let mut fields = line.split(':');
        let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let home = fields.nth(1).unwrap_or_default();
        Some(Account {
            name,
            uid: id(uid)?,
            gid: id(gid)?,
            home,
        })
    }
}

/// A line of `/etc/group`: name, password, gid, members (group(5)).
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl Group<'_> {
    fn parse(line: &str) -> Option<Group<'_>> {
        let mut fields = line.split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Group {
            name,
            gid: id(gid)?,
            members: fields.next().unwrap_or_default(),
        })
    }
}

fn id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id <= LARGEST_ID)
}

/// Reads a file of the image, resolved inside its root; nothing if there is none. Opened without blocking, because
/// the image decides what stands there.
fn read(rootfs: BorrowedFd<'_>, file: &'static str) -> Result<String, BundleError> {
    let failed = |source| BundleError::UserDatabase { file, source };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // Looked at before it is opened: opening a device can have effects.
    let path = rustix::fs::openat2(
        rootfs,
        file,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    );
    let path = match path {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        opened => opened.map_err(|errno| failed(errno.into()))?,
    };
    let stat = rustix::fs::fstat(&path).map_err(|errno| failed(errno.into()))?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
        return Err(failed(io::Error::other("it is not a regular file")));
    }
    let opened = rustix::fs::openat2(rootfs, file, flags, Mode::empty(), resolve)
        .map_err(|errno| failed(errno.into()))?;
    let mut content = Vec::new();
    File::from(opened)
        .take(LARGEST + 1)
        .read_to_end(&mut content)
        .map_err(failed)?;
    if content.len() as u64 > LARGEST {
        return Err(failed(io::Error::other(format!(
            "it is larger than {LARGEST} bytes"
        ))));
    }
    Ok(String::from_utf8_lossy(&content).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::fd::AsFd as _;
    use std::path::Path;

    const PASSWD_LINES: &str = "root:x:0:0:root:/root:/bin/sh\n\
        broken line\n\
        alice:x:1000:1001:Alice:/home/alice:/bin/sh\n\
        nohome:x:1002:1002\n";
    const GROUP_LINES: &str = "root:x:0:\nalice:x:1001:\nwheel:x:10:root,alice\naudio:x:20:alice,bob\n";

    fn image() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/passwd"), PASSWD_LINES).unwrap();
        fs::write(root.path().join("etc/group"), GROUP_LINES).unwrap();
        root
    }

    fn resolve_in(root: &Path, name: &str) -> Result<ResolvedUser, BundleError> {
        resolve(fs::File::open(root).unwrap().as_fd(), &name.parse().unwrap())
    }

    fn resolved(uid: u32, gid: u32, groups: &[u32], home: &str) -> ResolvedUser {
        ResolvedUser {
            uid,
            gid,
            groups: groups.to_vec(),
            home: home.to_owned(),
        }
    }

    #[test]
    fn a_name_brings_its_group_groups_and_home() {
        let user = resolve_in(image().path(), "alice").unwrap();
        assert_eq!(user, resolved(1000, 1001, &[10, 20, 1001], "/home/alice"));
    }

    #[test]
    fn a_number_in_the_database_is_that_account() {
        let user = resolve_in(image().path(), "1000").unwrap();
        assert_eq!(user, resolved(1000, 1001, &[10, 20, 1001], "/home/alice"));
    }

    #[test]
    fn a_number_beside_the_database_has_group_0() {
        assert_eq!(
            resolve_in(image().path(), "4242").unwrap(),
            resolved(4242, 0, &[0], "/")
        );
    }

    #[test]
    fn a_given_group_replaces_all_groups() {
        let root = image();
        assert_eq!(
            resolve_in(root.path(), "alice:wheel").unwrap(),
            resolved(1000, 10, &[10], "/home/alice")
        );
        assert_eq!(
            resolve_in(root.path(), "alice:77").unwrap(),
            resolved(1000, 77, &[77], "/home/alice")
        );
        assert_eq!(resolve_in(root.path(), "5:6").unwrap(), resolved(5, 6, &[6], "/"));
    }

    #[test]
    fn numbers_need_no_database_but_names_do() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(resolve_in(root.path(), "0").unwrap(), resolved(0, 0, &[0], "/"));
        let error = resolve_in(root.path(), "alice").unwrap_err();
        assert!(
            matches!(error, BundleError::UnknownUser { what: "user", .. }),
            "{error}"
        );
    }

    #[test]
    fn unknown_names_are_refused_by_name() {
        let root = image();
        let error = resolve_in(root.path(), "mallory").unwrap_err().to_string();
        assert!(
            error.contains("mallory") && error.contains("/etc/passwd"),
            "{error}"
        );
        let error = resolve_in(root.path(), "alice:nobody").unwrap_err().to_string();
        assert!(
            error.contains("nobody") && error.contains("/etc/group"),
            "{error}"
        );
    }

    #[test]
    fn numbers_beyond_31_bits_are_no_ids() {
        assert!(resolve_in(image().path(), "4294967295").is_err());
        assert!(resolve_in(image().path(), "0:2147483648").is_err());
    }

    #[test]
    fn a_link_out_of_the_image_is_resolved_inside() {
        let root = image();
        fs::rename(root.path().join("etc/passwd"), root.path().join("accounts")).unwrap();
        std::os::unix::fs::symlink("/accounts", root.path().join("etc/passwd")).unwrap();
        assert_eq!(resolve_in(root.path(), "alice").unwrap().uid, 1000);
        fs::remove_file(root.path().join("accounts")).unwrap();
        assert!(resolve_in(root.path(), "alice").is_err());
    }

    #[test]
    fn a_fifo_or_folder_for_a_database_is_refused_without_waiting() {
        for special in ["fifo", "folder"] {
            let root = image();
            let path = root.path().join("etc/passwd");
            fs::remove_file(&path).unwrap();
            match special {
                "fifo" => {
                    let kind = rustix::fs::FileType::Fifo;
                    rustix::fs::mknodat(rustix::fs::CWD, &path, kind, Mode::RUSR, 0).unwrap();
                }
                _ => fs::create_dir(&path).unwrap(),
            }
            let error = resolve_in(root.path(), "0").unwrap_err();
            assert!(matches!(error, BundleError::UserDatabase { .. }), "{error}");
        }
    }

    #[test]
    fn malformed_user_names_are_refused() {
        for text in ["", ":", "a:", ":b", "a:b:c", "a\nb"] {
            assert!(text.parse::<UserName>().is_err(), "{text:?}");
        }
    }
}
