//! Values that bound or tune the container's process and its namespaces.

use std::path::{Path, PathBuf};

use rustix::process::setrlimit;

use super::SetUpError;
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
pub(crate) fn set_resource_limits(limits: &[ResourceLimit]) -> Result<(), SetUpError> {
    for ResourceLimit {
        name,
        resource,
        limit,
    } in limits
    {
        setrlimit(*resource, *limit).map_err(SetUpError::field(
            "process.rlimits",
            format!("set {name} to {:?}, hard {:?}", limit.current, limit.maximum),
        ))?;
    }
    Ok(())
}
