//! Containers that stand still, in both versions of cgroups where this kernel has them.

use std::fs;

use container::{DeleteError, PauseError, Signal, StartError, Status, Stdio};
use rustix::mount::{UnmountFlags, unmount};

use crate::bundle::{TestBundle, chain, files, wait, wait_until};
use crate::cgroup_files::{
    Freezer, GO_TO_CGROUP, cgroup_at, is_cgroup2_alone, own_cgroup, show_cgroup2_alone,
};
use crate::wall::{Container, Wall};

crate::tests!(
    a_paused_container_stands_still_and_goes_on,
    a_paused_container_stands_still_and_goes_on_in_cgroup2,
    a_paused_container_stands_still_and_goes_on_without_cgroup2,
    what_somebody_else_froze_is_paused_and_can_be_resumed,
    what_is_frozen_above_is_paused_and_says_so_when_resumed,
    pausing_and_resuming_out_of_turn_is_refused,
    a_created_container_can_be_paused_and_started_after,
    kill_ends_a_paused_container,
    force_deletes_a_paused_container,
    force_deletes_what_froze_itself,
    a_storm_of_forks_can_be_paused,
    a_signal_to_all_reaches_all,
    kill_of_all_leaves_nobody_in_either_version,
    a_frozen_cgroup_is_refused,
    cgroups_deeper_than_a_path_go_with_their_container,
);

fn version1_alone() {
    if is_cgroup2_alone() {
        println!("SKIPPED: there is no version 1 here");
        return;
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    for line in mounts.lines().filter(|line| line.contains(" - cgroup2 ")) {
        unmount(line.split(' ').nth(4).unwrap(), UnmountFlags::DETACH).unwrap();
    }
}

/// Ways to have what there is of cgroups here. A machine has its own.
fn hierarchies() -> Vec<fn()> {
    match Wall::chosen() {
        Wall::SharedKernel if !is_cgroup2_alone() => vec![|| {}, version1_alone, show_cgroup2_alone],
        _ => vec![|| {}],
    }
}

/// Grows a file as long as it runs.
const COUNTER: &str = "while :; do echo x; sleep 0.002; done";

fn counter() -> (TestBundle, Container) {
    let bundle = TestBundle::shell(COUNTER);
    let (stdio, _output) = files(&bundle.folder);
    let container = bundle
        .create(stdio)
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    container.start().unwrap();
    wait_until(|| count(&bundle) > 2);
    (bundle, container)
}

fn count(bundle: &TestBundle) -> u64 {
    fs::metadata(bundle.folder.join("stdout")).unwrap().len()
}

fn status(bundle: &TestBundle) -> Status {
    Container::load(bundle).unwrap().status().unwrap()
}

fn assert_stands_still(bundle: &TestBundle) {
    let before = count(bundle);
    std::thread::sleep(std::time::Duration::from_millis(60));
    assert_eq!(count(bundle), before);
}

fn assert_goes_on(bundle: &TestBundle) {
    let before = count(bundle);
    wait_until(|| count(bundle) > before);
}

fn end(mut container: Container) {
    container.delete(true).unwrap();
    wait(&container);
}

fn a_paused_container_stands_still_and_goes_on() {
    let (bundle, container) = counter();
    container
        .pause()
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_stands_still(&bundle);
    assert_eq!(status(&bundle), Status::Paused);
    let state = serde_json::to_value(container.state().unwrap()).unwrap();
    assert_eq!(
        (&state["status"], &state["pid"]),
        (&"paused".into(), &container.pid().unwrap().into())
    );
    container
        .resume()
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(status(&bundle), Status::Running);
    assert_goes_on(&bundle);
    end(container);
}

fn a_paused_container_stands_still_and_goes_on_in_cgroup2() {
    show_cgroup2_alone();
    a_paused_container_stands_still_and_goes_on();
}

fn a_paused_container_stands_still_and_goes_on_without_cgroup2() {
    version1_alone();
    a_paused_container_stands_still_and_goes_on();
}

fn what_somebody_else_froze_is_paused_and_can_be_resumed() {
    let (bundle, container) = counter();
    Freezer::of_this_host().freeze(&own_cgroup("freezer", &bundle.id));
    wait_until(|| status(&bundle) == Status::Paused);
    container.resume().unwrap();
    assert_goes_on(&bundle);
    end(container);
}

fn what_is_frozen_above_is_paused_and_says_so_when_resumed() {
    let mut bundle = TestBundle::shell(COUNTER);
    bundle.config["linux"]["cgroupsPath"] = format!("/{}/leaf", bundle.id).into();
    let mut container = bundle.create(Stdio::Inherit).unwrap();
    let freezer = Freezer::of_this_host();
    let above = cgroup_at("freezer", bundle.id.as_str());
    freezer.freeze(&above);
    wait_until(|| status(&bundle) == Status::Paused);
    let message = chain(&container.resume().unwrap_err());
    assert!(message.contains("a cgroup above it is"), "{message}");
    freezer.thaw(&above);
    container.delete(true).unwrap();
    wait(&container);
}

fn pausing_and_resuming_out_of_turn_is_refused() {
    let (_bundle, mut container) = counter();
    let running = container.resume().unwrap_err();
    let is_running = |error: &PauseError| {
        matches!(
            error,
            PauseError::WrongStatus {
                status: Status::Running,
                ..
            }
        )
    };
    assert!(running.is(is_running, "is running"), "{}", chain(&running));
    container.pause().unwrap();
    let twice = container.pause().unwrap_err().to_string();
    assert!(twice.contains("is paused"), "{twice}");
    let is_paused = |error: &DeleteError| {
        matches!(
            error,
            DeleteError::NotStopped {
                status: Status::Paused,
                ..
            }
        )
    };
    assert!(container.delete(false).unwrap_err().is(is_paused, "is paused"));
    container.kill(Signal::KILL).unwrap();
    wait(&container);
    let stopped = container.pause().unwrap_err().to_string();
    assert!(stopped.contains("is stopped"), "{stopped}");
    container.delete(false).unwrap();
}

fn a_created_container_can_be_paused_and_started_after() {
    let bundle = TestBundle::command(&["true"]);
    let mut container = bundle.create(Stdio::Inherit).unwrap();
    container.pause().unwrap();
    let is_paused = |error: &StartError| {
        matches!(
            error,
            StartError::NotCreated {
                status: Status::Paused,
                ..
            }
        )
    };
    assert!(container.start().unwrap_err().is(is_paused, "is paused"));
    container.resume().unwrap();
    assert_eq!(status(&bundle), Status::Created);
    container.start().unwrap();
    assert_eq!(wait(&container), 0);
    container.delete(false).unwrap();
}

fn kill_ends_a_paused_container() {
    for prepare in hierarchies() {
        prepare();
        let (_bundle, mut container) = counter();
        container.pause().unwrap();
        container.kill(Signal::KILL).unwrap();
        assert_eq!(wait(&container), 137);
        container.delete(false).unwrap();
        fs::remove_dir_all(&_bundle.folder).unwrap();
    }
}

fn force_deletes_a_paused_container() {
    for prepare in hierarchies() {
        prepare();
        let (bundle, mut container) = counter();
        container.pause().unwrap();
        container
            .delete(true)
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(wait(&container), 137);
        fs::remove_dir_all(&bundle.folder).unwrap();
    }
}

/// A container that may write to its cgroups can freeze a part of itself.
fn force_deletes_what_froze_itself() {
    let Freezer { file, frozen, .. } = Freezer::of_this_host();
    let script = format!(
        "cd /sys/fs/cgroup; [ ! -d freezer ] || cd freezer; mkdir -p a/b; sleep 600 & \
         echo $! >a/b/cgroup.procs; echo {frozen} >a/{file}; echo up; sleep 600"
    );
    let mut bundle = TestBundle::shell(&script);
    writable_cgroups(&mut bundle);
    let (stdio, _output) = files(&bundle.folder);
    let mut container = bundle.create(stdio).unwrap();
    container.start().unwrap();
    wait_until(|| fs::read_to_string(bundle.folder.join("stdout")).unwrap() == "up\n");
    assert_eq!(status(&bundle), Status::Running);
    container.delete(true).unwrap();
    wait(&container);
}

fn writable_cgroups(bundle: &mut TestBundle) {
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    let cgroup = mounts.last_mut().unwrap();
    cgroup["options"] = serde_json::json!(["nosuid", "noexec", "nodev"]);
}

fn a_storm_of_forks_can_be_paused() {
    let script = "for i in $(seq 8); do (while :; do (true); done) & done; echo up; wait";
    let bundle = TestBundle::shell(script);
    let (stdio, _output) = files(&bundle.folder);
    let container = bundle.create(stdio).unwrap();
    container.start().unwrap();
    wait_until(|| fs::read_to_string(bundle.folder.join("stdout")).unwrap() == "up\n");
    for _ in 0..Wall::times(10) {
        container
            .pause()
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        let before = container.processes().unwrap();
        assert_eq!(container.processes().unwrap(), before);
        assert_eq!(status(&bundle), Status::Paused);
        container.resume().unwrap();
    }
    end(container);
}

fn a_signal_to_all_reaches_all() {
    let script = "for i in 1 2 3; do (trap 'echo got; exit' USR1; while :; do sleep 0.01; done) & done; \
                  trap 'echo got' USR1; echo up; wait; wait; wait; wait; exit 5";
    let bundle = TestBundle::shell(script);
    let (stdio, output) = files(&bundle.folder);
    let mut container = bundle.create(stdio).unwrap();
    container.start().unwrap();
    wait_until(|| {
        fs::read_to_string(bundle.folder.join("stdout"))
            .unwrap()
            .contains("up")
    });
    // The subshells have set their traps once they sleep.
    wait_until(|| container.processes().unwrap().len() >= 7);
    container.kill_all("USR1".parse().unwrap()).unwrap();
    assert_eq!(wait(&container), 5);
    let outcome = output.outcome(5);
    assert_eq!(outcome.stdout.matches("got").count(), 4, "{outcome:?}");
    container.delete(false).unwrap();
}

fn kill_of_all_leaves_nobody_in_either_version() {
    for prepare in hierarchies() {
        prepare();
        // Without a pid namespace, nothing but the cgroup holds the children together.
        let mut bundle = TestBundle::shell("for i in $(seq 6); do (while :; do (true); done) & done; wait");
        let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
        let mut container = bundle.create(Stdio::Inherit).unwrap();
        container.start().unwrap();
        wait_until(|| container.processes().unwrap().len() >= 7);
        container.kill_all(Signal::KILL).unwrap();
        assert_eq!(wait(&container), 137);
        wait_until(|| {
            reap_orphans();
            container.processes().unwrap().is_empty()
        });
        container.delete(false).unwrap();
        fs::remove_dir_all(&bundle.folder).unwrap();
    }
}

/// Takes note of children that became ours.
fn reap_orphans() {
    while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
}

fn a_frozen_cgroup_is_refused() {
    let mut bundle = TestBundle::command(&["true"]);
    bundle.config["linux"]["cgroupsPath"] = format!("/{}", bundle.id).into();
    let freezer = Freezer::of_this_host();
    let folder = cgroup_at("freezer", bundle.id.as_str());
    fs::create_dir(&folder).unwrap();
    freezer.freeze(&folder);
    let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
    assert!(message.contains("is frozen"), "{message}");
    // Thawed and empty, it is taken over.
    freezer.thaw(&folder);
    assert_eq!(bundle.run().code, 0);
}

fn cgroups_deeper_than_a_path_go_with_their_container() {
    let script = format!(
        "{GO_TO_CGROUP}; i=0; \
         while [ $i -lt 60 ]; do d=$(printf '%0100d' $i); mkdir $d && cd -P ./$d || exit 3; i=$((i+1)); done; \
         echo 1 >cgroup.procs || exit 4; echo deep; sleep 600"
    );
    let mut bundle = TestBundle::shell(&script);
    writable_cgroups(&mut bundle);
    let (stdio, _output) = files(&bundle.folder);
    let mut container = bundle.create(stdio).unwrap();
    container.start().unwrap();
    wait_until(|| fs::read_to_string(bundle.folder.join("stdout")).unwrap() == "deep\n");
    container
        .delete(true)
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    wait(&container);
}
