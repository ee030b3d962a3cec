//! Standard streams that the host has opened and no process has claimed yet.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use protocol::stream::{self, StreamError, StreamId};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};

/// How long a fresh connection may take to name its stream.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);

/// How long a connection waits that there was no room for.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// How long a stream may wait for its process. Whoever opened it may have ended, and then nobody claims it.
const CLAIM_DEADLINE: Duration = Duration::from_secs(120);

/// The most streams that may wait for their process.
const MOST_UNCLAIMED: usize = 1024;

/// Why a process cannot have a stream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClaimError {
    /// The id is not one.
    #[error("reading the {descriptor} stream's id")]
    Id {
        /// Which standard stream.
        descriptor: &'static str,
        /// The cause.
        #[source]
        source: StreamError,
    },
    /// The host has not opened it, or another process has it.
    #[error("no stream {id} waits to be claimed as {descriptor}")]
    Unknown {
        /// Which standard stream.
        descriptor: &'static str,
        /// The id.
        id: StreamId,
    },
}

/// The streams that wait, by id, and since when.
#[derive(Debug, Clone, Default)]
pub(crate) struct Streams(Arc<Mutex<BTreeMap<StreamId, (Instant, VsockStream)>>>);

impl Streams {
    /// Takes the stream of that id; `None` for the empty id, which stands for `/dev/null`.
    ///
    /// # Errors
    /// When the id is malformed or no such stream waits.
    pub(crate) async fn claim(
        &self,
        descriptor: &'static str,
        id: &str,
    ) -> Result<Option<VsockStream>, ClaimError> {
        if id.is_empty() {
            return Ok(None);
        }
        let id = StreamId::new(id).map_err(|source| ClaimError::Id { descriptor, source })?;
        match self.0.lock().await.remove(&id) {
            Some((_, stream)) => Ok(Some(stream)),
            None => Err(ClaimError::Unknown { descriptor, id }),
        }
    }

    /// Binds the port of the streams.
    ///
    /// # Errors
    /// When there is no vsock device.
    pub(crate) fn listen() -> io::Result<VsockListener> {
        VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, protocol::ports::STREAM))
    }

    /// Accepts streams for as long as the guest lives.
    ///
    /// # Errors
    /// When the listener fails.
    pub(crate) async fn accept(self, listener: VsockListener) -> io::Result<std::convert::Infallible> {
        loop {
            let (connection, _) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) if passes(&error) => {
                    eprintln!("bulkhead-agent: accepting a stream: {error}");
                    sleep(ACCEPT_RETRY).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let streams = self.clone();
            tokio::spawn(async move {
                match timeout(HEADER_DEADLINE, streams.receive(connection)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => eprintln!("bulkhead-agent: a stream was not taken: {error}"),
                    Err(_) => eprintln!("bulkhead-agent: a connection did not name its stream in time"),
                }
            });
        }
    }

    async fn receive(&self, mut connection: VsockStream) -> Result<(), StreamError> {
        let id = stream::accept(&mut connection).await?;
        // Held over the answer: the host may ask for a container of this stream as soon as it has read it.
        let mut waiting = self.0.lock().await;
        waiting.retain(|_, (since, _)| since.elapsed() < CLAIM_DEADLINE);
        let free = waiting.len() < MOST_UNCLAIMED && !waiting.contains_key(&id);
        stream::answer(&mut connection, free).await?;
        if free {
            waiting.insert(id, (Instant::now(), connection));
        }
        Ok(())
    }
}

/// Whether another connection may be accepted later: descriptors and memory come back when processes end.
fn passes(error: &io::Error) -> bool {
    const PASSING: [i32; 6] = [
        libc::ECONNABORTED,
        libc::EINTR,
        libc::EMFILE,
        libc::ENFILE,
        libc::ENOBUFS,
        libc::ENOMEM,
    ];
    error.raw_os_error().is_some_and(|errno| PASSING.contains(&errno))
}
