//! What clients see that take the attendant for the container: they join the namespaces of its pid, as `podman cp` and
//! nsenter(1) do.
//!
//! They find the container's files as the host has them and the pod's network, and nothing else of the host. What only the
//! guest has, its /proc, its /dev, file systems in its memory and on its disks, is an empty folder that cannot be written:
//! what went below it would be in the root, where the guest does not see it. No program runs from there, and no device is
//! opened: they would be the host's kernel's to serve.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use container::ProcessIdentity;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsmount, fsopen, mount_change, move_mount, unmount,
};
use rustix::process::{chdir, fchdir, pivot_root};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, UnshareFlags, move_into_link_name_space,
    move_into_thread_name_spaces, unshare_unsafe,
};
use serde_json::Value;

use super::plan::{ContainerPlan, ProcessPlan};
use crate::micro_vm::shared_directory::{ShareError, copy_for_bind, copy_of_root, has_option, is_bind};

/// Any folder of the host's: what is mounted there is only on its way to becoming the root.
const SOME_FOLDER: &str = "/";

/// What a thread's namespaces are to show.
#[derive(Debug)]
pub(super) enum View {
    /// What the host has of a container.
    Made(Made),
    /// The same as another attendant shows.
    Of(ProcessIdentity),
}

/// What is put together for a container.
#[derive(Debug, Default)]
pub(super) struct Made {
    root: Option<Root>,
    mounts: Vec<Mount>,
    /// Its network; none for one with nothing in it.
    network: Option<PathBuf>,
}

#[derive(Debug)]
struct Root {
    path: PathBuf,
    read_only: bool,
}

/// What is mounted below the root.
#[derive(Debug)]
struct Mount {
    destination: PathBuf,
    /// The mount as it is configured and its source; none for what only the guest has.
    bind: Option<(Value, PathBuf)>,
}

/// Why the namespaces could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum ViewError {
    /// A step failed.
    #[error("cannot {doing}")]
    Step {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: Errno,
    },
    /// A step failed with a file.
    #[error("cannot {doing} {}", .path.display())]
    Path {
        /// What was being done.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// Files of the host could not be had.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The attendant of the container is gone.
    #[error("the container has ended")]
    Ended,
    /// Nobody is there to show it.
    #[error("the thread that shows it has ended")]
    NoThread,
}

impl View {
    /// What the host has of a new container, whose root may be a folder of the host's.
    pub(super) fn of_container(plan: &ContainerPlan, root_is_the_hosts: bool) -> Self {
        let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).map(PathBuf::from);
        let root = plan.config.get("root").filter(|_| root_is_the_hosts);
        let root = root.and_then(|root| {
            Some(Root {
                path: plan.bundle.join(text(root, "path")?),
                read_only: root.get("readonly") == Some(&Value::Bool(true)),
            })
        });
        let mounts = plan.config.get("mounts").and_then(Value::as_array);
        let mounts = mounts.into_iter().flatten().filter_map(|mount| {
            if has_option(mount, &["remount"]) {
                return None;
            }
            let bind = is_bind(mount).then(|| text(mount, "source")).flatten();
            Some(Mount {
                destination: text(mount, "destination")?,
                bind: bind.map(|source| (mount.clone(), plan.bundle.join(source))),
            })
        });
        // In an empty folder, which the root may be, there is no place for any.
        let mut empty: Vec<PathBuf> = Vec::new();
        let mounts = mounts.filter(|mount| {
            let has_place =
                root.is_some() && !empty.iter().any(|folder| is_below(&mount.destination, folder));
            if has_place && mount.bind.is_none() {
                empty.push(mount.destination.clone());
            }
            has_place
        });
        Self::Made(Made {
            mounts: mounts.collect(),
            root,
            network: plan.network.clone(),
        })
    }

    /// What the attendant of its container shows.
    pub(super) fn of_process(plan: &ProcessPlan) -> Self {
        plan.container_attendant
            .map_or_else(|| Self::Made(Made::default()), Self::Of)
    }

    /// Moves the calling thread there, for good.
    ///
    /// # Errors
    /// When it cannot be put together: the thread may be anywhere then.
    pub(super) fn enter(self) -> Result<(), ViewError> {
        match self {
            Self::Made(made) => made.enter(),
            Self::Of(attendant) => enter_that_of(attendant),
        }
    }
}

fn is_below(path: &Path, folder: &Path) -> bool {
    path != folder && path.starts_with(folder)
}

/// The namespaces that are not the host's, beside that of the network.
const OWN: UnshareFlags = UnshareFlags::NEWNS
    .union(UnshareFlags::NEWIPC)
    .union(UnshareFlags::NEWUTS);

fn enter_that_of(attendant: ProcessIdentity) -> Result<(), ViewError> {
    let process = attendant
        .open()
        .map_err(step("open the container's attendant"))?
        .ok_or(ViewError::Ended)?;
    // SAFETY: what the thread stops sharing is its root and current folder, which nothing in it relies on.
    unsafe { unshare_unsafe(UnshareFlags::FS) }.map_err(step("part from the other thread's root"))?;
    let namespaces = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::NETWORK;
    move_into_thread_name_spaces(process.as_fd(), namespaces)
        .map_err(step("enter the namespaces that the container's attendant shows"))
}

impl Made {
    fn enter(self) -> Result<(), ViewError> {
        // All that is of the host is opened while it is seen.
        let mut own = OWN | UnshareFlags::FS;
        let network = self.network.as_deref().map(open_network).transpose()?;
        own.set(UnshareFlags::NEWNET, network.is_none());
        let root = match &self.root {
            Some(root) => copy_of_root(&root.path, root.read_only)?,
            None => empty_folder()?,
        };
        inert(&root)?;
        let mut mounts = Vec::new();
        for Mount { destination, bind } in self.mounts {
            let tree = match bind {
                Some((mount, source)) => copy_for_bind(&mount, &source)?,
                None => empty_folder()?,
            };
            inert(&tree)?;
            mounts.push((tree, destination));
        }

        // SAFETY: what the thread stops sharing is its root and current folder, which nothing in it relies on.
        unsafe { unshare_unsafe(own) }.map_err(step("make namespaces"))?;
        if let Some(network) = network {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(step("enter the pod's network namespace"))?;
        }
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).map_err(step("part from the host's mounts"))?;
        attach(&root, Path::new(SOME_FOLDER)).map_err(step("attach the root"))?;
        fchdir(&root).map_err(step("enter the root"))?;
        // The old root lands on top of the new one, from where it is taken away (pivot_root(2), NOTES).
        pivot_root(".", ".").map_err(step("change the root"))?;
        unmount(".", UnmountFlags::DETACH).map_err(step("let go of the host's root"))?;
        chdir("/").map_err(step("enter the new root"))?;
        for (tree, destination) in mounts {
            match attach(&tree, &Path::new("/").join(&destination)) {
                // It is below what only the guest has.
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(errno) => return Err(path("mount something on", &destination)(errno)),
            }
        }
        Ok(())
    }
}

fn open_network(namespace: &Path) -> Result<OwnedFd, ViewError> {
    File::open(namespace)
        .map(OwnedFd::from)
        .map_err(path("open the pod's network namespace", namespace))
}

/// Links lead below the root of whoever calls.
fn attach(tree: &OwnedFd, target: &Path) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
    move_mount(tree, "", CWD, target, flags)
}

/// A folder that cannot be written, attached nowhere.
fn empty_folder() -> Result<OwnedFd, ViewError> {
    const DOING: &str = "make an empty folder";
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(step(DOING))?;
    fsconfig_create(&context).map_err(step(DOING))?;
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, read_only).map_err(step(DOING))
}

fn inert(tree: &OwnedFd) -> Result<(), ViewError> {
    container::make_mounts_inert(tree)
        .map_err(step("keep programs and devices of the container from the host"))
}

fn step(doing: &'static str) -> impl FnOnce(Errno) -> ViewError {
    move |source| ViewError::Step { doing, source }
}

fn path<E: Into<std::io::Error>>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> ViewError {
    let path = path.to_owned();
    move |source| ViewError::Path {
        doing,
        path,
        source: source.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};
    use std::sync::mpsc;
    use std::thread;

    use rustix::fs::{StatVfsMountFlags, statvfs};
    use rustix::thread::gettid;
    use serde_json::json;

    use super::*;

    fn plan(bundle: &Path, config: Value) -> ContainerPlan {
        ContainerPlan {
            id: "web".into(),
            sandbox_folder: bundle.into(),
            bundle: bundle.into(),
            config,
            shared_folder: String::new(),
            shared_memory: String::new(),
            network: None,
        }
    }

    /// What a thread sees that has entered the view, and its namespaces of these kinds.
    fn seen<T: Send>(view: View, look: impl FnOnce() -> T + Send) -> (T, Vec<u64>) {
        thread::scope(|scope| {
            let (tell, told) = mpsc::channel();
            let (stay, stayed) = mpsc::channel::<()>();
            let inside = scope.spawn(move || {
                view.enter().unwrap();
                tell.send(gettid().as_raw_pid()).unwrap();
                let _ = stayed.recv();
                look()
            });
            let thread = told.recv().unwrap();
            let inodes = ["mnt", "net", "ipc", "uts"].map(|kind| {
                let path = format!("/proc/self/task/{thread}/ns/{kind}");
                fs::metadata(path).unwrap().ino()
            });
            drop(stay);
            (inside.join().unwrap(), inodes.to_vec())
        })
    }

    fn names(folder: &str) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_files_of_the_container_are_seen_and_nothing_else_of_the_host() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: namespaces need root");
            return;
        }
        let bundle = tempfile::tempdir().unwrap();
        let root = bundle.path().join("rootfs");
        for folder in ["etc", "proc/old", "volume"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        symlink("/volume", root.join("link")).unwrap();
        fs::create_dir(bundle.path().join("data")).unwrap();
        fs::write(bundle.path().join("data/file"), "").unwrap();
        let config = json!({
            "root": { "path": "rootfs" },
            "mounts": [
                { "type": "proc", "destination": "/proc", "source": "proc" },
                { "type": "tmpfs", "destination": "/not/there" },
                { "type": "bind", "destination": "/proc/old", "source": "data" },
                { "type": "bind", "destination": "/link", "source": "data" },
                { "type": "bind", "destination": "/etc", "options": ["remount", "bind", "ro"] },
            ]
        });
        let view = View::of_container(&plan(bundle.path(), config.clone()), true);
        let (written, namespaces) = seen(view, || {
            assert_eq!(names("/"), ["etc", "link", "proc", "volume"]);
            assert_eq!(names("/volume"), ["file"]);
            assert!(names("/proc").is_empty());
            for place in ["/", "/volume", "/proc"] {
                let flags = statvfs(place).unwrap().f_flag;
                let inert = StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV | StatVfsMountFlags::NOEXEC;
                assert!(flags.contains(inert), "{place}: {flags:?}");
            }
            fs::write("/etc/new", "").unwrap();
            fs::write("/volume/new", "").unwrap();
            fs::write("/proc/new", "").is_ok()
        });
        assert!(!written, "what the guest would not see was written");
        assert!(root.join("etc/new").exists() && bundle.path().join("data/new").exists());
        let ours = ["mnt", "net", "ipc", "uts"]
            .map(|kind| fs::metadata(format!("/proc/self/ns/{kind}")).unwrap().ino());
        assert!(
            ours.iter().all(|inode| !namespaces.contains(inode)),
            "{ours:?} {namespaces:?}"
        );

        // A root that the guest alone has.
        let view = View::of_container(&plan(bundle.path(), config), false);
        seen(view, || assert!(names("/").is_empty()));
    }
}
