//! The container's first process: what it runs, as whom, with what.

use std::collections::HashSet;
use std::path::PathBuf;

use oci_spec::image::{Config, ImageConfiguration};
use oci_spec::runtime::{BoxBuilder as TerminalSizeBuilder, Capability, LinuxCapabilities, Process, User};

use super::user::ResolvedUser;
use super::{BundleError, BundleOptions, InvalidValue, Variable};

/// Where programs are looked for if the image does not say: Docker's default.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a root process in a container may do, and what a setuid program may gain: Docker's default set.
const CAPABILITIES: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

pub(super) fn process(
    image: &ImageConfiguration,
    user: &ResolvedUser,
    options: &BundleOptions,
) -> Result<Process, BundleError> {
    let nothing = Config::default();
    let config = image.config().as_ref().unwrap_or(&nothing);
    let mut spec_user = User::default();
    spec_user
        .set_uid(user.uid)
        .set_gid(user.gid)
        .set_additional_gids(Some(user.groups.clone()));
    let mut process = Process::default();
    process
        .set_terminal(Some(options.tty))
        .set_user(spec_user)
        .set_args(Some(arguments(config, options)?))
        .set_env(Some(environment(config, user, options)?))
        .set_cwd(working_directory(config, options)?)
        .set_capabilities(Some(capabilities(user.uid)))
        .set_rlimits(None)
        .set_no_new_privileges(Some(false));
    if let Some((rows, columns)) = options.terminal_size.filter(|_| options.tty) {
        // The type has no setters, and its builder fails only where a field is missing.
        process.set_console_size(
            TerminalSizeBuilder::default()
                .height(rows)
                .width(columns)
                .build()
                .ok(),
        );
    }
    Ok(process)
}

/// Entry point, then command: the user's words replace the image's (image-spec, `config.md`, "Entrypoint", "Cmd").
fn arguments(config: &Config, options: &BundleOptions) -> Result<Vec<String>, BundleError> {
    let words = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let mut arguments = options
        .entrypoint
        .clone()
        .unwrap_or_else(|| words(config.entrypoint()));
    if !options.command.is_empty() {
        arguments.extend(options.command.iter().cloned());
    } else if options.entrypoint.is_none() {
        arguments.extend(words(config.cmd()));
    }
    if arguments.is_empty() {
        return Err(BundleError::NoCommand);
    }
    arguments
        .into_iter()
        .map(|argument| without_nul("argument", argument))
        .collect()
}

/// The image's variables, then the user's over them, then those every program expects.
fn environment(
    config: &Config,
    user: &ResolvedUser,
    options: &BundleOptions,
) -> Result<Vec<String>, BundleError> {
    let mut variables: Vec<Variable> = Vec::new();
    let image = config.env().iter().flatten().map(|text| {
        text.parse()
            .map_err(|source: InvalidValue| BundleError::ImageValue { field: "Env", source })
    });
    for variable in image.chain(options.env.iter().cloned().map(Ok)) {
        let variable: Variable = variable?;
        match variables.iter_mut().find(|known| known.name == variable.name) {
            Some(known) => *known = variable,
            None => variables.push(variable),
        }
    }
    let expected = [
        ("PATH", PATH),
        ("HOSTNAME", &options.hostname),
        ("HOME", &user.home),
    ];
    let terminal = options.tty.then_some(("TERM", "xterm"));
    for (name, value) in expected.into_iter().chain(terminal) {
        if !variables.iter().any(|known| known.name == name) {
            variables.push(Variable {
                name: name.to_owned(),
                value: value.to_owned(),
            });
        }
    }
    variables
        .iter()
        .map(|variable| without_nul("variable", variable.to_string()))
        .collect()
}

/// The user's directory, the image's, or the root; absolute and without `.` and `..`.
fn working_directory(config: &Config, options: &BundleOptions) -> Result<PathBuf, BundleError> {
    let wanted = match (&options.working_directory, config.working_dir().as_deref()) {
        (Some(wanted), _) if !wanted.starts_with('/') => {
            return Err(BundleError::RelativeWorkingDirectory(
                wanted.escape_debug().to_string(),
            ));
        }
        (Some(wanted), _) => wanted,
        // An image's is below the root even if it does not say so, as under Docker.
        (None, Some(wanted)) => wanted,
        (None, None) => "/",
    };
    let mut components: Vec<&str> = Vec::new();
    for component in wanted.split('/') {
        match component {
            "" | "." => {}
            ".." => {
                components.pop();
            }
            name => components.push(name),
        }
    }
    without_nul("working directory", format!("/{}", components.join("/"))).map(PathBuf::from)
}

/// Root holds the set. Another user holds nothing, as after execve(2), but may gain within the set.
fn capabilities(uid: u32) -> LinuxCapabilities {
    let all: HashSet<Capability> = CAPABILITIES.into_iter().collect();
    let held = if uid == 0 { all.clone() } else { HashSet::new() };
    let mut capabilities = LinuxCapabilities::default();
    capabilities
        .set_bounding(Some(all))
        .set_effective(Some(held.clone()))
        .set_permitted(Some(held))
        .set_inheritable(None)
        .set_ambient(None);
    capabilities
}

fn without_nul(what: &'static str, text: String) -> Result<String, BundleError> {
    if text.contains('\0') {
        return Err(BundleError::Nul {
            what,
            value: text.escape_debug().to_string(),
        });
    }
    Ok(text)
}
