//! A guest that has mounted a share, for the tests: it sends raw FUSE requests, as its kernel would.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use fuse_backend_rs::abi::fuse_abi::Opcode;
use vm_memory::GuestMemoryMmap;

use super::Fs;
use crate::devices::virtio::device::VirtioDevice;
use crate::devices::virtio::test_driver::{Buffer, TestDriver};

pub(super) const URGENT: usize = 0;
pub(super) const REQUESTS: usize = 1;
pub(super) const ROOT: u64 = 1;

/// INIT flags a Linux 6.1 guest offers, as far as they matter here.
pub(super) const OFFERED: u32 = 0x73ff_fffb;

pub(super) struct Share {
    pub(super) directory: tempfile::TempDir,
    memory: Arc<GuestMemoryMmap>,
    pub(super) device: Fs,
}

impl Share {
    pub(super) fn new() -> Self {
        Self::with(false)
    }

    pub(super) fn with(read_only: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("share")).unwrap();
        let device = Fs::new("share", &directory.path().join("share"), read_only).unwrap();
        Self {
            directory,
            memory: TestDriver::memory(),
            device,
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("share").join(name)
    }

    /// Starts the device and mounts the share.
    pub(super) fn mount(&mut self) -> Guest<'_> {
        let mut guest = self.activate();
        let reply = guest.init();
        assert_eq!(reply.len(), 64);
        guest
    }

    pub(super) fn activate(&mut self) -> Guest<'_> {
        Guest::of(&self.memory, &mut self.device)
    }
}

/// What a lookup returns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) node: u64,
    pub(super) entry_seconds: u64,
    pub(super) attr_seconds: u64,
    pub(super) size: u64,
    pub(super) mode: u32,
    pub(super) nlink: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

pub(super) struct Guest<'m> {
    pub(super) driver: TestDriver<'m>,
    unique: u64,
    pub(super) uid: u32,
}

impl<'m> Guest<'m> {
    /// Starts `device` for a guest with `memory`.
    pub(super) fn of(memory: &'m Arc<GuestMemoryMmap>, device: &mut Fs) -> Self {
        let sizes = device.queue_sizes().to_vec();
        let driver = TestDriver::new(memory, &sizes);
        driver.activate(device);
        Self {
            driver,
            unique: 0,
            uid: 0,
        }
    }
}

impl Guest<'_> {
    pub(super) fn init(&mut self) -> Vec<u8> {
        let mut body = Message::new().u32(7).u32(37).u32(128 << 10).u32(OFFERED);
        for _ in 0..12 {
            body = body.u32(0);
        }
        self.call(Opcode::Init as u32, 0, body).unwrap()
    }

    /// Sends a request and returns the answer without its header, or the error number.
    pub(super) fn call(&mut self, opcode: u32, node: u64, body: Message) -> Result<Vec<u8>, i32> {
        self.call_with_room(opcode, node, body, 256 << 10)
    }

    pub(super) fn call_with_room(
        &mut self,
        opcode: u32,
        node: u64,
        body: Message,
        room: u32,
    ) -> Result<Vec<u8>, i32> {
        self.unique += 1;
        let request = Message::new()
            .u32(40 + body.0.len() as u32)
            .u32(opcode)
            .u64(self.unique)
            .u64(node)
            .u32(self.uid)
            .u32(self.uid)
            .u32(1)
            .u32(0)
            .bytes(&body.0);
        let input = self.driver.data(REQUESTS);
        let output = input + (2 << 20);
        self.driver.write(input, &request.0);
        self.driver.add(
            REQUESTS,
            &[
                Buffer::readable(input, 40),
                Buffer::readable(input + 40, body.0.len() as u32),
                Buffer::writable(output, 16),
                Buffer::writable(output + 16, room - 16),
            ],
        );
        let (_, used) = self.driver.wait_for_used(REQUESTS);
        if used == 0 {
            return Ok(Vec::new());
        }
        let header = self.driver.read(output, 16);
        let length = u32::from_le_bytes(header[..4].try_into().unwrap());
        let error = i32::from_le_bytes(header[4..8].try_into().unwrap());
        assert_eq!(used, length);
        assert_eq!(header[8..], self.unique.to_le_bytes());
        match error {
            0 => Ok(self.driver.read(output + 16, length as usize - 16)),
            error => Err(-error),
        }
    }

    /// A request that is not answered.
    pub(super) fn tell(&mut self, opcode: Opcode, node: u64, body: Message) {
        let request = Message::new()
            .u32(40 + body.0.len() as u32)
            .u32(opcode as u32)
            .u64(0)
            .u64(node)
            .u32(0)
            .u32(0)
            .u32(0)
            .u32(0)
            .bytes(&body.0);
        let input = self.driver.data(URGENT);
        self.driver.write(input, &request.0);
        self.driver
            .add(URGENT, &[Buffer::readable(input, request.0.len() as u32)]);
        assert_eq!(self.driver.wait_for_used(URGENT).1, 0);
    }

    pub(super) fn entry(&mut self, opcode: Opcode, node: u64, body: Message) -> Result<Entry, i32> {
        let reply = self.call(opcode as u32, node, body)?;
        let u64_at = |offset: usize| u64::from_le_bytes(reply[offset..offset + 8].try_into().unwrap());
        let u32_at = |offset: usize| u32::from_le_bytes(reply[offset..offset + 4].try_into().unwrap());
        Ok(Entry {
            node: u64_at(0),
            entry_seconds: u64_at(16),
            attr_seconds: u64_at(24),
            size: u64_at(48),
            mode: u32_at(100),
            nlink: u32_at(104),
            uid: u32_at(108),
            gid: u32_at(112),
        })
    }

    pub(super) fn lookup(&mut self, parent: u64, name: &str) -> Result<Entry, i32> {
        self.entry(Opcode::Lookup, parent, Message::new().name(name))
    }

    pub(super) fn walk(&mut self, path: &str) -> Entry {
        let mut entry = None;
        for name in path.split('/') {
            let parent = entry.map_or(ROOT, |entry: Entry| entry.node);
            entry = Some(self.lookup(parent, name).unwrap());
        }
        entry.unwrap()
    }

    pub(super) fn mkdir(&mut self, parent: u64, name: &str) -> Result<Entry, i32> {
        self.entry(Opcode::Mkdir, parent, Message::new().u32(0o755).u32(0).name(name))
    }

    pub(super) fn open(&mut self, node: u64, flags: i32) -> Result<(u64, u32), i32> {
        self.open_as(Opcode::Open, node, flags)
    }

    pub(super) fn open_as(&mut self, opcode: Opcode, node: u64, flags: i32) -> Result<(u64, u32), i32> {
        let reply = self.call(opcode as u32, node, Message::new().u32(flags as u32).u32(0))?;
        Ok((
            u64::from_le_bytes(reply[..8].try_into().unwrap()),
            u32::from_le_bytes(reply[8..12].try_into().unwrap()),
        ))
    }

    pub(super) fn create(
        &mut self,
        parent: u64,
        name: &str,
        flags: i32,
        mode: u32,
    ) -> Result<(u64, u64), i32> {
        let body = Message::new()
            .u32(flags as u32)
            .u32(mode)
            .u32(0)
            .u32(0)
            .name(name);
        let reply = self.call(Opcode::Create as u32, parent, body)?;
        Ok((
            u64::from_le_bytes(reply[..8].try_into().unwrap()),
            u64::from_le_bytes(reply[128..136].try_into().unwrap()),
        ))
    }

    pub(super) fn read(&mut self, node: u64, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>, i32> {
        self.call_with_room(
            Opcode::Read as u32,
            node,
            transfer(handle, offset, size, libc::O_RDWR),
            size + 16,
        )
    }

    pub(super) fn write(&mut self, node: u64, handle: u64, offset: u64, data: &[u8]) -> Result<u32, i32> {
        let body = transfer(handle, offset, data.len() as u32, libc::O_RDWR).bytes(data);
        let reply = self.call(Opcode::Write as u32, node, body)?;
        Ok(u32::from_le_bytes(reply[..4].try_into().unwrap()))
    }

    /// The names in a directory.
    pub(super) fn names(&mut self, node: u64, plus: bool) -> Vec<String> {
        let (handle, _) = self.open_as(Opcode::Opendir, node, 0).unwrap();
        let opcode = if plus {
            Opcode::Readdirplus
        } else {
            Opcode::Readdir
        };
        let mut names = Vec::new();
        let mut offset = 0;
        loop {
            let reply = self
                .call(opcode as u32, node, transfer(handle, offset, 4096, 0))
                .unwrap();
            if reply.is_empty() {
                break;
            }
            let mut rest = reply.as_slice();
            while !rest.is_empty() {
                let header = if plus { 128 } else { 0 };
                let dirent = &rest[header..];
                offset = u64::from_le_bytes(dirent[8..16].try_into().unwrap());
                let length = u32::from_le_bytes(dirent[16..20].try_into().unwrap()) as usize;
                names.push(String::from_utf8(dirent[24..24 + length].to_vec()).unwrap());
                rest = &rest[header + (24 + length).next_multiple_of(8)..];
            }
        }
        let release = Message::new().u64(handle).u32(0).u32(0).u64(0);
        self.call(Opcode::Releasedir as u32, node, release).unwrap();
        names.sort();
        names
    }
}

/// The body of a request.
#[derive(Debug, Clone, Default)]
pub(super) struct Message(pub(super) Vec<u8>);

impl Message {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) fn name(self, name: &str) -> Self {
        self.bytes(name.as_bytes()).bytes(&[0])
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

pub(super) fn transfer(handle: u64, offset: u64, size: u32, flags: i32) -> Message {
    Message::new()
        .u64(handle)
        .u64(offset)
        .u32(size)
        .u32(0)
        .u64(0)
        .u32(flags as u32)
        .u32(0)
}

pub(super) fn setattr(valid: u32, size: u64, mode: u32) -> Message {
    let mut body = Message::new().u32(valid).u32(0).u64(0).u64(size).u64(0);
    for _ in 0..3 {
        body = body.u64(0);
    }
    for _ in 0..3 {
        body = body.u32(0);
    }
    body.u32(mode).u32(0).u32(0).u32(0).u32(0)
}
