//! How much an image may ask of the host.

/// Bounds on what an image may make the host read, keep in memory or write to its disk. Whoever packed an image
/// chose its numbers, so every one of them meets a bound before it is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest `index.json`, index, manifest or configuration, in bytes. Registries cap manifests at 4 MiB.
    pub document_bytes: u64,
    /// Most layers in an image. The kernel stacks no more than 500 (`OVL_MAX_STACK`, fs/overlayfs).
    pub layers: usize,
    /// Largest layer once decompressed, in bytes: what a decompression bomb costs at most.
    pub layer_bytes: u64,
    /// Most entries in a layer, which bounds inodes and the list of folders kept for their times.
    pub layer_entries: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            document_bytes: 4 << 20,
            layers: 500,
            layer_bytes: 32 << 30,
            layer_entries: 2_000_000,
        }
    }
}
