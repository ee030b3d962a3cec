//! The threads of a machine's vCPUs, and how they are called out of the guest.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;

use crate::stop::FirstStop;
use crate::vcpu::{Order, Vcpu, kick};

/// How long vCPU threads have to leave the guest, which takes them microseconds on a host that is not overloaded. One
/// that does not is left to the end of the process.
const LEAVE_GUEST: Duration = Duration::from_secs(5);
const LEAVE_GUEST_STEP: Duration = Duration::from_micros(200);

/// A thread could not be started.
#[derive(Debug, thiserror::Error)]
#[error("starting the thread of vCPU {vcpu}")]
pub struct ThreadError {
    /// The vCPU's number.
    pub vcpu: u8,
    /// The cause.
    #[source]
    pub source: io::Error,
}

/// Why vCPUs cannot be examined.
#[derive(Debug, thiserror::Error)]
pub enum ExamineError {
    /// One is no more.
    #[error("a vCPU has stopped for good")]
    Ended,
    /// One has not come.
    #[error("a vCPU did not leave the guest within {LEAVE_GUEST:?}")]
    Stuck,
}

/// The threads of the vCPUs; dropping it takes them out of the guest.
pub struct VcpuThreads {
    /// In the order of the vCPUs' numbers, which is not the one they are started in.
    threads: Vec<VcpuThread>,
    attention: Arc<AtomicBool>,
}

struct VcpuThread {
    index: u8,
    orders: Sender<Order>,
    handle: JoinHandle<()>,
}

impl VcpuThreads {
    /// No threads yet. Their vCPUs look at `attention`.
    pub fn new(attention: Arc<AtomicBool>) -> Self {
        Self {
            threads: Vec::new(),
            attention,
        }
    }

    /// Starts a thread that runs `vcpu`.
    ///
    /// # Errors
    /// When there is none to be had.
    pub fn start(&mut self, vcpu: Vcpu, first_stop: &Arc<FirstStop>) -> Result<(), ThreadError> {
        let index = vcpu.index;
        let first_stop = Arc::clone(first_stop);
        let (orders, taken) = channel();
        let body = move || {
            if let Some(stop) = vcpu.run(&taken) {
                first_stop.report(stop);
            }
        };
        let handle = thread::Builder::new()
            .name(format!("vcpu{index}"))
            .spawn(body)
            .map_err(|source| ThreadError { vcpu: index, source })?;
        self.threads.push(VcpuThread {
            index,
            orders,
            handle,
        });
        self.threads.sort_by_key(|thread| thread.index);
        Ok(())
    }

    /// Calls all vCPUs out of the guest and waits until they are.
    ///
    /// # Errors
    /// When one does not come. Those that came are back in the guest.
    pub fn pause(&self) -> Result<(), ExamineError> {
        self.call_out();
        let settled = self.examine(|_| ());
        if settled.is_err() {
            self.resume();
        }
        settled.map(drop)
    }

    /// Lets paused vCPUs go back to the guest.
    pub fn resume(&self) {
        self.attention.store(false, Ordering::Release);
        for thread in &self.threads {
            // One that has ended hears nothing.
            let _ = thread.orders.send(Order::Resume);
        }
    }

    /// What `examine` finds in each of the paused vCPUs, in the order of their numbers.
    ///
    /// # Errors
    /// When one has ended or does not come.
    pub fn examine<T: Send + 'static>(
        &self,
        examine: impl Fn(&VcpuFd) -> T + Send + Sync + 'static,
    ) -> Result<Vec<T>, ExamineError> {
        let deadline = Instant::now() + LEAVE_GUEST;
        let examine = Arc::new(examine);
        let answers: Vec<_> = self
            .threads
            .iter()
            .map(|thread| {
                let (answer, answers) = sync_channel(1);
                let examine = Arc::clone(&examine);
                let order = Order::Examine(Box::new(move |vcpu| {
                    // Nobody waits for one that came too late.
                    let _ = answer.send(examine(vcpu));
                }));
                // If the thread has ended, the order is dropped, and its end of the channel with it.
                let _ = thread.orders.send(order);
                answers
            })
            .collect();
        answers
            .into_iter()
            .map(|answer| {
                let left = deadline.saturating_duration_since(Instant::now());
                answer.recv_timeout(left).map_err(|error| match error {
                    RecvTimeoutError::Timeout => ExamineError::Stuck,
                    RecvTimeoutError::Disconnected => ExamineError::Ended,
                })
            })
            .collect()
    }

    fn call_out(&self) {
        self.attention.store(true, Ordering::Release);
        for thread in &self.threads {
            // A thread that is gone needs no kick.
            let _ = kick::kick(&thread.handle);
        }
    }
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        self.call_out();
        // Without anybody to give them orders they end.
        let threads: Vec<JoinHandle<()>> = self.threads.drain(..).map(|thread| thread.handle).collect();
        let deadline = Instant::now() + LEAVE_GUEST;
        while !threads.iter().all(JoinHandle::is_finished) && Instant::now() < deadline {
            thread::sleep(LEAVE_GUEST_STEP);
        }
        for thread in threads.iter().filter(|thread| !thread.is_finished()) {
            let name = thread.thread().name().unwrap_or("a vCPU");
            eprintln!("bulkhead-vmm: {name} did not leave the guest within {LEAVE_GUEST:?}");
        }
    }
}
