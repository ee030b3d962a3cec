//! `bulkhead check`: whether microVMs and containers can be had here. Each check is a function that gives a finding.

mod finding;
mod folders;
mod kernel;
mod machine;
mod parts;
mod resources;

use comfy_table::{Table, presets};
use serde::Serialize;

use self::finding::Finding;
use super::Format;
use crate::configuration::Configuration;
use crate::isolation::{ChosenBy, Isolation};

/// What there is not all of.
const NOT_USABLE: u8 = 1;

/// Options of `check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How to write the answer: text or json
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        hide_possible_values = true
    )]
    format: Format,
}

/// The whole answer.
#[derive(Debug, Serialize)]
struct Report {
    /// The wall of containers that do not choose one.
    isolation: Isolation,
    chosen_by: ChosenBy,
    /// Whether all that this wall needs is there.
    usable: bool,
    findings: Vec<Finding>,
}

/// Looks at everything, and fails where something is missing that the default wall needs.
pub(crate) fn check(configuration: &Configuration, arguments: &Arguments) -> anyhow::Result<u8> {
    let (isolation, chosen_by) = Isolation::choose_and_tell(None, None, configuration.isolation);
    let report = Report::of(isolation, chosen_by, findings(configuration));
    match arguments.format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Format::Text => println!("{}", text(&report)),
    }
    Ok(if report.usable { 0 } else { NOT_USABLE })
}

fn findings(configuration: &Configuration) -> Vec<Finding> {
    let microvm = &configuration.microvm;
    let mut findings = vec![
        kernel::release(),
        kernel::privilege(),
        kernel::cgroups(),
        kernel::namespaces(),
        kernel::user_namespaces(),
        kernel::mounts(),
        kernel::overlay(),
        kernel::pidfd(),
        kernel::seccomp(),
        kernel::pod_network(),
    ];
    findings.extend(machine::kvm(&microvm.kvm));
    findings.extend([
        parts::vmm(&microvm.vmm),
        parts::kernel(&microvm.kernel),
        parts::initramfs(&microvm.initramfs),
        parts::attendant(),
        folders::images(&configuration.root),
        folders::state(&configuration.run_root),
        folders::templates(microvm),
        resources::descriptors(),
        resources::locked_memory(),
        resources::memory(),
    ]);
    findings
}

impl Report {
    fn of(isolation: Isolation, chosen_by: ChosenBy, findings: Vec<Finding>) -> Self {
        Self {
            isolation,
            chosen_by,
            usable: !findings.iter().any(|finding| finding.forbids(isolation)),
            findings,
        }
    }
}

fn text(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for finding in &report.findings {
        table.add_row([finding.status.as_str(), finding.check, &finding.detail]);
        if let Some(advice) = &finding.advice {
            table.add_row(["", "", &format!("-> {advice}")]);
        }
    }
    let wall = report.isolation;
    let default = match report.chosen_by {
        ChosenBy::Default => "the default",
        ChosenBy::Flag | ChosenBy::Annotation | ChosenBy::Configuration => "which is configured",
    };
    let verdict = if report.usable {
        format!("Containers can be had behind {wall}, {default}.")
    } else {
        let missing = report.findings.iter().filter(|finding| finding.forbids(wall));
        let names: Vec<&str> = missing.map(|finding| finding.check).collect();
        format!(
            "Containers cannot be had behind {wall}, {default}: {}.",
            names.join(", ")
        )
    };
    format!("{table}\n\n{verdict}")
}

#[cfg(test)]
mod tests {
    use super::finding::Status;
    use super::*;

    fn report(findings: Vec<Finding>) -> Report {
        Report::of(Isolation::MicroVm, ChosenBy::Default, findings)
    }

    #[test]
    fn one_thing_that_is_missing_is_enough_and_is_named() {
        let missing = Finding::missing("a part", "it is gone", "make it").only_for(Isolation::MicroVm);
        let report = report(vec![Finding::ok("another", ""), missing]);
        assert!(!report.usable);
        let text = text(&report);
        assert!(text.contains("-> make it"), "{text}");
        assert!(text.ends_with("behind microvm, the default: a part."), "{text}");
    }

    #[test]
    fn what_the_other_wall_lacks_is_shown_and_does_no_harm() {
        let missing = Finding::missing("a part", "it is gone", "make it").only_for(Isolation::SharedKernel);
        let report = report(vec![missing]);
        assert!(report.usable);
        assert!(text(&report).contains(Status::Missing.as_str()));
    }
}
