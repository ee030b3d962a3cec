//! The file system the guest sees: the library's, with what it leaves open closed.

use std::ffi::CStr;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::CreateIn;
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SetattrValid, ZeroCopyReader, ZeroCopyWriter,
};
use fuse_backend_rs::passthrough::PassthroughFs;
use libc::{stat64, statvfs64};

use super::nodes::{Nodes, Place};

/// What is asked of the guest's FUSE client beside what the library asks for (readdirplus when it pays). Absent on
/// purpose: WRITEBACK_CACHE (see the module's introduction), POSIX_LOCKS and FLOCK_LOCKS (the guest's kernel keeps
/// locks among its own processes), ZERO_MESSAGE_OPEN and _OPENDIR (an overlay's directory that is reopened for every
/// read skips names when some are removed meanwhile), SUBMOUNTS.
const OPTIONS: FsOptions = FsOptions::from_bits_truncate(
    // Reads and lookups in parallel.
    FsOptions::ASYNC_READ.bits()
        | FsOptions::ASYNC_DIO.bits()
        | FsOptions::PARALLEL_DIROPS.bits()
        // Up to 1 MiB in one request instead of 4 KiB.
        | FsOptions::BIG_WRITES.bits()
        | FsOptions::MAX_PAGES.bits()
        // One request instead of two for O_TRUNC, none for a link that was read before.
        | FsOptions::ATOMIC_O_TRUNC.bits()
        | FsOptions::CACHE_SYMLINKS.bits()
        // Cached data goes when its file's time or size is seen to have changed.
        | FsOptions::AUTO_INVAL_DATA.bits(),
);

/// The flags of an open file that mean something to the host's. O_ASYNC, O_PATH and O_TMPFILE do not get through.
const OPEN_FLAGS: i32 = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_DIRECT
    | libc::O_DSYNC
    | libc::O_SYNC
    | libc::O_NOATIME;

/// Bytes of one read or write, and of the names one directory read returns. The library reserves what is asked for.
const MAX_TRANSFER: u32 = 1 << 20;
const MAX_DIRECTORY_READ: u32 = 64 << 10;
/// Bytes of an extended attribute or of all their names in Linux (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const MAX_XATTR: u32 = 64 << 10;

/// The library keeps about 50 bytes for each file it has ever numbered, so that a file keeps its number. This bounds
/// them at 400 MB; a guest that gets there has to be content with the files it knows.
const MAX_NODE_NUMBER: u64 = 1 << 23;

/// How much the guest may make this process hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Files the guest knows, each a descriptor.
    pub(super) nodes: usize,
    /// Files the guest has open, each a descriptor.
    pub(super) handles: usize,
}

/// The library's file system behind the guards.
pub(super) struct GuardedFs {
    inner: PassthroughFs,
    read_only: bool,
    limits: Limits,
    held: Mutex<Held>,
}

struct Held {
    /// Whether the guest has said INIT and not DESTROY since.
    session: bool,
    nodes: Nodes,
    handles: usize,
}

impl GuardedFs {
    pub(super) fn new(inner: PassthroughFs, read_only: bool, limits: Limits) -> Self {
        Self {
            inner,
            read_only,
            limits,
            held: Mutex::new(Held {
                session: false,
                nodes: Nodes::new(limits.nodes),
                handles: 0,
            }),
        }
    }

    /// Whether the guest has mounted the share.
    pub(super) fn has_session(&self) -> bool {
        self.held().session
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.read_only {
            return Err(io::Error::from_raw_os_error(libc::EROFS));
        }
        Ok(())
    }

    /// Before something new is made: it may be, and there is room to know it afterwards.
    fn check_new(&self, name: &CStr) -> io::Result<()> {
        self.check_writable()?;
        check_name(name)?;
        if self.held().nodes.is_full() {
            return Err(io::Error::from_raw_os_error(libc::ENFILE));
        }
        Ok(())
    }

    fn check_handles(&self) -> io::Result<()> {
        if self.held().handles >= self.limits.handles {
            return Err(io::Error::from_raw_os_error(libc::ENFILE));
        }
        Ok(())
    }

    fn check_open_flags(&self, flags: i32) -> io::Result<()> {
        if flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0 {
            self.check_writable()?;
        }
        Ok(())
    }

    /// Counts an entry that the library looked up and says what the guest may keep of it.
    fn admit(&self, ctx: &Context, parent: u64, name: &CStr, mut entry: Entry) -> io::Result<Entry> {
        let (around, known) = {
            let mut held = self.held();
            let around = held.nodes.place(parent);
            let room = entry.inode <= MAX_NODE_NUMBER;
            let known = room && held.nodes.look_up(entry.inode, around.child(name));
            (around, known)
        };
        if !known {
            self.inner.forget(ctx, entry.inode, 1);
            return Err(io::Error::from_raw_os_error(libc::ENFILE));
        }
        entry.entry_timeout = around.kept_for();
        entry.attr_timeout = self.place(entry.inode).kept_for();
        Ok(entry)
    }

    fn place(&self, inode: u64) -> Place {
        self.held().nodes.place(inode)
    }

    /// Replaces the library's time to keep attributes.
    fn with_lifetime(
        &self,
        inode: u64,
        (attributes, _): (stat64, Duration),
    ) -> io::Result<(stat64, Duration)> {
        Ok((attributes, self.place(inode).kept_for()))
    }

    /// Where hardly anybody else changes anything, cached data outlives the last close, and directories are cached too.
    fn open_options(&self, inode: u64, library: OpenOptions, is_directory: bool) -> OpenOptions {
        let mut options = library;
        if self.place(inode) == Place::Exclusive {
            options |= OpenOptions::KEEP_CACHE;
            if is_directory {
                options |= OpenOptions::CACHE_DIR;
            }
        }
        options
    }

    fn released(&self) {
        let mut held = self.held();
        held.handles = held.handles.saturating_sub(1);
    }
}

/// Refuses names that are not names in a directory. Linux never looks up `.` or `..` here (it would have to be asked
/// to, with EXPORT_SUPPORT); a guest that does wants out.
fn check_name(name: &CStr) -> io::Result<()> {
    let bytes = name.to_bytes();
    if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok(())
}

impl FileSystem for GuardedFs {
    type Inode = u64;
    type Handle = u64;

    /// A new INIT is a new mount: nothing of an earlier one stays.
    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        self.destroy();
        self.held().session = true;
        // The library would turn this on by itself; there is no window to map files into.
        let capable = capable - FsOptions::PERFILE_DAX;
        Ok(self.inner.init(capable)? | OPTIONS)
    }

    fn destroy(&self) {
        self.inner.destroy();
        let mut held = self.held();
        held.session = false;
        held.nodes.clear();
        held.handles = 0;
    }

    fn lookup(&self, ctx: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        check_name(name)?;
        match self.inner.lookup(ctx, parent, name) {
            Ok(entry) => self.admit(ctx, parent, name, entry),
            // Number 0 means that the name is absent and may be remembered as such.
            Err(error)
                if error.raw_os_error() == Some(libc::ENOENT) && self.place(parent) == Place::Exclusive =>
            {
                Ok(Entry {
                    entry_timeout: Place::Exclusive.kept_for(),
                    ..Entry::default()
                })
            }
            Err(error) => Err(error),
        }
    }

    fn forget(&self, ctx: &Context, inode: u64, count: u64) {
        self.held().nodes.forget(inode, count);
        self.inner.forget(ctx, inode, count);
    }

    fn batch_forget(&self, ctx: &Context, requests: Vec<(u64, u64)>) {
        for (inode, count) in &requests {
            self.held().nodes.forget(*inode, *count);
        }
        self.inner.batch_forget(ctx, requests);
    }

    fn getattr(&self, ctx: &Context, inode: u64, handle: Option<u64>) -> io::Result<(stat64, Duration)> {
        let attributes = self.inner.getattr(ctx, inode, handle)?;
        self.with_lifetime(inode, attributes)
    }

    fn setattr(
        &self,
        ctx: &Context,
        inode: u64,
        attr: stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        self.check_writable()?;
        let attributes = self.inner.setattr(ctx, inode, attr, handle, valid)?;
        self.with_lifetime(inode, attributes)
    }

    fn readlink(&self, ctx: &Context, inode: u64) -> io::Result<Vec<u8>> {
        self.inner.readlink(ctx, inode)
    }

    fn symlink(&self, ctx: &Context, target: &CStr, parent: u64, name: &CStr) -> io::Result<Entry> {
        self.check_new(name)?;
        let entry = self.inner.symlink(ctx, target, parent, name)?;
        self.admit(ctx, parent, name, entry)
    }

    fn mknod(
        &self,
        ctx: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        rdev: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        self.check_new(name)?;
        let entry = self.inner.mknod(ctx, parent, name, mode, rdev, umask)?;
        self.admit(ctx, parent, name, entry)
    }

    fn mkdir(&self, ctx: &Context, parent: u64, name: &CStr, mode: u32, umask: u32) -> io::Result<Entry> {
        self.check_new(name)?;
        let entry = self.inner.mkdir(ctx, parent, name, mode, umask)?;
        self.admit(ctx, parent, name, entry)
    }

    fn unlink(&self, ctx: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.check_writable()?;
        check_name(name)?;
        self.inner.unlink(ctx, parent, name)
    }

    fn rmdir(&self, ctx: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.check_writable()?;
        check_name(name)?;
        self.inner.rmdir(ctx, parent, name)
    }

    fn rename(
        &self,
        ctx: &Context,
        old_parent: u64,
        old_name: &CStr,
        new_parent: u64,
        new_name: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        self.check_writable()?;
        check_name(old_name)?;
        check_name(new_name)?;
        self.inner
            .rename(ctx, old_parent, old_name, new_parent, new_name, flags)
    }

    fn link(&self, ctx: &Context, inode: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        self.check_new(name)?;
        let entry = self.inner.link(ctx, inode, parent, name)?;
        self.admit(ctx, parent, name, entry)
    }

    fn open(
        &self,
        ctx: &Context,
        inode: u64,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        let flags = flags.cast_signed() & (OPEN_FLAGS | libc::O_TRUNC);
        self.check_open_flags(flags)?;
        self.check_handles()?;
        let (handle, options, passthrough) =
            self.inner.open(ctx, inode, flags.cast_unsigned(), fuse_flags)?;
        self.held().handles += 1;
        Ok((handle, self.open_options(inode, options, false), passthrough))
    }

    fn create(
        &self,
        ctx: &Context,
        parent: u64,
        name: &CStr,
        mut args: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        self.check_new(name)?;
        self.check_handles()?;
        let flags = args.flags.cast_signed() & (OPEN_FLAGS | libc::O_TRUNC | libc::O_EXCL);
        args.flags = flags.cast_unsigned();
        let (entry, handle, options, passthrough) = self.inner.create(ctx, parent, name, args)?;
        self.held().handles += 1;
        let inode = entry.inode;
        match self.admit(ctx, parent, name, entry) {
            Ok(entry) => Ok((
                entry,
                handle,
                self.open_options(inode, options, false),
                passthrough,
            )),
            Err(error) => {
                if let Some(handle) = handle {
                    self.release(ctx, inode, 0, handle, false, false, None)?;
                }
                Err(error)
            }
        }
    }

    fn read(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        writer: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        let size = size.min(MAX_TRANSFER);
        self.inner.read(
            ctx,
            inode,
            handle,
            writer,
            size,
            offset,
            lock_owner,
            flags & OPEN_FLAGS.cast_unsigned(),
        )
    }

    fn write(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        reader: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        delayed_write: bool,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<usize> {
        self.check_writable()?;
        self.inner.write(
            ctx,
            inode,
            handle,
            reader,
            size.min(MAX_TRANSFER),
            offset,
            lock_owner,
            delayed_write,
            flags & OPEN_FLAGS.cast_unsigned(),
            fuse_flags,
        )
    }

    /// Says that there is no such request: nothing waits for a close here, and the guest then stops asking at each.
    fn flush(&self, _ctx: &Context, _inode: u64, _handle: u64, _lock_owner: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::ENOSYS))
    }

    fn fsync(&self, ctx: &Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
        self.inner.fsync(ctx, inode, datasync, handle)
    }

    fn fallocate(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        self.check_writable()?;
        self.inner.fallocate(ctx, inode, handle, mode, offset, length)
    }

    fn release(
        &self,
        ctx: &Context,
        inode: u64,
        flags: u32,
        handle: u64,
        flush: bool,
        flock_release: bool,
        lock_owner: Option<u64>,
    ) -> io::Result<()> {
        self.inner
            .release(ctx, inode, flags, handle, flush, flock_release, lock_owner)?;
        self.released();
        Ok(())
    }

    fn statfs(&self, ctx: &Context, inode: u64) -> io::Result<statvfs64> {
        self.inner.statfs(ctx, inode)
    }

    fn setxattr(&self, ctx: &Context, inode: u64, name: &CStr, value: &[u8], flags: u32) -> io::Result<()> {
        self.check_writable()?;
        self.inner.setxattr(ctx, inode, name, value, flags)
    }

    fn getxattr(&self, ctx: &Context, inode: u64, name: &CStr, size: u32) -> io::Result<GetxattrReply> {
        self.inner.getxattr(ctx, inode, name, size.min(MAX_XATTR))
    }

    fn listxattr(&self, ctx: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        self.inner.listxattr(ctx, inode, size.min(MAX_XATTR))
    }

    fn removexattr(&self, ctx: &Context, inode: u64, name: &CStr) -> io::Result<()> {
        self.check_writable()?;
        self.inner.removexattr(ctx, inode, name)
    }

    fn opendir(&self, ctx: &Context, inode: u64, _flags: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        self.check_handles()?;
        let (handle, options) = self.inner.opendir(ctx, inode, 0)?;
        self.held().handles += 1;
        Ok((handle, self.open_options(inode, options, true)))
    }

    fn readdir(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        let size = size.min(MAX_DIRECTORY_READ);
        self.inner.readdir(ctx, inode, handle, size, offset, add_entry)
    }

    /// The library looks up each name it returns; those there is no room for are returned without their file.
    fn readdirplus(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let size = size.min(MAX_DIRECTORY_READ);
        let mut add_known_entry = |dir_entry: DirEntry<'_>, entry: Entry| {
            let number = entry.inode;
            let name = std::ffi::CString::new(dir_entry.name)?;
            let Ok(known) = self.admit(ctx, inode, &name, entry) else {
                return add_entry(dir_entry, Entry::default());
            };
            let added = add_entry(dir_entry, known);
            if !matches!(added, Ok(1..)) {
                // It did not fit: the library takes back its own lookup, and this is ours.
                self.held().nodes.forget(number, 1);
            }
            added
        };
        self.inner
            .readdirplus(ctx, inode, handle, size, offset, &mut add_known_entry)
    }

    fn fsyncdir(&self, ctx: &Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
        self.inner.fsyncdir(ctx, inode, datasync, handle)
    }

    fn releasedir(&self, ctx: &Context, inode: u64, flags: u32, handle: u64) -> io::Result<()> {
        self.inner.releasedir(ctx, inode, flags, handle)?;
        self.released();
        Ok(())
    }

    fn access(&self, ctx: &Context, inode: u64, mask: u32) -> io::Result<()> {
        self.inner.access(ctx, inode, mask)
    }

    fn lseek(&self, ctx: &Context, inode: u64, handle: u64, offset: u64, whence: u32) -> io::Result<u64> {
        self.inner.lseek(ctx, inode, handle, offset, whence)
    }
}

#[cfg(test)]
#[path = "guarded_tests.rs"]
mod tests;
