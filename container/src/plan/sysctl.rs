//! `linux.sysctl`: only what belongs to a namespace of the container's own, because everything else would change
//! the kernel for all.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::map_order::by_key;
use super::{Namespace, NamespacePlan, SpecError};

const OF_IPC: [&str; 10] = [
    "kernel.auto_msgmni",
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_next_id",
    "kernel.shm_rmid_forced",
];

/// The kind of namespace that a file below `/proc/sys` belongs to; none for one that is the whole kernel's.
pub(crate) fn kind(path: &Path) -> Option<Namespace> {
    let name = path.to_str()?.replace('/', ".");
    if name.starts_with("net.") {
        Some(Namespace::Network)
    } else if name.starts_with("fs.mqueue.") || OF_IPC.contains(&name.as_str()) {
        Some(Namespace::Ipc)
    } else if name == "kernel.domainname" {
        Some(Namespace::Uts)
    } else {
        None
    }
}

/// The files below `/proc/sys` and what to write to each, sorted by path.
pub(super) fn plan(
    sysctl: Option<&HashMap<String, String>>,
    namespaces: &NamespacePlan,
) -> Result<Vec<(PathBuf, String)>, SpecError> {
    let Some(sysctl) = sysctl else {
        return Ok(Vec::new());
    };
    let mut files = Vec::with_capacity(sysctl.len());
    for (name, value) in by_key(sysctl) {
        let refuse = |problem: &str| SpecError::invalid(format!("linux.sysctl[`{name}`]"), problem);
        // Both spellings of sysctl(8): with dots, and with slashes where a component holds a dot (eth0.1).
        let dotted = !name.contains('/');
        let path = if dotted {
            name.replace('.', "/")
        } else {
            name.to_owned()
        };
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) || path.contains('\0') {
            return Err(refuse("is not the name of a kernel parameter"));
        }
        if path == "kernel/hostname" {
            return Err(refuse("is what `hostname` sets"));
        }
        let Some(kind) = kind(Path::new(&path)) else {
            return Err(refuse(
                "belongs to no namespace: setting it would change the kernel for everyone",
            ));
        };
        if !namespaces.isolates(kind) {
            let problem = format!("needs a {} namespace that is not the caller's", kind.name());
            return Err(refuse(&problem));
        }
        files.push((PathBuf::from(path), value.clone()));
    }
    files.sort_unstable();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_one(name: &str) -> Result<Vec<(PathBuf, String)>, SpecError> {
        let linux = r#"{"namespaces":[{"type":"mount"},{"type":"network"},{"type":"ipc"}]}"#;
        let namespaces = NamespacePlan::new(&serde_json::from_str(linux).unwrap()).unwrap();
        plan(
            Some(&HashMap::from([(name.to_owned(), "1".to_owned())])),
            &namespaces,
        )
    }

    #[test]
    fn parameters_of_the_containers_namespaces_are_accepted_in_both_spellings() {
        for (name, path) in [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            (
                "net/ipv4/conf/eth0.1/forwarding",
                "net/ipv4/conf/eth0.1/forwarding",
            ),
            ("fs.mqueue.msg_max", "fs/mqueue/msg_max"),
            ("kernel.shmmax", "kernel/shmmax"),
        ] {
            assert_eq!(plan_one(name).unwrap(), [(PathBuf::from(path), "1".to_owned())]);
        }
    }

    #[test]
    fn parameters_of_everyone_and_names_that_climb_are_refused() {
        for name in [
            "kernel.panic",
            "vm.swappiness",
            "net/../kernel/panic",
            "net..x",
            "kernel.hostname",
            "kernel.domainname",
            "net",
            "",
        ] {
            assert!(plan_one(name).is_err(), "{name}");
        }
    }
}
