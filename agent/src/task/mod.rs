//! The task service: the life of containers, one file per verb.

mod create;
mod delete;
mod exec;
mod joined_streams;
mod kill;
mod out_of_memory;
mod pause;
mod pids;
mod process;
mod resize_pty;
mod resume;
mod shared_memory;
mod start;
mod state;
mod stats;
mod update;
mod wait;
mod wait_out_of_memory;

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use container::{CommandFailure, Container, Signal};
use protocol::failure::{self, FailureKind};
use protocol::task::{
    CreateRequest, CreateResponse, DeleteRequest, DeleteResponse, ExecRequest, ExecResponse, KillRequest,
    KillResponse, PauseRequest, PauseResponse, PidsRequest, PidsResponse, ResizePtyRequest,
    ResizePtyResponse, ResumeRequest, ResumeResponse, StartRequest, StartResponse, StateRequest,
    StateResponse, StatsRequest, StatsResponse, UpdateRequest, UpdateResponse, WaitOutOfMemoryRequest,
    WaitOutOfMemoryResponse, WaitRequest, WaitResponse,
};
use protocol::task_ttrpc::Task;
use rustix::process::Pid;
use ttrpc::r#async::TtrpcContext;
use ttrpc::{Code, Result, get_status};

use self::exec::KeptExec;
use self::out_of_memory::OutOfMemoryKills;
use self::process::{EndReceiver, KeptProcess};
use self::shared_memory::SharedMemories;
use crate::exit_status::ExitStatuses;
use crate::streams::Streams;

/// The engine's state of every container.
const STATE_ROOT: &str = "/run/bulkhead/containers";

/// Each container's bundle: the configuration as the host sent it.
const BUNDLES: &str = "/run/bulkhead/bundles";

/// Makes the folders of all containers, so that the first one need not.
///
/// # Errors
/// When one cannot be made.
pub(crate) fn make_folders() -> io::Result<()> {
    fs::create_dir_all(BUNDLES)?;
    // The engine's folders are private.
    DirBuilder::new().mode(0o700).create(STATE_ROOT)
}

/// Serves `bulkhead.task.v1.Task`; clones share the containers.
#[derive(Clone)]
pub(crate) struct TaskService {
    containers: Arc<Mutex<BTreeMap<String, KeptContainer>>>,
    shared_memories: Arc<Mutex<SharedMemories>>,
    exits: ExitStatuses,
    streams: Streams,
}

/// A container and what the agent holds for it.
struct KeptContainer {
    container: Container,
    init: KeptProcess,
    /// Of the init process.
    end: EndReceiver,
    /// The processes that were added to it.
    execs: BTreeMap<String, KeptExec>,
    out_of_memory_kills: OutOfMemoryKills,
}

impl KeptContainer {
    /// The process `exec_id` that was added to this container, which is called `id`.
    fn exec(&mut self, id: &str, exec_id: &str) -> Result<&mut KeptExec> {
        self.execs
            .get_mut(exec_id)
            .ok_or_else(|| refuse(Code::NOT_FOUND, format!("there is no {}", name_of(id, exec_id))))
    }

    /// The processes that the agent started and has not reaped.
    fn running(&self) -> impl Iterator<Item = &KeptProcess> {
        let added = self.execs.values().filter_map(KeptExec::started);
        std::iter::once(&self.init)
            .chain(added)
            .filter(|process| !process.has_ended())
    }
}

impl TaskService {
    /// A service without containers.
    pub(crate) fn new(exits: ExitStatuses, streams: Streams) -> Self {
        Self {
            containers: Arc::default(),
            shared_memories: Arc::default(),
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
            let exits: Vec<_> = kept.running().map(|process| process.exit.clone()).collect();
            if exits.is_empty() {
                continue;
            }
            match kept.container.kill_all(Signal::KILL) {
                Ok(()) => ending.extend(exits),
                Err(error) => result = Err(failed("ending a container", error)),
            }
        }
        for mut exit in ending {
            // The watch is gone only with what it has told.
            let _ = exit.wait_for(Option::is_some).await;
        }
        result
    }

    /// The containers, for a moment: the guard must not live over an await.
    fn containers(&self) -> MutexGuard<'_, BTreeMap<String, KeptContainer>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The memory that containers share, for a moment.
    fn shared_memories(&self) -> MutexGuard<'_, SharedMemories> {
        self.shared_memories
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the container of that id.
    fn with_container<T>(&self, id: &str, action: impl FnOnce(&mut KeptContainer) -> Result<T>) -> Result<T> {
        match self.containers().get_mut(id) {
            Some(kept) => action(kept),
            None => Err(refuse(Code::NOT_FOUND, format!("no container is named {id}"))),
        }
    }

    /// Forgets a process that was added to a container, if it still is the one with that number and has ended.
    fn forget_ended(&self, id: &str, exec_id: &str, pid: Pid) {
        let mut containers = self.containers();
        let Some(kept) = containers.get_mut(id) else {
            return;
        };
        let is_it = |exec: &KeptExec| {
            exec.started()
                .is_some_and(|process| process.pid == pid && process.has_ended())
        };
        if kept.execs.get(exec_id).is_some_and(is_it) {
            kept.execs.remove(exec_id);
        }
    }
}

#[async_trait]
impl Task for TaskService {
    async fn create(&self, _: &TtrpcContext, request: CreateRequest) -> Result<CreateResponse> {
        create::create(self, request).await
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecRequest) -> Result<ExecResponse> {
        exec::exec(self, request).await
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

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> Result<PidsResponse> {
        pids::pids(self, &request)
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> Result<PauseResponse> {
        pause::pause(self, &request)
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> Result<ResumeResponse> {
        resume::resume(self, &request)
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateRequest) -> Result<UpdateResponse> {
        update::update(self, &request)
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> Result<StatsResponse> {
        stats::stats(self, &request)
    }

    async fn wait_out_of_memory(
        &self,
        _: &TtrpcContext,
        request: WaitOutOfMemoryRequest,
    ) -> Result<WaitOutOfMemoryResponse> {
        wait_out_of_memory::wait_out_of_memory(self, &request).await
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> Result<DeleteResponse> {
        let service = self.clone();
        // To its end, whether or not the caller has the patience: nobody comes back for a container that is half deleted.
        let deletion = async move {
            let deleted = delete::delete(&service, &request).await;
            if let (Err(error), true) = (&deleted, request.force) {
                // The caller may not hear it.
                let name = name_of(&request.id, &request.exec_id);
                eprintln!("bulkhead-agent: deleting {name}: {error}");
            }
            deleted
        };
        tokio::spawn(deletion)
            .await
            .unwrap_or_else(|error| Err(failed("deleting", error)))
            .map(|()| DeleteResponse::default())
    }
}

/// A process as errors name it; the init process is its container.
fn name_of(id: &str, exec_id: &str) -> String {
    match exec_id {
        "" => format!("container {id}"),
        exec_id => format!("process {exec_id} of container {id}"),
    }
}

/// An answer that the request is at fault.
fn refuse(code: Code, message: String) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(get_status(code, message))
}

/// An answer that carries an error with all its causes.
fn failed(action: &str, error: impl Error + Send + Sync + 'static) -> ttrpc::Error {
    failed_because(Code::INTERNAL, action, error)
}

/// The same with another code.
fn failed_because(code: Code, action: &str, error: impl Error + Send + Sync + 'static) -> ttrpc::Error {
    refuse(code, with_causes(action, error))
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
    failure::error(Code::INTERNAL, kind, with_causes(action, error))
}

fn with_causes(action: &str, error: impl Error + Send + Sync + 'static) -> String {
    format!("{action}: {:#}", anyhow::Error::new(error))
}
