//! OCI bundles: an image's configuration and the user's wishes, made into the `config.json` a runtime starts.
//!
//! The defaults are those of Docker and podman (capabilities, mounts, masked paths, environment), so that an image
//! finds the surroundings it was written for.
//!
//! Not written yet, because the engine does not honour it: a seccomp profile. Not written at all: rlimits (the
//! caller's are kept) and a swap limit (the kernel's default applies).

mod error;
mod linux;
mod mounts;
mod options;
mod process;
mod user;
mod values;
mod working_directory;

use std::path::Path;

use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{Root, Spec};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags};

pub use error::BundleError;
pub use options::BundleOptions;
pub use user::UserName;
pub use values::{Bind, ByteSize, CpuCount, InvalidValue, PidsLimit, Variable};

/// The runtime specification's version. Everything written has been in it since 1.0.2, which every runtime takes.
const SPEC_VERSION: &str = "1.0.2";

/// Writes `config.json` into the existing folder `bundle`, for a container of this image whose root file system is
/// mounted at `rootfs`. A working directory the image lacks is made in `rootfs`, as Docker does: owned by root,
/// mode 0755, in the container's writable layer.
///
/// # Errors
/// [`BundleError`] names the wish or the part of the image that cannot be met.
pub fn create(
    bundle: &Path,
    image: &ImageConfiguration,
    rootfs: &Path,
    options: &BundleOptions,
) -> Result<Spec, BundleError> {
    let spec = config(image, rootfs, options)?;
    if let Some(process) = spec.process() {
        working_directory::make(open_rootfs(rootfs)?, process.cwd())?;
    }
    let path = bundle.join("config.json");
    serde_json::to_vec_pretty(&spec)
        .map_err(std::io::Error::other)
        .and_then(|content| std::fs::write(&path, content))
        .map_err(|source| BundleError::Write { path, source })?;
    Ok(spec)
}

/// The `config.json` of such a container. `rootfs` is read, for its user database, and not changed.
///
/// # Errors
/// [`BundleError`] names the wish or the part of the image that cannot be met.
pub fn config(
    image: &ImageConfiguration,
    rootfs: &Path,
    options: &BundleOptions,
) -> Result<Spec, BundleError> {
    let root = open_rootfs(rootfs)?;
    let name = options.user.clone().map_or_else(|| user::of_image(image), Ok)?;
    let user = user::resolve(root.as_fd(), &name)?;
    let mut spec = Spec::default();
    let mut spec_root = Root::default();
    spec_root
        .set_path(rootfs.to_owned())
        .set_readonly(Some(options.read_only));
    spec.set_version(SPEC_VERSION.to_owned())
        .set_root(Some(spec_root))
        .set_process(Some(process::process(image, &user, options)?))
        .set_mounts(Some(mounts::mounts(&options.binds)))
        .set_hostname(Some(options.hostname.clone()))
        .set_linux(Some(linux::linux(options)));
    Ok(spec)
}

fn open_rootfs(rootfs: &Path) -> Result<OwnedFd, BundleError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, rootfs, flags, Mode::empty()).map_err(|errno| BundleError::Rootfs {
        path: rootfs.to_owned(),
        source: errno.into(),
    })
}

#[cfg(test)]
mod tests;
