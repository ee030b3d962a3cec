//! Create, start, state, kill, delete, in every order.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use container::{
    CreateError, CreateOptions, DeleteError, KillError, Signal, StartError, StateError, Status, Stdio,
    delete_damaged,
};

use rustix::process::{WaitId, WaitIdOptions};

use crate::bundle::{TestBundle, chain, files, wait, wait_until};
use crate::wall::{Container, Refusal, Wall};

crate::tests!(
    each_stage_of_a_life_is_told,
    a_stage_that_does_not_follow_is_refused,
    kill_ends_a_program_that_ignores_term,
    one_that_ended_can_be_opened_until_it_was_waited_for,
    what_is_about_to_end_can_be_deleted,
    force_deletes_what_is_created_or_running_with_all_its_children,
    deleting_twice_is_deleting_once,
    an_id_in_use_is_refused_and_its_container_lives_on,
    a_starter_that_dies_before_its_word_starts_nothing,
    a_starter_that_dies_after_its_word_leaves_a_running_container,
    without_a_process_a_container_is_created_and_cannot_be_started,
    what_is_to_be_started_at_once_needs_a_process,
    what_its_creator_starts_nobody_else_does,
    what_its_creator_starts_ends_with_it_before,
    what_a_dead_creator_left_can_be_deleted,
    a_folder_without_a_record_can_be_deleted,
    a_damaged_record_is_deleted_by_force_with_what_it_tells,
    a_record_that_tells_nothing_leaves_a_warning,
    two_containers_do_not_know_each_other,
    descriptors_of_the_caller_are_not_inherited,
    a_caller_with_threads_is_refused,
    a_container_whose_process_died_before_start_is_stopped,
    processes_and_their_use_are_counted,
    fifty_runs_in_a_row_leave_nothing,
);

fn status(bundle: &TestBundle) -> Status {
    Container::load(bundle).unwrap().status().unwrap()
}

fn each_stage_of_a_life_is_told() {
    let mut bundle = TestBundle::shell("trap 'exit 7' TERM; echo up; while :; do sleep 0.01; done");
    bundle.config["annotations"] = serde_json::json!({ "org.example": "yes" });
    let (stdio, _output) = files(&bundle.folder);
    let mut container = bundle.create(stdio).unwrap();
    assert_eq!(status(&bundle), Status::Created);
    container.start().unwrap();
    assert_eq!(status(&bundle), Status::Running);
    let state = serde_json::to_value(container.state().unwrap()).unwrap();
    assert_eq!(state["pid"], container.pid().unwrap());
    assert_eq!(
        state["bundle"],
        bundle.folder.canonicalize().unwrap().to_str().unwrap()
    );
    assert_eq!(state["annotations"]["org.example"], "yes");
    assert_eq!(state["ociVersion"], "1.0.2");
    wait_until(|| fs::read_to_string(bundle.folder.join("stdout")).unwrap() == "up\n");
    container.kill(Signal::TERM).unwrap();
    assert_eq!(wait(&container), 7);
    assert_eq!(status(&bundle), Status::Stopped);
    assert!(container.state().unwrap().pid.is_none());
    container.delete(false).unwrap();
    let gone = Container::load(&bundle).unwrap_err();
    assert!(
        gone.is(
            |error| matches!(error, StateError::NotFound { .. }),
            "does not exist"
        ),
        "{gone}"
    );
}

fn is_not_stopped(refusal: &Refusal<DeleteError>, but: Status) -> bool {
    refusal.is(
        |error| matches!(error, DeleteError::NotStopped { status, .. } if *status == but),
        &format!("is {but}"),
    )
}

fn is_not_created(refusal: &Refusal<StartError>, but: Status) -> bool {
    refusal.is(
        |error| matches!(error, StartError::NotCreated { status, .. } if *status == but),
        &format!("is {but}"),
    )
}

/// A word of containerd's, and what the container is.
fn is_not_running(refusal: &Refusal<KillError>, but: Status) -> bool {
    let is = |words: &str| {
        refusal.is(
            |error| matches!(error, KillError::NotRunning { status, .. } if *status == but),
            words,
        )
    };
    is("container not running") && is(&format!("is {but}"))
}

fn a_stage_that_does_not_follow_is_refused() {
    let bundle = TestBundle::shell("sleep 600");
    let mut container = bundle.create(Stdio::Inherit).unwrap();
    let created = container.delete(false).unwrap_err();
    assert!(is_not_stopped(&created, Status::Created), "{created}");
    container.start().unwrap();
    let twice = container.start().unwrap_err();
    assert!(is_not_created(&twice, Status::Running), "{}", chain(&twice));
    let running = container.delete(false).unwrap_err();
    assert!(is_not_stopped(&running, Status::Running), "{running}");
    container.kill(Signal::KILL).unwrap();
    wait_until(|| container.status().unwrap() == Status::Stopped);
    let dead = container.kill(Signal::KILL).unwrap_err();
    assert!(is_not_running(&dead, Status::Stopped), "{dead}");
    // Its parent can still learn how it ended.
    assert_eq!(wait(&container), 137);
    let stopped = container.start().unwrap_err();
    assert!(is_not_created(&stopped, Status::Stopped), "{stopped}");
    container.delete(false).unwrap();
}

fn kill_ends_a_program_that_ignores_term() {
    let bundle = TestBundle::shell("trap '' TERM; while :; do sleep 0.01; done");
    let mut container = bundle.create(Stdio::Inherit).unwrap();
    container.start().unwrap();
    container.kill(Signal::TERM).unwrap();
    container.kill("KILL".parse().unwrap()).unwrap();
    assert_eq!(wait(&container), 137);
    container.delete(false).unwrap();
}

fn one_that_ended_can_be_opened_until_it_was_waited_for() {
    let bundle = TestBundle::command(&["true"]);
    let mut container = bundle.create(Stdio::Inherit).unwrap();
    container.start().unwrap();
    wait_until(|| container.status().unwrap() == Status::Stopped);
    assert!(container.engine().pidfd().unwrap().is_some());
    assert_eq!(wait(&container), 0);
    assert!(container.engine().pidfd().unwrap().is_none());
    container.delete(false).unwrap();
}

fn what_is_about_to_end_can_be_deleted() {
    for is_started in [true, false] {
        let bundle = TestBundle::shell("sleep 600");
        let mut container = bundle.create(Stdio::Inherit).unwrap();
        if is_started {
            container.start().unwrap();
        }
        container.kill(Signal::KILL).unwrap();
        container.delete(false).unwrap();
        fs::remove_dir_all(&bundle.folder).unwrap();
    }
}

fn force_deletes_what_is_created_or_running_with_all_its_children() {
    let mut created = TestBundle::named("-created", &["true"])
        .create(Stdio::Inherit)
        .unwrap();
    created.delete(true).unwrap();
    wait(&created);
    // Without a pid namespace of its own, the death of the first process ends none of the others.
    let mut bundle = TestBundle::named(
        "-running",
        &["sh", "-c", "sleep 600 & sleep 600 & sleep 600 & wait"],
    );
    bundle.config["linux"]["namespaces"] = serde_json::json!([{ "type": "mount" }, { "type": "network" }]);
    bundle.config["hostname"] = serde_json::Value::Null;
    bundle.config["mounts"] = serde_json::json!([]);
    let mut running = bundle.create(Stdio::Inherit).unwrap();
    running.start().unwrap();
    wait_until(|| running.processes().unwrap().len() == 4);
    running.delete(true).unwrap();
    wait(&running);
}

fn deleting_twice_is_deleting_once() {
    let bundle = TestBundle::command(&["true"]);
    let mut container = bundle.create(Stdio::Inherit).unwrap();
    let mut another = Container::load(&bundle).unwrap();
    container.delete(true).unwrap();
    wait(&container);
    container.delete(true).unwrap();
    another.delete(true).unwrap();
}

fn an_id_in_use_is_refused_and_its_container_lives_on() {
    let bundle = TestBundle::shell("exit 3");
    let mut first = bundle.create(Stdio::Inherit).unwrap();
    let second = bundle.create(Stdio::Inherit).unwrap_err();
    assert!(
        second.is(
            |error| matches!(error, CreateError::State(StateError::AlreadyExists { .. })),
            "already exists"
        ),
        "{second}"
    );
    first.start().unwrap();
    assert_eq!(wait(&first), 3);
    first.delete(false).unwrap();
}

/// Connects to the process that waits to be started, as a starter does first of all.
fn connect_to_start(bundle: &TestBundle) -> OwnedFd {
    let path = bundle.states().join(bundle.id.as_str()).join("start");
    let address = rustix::net::SocketAddrUnix::new(path).unwrap();
    let kind = rustix::net::SocketType::SEQPACKET;
    let socket = rustix::net::socket(rustix::net::AddressFamily::UNIX, kind, None).unwrap();
    rustix::net::connect(&socket, &address).unwrap();
    socket
}

fn a_starter_that_dies_after_its_word_leaves_a_running_container() {
    let bundle = TestBundle::command(&["sleep", "600"]);
    let mut container = bundle.create(Stdio::Inherit).unwrap();
    let starter = connect_to_start(&bundle);
    rustix::net::send(&starter, &[1], rustix::net::SendFlags::empty()).unwrap();
    drop(starter);
    wait_until(|| status(&bundle) == Status::Running);
    assert!(is_not_created(&container.start().unwrap_err(), Status::Running));
    container.delete(true).unwrap();
    wait(&container);
}

fn a_starter_that_dies_before_its_word_starts_nothing() {
    let bundle = TestBundle::shell("exit 4");
    let mut container = bundle.create(Stdio::Inherit).unwrap();
    for _ in 0..3 {
        connect_to_start(&bundle);
    }
    assert_eq!(container.status().unwrap(), Status::Created);
    container.start().unwrap();
    assert_eq!(wait(&container), 4);
    container.delete(false).unwrap();
}

/// "This property is REQUIRED when `start` is called" (runtime specification, "Process"), and an error leaves everything as
/// if the operation had never been attempted.
fn without_a_process_a_container_is_created_and_cannot_be_started() {
    let mut bundle = TestBundle::command(&["true"]);
    bundle.config.as_object_mut().unwrap().remove("process");
    bundle.config["linux"]["seccomp"] = serde_json::json!({ "defaultAction": "SCMP_ACT_KILL_PROCESS" });
    let mut container = bundle.create(Stdio::Inherit).unwrap();
    for _ in 0..2 {
        let refusal = container.start().unwrap_err();
        assert!(
            refusal.is(
                |error| matches!(error, StartError::NoProcess { .. }),
                "its configuration has no process"
            ),
            "{}",
            chain(&refusal)
        );
        assert_eq!(container.status().unwrap(), Status::Created);
    }
    container.kill(Signal::KILL).unwrap();
    wait_until(|| container.status().unwrap() == Status::Stopped);
    container.delete(false).unwrap();
}

fn what_is_to_be_started_at_once_needs_a_process() {
    let mut bundle = TestBundle::command(&["true"]);
    bundle.config.as_object_mut().unwrap().remove("process");
    let (states, loaded) = (bundle.states(), bundle.bundle());
    let options = CreateOptions::new(&states, &bundle.id, &loaded).started_by_creator();
    let refusal = container::create(options).unwrap_err();
    assert!(refusal.to_string().ends_with("process: is required"), "{refusal}");
}

fn what_its_creator_starts_nobody_else_does() {
    let bundle = TestBundle::shell("exit 3");
    let (states, loaded) = (bundle.states(), bundle.bundle());
    let options = CreateOptions::new(&states, &bundle.id, &loaded).started_by_creator();
    let mut container = Container::from(container::create(options).unwrap());
    let others = Container::load(&bundle).unwrap();
    assert!(is_not_created(&others.start().unwrap_err(), Status::Running));
    container.start().unwrap();
    assert_eq!(wait(&container), 3);
    assert!(is_not_created(&container.start().unwrap_err(), Status::Stopped));
    container.delete(false).unwrap();
}

fn what_its_creator_starts_ends_with_it_before() {
    let bundle = TestBundle::shell("exit 3");
    let (states, loaded) = (bundle.states(), bundle.bundle());
    let options = CreateOptions::new(&states, &bundle.id, &loaded).started_by_creator();
    let container = container::create(options).unwrap();
    let process = container.pidfd().unwrap().unwrap();
    // As its death does.
    drop(container);
    let ended = rustix::process::waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED);
    assert!(ended.unwrap().unwrap().exited());
    let mut left = Container::load(&bundle).unwrap();
    assert_eq!(left.status().unwrap(), Status::Stopped);
    left.delete(false).unwrap();
}

fn what_a_dead_creator_left_can_be_deleted() {
    let bundle = TestBundle::shell("sleep 600");
    let made = bundle.create(Stdio::Inherit).unwrap();
    // The record as it stands from before the process is made until all is done.
    let path = bundle.states().join(bundle.id.as_str()).join("state.json");
    let mut record: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    record["init"] = serde_json::Value::Null;
    fs::write(&path, record.to_string()).unwrap();
    let mut left = Container::load(&bundle).unwrap();
    assert_eq!(left.status().unwrap(), Status::Creating);
    let dead = left.kill(Signal::TERM).unwrap_err();
    assert!(is_not_running(&dead, Status::Creating), "{dead}");
    left.delete(false).unwrap();
    assert_eq!(wait(&made), 137);
}

fn a_folder_without_a_record_can_be_deleted() {
    let bundle = TestBundle::command(&["true"]);
    fs::create_dir_all(bundle.states().join(bundle.id.as_str())).unwrap();
    let mut left = Container::load(&bundle).unwrap();
    assert_eq!(left.state().unwrap().status, Status::Creating);
    left.delete(false).unwrap();
}

fn two_containers_do_not_know_each_other() {
    let script = "echo mine >/tmp/file; ps | wc -l; hostname; sleep 600";
    let [mut one, mut other] = ["-one", "-other"].map(|suffix| {
        let mut bundle = TestBundle::named(suffix, &["sh", "-c", script]);
        bundle.config["hostname"] = suffix[1..].into();
        bundle.mount(serde_json::json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" }));
        let (stdio, _) = files(&bundle.folder);
        let container = bundle.create(stdio).unwrap();
        container.start().unwrap();
        container
    });
    one.delete(true).unwrap();
    wait(&one);
    assert_eq!(other.status().unwrap(), Status::Running);
    other.delete(true).unwrap();
    wait(&other);
}

fn descriptors_of_the_caller_are_not_inherited() {
    let bundle = TestBundle::shell("ls /proc/self/fd | wc -l");
    let secret = fs::File::open("/etc/hostname").unwrap();
    rustix::io::fcntl_setfd(&secret, rustix::io::FdFlags::empty()).unwrap();
    let mut pipe = rustix::pipe::pipe().unwrap();
    let far = 700;
    // SAFETY: the number is free: this process has opened a few files only.
    let far = unsafe { std::os::fd::FromRawFd::from_raw_fd(libc::dup2(secret.as_raw_fd(), far)) };
    pipe.0 = far;
    // Three streams, and the one with which ls reads the folder.
    assert_eq!(bundle.output().trim(), "4");
}

fn a_caller_with_threads_is_refused() {
    let bundle = TestBundle::command(&["true"]);
    let (say, hear) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || hear.recv());
    let error = bundle.create(Stdio::Inherit).unwrap_err();
    assert!(
        error.is(
            |error| matches!(error, CreateError::ManyThreads { threads: 2 }),
            ""
        ),
        "{}",
        chain(&error)
    );
    drop(say);
    let _ = thread.join().unwrap();
}

fn a_container_whose_process_died_before_start_is_stopped() {
    let bundle = TestBundle::command(&["true"]);
    let mut container = bundle.create(Stdio::Inherit).unwrap();
    container.kill(Signal::KILL).unwrap();
    assert_eq!(wait(&container), 137);
    assert_eq!(container.status().unwrap(), Status::Stopped);
    let stopped = container.start().unwrap_err();
    assert!(is_not_created(&stopped, Status::Stopped), "{stopped}");
    container.delete(false).unwrap();
}

fn processes_and_their_use_are_counted() {
    let bundle = TestBundle::shell("sleep 600 & sleep 600 & wait");
    let mut container = bundle.create(Stdio::Inherit).unwrap();
    container.start().unwrap();
    wait_until(|| container.processes().unwrap().len() == 3);
    let statistics = container.statistics().unwrap();
    assert_eq!(
        statistics["pids"],
        serde_json::json!({ "current": 3, "limit": 0 })
    );
    let memory = &statistics["memory"];
    assert!(memory["usage"]["usage"].as_u64().unwrap() > 0, "{memory}");
    assert!(memory["usage"]["limit"].as_u64().unwrap() > 1 << 60, "{memory}");
    assert!(memory["raw"]["pgfault"].as_u64().unwrap() > 0, "{memory}");
    assert!(statistics["cpu"]["usage"]["total"].as_u64().unwrap() > 0);
    container.delete(true).unwrap();
    wait(&container);
}

fn fifty_runs_in_a_row_leave_nothing() {
    let bundle = TestBundle::command(&["true"]);
    let open_before = fs::read_dir("/proc/self/fd").unwrap().count();
    for _ in 0..Wall::times(50) {
        assert_eq!(bundle.run().code, 0);
    }
    assert_eq!(fs::read_dir("/proc/self/fd").unwrap().count(), open_before);
    // The name is free again for anything else too.
    UnixListener::bind(bundle.folder.join("socket")).unwrap();
}

/// The record of a container that another version wrote, or somebody broke.
fn rewrite_record(bundle: &TestBundle, change: impl FnOnce(String) -> String) {
    let path = bundle.states().join(bundle.id.as_str()).join("state.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, change(text)).unwrap();
    let loaded = Container::load(bundle);
    assert!(loaded.is_err_and(|error| error.is(|error| matches!(error, StateError::Damaged { .. }), "")),);
}

fn a_damaged_record_is_deleted_by_force_with_what_it_tells() {
    let bundle = TestBundle::shell("sleep 600 & sleep 600");
    let container = bundle.create(Stdio::Inherit).unwrap();
    container.start().unwrap();
    wait_until(|| container.processes().unwrap().len() == 2);
    rewrite_record(&bundle, |text| {
        text.replacen('{', r#"{"member_of_a_later_version":1,"#, 1)
    });
    let warnings =
        delete_damaged(&bundle.states(), &bundle.id).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(wait(&container), 137);
    let again = delete_damaged(&bundle.states(), &bundle.id).unwrap_err();
    assert!(matches!(again, DeleteError::State(StateError::NotFound { .. })));

    // Like any other where nothing is damaged.
    let sound = TestBundle::named("-sound", &["sleep", "600"]);
    let container = sound.create(Stdio::Inherit).unwrap();
    assert!(delete_damaged(&sound.states(), &sound.id).unwrap().is_empty());
    assert_eq!(wait(&container), 137);
}

fn a_record_that_tells_nothing_leaves_a_warning() {
    let bundle = TestBundle::shell("sleep 600");
    let mut container = bundle.create(Stdio::Inherit).unwrap();
    rewrite_record(&bundle, |text| text[..text.len() / 3].to_owned());
    let warnings = delete_damaged(&bundle.states(), &bundle.id).unwrap().join("\n");
    let place = format!("at /bulkhead-{} of each hierarchy", bundle.id);
    assert!(
        warnings.contains(&place) && warnings.contains("poststop"),
        "{warnings}"
    );
    assert!(!fs::exists(bundle.states().join(bundle.id.as_str())).unwrap());
    // Nothing that is not surely the container's was touched.
    assert_eq!(container.processes().unwrap(), [container.pid().unwrap()]);
    container.delete(true).unwrap();
    assert_eq!(wait(&container), 137);
}
