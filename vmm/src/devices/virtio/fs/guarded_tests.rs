use super::*;
use fuse_backend_rs::api::filesystem::ROOT_ID;
use fuse_backend_rs::passthrough::Config;

const LIMITS: Limits = Limits { nodes: 3, handles: 2 };

/// A share with five files and room to know three of them.
fn share() -> (tempfile::TempDir, GuardedFs) {
    // The library clears the umask; here it is this thread's only.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).unwrap();
    let directory = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c", "d", "e"] {
        std::fs::write(directory.path().join(name), "").unwrap();
    }
    let inner = PassthroughFs::new(Config {
        root_dir: directory.path().to_str().unwrap().to_owned(),
        ..Config::default()
    })
    .unwrap();
    let fs = GuardedFs::new(inner, false, LIMITS);
    fs.init(FsOptions::empty()).unwrap();
    (directory, fs)
}

fn lookup(fs: &GuardedFs, name: &CStr) -> Result<u64, Option<i32>> {
    fs.lookup(&Context::default(), ROOT_ID, name)
        .map(|entry| entry.inode)
        .map_err(|error| error.raw_os_error())
}

#[test]
fn a_guest_that_knows_too_many_files_is_refused_more_until_it_forgets_one() {
    let (directory, fs) = share();
    let ctx = Context::default();
    let first = lookup(&fs, c"a").unwrap();
    lookup(&fs, c"b").unwrap();
    lookup(&fs, c"c").unwrap();
    assert_eq!(lookup(&fs, c"d"), Err(Some(libc::ENFILE)));
    assert_eq!(lookup(&fs, c"a"), Ok(first));
    let error = fs.mkdir(&ctx, ROOT_ID, c"new", 0o755, 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENFILE));
    assert!(!directory.path().join("new").exists());

    fs.forget(&ctx, first, 2);
    lookup(&fs, c"d").unwrap();
}

#[test]
fn a_full_table_still_lists_every_name() {
    let (_directory, fs) = share();
    let ctx = Context::default();
    let (handle, _) = fs.opendir(&ctx, ROOT_ID, 0).unwrap();
    let mut known = 0;
    let mut names = Vec::new();
    let mut add = |dir_entry: DirEntry<'_>, entry: Entry| {
        names.push(dir_entry.name.to_vec());
        known += usize::from(entry.inode != 0);
        Ok(1)
    };
    fs.readdirplus(&ctx, ROOT_ID, handle.unwrap(), 4096, 0, &mut add)
        .unwrap();
    assert_eq!((names.len(), known), (5, 3));
    assert_eq!(fs.held().nodes.len(), 3);
}

#[test]
fn entries_that_do_not_fit_are_not_counted() {
    let (_directory, fs) = share();
    let ctx = Context::default();
    let (handle, _) = fs.opendir(&ctx, ROOT_ID, 0).unwrap();
    fs.readdirplus(&ctx, ROOT_ID, handle.unwrap(), 4096, 0, &mut |_, _| Ok(0))
        .unwrap();
    assert_eq!(fs.held().nodes.len(), 0);
}

#[test]
fn a_guest_with_too_many_open_files_is_refused_more_until_it_closes_one() {
    let (_directory, fs) = share();
    let ctx = Context::default();
    let inode = lookup(&fs, c"a").unwrap();
    let open = || fs.open(&ctx, inode, 0, 0).map(|(handle, _, _)| handle.unwrap());
    let first = open().unwrap();
    open().unwrap();
    assert_eq!(open().unwrap_err().raw_os_error(), Some(libc::ENFILE));
    assert!(fs.opendir(&ctx, ROOT_ID, 0).is_err());
    let release = |handle| fs.release(&ctx, inode, 0, handle, false, false, None);
    release(first).unwrap();
    assert!(release(first).is_err());
    open().unwrap();
    assert!(open().is_err());
}

#[test]
fn a_new_mount_starts_with_all_its_room() {
    let (_directory, fs) = share();
    let ctx = Context::default();
    let inode = lookup(&fs, c"a").unwrap();
    fs.open(&ctx, inode, 0, 0).unwrap();
    fs.init(FsOptions::empty()).unwrap();
    assert_eq!(fs.held().nodes.len(), 0);
    assert_eq!(fs.held().handles, 0);
    assert_eq!(
        fs.open(&ctx, inode, 0, 0).unwrap_err().raw_os_error(),
        Some(libc::EBADF)
    );
}
