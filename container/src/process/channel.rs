//! The socket between a caller and the process it made: few packets, and its end when either dies.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::str::FromStr;
use std::time::Duration;

use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::CommandFailure;

/// Enough for any chain of messages with paths in them; what is longer is cut.
const PACKET_LIMIT: usize = 32 << 10;

/// As many descriptors as a packet holds here; the kernel's limit is 253.
pub(crate) const MOST_DESCRIPTORS: usize = 32;

/// How long a process may take from one word to the next, on however slow a machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// How the set-up went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// The process waits for the hooks that the caller runs at this point.
    AwaitsHooks,
    /// The process waits for the sources of the bind mounts from this one of the configuration on.
    AwaitsSources { first: usize },
    /// The process is in the namespaces that it will stay in, and goes on.
    IsInNamespaces,
    /// The process is about to load a filter whose listener will be this descriptor of its own, and waits to go on.
    Listener { number: RawFd },
    /// The process waits to be started.
    Ready { warnings: Vec<String> },
    /// It has no program to become, and waits on.
    NoProcess,
    /// It could not be set up, and ends.
    Failed {
        failure: Option<CommandFailure>,
        messages: Vec<String>,
    },
}

/// The container's end.
pub(crate) struct InitChannel(OwnedFd);

/// The caller's end.
pub(crate) struct CallerChannel(OwnedFd);

pub(crate) fn channel() -> Result<(CallerChannel, InitChannel), Errno> {
    let (caller, init) = socket_pair()?;
    Ok((CallerChannel(caller), InitChannel(init)))
}

/// A connection that keeps packets apart, and its end at the execution.
pub(crate) fn socket_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let domain = AddressFamily::UNIX;
    socketpair(domain, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

impl InitChannel {
    /// Waits for the caller to have done its part: to have written the user namespace's maps, or run hooks.
    pub(crate) fn wait_for_caller(&self) -> Result<(), Errno> {
        let mut byte = [0];
        match rustix::net::recv(&self.0, &mut byte, RecvFlags::empty())? {
            (1, _) => Ok(()),
            // The caller died.
            _ => Err(Errno::PIPE),
        }
    }

    /// Asks the caller for descriptors, and waits for them.
    pub(crate) fn ask_for(&self, report: &Report) -> Result<Vec<OwnedFd>, Errno> {
        if !self.report(report, None) {
            return Err(Errno::PIPE);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut word = [0];
        let received = recvmsg(
            &self.0,
            &mut [IoSliceMut::new(&mut word)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        match received.bytes {
            1 => Ok(descriptors(ancillary)),
            // The caller died, or undoes everything.
            _ => Err(Errno::PIPE),
        }
    }

    /// Tells the caller, and hands it the terminal if there is one. False when there is no caller any more.
    pub(crate) fn report(&self, report: &Report, terminal: Option<&OwnedFd>) -> bool {
        let mut packet = report.encode();
        packet.truncate(PACKET_LIMIT);
        let terminal = terminal.map(|terminal| [terminal.as_fd()]);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if let Some(terminal) = &terminal {
            ancillary.push(SendAncillaryMessage::ScmRights(terminal));
        }
        sendmsg(
            &self.0,
            &[IoSlice::new(&packet)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )
        .is_ok()
    }
}

impl AsFd for InitChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for CallerChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl CallerChannel {
    /// Gives up on a process that says nothing for `patience`: whoever shares its user or its namespaces can stop it, and
    /// what it opens may be a file system that does not answer.
    pub(crate) fn be_patient_for(&self, patience: Duration) -> Result<(), Errno> {
        set_socket_timeout(&self.0, Timeout::Recv, Some(patience))
    }

    /// Lets the container's process go on.
    pub(crate) fn let_go_on(&self) -> Result<(), Errno> {
        rustix::net::send(&self.0, &[1], SendFlags::NOSIGNAL).map(|_| ())
    }

    /// The same, with descriptors, of which there are at most [`MOST_DESCRIPTORS`], where the process may have ended
    /// meanwhile: what it said last is still to be heard.
    pub(crate) fn hand_over_if_there(&self, files: &[OwnedFd]) -> Result<(), Errno> {
        unless_it_has_ended(self.hand_over(files))
    }

    fn hand_over(&self, files: &[OwnedFd]) -> Result<(), Errno> {
        let files: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(&files)) {
            return Err(Errno::NOBUFS);
        }
        sendmsg(
            &self.0,
            &[IoSlice::new(&[1])],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )
        .map(|_| ())
    }

    /// The same where the process may have ended meanwhile: what it said last is still to be heard.
    pub(crate) fn let_go_on_if_there(&self) -> Result<(), Errno> {
        unless_it_has_ended(self.let_go_on())
    }

    /// Waits for the report; none when the process died without one.
    pub(crate) fn receive(&self) -> Result<Option<(Report, Option<OwnedFd>)>, Errno> {
        let mut packet = vec![0; PACKET_LIMIT];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match recvmsg(
                &self.0,
                &mut [IoSliceMut::new(&mut packet)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                // The latter is told once, before the last words of a process that did not hear ours.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(Errno::AGAIN) => return Err(Errno::TIMEDOUT),
                result => break result?,
            }
        };
        if received.bytes == 0 && !received.flags.contains(ReturnFlags::CTRUNC) {
            return Ok(None);
        }
        let terminal = descriptors(ancillary).into_iter().next();
        let report = Report::decode(packet.get(..received.bytes).unwrap_or_default()).ok_or(Errno::BADMSG)?;
        Ok(Some((report, terminal)))
    }
}

fn descriptors(mut ancillary: RecvAncillaryBuffer<'_>) -> Vec<OwnedFd> {
    let rights = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    rights.flatten().collect()
}

// The first byte says what it is, and texts follow, each after a NUL.
const AWAITS_HOOKS: u8 = b'h';
const AWAITS_SOURCES: u8 = b's';
const IS_IN_NAMESPACES: u8 = b'i';
const LISTENER: u8 = b'l';
const READY: u8 = b'r';
const NO_PROCESS: u8 = b'p';
const FAILED: u8 = b'f';
const NOT_FOUND: u8 = b'n';
const NOT_EXECUTABLE: u8 = b'x';

impl Report {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (tag, texts) = match self {
            Report::AwaitsHooks => (AWAITS_HOOKS, &Vec::new()),
            Report::AwaitsSources { first } => (AWAITS_SOURCES, &vec![first.to_string()]),
            Report::IsInNamespaces => (IS_IN_NAMESPACES, &Vec::new()),
            Report::Listener { number } => (LISTENER, &vec![number.to_string()]),
            Report::Ready { warnings } => (READY, warnings),
            Report::NoProcess => (NO_PROCESS, &Vec::new()),
            Report::Failed {
                failure: None,
                messages,
            } => (FAILED, messages),
            Report::Failed {
                failure: Some(CommandFailure::NotFound),
                messages,
            } => (NOT_FOUND, messages),
            Report::Failed {
                failure: Some(CommandFailure::NotExecutable),
                messages,
            } => (NOT_EXECUTABLE, messages),
        };
        let mut packet = vec![tag];
        for text in texts {
            packet.push(0);
            packet.extend(text.bytes().filter(|&byte| byte != 0));
        }
        packet
    }

    pub(crate) fn decode(packet: &[u8]) -> Option<Report> {
        let (tag, rest) = packet.split_first()?;
        let texts = || {
            rest.split(|&byte| byte == 0)
                .skip(1)
                .map(|text| String::from_utf8_lossy(text).into_owned())
                .collect()
        };
        Some(match *tag {
            AWAITS_HOOKS => Report::AwaitsHooks,
            AWAITS_SOURCES => Report::AwaitsSources { first: number(rest)? },
            IS_IN_NAMESPACES => Report::IsInNamespaces,
            LISTENER => Report::Listener {
                number: number(rest)?,
            },
            READY => Report::Ready { warnings: texts() },
            NO_PROCESS => Report::NoProcess,
            FAILED => Report::Failed {
                failure: None,
                messages: texts(),
            },
            NOT_FOUND => Report::Failed {
                failure: Some(CommandFailure::NotFound),
                messages: texts(),
            },
            NOT_EXECUTABLE => Report::Failed {
                failure: Some(CommandFailure::NotExecutable),
                messages: texts(),
            },
            _ => return None,
        })
    }
}

fn number<T: FromStr>(rest: &[u8]) -> Option<T> {
    std::str::from_utf8(rest.strip_prefix(&[0])?).ok()?.parse().ok()
}

/// To send to a process that has ended is no failure of its own.
fn unless_it_has_ended(sent: Result<(), Errno>) -> Result<(), Errno> {
    match sent {
        Err(Errno::PIPE) => Ok(()),
        sent => sent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_arrive_as_they_were_sent() {
        for report in [
            Report::AwaitsHooks,
            Report::AwaitsSources { first: 300 },
            Report::IsInNamespaces,
            Report::Listener { number: 12 },
            Report::Ready { warnings: Vec::new() },
            Report::Ready {
                warnings: vec!["one".into(), "two".into()],
            },
            Report::NoProcess,
            Report::Failed {
                failure: None,
                messages: vec!["cannot x".into(), "no such file".into()],
            },
            Report::Failed {
                failure: Some(CommandFailure::NotFound),
                messages: vec!["`y`".into()],
            },
        ] {
            let (caller, init) = channel().unwrap();
            assert!(init.report(&report, None));
            assert_eq!(caller.receive().unwrap().unwrap().0, report);
        }
    }

    #[test]
    fn a_terminal_travels_with_the_report() {
        let (caller, init) = channel().unwrap();
        let (_, sent) = rustix::pipe::pipe().unwrap();
        init.report(&Report::Ready { warnings: Vec::new() }, Some(&sent));
        let (_, received) = caller.receive().unwrap().unwrap();
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        assert_eq!(inode(&received.unwrap()), inode(&sent));
    }

    #[test]
    fn descriptors_travel_to_whoever_asked_for_them() {
        let (caller, init) = channel().unwrap();
        let files: Vec<OwnedFd> = (0..MOST_DESCRIPTORS)
            .map(|_| rustix::pipe::pipe().unwrap().0)
            .collect();
        caller.hand_over(&files).unwrap();
        let asked = Report::AwaitsSources { first: 0 };
        let received = init.ask_for(&asked).unwrap();
        assert_eq!(caller.receive().unwrap().unwrap().0, asked);
        let inodes = |files: &[OwnedFd]| -> Vec<u64> {
            let inode = |file| rustix::fs::fstat(file).unwrap().st_ino;
            files.iter().map(inode).collect()
        };
        assert_eq!(inodes(&received), inodes(&files));
        drop(caller);
        assert!(init.ask_for(&asked).is_err());
    }

    #[test]
    fn the_death_of_either_end_is_seen_by_the_other() {
        let (caller, init) = channel().unwrap();
        drop(init);
        assert!(caller.receive().unwrap().is_none());
        let (caller, init) = channel().unwrap();
        drop(caller);
        assert!(!init.report(&Report::Ready { warnings: Vec::new() }, None));
        assert_eq!(init.wait_for_caller(), Err(Errno::PIPE));
    }

    #[test]
    fn one_who_says_nothing_is_given_up() {
        let (caller, _init) = channel().unwrap();
        caller.be_patient_for(Duration::from_millis(20)).unwrap();
        assert_eq!(caller.receive().unwrap_err(), Errno::TIMEDOUT);
    }

    #[test]
    fn a_report_longer_than_a_packet_is_cut_and_not_lost() {
        let (caller, init) = channel().unwrap();
        assert!(init.report(
            &Report::Failed {
                failure: None,
                messages: vec!["x".repeat(1 << 20)]
            },
            None
        ));
        assert!(matches!(
            caller.receive().unwrap(),
            Some((Report::Failed { .. }, None))
        ));
    }
}
