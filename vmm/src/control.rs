//! Requests to a running machine: JSON objects, one a line, over a unix socket.
//!
//! | request | answer | |
//! |---|---|---|
//! | `{"request":"statistics"}` | `{"response":"statistics",...}` | what each vCPU and network device has counted |
//! | `{"request":"stop"}` | `{"response":"stopping"}` | the machine ends |
//! | `{"request":"pause"}` | `{"response":"paused"}` | no vCPU and no device does anything until `resume` |
//! | `{"request":"resume"}` | `{"response":"resumed"}` | the machine runs, whether it was paused or not |
//! | `{"request":"attach-disk","slot":0,"disk":{...}}` | `{"response":"attached","sectors":...}` | with a descriptor (`SCM_RIGHTS` of unix(7)): the slot has a disk, as [`NewDisk`] says |
//! | `{"request":"detach-disk","slot":0}` | `{"response":"detached"}` | the slot is empty, and what was written to its disk is on it |
//! | `{"request":"snapshot","directory":"..."}` | `{"response":"snapshot"}` | see [`snapshot`](crate::snapshot); the machine is then paused |
//!
//! What cannot be done is answered with `{"response":"error","message":"..."}`. A snapshot that fails leaves the machine
//! running or paused, as it was before.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::{Deserialize, Serialize};

use crate::devices::virtio::blk::NewDisk;
use crate::devices::virtio::net::NetCounts;
use crate::vcpu::counters::ExitCounts;

/// The longest request.
const MAX_LINE_BYTES: usize = 4096;
/// How many clients are heard at a time; one more is turned away.
const MAX_CONNECTIONS: usize = 4;

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// What have the vCPUs counted?
    Statistics,
    /// End the machine.
    Stop,
    /// Keep the machine from doing anything.
    Pause,
    /// Let it go on.
    Resume,
    /// Put a disk into a slot. The message has its descriptor with it.
    AttachDisk {
        /// The slot's number, from 0.
        slot: u8,
        /// What it is to be there.
        disk: NewDisk,
    },
    /// Take the disk out of a slot, if there is one.
    DetachDisk {
        /// The slot's number.
        slot: u8,
    },
    /// Write a snapshot and keep the machine paused.
    Snapshot {
        /// An existing, empty directory.
        directory: PathBuf,
    },
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "kebab-case")]
pub enum Response {
    /// To [`Request::Statistics`].
    Statistics {
        /// Each vCPU's.
        vcpus: Vec<VcpuStatistics>,
        /// Where the guest's memory lies in this process.
        guest_memory: Vec<MemoryRange>,
        /// What became of each network device's frames, in the order of the description.
        #[serde(default)]
        network: Vec<NetCounts>,
    },
    /// To [`Request::Stop`].
    Stopping,
    /// To [`Request::Pause`].
    Paused,
    /// To [`Request::Resume`].
    Resumed,
    /// To [`Request::AttachDisk`].
    Attached {
        /// The disk's size in sectors of 512 bytes.
        sectors: u64,
    },
    /// To [`Request::DetachDisk`].
    Detached,
    /// To [`Request::Snapshot`]: the directory holds one.
    Snapshot,
    /// To what was not understood or could not be done.
    Error {
        /// Why.
        message: String,
    },
}

/// Guest memory as this process maps it. What `/proc/<pid>/smaps` (proc(5)) says of the mappings in it, it says of the
/// guest; the rest is the VMM's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRange {
    /// The address of its first byte.
    pub start: u64,
    /// Its length.
    pub bytes: u64,
}

/// What a vCPU has counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuStatistics {
    /// The vCPU's number.
    pub index: u8,
    /// KVM's figures, by KVM's names: `exits`, `insn_emulation` and others.
    pub kvm: BTreeMap<String, u64>,
    /// This process's own.
    pub exits: ExitCounts,
}

/// What does what is asked for. Errors are told to the client as they are.
pub trait Controlled {
    /// See [`Request::Statistics`].
    ///
    /// # Errors
    /// Why there are none.
    fn statistics(&mut self) -> Result<Vec<VcpuStatistics>, String>;

    /// Where the guest's memory lies in this process.
    fn guest_memory(&self) -> Vec<MemoryRange>;

    /// What became of each network device's frames.
    fn network(&self) -> Vec<NetCounts>;

    /// See [`Request::Pause`].
    ///
    /// # Errors
    /// Why the machine still runs.
    fn pause(&mut self) -> Result<(), String>;

    /// See [`Request::Resume`].
    fn resume(&mut self);

    /// See [`Request::AttachDisk`]. Gives the disk's size in sectors.
    ///
    /// # Errors
    /// Why it is not there.
    fn attach_disk(&mut self, slot: u8, disk: &NewDisk, descriptor: OwnedFd) -> Result<u64, String>;

    /// See [`Request::DetachDisk`].
    ///
    /// # Errors
    /// Why what was written to it may be lost.
    fn detach_disk(&mut self, slot: u8) -> Result<(), String>;

    /// See [`Request::Snapshot`].
    ///
    /// # Errors
    /// Why there is no snapshot.
    fn snapshot(&mut self, directory: &Path) -> Result<(), String>;
}

/// A client asked for the end of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopRequested;

/// The socket and those connected to it. Never waits: a client that does not read its answers is dropped.
#[derive(Debug)]
pub struct ControlServer {
    path: PathBuf,
    listener: UnixListener,
    connections: Vec<Connection>,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    /// What has come of the next request.
    line: Vec<u8>,
    /// What came with it.
    descriptor: Option<OwnedFd>,
}

impl ControlServer {
    /// Listens at `path`; the socket goes with the value.
    ///
    /// # Errors
    /// When there is something already, or the directory does not allow it.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let listener = bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            path: path.to_owned(),
            listener,
            connections: Vec::new(),
        })
    }

    /// What to wait on before [serving](Self::serve).
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.connections
            .iter()
            .map(|connection| connection.stream.as_fd())
            .chain([self.listener.as_fd()])
    }

    /// Has `machine` do all that was asked for. Waits for no client.
    pub fn serve(&mut self, machine: &mut dyn Controlled) -> Option<StopRequested> {
        let mut stop = None;
        self.connections.retain_mut(|connection| {
            let mut answer =
                |line: &[u8], descriptor: Option<OwnedFd>| respond(line, descriptor, machine, &mut stop);
            connection.serve(&mut answer).is_ok()
        });
        while let Ok((stream, _)) = self.listener.accept() {
            if self.connections.len() < MAX_CONNECTIONS && stream.set_nonblocking(true).is_ok() {
                self.connections.push(Connection {
                    stream,
                    line: Vec::new(),
                    descriptor: None,
                });
            }
        }
        stop
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // Somebody else may have removed it, with its directory.
        let _ = fs::remove_file(&self.path);
    }
}

/// Binds by way of the directory: a unix address has room for 107 bytes (unix(7)), and paths are longer.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "the path ends in no file name"))?;
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = open(parent, flags, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string());
    UnixListener::bind(short.join(name))
}

fn respond(
    line: &[u8],
    descriptor: Option<OwnedFd>,
    machine: &mut dyn Controlled,
    stop: &mut Option<StopRequested>,
) -> Response {
    let request = match serde_json::from_slice(line) {
        Ok(request) => request,
        Err(error) => {
            return Response::Error {
                message: format!("not a request: {error}"),
            };
        }
    };
    let done = match request {
        Request::Statistics => machine.statistics().map(|vcpus| Response::Statistics {
            vcpus,
            guest_memory: machine.guest_memory(),
            network: machine.network(),
        }),
        Request::Stop => {
            *stop = Some(StopRequested);
            Ok(Response::Stopping)
        }
        Request::Pause => machine.pause().map(|()| Response::Paused),
        Request::Resume => {
            machine.resume();
            Ok(Response::Resumed)
        }
        Request::AttachDisk { slot, disk } => match descriptor {
            Some(descriptor) => machine
                .attach_disk(slot, &disk, descriptor)
                .map(|sectors| Response::Attached { sectors }),
            None => Err("the disk's descriptor did not come with the request".to_owned()),
        },
        Request::DetachDisk { slot } => machine.detach_disk(slot).map(|()| Response::Detached),
        Request::Snapshot { directory } => machine.snapshot(&directory).map(|()| Response::Snapshot),
    };
    done.unwrap_or_else(|message| Response::Error { message })
}

impl Connection {
    /// Answers all requests that have come. An error is the end of the connection.
    fn serve(&mut self, answer: &mut dyn FnMut(&[u8], Option<OwnedFd>) -> Response) -> io::Result<()> {
        let mut buffer = [0; MAX_LINE_BYTES];
        loop {
            let read = match self.receive(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => read,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            for byte in buffer.iter().take(read) {
                if *byte != b'\n' {
                    self.line.push(*byte);
                    if self.line.len() > MAX_LINE_BYTES {
                        let message = format!("a request has at most {MAX_LINE_BYTES} bytes");
                        self.send(&Response::Error { message })?;
                        return Err(ErrorKind::InvalidData.into());
                    }
                    continue;
                }
                let response = answer(&self.line, self.descriptor.take());
                self.line.clear();
                self.send(&response)?;
            }
        }
    }

    /// Reads what has come, and keeps the last descriptor that came with it: the kernel closes what there is no room for,
    /// and a read does not go on beyond a message that carries some (unix(7)).
    fn receive(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(buffer)];
        let received = recvmsg(&self.stream, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptor = descriptors.last().or(self.descriptor.take());
            }
        }
        Ok(received.bytes)
    }

    fn send(&mut self, response: &Response) -> io::Result<()> {
        let mut line = serde_json::to_vec(response)?;
        line.push(b'\n');
        self.stream.write_all(&line)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, IoSlice, Read as _};

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    struct Client {
        server: ControlServer,
        stream: BufReader<UnixStream>,
        _directory: tempfile::TempDir,
    }

    /// A machine that does nothing and says so.
    struct Idle;

    impl Controlled for Idle {
        fn statistics(&mut self) -> Result<Vec<VcpuStatistics>, String> {
            Ok(vec![VcpuStatistics {
                index: 7,
                kvm: BTreeMap::new(),
                exits: ExitCounts::default(),
            }])
        }

        fn guest_memory(&self) -> Vec<MemoryRange> {
            vec![MemoryRange {
                start: 0x1000,
                bytes: 0x2000,
            }]
        }

        fn network(&self) -> Vec<NetCounts> {
            vec![NetCounts {
                received: 5,
                ..NetCounts::default()
            }]
        }

        fn pause(&mut self) -> Result<(), String> {
            Ok(())
        }

        fn resume(&mut self) {}

        fn attach_disk(&mut self, slot: u8, disk: &NewDisk, descriptor: OwnedFd) -> Result<u64, String> {
            let text = io::read_to_string(fs::File::from(descriptor)).map_err(|error| error.to_string())?;
            Err(format!("no place for {text} as {} in slot {slot}", disk.id))
        }

        fn detach_disk(&mut self, slot: u8) -> Result<(), String> {
            Err(format!("nothing in slot {slot}"))
        }

        fn snapshot(&mut self, directory: &Path) -> Result<(), String> {
            Err(format!("nothing to write to {}", directory.display()))
        }
    }

    fn connect() -> Client {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let mut server = ControlServer::bind(&path).unwrap();
        let stream = BufReader::new(UnixStream::connect(&path).unwrap());
        server.serve(&mut Idle);
        Client {
            server,
            stream,
            _directory: directory,
        }
    }

    impl Client {
        fn ask(&mut self, request: &[u8]) -> (String, Option<StopRequested>) {
            self.stream.get_mut().write_all(request).unwrap();
            let stop = self.server.serve(&mut Idle);
            let mut answer = String::new();
            self.stream.read_line(&mut answer).unwrap();
            (answer, stop)
        }
    }

    #[test]
    fn a_path_too_long_for_an_address_works_and_goes_with_the_server() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("d".repeat(120));
        fs::create_dir(&deep).unwrap();
        let path = deep.join("control");
        let server = ControlServer::bind(&path).unwrap();
        assert!(path.exists());
        drop(server);
        assert!(!path.exists());
    }

    #[test]
    fn statistics_are_answered() {
        let (answer, stop) = connect().ask(b"{\"request\":\"statistics\"}\n");
        assert!(
            answer.starts_with(r#"{"response":"statistics","vcpus":[{"index":7,"#),
            "{answer}"
        );
        assert!(answer.contains(r#""network":[{"received":5,"#), "{answer}");
        assert_eq!(stop, None);
    }

    #[test]
    fn a_request_to_stop_is_acknowledged_and_reported() {
        let (answer, stop) = connect().ask(b"{\"request\":\"stop\"}\n");
        assert_eq!(answer, "{\"response\":\"stopping\"}\n");
        assert_eq!(stop, Some(StopRequested));
    }

    #[test]
    fn pausing_and_resuming_are_acknowledged() {
        let mut client = connect();
        let (answer, _) = client.ask(b"{\"request\":\"pause\"}\n");
        assert_eq!(answer, "{\"response\":\"paused\"}\n");
        let (answer, _) = client.ask(b"{\"request\":\"resume\"}\n");
        assert_eq!(answer, "{\"response\":\"resumed\"}\n");
    }

    #[test]
    fn a_snapshot_that_fails_is_answered_with_the_reason() {
        let (answer, _) = connect().ask(b"{\"request\":\"snapshot\",\"directory\":\"/a b\"}\n");
        assert_eq!(
            answer,
            "{\"response\":\"error\",\"message\":\"nothing to write to /a b\"}\n"
        );
    }

    const ATTACH: &[u8] = b"{\"request\":\"attach-disk\",\"slot\":3,\"disk\":{\"id\":\"data\"}}\n";

    #[test]
    fn a_disk_comes_with_its_descriptor() {
        let mut client = connect();
        // Also where the request comes in pieces.
        for pieces in [ATTACH.split_at(ATTACH.len()), ATTACH.split_at(20)] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(b"this").unwrap();
            std::io::Seek::rewind(&mut file).unwrap();
            let descriptors = [file.as_fd()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
            let (with_it, after) = pieces;
            let parts = [IoSlice::new(with_it)];
            sendmsg(
                client.stream.get_ref(),
                &parts,
                &mut ancillary,
                SendFlags::empty(),
            )
            .unwrap();
            let (answer, _) = client.ask(after);
            assert!(answer.contains("no place for this as data in slot 3"), "{answer}");
        }
        let (answer, _) = client.ask(ATTACH);
        assert!(answer.contains("did not come with the request"), "{answer}");
        let (answer, _) = client.ask(b"{\"request\":\"detach-disk\",\"slot\":3}\n");
        assert!(answer.contains("nothing in slot 3"), "{answer}");
    }

    #[test]
    fn an_unknown_request_is_answered_with_an_error_and_the_next_is_heard() {
        let mut client = connect();
        let (answer, _) = client.ask(b"{\"request\":\"dance\"}\n");
        assert!(answer.contains("unknown variant `dance`"), "{answer}");
        assert!(client.ask(b"{\"request\":\"stop\"}\n").1.is_some());
    }

    #[test]
    fn an_endless_request_is_cut_off() {
        let mut client = connect();
        let (answer, _) = client.ask(&[b'x'; MAX_LINE_BYTES + 1]);
        assert!(answer.contains("at most 4096 bytes"), "{answer}");
        assert_eq!(client.server.connections.len(), 0);
    }

    #[test]
    fn a_fifth_client_is_turned_away() {
        let mut client = connect();
        let streams: Vec<_> = (0..4)
            .map(|_| UnixStream::connect(&client.server.path).unwrap())
            .collect();
        client.server.serve(&mut Idle);
        assert_eq!(client.server.connections.len(), MAX_CONNECTIONS);
        assert_eq!((&streams[3]).read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn the_socket_goes_with_the_server() {
        let client = connect();
        let path = client.server.path.clone();
        assert!(path.exists());
        drop(client.server);
        assert!(!path.exists());
    }
}
