//! The configuration file, and where things are when it does not say.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::isolation::Isolation;
use crate::micro_vm::template::TemplatePolicy;

/// Read when no other file is named; it need not exist.
pub const DEFAULT_FILE: &str = "/etc/bulkhead/config.toml";

/// Enough for a guest whose kernel is emulated on a host that is busy; on hardware a boot takes a fraction of a second.
const DEFAULT_BOOT_DEADLINE_SECONDS: u64 = 120;

/// Some twenty sizes of machines.
const DEFAULT_TEMPLATES_LIMIT_MIB: u64 = 1024;

/// Folders named on the command line, which come before those of the file.
#[derive(Debug, Default, clap::Args)]
pub struct Folders {
    /// Folder of images and writable layers [default: /var/lib/bulkhead]
    #[arg(long, global = true, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Folder of the state of what runs [default: /run/bulkhead]
    #[arg(long, global = true, value_name = "DIR")]
    pub run_root: Option<PathBuf>,
    /// Folder of the templates that microVMs are cloned from [default: templates in the folder of images]
    #[arg(long, global = true, value_name = "DIR")]
    pub templates: Option<PathBuf>,
}

/// The file's keys, all optional.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    isolation: Option<Isolation>,
    root: Option<PathBuf>,
    run_root: Option<PathBuf>,
    #[serde(default)]
    microvm: MicroVmSection,
}

/// The `[microvm]` table.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct MicroVmSection {
    kvm: Option<PathBuf>,
    vmm: Option<PathBuf>,
    kernel: Option<PathBuf>,
    initramfs: Option<PathBuf>,
    boot_deadline_seconds: Option<u64>,
    template: Option<TemplatePolicy>,
    templates: Option<PathBuf>,
    templates_limit_mib: Option<u64>,
    metrics: Option<PathBuf>,
}

/// What holds for one invocation.
#[derive(Debug, Clone)]
pub struct Configuration {
    /// The file it was read from, if there was one.
    pub file: Option<PathBuf>,
    /// The wall of pods that do not choose one.
    pub isolation: Option<Isolation>,
    /// Images and writable layers.
    pub root: PathBuf,
    /// The state of what runs; gone after a reboot.
    pub run_root: PathBuf,
    /// How microVMs are made.
    pub microvm: MicroVmConfiguration,
}

/// The parts of a microVM and how long they may take.
#[derive(Debug, Clone)]
pub struct MicroVmConfiguration {
    /// The KVM device.
    pub kvm: PathBuf,
    /// The `bulkhead-vmm` binary.
    pub vmm: PathBuf,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// The guest's initramfs, which holds the agent.
    pub initramfs: PathBuf,
    /// From the start of the VMM to the agent's first word.
    pub boot_deadline: Duration,
    /// Whether machines are cloned from templates.
    pub template: TemplatePolicy,
    /// Where templates are kept.
    pub templates: PathBuf,
    /// What templates may take on disk together, in bytes.
    pub templates_limit: u64,
    /// Where starts are counted; nowhere, if it is not said.
    pub metrics: Option<PathBuf>,
}

/// Why the configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// The file cannot be read.
    #[error("reading configuration file {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file has an unknown key or a value of the wrong kind.
    #[error("parsing configuration file {}", .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// The folder we are in is not to be found, and a folder was named from there.
    #[error("finding the folder that relative paths begin at")]
    Folder(#[source] io::Error),
    /// Our own binary has no folder to find the others from.
    #[error("finding the folder of the bulkhead binary")]
    OwnPath(#[source] io::Error),
}

impl Configuration {
    /// Reads `path`, or the default file where there is one. What it does not say is found beside our own binary:
    /// `bulkhead-vmm` in its folder, kernel and initramfs in `../share/bulkhead`.
    ///
    /// # Errors
    /// When the file named cannot be read, or a file has an unknown key or a wrong value.
    pub fn load(path: Option<&Path>, folders: &Folders) -> Result<Self, ConfigurationError> {
        let path = path.or_else(|| Some(Path::new(DEFAULT_FILE)).filter(|path| path.exists()));
        let file = path.map(read).transpose()?.unwrap_or_default();
        let own = container::own_program_path().map_err(ConfigurationError::OwnPath)?;
        let binaries = own.parent().unwrap_or(Path::new("/"));
        let share = binaries.parent().unwrap_or(Path::new("/")).join("share/bulkhead");
        let absolute = |folder: Option<&PathBuf>| {
            let absolute = folder.map(std::path::absolute).transpose();
            absolute.map_err(ConfigurationError::Folder)
        };
        let named = absolute(folders.root.as_ref())?;
        let root = named.or(file.root).unwrap_or_else(|| "/var/lib/bulkhead".into());
        let run_root = absolute(folders.run_root.as_ref())?.or(file.run_root);
        let templates = absolute(folders.templates.as_ref())?.or(file.microvm.templates);
        let templates_limit_mib = file
            .microvm
            .templates_limit_mib
            .unwrap_or(DEFAULT_TEMPLATES_LIMIT_MIB);
        Ok(Self {
            file: path.map(Path::to_owned),
            isolation: file.isolation,
            run_root: run_root.unwrap_or_else(|| "/run/bulkhead".into()),
            microvm: MicroVmConfiguration {
                kvm: file.microvm.kvm.unwrap_or_else(|| "/dev/kvm".into()),
                vmm: file.microvm.vmm.unwrap_or_else(|| binaries.join("bulkhead-vmm")),
                kernel: file.microvm.kernel.unwrap_or_else(|| share.join("vmlinux")),
                initramfs: file
                    .microvm
                    .initramfs
                    .unwrap_or_else(|| share.join("initramfs.cpio")),
                boot_deadline: Duration::from_secs(
                    file.microvm
                        .boot_deadline_seconds
                        .unwrap_or(DEFAULT_BOOT_DEADLINE_SECONDS),
                ),
                template: file.microvm.template.unwrap_or_default(),
                templates: templates.unwrap_or_else(|| root.join("templates")),
                templates_limit: templates_limit_mib.saturating_mul(1 << 20),
                metrics: file.microvm.metrics,
            },
            root,
        })
    }
}

#[cfg(test)]
impl MicroVmConfiguration {
    /// One whose files are nowhere.
    pub(crate) fn for_tests() -> Self {
        let nowhere = Path::new("/nonexistent");
        Self {
            kvm: nowhere.into(),
            vmm: nowhere.into(),
            kernel: nowhere.into(),
            initramfs: nowhere.into(),
            boot_deadline: Duration::ZERO,
            template: TemplatePolicy::Never,
            templates: nowhere.into(),
            templates_limit: 0,
            metrics: None,
        }
    }
}

fn read(path: &Path) -> Result<File, ConfigurationError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigurationError::Read {
        path: path.to_owned(),
        source,
    })?;
    toml::from_str(&text).map_err(|source| ConfigurationError::Parse {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Configuration, ConfigurationError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Configuration::load(Some(file.path()), &Folders::default())
    }

    #[test]
    fn an_empty_file_leaves_the_defaults() {
        let configuration = load("").unwrap();
        assert_eq!(configuration.isolation, None);
        assert_eq!(configuration.run_root, Path::new("/run/bulkhead"));
        assert_eq!(
            configuration.microvm.boot_deadline,
            Duration::from_secs(DEFAULT_BOOT_DEADLINE_SECONDS)
        );
    }

    #[test]
    fn every_key_is_taken() {
        let configuration =
            load("isolation = \"shared-kernel\"\nroot = \"/a\"\n[microvm]\nkernel = \"/k\"\nboot_deadline_seconds = 3\ntemplate = \"require\"\ntemplates_limit_mib = 2\nmetrics = \"/m\"")
                .unwrap();
        assert_eq!(configuration.microvm.template, TemplatePolicy::Require);
        assert_eq!(configuration.microvm.templates, Path::new("/a/templates"));
        assert_eq!(configuration.microvm.templates_limit, 2 << 20);
        assert_eq!(configuration.microvm.metrics.as_deref(), Some(Path::new("/m")));
        assert_eq!(configuration.isolation, Some(Isolation::SharedKernel));
        assert_eq!(configuration.root, Path::new("/a"));
        assert_eq!(configuration.microvm.kernel, Path::new("/k"));
        assert_eq!(configuration.microvm.boot_deadline, Duration::from_secs(3));
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it() {
        let error = load("isolatoin = \"microvm\"").unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("isolatoin"), "{source}");
    }

    #[test]
    fn an_unknown_wall_is_an_error() {
        assert!(load("isolation = \"jail\"").is_err());
    }

    #[test]
    fn a_missing_file_that_was_named_is_an_error() {
        let error =
            Configuration::load(Some(Path::new("/nonexistent.toml")), &Folders::default()).unwrap_err();
        assert!(error.to_string().contains("/nonexistent.toml"), "{error}");
    }
}
