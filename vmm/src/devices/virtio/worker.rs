//! The thread of a device.

use std::error::Error;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::{ActivateError, Pausable, QueuePosition};
use super::device_queue::{Chain, DeviceQueue, QueueError};
use super::failure::{DeviceFailure, FailureHandler};
use super::interrupt::Interrupt;

/// Why a device's thread ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkerError {
    /// One of the queues is unusable.
    #[error("serving queue {index}")]
    Queue {
        /// The queue's index.
        index: usize,
        /// The cause.
        #[source]
        source: QueueError,
    },
    /// The host's side of the device broke.
    #[error("{doing}")]
    Host {
        /// What was being done.
        doing: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl WorkerError {
    /// For `map_err`: an error of the queue at `index`.
    pub(crate) fn queue(index: usize) -> impl Fn(QueueError) -> Self {
        move |source| Self::Queue { index, source }
    }

    /// For `map_err`: the host could not do `doing`.
    pub(crate) fn host(doing: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Host { doing, source }
    }
}

/// What a device's thread does, and what it needs for it. It outlives a pause of the thread.
pub(crate) trait Service: Send + 'static {
    /// Serves the driver until `stop` is readable, and returns between two requests, with all used buffers announced.
    /// After a pause it is called again. Its first look at the queues waits for no notification: there may have been
    /// one before the pause, or before the snapshot this machine comes from.
    fn serve(&mut self, stop: &EventFd) -> Result<(), WorkerError>;

    /// Takes leave of the host's side when the driver is gone, or has broken a queue.
    fn finish(self) -> Result<(), WorkerError>
    where
        Self: Sized,
    {
        Ok(())
    }

    /// All queues of the device in the order of their indices.
    fn queues(&self) -> &[DeviceQueue];
}

/// A device thread; stopped and joined when dropped.
pub(crate) struct Worker<S: Service> {
    device: &'static str,
    interrupt: Arc<Interrupt>,
    failures: FailureHandler,
    stop: Arc<EventFd>,
    /// Whether the thread leaves its service behind when it is stopped.
    pausing: Arc<AtomicBool>,
    thread: Option<JoinHandle<Option<S>>>,
    /// What waits for the thread to go on.
    paused: Option<S>,
}

impl<S: Service> Worker<S> {
    /// Starts a thread named after `device` that serves with `service`. If that ends with an error, either the driver
    /// is asked for a reset or the failure is reported, depending on whose fault it is.
    ///
    /// # Errors
    /// When there is no event or thread to be had.
    pub(crate) fn start(
        device: &'static str,
        interrupt: Arc<Interrupt>,
        failures: FailureHandler,
        service: S,
    ) -> Result<Self, ActivateError> {
        let mut this = Self::new(device, interrupt, failures, service)?;
        this.resume()?;
        Ok(this)
    }

    /// The same without the thread: it is paused from the beginning.
    ///
    /// # Errors
    /// When there is no event to be had.
    pub(crate) fn new(
        device: &'static str,
        interrupt: Arc<Interrupt>,
        failures: FailureHandler,
        service: S,
    ) -> Result<Self, ActivateError> {
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
            .map_err(|source| ActivateError::Thread { device, source })?;
        Ok(Self {
            device,
            interrupt,
            failures,
            stop: Arc::new(stop),
            pausing: Arc::new(AtomicBool::new(false)),
            thread: None,
            paused: Some(service),
        })
    }

    /// The service, while its thread is paused.
    pub(crate) fn paused(&self) -> Option<&S> {
        self.paused.as_ref()
    }

    /// The same, to change it.
    pub(crate) fn paused_mut(&mut self) -> Option<&mut S> {
        self.paused.as_mut()
    }

    /// Ends the thread and returns what it left behind.
    fn stop(&mut self, pausing: bool) -> Option<S> {
        let thread = self.thread.take()?;
        self.pausing.store(pausing, Ordering::Release);
        // An eventfd refuses a write only when its counter is full, and then it is readable already.
        let _ = self.stop.write(1);
        // A panic has been printed by the thread itself; there is nobody left to hand it to.
        thread.join().ok().flatten()
    }
}

impl<S: Service> Pausable for Worker<S> {
    fn pause(&mut self) {
        if let Some(service) = self.stop(true) {
            self.paused = Some(service);
        }
    }

    fn resume(&mut self) -> Result<(), ActivateError> {
        let Some(service) = self.paused.take() else {
            return Ok(());
        };
        // Lowers what the pause raised; nothing is there to lower at the start.
        let _ = self.stop.read();
        let (stop, pausing) = (Arc::clone(&self.stop), Arc::clone(&self.pausing));
        let (interrupt, failures) = (Arc::clone(&self.interrupt), Arc::clone(&self.failures));
        let device = self.device;
        let thread = thread::Builder::new()
            .name(device.to_owned())
            .spawn(move || run(device, service, &stop, &pausing, &interrupt, &failures))
            .map_err(|source| ActivateError::Thread { device, source })?;
        self.thread = Some(thread);
        Ok(())
    }

    fn queue_positions(&self) -> Option<Vec<QueuePosition>> {
        let service = self.paused.as_ref()?;
        Some(service.queues().iter().map(DeviceQueue::position).collect())
    }
}

impl<S: Service> Drop for Worker<S> {
    fn drop(&mut self) {
        self.stop(false);
        if let Some(service) = self.paused.take()
            && let Err(error) = service.finish()
        {
            report(self.device, error, &self.interrupt, &self.failures);
        }
    }
}

/// What the thread does. Returns the service if it is to go on later.
fn run<S: Service>(
    device: &'static str,
    mut service: S,
    stop: &EventFd,
    pausing: &AtomicBool,
    interrupt: &Interrupt,
    failures: &FailureHandler,
) -> Option<S> {
    let served = service.serve(stop);
    if served.is_ok() && pausing.load(Ordering::Acquire) {
        return Some(service);
    }
    let finished = service.finish();
    if let Err(error) = served.and(finished) {
        report(device, error, interrupt, failures);
    }
    None
}

fn report(device: &'static str, error: WorkerError, interrupt: &Interrupt, failures: &FailureHandler) {
    let source: Box<dyn Error + Send + Sync> = match error {
        WorkerError::Queue { source, .. } if source.is_drivers_fault() => match interrupt.request_reset() {
            Ok(()) => return,
            Err(error) => Box::new(error),
        },
        error => Box::new(error),
    };
    failures(DeviceFailure { device, source });
}

/// An epoll set whose members are known by number.
pub(crate) struct Poller {
    epoll: Epoll,
}

impl Poller {
    /// Events reported by one wait at most; the others are reported by the next.
    const BATCH: usize = 64;

    /// An empty set.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { epoll: Epoll::new()? })
    }

    /// Adds `fd` under the number `token`. It leaves the set when it is closed.
    pub(crate) fn add(&self, fd: &impl AsRawFd, interest: EventSet, token: u64) -> io::Result<()> {
        let event = EpollEvent::new(interest, token);
        self.epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), event)
    }

    /// Changes what is waited for with `fd`, which is in the set, and looks at it anew.
    pub(crate) fn modify(&self, fd: &impl AsRawFd, interest: EventSet, token: u64) -> io::Result<()> {
        let event = EpollEvent::new(interest, token);
        self.epoll.ctl(ControlOperation::Modify, fd.as_raw_fd(), event)
    }

    /// Waits for events, at most `timeout`, for ever without one. An interrupted wait reports none.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> io::Result<Vec<(u64, EventSet)>> {
        // Rounded up, so that a deadline has passed when the wait for it ends.
        let timeout = timeout.map_or(-1, |timeout| {
            let milliseconds = timeout.as_nanos().div_ceil(1_000_000);
            i32::try_from(milliseconds).unwrap_or(i32::MAX)
        });
        let mut events = [EpollEvent::default(); Self::BATCH];
        let count = match self.epoll.wait(timeout, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        let events = events.iter().take(count);
        Ok(events.map(|event| (event.data(), event.event_set())).collect())
    }
}

/// Serves a device that has nothing to wait for but its queues: hands each chain to `handle`, which returns the number
/// of bytes it wrote into it. What is available when `stop` is raised is still served, so that nothing a guest sent
/// before it ended is lost.
pub(crate) fn serve_queues(
    queues: &mut [DeviceQueue],
    stop: &EventFd,
    mut handle: impl FnMut(&Chain) -> u32,
) -> Result<(), WorkerError> {
    serve_numbered_queues(queues, stop, |_, chain| handle(chain))
}

/// Like [`serve_queues`], for queues of different meanings: `handle` is told the index of the chain's queue.
pub(crate) fn serve_numbered_queues(
    queues: &mut [DeviceQueue],
    stop: &EventFd,
    mut handle: impl FnMut(usize, &Chain) -> u32,
) -> Result<(), WorkerError> {
    const STOP: u64 = u64::MAX;
    let poller = Poller::new().map_err(WorkerError::host("creating an epoll set"))?;
    poller
        .add(stop, EventSet::IN, STOP)
        .map_err(WorkerError::host("watching the stop event"))?;
    for (index, queue) in queues.iter().enumerate() {
        poller
            .add(queue.notification(), EventSet::IN, index as u64)
            .map_err(WorkerError::host("watching a notification"))?;
    }

    let mut more = true;
    loop {
        let events = poller
            .wait(more.then_some(Duration::ZERO))
            .map_err(WorkerError::host("waiting for notifications"))?;
        let stopping = events.iter().any(|(token, _)| *token == STOP);
        more = false;
        for (index, queue) in queues.iter_mut().enumerate() {
            if events.iter().any(|(token, _)| *token == index as u64) {
                queue.take_notification().map_err(WorkerError::queue(index))?;
            }
            more |= serve_one_round(queue, &mut |chain| handle(index, chain))
                .map_err(WorkerError::queue(index))?;
        }
        if stopping {
            return Ok(());
        }
    }
}

/// Serves at most one ring full of chains, so that a driver that never stops adding some cannot keep the thread from
/// its other events. Returns whether there may be more.
fn serve_one_round(
    queue: &mut DeviceQueue,
    handle: &mut impl FnMut(&Chain) -> u32,
) -> Result<bool, QueueError> {
    queue.pause_notifications()?;
    for _ in 0..queue.size() {
        let Some(chain) = queue.pop()? else {
            queue.interrupt_if_wanted()?;
            return queue.resume_notifications();
        };
        let written = handle(&chain);
        queue.complete(chain.head_index(), written)?;
    }
    queue.interrupt_if_wanted()?;
    Ok(true)
}
