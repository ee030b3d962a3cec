//! The processes in a container's cgroups, and how to end them all.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::events::wait_for_line;
use super::{Cgroup, CgroupError, Hierarchy, tree, write};

/// How long killed processes may take to be gone. One in an uninterruptible sleep can take as long as its device.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long they are waited for before those are killed that have come since.
const BEFORE_ANOTHER_KILL: Duration = Duration::from_millis(200);

impl Cgroup {
    /// The processes in the cgroups and in those below them, by the caller's numbers; empty when there is no cgroup.
    pub(crate) fn processes(&self) -> Result<Vec<i32>, CgroupError> {
        match self.roll() {
            Some(folder) => processes_below(folder),
            None => Ok(Vec::new()),
        }
    }

    /// Kills every process and waits until none is left.
    pub(crate) fn kill(&self) -> Result<(), CgroupError> {
        let Some(folder) = self.roll() else { return Ok(()) };
        let deadline = Instant::now() + PATIENCE;
        while self.kill_at_once(folder)? {
            // One that entered right after is not dead.
            let soon = deadline.min(Instant::now() + BEFORE_ANOTHER_KILL);
            match wait_for_line(folder, "populated 0", soon) {
                Ok(true) | Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
                Ok(false) if Instant::now() >= deadline => return Err(would_not_die(folder)),
                Ok(false) => {}
                Err(errno) => return Err(CgroupError::io("watch the processes of", folder, errno)),
            }
        }
        let mut pause = Duration::from_micros(100);
        loop {
            let processes = processes_below(folder)?;
            if processes.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(would_not_die(folder));
            }
            self.kill_each(folder, &processes)?;
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Sends a signal to every process, once.
    pub(crate) fn signal_all(&self, signal: i32) -> Result<(), CgroupError> {
        let Some(folder) = self.roll() else { return Ok(()) };
        if signal == libc::SIGKILL {
            return match self.kill_at_once(folder)? {
                true => Ok(()),
                false => self.kill_each(folder, &processes_below(folder)?),
            };
        }
        let was_frozen = self.is_frozen()?;
        self.signal_frozen(folder, signal)?;
        if was_frozen {
            Ok(())
        } else {
            self.thaw_if_possible()
        }
    }

    /// Kills all processes in one write, also those being forked (Linux 5.14). False where the kernel cannot, or there is
    /// no cgroup.
    fn kill_at_once(&self, folder: &Path) -> Result<bool, CgroupError> {
        match write(&folder.join("cgroup.kill"), "1") {
            Ok(()) => self.thaw_to_die().map(|()| true),
            Err(Errno::NOENT | Errno::NODEV | Errno::ACCESS | Errno::PERM | Errno::OPNOTSUPP) => Ok(false),
            Err(errno) => Err(CgroupError::io("kill the processes of", folder, errno)),
        }
    }

    fn kill_each(&self, folder: &Path, processes: &[i32]) -> Result<(), CgroupError> {
        match self.signal_frozen(folder, libc::SIGKILL) {
            Ok(()) => {}
            // What cannot be stopped can still be killed, only not all at once.
            Err(CgroupError::WouldNotFreeze { .. }) => signal_each(folder, processes, libc::SIGKILL)?,
            Err(error) => return Err(error),
        }
        self.thaw_to_die()
    }

    /// A frozen process cannot fork: so none is missed. It stays frozen.
    fn signal_frozen(&self, folder: &Path, signal: i32) -> Result<(), CgroupError> {
        match self.freeze() {
            Ok(()) | Err(CgroupError::NoFreezer) => {}
            Err(error) => return Err(error),
        }
        let sent = processes_below(folder).and_then(|processes| signal_each(folder, &processes, signal));
        if sent.is_err() {
            self.thaw_if_possible()?;
        }
        sent
    }

    fn thaw_if_possible(&self) -> Result<(), CgroupError> {
        match self.thaw() {
            Err(CgroupError::NoFreezer) => Ok(()),
            result => result,
        }
    }

    /// The folder that knows every process of the container: the cgroup2 one, which can also kill, or else any.
    fn roll(&self) -> Option<&Path> {
        let preferred = self
            .members
            .iter()
            .find(|member| member.hierarchy == Hierarchy::Unified);
        preferred
            .or_else(|| self.members.first())
            .map(|member| member.path.as_path())
    }
}

fn would_not_die(folder: &Path) -> CgroupError {
    CgroupError::WouldNotDie {
        path: folder.to_owned(),
        seconds: PATIENCE.as_secs(),
    }
}

/// Refuses a cgroup that somebody's processes are in.
pub(super) fn refuse_if_occupied(folder: &Path) -> Result<(), CgroupError> {
    if processes_below(folder)?.is_empty() {
        Ok(())
    } else {
        Err(CgroupError::Occupied {
            path: folder.to_owned(),
        })
    }
}

fn signal_each(folder: &Path, processes: &[i32], signal: i32) -> Result<(), CgroupError> {
    for pid in processes.iter().copied().filter(|&pid| pid > 0) {
        // SAFETY: a system call that takes two numbers; the pid names one process and not a group.
        if unsafe { libc::kill(pid, signal) } == 0 {
            continue;
        }
        match Errno::from_io_error(&std::io::Error::last_os_error()) {
            Some(Errno::SRCH) => {}
            errno => {
                let errno = errno.unwrap_or(Errno::IO);
                return Err(CgroupError::io("send a signal to a process of", folder, errno));
            }
        }
    }
    Ok(())
}

fn processes_below(folder: &Path) -> Result<Vec<i32>, CgroupError> {
    let mut processes = Vec::new();
    tree::visit(folder, |node| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(node.directory, c"cgroup.procs", flags, Mode::empty());
        let mut text = String::new();
        let read = file.and_then(|file| {
            let read = std::fs::File::from(file).read_to_string(&mut text);
            read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        });
        match read {
            Ok(_) => processes.extend(text.lines().filter_map(|line| line.trim().parse::<i32>().ok())),
            Err(Errno::NOENT | Errno::NODEV) => {}
            // A threaded cgroup lists its processes at the domain above it.
            Err(Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(CgroupError::io("list the processes of", folder, errno)),
        }
        Ok(())
    })?;
    Ok(processes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::Member;
    use super::*;

    #[test]
    fn where_the_kernel_kills_all_at_once_nobody_is_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let cgroup = Cgroup {
            members: vec![Member {
                hierarchy: Hierarchy::Unified,
                path: folder.path().to_owned(),
            }],
            made_parents: Vec::new(),
        };
        let kill = folder.path().join("cgroup.kill");
        fs::write(&kill, "").unwrap();
        fs::write(folder.path().join("cgroup.events"), "populated 0\nfrozen 0\n").unwrap();
        // It would be a mistake to list them.
        fs::create_dir(folder.path().join("cgroup.procs")).unwrap();
        cgroup.kill().unwrap();
        assert_eq!(fs::read_to_string(&kill).unwrap(), "1");
        fs::write(&kill, "").unwrap();
        cgroup.signal_all(libc::SIGKILL).unwrap();
        assert_eq!(fs::read_to_string(&kill).unwrap(), "1");
        fs::remove_file(&kill).unwrap();
        assert!(cgroup.kill().is_err(), "without that they are listed");
    }
}
