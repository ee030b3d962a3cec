//! Becoming the configured user with the configured capabilities, in the configured folder.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::SetUpError;
use crate::kernel::calls::{
    capabilities, clear_ambient_capability_set, configure_capability_in_ambient_set, fchdir,
    remove_capability_from_bounding_set, set_capabilities, set_dumpable_behavior, set_keep_capabilities,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use crate::plan::{CAPABILITIES, CapabilityPlan, ProcessPlan, UserPlan};
use crate::rootfs::ContainerRoot;

/// Nobody in a namespace that is shared with others may look into this process, which is a copy of the caller, before it
/// has become the program.
pub(crate) fn hide_memory() -> Result<(), SetUpError> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(SetUpError::step("hide the process's memory"))
}

/// Takes the ids that the container's own files have, in the new user namespace.
pub(crate) fn become_root_of_user_namespace() -> Result<(), SetUpError> {
    let root = || -> Result<(), Errno> {
        set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
        set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
    };
    root().map_err(SetUpError::step("become root of the user namespace"))?;
    // A change of user takes it back where fs.suid_dumpable says so.
    hide_memory()
}

/// Makes the working folder where it is missing.
pub(crate) fn make_working_directory(root: &ContainerRoot, path: &Path) -> Result<(), SetUpError> {
    match root.make_folder(path) {
        Ok(_) => Ok(()),
        Err(errno @ (Errno::NOTDIR | Errno::LOOP)) => Err(cannot_open_working_directory(path, errno)),
        Err(errno) => {
            let problem = format!(
                "does not exist and cannot be made: {}",
                std::io::Error::from(errno)
            );
            Err(no_working_directory(path, &problem))
        }
    }
}

/// Opens the working folder inside the root. Holding it open, rather than going there by its path later, is what keeps
/// the process inside: a path such as `/proc/self/fd/7` can lead out through a descriptor of the host (CVE-2024-21626),
/// so magic links are not followed.
pub(crate) fn open_working_directory(root: &ContainerRoot, path: &Path) -> Result<OwnedFd, SetUpError> {
    root.open(path, OFlags::PATH | OFlags::DIRECTORY)
        .map_err(|errno| cannot_open_working_directory(path, errno))
}

fn cannot_open_working_directory(path: &Path, errno: Errno) -> SetUpError {
    let problem = match errno {
        Errno::NOENT => "does not exist",
        Errno::NOTDIR => "is not a folder",
        Errno::LOOP => "leads through a link of the kernel's, or too many links, and is refused",
        errno => &format!("cannot be opened: {}", std::io::Error::from(errno)),
    };
    no_working_directory(path, problem)
}

fn no_working_directory(path: &Path, problem: &str) -> SetUpError {
    SetUpError::WorkingDirectory {
        problem: format!("`{}` {problem}", path.display()),
    }
}

/// Becomes the user, in the folder, with all capabilities still held, though not in effect. Returns those that are to be
/// kept, and what was asked for and cannot be given: the specification wants that to be told and not to fail.
pub(super) fn change(
    process: &ProcessPlan,
    working_directory: OwnedFd,
) -> Result<(CapabilityPlan, Vec<String>), SetUpError> {
    hide_memory()?;
    // As root, because a folder of another user's is often where the program is meant to start.
    let entered = fchdir(&working_directory);
    let held = capabilities(None).map_err(SetUpError::step("read the capabilities"))?;
    let (held, inherited) = (held.permitted.bits(), held.inheritable.bits());
    let (wanted, warnings) = available(process.capabilities, held, inherited);

    drop_from_bounding_set(held, wanted.bounding)?;
    let user = &process.user;
    change_user(user)?;
    if let Err(errno) = entered {
        // Where root is nobody, as on NFS, the user may still be somebody.
        fchdir(&working_directory)
            .map_err(|_| errno)
            .map_err(SetUpError::field("process.cwd", "enter it"))?;
    }
    Ok((wanted, warnings))
}

/// Gives away the capabilities that are not to be kept.
pub(super) fn keep_only(capabilities: &CapabilityPlan, no_new_privileges: bool) -> Result<(), SetUpError> {
    set_capability_sets(capabilities)?;
    if no_new_privileges {
        set_no_new_privs(true).map_err(SetUpError::field("process.noNewPrivileges", "set it"))?;
    }
    Ok(())
}

fn change_user(user: &UserPlan) -> Result<(), SetUpError> {
    set_thread_groups(&user.additional_gids)
        .map_err(SetUpError::field("process.user.additionalGids", "set them"))?;
    set_thread_res_gid(user.gid, user.gid, user.gid).map_err(SetUpError::field(
        "process.user.gid",
        format!("become {}", user.gid.as_raw()),
    ))?;
    // Leaving uid 0 would clear the capabilities that are about to be set.
    set_keep_capabilities(true).map_err(SetUpError::step("keep the capabilities"))?;
    set_thread_res_uid(user.uid, user.uid, user.uid).map_err(SetUpError::field(
        "process.user.uid",
        format!("become {}", user.uid.as_raw()),
    ))?;
    // A change of user takes it back where fs.suid_dumpable says so.
    hide_memory()
}

fn drop_from_bounding_set(held: u64, wanted: u64) -> Result<(), SetUpError> {
    let failed = |errno| SetUpError::field("process.capabilities.bounding", "drop the others")(errno);
    for number in 0..CAPABILITIES.len() {
        let capability = 1 << number;
        if wanted & capability == 0 {
            remove(capability).map_err(failed)?;
        }
    }
    // Capabilities newer than our table; the kernel says when there are no more.
    let mut newer = 1u64 << CAPABILITIES.len();
    while held & newer != 0 {
        remove(newer).map_err(failed)?;
        newer <<= 1;
    }
    Ok(())
}

fn remove(capability: u64) -> Result<(), Errno> {
    match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(capability)) {
        // A kernel older than the capability.
        Err(Errno::INVAL) => Ok(()),
        result => result,
    }
}

/// Leaving uid 0 keeps capabilities permitted, as was asked for, but takes them out of effect.
pub(super) fn put_into_effect_what_is_held() -> Result<(), SetUpError> {
    let mut sets = capabilities(None).map_err(SetUpError::step("read the capabilities"))?;
    sets.effective = sets.permitted;
    set_capabilities(None, sets).map_err(SetUpError::step("put the capabilities into effect"))
}

fn set_capability_sets(plan: &CapabilityPlan) -> Result<(), SetUpError> {
    let sets = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(plan.effective),
        permitted: CapabilitySet::from_bits_retain(plan.permitted),
        inheritable: CapabilitySet::from_bits_retain(plan.inheritable),
    };
    set_capabilities(None, sets).map_err(SetUpError::field("process.capabilities", "set them"))?;
    let failed = |errno| SetUpError::field("process.capabilities.ambient", "raise them")(errno);
    clear_ambient_capability_set().map_err(failed)?;
    for number in 0..CAPABILITIES.len() {
        let capability = 1 << number;
        if plan.ambient & capability != 0 {
            configure_capability_in_ambient_set(CapabilitySet::from_bits_retain(capability), true)
                .map_err(failed)?;
        }
    }
    Ok(())
}

/// The plan without what this process cannot give, and a warning for each capability left out. An ambient capability
/// has to be permitted and inheritable too (capabilities(7)), an effective one permitted. By the time that the sets are
/// written the bounding set is the new one, and an inheritable capability has to be in it, or to have been one before.
fn available(plan: CapabilityPlan, held: u64, inherited: u64) -> (CapabilityPlan, Vec<String>) {
    let permitted = plan.permitted & held;
    let inheritable = plan.inheritable & (inherited | held & plan.bounding);
    let given = CapabilityPlan {
        bounding: plan.bounding & held,
        effective: plan.effective & permitted,
        permitted,
        inheritable,
        ambient: plan.ambient & permitted & inheritable,
    };
    let sets = [
        ("bounding", plan.bounding & !given.bounding),
        ("effective", plan.effective & !given.effective),
        ("permitted", plan.permitted & !given.permitted),
        ("inheritable", plan.inheritable & !given.inheritable),
        ("ambient", plan.ambient & plan.inheritable & !given.ambient),
    ];
    let warnings = sets
        .iter()
        .filter(|(_, missing)| *missing != 0)
        .map(|(set, missing)| {
            format!(
                "process.capabilities.{set}: cannot be granted: {}",
                names(*missing)
            )
        })
        .collect();
    (given, warnings)
}

fn names(bits: u64) -> String {
    let names = CAPABILITIES
        .iter()
        .enumerate()
        .filter(|(number, _)| bits >> number & 1 == 1);
    names
        .map(|(_, capability)| format!("CAP_{capability}"))
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_given_without_a_warning() {
        let plan = CapabilityPlan {
            bounding: 7,
            effective: 3,
            permitted: 3,
            inheritable: 1,
            ambient: 1,
        };
        assert_eq!(available(plan, u64::MAX, 0), (plan, Vec::new()));
    }

    #[test]
    fn what_is_not_held_is_left_out_and_named() {
        let plan = CapabilityPlan {
            bounding: 3,
            effective: 3,
            permitted: 3,
            ..CapabilityPlan::default()
        };
        let (given, warnings) = available(plan, 1, 0);
        assert_eq!((given.bounding, given.effective, given.permitted), (1, 1, 1));
        assert_eq!(warnings.len(), 3);
        assert!(
            warnings[0].contains("bounding") && warnings[0].contains("CAP_DAC_OVERRIDE"),
            "{warnings:?}"
        );
    }

    #[test]
    fn an_inheritable_capability_outside_the_bounding_set_is_given_only_if_it_was_one_before() {
        let plan = CapabilityPlan {
            bounding: 1,
            permitted: 3,
            inheritable: 3,
            ..CapabilityPlan::default()
        };
        let (given, warnings) = available(plan, 3, 0);
        assert_eq!(given.inheritable, 1);
        assert!(
            warnings.len() == 1 && warnings[0].contains("inheritable"),
            "{warnings:?}"
        );
        assert_eq!(available(plan, 3, 2), (plan, Vec::new()));
    }

    #[test]
    fn an_ambient_capability_that_is_not_inheritable_is_left_out_silently() {
        let plan = CapabilityPlan {
            bounding: 1,
            permitted: 1,
            ambient: 1,
            ..CapabilityPlan::default()
        };
        let (given, warnings) = available(plan, 1, 0);
        assert_eq!(given.ambient, 0);
        assert!(warnings.is_empty());
    }
}
