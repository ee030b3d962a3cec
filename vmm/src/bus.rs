//! Which device answers which port and which address.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use crate::console_ring::ConsoleRing;
use crate::devices::early_console::{EarlyConsole, EarlyConsoleState};
use crate::devices::reset_line;
use crate::devices::virtio::blk::DiskSlot;
use crate::devices::virtio::device::SaveError;
use crate::devices::virtio::mmio_transport::{MmioTransport, RestoreError, TransportState};
use crate::devices::virtio::net::NetCounts;
use crate::memory::layout::{VIRTIO_MMIO, VIRTIO_MMIO_BYTES};

/// What a read from nothing gives.
const NOBODY: u8 = 0xff;

/// What a write to a port did beside reaching its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortWrite {
    /// Nothing.
    Taken,
    /// It pulled the reset line.
    Reset,
}

/// What a snapshot says of a machine's devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BusState {
    /// The early console's.
    pub early_console: EarlyConsoleState,
    /// The virtio devices', in the order of their windows.
    pub transports: Vec<TransportState>,
}

/// All devices of a machine; shared by its vCPU threads.
pub struct Bus {
    early_console: Mutex<EarlyConsole>,
    /// In the order of their windows.
    transports: Vec<Mutex<MmioTransport>>,
}

impl Bus {
    /// A bus with an early console that writes to `console`, and a window for each of `transports` in order.
    pub fn new(console: Arc<ConsoleRing>, transports: Vec<MmioTransport>) -> Self {
        Self {
            early_console: Mutex::new(EarlyConsole::new(console)),
            transports: transports.into_iter().map(Mutex::new).collect(),
        }
    }

    /// How many virtio devices there are.
    pub fn transports(&self) -> usize {
        self.transports.len()
    }

    /// Answers an `in` from `port`.
    pub fn read_port(&self, port: u16, data: &mut [u8]) {
        let value = match port {
            reset_line::PORT => reset_line::STATUS,
            _ => EarlyConsole::register(port)
                .map_or(NOBODY, |register| lock(&self.early_console).read(register)),
        };
        data.fill(value);
    }

    /// Takes an `out` to `port`: one byte, or with a repeated instruction several.
    pub fn write_port(&self, port: u16, data: &[u8]) -> PortWrite {
        if port == reset_line::PORT && data.contains(&reset_line::PULSE) {
            return PortWrite::Reset;
        }
        if let Some(register) = EarlyConsole::register(port) {
            lock(&self.early_console).write(register, data);
        }
        PortWrite::Taken
    }

    /// Answers a read from device memory.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) {
        match self.window(address) {
            Some((transport, offset)) => transport.read(offset, data),
            None => data.fill(NOBODY),
        }
    }

    /// Takes a write to device memory.
    pub fn write_memory(&self, address: u64, data: &[u8]) {
        if let Some((mut transport, offset)) = self.window(address) {
            transport.write(offset, data);
        }
    }

    /// What became of the frames of each network device.
    pub fn network_counts(&self) -> Vec<NetCounts> {
        let transports = self.transports.iter();
        transports
            .filter_map(|transport| lock(transport).network_counts())
            .collect()
    }

    /// Does something to the slot of this number, of those that disks can be put into.
    pub fn with_disk_slot<T>(&self, number: u8, work: impl FnOnce(&mut DiskSlot) -> T) -> Option<T> {
        let mut transport = self
            .transports
            .iter()
            .map(lock)
            .filter_map(|mut transport| transport.disk_slot().is_some().then_some(transport))
            .nth(number.into())?;
        transport.disk_slot().map(work)
    }

    /// What is raised when a driver asks something of a device that sleeps.
    ///
    /// # Errors
    /// When an event cannot be duplicated.
    pub fn dormant(&self) -> io::Result<Vec<EventFd>> {
        self.transports
            .iter()
            .filter_map(|transport| lock(transport).dormant().map(EventFd::try_clone))
            .collect()
    }

    /// Wakes those whose event was raised.
    pub fn wake_notified(&self) {
        for transport in &self.transports {
            lock(transport).wake_if_notified();
        }
    }

    /// Ends every device's thread between two requests. No vCPU runs.
    pub fn pause(&self) {
        for transport in &self.transports {
            lock(transport).pause();
        }
    }

    /// Lets paused devices go on.
    pub fn resume(&self) {
        for transport in &self.transports {
            lock(transport).resume();
        }
    }

    /// The state of all devices, which are paused.
    ///
    /// # Errors
    /// Why one cannot be in a snapshot.
    pub fn save(&self) -> Result<BusState, SaveError> {
        let transports = self.transports.iter();
        Ok(BusState {
            early_console: lock(&self.early_console).save(),
            transports: transports
                .map(|transport| lock(transport).save())
                .collect::<Result<_, _>>()?,
        })
    }

    /// Brings all devices, which have no driver yet, to `state`, and starts those that had one.
    ///
    /// # Errors
    /// When they are not those of the state, or the host does not give what one needs.
    pub fn restore(&self, state: &BusState) -> Result<(), RestoreError> {
        lock(&self.early_console).restore(state.early_console);
        for (transport, state) in self.transports.iter().zip(&state.transports) {
            lock(transport).restore(state)?;
        }
        Ok(())
    }

    /// Stops every device's thread.
    pub fn reset(&self) {
        for transport in &self.transports {
            lock(transport).reset();
        }
    }

    fn window(&self, address: u64) -> Option<(MutexGuard<'_, MmioTransport>, u64)> {
        let offset = address.checked_sub(VIRTIO_MMIO)?;
        let transport = self
            .transports
            .get(usize::try_from(offset / VIRTIO_MMIO_BYTES).ok()?)?;
        Some((lock(transport), offset % VIRTIO_MMIO_BYTES))
    }
}

/// A device another thread panicked in still answers as well as it can.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
