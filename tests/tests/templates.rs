//! Machines cloned from templates: no clone is another's twin, a template is whole or not used, and what stands in the
//! way of cloning is said.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use std::collections::HashSet;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tests::{Installation, Wall, finish};

/// What only one guest may have, one line each: of its kernel, its name, random numbers, where the kernel has put a
/// program's stack. Then its time of day, for how long it says it has been up, and whether it has an id of the machine.
const IDENTITY: &str = "cat /proc/sys/kernel/random/boot_id; hostname; \
    head -c 16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/uuid; grep 'stack' /proc/self/maps; \
    date +%s; cut -d. -f1 /proc/uptime; ls /etc/machine-id /sys/class/dmi 2>/dev/null | wc -l";

/// What a guest's own clock may say when its agent serves, in seconds: a boot where its kernel is emulated, on a busy host.
const LONGEST_BOOT: u64 = 120;

fn started(mut command: std::process::Command) -> Child {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn output(child: Child) -> (Option<i32>, String, String) {
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// The complete templates of an installation.
fn templates(bulkhead: &Installation) -> Vec<PathBuf> {
    let entries = fs::read_dir(bulkhead.templates()).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_none())
        .collect()
}

/// The folders in which a template is being built, by inode: each build has its own.
fn building(bulkhead: &Installation) -> Vec<u64> {
    let entries = fs::read_dir(bulkhead.templates()).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.path().extension().is_some_and(|kind| kind == "building"))
        .map(|entry| std::os::unix::fs::DirEntryExt::ino(&entry))
        .collect()
}

/// Waits until `condition` holds.
fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(
            begun.elapsed() < Duration::from_secs(120),
            "{what} did not happen"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn clones_started_at_once_share_nothing_that_only_one_may_have() {
    let Some(bulkhead) = Installation::for_wall(Wall::MicroVm) else {
        return;
    };
    // The template is there before: both are clones of one machine.
    finish(bulkhead.bulkhead().args(["template", "build"])).expect(0);
    let run = || bulkhead.run_command(Wall::MicroVm, &["--template", "require"], &["sh", "-c", IDENTITY]);
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let begun = now();
    let clones = [started(run()), started(run()), started(run())];
    let mut seen = HashSet::new();
    for clone in clones {
        let (code, stdout, stderr) = output(clone);
        assert_eq!(code, Some(0), "{stderr}");
        let lines: Vec<&str> = stdout.lines().collect();
        let [boot_id, hostname, random, uuid, stack, date, uptime, machine_ids] = lines[..] else {
            panic!("{stdout}");
        };
        for word in [boot_id, hostname, random, uuid, stack] {
            assert!(seen.insert(word.to_owned()), "two clones have {word:?}");
        }
        // A second is what `date` leaves out.
        let clock: u64 = date.parse().unwrap();
        let ours = begun.as_secs() - 1..=now().as_secs() + 1;
        assert!(
            ours.contains(&clock),
            "the clone's clock said {clock}, ours {ours:?}"
        );
        // It has been up for as long as its template had been, and since; not since the template was saved.
        let uptime: u64 = uptime.parse().unwrap();
        assert!(
            uptime <= (now() - begun).as_secs() + LONGEST_BOOT,
            "the clone says it has been up for {uptime} s"
        );
        assert_eq!(machine_ids, "0");
    }
}

#[test]
fn a_machine_that_is_not_to_be_cloned_boots_and_makes_no_template() {
    let Some(bulkhead) = Installation::for_wall(Wall::MicroVm) else {
        return;
    };
    let bulkhead = bulkhead.with_own_templates();
    bulkhead
        .run(Wall::MicroVm, &["--template", "never"], &["true"])
        .expect(0);
    assert_eq!(templates(&bulkhead), Vec::<PathBuf>::new());
}

#[test]
fn ten_starts_at_once_build_one_template_and_it_can_be_looked_at_and_removed() {
    let Some(bulkhead) = Installation::for_wall(Wall::MicroVm) else {
        return;
    };
    let bulkhead = bulkhead.with_own_templates();
    // Four run a container, without --rm so that what is known of them is kept; six want no more than the template.
    let names: Vec<String> = (0..4).map(|_| bulkhead.fresh_name()).collect();
    let run = |name: &String| {
        let mut run = bulkhead.bulkhead();
        run.args(["run", "--isolation", "microvm", "--template", "require"]);
        run.args(["--name", name, &bulkhead.image(), "echo", "a clone"]);
        started(run)
    };
    let build = || {
        let mut build = bulkhead.bulkhead();
        build.args(["template", "build"]);
        started(build)
    };
    let mut builds: Vec<Child> = (0..6).map(|_| build()).collect();
    let runs: Vec<Child> = names.iter().map(run).collect();
    // A build takes seconds, in a folder that only becomes the template when it is whole.
    let mut sites = HashSet::new();
    wait_for("the end of the builds", || {
        sites.extend(building(&bulkhead));
        builds.iter_mut().all(|build| build.try_wait().unwrap().is_some())
    });
    assert_eq!(sites.len(), 1, "folders that templates were built in: {sites:?}");
    for child in builds {
        let (code, _, stderr) = output(child);
        assert_eq!(code, Some(0), "{stderr}");
    }
    for child in runs {
        let (code, stdout, stderr) = output(child);
        assert_eq!((code, stdout.as_str()), (Some(0), "a clone\n"), "{stderr}");
    }
    let builders = names.iter().filter(|name| {
        let record = bulkhead.run_root().join("sandboxes").join(name);
        let record = fs::read(record.join("record.json")).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        record["start"]["origin"]["clone"]["built"].as_bool().unwrap()
    });
    assert!(builders.count() <= 1, "one template was built for several");
    finish(bulkhead.bulkhead().arg("rm").args(&names)).expect(0);
    let made = templates(&bulkhead);
    assert_eq!(made.len(), 1, "{made:?}");
    assert_eq!(
        mode(bulkhead.templates()),
        0o700,
        "others can read a guest's memory"
    );

    let listed = finish(bulkhead.bulkhead().args(["template", "list"]))
        .expect(0)
        .stdout;
    assert!(listed.contains("current"), "{listed}");
    let name = made[0].file_name().unwrap().to_str().unwrap().to_owned();
    let inspected = finish(bulkhead.bulkhead().args(["template", "inspect", &name[..8]])).expect(0);
    assert!(inspected.stdout.contains(&name), "{}", inspected.stdout);

    flip_a_byte(&made[0].join("snapshot/memory"));
    finish(bulkhead.bulkhead().args(["template", "inspect", &name[..8]]))
        .expect(125)
        .complains_of(&["checking template", &name]);

    finish(bulkhead.bulkhead().args(["template", "prune"])).expect(0);
    assert_eq!(templates(&bulkhead).len(), 1, "a current template was pruned");
    finish(bulkhead.bulkhead().args(["template", "prune", "--all"])).expect(0);
    let left: Vec<_> = fs::read_dir(bulkhead.templates()).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
    finish(bulkhead.bulkhead().args(["template", "inspect", "0123"]))
        .expect(125)
        .complains_of(&["0123", "bulkhead template list"]);
}

#[test]
fn a_broken_template_is_said_removed_and_not_used() {
    let Some(bulkhead) = Installation::for_wall(Wall::MicroVm) else {
        return;
    };
    let bulkhead = bulkhead.with_own_templates();
    let build = || {
        finish(bulkhead.bulkhead().args(["template", "build"])).expect(0);
        templates(&bulkhead).remove(0).join("snapshot")
    };
    let snapshot = build();
    let memory = fs::File::options()
        .write(true)
        .open(snapshot.join("memory"))
        .unwrap();
    memory.set_len(4096).unwrap();
    bulkhead
        .run(Wall::MicroVm, &["--template", "require"], &["true"])
        .expect(125)
        .complains_of(&["cloning the microVM", "loading the guest", "memory"]);
    assert_eq!(templates(&bulkhead), Vec::<PathBuf>::new());

    let snapshot = build();
    flip_a_byte(&snapshot.join("state"));
    bulkhead
        .run(Wall::MicroVm, &[], &["true"])
        .expect(0)
        .complains_of(&[
            "booting the microVM, because it cannot be cloned",
            "loading the guest",
        ]);
    assert_eq!(templates(&bulkhead), Vec::<PathBuf>::new());
}

#[test]
fn a_template_removed_while_it_is_cloned_is_built_again() {
    let Some(bulkhead) = Installation::for_wall(Wall::MicroVm) else {
        return;
    };
    let bulkhead = bulkhead.with_own_templates();
    // In the VMM's place: it has the template pruned between the runtime's finding and the VMM's opening it, once.
    let vmm = bulkhead.scratch("vmm").join("bulkhead-vmm");
    let script = format!(
        "#!/bin/sh\n\
        set -eu\n\
        read -r config || true\n\
        case $config in *'\"restore\":\"'*)\n\
        if mkdir \"$0.pruned\" 2>/dev/null; then rm -r '{}'/*[0-9a-f]; fi ;;\n\
        esac\n\
        printf %s \"$config\" >\"$0.$$\"\n\
        exec '{}' \"$@\" <\"$0.$$\"\n",
        bulkhead.templates().display(),
        tests::binary("bulkhead-vmm").display(),
    );
    fs::write(&vmm, script).unwrap();
    fs::set_permissions(&vmm, PermissionsExt::from_mode(0o755)).unwrap();
    let configuration = bulkhead.configuration(&format!("[microvm]\nvmm = \"{}\"", vmm.display()));
    let configured = || {
        let mut command = bulkhead.bulkhead();
        command.arg("--config").arg(&configuration);
        command
    };
    finish(configured().args(["template", "build"])).expect(0);
    let mut run = configured();
    run.args(["run", "--rm", "--isolation", "microvm", "--template", "require"]);
    run.args(["--name", &bulkhead.fresh_name(), &bulkhead.image(), "true"]);
    finish(&mut run).expect(0);
    assert!(vmm.with_extension("pruned").exists(), "nothing was removed");
    assert_eq!(templates(&bulkhead).len(), 1);
}

#[test]
fn a_folder_of_templates_may_have_a_long_path() {
    let Some(bulkhead) = Installation::for_wall(Wall::MicroVm) else {
        return;
    };
    // A unix address holds 107 bytes.
    let folder = bulkhead.scratch(&"long".repeat(30));
    let bulkhead = bulkhead.with_templates_in(folder.join("templates"));
    finish(bulkhead.bulkhead().args(["template", "build"])).expect(0);
    assert_eq!(templates(&bulkhead).len(), 1);
}

#[test]
fn clones_outlive_their_template() {
    let Some(bulkhead) = Installation::for_wall(Wall::MicroVm) else {
        return;
    };
    let bulkhead = bulkhead.with_own_templates();
    let script = "echo ready; read line; head -c 20000000 /dev/zero | md5sum";
    let mut run = bulkhead.run_command(
        Wall::MicroVm,
        &["-i", "--template", "require"],
        &["sh", "-c", script],
    );
    let mut child = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    finish(bulkhead.bulkhead().args(["template", "prune", "--all"])).expect(0);
    assert_eq!(templates(&bulkhead), Vec::<PathBuf>::new());
    drop(child.stdin.take());
    let (code, stdout, _) = output(child);
    assert_eq!(code, Some(0));
    // Of twenty million zeros.
    assert!(stdout.starts_with("10e4462c9d0b08e7f0b304c4fbfeafa3"), "{stdout}");
}

/// Killed while the machine boots, and while it is saved.
#[test]
fn a_killed_builder_is_succeeded_by_the_next() {
    let Some(bulkhead) = Installation::for_wall(Wall::MicroVm) else {
        return;
    };
    let bulkhead = bulkhead.with_own_templates();
    for moment in ["machine/console.ring", "snapshot/memory"] {
        let mut build = bulkhead.bulkhead();
        let mut builder = build.args(["template", "build"]).spawn().unwrap();
        wait_for(moment, || {
            let machines = fs::read_dir(bulkhead.templates()).into_iter().flatten().flatten();
            machines
                .map(|entry| entry.path().join(moment))
                .any(|file| file.exists())
        });
        builder.kill().unwrap();
        builder.wait().unwrap();
        // Saved whole, it could be the template; half saved it is none.
        for template in templates(&bulkhead) {
            assert_eq!(moment, "snapshot/memory");
            let name = template.file_name().unwrap().to_str().unwrap().to_owned();
            finish(bulkhead.bulkhead().args(["template", "inspect", &name])).expect(0);
        }
    }
    bulkhead
        .run(Wall::MicroVm, &["--template", "require"], &["true"])
        .expect(0);
    assert_eq!(templates(&bulkhead).len(), 1);
    let machines = fs::read_dir(bulkhead.templates()).unwrap().flatten();
    let left = machines.filter(|entry| entry.path().extension().is_some_and(|kind| kind == "building"));
    assert_eq!(left.count(), 0);
}

#[test]
fn without_room_for_a_template_the_machine_boots_and_says_why() {
    let Some(bulkhead) = Installation::for_wall(Wall::MicroVm) else {
        return;
    };
    let bulkhead = bulkhead.with_own_templates();
    fs::create_dir(bulkhead.templates()).unwrap();
    let metrics = bulkhead.scratch("metrics");
    let configuration = bulkhead.configuration(&format!("[microvm]\nmetrics = {metrics:?}\n"));
    let options = ["--config", configuration.to_str().unwrap()];
    // A file system of one MiB, in a mount namespace that goes with the command.
    let inner = bulkhead.run_command(Wall::MicroVm, &options, &["echo", "booted"]);
    let script = r#"mount -t tmpfs -o size=1m,mode=700 templates "$0" && exec "$@""#;
    let mut command = std::process::Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", script])
        .arg(bulkhead.templates());
    command.arg(inner.get_program()).args(inner.get_args());
    let finished = finish(command.stdin(Stdio::null())).expect(0);
    assert_eq!(finished.stdout, "booted\n");
    finished.complains_of(&[
        "booting the microVM, because it cannot be cloned",
        "No space left",
    ]);
    let counted = fs::read_to_string(metrics.join("bulkhead_machines.prom")).unwrap();
    assert!(
        counted.contains("bulkhead_machine_starts_total{origin=\"boot_instead_of_clone\"} 1\n"),
        "{counted}"
    );
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// In the middle of the file's last page that is not empty.
fn flip_a_byte(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let position = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[position] ^= 0x10;
    let sparse = fs::File::options().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, &bytes[position..=position], position as u64).unwrap();
}
