//! Cgroups below a container's own, which one more process can be put into.

use std::path::{Component, Path, PathBuf};

use super::{Cgroup, CgroupError, Hierarchy, Member};

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
