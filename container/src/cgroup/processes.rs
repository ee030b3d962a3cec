//! The processes in a container's cgroups, and how to end them all.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use super::{Cgroup, CgroupError, Hierarchy, read, write};

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

    fn kill_once(&self, folder: &Path, processes: &[i32]) -> Result<(), CgroupError> {
        // Linux 5.14: all at once, also those being forked.
        match write(&folder.join("cgroup.kill"), "1") {
            Ok(()) => return Ok(()),
            Err(Errno::NOENT | Errno::ACCESS | Errno::PERM | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(CgroupError::io("kill the processes of", folder, errno)),
        }
        // A frozen process cannot fork; and it does not die until it is thawed.
        let freezer = self
            .version1("freezer")
            .map(|folder| folder.join("freezer.state"));
        let set_freezer = |state: &str| match &freezer {
            Some(file) => match write(file, state) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(errno) => Err(CgroupError::io("write", file, errno)),
            },
            None => Ok(()),
        };
        set_freezer("FROZEN")?;
        for pid in processes.iter().copied().filter_map(Pid::from_raw) {
            match rustix::process::kill_process(pid, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => return Err(CgroupError::io("kill a process of", folder, errno)),
            }
        }
        set_freezer("THAWED")
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

fn processes_below(folder: &Path) -> Result<Vec<i32>, CgroupError> {
    let file = folder.join("cgroup.procs");
    let mut processes = match read(&file) {
        Ok(text) => text.lines().filter_map(|line| line.trim().parse().ok()).collect(),
        Err(Errno::NOENT | Errno::NODEV) => return Ok(Vec::new()),
        // A threaded cgroup lists its processes at the domain above it.
        Err(Errno::OPNOTSUPP) => Vec::new(),
        Err(errno) => return Err(CgroupError::io("read", &file, errno)),
    };
    for child in children(folder)? {
        processes.extend(processes_below(&child)?);
    }
    Ok(processes)
}

/// The cgroups directly below one. Its link count tells whether there are any, without listing all its files.
pub(super) fn children(folder: &Path) -> Result<Vec<std::path::PathBuf>, CgroupError> {
    let failed = |error: std::io::Error| {
        CgroupError::io("list", folder, Errno::from_io_error(&error).unwrap_or(Errno::IO))
    };
    match rustix::fs::stat(folder) {
        Ok(stat) if stat.st_nlink == 2 => return Ok(Vec::new()),
        Ok(_) => {}
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(errno) => return Err(CgroupError::io("look at", folder, errno)),
    }
    let mut children = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() {
            children.push(entry.path());
        }
    }
    Ok(children)
}
