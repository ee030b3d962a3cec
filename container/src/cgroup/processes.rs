//! The processes in a container's cgroups, and how to end them all.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{Cgroup, CgroupError, Hierarchy, tree, write};

/// How long killed processes may take to be gone. One in an uninterruptible sleep can take as long as its device.
const PATIENCE: Duration = Duration::from_secs(10);

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
        let mut pause = Duration::from_micros(100);
        loop {
            let processes = processes_below(folder)?;
            if processes.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(CgroupError::WouldNotDie {
                    path: folder.to_owned(),
                    seconds: PATIENCE.as_secs(),
                });
            }
            self.kill_once(folder, &processes)?;
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Sends a signal to every process, once.
    pub(crate) fn signal_all(&self, signal: i32) -> Result<(), CgroupError> {
        let Some(folder) = self.roll() else { return Ok(()) };
        if signal == libc::SIGKILL {
            return self.kill_once(folder, &processes_below(folder)?);
        }
        let was_frozen = self.is_frozen()?;
        self.signal_frozen(folder, signal)?;
        if was_frozen {
            Ok(())
        } else {
            self.thaw_if_possible()
        }
    }

    fn kill_once(&self, folder: &Path, processes: &[i32]) -> Result<(), CgroupError> {
        // Linux 5.14: all at once, also those being forked.
        match write(&folder.join("cgroup.kill"), "1") {
            Ok(()) => return self.thaw_to_die(),
            Err(Errno::NOENT | Errno::ACCESS | Errno::PERM | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(CgroupError::io("kill the processes of", folder, errno)),
        }
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
