//! Cgroups below a container's own, which one more process can be put into.

use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use super::{Cgroup, CgroupError, Hierarchy, Member, open_folder, v2};
use crate::procfs;

impl Cgroup {
    /// The cgroups that `words` name: each a path below the container's cgroups, in every hierarchy if it stands alone, or
    /// after controllers in theirs (`cpu,memory:some/path`). Without words they are the container's own. Whether they
    /// exist is found out when they are opened.
    pub(crate) fn below(&self, words: &[String]) -> Result<Cgroup, CgroupError> {
        let mut below = self.clone();
        for word in words {
            let refused = |problem: &str| CgroupError::NotExpressible {
                field: format!("cgroup `{word}`"),
                problem: problem.to_owned(),
            };
            let (controllers, path) = match word.split_once(':') {
                Some((controllers, path)) => (Some(controllers), path),
                None if words.len() == 1 => (None, word.as_str()),
                None => return Err(refused("names no controller, so it has to be the only one")),
            };
            let path = inside(path).ok_or_else(|| refused("must not hold `..`"))?;
            let Some(controllers) = controllers else {
                below.members.iter_mut().for_each(|member| enter(member, &path));
                continue;
            };
            for controller in controllers.split(',') {
                let has = |member: &&mut Member| match &member.hierarchy {
                    Hierarchy::Unified => false,
                    Hierarchy::Version1(names) => names.split(',').any(|name| name == controller),
                };
                let member = below.members.iter_mut().find(has);
                let member = member.ok_or_else(|| CgroupError::NoController {
                    field: format!("cgroup `{word}`"),
                    controller: controller.to_owned(),
                })?;
                enter(member, &path);
            }
        }
        Ok(below)
    }

    /// The cgroup2 cgroup that the process `pid` is in, opened for clone3(2); none where that is the container's own. The
    /// kernel takes no process into a cgroup that passes controllers on to others, and a container that manages its cgroups
    /// itself, as service managers do, has moved its processes into those below. One outside the container's is refused.
    pub(crate) fn open_unified_of(&self, pid: i32) -> Result<Option<OwnedFd>, CgroupError> {
        let Some(member) = self.unified() else {
            return Ok(None);
        };
        let file = format!("{pid}/cgroup");
        let text = procfs::read(&file)
            .map_err(|errno| CgroupError::io("read", &Path::new("/proc").join(&file), errno))?;
        let root = v2::root_above(&member.path);
        match unified_below(&text, root, &member.path)? {
            Some(path) => open_folder(&path).map(Some),
            None => Ok(None),
        }
    }
}

/// Where the cgroup2 cgroup is that `text`, of a file `/proc/PID/cgroup`, tells of, in the hierarchy with this root; none if
/// it is `own` itself.
fn unified_below(text: &str, root: &Path, own: &Path) -> Result<Option<PathBuf>, CgroupError> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"));
    // The path leads out of the root if the process was moved out of what the caller sees.
    let path = path.and_then(inside).map(|path| root.join(path));
    match path {
        Some(path) if path == own => Ok(None),
        Some(path) if path.starts_with(own) => Ok(Some(path)),
        _ => Err(CgroupError::LeftByFirst { path: own.to_owned() }),
    }
}

fn enter(member: &mut Member, path: &Path) {
    // An empty path would add a slash.
    if path != Path::new("") {
        member.path.push(path);
    }
}

/// The path without what leads to the root; none if it leads out.
fn inside(path: &str) -> Option<PathBuf> {
    Path::new(path)
        .components()
        .filter(|part| !matches!(part, Component::RootDir | Component::CurDir))
        .map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn below(words: &[&str]) -> Result<Vec<String>, CgroupError> {
        let member = |hierarchy, path: &str| Member {
            hierarchy,
            path: path.into(),
        };
        let cgroup = Cgroup {
            members: vec![
                member(Hierarchy::Version1("cpu,cpuacct".to_owned()), "/cpu/box"),
                member(Hierarchy::Version1("memory".to_owned()), "/memory/box"),
                member(Hierarchy::Unified, "/unified/box"),
            ],
            made_parents: Vec::new(),
        };
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let paths = |below: Cgroup| {
            let members = below.members.into_iter();
            members.map(|member| member.path.display().to_string()).collect()
        };
        cgroup.below(&words).map(paths)
    }

    #[test]
    fn where_the_first_process_is_has_to_be_below_the_containers_cgroup() {
        let find = |path: &str| {
            let text = format!("3:pids:/elsewhere\n0::{path}\n");
            unified_below(&text, Path::new("/cgroup"), Path::new("/cgroup/pod/box"))
        };
        assert_eq!(find("/pod/box").unwrap(), None);
        assert_eq!(
            find("/pod/box/init.scope").unwrap(),
            Some("/cgroup/pod/box/init.scope".into())
        );
        for outside in ["/", "/pod", "/pod/boxes", "/../pod/box", "/pod/box/../a"] {
            let error = find(outside).unwrap_err().to_string();
            assert!(error.contains("/cgroup/pod/box"), "{outside}: {error}");
        }
        assert!(unified_below("3:pids:/pod/box\n", Path::new("/"), Path::new("/pod/box")).is_err());
    }

    #[test]
    fn a_path_is_below_all_or_below_those_of_its_controllers() {
        for (words, paths) in [
            (&[][..], ["/cpu/box", "/memory/box", "/unified/box"]),
            (&["/"], ["/cpu/box", "/memory/box", "/unified/box"]),
            (
                &["/a/./b/"],
                ["/cpu/box/a/b", "/memory/box/a/b", "/unified/box/a/b"],
            ),
            (&["cpuacct:a"], ["/cpu/box/a", "/memory/box", "/unified/box"]),
            (
                &["memory:a", "cpu:/b"],
                ["/cpu/box/b", "/memory/box/a", "/unified/box"],
            ),
            (&["memory,cpu:a"], ["/cpu/box/a", "/memory/box/a", "/unified/box"]),
        ] {
            assert_eq!(below(words).unwrap(), paths, "{words:?}");
        }
    }

    #[test]
    fn what_leads_out_or_has_no_controller_is_refused() {
        for (words, problem) in [
            (&[".."][..], "cgroup `..`: must not hold `..`"),
            (&["cpu:a/../.."], "cgroup `cpu:a/../..`: must not hold `..`"),
            (
                &["wat:/"],
                "cgroup `wat:/`: the cgroup controller `wat` is not available",
            ),
            (&[":/"], "cgroup `:/`: the cgroup controller `` is not available"),
            (
                &["a", "b"],
                "cgroup `a`: names no controller, so it has to be the only one",
            ),
        ] {
            assert_eq!(below(words).unwrap_err().to_string(), problem);
        }
    }
}
