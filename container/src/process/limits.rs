//! Values that bound or tune the container's process and its namespaces.

use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit};

use super::SetUpError;
use crate::kernel::calls::setrlimit;
use crate::plan::ResourceLimit;
use crate::procfs;

/// While the caller's `/proc` is still there: the container may have none.
pub(crate) fn set_oom_score_adjustment(score: i32) -> Result<(), SetUpError> {
    procfs::write("self/oom_score_adj", score.to_string().as_bytes()).map_err(SetUpError::field(
        "process.oomScoreAdj",
        format!("set it to {score}"),
    ))
}

/// `/proc/sys` shows each process the parameters of its own namespaces, so the caller's `/proc` serves here too.
pub(crate) fn write_sysctl(files: &[(PathBuf, String)]) -> Result<(), SetUpError> {
    for (path, value) in files {
        procfs::write(Path::new("sys").join(path), value.as_bytes()).map_err(SetUpError::field(
            format!("linux.sysctl[`{}`]", path.display()),
            format!("set it to `{value}`"),
        ))?;
    }
    Ok(())
}

/// Needs CAP_SYS_RESOURCE where a hard limit rises, so it happens before capabilities go.
pub(super) fn set_resource_limits(limits: &[ResourceLimit]) -> Result<(), SetUpError> {
    limits
        .iter()
        .try_for_each(|limit| setrlimit(limit.resource, limit.limit).map_err(refused(limit)))
}

/// The same in a process that is yet to make the one with these limits. A limit of processes it only raises: it would
/// count itself.
pub(super) fn set_resource_limits_for_child(limits: &[ResourceLimit]) -> Result<(), SetUpError> {
    for limit in limits {
        let wanted = match limit.resource {
            Resource::Nproc => higher(limit.limit, getrlimit(limit.resource)),
            _ => limit.limit,
        };
        setrlimit(limit.resource, wanted).map_err(refused(limit))?;
    }
    Ok(())
}

/// What that left out, in the process that was made. A limit that is not raised needs no privilege.
pub(super) fn set_limit_of_processes(limits: &[ResourceLimit]) -> Result<(), SetUpError> {
    match limit_of_processes(limits) {
        Some(limit) => setrlimit(limit.resource, limit.limit).map_err(refused(limit)),
        None => Ok(()),
    }
}

pub(super) fn limit_of_processes(limits: &[ResourceLimit]) -> Option<&ResourceLimit> {
    limits.iter().find(|limit| limit.resource == Resource::Nproc)
}

/// None stands for no limit.
fn higher(one: Rlimit, other: Rlimit) -> Rlimit {
    let higher = |one: Option<u64>, other: Option<u64>| Some(one?.max(other?));
    Rlimit {
        current: higher(one.current, other.current),
        maximum: higher(one.maximum, other.maximum),
    }
}

fn refused(ResourceLimit { name, limit, .. }: &ResourceLimit) -> impl FnOnce(Errno) -> SetUpError {
    SetUpError::field(
        "process.rlimits",
        format!("set {name} to {:?}, hard {:?}", limit.current, limit.maximum),
    )
}
