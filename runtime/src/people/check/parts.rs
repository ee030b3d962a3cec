//! Whether the parts of a machine are where the configuration says.

use std::fs::File;
use std::path::Path;

use rustix::fs::{Access, access};
use vmm::boot::initramfs;
use vmm::boot::kernel::Kernel;

use super::finding::{Finding, causes};
use crate::isolation::Isolation;

/// Executed by `bulkhead-oci` for containers behind the microVM wall.
const ATTENDANT: &str = "bulkhead-attendant";

pub(super) fn vmm(path: &Path) -> Finding {
    program("vmm", path, "build it, or set microvm.vmm in the configuration").only_for(Isolation::MicroVm)
}

/// A missing one keeps only `bulkhead-oci` from making machines.
pub(super) fn attendant() -> Finding {
    let finding = match container::own_program_path() {
        Ok(own) => program(
            "attendant",
            &own.with_file_name(ATTENDANT),
            "bulkhead-oci makes no microVMs without it: put it beside the other programs",
        ),
        Err(error) => Finding::missing(
            "attendant",
            format!("finding our own program: {error}"),
            "mount /proc",
        ),
    };
    finding.at_most_a_warning().only_for(Isolation::MicroVm)
}

fn program(check: &'static str, path: &Path, advice: &str) -> Finding {
    match std::fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => {
            Finding::missing(check, format!("{} is no file", path.display()), advice)
        }
        Ok(_) => match access(path, Access::EXEC_OK) {
            Ok(()) => Finding::ok(check, path.display().to_string()),
            Err(errno) => Finding::missing(
                check,
                format!("{} cannot be executed: {errno}", path.display()),
                "make it executable, and its file system not noexec",
            ),
        },
        Err(error) => Finding::missing(check, format!("{}: {error}", path.display()), advice),
    }
}

pub(super) fn kernel(path: &Path) -> Finding {
    readable(
        "guest kernel",
        path,
        |file| Ok(Kernel::read(file).map(drop)?),
        "build it, or set microvm.kernel in the configuration",
    )
}

pub(super) fn initramfs(path: &Path) -> Finding {
    readable(
        "guest initramfs",
        path,
        |file| Ok(initramfs::check(file).map(drop)?),
        "build it, or set microvm.initramfs in the configuration",
    )
}

/// A file that the VMM would take.
fn readable(
    check: &'static str,
    path: &Path,
    read: impl Fn(&File) -> anyhow::Result<()>,
    advice: &str,
) -> Finding {
    let taken = File::open(path).map_err(anyhow::Error::from);
    let finding = match taken.and_then(|file| read(&file)) {
        Ok(()) => Finding::ok(check, path.display().to_string()),
        Err(error) => Finding::missing(check, format!("{}: {}", path.display(), causes(error)), advice),
    };
    finding.only_for(Isolation::MicroVm)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::finding::Status;
    use super::*;

    #[test]
    fn a_program_has_to_be_an_executable_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vmm");
        assert_eq!(vmm(&path).status, Status::Missing);
        assert_eq!(vmm(folder.path()).status, Status::Missing);
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(vmm(&path).detail.contains("cannot be executed"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(vmm(&path).status, Status::Ok);
    }

    #[test]
    fn what_the_vmm_would_refuse_is_missing_with_the_reason() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [b'x'; 512]).unwrap();
        for finding in [kernel(file.path()), initramfs(file.path())] {
            assert_eq!(finding.status, Status::Missing, "{finding:?}");
            assert!(finding.forbids(Isolation::MicroVm) && !finding.forbids(Isolation::SharedKernel));
        }
        assert!(kernel(file.path()).detail.contains("ELF"));
    }

    #[test]
    fn an_archive_is_an_initramfs() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "070701").unwrap();
        assert_eq!(initramfs(file.path()).status, Status::Ok);
    }
}
