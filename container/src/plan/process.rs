//! The configuration's `process`.

use std::ffi::CString;
use std::path::PathBuf;

use oci_spec::runtime::{Process, User};
use rustix::process::{Gid, Uid};

use super::spec_error::c_string;
use super::{CapabilityPlan, LabelPlan, ResourceLimit, SchedulingPlan, SpecError, rlimits};

/// The program and what it runs as.
#[derive(Debug)]
pub(crate) struct ProcessPlan {
    /// The program first; none where the configuration has no `process`, and the container cannot be started.
    pub(crate) arguments: Vec<CString>,
    pub(crate) environment: Vec<CString>,
    pub(crate) working_directory: PathBuf,
    pub(crate) user: UserPlan,
    pub(crate) capabilities: CapabilityPlan,
    pub(crate) limits: Vec<ResourceLimit>,
    pub(crate) scheduling: SchedulingPlan,
    pub(crate) no_new_privileges: bool,
    pub(crate) oom_score_adjustment: Option<i32>,
    pub(crate) labels: LabelPlan,
    pub(crate) terminal: Option<Option<WindowSize>>,
}

/// Whom the program runs as.
#[derive(Debug)]
pub(crate) struct UserPlan {
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    pub(crate) additional_gids: Vec<Gid>,
    pub(crate) umask: u32,
}

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WindowSize {
    pub(crate) rows: u16,
    pub(crate) columns: u16,
}

const DEFAULT_UMASK: u32 = 0o022;

impl ProcessPlan {
    /// That of a container which can be created, and not started. Whoever waits in it in vain may do nothing.
    pub(super) fn unset() -> ProcessPlan {
        ProcessPlan {
            arguments: Vec::new(),
            environment: Vec::new(),
            working_directory: PathBuf::from("/"),
            user: UserPlan {
                uid: Uid::ROOT,
                gid: Gid::ROOT,
                additional_gids: Vec::new(),
                umask: DEFAULT_UMASK,
            },
            capabilities: CapabilityPlan::default(),
            limits: Vec::new(),
            scheduling: SchedulingPlan::default(),
            no_new_privileges: true,
            oom_score_adjustment: None,
            labels: LabelPlan::default(),
            terminal: None,
        }
    }

    /// Whether there is anything to start.
    pub(crate) fn is_set(&self) -> bool {
        !self.arguments.is_empty()
    }

    pub(crate) fn new(process: &Process) -> Result<ProcessPlan, SpecError> {
        let arguments = strings("process.args", process.args())?;
        if arguments.first().is_none_or(|program| program.is_empty()) {
            return Err(SpecError::invalid(
                "process.args",
                "must begin with the program to run",
            ));
        }
        let environment = strings("process.env", process.env())?;
        for (index, variable) in environment.iter().enumerate() {
            if !variable.as_bytes().iter().skip(1).any(|&byte| byte == b'=') {
                let problem = format!("`{}` is not of the form NAME=VALUE", variable.to_string_lossy());
                return Err(SpecError::invalid(format!("process.env[{index}]"), problem));
            }
        }
        if !process.cwd().is_absolute() {
            let problem = format!("`{}` is not an absolute path", process.cwd().display());
            return Err(SpecError::invalid("process.cwd", problem));
        }
        let oom_score_adjustment = process.oom_score_adj();
        if oom_score_adjustment.is_some_and(|score| !(-1000..=1000).contains(&score)) {
            return Err(SpecError::invalid(
                "process.oomScoreAdj",
                "is not within -1000 to 1000",
            ));
        }
        Ok(ProcessPlan {
            arguments,
            environment,
            working_directory: process.cwd().clone(),
            user: UserPlan::new(process.user())?,
            capabilities: CapabilityPlan::new(process.capabilities().as_ref()),
            limits: rlimits::plan(process.rlimits().as_deref().unwrap_or_default())?,
            scheduling: SchedulingPlan::new(process)?,
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            oom_score_adjustment,
            labels: LabelPlan::new(process)?,
            terminal: terminal(process)?,
        })
    }
}

impl UserPlan {
    fn new(user: &User) -> Result<UserPlan, SpecError> {
        let umask = user.umask().unwrap_or(DEFAULT_UMASK);
        if umask > 0o777 {
            return Err(SpecError::invalid(
                "process.user.umask",
                format!("{umask:#o} is above 0o777"),
            ));
        }
        // The largest number means "leave it" to the kernel.
        let known = |id: u32, field: String| {
            if id == u32::MAX {
                Err(SpecError::invalid(field, "is not an id"))
            } else {
                Ok(id)
            }
        };
        let additional = user.additional_gids().as_deref().unwrap_or_default();
        let additional_gids = additional
            .iter()
            .enumerate()
            .map(|(index, &gid)| {
                known(gid, format!("process.user.additionalGids[{index}]")).map(Gid::from_raw)
            })
            .collect::<Result<_, _>>()?;
        Ok(UserPlan {
            uid: Uid::from_raw(known(user.uid(), "process.user.uid".into())?),
            gid: Gid::from_raw(known(user.gid(), "process.user.gid".into())?),
            additional_gids,
            umask,
        })
    }
}

fn terminal(process: &Process) -> Result<Option<Option<WindowSize>>, SpecError> {
    if !process.terminal().unwrap_or(false) {
        return Ok(None);
    }
    let Some(size) = process.console_size() else {
        return Ok(Some(None));
    };
    match (u16::try_from(size.height()), u16::try_from(size.width())) {
        (Ok(rows), Ok(columns)) => Ok(Some(Some(WindowSize { rows, columns }))),
        _ => Err(SpecError::invalid(
            "process.consoleSize",
            "is larger than a terminal can be",
        )),
    }
}

fn strings(field: &str, texts: &Option<Vec<String>>) -> Result<Vec<CString>, SpecError> {
    let texts = texts.as_deref().unwrap_or_default();
    texts
        .iter()
        .enumerate()
        .map(|(index, text)| c_string(|| format!("{field}[{index}]"), text.as_str()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(process: &str) -> Result<ProcessPlan, SpecError> {
        ProcessPlan::new(&serde_json::from_str(process).unwrap())
    }

    #[test]
    fn an_ordinary_process_is_accepted_with_the_usual_umask() {
        let plan =
            plan(r#"{"user":{"uid":1,"gid":2},"args":["sh"],"env":["A=","B=c=d"],"cwd":"/"}"#).unwrap();
        assert_eq!(plan.user.umask, 0o022);
        assert_eq!(plan.environment.len(), 2);
        assert!(plan.terminal.is_none());
    }

    #[test]
    fn mistakes_are_refused_by_their_place() {
        for (process, field) in [
            (r#"{"user":{},"cwd":"/"}"#, "process.args"),
            (r#"{"user":{},"args":[""],"cwd":"/"}"#, "process.args"),
            (
                r#"{"user":{},"args":["a","b\u0000"],"cwd":"/"}"#,
                "process.args[1]",
            ),
            (
                r#"{"user":{},"args":["a"],"env":["A=1","=x"],"cwd":"/"}"#,
                "process.env[1]",
            ),
            (r#"{"user":{},"args":["a"],"cwd":"rel"}"#, "process.cwd"),
            (
                r#"{"user":{"umask":512},"args":["a"],"cwd":"/"}"#,
                "process.user.umask",
            ),
            (
                r#"{"user":{"uid":4294967295},"args":["a"],"cwd":"/"}"#,
                "process.user.uid",
            ),
            (
                r#"{"user":{"additionalGids":[1,4294967295]},"args":["a"],"cwd":"/"}"#,
                "process.user.additionalGids[1]",
            ),
            (
                r#"{"user":{},"args":["a"],"cwd":"/","oomScoreAdj":1001}"#,
                "process.oomScoreAdj",
            ),
            (
                r#"{"user":{},"args":["a"],"cwd":"/","terminal":true,"consoleSize":{"height":1,"width":65536}}"#,
                "process.consoleSize",
            ),
        ] {
            assert_eq!(plan(process).unwrap_err().field(), field);
        }
    }
}
