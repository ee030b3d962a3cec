//! Putting another file in the place of the program's own, while it runs.
//!
//! A process refers to its program's file by its mappings of it and by `/proc/self/exe`. Where each mapping is made
//! again from another file with the same contents, the kernel lets the link be changed as well (`PR_SET_MM_MAP` of
//! prctl(2), since Linux 5.9 with CAP_SYS_ADMIN; the kernel has to be able to restore checkpoints). That takes a
//! fifteenth of the time of executing the program again.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, null_mut};

use rustix::fs::fstat;
use rustix::mm::{
    MapFlags, MprotectFlags, MremapFlags, ProtFlags, mmap, mmap_anonymous, mprotect, mremap_fixed,
};
use rustix::process::{PrctlMmMap, configure_virtual_memory_map};

/// Why a program goes on with the file that it was executed from.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExchangeError {
    #[error("cannot {doing}")]
    Kernel { doing: &'static str, source: io::Error },
    #[error("{file} does not say what proc(5) says: {line:?}")]
    Unexpected { file: &'static str, line: String },
    #[error("the process has {0} threads, which could write to its data meanwhile")]
    Threads(u64),
    #[error("the program's headers cannot be found")]
    NoHeaders,
}

fn failed<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> ExchangeError {
    move |error| ExchangeError::Kernel {
        doing,
        source: error.into(),
    }
}

/// Makes `replacement`, which is open for reading, the file of this process' program. Its contents are those of
/// `program`, the file until now.
///
/// # Errors
/// When the kernel or its version does not allow it, or the process has other threads. The process can go on as it is:
/// what was exchanged has the same contents.
pub(super) fn exchange(program: BorrowedFd<'_>, replacement: BorrowedFd<'_>) -> Result<(), ExchangeError> {
    let layout = Layout::read()?;
    let written = writable_segments()?;
    for mapping in mappings_of(program)? {
        let is_data = written
            .iter()
            .any(|segment| segment.start < mapping.addresses.end && mapping.addresses.start < segment.end);
        if is_data {
            mapping.copy_to_memory()?;
        } else {
            mapping.map_again(replacement)?;
        }
    }
    layout.set(replacement)
}

/// A file of `/proc`, which has no size to go by, in as few calls as can be: each makes it anew.
fn read_whole(path: &str) -> io::Result<String> {
    let mut text = String::with_capacity(4096);
    File::open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

/// A part of the program's file in this process' memory.
struct Mapping {
    addresses: Range<usize>,
    protection: ProtFlags,
    offset: u64,
}

/// The mappings of a file, as `/proc/self/maps` tells them.
fn mappings_of(file: BorrowedFd<'_>) -> Result<Vec<Mapping>, ExchangeError> {
    const MAPS: &str = "/proc/self/maps";
    let inode = fstat(file).map_err(failed("look at the program's file"))?.st_ino;
    let maps = read_whole(MAPS).map_err(failed("read /proc/self/maps"))?;
    let mut mappings = Vec::new();
    for line in maps.lines() {
        let unexpected = || ExchangeError::Unexpected {
            file: MAPS,
            line: line.to_owned(),
        };
        let mut words = line.split_ascii_whitespace();
        let mut next = || words.next().ok_or_else(unexpected);
        let (addresses, protection, offset, _device, of) = (next()?, next()?, next()?, next()?, next()?);
        // A mapping of another file with that number is exchanged by none: the kernel then refuses at the end, because
        // its contents are still mapped, or they are the same file's after all.
        if of.parse() != Ok(inode) {
            continue;
        }
        let number = |text: &str| usize::from_str_radix(text, 16).map_err(|_| unexpected());
        let (start, end) = addresses.split_once('-').ok_or_else(unexpected)?;
        let mut flags = ProtFlags::empty();
        for (letter, flag) in [
            ('r', ProtFlags::READ),
            ('w', ProtFlags::WRITE),
            ('x', ProtFlags::EXEC),
        ] {
            flags.set(flag, protection.contains(letter));
        }
        mappings.push(Mapping {
            addresses: number(start)?..number(end)?,
            protection: flags,
            offset: number(offset)? as u64,
        });
    }
    Ok(mappings)
}

impl Mapping {
    fn start(&self) -> *mut std::ffi::c_void {
        ptr::with_exposed_provenance_mut(self.addresses.start)
    }

    /// For what was never written to.
    fn map_again(&self, file: BorrowedFd<'_>) -> Result<(), ExchangeError> {
        let flags = MapFlags::PRIVATE | MapFlags::FIXED;
        // SAFETY: the same bytes take the place of the old ones, in one step of the kernel: `file` has the contents of
        // the file that was mapped here, and no byte of this mapping was changed since, because its segment is not
        // writable. What executes or refers to it finds it as it was.
        unsafe {
            mmap(
                self.start(),
                self.addresses.len(),
                self.protection,
                flags,
                file,
                self.offset,
            )
        }
        .map_err(failed("map the program again"))?;
        Ok(())
    }

    /// For what was written to, or may have been before it was made read-only.
    fn copy_to_memory(&self) -> Result<(), ExchangeError> {
        let length = self.addresses.len();
        let writable = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, where there is none.
        let copy = unsafe { mmap_anonymous(null_mut(), length, writable, MapFlags::PRIVATE) }
            .map_err(failed("make room for the program's data"))?;
        // SAFETY: both are `length` bytes, mapped, readable (a program's data is) and apart. There is no other thread
        // that could write to the data, and from here to the end of this function this one does not: it calls the
        // kernel alone, by code that keeps nothing in the program's data.
        unsafe { ptr::copy_nonoverlapping(self.start().cast::<u8>(), copy.cast::<u8>(), length) };
        let protection = MprotectFlags::from_bits_retain(self.protection.bits());
        // SAFETY: nobody refers to the copy yet.
        unsafe { mprotect(copy, length, protection) }.map_err(failed("protect the program's data"))?;
        let flags = MremapFlags::MAYMOVE;
        // SAFETY: the same bytes take the place of the old ones, in one step of the kernel, with the same protection.
        unsafe { mremap_fixed(copy, length, length, flags, self.start()) }
            .map_err(failed("put the program's data in its place"))?;
        Ok(())
    }
}

/// Where the program's writable segments are in memory.
fn writable_segments() -> Result<Vec<Range<usize>>, ExchangeError> {
    // SAFETY: reads a value that the kernel left for the process.
    let (first, count) = unsafe { (libc::getauxval(libc::AT_PHDR), libc::getauxval(libc::AT_PHNUM)) };
    if first == 0 {
        return Err(ExchangeError::NoHeaders);
    }
    let first: *const libc::Elf64_Phdr = ptr::with_exposed_provenance(first as usize);
    // SAFETY: the kernel says that the program's `count` headers are there; they are in a segment that is never
    // written to, and stays mapped.
    let headers = unsafe { std::slice::from_raw_parts(first, count as usize) };
    let own = headers.iter().find(|header| header.p_type == libc::PT_PHDR);
    // Where the program was loaded, beyond where it was linked.
    let moved = own.map_or(0, |own| first.addr() - own.p_vaddr as usize);
    Ok(headers
        .iter()
        .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W != 0)
        .map(|header| {
            let start = moved + header.p_vaddr as usize;
            start..start + header.p_memsz as usize
        })
        .collect())
}

/// What the kernel keeps of a program beside its file; setting the file sets all of it.
struct Layout(PrctlMmMap);

impl Layout {
    fn read() -> Result<Layout, ExchangeError> {
        const STAT: &str = "/proc/self/stat";
        let stat = read_whole(STAT).map_err(failed("read /proc/self/stat"))?;
        let unexpected = || ExchangeError::Unexpected {
            file: STAT,
            line: stat.clone(),
        };
        // The name before may contain anything; field 3 follows.
        let (_, fields) = stat.rsplit_once(')').ok_or_else(unexpected)?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        let field = |number: usize| -> Result<u64, ExchangeError> {
            fields
                .get(number - 3)
                .and_then(|field| field.parse().ok())
                .ok_or_else(unexpected)
        };
        match field(20)? {
            1 => {}
            more => return Err(ExchangeError::Threads(more)),
        }
        Ok(Layout(PrctlMmMap {
            start_code: field(26)?,
            end_code: field(27)?,
            start_stack: field(28)?,
            start_data: field(45)?,
            end_data: field(46)?,
            start_brk: field(47)?,
            brk: 0,
            arg_start: field(48)?,
            arg_end: field(49)?,
            env_start: field(50)?,
            env_end: field(51)?,
            // None: the kernel keeps what it has.
            auxv: null_mut(),
            auxv_size: 0,
            exe_fd: -1,
        }))
    }

    fn set(mut self, program: BorrowedFd<'_>) -> Result<(), ExchangeError> {
        self.0.exe_fd = program.as_raw_fd();
        // Only now, since an allocation may move the heap's end.
        // SAFETY: asks where that is, and moves nothing.
        self.0.brk = unsafe { libc::sbrk(0) }.addr() as u64;
        // SAFETY: apart from the file, these are the values that the kernel has.
        unsafe { configure_virtual_memory_map(&self.0) }.map_err(failed("change /proc/self/exe"))
    }
}
