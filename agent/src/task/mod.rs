//! The task service: the life of containers, one file per verb.

mod create;
mod delete;
mod kill;
mod resize_pty;
mod start;
mod state;
mod wait;

use std::collections::HashMap;
use std::error::Error;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use container::{CommandFailure, Container, KillError, Signal};
use protocol::failure::{self, FailureKind};
use protocol::task::{
    CreateRequest, CreateResponse, DeleteRequest, DeleteResponse, KillRequest, KillResponse,
    ResizePtyRequest, ResizePtyResponse, StartRequest, StartResponse, StateRequest, StateResponse,
    WaitRequest, WaitResponse,
};
use protocol::task_ttrpc::Task;
use tokio::task::JoinHandle;
use ttrpc::r#async::TtrpcContext;
use ttrpc::{Code, Result, get_status};

use crate::exit_status::{ExitReceiver, ExitStatuses};
use crate::streams::Streams;

/// The engine's state of every container.
const STATE_ROOT: &str = "/run/bulkhead/containers";

/// Each container's bundle: the configuration as the host sent it.
const BUNDLES: &str = "/run/bulkhead/bundles";

/// Serves `bulkhead.task.v1.Task`; clones share the containers.
#[derive(Clone)]
pub(crate) struct TaskService {
    containers: Arc<Mutex<HashMap<String, KeptContainer>>>,
    exits: ExitStatuses,
    streams: Streams,
}

/// A container and what the agent holds for it.
struct KeptContainer {
    container: Container,
    exit: ExitReceiver,
    /// The terminal's master, for resizing.
    terminal: Option<OwnedFd>,
    /// The tasks that drain its outputs; taken by the first who waits for the exit.
    outputs: Arc<tokio::sync::Mutex<Vec<JoinHandle<()>>>>,
}

impl TaskService {
    /// A service without containers.
    pub(crate) fn new(exits: ExitStatuses, streams: Streams) -> Self {
        Self {
            containers: Arc::default(),
            exits,
            streams,
        }
    }

    /// Ends the processes of every container. Nothing else is removed: this is for a guest that is about to go.
    ///
    /// # Errors
    /// When one of them resists; the others have ended.
    pub(crate) async fn end_all(&self) -> Result<()> {
        let mut ending = Vec::new();
        let mut result = Ok(());
        for kept in self.containers().values() {
            if kept.exit.borrow().is_some() {
                continue;
            }
            match kept.container.kill(Signal::KILL) {
                // One that has ended by itself is reaped soon.
                Ok(()) | Err(KillError::NotRunning { .. }) => ending.push(kept.exit.clone()),
                Err(error) => result = Err(failed("ending a container", error)),
            }
        }
        for mut exit in ending {
            // The watch is gone only with the container, whose process is gone then as well.
            let _ = exit.wait_for(Option::is_some).await;
        }
        result
    }

    /// The containers, for a moment: the guard must not live over an await.
    fn containers(&self) -> MutexGuard<'_, HashMap<String, KeptContainer>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the container of that id.
    fn with_container<T>(&self, id: &str, action: impl FnOnce(&mut KeptContainer) -> Result<T>) -> Result<T> {
        match self.containers().get_mut(id) {
            Some(kept) => action(kept),
            None => Err(refuse(Code::NOT_FOUND, format!("no container is named {id}"))),
        }
    }
}

#[async_trait]
impl Task for TaskService {
    async fn create(&self, _: &TtrpcContext, request: CreateRequest) -> Result<CreateResponse> {
        create::create(self, request).await
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> Result<StartResponse> {
        start::start(self, &request)
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> Result<StateResponse> {
        state::state(self, &request)
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> Result<KillResponse> {
        kill::kill(self, &request)
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> Result<WaitResponse> {
        wait::wait(self, &request).await
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> Result<ResizePtyResponse> {
        resize_pty::resize_pty(self, &request)
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> Result<DeleteResponse> {
        delete::delete(self, &request.id, request.force).map(|()| DeleteResponse::default())
    }
}

/// An answer that the request is at fault.
fn refuse(code: Code, message: String) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(get_status(code, message))
}

/// An answer that carries an error with all its causes.
fn failed(action: &str, error: impl Error + Send + Sync + 'static) -> ttrpc::Error {
    command_failed(action, None, error)
}

/// The same, saying whether the container's command is at fault.
fn command_failed(
    action: &str,
    command: Option<CommandFailure>,
    error: impl Error + Send + Sync + 'static,
) -> ttrpc::Error {
    let kind = match command {
        Some(CommandFailure::NotFound) => FailureKind::COMMAND_NOT_FOUND,
        Some(CommandFailure::NotExecutable) => FailureKind::COMMAND_NOT_EXECUTABLE,
        None => FailureKind::OTHER,
    };
    failure::error(
        Code::INTERNAL,
        kind,
        format!("{action}: {:#}", anyhow::Error::new(error)),
    )
}
