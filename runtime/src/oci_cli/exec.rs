//! `bulkhead-oci exec`

use std::path::{Path, PathBuf};

use container::{ContainerId, ExecOptions, Stdio};
use oci_spec::runtime::{Capability, LinuxCapabilities, Process, User};

use super::foreground::{Foreground, take_our_size};
use super::log::Log;
use super::{GlobalOptions, OciError, descriptors, load};

#[derive(Debug, clap::Args)]
pub(super) struct ExecArguments {
    /// The container
    #[arg(value_name = "ID")]
    pub(super) id: ContainerId,
    /// The program and its arguments
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// A file with the process as in config.json, in place of a command
    #[arg(short, long, value_name = "FILE", conflicts_with = "command")]
    process: Option<PathBuf>,
    /// Give the process a terminal
    #[arg(short, long)]
    tty: bool,
    /// The folder it starts in
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// A variable of its environment, NAME=VALUE
    #[arg(short, long, value_name = "VARIABLE")]
    env: Vec<String>,
    /// The ids it has, UID or UID:GID
    #[arg(short, long, value_name = "IDS", value_parser = parse_user)]
    user: Option<(u32, Option<u32>)>,
    /// A group it is in besides
    #[arg(short = 'g', long, value_name = "GID")]
    additional_gids: Vec<u32>,
    /// A capability it has besides those of the container's process
    #[arg(short, long, value_name = "CAPABILITY")]
    cap: Vec<String>,
    /// Take the means to gain privileges from it
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    no_new_privs: Option<bool>,
    /// Do not wait for its end
    #[arg(short, long)]
    pub(super) detach: bool,
    /// A file that gets its pid
    #[arg(long, value_name = "FILE")]
    pub(super) pid_file: Option<PathBuf>,
    /// A socket that gets its terminal
    #[arg(long, value_name = "SOCKET")]
    pub(super) console_socket: Option<PathBuf>,
    /// Let it keep this many of the caller's descriptors after the standard streams; those of LISTEN_FDS come first
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub(super) preserve_fds: u32,
    /// A cgroup below the container's that it is put into, for all controllers or some: [CONTROLLER,...:]PATH
    #[arg(long, value_name = "CGROUP")]
    cgroup: Vec<String>,
    /// Join a paused container too, and wait until it goes on
    #[arg(long)]
    ignore_paused: bool,
    /// The AppArmor profile that confines it
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// The SELinux label that it has
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
}

fn parse_user(text: &str) -> Result<(u32, Option<u32>), String> {
    let number = |text: &str| {
        text.parse()
            .map_err(|_| format!("{text:?} is not a number: give UID or UID:GID"))
    };
    match text.split_once(':') {
        Some((uid, gid)) => Ok((number(uid)?, Some(number(gid)?))),
        None => Ok((number(text)?, None)),
    }
}

impl ExecArguments {
    /// The exit code of the process, or 0 for one that was detached.
    pub(super) fn run(&self, global: &GlobalOptions, log: &Log) -> Result<i32, OciError> {
        let container = load(global, &self.id)?;
        let mut process = self.process(container.configured_process()?, log)?;
        let foreground = if self.detach {
            None
        } else {
            Some(Foreground::begin()?)
        };
        let attaches = !self.detach && self.console_socket.is_none();
        let stdio = if process.terminal() == Some(true) && attaches {
            take_our_size(&mut process);
            Stdio::Terminal
        } else {
            Stdio::Inherit
        };
        let options = ExecOptions::new(&process)
            .stdio(stdio)
            .pid_file(self.pid_file.as_deref())
            .console_socket(self.console_socket.as_deref())
            .preserved_descriptors(descriptors::preserved(self.preserve_fds))
            .cgroups(&self.cgroup)
            .although_paused(self.ignore_paused);
        let mut executed = container.exec(options)?;
        for warning in executed.warnings() {
            log.warning(warning);
        }
        log.debug(|| format!("process {} runs in container {}", executed.pid(), self.id));
        if let Some(cpus) = executed.initial_affinity() {
            log.debug(|| format!("process {} began with CPU affinity: {cpus}", executed.pid()));
        }
        let terminal = executed.take_terminal();
        match foreground {
            Some(foreground) => foreground.wait(executed.pidfd(), terminal),
            None => Ok(0),
        }
    }

    /// Refuses what cannot be asked of a guest.
    pub(super) fn check_for_guest(&self) -> Result<(), OciError> {
        let options = [
            (!self.cgroup.is_empty(), "--cgroup"),
            (self.ignore_paused, "--ignore-paused"),
        ];
        match options.iter().find(|(is_given, _)| *is_given) {
            Some((_, option)) => Err(OciError::ExecInGuest { option }),
            None => Ok(()),
        }
    }

    /// The process to run: that of the file, or that of the container changed by the options. What is left out of the
    /// file is a warning.
    pub(super) fn process(&self, configured: Process, log: &Log) -> Result<Process, OciError> {
        let mut process = match &self.process {
            Some(path) => read_process(path, log)?,
            None => {
                let mut process = configured;
                process.set_args(Some(self.command.clone()));
                process.set_terminal(Some(self.tty));
                process
            }
        };
        if self.process.is_none() && self.command.is_empty() {
            return Err(OciError::NoCommand);
        }
        if self.tty {
            process.set_terminal(Some(true));
        }
        if let Some(cwd) = &self.cwd {
            process.set_cwd(cwd.clone());
        }
        if !self.env.is_empty() {
            let environment = process.env().as_deref().unwrap_or_default();
            process.set_env(Some(overridden(environment, &self.env)));
        }
        if let Some(no_new_privs) = self.no_new_privs {
            process.set_no_new_privileges(Some(no_new_privs));
        }
        if let Some(profile) = &self.apparmor {
            process.set_apparmor_profile(Some(profile.clone()));
        }
        if let Some(label) = &self.process_label {
            process.set_selinux_label(Some(label.clone()));
        }
        self.change_user(&mut process);
        self.add_capabilities(&mut process)?;
        descriptors::tell_listeners(&mut process);
        Ok(process)
    }

    fn change_user(&self, process: &mut Process) {
        if let Some((uid, gid)) = self.user {
            let mut user = User::default();
            user.set_uid(uid).set_gid(gid.unwrap_or(process.user().gid()));
            user.set_umask(process.user().umask());
            process.set_user(user);
        }
        if !self.additional_gids.is_empty() {
            let mut user = process.user().clone();
            let mut groups = user.additional_gids().clone().unwrap_or_default();
            groups.extend(&self.additional_gids);
            user.set_additional_gids(Some(groups));
            process.set_user(user);
        }
    }

    /// Not to the inheritable set: what a program of the image inherits there it could pass on to others by its file's
    /// attributes (CVE-2022-29162).
    fn add_capabilities(&self, process: &mut Process) -> Result<(), OciError> {
        if self.cap.is_empty() {
            return Ok(());
        }
        let more = self
            .cap
            .iter()
            .map(|name| parse_capability(name))
            .collect::<Result<Vec<Capability>, _>>()?;
        let mut sets: LinuxCapabilities = process.capabilities().clone().unwrap_or_default();
        let extended = |set: &Option<std::collections::HashSet<Capability>>| {
            let mut set = set.clone().unwrap_or_default();
            set.extend(&more);
            Some(set)
        };
        sets.set_bounding(extended(sets.bounding()));
        sets.set_effective(extended(sets.effective()));
        sets.set_permitted(extended(sets.permitted()));
        process.set_capabilities(Some(sets));
        Ok(())
    }
}

/// The environment, in which `more` takes the place of what has the same name.
fn overridden(environment: &[String], more: &[String]) -> Vec<String> {
    let name = |variable: &str| {
        variable
            .split_once('=')
            .map_or(variable, |(name, _)| name)
            .to_owned()
    };
    let kept = environment
        .iter()
        .filter(|variable| !more.iter().any(|other| name(other) == name(variable)));
    kept.chain(more).cloned().collect()
}

fn parse_capability(name: &str) -> Result<Capability, OciError> {
    serde_json::from_value(serde_json::Value::from(name)).map_err(|source| OciError::Capability {
        name: name.to_owned(),
        source,
    })
}

fn read_process(path: &Path, log: &Log) -> Result<Process, OciError> {
    let text = std::fs::read(path).map_err(|source| OciError::ReadProcess {
        path: path.to_owned(),
        source,
    })?;
    let (process, warnings) = container::read_process(&text).map_err(|misfit| OciError::ParseProcess {
        path: path.to_owned(),
        field: misfit.field,
        source: misfit.source,
    })?;
    for warning in &warnings {
        log.warning(warning);
    }
    Ok(process)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_of_the_command_line_takes_the_place_of_the_configured_one() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let environment = words(&["PATH=/bin", "A=1", "AB=2"]);
        let more = words(&["A=3", "C=x=y"]);
        assert_eq!(
            overridden(&environment, &more),
            words(&["PATH=/bin", "AB=2", "A=3", "C=x=y"])
        );
    }
}
