//! The sandbox service: what a virtual machine needs beyond the containers in it.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use protocol::sandbox::{
    AddDiskRequest, AddDiskResponse, NetworkRequest, NetworkResponse, PrepareRequest, PrepareResponse,
    RemoveDiskRequest, RemoveDiskResponse, ShutdownRequest, ShutdownResponse,
};
use protocol::sandbox_ttrpc::Sandbox;
use rustix::time::{ClockId, Timespec, clock_settime};
use ttrpc::r#async::TtrpcContext;
use ttrpc::{Code, Error, Result, get_status};

use crate::task::TaskService;
use crate::{disks, entropy, guest_mounts, network, power};

/// Time for the answer to `Shutdown` to reach the host before the machine goes.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

/// Serves `bulkhead.sandbox.v1.Sandbox`.
pub(crate) struct SandboxService {
    tasks: TaskService,
}

impl SandboxService {
    /// A sandbox whose containers `tasks` keeps.
    pub(crate) fn new(tasks: TaskService) -> Self {
        Self { tasks }
    }
}

#[async_trait]
impl Sandbox for SandboxService {
    async fn prepare(&self, _: &TtrpcContext, request: PrepareRequest) -> Result<PrepareResponse> {
        if !request.hostname.is_empty() {
            rustix::system::sethostname(request.hostname.as_bytes())
                .map_err(|error| failed("setting the hostname", error))?;
        }
        if request.realtime > 0 {
            const SECOND: i64 = 1_000_000_000;
            let now = Timespec {
                tv_sec: request.realtime / SECOND,
                tv_nsec: request.realtime % SECOND,
            };
            clock_settime(ClockId::Realtime, now).map_err(|error| failed("setting the clock", error))?;
        }
        entropy::add(&request.entropy)
            .map_err(|error| failed("seeding the random number generator", error))?;
        for directory in &request.shared_directories {
            let target = Path::new(&directory.mount_point);
            guest_mounts::mount_shared_directory(&directory.tag, target, directory.read_only)
                .map_err(|error| failed("sharing a directory", anyhow::Error::new(error)))?;
        }
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_err(|error| failed("reading the boot id", error))?;
        Ok(PrepareResponse {
            kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
            boot_id: boot_id.trim().to_owned(),
            ..PrepareResponse::default()
        })
    }

    async fn configure_network(&self, _: &TtrpcContext, request: NetworkRequest) -> Result<NetworkResponse> {
        network::configure(&request).map_err(|error| failed("making the network the pod's", error))?;
        Ok(NetworkResponse::default())
    }

    async fn add_disk(&self, _: &TtrpcContext, request: AddDiskRequest) -> Result<AddDiskResponse> {
        let added = disks::add(&request).await;
        added.map_err(|error| failed("taking over a disk", error))
    }

    async fn remove_disk(&self, _: &TtrpcContext, request: RemoveDiskRequest) -> Result<RemoveDiskResponse> {
        let removed = disks::remove(&request.id).await;
        removed.map_err(|error| failed("taking leave of a disk", error))?;
        Ok(RemoveDiskResponse::default())
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> Result<ShutdownResponse> {
        let ended = self.tasks.end_all().await;
        rustix::fs::sync();
        tokio::spawn(async {
            tokio::time::sleep(SHUTDOWN_GRACE).await;
            power::restart();
        });
        ended.map(|()| ShutdownResponse::default())
    }
}

fn failed(what: &str, error: impl Into<anyhow::Error>) -> Error {
    Error::RpcStatus(get_status(Code::INTERNAL, format!("{what}: {:#}", error.into())))
}
