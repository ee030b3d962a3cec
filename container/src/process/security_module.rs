//! Labels of the security modules AppArmor and SELinux, which take hold with the execution of the program.

use std::path::Path;

use rustix::io::Errno;

use super::SetUpError;
use crate::kernel::calls::write_label;
use crate::plan::{LabelPlan, SpecError};

/// The profile of what is not confined.
const UNCONFINED: &str = "unconfined";

/// Where the kernel tells which modules it has enabled.
pub(crate) struct SecurityModules<'a> {
    apparmor: &'a Path,
    selinux: &'a Path,
}

impl SecurityModules<'_> {
    pub(crate) fn of_this_kernel() -> SecurityModules<'static> {
        SecurityModules {
            apparmor: Path::new("/sys/module/apparmor/parameters/enabled"),
            selinux: Path::new("/sys/fs/selinux/enforce"),
        }
    }

    /// Refuses labels of a module that is not enabled: they would confine nothing.
    pub(crate) fn check(&self, labels: &LabelPlan, mount_label: Option<&str>) -> Result<(), SpecError> {
        let profile = labels.apparmor.as_deref().filter(|name| *name != UNCONFINED);
        for (field, label, module) in [
            ("process.apparmorProfile", profile, Module::AppArmor),
            ("process.selinuxLabel", labels.selinux.as_deref(), Module::SeLinux),
            ("linux.mountLabel", mount_label, Module::SeLinux),
        ] {
            if let Some(label) = label
                && !self.is_enabled(module)
            {
                let name = module.name();
                let problem =
                    format!("`{label}` cannot be applied: {name} is not enabled in this kernel; remove it");
                return Err(SpecError::invalid(field, problem));
            }
        }
        Ok(())
    }

    fn is_enabled(&self, module: Module) -> bool {
        match module {
            Module::AppArmor => {
                std::fs::read_to_string(self.apparmor).is_ok_and(|enabled| enabled.starts_with('Y'))
            }
            // The file is there, whether or not what the policy forbids is also prevented.
            Module::SeLinux => self.selinux.exists(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Module {
    AppArmor,
    SeLinux,
}

impl Module {
    fn name(self) -> &'static str {
        match self {
            Module::AppArmor => "AppArmor",
            Module::SeLinux => "SELinux",
        }
    }
}

/// Has the next program that this process, or one that it makes from now on, executes confined by the labels.
pub(crate) fn label_the_program(labels: &LabelPlan) -> Result<(), SetUpError> {
    apply(
        labels,
        &SecurityModules::of_this_kernel(),
        |file: &'static str, text: &str| write_label(file, text),
    )
}

fn apply(
    labels: &LabelPlan,
    modules: &SecurityModules<'_>,
    write: impl Fn(&'static str, &str) -> Result<(), Errno>,
) -> Result<(), SetUpError> {
    // What is not confined anyway needs no word, and there may be nobody to say it to.
    let needs_word = |name: &&str| *name != UNCONFINED || modules.is_enabled(Module::AppArmor);
    if let Some(name) = labels.apparmor.as_deref().filter(needs_word) {
        let text = format!("exec {name}");
        // The second is the only module's that there is, or the first of several, and of older kernels (before 5.8).
        let written = match write("self/attr/apparmor/exec", &text) {
            Err(Errno::NOENT) => write("self/attr/exec", &text),
            written => written,
        };
        written.map_err(SetUpError::field(
            "process.apparmorProfile",
            format!("have the program confined by the profile `{name}`: is it loaded?"),
        ))?;
    }
    if let Some(label) = &labels.selinux {
        write("self/attr/exec", label).map_err(SetUpError::field(
            "process.selinuxLabel",
            format!("have the program executed as `{label}`"),
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::fs;

    use super::*;

    fn labels(apparmor: Option<&str>, selinux: Option<&str>) -> LabelPlan {
        LabelPlan {
            apparmor: apparmor.map(str::to_owned),
            selinux: selinux.map(str::to_owned),
        }
    }

    #[test]
    fn labels_of_a_module_that_is_not_enabled_are_refused_by_their_place() {
        let folder = tempfile::tempdir().unwrap();
        let (apparmor, selinux) = (folder.path().join("enabled"), folder.path().join("enforce"));
        let modules = SecurityModules {
            apparmor: &apparmor,
            selinux: &selinux,
        };
        let field = |labels: LabelPlan, mount_label: Option<&str>| {
            let refused = modules.check(&labels, mount_label);
            refused.err().map(|error| error.field().to_owned())
        };
        let refused_now = || {
            [
                field(labels(Some("profile"), None), None),
                field(labels(None, Some("a:b:c:d")), None),
                field(labels(None, None), Some("a:b:c:d")),
                field(labels(Some("unconfined"), None), None),
            ]
            .map(Option::unwrap_or_default)
        };
        let none = [
            "process.apparmorProfile",
            "process.selinuxLabel",
            "linux.mountLabel",
            "",
        ];
        assert_eq!(refused_now(), none);
        fs::write(&apparmor, "N\n").unwrap();
        assert_eq!(refused_now(), none);
        fs::write(&apparmor, "Y\n").unwrap();
        assert_eq!(
            refused_now(),
            ["", "process.selinuxLabel", "linux.mountLabel", ""]
        );
        fs::write(&selinux, "1").unwrap();
        assert_eq!(refused_now(), ["", "", "", ""]);
    }

    #[test]
    fn each_module_is_told_in_its_words_and_by_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let enabled = folder.path().join("enabled");
        let modules = SecurityModules {
            apparmor: &enabled,
            selinux: &enabled,
        };
        let written = |labels: LabelPlan, has_own_file: bool| {
            let written = RefCell::new(Vec::new());
            let applied = apply(&labels, &modules, |file, text| {
                if file.contains("apparmor") && !has_own_file {
                    return Err(Errno::NOENT);
                }
                written.borrow_mut().push(format!("{file}: {text}"));
                Ok(())
            });
            applied.unwrap();
            written.into_inner()
        };
        let profile = || labels(Some("docker-default"), None);
        assert_eq!(
            written(profile(), true),
            ["self/attr/apparmor/exec: exec docker-default"]
        );
        assert_eq!(written(profile(), false), ["self/attr/exec: exec docker-default"]);
        assert_eq!(
            written(labels(None, Some("a:b:c:d")), true),
            ["self/attr/exec: a:b:c:d"]
        );
        let unconfined = || labels(Some("unconfined"), None);
        assert!(written(unconfined(), true).is_empty());
        fs::write(&enabled, "Y\n").unwrap();
        assert_eq!(
            written(unconfined(), true),
            ["self/attr/apparmor/exec: exec unconfined"]
        );
    }

    #[test]
    fn what_a_module_refuses_is_told_by_its_place() {
        for (labels, words) in [
            (
                labels(Some("none"), None),
                ["process.apparmorProfile: ", "`none`"],
            ),
            (labels(None, Some("x")), ["process.selinuxLabel: ", "`x`"]),
        ] {
            let refused = apply(&labels, &SecurityModules::of_this_kernel(), |_, _| {
                Err(Errno::INVAL)
            });
            let message = refused.unwrap_err().to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }
}
