//! `set_mempolicy(2)`.

use rustix::io::Errno;

use super::checked;

/// The nodes a kernel can be built for (`CONFIG_NODES_SHIFT`).
pub(crate) const MOST_NODES: u32 = 1024;

const WORD: u32 = libc::c_ulong::BITS;

/// From which nodes a process gets its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemoryPolicy {
    /// `MPOL_*`, with flags.
    mode: libc::c_int,
    nodes: [libc::c_ulong; (MOST_NODES / WORD) as usize],
}

impl MemoryPolicy {
    /// `mode` over `nodes`, which are below [`MOST_NODES`].
    pub(crate) fn new(mode: libc::c_int, nodes: impl IntoIterator<Item = u32>) -> MemoryPolicy {
        let mut mask = [0; (MOST_NODES / WORD) as usize];
        for node in nodes {
            if let Some(word) = mask.get_mut((node / WORD) as usize) {
                *word |= 1 << (node % WORD);
            }
        }
        MemoryPolicy { mode, nodes: mask }
    }

    /// Sets it for the calling thread and what it starts.
    ///
    /// # Errors
    /// `ENOSYS` when the kernel knows no nodes; `EINVAL` for one that is not there.
    pub(crate) fn set(&self) -> Result<(), Errno> {
        // SAFETY: the kernel reads a mask of the size given; it takes one bit less than it is told.
        let returned = unsafe {
            libc::syscall(
                libc::SYS_set_mempolicy,
                self.mode,
                self.nodes.as_ptr(),
                libc::c_ulong::from(MOST_NODES + 1),
            )
        };
        checked(returned).map(|_| ())
    }
}
