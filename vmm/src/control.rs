//! Requests to a running machine: JSON objects, one a line, over a unix socket.
//!
//! `{"request":"statistics"}` is answered with what each vCPU has counted, `{"request":"stop"}` ends the machine.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::vcpu::counters::ExitCounts;

/// The longest request.
const MAX_LINE_BYTES: usize = 4096;
/// How many clients are heard at a time; one more is turned away.
const MAX_CONNECTIONS: usize = 4;

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// What have the vCPUs counted?
    Statistics,
    /// End the machine.
    Stop,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "kebab-case")]
pub enum Response {
    /// To [`Request::Statistics`].
    Statistics {
        /// Each vCPU's.
        vcpus: Vec<VcpuStatistics>,
    },
    /// To [`Request::Stop`].
    Stopping,
    /// To what was not understood or could not be done.
    Error {
        /// Why.
        message: String,
    },
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
}

impl ControlServer {
    /// Listens at `path`; the socket goes with the value.
    ///
    /// # Errors
    /// When there is something already, or the directory does not allow it.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
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

    /// Does all that can be done without waiting. `statistics` is called for each request that needs them.
    pub fn serve(
        &mut self,
        statistics: &dyn Fn() -> Result<Vec<VcpuStatistics>, String>,
    ) -> Option<StopRequested> {
        let mut stop = None;
        self.connections.retain_mut(|connection| {
            let mut answer = |line: &[u8]| respond(line, statistics, &mut stop);
            connection.serve(&mut answer).is_ok()
        });
        while let Ok((stream, _)) = self.listener.accept() {
            if self.connections.len() < MAX_CONNECTIONS && stream.set_nonblocking(true).is_ok() {
                self.connections.push(Connection {
                    stream,
                    line: Vec::new(),
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

fn respond(
    line: &[u8],
    statistics: &dyn Fn() -> Result<Vec<VcpuStatistics>, String>,
    stop: &mut Option<StopRequested>,
) -> Response {
    match serde_json::from_slice(line) {
        Ok(Request::Statistics) => match statistics() {
            Ok(vcpus) => Response::Statistics { vcpus },
            Err(message) => Response::Error { message },
        },
        Ok(Request::Stop) => {
            *stop = Some(StopRequested);
            Response::Stopping
        }
        Err(error) => Response::Error {
            message: format!("not a request: {error}"),
        },
    }
}

impl Connection {
    /// Answers all requests that have come. An error is the end of the connection.
    fn serve(&mut self, answer: &mut dyn FnMut(&[u8]) -> Response) -> io::Result<()> {
        let mut buffer = [0; MAX_LINE_BYTES];
        loop {
            let read = match self.stream.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
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
                let response = answer(&self.line);
                self.line.clear();
                self.send(&response)?;
            }
        }
    }

    fn send(&mut self, response: &Response) -> io::Result<()> {
        let mut line = serde_json::to_vec(response)?;
        line.push(b'\n');
        self.stream.write_all(&line)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    struct Client {
        server: ControlServer,
        stream: BufReader<UnixStream>,
        _directory: tempfile::TempDir,
    }

    fn connect() -> Client {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let mut server = ControlServer::bind(&path).unwrap();
        let stream = BufReader::new(UnixStream::connect(&path).unwrap());
        server.serve(&|| Ok(Vec::new()));
        Client {
            server,
            stream,
            _directory: directory,
        }
    }

    impl Client {
        fn ask(&mut self, request: &[u8]) -> (String, Option<StopRequested>) {
            self.stream.get_mut().write_all(request).unwrap();
            let statistics = VcpuStatistics {
                index: 7,
                kvm: BTreeMap::new(),
                exits: ExitCounts::default(),
            };
            let stop = self.server.serve(&|| Ok(vec![statistics.clone()]));
            let mut answer = String::new();
            self.stream.read_line(&mut answer).unwrap();
            (answer, stop)
        }
    }

    #[test]
    fn statistics_are_answered() {
        let (answer, stop) = connect().ask(b"{\"request\":\"statistics\"}\n");
        assert!(
            answer.starts_with(r#"{"response":"statistics","vcpus":[{"index":7,"#),
            "{answer}"
        );
        assert_eq!(stop, None);
    }

    #[test]
    fn a_request_to_stop_is_acknowledged_and_reported() {
        let (answer, stop) = connect().ask(b"{\"request\":\"stop\"}\n");
        assert_eq!(answer, "{\"response\":\"stopping\"}\n");
        assert_eq!(stop, Some(StopRequested));
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
        client.server.serve(&|| Ok(Vec::new()));
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
