//! Making all processes of a container stand still, and letting them go on.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::events::wait_for_line;
use super::{Cgroup, CgroupError, read, tree, write};

/// How long processes may take to stand still. One in an uninterruptible sleep can take as long as its device. Whoever
/// waits for the lock that a pause holds waits longer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Processes that fork keep a version 1 cgroup from being frozen; after so many attempts they are let go for a moment.
const ATTEMPTS_BEFORE_A_THAW: u32 = 50;
/// A line of `cgroup.events`.
const FROZEN: &str = "frozen 1";

/// The cgroup through which the container is frozen.
enum Freezer<'a> {
    Version1(&'a Path),
    Version2(&'a Path),
}

impl Cgroup {
    /// Whether the container's processes stand still, whoever stopped them.
    pub(crate) fn is_frozen(&self) -> Result<bool, CgroupError> {
        self.freezer().map_or(Ok(false), |freezer| freezer.is_frozen())
    }

    /// Stops every process, and returns when they stand still. If they do not, they go on.
    pub(crate) fn freeze(&self) -> Result<(), CgroupError> {
        match self.freezer().ok_or(CgroupError::NoFreezer)? {
            Freezer::Version1(folder) => freeze_version1(folder),
            Freezer::Version2(folder) => freeze_version2(folder),
        }
    }

    /// Lets every process go on.
    pub(crate) fn thaw(&self) -> Result<(), CgroupError> {
        match self.freezer().ok_or(CgroupError::NoFreezer)? {
            Freezer::Version1(folder) => thaw_version1(folder),
            Freezer::Version2(folder) => thaw_version2(folder),
        }
    }

    /// Lets processes that were killed die: in version 1 a frozen one does not, also where the container itself froze
    /// a part of its processes.
    pub(crate) fn thaw_to_die(&self) -> Result<(), CgroupError> {
        let Some(Freezer::Version1(folder)) = self.freezer() else {
            return Ok(());
        };
        tree::visit(folder, |node| {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            let thawed = rustix::fs::openat(node.directory, c"freezer.state", flags, Mode::empty())
                .and_then(|file| rustix::io::write(&file, b"THAWED"));
            match thawed {
                Ok(_) | Err(Errno::NOENT | Errno::NODEV) => Ok(()),
                Err(errno) => Err(CgroupError::io("thaw", folder, errno)),
            }
        })
    }

    fn freezer(&self) -> Option<Freezer<'_>> {
        let version1 = self.version1("freezer").map(Freezer::Version1);
        version1.or_else(|| self.unified().map(|member| Freezer::Version2(&member.path)))
    }
}

impl Freezer<'_> {
    fn is_frozen(&self) -> Result<bool, CgroupError> {
        match self {
            Freezer::Version1(folder) => Ok(version1_state(folder)?.as_deref() == Some("FROZEN")),
            Freezer::Version2(folder) => {
                let file = folder.join("cgroup.events");
                match read(&file) {
                    Ok(events) => Ok(says_frozen(&events)),
                    Err(Errno::NOENT | Errno::NODEV) => Ok(false),
                    Err(errno) => Err(CgroupError::io("read", &file, errno)),
                }
            }
        }
    }
}

/// Refuses a cgroup in which a process would stand still before its first instruction.
pub(super) fn refuse_if_frozen(folder: &Path) -> Result<(), CgroupError> {
    let version1 = version1_state(folder)?.is_some_and(|state| state != "THAWED");
    let is_version2 = || read(&folder.join("cgroup.events")).is_ok_and(|events| says_frozen(&events));
    if version1 || is_version2() {
        return Err(CgroupError::Frozen {
            path: folder.to_owned(),
        });
    }
    Ok(())
}

/// `THAWED`, `FREEZING` or `FROZEN`; none without such a cgroup.
fn version1_state(folder: &Path) -> Result<Option<String>, CgroupError> {
    let file = folder.join("freezer.state");
    match read(&file) {
        Ok(state) => Ok(Some(state.trim().to_owned())),
        Err(Errno::NOENT | Errno::NODEV) => Ok(None),
        Err(errno) => Err(CgroupError::io("read", &file, errno)),
    }
}

fn set(file: &Path, value: &str) -> Result<(), CgroupError> {
    write(file, value).map_err(|errno| CgroupError::io("write", file, errno))
}

fn would_not_freeze(folder: &Path) -> CgroupError {
    CgroupError::WouldNotFreeze {
        path: folder.to_owned(),
        seconds: PATIENCE.as_secs(),
    }
}

fn freeze_version1(folder: &Path) -> Result<(), CgroupError> {
    let file = folder.join("freezer.state");
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_micros(50);
    let mut attempts = 0;
    let frozen = loop {
        set(&file, "FROZEN")?;
        match version1_state(folder) {
            Ok(Some(state)) if state == "FREEZING" => {}
            Ok(_) => return Ok(()),
            Err(error) => break Err(error),
        }
        if Instant::now() >= deadline {
            break Err(would_not_freeze(folder));
        }
        attempts += 1;
        if attempts % ATTEMPTS_BEFORE_A_THAW == 0 {
            set(&file, "THAWED")?;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    };
    // Half frozen is the worst of all: neither does it run nor does it count as paused.
    set(&file, "THAWED")?;
    frozen
}

fn thaw_version1(folder: &Path) -> Result<(), CgroupError> {
    set(&folder.join("freezer.state"), "THAWED")?;
    match version1_state(folder)?.as_deref() {
        Some("FROZEN" | "FREEZING") => Err(CgroupError::FrozenAbove {
            path: folder.to_owned(),
        }),
        _ => Ok(()),
    }
}

fn freeze_version2(folder: &Path) -> Result<(), CgroupError> {
    let file = folder.join("cgroup.freeze");
    set(&file, "1")?;
    match wait_for_frozen(folder, true) {
        Ok(true) => Ok(()),
        other => {
            set(&file, "0")?;
            other.and_then(|_| Err(would_not_freeze(folder)))
        }
    }
}

fn thaw_version2(folder: &Path) -> Result<(), CgroupError> {
    set(&folder.join("cgroup.freeze"), "0")?;
    let is_set = |above: &Path| read(&above.join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1");
    if folder.ancestors().skip(1).any(is_set) || !wait_for_frozen(folder, false)? {
        return Err(CgroupError::FrozenAbove {
            path: folder.to_owned(),
        });
    }
    Ok(())
}

/// Waits until the cgroup is frozen, or no longer is. False when that takes too long.
fn wait_for_frozen(folder: &Path, wanted: bool) -> Result<bool, CgroupError> {
    let line = if wanted { FROZEN } else { "frozen 0" };
    wait_for_line(folder, line, Instant::now() + PATIENCE)
        .map_err(|errno| CgroupError::io("read", &folder.join("cgroup.events"), errno))
}

fn says_frozen(events: &str) -> bool {
    events.lines().any(|line| line == FROZEN)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn an_existing_cgroup_that_is_frozen_is_refused_in_both_versions() {
        for (file, frozen, thawed) in [
            ("freezer.state", "FROZEN\n", "THAWED\n"),
            ("freezer.state", "FREEZING\n", "THAWED\n"),
            (
                "cgroup.events",
                "populated 0\nfrozen 1\n",
                "populated 0\nfrozen 0\n",
            ),
        ] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(file), frozen).unwrap();
            assert!(matches!(
                refuse_if_frozen(folder.path()),
                Err(CgroupError::Frozen { .. })
            ));
            fs::write(folder.path().join(file), thawed).unwrap();
            refuse_if_frozen(folder.path()).unwrap();
        }
        refuse_if_frozen(Path::new("/does/not/exist")).unwrap();
    }
}
