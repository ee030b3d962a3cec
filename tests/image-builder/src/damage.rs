//! Ways in which an image can be wrong.

/// One thing wrong with an image. Layers are counted from 0, the lowest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Damage {
    /// A byte of a layer's blob differs from what was hashed.
    LayerContent(usize),
    /// A layer's blob is not there.
    LayerMissing(usize),
    /// The manifest gives a layer another size than its blob has.
    LayerSize(usize, u64),
    /// The manifest gives a layer this media type.
    LayerMediaType(usize, &'static str),
    /// The configuration names another content for a layer than its blob has.
    LayerDiffId(usize),
    /// The configuration knows one layer less than the manifest.
    DiffIdMissing,
    /// A byte of the configuration differs from what was hashed.
    ConfigContent,
    /// The manifest gives the configuration this media type.
    ConfigMediaType(&'static str),
    /// A byte of the manifest differs from what was hashed.
    ManifestContent,
    /// The manifest is not there.
    ManifestMissing,
    /// The index gives the manifest another size than it has.
    ManifestSize(u64),
    /// The index gives the manifest this media type.
    ManifestMediaType(&'static str),
    /// The manifest is this text.
    ManifestText(&'static str),
}
