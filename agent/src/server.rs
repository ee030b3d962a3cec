//! Everything the agent serves, for as long as the guest lives.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use protocol::{sandbox_ttrpc, task_ttrpc};

use crate::event_connection::{EventConnection, TellError};
use crate::exit_status::ExitStatuses;
use crate::sandbox_service::SandboxService;
use crate::streams::Streams;
use crate::task::TaskService;

/// Why the agent cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// The streams' port could not be bound.
    #[error("listening for standard streams on vsock port {}", protocol::ports::STREAM)]
    ListenStreams(#[source] io::Error),
    /// The streams' port failed.
    #[error("accepting a standard stream")]
    AcceptStream(#[source] io::Error),
    /// The calls' port failed.
    #[error("serving calls on vsock port {}", protocol::ports::RPC)]
    Rpc(#[source] ttrpc::Error),
    /// The host could not be told that the agent is ready.
    #[error("announcing readiness")]
    Announce(#[source] TellError),
    /// Whether the host still listens cannot be told.
    #[error("watching the connection to the host")]
    KeepEvents(#[source] io::Error),
    /// SIGCHLD could not be received.
    #[error("reaping")]
    Reap(#[source] io::Error),
}

/// Serves calls and streams and reaps; tells the host once every port answers.
///
/// # Errors
/// When any part of it cannot go on.
pub(crate) async fn serve(events: &mut EventConnection) -> Result<Infallible, ServeError> {
    let exits = ExitStatuses::default();
    let streams = Streams::default();
    let listener = Streams::listen().map_err(ServeError::ListenStreams)?;
    let tasks = TaskService::new(exits.clone(), streams.clone());
    let sandbox = SandboxService::new(tasks.clone());
    let mut server = ttrpc::r#async::Server::new()
        .bind(&format!("vsock://-1:{}", protocol::ports::RPC))
        .map_err(ServeError::Rpc)?
        .register_service(task_ttrpc::create_task(Arc::new(tasks)))
        .register_service(sandbox_ttrpc::create_sandbox(Arc::new(sandbox)));
    server.start().await.map_err(ServeError::Rpc)?;
    events.ready().await.map_err(ServeError::Announce)?;
    tokio::select! {
        result = exits.reap() => result.map_err(ServeError::Reap),
        result = streams.accept(listener) => result.map_err(ServeError::AcceptStream),
        result = events.keep() => result.map_err(ServeError::KeepEvents),
    }
}
