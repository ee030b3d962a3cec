//! Standard streams that are pipes, as the program's user has them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, fchown, fstat};
use rustix::io::Errno;
use rustix::process::Uid;

use super::Stdio;
use crate::plan::{ProcessPlan, id_on_the_host, parse_id_map};
use crate::procfs;

/// Those of a program's standard streams that are pipes.
///
/// A pipe belongs to who made it, and lets nobody else open it. A program that is another user can use the one it was
/// given, but not open it once more by `/dev/stdout`, as many do.
pub(super) struct Pipes(Vec<OwnedFd>);

impl Pipes {
    /// Keeps them open beside `stdio`, which goes to the process that will be the program.
    pub(super) fn among(stdio: &Stdio, process: &ProcessPlan) -> Result<Pipes, Errno> {
        use rustix::stdio as own;
        let streams: [BorrowedFd<'_>; 3] = match stdio {
            _ if process.terminal.is_some() => return Ok(Pipes(Vec::new())),
            Stdio::Terminal => return Ok(Pipes(Vec::new())),
            Stdio::Inherit => [own::stdin(), own::stdout(), own::stderr()],
            Stdio::Files {
                stdin,
                stdout,
                stderr,
            } => [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
        };
        let pipes = streams.into_iter().filter(|stream| is_pipe(*stream));
        pipes
            .map(|pipe| rustix::io::fcntl_dupfd_cloexec(pipe, 3))
            .collect::<Result<_, _>>()
            .map(Pipes)
    }

    /// Gives them to `uid`, as the caller counts users.
    ///
    /// Whoever may not give them away, or has them from a file system that knows no owners, leaves them as they are: they
    /// can be used all the same. That is what other runtimes do.
    pub(super) fn give_to(&self, uid: Uid) -> Result<(), Errno> {
        for pipe in &self.0 {
            if fstat(pipe)?.st_uid == uid.as_raw() {
                continue;
            }
            match fchown(pipe, Some(uid), None) {
                Ok(()) | Err(Errno::PERM | Errno::INVAL | Errno::ROFS) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Who a user of the user namespace that the process `pid` is in is to the caller. None without a mapping; nobody can
/// become that user either.
pub(super) fn user_to_caller(uid: Uid, pid: i32) -> Result<Option<Uid>, Errno> {
    let map = parse_id_map(&procfs::read(format!("{pid}/uid_map"))?);
    Ok(id_on_the_host(&map, uid.as_raw()).map(Uid::from_raw))
}

/// A stream that the caller does not have is none.
fn is_pipe(stream: BorrowedFd<'_>) -> bool {
    fstat(stream).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
}
