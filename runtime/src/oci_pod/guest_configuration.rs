//! A container's configuration as the engine in the guest is to have it. Paths of files are not changed here but where
//! they are shared (`micro_vm::shared_directory`).

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::{fs, io};

use container::{ContainerId, NamespaceError, check_network_namespace};
use rustix::fs::statfs;
use serde_json::{Value, json};

use super::membership::{attendant_of, attended_by};
use crate::annotations::ROOT_SOURCE_ANNOTATION;
use crate::micro_vm::pod_network::NAMESPACE;
use crate::micro_vm::shared_directory::{has_option, is_bind};

/// TMPFS_MAGIC of linux/magic.h.
const TMPFS: i64 = 0x0102_1994;

/// Where a container has its shared memory.
const SHARED_MEMORY: &str = "/dev/shm";

/// The hooks that run on the host, by [`container`]'s engine there. The guest has no part in them.
const HOST_HOOKS: [&str; 4] = ["prestart", "createRuntime", "poststart", "poststop"];

/// Why a configuration means nothing in a guest.
#[derive(Debug, thiserror::Error)]
pub enum GuestConfigurationError {
    /// A root file system that is not there.
    #[error("root.path: cannot open the root file system {}", path.display())]
    Root {
        /// Its path.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A root file system that is something else.
    #[error("root.path: {}: is not a folder", path.display())]
    RootIsNoFolder {
        /// Its path.
        path: PathBuf,
    },
    /// A network namespace that is none.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// A namespace that is not of a container in the same virtual machine.
    #[error(
        "linux.namespaces: the {kind} namespace {path} is one of the host's, which no container behind the microvm wall \
         can join: `--isolation shared-kernel` puts it on the host's kernel"
    )]
    HostNamespace {
        /// Its kind.
        kind: String,
        /// Its path.
        path: String,
    },
    /// The host's network.
    #[error(
        "linux.namespaces: without a network namespace of its own the container would have the host's network, which a \
         virtual machine cannot give it: add one, or choose `--isolation shared-kernel`"
    )]
    HostNetwork,
    /// A hook that is a program of the host and wants the container's namespaces.
    #[error(
        "hooks.createContainer: runs a program of the host in the container's namespaces, which behind the microvm wall \
         are in a guest that does not have the program: use createRuntime or startContainer"
    )]
    CreateContainerHooks,
    /// A listener that is a socket of the host.
    #[error(
        "linux.seccomp.listenerPath: the agent listens on the host, and the container's kernel is the guest's: choose \
         `--isolation shared-kernel` for a container with a seccomp agent"
    )]
    SeccompListener,
    /// Layers that are folders of the host.
    #[error(
        "mounts[{index}].options: the layers of an overlay are folders of the host, which the guest does not have: bind one \
         that is mounted on the host, or choose `--isolation shared-kernel`"
    )]
    Overlay {
        /// Its place.
        index: usize,
    },
    /// A bind mount with a mapping of its ids.
    #[error(
        "mounts[{index}].source: cannot map the ids of {path}: the guest has it by virtio-fs, whose mounts have no mappings \
         of their own: `--isolation shared-kernel` can"
    )]
    IdMapping {
        /// Its place.
        index: usize,
        /// Its path.
        path: String,
    },
    /// A socket among the mounts.
    #[error(
        "mounts[{index}].source: {path} is a socket; what listens there is on the host, and a process of the guest cannot \
         connect to it through a shared file system"
    )]
    Socket {
        /// Its place.
        index: usize,
        /// Its path.
        path: String,
    },
}

/// What else comes of a configuration that was made to fit.
#[derive(Debug, Default)]
pub struct Fitted {
    /// The name of the memory that the container is to have at `/dev/shm` with all others that are given it.
    pub shared_memory: Option<String>,
    /// What was left out, and why.
    pub warnings: Vec<String>,
}

/// Changes what the guest is to have otherwise than the host, and refuses what it cannot have. `root` is where the
/// containers that it may join are written down, those of `sandbox`; relative paths are of `bundle`.
///
/// # Errors
/// With the field that means nothing in a guest.
pub fn fit_for_guest(
    config: &mut Value,
    bundle: &Path,
    root: &Path,
    sandbox: &ContainerId,
) -> Result<Fitted, GuestConfigurationError> {
    check_root(config, bundle)?;
    join_namespaces(config, root, sandbox)?;
    leave_hooks_to_the_host(config)?;
    if config.pointer("/linux/seccomp/listenerPath").is_some_and(is_said) {
        return Err(GuestConfigurationError::SeccompListener);
    }
    let mounts = config.get_mut("mounts").and_then(Value::as_array_mut);
    let mut fitted = Fitted::default();
    for (index, mount) in mounts.into_iter().flatten().enumerate() {
        fit_mount(index, mount, bundle, &mut fitted.shared_memory)?;
    }
    if let Some(process) = config.get_mut("process") {
        fitted.warnings = leave_labels_out(process);
    }
    if let Some(linux) = config.get_mut("linux") {
        fitted.warnings.extend(leave_out(linux, "linux", "mountLabel"));
    }
    // It says where the machine is on the host. In the guest each further parent would be a cgroup to make.
    if let Some(linux) = config.get_mut("linux").and_then(Value::as_object_mut) {
        linux.remove("cgroupsPath");
    }
    Ok(fitted)
}

/// Takes the labels of security modules from a process: they are of the host's policy, which the guest's kernel does not
/// have. The virtual machine is what confines the process. Gives what was left out, and why.
pub fn leave_labels_out(process: &mut Value) -> Vec<String> {
    ["apparmorProfile", "selinuxLabel"]
        .into_iter()
        .filter_map(|name| leave_out(process, "process", name))
        .collect()
}

/// An empty label is none.
fn leave_out(part: &mut Value, place: &str, name: &str) -> Option<String> {
    let label = part.as_object_mut()?.remove(name)?;
    let label = label.as_str().filter(|label| !label.is_empty())?;
    Some(format!(
        "{place}.{name}: {label:?} is left out: it is of the host's policy, which the guest's kernel does not have"
    ))
}

/// Refuses a root that is no folder, unless a disk is the root.
fn check_root(config: &Value, bundle: &Path) -> Result<(), GuestConfigurationError> {
    let annotations = config.get("annotations");
    let has_disk = annotations.is_some_and(|annotations| annotations.get(ROOT_SOURCE_ANNOTATION).is_some());
    let path = config.pointer("/root/path").and_then(Value::as_str);
    let Some(path) = path.filter(|_| !has_disk) else {
        return Ok(());
    };
    let path = bundle.join(path);
    match fs::metadata(&path) {
        Ok(root) if root.is_dir() => Ok(()),
        Ok(_) => Err(GuestConfigurationError::RootIsNoFolder { path }),
        Err(source) => Err(GuestConfigurationError::Root { path, source }),
    }
}

fn is_said(value: &Value) -> bool {
    value.as_str().is_some_and(|text| !text.is_empty())
}

fn join_namespaces(
    config: &mut Value,
    root: &Path,
    sandbox: &ContainerId,
) -> Result<(), GuestConfigurationError> {
    if config.get("linux").is_none() {
        // The engine refuses it for that.
        return Ok(());
    }
    let namespaces = config
        .pointer_mut("/linux/namespaces")
        .and_then(Value::as_array_mut);
    let mut has_network = false;
    for (index, namespace) in namespaces.into_iter().flatten().enumerate() {
        let text = |name: &str| namespace.get(name).and_then(Value::as_str).map(str::to_owned);
        let (kind, path) = (text("type").unwrap_or_default(), text("path").unwrap_or_default());
        let joined = match kind.as_str() {
            "network" => {
                has_network = true;
                if !path.is_empty() {
                    check_network_namespace(Path::new(&path), index)?;
                }
                NAMESPACE.to_owned()
            }
            _ if path.is_empty() => continue,
            "ipc" | "uts" | "pid" => {
                // A number means the same process only in the same guest.
                let container = attendant_of(&path)
                    .and_then(|pid| attended_by(root, pid))
                    .filter(|container| container.sandbox == sandbox.as_str());
                match (container, path.rsplit_once('/')) {
                    (Some(container), Some((_, name))) => {
                        format!("/proc/{}/ns/{name}", container.guest_pid)
                    }
                    _ => return Err(GuestConfigurationError::HostNamespace { kind, path }),
                }
            }
            _ => return Err(GuestConfigurationError::HostNamespace { kind, path }),
        };
        if let Some(namespace) = namespace.as_object_mut() {
            namespace.insert("path".into(), json!(joined));
        }
    }
    if has_network {
        Ok(())
    } else {
        Err(GuestConfigurationError::HostNetwork)
    }
}

fn leave_hooks_to_the_host(config: &mut Value) -> Result<(), GuestConfigurationError> {
    let Some(hooks) = config.get_mut("hooks").and_then(Value::as_object_mut) else {
        return Ok(());
    };
    let is_empty = |hooks: &Value| hooks.as_array().is_none_or(Vec::is_empty);
    if hooks.get("createContainer").is_some_and(|hooks| !is_empty(hooks)) {
        return Err(GuestConfigurationError::CreateContainerHooks);
    }
    for name in HOST_HOOKS {
        hooks.remove(name);
    }
    Ok(())
}

fn fit_mount(
    index: usize,
    mount: &mut Value,
    bundle: &Path,
    shared_memory: &mut Option<String>,
) -> Result<(), GuestConfigurationError> {
    let text = |name: &str| mount.get(name).and_then(Value::as_str);
    if text("type") == Some("overlay") && !is_bind(mount) {
        return Err(GuestConfigurationError::Overlay { index });
    }
    if !is_bind(mount) {
        return Ok(());
    }
    let source = bundle.join(text("source").unwrap_or_default());
    if has_option(mount, &["idmap", "ridmap"]) {
        return Err(GuestConfigurationError::IdMapping {
            index,
            path: source.display().to_string(),
        });
    }
    // One that is not there is told by who shares it.
    if fs::metadata(&source).is_ok_and(|source| source.file_type().is_socket()) {
        return Err(GuestConfigurationError::Socket {
            index,
            path: source.display().to_string(),
        });
    }
    if text("destination") == Some(SHARED_MEMORY)
        && let (Ok(file_system), Ok(folder)) = (statfs(&source), fs::metadata(&source))
        && file_system.f_type == TMPFS
        && let Some(mount) = mount.as_object_mut()
    {
        // Shared memory is memory: the guest's, where a page that two processes map is one page. Containers that have the
        // same folder on the host have the same memory there.
        *shared_memory = Some(format!("{:x}-{:x}", folder.dev(), folder.ino()));
        let bytes = file_system
            .f_blocks
            .saturating_mul(u64::try_from(file_system.f_bsize).unwrap_or(0));
        mount.insert("type".into(), json!("tmpfs"));
        mount.insert("source".into(), json!("shm"));
        mount.insert(
            "options".into(),
            json!(["nosuid", "noexec", "nodev", "mode=1777", format!("size={bytes}")]),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn labels_of_the_hosts_policy_are_left_out_with_a_warning() {
        let mut config = with_namespaces(json!([{"type": "network"}]));
        config["process"] =
            json!({"apparmorProfile": "docker-default", "selinuxLabel": "a:b:c:d", "cwd": "/"});
        config["linux"]["mountLabel"] = json!("a:b:c:d");
        let (root, sandbox) = (Path::new("/nonexistent"), "pod".parse().unwrap());
        let fitted = fit_for_guest(&mut config, Path::new("/"), root, &sandbox).unwrap();
        assert_eq!(config["process"], json!({"cwd": "/"}));
        assert!(config["linux"].get("mountLabel").is_none());
        let places: Vec<&str> = fitted
            .warnings
            .iter()
            .filter_map(|warning| warning.split_once(": ").map(|(place, _)| place))
            .collect();
        let expected = [
            "process.apparmorProfile",
            "process.selinuxLabel",
            "linux.mountLabel",
        ];
        assert_eq!(places, expected);
        assert!(fitted.warnings[0].contains("docker-default"));
        // None is asked for by an empty one.
        let mut process = json!({"apparmorProfile": "", "selinuxLabel": null});
        assert!(leave_labels_out(&mut process).is_empty());
        assert_eq!(process, json!({}));
    }

    #[test]
    fn a_root_that_is_no_folder_is_refused_unless_a_disk_is_the_root() {
        let mut config = with_namespaces(json!([{"type": "network"}]));
        for (path, problem) in [
            (
                "no/such/folder",
                "root.path: cannot open the root file system /no/such/folder",
            ),
            (
                "/proc/self/status",
                "root.path: /proc/self/status: is not a folder",
            ),
        ] {
            config["root"] = json!({"path": path});
            assert_eq!(fitted(config.clone()).unwrap_err().to_string(), problem);
        }
        config["annotations"] = json!({ROOT_SOURCE_ANNOTATION: "/image"});
        fitted(config).unwrap();
    }

    fn fitted(mut config: Value) -> Result<Value, GuestConfigurationError> {
        let sandbox = "pod".parse().unwrap();
        fit_for_guest(&mut config, Path::new("/"), Path::new("/nonexistent"), &sandbox).map(|_| config)
    }

    fn with_namespaces(namespaces: Value) -> Value {
        json!({ "linux": { "namespaces": namespaces } })
    }

    #[test]
    fn the_network_is_the_pods_wherever_the_host_has_it() {
        for network in [
            json!({"type": "network"}),
            json!({"type": "network", "path": "/proc/self/ns/net"}),
        ] {
            let config = fitted(with_namespaces(json!([{"type": "pid"}, network]))).unwrap();
            assert_eq!(
                config.pointer("/linux/namespaces").unwrap(),
                &json!([{"type": "pid"}, {"type": "network", "path": NAMESPACE}])
            );
        }
    }

    #[test]
    fn a_network_that_is_none_is_named_by_its_place() {
        let namespaces =
            |path: &str| with_namespaces(json!([{"type": "pid"}, {"type": "network", "path": path}]));
        for path in ["/no/such/namespace", "/proc/self/ns/uts"] {
            let error = fitted(namespaces(path)).unwrap_err().to_string();
            assert!(
                error.contains("linux.namespaces[1].path: ") && error.contains(path),
                "{error}"
            );
        }
    }

    #[test]
    fn the_hosts_network_and_other_namespaces_are_refused_with_the_other_wall_as_the_way_out() {
        for namespaces in [
            json!([{"type": "pid"}]),
            json!([{"type": "network"}, {"type": "ipc", "path": "/proc/1/ns/ipc"}]),
            json!([{"type": "network"}, {"type": "user", "path": "/run/userns"}]),
        ] {
            let error = fitted(with_namespaces(namespaces.clone()))
                .unwrap_err()
                .to_string();
            assert!(error.contains("shared-kernel"), "{namespaces}: {error}");
        }
    }

    #[test]
    fn hooks_of_the_host_stay_there_and_those_of_the_image_go_in() {
        let mut config = with_namespaces(json!([{"type": "network"}]));
        let hook = json!([{"path": "/h"}]);
        config["hooks"] = json!({"prestart": hook, "poststop": hook, "startContainer": hook});
        let fit = fitted(config.clone()).unwrap();
        assert_eq!(fit["hooks"], json!({"startContainer": hook}));
        config["hooks"]["createContainer"] = hook;
        assert!(matches!(
            fitted(config),
            Err(GuestConfigurationError::CreateContainerHooks)
        ));
    }

    #[test]
    fn a_socket_among_the_mounts_is_refused_by_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        let mut config = with_namespaces(json!([{"type": "network"}]));
        for bind in [
            json!({"type": "bind", "destination": "/s", "source": path}),
            json!({"destination": "/s", "source": path, "options": ["rbind"]}),
        ] {
            config["mounts"] = json!([{"type": "proc", "destination": "/proc"}, bind]);
            let error = fitted(config.clone()).unwrap_err().to_string();
            assert!(error.starts_with("mounts[1].source: "), "{error}");
        }
    }

    #[test]
    fn mounts_that_virtio_fs_cannot_give_are_refused_by_their_place() {
        for (mount, place) in [
            (
                json!({"type": "overlay", "destination": "/o", "options": ["lowerdir=/a:/b"]}),
                "mounts[0].options: ",
            ),
            (
                json!({"destination": "/o", "source": "/usr", "options": ["rbind", "ridmap"]}),
                "mounts[0].source: cannot map the ids of /usr: ",
            ),
        ] {
            let mut config = with_namespaces(json!([{"type": "network"}]));
            config["mounts"] = json!([mount]);
            let error = fitted(config).unwrap_err().to_string();
            assert!(error.starts_with(place), "{error}");
        }
    }

    #[test]
    fn shared_memory_is_the_guests_and_as_large_as_on_the_host() {
        let mut config = with_namespaces(json!([{"type": "network"}]));
        // A tmpfs on every host that runs programs.
        config["mounts"] = json!([{"type": "bind", "destination": "/dev/shm", "source": "/dev/shm"}]);
        let sandbox = "pod".parse().unwrap();
        let mut fit = config.clone();
        let name = fit_for_guest(&mut fit, Path::new("/"), Path::new("/"), &sandbox).unwrap();
        // The same folder is the same memory, by whatever path.
        config["mounts"][0]["source"] = json!("dev/shm/.");
        let again = fit_for_guest(&mut config, Path::new("/"), Path::new("/"), &sandbox);
        let (name, again) = (name.shared_memory, again.unwrap().shared_memory);
        assert!(name.is_some() && name == again);
        assert_eq!(fit.pointer("/mounts/0/type").unwrap(), "tmpfs");
        let options = fit.pointer("/mounts/0/options").unwrap().to_string();
        assert!(
            options.contains("size=") && !options.contains("size=0"),
            "{options}"
        );
    }
}
