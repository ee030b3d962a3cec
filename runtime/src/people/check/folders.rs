//! Whether the folders can be written, and what they hold.

use std::path::Path;

use rustix::fs::{Access, access};

use super::finding::{Finding, causes};
use crate::configuration::MicroVmConfiguration;
use crate::isolation::Isolation;
use crate::micro_vm::template::TemplatePolicy;
use crate::micro_vm::template::store::TemplateStore;

pub(super) fn images(root: &Path) -> Finding {
    writable("images", root, "--root")
}

pub(super) fn state(run_root: &Path) -> Finding {
    writable("state", run_root, "--run-root")
}

pub(super) fn templates(configuration: &MicroVmConfiguration) -> Finding {
    const CHECK: &str = "templates";
    let folder = &configuration.templates;
    let finding = match configuration.template {
        TemplatePolicy::Never => Finding::ok(CHECK, "none are used: microvm.template is \"never\""),
        policy => match writable(CHECK, folder, "--templates") {
            finding if finding.advice.is_none() => held(CHECK, configuration),
            // Machines boot where they cannot be cloned.
            finding if policy == TemplatePolicy::Auto => finding.at_most_a_warning(),
            finding => finding,
        },
    };
    finding.only_for(Isolation::MicroVm)
}

fn held(check: &'static str, configuration: &MicroVmConfiguration) -> Finding {
    const MIB: u64 = 1 << 20;
    let limit = configuration.templates_limit;
    let folder = &configuration.templates;
    match TemplateStore::new(folder.clone(), limit).list() {
        Ok(templates) => {
            let used: u64 = templates.iter().map(|summary| summary.bytes).sum();
            let detail = format!(
                "{}: {} templates, {} of {} MiB",
                folder.display(),
                templates.len(),
                used.div_ceil(MIB),
                limit / MIB
            );
            if used > limit {
                let advice = "raise microvm.templates_limit_mib, or run `bulkhead template prune`";
                Finding::warning(check, detail, advice)
            } else {
                Finding::ok(check, detail)
            }
        }
        Err(error) => Finding::warning(
            check,
            causes(error),
            "remove what is no template from that folder",
        ),
    }
}

/// A folder that is there, or can be made.
fn writable(check: &'static str, folder: &Path, option: &str) -> Finding {
    let there = folder.ancestors().find(|path| path.symlink_metadata().is_ok());
    let there = there.unwrap_or(Path::new("/"));
    let refused = if there.is_dir() {
        access(there, Access::WRITE_OK | Access::EXEC_OK)
            .err()
            .map(|errno| errno.to_string())
    } else {
        Some("it is no folder".to_owned())
    };
    match refused {
        None if there == folder => Finding::ok(check, folder.display().to_string()),
        None => Finding::ok(
            check,
            format!("{}, which is made when it is needed", folder.display()),
        ),
        Some(reason) => Finding::missing(
            check,
            format!(
                "{} cannot be written: {}: {reason}",
                folder.display(),
                there.display()
            ),
            format!("make it writable, or name another folder by {option}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::*;

    fn of(folder: &Path, template: TemplatePolicy) -> Finding {
        templates(&MicroVmConfiguration {
            templates: folder.to_owned(),
            template,
            templates_limit: 5 << 20,
            ..MicroVmConfiguration::for_tests()
        })
    }

    #[test]
    fn a_folder_that_can_be_made_is_enough() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(images(folder.path()).status, Status::Ok);
        let nested = images(&folder.path().join("a/b"));
        assert!(
            nested.status == Status::Ok && nested.detail.contains("made"),
            "{nested:?}"
        );
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let finding = state(&file.path().join("run"));
        assert_eq!(finding.status, Status::Missing);
        assert!(finding.detail.contains("no folder"), "{}", finding.detail);
        assert!(finding.advice.unwrap().contains("--run-root"));
    }

    #[test]
    fn templates_are_missed_as_much_as_they_are_needed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (policy, status) in [
            (TemplatePolicy::Never, Status::Ok),
            (TemplatePolicy::Auto, Status::Warning),
            (TemplatePolicy::Require, Status::Missing),
        ] {
            assert_eq!(of(file.path(), policy).status, status, "{policy:?}");
        }
    }

    #[test]
    fn what_templates_take_is_told_with_their_limit() {
        let folder = tempfile::tempdir().unwrap();
        let finding = of(folder.path(), TemplatePolicy::Auto);
        assert!(
            finding.detail.ends_with("0 templates, 0 of 5 MiB"),
            "{}",
            finding.detail
        );
    }
}
