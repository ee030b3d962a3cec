//! How a container's end is told.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use container::{CommandFailure, Stdio};

use crate::bundle::{TestBundle, chain};

crate::tests!(
    success_is_zero,
    the_programs_own_code_is_kept,
    a_signal_is_told_as_one,
    output_goes_to_the_files_given,
    a_program_not_in_path_is_127_at_create,
    a_program_that_does_not_exist_is_127_at_create,
    a_file_without_permission_is_126_at_create,
    a_folder_is_126_at_create,
    a_file_the_kernel_cannot_execute_is_126_at_start,
    a_script_without_its_interpreter_is_127_at_start,
);

fn success_is_zero() {
    assert_eq!(TestBundle::command(&["true"]).run().code, 0);
}

fn the_programs_own_code_is_kept() {
    assert_eq!(TestBundle::shell("exit 42").run().code, 42);
}

fn a_signal_is_told_as_one() {
    assert_eq!(
        TestBundle::shell("sh -c 'kill -USR1 $$'; exit $?").run().code,
        128 + 10
    );
}

fn output_goes_to_the_files_given() {
    let outcome = TestBundle::shell("echo out; echo err >&2; cat").run();
    assert_eq!(
        (outcome.code, outcome.stdout.as_str(), outcome.stderr.as_str()),
        (0, "out\n", "err\n")
    );
}

fn refused_at_create(bundle: &TestBundle) -> (CommandFailure, String) {
    let error = bundle.create(Stdio::Inherit).unwrap_err();
    (error.command_failure().unwrap(), chain(&error))
}

fn a_program_not_in_path_is_127_at_create() {
    let (failure, message) = refused_at_create(&TestBundle::command(&["no-such-program"]));
    assert_eq!(failure.exit_code(), 127);
    assert!(
        message.contains("`no-such-program`") && message.contains("PATH"),
        "{message}"
    );
}

fn a_program_that_does_not_exist_is_127_at_create() {
    let (failure, message) = refused_at_create(&TestBundle::command(&["/no/such/program"]));
    assert_eq!(failure.exit_code(), 127);
    assert!(message.contains("no such file"), "{message}");
}

fn a_file_without_permission_is_126_at_create() {
    let bundle = TestBundle::command(&["/etc/passwd"]);
    let (failure, message) = refused_at_create(&bundle);
    assert_eq!(failure.exit_code(), 126);
    assert!(message.contains("permission denied"), "{message}");
}

fn a_folder_is_126_at_create() {
    assert_eq!(
        refused_at_create(&TestBundle::command(&["/bin"])).0.exit_code(),
        126
    );
}

/// A bundle whose program is a file with this content.
fn program(content: &str) -> TestBundle {
    let bundle = TestBundle::command(&["/program"]);
    let path = bundle.rootfs().join("program");
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    bundle
}

fn refused_at_start(bundle: &TestBundle) -> i32 {
    let mut container = bundle.create(Stdio::Inherit).unwrap();
    let failure = container.start().unwrap_err().command_failure().unwrap();
    assert_eq!(crate::bundle::wait(&container), failure.exit_code());
    container.delete(false).unwrap();
    failure.exit_code()
}

fn a_file_the_kernel_cannot_execute_is_126_at_start() {
    assert_eq!(refused_at_start(&program("neither program nor script")), 126);
}

fn a_script_without_its_interpreter_is_127_at_start() {
    assert_eq!(refused_at_start(&program("#!/no/such/interpreter\n")), 127);
}
