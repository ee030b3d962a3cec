//! SIGKILL at random moments to whatever stands for a container behind the microVM wall: its VMM, its attendant, its guest,
//! its program, and the command line itself. Whatever it was, nobody hangs, `delete --force` is quick, nothing is left,
//! and the sandbox beside it lives.
//!
//! `BULKHEAD_TEST_KILLS` says how many moments (8 without it), `BULKHEAD_TEST_CYCLES` how many lives from creation to
//! deletion (3), `BULKHEAD_TEST_SEED` from which seed the moments are drawn.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tests::oci_container::OciContainer;
use tests::{Wall, busy_factor};

/// How long a verb may go on when what it works with has died. Only a hang takes it all.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long `delete --force` may take where nothing else runs.
const DELETION: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Create,
    Start,
    Exec,
    Delete,
    Vmm,
    Attendant,
    Guest,
    Program,
}

const VICTIMS: [Victim; 8] = [
    Victim::Create,
    Victim::Vmm,
    Victim::Start,
    Victim::Attendant,
    Victim::Exec,
    Victim::Guest,
    Victim::Delete,
    Victim::Program,
];

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// xorshift64*
struct Random(u64);

impl Random {
    /// Some part of `whole`.
    fn part_of(&mut self, whole: Duration) -> Duration {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let thousandths = (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % 1000;
        whole * u32::try_from(thousandths).unwrap() / 1000
    }
}

/// Gives a container a cgroup beside all others, of much weight: what else runs on the host, such as other tests, is not to
/// decide how long things take.
fn weigh(config: &mut Value, id: &str) {
    config["linux"]["cgroupsPath"] = json!(format!("/{id}"));
    config["linux"]["resources"]["cpu"] = json!({ "shares": 32_768 });
}

/// The container that is killed, and a pod beside it.
struct Scene {
    container: OciContainer,
    bystander: String,
    /// A bundle whose container belongs to the bystander's pod.
    member: (String, PathBuf),
}

/// What verbs took that nobody killed.
struct Times {
    create: Duration,
    start: Duration,
    exec: Duration,
    delete: Duration,
}

impl Scene {
    fn new() -> Option<Self> {
        // It writes to its root and to its output for as long as it lives, and starts no processes for that: they are dear
        // where the guest's kernel is emulated.
        let script = "busybox mkfifo /tmp/never; exec 3<>/tmp/never; \
                      while :; do echo line >/file; echo line; read -t 0.5 -u 3 word; done";
        let mut container = OciContainer::behind(Wall::MicroVm, &["sh", "-c", script])?;
        // Its processes are in the guest's own pid namespace and can end it as a kernel would.
        let process = &mut container.config["process"]["capabilities"];
        for set in ["bounding", "effective", "permitted"] {
            process[set].as_array_mut().unwrap().push(json!("CAP_SYS_BOOT"));
        }
        let id = container.id();
        weigh(&mut container.config, &id);
        let namespaces = container.config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
        let bystander = container.sibling("bystander", &["sleep", "6000"], |config| {
            config["annotations"] = json!({ "io.kubernetes.cri.container-type": "sandbox" });
        });
        let path = bystander.folder.join("config.json");
        let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        weigh(&mut config, &bystander.id);
        fs::write(path, config.to_string()).unwrap();
        let pod = bystander.id.clone();
        let member = container.sibling("member", &["sleep", "6000"], |config| {
            config["annotations"] = json!({ "dev.bulkhead.sandbox": pod });
        });
        let folder = bystander.folder.to_str().unwrap().to_owned();
        let scene = Self {
            container,
            bystander: bystander.id,
            member: (member.id, member.folder),
        };
        scene.to_its_end("create", &["--bundle", &folder, &scene.bystander]);
        scene.to_its_end("start", &[&scene.bystander]);
        Some(scene)
    }

    /// A verb with its messages in a file: a pipe would stay open in what it leaves behind.
    fn spawn(&self, verb: &str, arguments: &[&str]) -> Child {
        let messages = File::create(self.container.scratch().join("messages")).unwrap();
        let mut command = self.container.command(verb);
        command.args(arguments).stdout(messages.try_clone().unwrap());
        command.stderr(messages).spawn().unwrap()
    }

    /// Waits for a verb that must end by itself, whatever its end.
    #[track_caller]
    fn ends(&self, what: &str, mut child: Child) -> bool {
        let deadline = Instant::now() + PATIENCE * busy_factor();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.success();
            }
            if Instant::now() > deadline {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("{what} hangs; it said:\n{}", self.messages());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn messages(&self) -> String {
        fs::read_to_string(self.container.scratch().join("messages")).unwrap()
    }

    /// Has a verb succeed. On a host that is busy enough a guest may answer later than the verb waits, which it says; then
    /// it is asked once more.
    #[track_caller]
    fn to_its_end(&self, verb: &str, arguments: &[&str]) -> Duration {
        let deadline = Instant::now() + PATIENCE * busy_factor();
        loop {
            let begun = Instant::now();
            if self.ends(verb, self.spawn(verb, arguments)) {
                return begun.elapsed();
            }
            let messages = self.messages();
            let came_too_late = messages.contains("did not answer") || messages.contains("deadline elapsed");
            let is_excused = came_too_late && busy_factor() > 1 && Instant::now() < deadline;
            assert!(is_excused, "{verb}: {messages}");
            println!("again, since the host is busy: {messages}");
        }
    }

    fn create(&self) -> Duration {
        self.to_its_end("create", &["--bundle", ".", &self.container.id()])
    }

    fn start(&self) -> Duration {
        self.to_its_end("start", &[&self.container.id()])
    }

    fn exec(&self) -> Child {
        self.spawn("exec", &[&self.container.id(), "sh", "-c", "echo said; ls /bin"])
    }

    fn measure(&self) -> Times {
        let (create, start) = (self.create(), self.start());
        let begun = Instant::now();
        assert!(self.ends("exec", self.exec()), "{}", self.messages());
        let exec = begun.elapsed();
        let delete = self.to_its_end("delete", &["--force", &self.container.id()]);
        Times {
            create,
            start,
            exec,
            delete,
        }
    }

    /// Kills `child` after `moment`, if it still runs then.
    fn kill(mut child: Child, moment: Duration) {
        std::thread::sleep(moment);
        // It may have ended by itself.
        let _ = child.kill();
        child.wait().unwrap();
    }

    /// Leads one life to the moment when `victim` is killed.
    fn kill_at_some_moment(&self, victim: Victim, times: &Times, random: &mut Random) {
        let id = self.container.id();
        if victim == Victim::Create {
            let child = self.spawn("create", &["--bundle", ".", &id]);
            return Self::kill(child, random.part_of(times.create));
        }
        self.create();
        if victim == Victim::Start {
            return Self::kill(self.spawn("start", &[&id]), random.part_of(times.start));
        }
        self.start();
        match victim {
            Victim::Create | Victim::Start => {}
            Victim::Exec => Self::kill(self.exec(), random.part_of(times.exec)),
            Victim::Delete => {
                let child = self.spawn("delete", &["--force", &id]);
                Self::kill(child, random.part_of(times.delete));
            }
            Victim::Vmm | Victim::Attendant => {
                let process = if victim == Victim::Vmm {
                    self.vmm()
                } else {
                    self.attendant()
                };
                let exec = self.exec();
                std::thread::sleep(random.part_of(times.exec));
                kill_process(process, Signal::KILL).unwrap();
                self.ends("exec in a machine that died", exec);
            }
            Victim::Guest => {
                let exec = self.exec();
                std::thread::sleep(random.part_of(times.exec));
                self.ends("rebooting", self.spawn("exec", &[&id, "busybox", "reboot", "-f"]));
                self.ends("exec in a guest that died", exec);
            }
            Victim::Program => {
                let exec = self.exec();
                std::thread::sleep(random.part_of(times.exec));
                self.to_its_end("kill", &[&id, "KILL"]);
                self.ends("exec in a container that died", exec);
            }
        }
    }

    fn record(&self, file: &str) -> Value {
        let path = self.container.scratch().join("states").join(self.container.id());
        serde_json::from_slice(&fs::read(path.join(file)).unwrap()).unwrap()
    }

    fn vmm(&self) -> Pid {
        pid(&self.record("sandbox.json")["machine"]["pid"])
    }

    fn attendant(&self) -> Pid {
        let state = self.container.on("state", &[]).expect(0).stdout;
        pid(&serde_json::from_str::<Value>(&state).unwrap()["pid"])
    }

    /// Deletes what there is and looks that nothing of it is there any more.
    #[track_caller]
    fn clean_up(&self, what: &str) -> Duration {
        let id = self.container.id();
        let begun = Instant::now();
        let has_succeeded = self.ends("delete", self.spawn("delete", &["--force", &id]));
        let taken = begun.elapsed();
        assert!(has_succeeded, "{what}: {}", self.messages());
        assert!(
            taken < DELETION * busy_factor(),
            "{what}: deleting took {taken:?}"
        );
        let left = self.left();
        assert!(left.is_empty(), "{what}: left behind:\n{}", left.join("\n"));
        let state = self.container.oci("state", &[&self.bystander]).expect(0).stdout;
        let state: Value = serde_json::from_str(&state).unwrap();
        assert_eq!(state["status"], "running", "{what}");
        taken
    }

    /// What bears the killed container's name.
    fn left(&self) -> Vec<String> {
        let id = self.container.id();
        let mut left = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            // A process that ends meanwhile is none that is left.
            let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
            // One that has ended and that its parent does not wait for keeps the name of its cgroup.
            let stat = String::from_utf8_lossy(&read("stat")).into_owned();
            if stat
                .rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with('Z'))
            {
                continue;
            }
            for name in ["cmdline", "mountinfo", "cgroup"] {
                if String::from_utf8_lossy(&read(name)).contains(&id) {
                    left.push(format!("{} by its {name}", entry.path().display()));
                }
            }
        }
        let mut folders = vec![self.container.scratch().join("states")];
        folders.extend(
            fs::read_dir("/sys/fs/cgroup")
                .unwrap()
                .flatten()
                .map(|entry| entry.path()),
        );
        folders.push("/sys/fs/cgroup/bulkhead".into());
        for folder in folders {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            let named = entries.filter(|entry| entry.file_name().to_string_lossy().contains(&id));
            left.extend(named.map(|entry| entry.path().display().to_string()));
        }
        left
    }

    /// That a program can still be run beside what was killed.
    fn assert_bystander_works(&self) {
        let said = self
            .container
            .oci("exec", &[&self.bystander, "echo", "alive"])
            .expect(0);
        assert_eq!(said.stdout, "alive\n");
    }

    fn end(&self) {
        self.assert_bystander_works();
        self.to_its_end("delete", &["--force", &self.bystander]);
        // The container looks for leftovers of everything when it goes.
    }

    /// What the bystander's VMM has open, what is shared with its guest, and what lies in the folders of states.
    fn figures(&self) -> (usize, usize, usize) {
        let states = self.container.scratch().join("states");
        let folder = states.join(&self.bystander);
        let record: Value = serde_json::from_slice(&fs::read(folder.join("sandbox.json")).unwrap()).unwrap();
        let vmm = pid(&record["machine"]["pid"]).as_raw_nonzero();
        let count = |path: PathBuf| fs::read_dir(path).unwrap().count();
        (
            count(format!("/proc/{vmm}/fd").into()),
            count(folder.join("vm/export")),
            count(states),
        )
    }
}

impl Drop for Scene {
    /// What a failed test leaves is not for the next one to stumble over.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for id in [&self.container.id(), &self.bystander] {
                let _ = self.spawn("delete", &["--force", id]).wait();
            }
        }
    }
}

fn pid(value: &Value) -> Pid {
    Pid::from_raw(value.as_i64().unwrap().try_into().unwrap()).unwrap()
}

#[test]
fn whatever_is_killed_at_whatever_moment() {
    let Some(scene) = Scene::new() else { return };
    let seed = number("BULKHEAD_TEST_SEED", 1);
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    // The first one may build a template.
    scene.create();
    scene.clean_up("an undisturbed life");
    let times = scene.measure();
    let mut deletions: Vec<(Duration, Victim)> = Vec::new();
    let kills = usize::try_from(number("BULKHEAD_TEST_KILLS", 8)).unwrap();
    for (moment, victim) in VICTIMS.into_iter().cycle().take(kills).enumerate() {
        let what = format!("moment {moment}, {victim:?}, seed {seed}");
        scene.kill_at_some_moment(victim, &times, &mut random);
        deletions.push((scene.clean_up(&what), victim));
        if moment % 25 == 24 {
            scene.assert_bystander_works();
        }
    }
    deletions.sort_by_key(|(time, _)| *time);
    println!(
        "{kills} kills; deleting took {:?} in the middle, {:?} at most",
        deletions.get(kills / 2),
        deletions.last()
    );
    scene.end();
}

#[test]
fn lives_from_creation_to_deletion_leave_nothing_that_grows() {
    let Some(scene) = Scene::new() else { return };
    let (member, folder) = (&scene.member.0, scene.member.1.to_str().unwrap());
    let mut before: Option<(usize, usize, usize)> = None;
    for cycle in 0..=number("BULKHEAD_TEST_CYCLES", 3) {
        scene.create();
        scene.start();
        scene.to_its_end("create", &["--bundle", folder, member]);
        scene.to_its_end("start", &[member]);
        scene.to_its_end("delete", &["--force", member]);
        scene.clean_up(&format!("cycle {cycle}"));
        // What the first one opens once and for all is no growth.
        let (_, shared, states) = *before.get_or_insert_with(|| scene.figures());
        let figures = scene.figures();
        assert_eq!((figures.1, figures.2), (shared, states), "cycle {cycle}");
    }
    // The guest lets go of a container's files some seconds after it.
    let first = before.unwrap().0;
    let deadline = Instant::now() + PATIENCE * busy_factor();
    while scene.figures().0 > first {
        assert!(
            Instant::now() < deadline,
            "{first} descriptors at first, {:?} at last",
            scene.figures()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    scene.end();
}
