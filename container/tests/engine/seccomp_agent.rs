//! An agent that decides about the calls a container hands on.

use std::fs::File;
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::Value;

/// A listening agent, which serves nobody yet.
pub(crate) struct Agent {
    pub(crate) path: PathBuf,
    socket: UnixListener,
}

/// What an agent does with a call.
pub(crate) enum Verdict {
    Continue,
    Fail(i32),
    Return(i64),
}

impl Agent {
    pub(crate) fn listen(folder: &Path) -> Agent {
        let path = folder.join("agent");
        let socket = UnixListener::bind(&path).unwrap();
        Agent { path, socket }
    }

    /// The state that was sent, and the listener that came with it.
    pub(crate) fn accept(&self) -> (Value, OwnedFd) {
        let (mut connection, _) = self.socket.accept().unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut text = vec![0; 64 << 10];
        let received = recvmsg(
            &connection,
            &mut [std::io::IoSliceMut::new(&mut text)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )
        .unwrap();
        text.truncate(received.bytes);
        // One state to a connection.
        assert_eq!(std::io::Read::read_to_end(&mut connection, &mut text).unwrap(), 0);
        let mut descriptors = ancillary.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
            _ => Vec::new(),
        });
        let listener = descriptors.next().unwrap();
        assert!(descriptors.next().is_none());
        (serde_json::from_slice(&text).unwrap(), listener)
    }

    /// Serves the next container from a process of its own, and notes each call's number in `notes`. Ends with the
    /// container.
    pub(crate) fn serve_in_background(self, notes: &Path) -> i32 {
        // SAFETY: this process has one thread, and the child ends without returning.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid > 0 {
            return pid;
        }
        let (_, listener) = self.accept();
        let mut notes = File::create(notes).unwrap();
        serve(&listener, |call| {
            writeln!(notes, "{}", call.nr).unwrap();
            Verdict::Continue
        });
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) }
    }
}

/// Answers until nobody is left who could ask.
pub(crate) fn serve(listener: &OwnedFd, mut decide: impl FnMut(&libc::seccomp_data) -> Verdict) {
    loop {
        let mut waiting = [PollFd::new(listener, PollFlags::IN)];
        poll(&mut waiting, None).unwrap();
        if !waiting[0].revents().contains(PollFlags::IN) {
            return;
        }
        // SAFETY: plain integers, which the kernel wants to be zero.
        let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        let fd = listener.as_fd().as_raw_fd();
        // SAFETY: the kernel writes a structure of this type.
        if unsafe { libc::ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) } != 0 {
            // It was killed meanwhile.
            continue;
        }
        let mut answer = libc::seccomp_notif_resp {
            id: call.id,
            val: 0,
            error: 0,
            flags: 0,
        };
        match decide(&call.data) {
            Verdict::Continue => answer.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
            Verdict::Fail(errno) => answer.error = -errno,
            Verdict::Return(value) => answer.val = value,
        }
        // SAFETY: the kernel reads a structure of this type. It fails where the caller was killed meanwhile.
        unsafe { libc::ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) };
    }
}
