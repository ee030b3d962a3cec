//! `bulkhead-oci`: the OCI command line, for podman, containerd and others that call a runtime by runc's name.

use std::process::ExitCode;

fn main() -> ExitCode {
    runtime::oci_cli::main()
}
