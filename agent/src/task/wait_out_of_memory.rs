//! `WaitOutOfMemory`: the kernel has ended processes for want of memory.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use container::OutOfMemoryWatch;
use protocol::task::{WaitOutOfMemoryRequest, WaitOutOfMemoryResponse};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use ttrpc::Result;

use super::{TaskService, failed};

pub(super) async fn wait_out_of_memory(
    service: &TaskService,
    request: &WaitOutOfMemoryRequest,
) -> Result<WaitOutOfMemoryResponse> {
    let (mut watch, kills, mut exit) = service.with_container(&request.id, |kept| {
        // One of its own for each call: whoever reads it takes the news from others who poll.
        let watch = kept
            .container
            .watch_memory()
            .map_err(|error| failed("watching the container's memory", error))?;
        Ok((watch, kept.out_of_memory_kills.clone(), kept.init.exit.clone()))
    })?;
    let events = watch.as_ref().map(register).transpose();
    let events = events.map_err(|error| failed("waiting for the container's memory", error))?;
    loop {
        // In this order: what the end was for want of is counted by then.
        let ended = exit.borrow_and_update().is_some();
        let kills = kills.count();
        if ended || kills > request.known {
            return Ok(WaitOutOfMemoryResponse {
                kills,
                ended,
                ..WaitOutOfMemoryResponse::default()
            });
        }
        tokio::select! {
            result = news(events.as_ref(), watch.as_mut()) => {
                result.map_err(|error| failed("waiting for the container's memory", error))?;
            }
            // The exit is told, or its container is gone with all who could tell.
            result = exit.changed() => {
                if let Err(error) = result {
                    return Err(failed("waiting for the container's end", error));
                }
            }
        }
    }
}

/// cgroup2 tells of changes as priority events.
fn register(watch: &OutOfMemoryWatch) -> io::Result<AsyncFd<OwnedFd>> {
    let descriptor = watch.as_fd().try_clone_to_owned()?;
    // SAFETY: the descriptor is owned by the registration and so open for as long as it lasts.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::PRIORITY) }?)
}

/// Waits until a process was ended. Other events of the memory wake up as well, and are no news.
async fn news(events: Option<&AsyncFd<OwnedFd>>, watch: Option<&mut OutOfMemoryWatch>) -> io::Result<()> {
    let (Some(events), Some(watch)) = (events, watch) else {
        return std::future::pending().await;
    };
    loop {
        let mut ready = events.ready(Interest::PRIORITY).await?;
        ready.clear_ready();
        if watch.take().map_err(io::Error::other)? > 0 {
            return Ok(());
        }
    }
}
