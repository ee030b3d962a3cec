//! `Exec`: one more process for a container, which `Start` will run.

use std::collections::BTreeMap;

use oci_spec::runtime::Process;
use protocol::task::{ExecRequest, ExecResponse};
use tokio::sync::watch;
use ttrpc::{Code, Result};

use super::joined_streams::{ClaimedStreams, StreamNames};
use super::process::{EndReceiver, EndSender, KeptProcess};
use super::{TaskService, failed_because, name_of, refuse};

/// The most processes that a container can be lent, those that have ended and were not deleted included.
const MOST_EXECS: usize = 256;

/// The longest id, in bytes.
const LONGEST_EXEC_ID: usize = 128;

/// The longest description of a process, in bytes. Linux passes a program at most 2 MiB of arguments and environment
/// (execve(2), with the usual 8 MiB of stack).
const LARGEST_PROCESS: usize = 4 << 20;

/// A process that was added to a container.
pub(super) struct KeptExec {
    pub(super) end: EndReceiver,
    pub(super) stage: Stage,
}

/// How far it has come.
pub(super) enum Stage {
    /// `Start` will run it.
    Added(Box<AddedProcess>),
    /// It runs, or has ended.
    Started(KeptProcess),
    /// It could not be run.
    Failed,
}

/// What is kept until then.
pub(super) struct AddedProcess {
    pub(super) process: Process,
    pub(super) streams: ClaimedStreams,
    pub(super) end: EndSender,
}

impl KeptExec {
    /// The process, if it is one already.
    pub(super) fn started(&self) -> Option<&KeptProcess> {
        match &self.stage {
            Stage::Started(process) => Some(process),
            Stage::Added(_) | Stage::Failed => None,
        }
    }

    /// Whether it runs now.
    pub(super) fn is_running(&self) -> bool {
        self.started().is_some_and(|process| !process.has_ended())
    }

    /// Whether it will never run again.
    fn is_over(&self) -> bool {
        !matches!(self.stage, Stage::Added(_)) && !self.is_running()
    }
}

pub(super) async fn exec(service: &TaskService, request: ExecRequest) -> Result<ExecResponse> {
    let (id, exec_id) = (&request.id, &request.exec_id);
    check_id(exec_id)?;
    let name = name_of(id, exec_id);
    if request.process.len() > LARGEST_PROCESS {
        let message = format!(
            "{name} is described in {} bytes, more than the {LARGEST_PROCESS} allowed",
            request.process.len()
        );
        return Err(refuse(Code::INVALID_ARGUMENT, message));
    }
    let process = serde_json::from_slice(&request.process).map_err(|error| {
        failed_because(
            Code::INVALID_ARGUMENT,
            &format!("reading the description of {name}"),
            error,
        )
    })?;
    service.with_container(id, |kept| make_room(&mut kept.execs, &name, exec_id))?;
    let names = StreamNames {
        stdin: &request.stdin,
        stdout: &request.stdout,
        stderr: &request.stderr,
        leash: &request.leash,
    };
    let streams = ClaimedStreams::claim(&service.streams, names, &name).await?;
    let (sender, receiver) = watch::channel(None);
    let added = AddedProcess {
        process,
        streams,
        end: sender,
    };
    service.with_container(id, |kept| {
        // Another call may have come in between.
        make_room(&mut kept.execs, &name, exec_id)?;
        let exec = KeptExec {
            end: receiver,
            stage: Stage::Added(Box::new(added)),
        };
        kept.execs.insert(exec_id.clone(), exec);
        Ok(ExecResponse::default())
    })
}

fn check_id(exec_id: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    if (1..=LONGEST_EXEC_ID).contains(&exec_id.len()) && exec_id.bytes().all(allowed) {
        return Ok(());
    }
    let shown: String = exec_id.escape_default().take(LONGEST_EXEC_ID).collect();
    let message = format!(
        "`{shown}` cannot be the id of a process: use 1 to {LONGEST_EXEC_ID} letters, digits, `_`, `+`, `-` and `.`"
    );
    Err(refuse(Code::INVALID_ARGUMENT, message))
}

/// Refuses an id that is taken, and one process too many. Those that are over make room: a host that went before it
/// could delete what it had added must not keep others from it.
fn make_room(execs: &mut BTreeMap<String, KeptExec>, name: &str, exec_id: &str) -> Result<()> {
    if execs.contains_key(exec_id) {
        return Err(refuse(Code::ALREADY_EXISTS, format!("{name} exists already")));
    }
    if execs.len() >= MOST_EXECS {
        execs.retain(|_, exec| !exec.is_over());
    }
    if execs.len() >= MOST_EXECS {
        let message = format!("{name} would be one more than the {MOST_EXECS} that a container can be lent");
        return Err(refuse(Code::RESOURCE_EXHAUSTED, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over() -> KeptExec {
        KeptExec {
            end: watch::channel(None).1,
            stage: Stage::Failed,
        }
    }

    #[test]
    fn ids_are_words_of_bounded_length() {
        for id in ["a", "exec-1_b+c.d", &"x".repeat(LONGEST_EXEC_ID)] {
            assert!(check_id(id).is_ok(), "{id}");
        }
        for id in ["", "a b", "a/b", "\u{1b}[m", &"x".repeat(LONGEST_EXEC_ID + 1)] {
            assert!(check_id(id).is_err(), "{id:?} was accepted");
        }
    }

    #[test]
    fn an_id_is_taken_once() {
        let mut execs = BTreeMap::from([("a".to_owned(), over())]);

        let error = make_room(&mut execs, "process a of container c", "a").unwrap_err();

        assert!(
            error
                .to_string()
                .contains("process a of container c exists already"),
            "{error}"
        );
        make_room(&mut execs, "process b of container c", "b").unwrap();
    }

    #[test]
    fn what_is_over_makes_room() {
        let mut execs: BTreeMap<_, _> = (0..MOST_EXECS)
            .map(|number| (number.to_string(), over()))
            .collect();

        make_room(&mut execs, "process a of container c", "a").unwrap();

        assert!(execs.is_empty());
    }
}
