use std::os::unix::fs::PermissionsExt as _;

use super::super::inputs::tests::{folder as parts, inputs};
use super::*;

const PAGE: usize = 4096;

/// A template as far as the store looks, of so many pages, used that long after the beginning of time.
fn put(store: &TemplateStore, name: &str, of: &TemplateInputs, pages: usize, used: u64) -> PathBuf {
    let path = store.directory.join(name);
    let snapshot = path.join(SNAPSHOT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(snapshot.join("memory"), vec![1; pages * PAGE]).unwrap();
    let description = path.join(INPUTS);
    fs::write(&description, serde_json::to_vec(of).unwrap()).unwrap();
    let used = SystemTime::UNIX_EPOCH + Duration::from_secs(used);
    let file = File::options().write(true).open(&description).unwrap();
    file.set_modified(used).unwrap();
    path
}

fn names(store: &TemplateStore) -> Vec<String> {
    let mut names = store.names().unwrap();
    names.sort();
    names
}

#[test]
fn what_exceeds_the_limit_goes_longest_unused_first_and_the_last_used_one_never() {
    let (_folder, mut store) = store();
    let parts = parts();
    let of = inputs(parts.path());
    store.limit = 40 * PAGE as u64;
    put(&store, "000000000000000a", &of, 100, 30);
    put(&store, "000000000000000b", &of, 20, 10);
    put(&store, "000000000000000c", &of, 16, 20);
    let pruned = store.prune(false).unwrap();
    assert_eq!(pruned, ["000000000000000c", "000000000000000b"]);
    assert_eq!(names(&store), ["000000000000000a"]);

    store.limit = 130 * PAGE as u64;
    put(&store, "000000000000000b", &of, 20, 10);
    put(&store, "000000000000000c", &of, 20, 20);
    assert_eq!(store.prune(false).unwrap(), ["000000000000000b"]);
    assert_eq!(names(&store), ["000000000000000a", "000000000000000c"]);
}

#[test]
fn stale_and_incomplete_templates_are_told_with_their_reason_and_pruned_with_the_others_kept() {
    let (_folder, mut store) = store();
    store.limit = u64::MAX;
    let (kept, replaced) = (parts(), parts());
    put(&store, "000000000000000a", &inputs(kept.path()), 1, 1);
    let gone = inputs(replaced.path());
    fs::remove_file(replaced.path().join("vmm")).unwrap();
    put(&store, "000000000000000b", &gone, 1, 2);
    let half = put(&store, "000000000000000c", &inputs(kept.path()), 1, 3);
    fs::remove_dir_all(half.join(SNAPSHOT)).unwrap();
    let unreadable = put(&store, "000000000000000d", &inputs(kept.path()), 1, 4);
    fs::write(unreadable.join(INPUTS), "{\"kernel\": {}}").unwrap();

    let told: Vec<String> = store
        .list()
        .unwrap()
        .into_iter()
        .map(|summary| match summary.inputs {
            Ok(inputs) => inputs.staleness().unwrap_or_else(|| "current".to_owned()),
            Err(error) => error.to_string(),
        })
        .collect();
    let [unreadable, half, stale, current] = told.as_slice() else {
        panic!("{told:?}");
    };
    assert!(unreadable.starts_with("parsing "), "{unreadable}");
    assert!(
        half.starts_with("listing ") && half.ends_with("c/snapshot"),
        "{half}"
    );
    assert!(stale.ends_with("vmm is gone"), "{stale}");
    assert_eq!(current, "current");
    assert_eq!(store.prune(false).unwrap().len(), 3);
    assert_eq!(names(&store), ["000000000000000a"]);
}

fn store() -> (tempfile::TempDir, TemplateStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = TemplateStore::new(folder.path().to_owned(), 0);
    (folder, store)
}

#[test]
fn pruning_sweeps_up_after_killed_builders_and_leaves_what_is_not_ours() {
    let (folder, store) = store();
    for directory in [
        "0123456789abcdef.building/machine",
        "keep",
        "keep.building",
        "notes.d",
    ] {
        fs::create_dir_all(folder.path().join(directory)).unwrap();
    }
    for file in ["keep.zip", "keep.lock", "fedcba9876543210.lock"] {
        fs::write(folder.path().join(file), "").unwrap();
    }
    assert_eq!(store.prune(true).unwrap(), Vec::<String>::new());
    let mut left = store.names().unwrap();
    left.sort();
    assert_eq!(
        left,
        ["keep", "keep.building", "keep.lock", "keep.zip", "notes.d"]
    );
}

#[tokio::test(flavor = "current_thread")]
async fn a_lock_is_waited_for_and_not_for_ever() {
    let (_folder, store) = store();
    let name = "0123456789abcdef";
    let held = store.lock(name, Duration::ZERO).await.unwrap();
    let refused = store.lock(name, Duration::from_millis(50)).await;
    assert!(matches!(refused, Err(StoreError::Busy { .. })));
    let waiting = store.lock(name, Duration::from_secs(10));
    let release = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        held.remove().unwrap();
    };
    // The file that was locked is gone: the lock is of the next one.
    let (lock, ()) = tokio::join!(waiting, release);
    assert!(lock.unwrap().begin().unwrap().snapshot.is_dir());
}

#[test]
fn a_template_that_was_removed_and_built_anew_is_another() {
    let (folder, store) = store();
    let name = "0123456789abcdef";
    let path = folder.path().join(name);
    let build = |at: &Path| {
        fs::create_dir(at).unwrap();
        fs::write(at.join(INPUTS), "").unwrap();
    };
    build(&path);
    let template = store.find(name).unwrap();
    assert!(store.holds(&template));
    // Both exist for a moment, so that the second cannot have the first one's inode.
    let next = folder.path().join("next");
    build(&next);
    fs::remove_dir_all(&path).unwrap();
    assert!(!store.holds(&template));
    fs::rename(&next, &path).unwrap();
    assert!(!store.holds(&template));
    assert!(store.holds(&store.find(name).unwrap()));
}

#[tokio::test(flavor = "current_thread")]
async fn a_folder_that_others_can_write_to_is_refused() {
    let (folder, store) = store();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let refused = store.lock("0123456789abcdef", Duration::ZERO).await;
    assert!(refused.unwrap_err().to_string().contains("777"));
}
