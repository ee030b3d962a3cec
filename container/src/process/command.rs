//! Finding the program, as execvp(3) would, but before anyone is told that the container is ready.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Access, AtFlags, CWD, FileType, accessat, stat};
use rustix::io::Errno;

use crate::plan::ProcessPlan;

/// The two ways a program cannot be run, which a shell tells apart by exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandFailure {
    /// There is no such program: 127.
    NotFound,
    /// It is there but cannot be executed: 126.
    NotExecutable,
}

impl CommandFailure {
    /// The exit code that shells use for it.
    pub fn exit_code(self) -> i32 {
        match self {
            CommandFailure::NotFound => 127,
            CommandFailure::NotExecutable => 126,
        }
    }

    /// What an error of execve(2) means for the program.
    pub(crate) fn of(errno: Errno) -> CommandFailure {
        match errno {
            Errno::NOENT | Errno::NOTDIR => CommandFailure::NotFound,
            _ => CommandFailure::NotExecutable,
        }
    }
}

/// Why a program cannot be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error("`{}`: executable file not found in $PATH, which is {path}", program.to_string_lossy())]
    // The words are those by which podman and Docker know the case.
    NotInPath { program: CString, path: String },
    #[error("cannot execute `{}`: {}", program.to_string_lossy(), in_words(*errno))]
    Execute { program: CString, errno: Errno },
}

impl CommandError {
    pub(crate) fn execute(program: &CStr, errno: Errno) -> CommandError {
        CommandError::Execute {
            program: program.to_owned(),
            errno,
        }
    }

    pub(crate) fn failure(&self) -> CommandFailure {
        match self {
            CommandError::NotInPath { .. } => CommandFailure::NotFound,
            CommandError::Execute { errno, .. } => CommandFailure::of(*errno),
        }
    }
}

/// As Go says it: Docker's client looks for `permission denied` and `no such file or directory`, in these letters, to
/// tell which exit code it has.
fn in_words(errno: Errno) -> String {
    let text = io::Error::from(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text.to_ascii_lowercase()
}

/// What a process without PATH searches (execvp(3)).
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// The path to give to execve. Called as the program's user, in its root and its folder.
pub(crate) fn find(process: &ProcessPlan, environment: &[CString]) -> Result<CString, CommandError> {
    let Some(program) = process.arguments.first().cloned() else {
        // Nobody will be let execute it.
        return Ok(CString::default());
    };
    if program.as_bytes().contains(&b'/') {
        return match check(&program) {
            Ok(()) => Ok(program),
            Err(errno) => Err(CommandError::execute(&program, errno)),
        };
    }
    let path = environment
        .iter()
        .rev()
        .find_map(|variable| variable.as_bytes().strip_prefix(b"PATH="));
    let path = path.unwrap_or(DEFAULT_PATH.as_bytes());
    let mut refused = None;
    for folder in path.split(|&byte| byte == b':') {
        // An empty folder is the working folder.
        let folder = if folder.is_empty() { b"." } else { folder };
        let mut candidate = folder.to_vec();
        candidate.push(b'/');
        candidate.extend_from_slice(program.as_bytes());
        // Neither half holds a NUL.
        let Ok(candidate) = CString::new(candidate) else {
            continue;
        };
        match check(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(errno) if CommandFailure::of(errno) == CommandFailure::NotFound => {}
            Err(errno) => refused = Some(CommandError::execute(&candidate, errno)),
        }
    }
    Err(refused.unwrap_or_else(|| CommandError::NotInPath {
        path: OsStr::from_bytes(path).to_string_lossy().into_owned(),
        program,
    }))
}

fn check(path: &CStr) -> Result<(), Errno> {
    // The container's filter may be in force already, and knows faccessat2 seldom. The older call asks for the real
    // user, who is the effective one here; only ambient capabilities make a difference.
    let may_execute = accessat(CWD, path, Access::EXEC_OK, AtFlags::empty()).or_else(|errno| {
        match errno {
            // Whoever asks.
            Errno::NOENT | Errno::NOTDIR => Err(errno),
            _ => accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS).map_err(|_| errno),
        }
    });
    let kind = may_execute.and_then(|()| stat(path));
    match kind.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
        Ok(FileType::RegularFile) => Ok(()),
        Ok(FileType::Directory) => Err(Errno::ISDIR),
        Ok(_) => Err(Errno::ACCESS),
        // Neither call has these errors of its own: the filter refuses it, and execve will tell.
        Err(Errno::PERM | Errno::NOSYS) => Ok(()),
        Err(errno) => Err(errno),
    }
}
