//! The overlay mount (Documentation/filesystems/overlayfs.rst).
//!
//! Options, all stated because a kernel's configuration may default to the contrary:
//! - `index=off`, `nfs_export` left off: layers are shared by many mounts and must carry no state of one of them.
//!   A file with several names in an image becomes several files once written to, as under podman and Docker.
//! - `metacopy=off`: what the container changed is whole in its writable layer.
//! - `redirect_dir=nofollow`: renaming an image's folder is a copy (`mv` does it), and no attribute in a layer makes
//!   the kernel look for a folder's content elsewhere.

use std::ffi::CString;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags};

const OPTIONS: [(&str, &str); 3] = [
    ("index", "off"),
    ("metacopy", "off"),
    ("redirect_dir", "nofollow"),
];

/// What appears as the mount's source in `/proc/self/mountinfo`.
const SOURCE: &str = "overlay";

/// Bytes of the messages a kernel may log about one mount.
const MOST_SAID: usize = 2048;

/// An overlay to be mounted. Folders are given as descriptors, so their paths may be as long as they like.
pub(super) struct Overlay<'a> {
    /// The read-only layers, the topmost first.
    pub(super) lower: &'a [OwnedFd],
    pub(super) upper: OwnedFd,
    pub(super) work: OwnedFd,
}

/// Why the kernel did not mount it.
pub(super) struct Refused {
    pub(super) source: io::Error,
    /// What it logged.
    pub(super) kernel: String,
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Refused {
        Refused {
            source: errno.into(),
            kernel: String::new(),
        }
    }
}

impl Overlay<'_> {
    /// Mounts it at `target`, in the new way if the kernel takes layers as descriptors (Linux 6.13), else in the
    /// old one.
    pub(super) fn mount_at(&self, target: &Path) -> Result<(), Refused> {
        match self.open_with_descriptors()? {
            Some(context) => attach(&context, target),
            None => self.mount_with_one_string(target),
        }
    }

    /// A mount being made that knows its layers, or `None` if the kernel does not take them this way.
    fn open_with_descriptors(&self) -> Result<Option<OwnedFd>, Refused> {
        let context = match rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
            Ok(context) => context,
            // NODEV: the kernel has no overlayfs.
            Err(Errno::NOSYS) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let lower = self.lower.iter().map(|layer| ("lowerdir+", layer));
        for (key, folder) in lower.chain([("upperdir", &self.upper), ("workdir", &self.work)]) {
            match rustix::mount::fsconfig_set_fd(&context, key, folder) {
                Ok(()) => {}
                Err(Errno::INVAL) if key == "lowerdir+" => return Ok(None),
                Err(errno) => return Err(refused(&context, errno)),
            }
        }
        for (key, value) in OPTIONS.into_iter().chain([("source", SOURCE)]) {
            rustix::mount::fsconfig_set_string(&context, key, value)
                .map_err(|errno| refused(&context, errno))?;
        }
        rustix::mount::fsconfig_create(&context).map_err(|errno| refused(&context, errno))?;
        Ok(Some(context))
    }

    /// mount(2) takes all options in one page. `/proc/self/fd/N` keeps the layers' names short: more than 200 fit.
    fn mount_with_one_string(&self, target: &Path) -> Result<(), Refused> {
        let name = |folder: &OwnedFd| format!("/proc/self/fd/{}", folder.as_fd().as_raw_fd());
        let lower: Vec<String> = self.lower.iter().map(name).collect();
        let mut options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.join(":"),
            name(&self.upper),
            name(&self.work)
        );
        for (key, value) in OPTIONS {
            options.push_str(&format!(",{key}={value}"));
        }
        if options.len() >= rustix::param::page_size() {
            let source = io::Error::other(format!(
                "{} layers are more than this kernel takes: Linux 6.13 takes 500",
                self.lower.len()
            ));
            return Err(Refused {
                source,
                kernel: String::new(),
            });
        }
        let options = CString::new(options).map_err(|error| Refused {
            source: io::Error::other(error),
            kernel: String::new(),
        })?;
        rustix::mount::mount(SOURCE, target, "overlay", MountFlags::empty(), Some(&*options))?;
        Ok(())
    }
}

fn attach(context: &OwnedFd, target: &Path) -> Result<(), Refused> {
    let mount = rustix::mount::fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .map_err(|errno| refused(context, errno))?;
    rustix::mount::move_mount(&mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

/// Adds what the kernel logged about the mount, a message for each read.
fn refused(context: &OwnedFd, errno: Errno) -> Refused {
    let mut kernel = String::new();
    let mut message = [0; 256];
    while let Ok(length) = rustix::io::read(context, &mut message) {
        let text = String::from_utf8_lossy(message.get(..length).unwrap_or_default());
        if length == 0 || kernel.len() + text.len() > MOST_SAID {
            break;
        }
        // `e overlay: text`: the letter is the level.
        let text = text.trim_end();
        let text = text.split_once(' ').map_or(text, |(_, text)| text);
        if !kernel.is_empty() {
            kernel.push_str("; ");
        }
        kernel.push_str(text);
    }
    Refused {
        source: errno.into(),
        kernel,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags};
    use rustix::mount::{MountPropagationFlags, UnmountFlags};
    use std::fs;

    /// Mounts three layers in memory at a place of this thread's own, in the given way, and says what is seen.
    fn mounted(mount: impl FnOnce(&Overlay<'_>, &Path) -> Result<(), Refused> + Send) -> Option<Vec<String>> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: mounting needs root");
            return None;
        }
        let place = tempfile::tempdir().unwrap();
        let run = || {
            // SAFETY: descriptors stay shared; only this thread's view of mounts changes.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private).unwrap();
            rustix::mount::mount("tmpfs", place.path(), "tmpfs", MountFlags::empty(), None).unwrap();
            let open = |name: &str| {
                let path = place.path().join(name);
                fs::create_dir(&path).unwrap();
                fs::write(path.join(name), name).unwrap();
                fs::write(path.join("top"), name).unwrap();
                rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
            };
            let lower = [open("first"), open("second")];
            let (upper, work) = (open("upper"), open("work"));
            fs::remove_file(place.path().join("upper/top")).unwrap();
            let target = place.path().join("target");
            fs::create_dir(&target).unwrap();
            let overlay = Overlay {
                lower: &lower,
                upper,
                work,
            };
            if let Err(refused) = mount(&overlay, &target) {
                panic!("{}: {}", refused.source, refused.kernel);
            }
            let mut seen: Vec<String> = fs::read_dir(&target)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            seen.sort();
            seen.push(fs::read_to_string(target.join("top")).unwrap());
            rustix::mount::unmount(&target, UnmountFlags::empty()).unwrap();
            drop(overlay);
            drop(lower);
            rustix::mount::unmount(place.path(), UnmountFlags::empty()).unwrap();
            seen
        };
        std::thread::scope(|scope| Some(scope.spawn(run).join().unwrap()))
    }

    const EXPECTED: [&str; 5] = ["first", "second", "top", "upper", "first"];

    #[test]
    fn layers_given_as_one_string_are_mounted() {
        if let Some(seen) = mounted(|overlay, target| overlay.mount_with_one_string(target)) {
            assert_eq!(seen, EXPECTED);
        }
    }

    #[test]
    fn layers_given_as_descriptors_are_mounted_where_the_kernel_takes_them() {
        let mount = |overlay: &Overlay<'_>, target: &Path| match overlay.open_with_descriptors()? {
            Some(context) => attach(&context, target),
            None => {
                eprintln!("SKIPPED: this kernel takes no layers as descriptors");
                overlay.mount_with_one_string(target)
            }
        };
        if let Some(seen) = mounted(mount) {
            assert_eq!(seen, EXPECTED);
        }
    }

    #[test]
    fn what_the_kernel_says_about_a_refusal_is_passed_on() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: mounting needs root");
            return;
        }
        let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        let errno = rustix::mount::fsconfig_set_string(&context, "nonsense", "on").unwrap_err();
        let refused = refused(&context, errno);
        assert!(
            refused.kernel.contains("overlay"),
            "{}: {}",
            refused.source,
            refused.kernel
        );
    }
}
