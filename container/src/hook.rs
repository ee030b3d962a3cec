//! Running the configuration's hooks: programs that are told the container's state on their standard input.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::kernel::pidfd::wait_for_end;
use crate::kernel::signal_disposition;
use crate::plan::Hook;
use crate::process::describe_end;
use crate::state::OciState;

/// What a failed hook said is quoted up to this many bytes, from its end.
const QUOTED: u64 = 2 << 10;

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The kernel would not execute it.
    #[error("{field}: cannot execute {}", path.display())]
    Execute {
        /// Its JSON path.
        field: String,
        /// The program.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// It ended otherwise than with success.
    #[error("{field}: {} {how}{said}", path.display())]
    Failed {
        /// Its JSON path.
        field: String,
        /// The program.
        path: PathBuf,
        /// How it ended.
        how: String,
        /// The end of its output, after a separator; empty if there was none.
        said: String,
    },
    /// What it is told, or says, cannot be kept, or its end not be awaited.
    #[error("{field}: cannot {doing}")]
    Step {
        /// Its JSON path.
        field: String,
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// The environment of a hook whose configuration does not say: others have left it that of whoever runs the hook, and
/// hooks count on that.
#[derive(Clone, Copy)]
pub(crate) enum DefaultEnvironment<'a> {
    /// This process's own.
    Inherited,
    /// `NAME=VALUE`, each.
    These(&'a [CString]),
}

/// Runs hooks in their order, until one fails.
pub(crate) fn run_all(
    hooks: &[Hook],
    state: &OciState,
    default: DefaultEnvironment<'_>,
) -> Result<(), HookError> {
    hooks.iter().try_for_each(|hook| run(hook, state, default))
}

/// Runs hooks in their order, all of them, and returns what went wrong.
pub(crate) fn run_each(hooks: &[Hook], state: &OciState) -> Vec<HookError> {
    hooks
        .iter()
        .filter_map(|hook| run(hook, state, DefaultEnvironment::Inherited).err())
        .collect()
}

/// Runs one hook to its end. Its streams are files in memory: neither a hook that does not read nor one that a
/// grandchild of which keeps the output open can hold anybody up.
fn run(hook: &Hook, state: &OciState, default: DefaultEnvironment<'_>) -> Result<(), HookError> {
    let step = |doing| {
        move |source| HookError::Step {
            field: hook.field.clone(),
            doing,
            source,
        }
    };
    let keep = || -> io::Result<(File, File)> {
        let mut input = File::from(memfd_create("container-state", MemfdFlags::CLOEXEC)?);
        input.write_all(&serde_json::to_vec(state)?)?;
        input.rewind()?;
        let output = File::from(memfd_create("hook-output", MemfdFlags::CLOEXEC)?);
        Ok((input, output))
    };
    let (input, mut output) = keep().map_err(step("keep the container's state for it"))?;
    let output_of_child = || output.try_clone().map_err(step("keep its output"));

    let mut command = Command::new(&hook.path);
    if let Some((name, arguments)) = hook.arguments.split_first() {
        command.arg0(name).args(arguments);
    }
    set_environment(&mut command, hook.environment.as_deref(), default);
    command
        .stdin(input)
        .stdout(output_of_child()?)
        .stderr(output_of_child()?)
        // What it starts goes with it when its time is up.
        .process_group(0);
    // SAFETY: between fork and exec, and nothing but system calls on this stack.
    unsafe {
        command.pre_exec(|| {
            signal_disposition::reset_for_exec();
            Ok(())
        });
    }
    let mut child = command.spawn().map_err(|source| HookError::Execute {
        field: hook.field.clone(),
        path: hook.path.clone(),
        source,
    })?;
    let failed = |how: String, output: &mut File| HookError::Failed {
        field: hook.field.clone(),
        path: hook.path.clone(),
        how,
        said: quote(output),
    };
    match wait(&mut child, hook.timeout).map_err(step("wait for it"))? {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(failed(describe_end(status.code(), status.signal()), &mut output)),
        None => {
            let seconds = hook.timeout.unwrap_or_default();
            let how = format!("did not end within its timeout of {seconds} s and was killed");
            Err(failed(how, &mut output))
        }
    }
}

fn set_environment(command: &mut Command, configured: Option<&[String]>, default: DefaultEnvironment<'_>) {
    let split = |variable: &[u8]| -> Option<(OsString, OsString)> {
        let equals = variable.iter().position(|&byte| byte == b'=')?;
        let (name, value) = variable.split_at_checked(equals)?;
        let owned = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
        Some((owned(name), owned(value.get(1..)?)))
    };
    let variables: Vec<&[u8]> = match (configured, default) {
        (Some(variables), _) => variables.iter().map(|variable| variable.as_bytes()).collect(),
        (None, DefaultEnvironment::These(variables)) => {
            variables.iter().map(|variable| variable.as_bytes()).collect()
        }
        (None, DefaultEnvironment::Inherited) => return,
    };
    command.env_clear().envs(variables.into_iter().filter_map(split));
}

/// How the child ended; none when its time was up and it was killed.
fn wait(child: &mut Child, timeout: Option<u64>) -> io::Result<Option<ExitStatus>> {
    let Some(seconds) = timeout else {
        return child.wait().map(Some);
    };
    // It is a child not yet waited for, so the number is its own.
    let pid = Pid::from_child(child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let ended = match wait_for_end(pidfd.as_fd(), Duration::from_secs(seconds)) {
        Ok(()) => Ok(true),
        Err(Errno::TIMEDOUT) => Ok(false),
        Err(errno) => Err(errno),
    };
    if !matches!(ended, Ok(true)) {
        // The group outlives its leader, who is not waited for yet, so this cannot reach others.
        kill_process_group(pid, Signal::KILL)?;
    }
    let status = child.wait()?;
    Ok(ended?.then_some(status))
}

/// The end of what the hook said, as part of a message. What cannot be read is not said.
fn quote(output: &mut File) -> String {
    let mut text = Vec::new();
    let length = output.metadata().map_or(0, |metadata| metadata.len());
    let read = output
        .seek(io::SeekFrom::Start(length.saturating_sub(QUOTED)))
        .and_then(|_| output.take(QUOTED).read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    let text = text.trim_matches(|character: char| character.is_whitespace() || character == '\0');
    if read.is_err() || text.is_empty() {
        return String::new();
    }
    let printable = |character: char| if character.is_control() { ' ' } else { character };
    format!(", saying: {}", text.chars().map(printable).collect::<String>())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::state::Status;

    fn shell(script: &str, timeout: Option<u64>) -> Hook {
        Hook {
            field: "hooks.prestart[0]".into(),
            path: "/bin/sh".into(),
            arguments: vec!["hook".into(), "-c".into(), script.into()],
            environment: Some(vec!["GIVEN=yes".into()]),
            timeout,
        }
    }

    fn state() -> OciState {
        OciState {
            oci_version: "1.0.2".into(),
            id: "one".into(),
            status: Status::Created,
            pid: Some(7),
            bundle: "/bundle".into(),
            annotations: Default::default(),
        }
    }

    #[test]
    fn a_hook_gets_the_state_its_environment_and_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("said");
        let script = format!("(cat; echo; env; echo $0) > {}", file.display());
        run(&shell(&script, None), &state(), DefaultEnvironment::Inherited).unwrap();
        let said = std::fs::read_to_string(file).unwrap();
        let found: OciState = serde_json::from_str(said.lines().next().unwrap()).unwrap();
        assert_eq!(found, state());
        assert!(said.contains("GIVEN=yes") && !said.contains("CARGO"), "{said}");
        assert!(said.ends_with("hook\n"), "{said}");
    }

    #[test]
    fn a_hook_that_says_nothing_of_its_environment_gets_the_default() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("said");
        let mut hook = shell(&format!("env > {}", file.display()), None);
        hook.environment = None;
        run(&hook, &state(), DefaultEnvironment::Inherited).unwrap();
        assert!(std::fs::read_to_string(&file).unwrap().contains("CARGO"));
        let these = [c"A=b=c".to_owned(), c"no variable".to_owned()];
        run(&hook, &state(), DefaultEnvironment::These(&these)).unwrap();
        let said = std::fs::read_to_string(&file).unwrap();
        assert!(said.contains("A=b=c") && !said.contains("CARGO"), "{said}");
    }

    #[test]
    fn a_failing_hook_is_quoted() {
        let error = run(
            &shell("echo it rains >&2; exit 3", None),
            &state(),
            DefaultEnvironment::Inherited,
        )
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "hooks.prestart[0]: /bin/sh ended with code 3, saying: it rains"
        );
    }

    #[test]
    fn a_hook_that_hangs_is_killed_with_what_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let began = Instant::now();
        let script = format!("sleep 60 & echo $! > {}; wait", file.display());
        let error = run(&shell(&script, Some(1)), &state(), DefaultEnvironment::Inherited).unwrap_err();
        assert!(error.to_string().contains("within its timeout of 1 s"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(20));
        let pid: i32 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
        let gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            stat.map_or(true, |stat| stat.contains(") Z"))
        };
        while !gone() {
            assert!(began.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_hook_that_cannot_be_executed_is_named() {
        let mut hook = shell("", None);
        hook.path = "/nowhere".into();
        let error = run(&hook, &state(), DefaultEnvironment::Inherited).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("hooks.prestart[0]: cannot execute /nowhere"),
            "{error}"
        );
    }

    #[test]
    fn after_a_failure_the_rest_is_run_only_where_that_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ran");
        let hooks = [
            shell("exit 1", None),
            shell(&format!("echo >> {}", file.display()), None),
        ];
        assert!(run_all(&hooks, &state(), DefaultEnvironment::Inherited).is_err());
        assert!(!file.exists());
        assert_eq!(run_each(&hooks, &state()).len(), 1);
        assert!(file.exists());
    }
}
