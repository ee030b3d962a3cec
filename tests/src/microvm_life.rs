//! The steps of a container's life behind the microVM wall that tests go through on their way to something else.

use std::time::{Duration, Instant};

use crate::Wall;
use crate::oci_container::OciContainer;

/// How long something may take where the guest's kernel is emulated.
const PATIENCE: Duration = Duration::from_secs(60);

/// A container that does nothing for ten minutes, to be created; none where there are no microVMs.
pub fn idle() -> Option<OciContainer> {
    OciContainer::behind(Wall::MicroVm, &["sleep", "600"])
}

/// Creates it.
///
/// # Panics
/// When that fails.
#[track_caller]
pub fn create(container: &OciContainer) {
    container.on("create", &["--bundle", "."]).expect(0);
    assert_eq!(container.status(), "created");
}

/// Creates and starts it.
///
/// # Panics
/// When either fails.
#[track_caller]
pub fn start(container: &OciContainer) {
    create(container);
    container.on("start", &[]).expect(0);
    assert_eq!(container.status(), "running");
}

/// Deletes it by force.
///
/// # Panics
/// When that fails.
#[track_caller]
pub fn delete(container: &OciContainer) {
    container.on("delete", &["--force"]).expect(0);
}

/// Waits until `condition` holds.
///
/// # Panics
/// When it does not in time.
#[track_caller]
pub fn wait_until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long");
        std::thread::sleep(Duration::from_millis(20));
    }
}
