//! System call filters.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use container::{CreateError, CreateOptions, SeccompAgentError, Stdio};
use serde_json::{Value, json};

use crate::bundle::{Outcome, TestBundle, chain, files, wait};
use crate::seccomp_agent::{Agent, Verdict, serve};

crate::tests!(
    a_call_fails_with_the_error_of_its_rule,
    an_argument_decides,
    a_forbidden_call_kills,
    a_program_runs_that_may_not_be_looked_for,
    a_user_without_privileges_is_filtered_in_either_way,
    an_ordinary_profile_runs_a_shell,
    every_flag_is_taken,
    a_32_bit_call_has_its_own_rules,
    a_joining_process_is_filtered,
    a_joining_process_may_be_forbidden_what_its_making_takes,
    an_agent_decides_about_a_call,
    an_agent_decides_about_a_call_among_others,
    an_agent_may_get_every_call_there_is,
    an_agent_hears_of_a_joining_process,
    a_listener_that_cannot_be_taken_is_told,
    without_an_agent_nothing_is_created,
    a_section_that_says_nothing_is_none,
);

const KILLED: i32 = 128 + libc::SIGSYS;

fn shell(script: &str, seccomp: Value) -> TestBundle {
    let mut bundle = TestBundle::shell(script);
    bundle.config["linux"]["seccomp"] = seccomp;
    bundle
}

/// Runs it with the filter loaded last, and with the filter loaded by privilege.
fn run_in_both_ways(bundle: &mut TestBundle) -> [Outcome; 2] {
    [true, false].map(|no_new_privileges| {
        bundle.config["process"]["noNewPrivileges"] = no_new_privileges.into();
        bundle.run()
    })
}

fn allowing(rules: Value) -> Value {
    json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules })
}

fn a_call_fails_with_the_error_of_its_rule() {
    let mut bundle = shell(
        "mkdir /dev/shm/a; rm /dev/shm/none; grep Seccomp: /proc/self/status",
        allowing(json!([
            { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EXDEV },
            { "names": ["unlink", "unlinkat"], "action": "SCMP_ACT_ERRNO" },
            { "names": ["no_such_call"], "action": "SCMP_ACT_KILL_PROCESS" }
        ])),
    );
    for outcome in run_in_both_ways(&mut bundle) {
        assert!(outcome.stderr.contains("cross-device link"), "{outcome:?}");
        assert!(
            outcome.stderr.contains("'/dev/shm/none'") || outcome.stderr.contains("No such file"),
            "{outcome:?}"
        );
        assert_eq!(outcome.stdout, "Seccomp:\t2\n");
    }
}

fn an_argument_decides() {
    let mut bundle = shell(
        "kill -CONT $$ && echo sent; kill -USR1 $$ || echo not sent",
        allowing(json!([{ "names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [
            { "index": 0, "value": 1, "op": "SCMP_CMP_EQ" },
            { "index": 1, "value": libc::SIGUSR1, "op": "SCMP_CMP_EQ" }
        ] }])),
    );
    for outcome in run_in_both_ways(&mut bundle) {
        assert_eq!(outcome.stdout, "sent\nnot sent\n", "{outcome:?}");
        assert!(outcome.stderr.contains("Operation not permitted"), "{outcome:?}");
    }
}

fn a_program_runs_that_may_not_be_looked_for() {
    let calls = [
        "faccessat2",
        "close_range",
        "faccessat",
        "access",
        "stat",
        "newfstatat",
        "statx",
    ];
    for names in [&calls[..2], &calls[..]] {
        let mut bundle = TestBundle::command(&["/bin/echo", "runs"]);
        bundle.config["linux"]["seccomp"] = allowing(json!([{ "names": names, "action": "SCMP_ACT_ERRNO" }]));
        for outcome in run_in_both_ways(&mut bundle) {
            assert_eq!(outcome.stdout, "runs\n", "{names:?}: {outcome:?}");
        }
        std::fs::remove_dir_all(&bundle.folder).unwrap();
    }
}

fn a_forbidden_call_kills() {
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
        let mut bundle = TestBundle::command(&["/bin/mkdir", "/dev/shm/a"]);
        let names = ["mkdir", "mkdirat"];
        bundle.config["linux"]["seccomp"] = allowing(json!([{ "names": names, "action": action }]));
        for outcome in run_in_both_ways(&mut bundle) {
            assert_eq!(outcome.code, KILLED, "{action}: {outcome:?}");
        }
        std::fs::remove_dir_all(&bundle.folder).unwrap();
    }
}

fn a_user_without_privileges_is_filtered_in_either_way() {
    let mut bundle = shell(
        "id -u; grep -E '^(Seccomp:|CapEff|NoNewPrivs)' /proc/self/status; mkdir /dev/shm/a",
        allowing(
            json!([{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EXDEV }]),
        ),
    );
    bundle.config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    let outcomes = run_in_both_ways(&mut bundle);
    for (outcome, no_new_privileges) in outcomes.iter().zip([1, 0]) {
        let expected =
            format!("1000\nCapEff:\t0000000000000000\nNoNewPrivs:\t{no_new_privileges}\nSeccomp:\t2\n");
        assert_eq!(outcome.stdout, expected, "{outcome:?}");
        assert!(outcome.stderr.contains("cross-device link"), "{outcome:?}");
    }
}

/// What programs of every day use, and nothing that changes the system.
const ORDINARY: &str = "\
    _llseek accept accept4 access alarm arch_prctl bind brk capget capset chdir chmod chown clock_getres \
    clock_gettime clock_gettime64 clock_nanosleep close close_range connect copy_file_range creat dup dup2 \
    dup3 epoll_create1 epoll_ctl epoll_pwait epoll_wait eventfd2 execve execveat exit exit_group faccessat \
    faccessat2 fadvise64 fallocate fchdir fchmod fchmodat fchown fchownat fcntl fcntl64 fdatasync flock fork \
    fstat fstat64 fstatfs fsync ftruncate futex getcwd getdents getdents64 getegid geteuid getgid getgroups \
    getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit \
    getrusage getsid getsockname getsockopt gettid gettimeofday getuid inotify_add_watch inotify_init1 ioctl \
    kill lchown link linkat listen lseek lstat madvise mkdir mkdirat mlock mmap mmap2 mprotect mremap msync \
    munmap nanosleep newfstatat open openat openat2 pipe pipe2 poll ppoll prctl pread64 prlimit64 pselect6 \
    pwrite64 read readlink readlinkat readv recvfrom recvmsg rename renameat2 restart_syscall rmdir rseq \
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigsuspend sched_getaffinity sched_yield select sendfile \
    sendmsg sendto set_robust_list set_tid_address setgid setgroups setpgid setresgid setresuid setsid setuid \
    sigaltstack socketpair stat statx symlink sysinfo tgkill umask uname unlink unlinkat utimensat vfork \
    wait4 waitid waitpid write writev";

fn ordinary_profile() -> Value {
    let names: Vec<&str> = ORDINARY.split_whitespace().collect();
    let domain = |value: u64| json!([{ "index": 0, "value": value, "op": "SCMP_CMP_EQ" }]);
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::EPERM,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            { "names": names, "action": "SCMP_ACT_ALLOW" },
            { "names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": domain(0) },
            { "names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": domain(0xffff_ffff) },
            { "names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [
                { "index": 0, "value": libc::AF_VSOCK, "op": "SCMP_CMP_NE" }
            ] },
            // No namespaces.
            { "names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [
                { "index": 0, "value": 0x7e02_0000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }
            ] },
            { "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS }
        ]
    })
}

fn an_ordinary_profile_runs_a_shell() {
    let script = "echo $(seq 3 | wc -l) > /dev/shm/a; cat /dev/shm/a; ls / | grep -c bin; (sleep 0; echo sub) & wait; \
                  mount -t tmpfs none /dev/shm 2>&1; hostname other 2>&1; grep Seccomp: /proc/self/status";
    let mut bundle = shell(script, ordinary_profile());
    let capabilities = json!(["CAP_SYS_ADMIN"]);
    for set in ["bounding", "permitted", "effective"] {
        bundle.config["process"]["capabilities"][set] = capabilities.clone();
    }
    for outcome in run_in_both_ways(&mut bundle) {
        assert_eq!(outcome.code, 0, "{outcome:?}");
        let lines: Vec<&str> = outcome.stdout.lines().collect();
        assert_eq!(lines[..3], ["3", "1", "sub"], "{outcome:?}");
        assert!(
            lines[3].contains("ermi") && lines[4].contains("not permitted"),
            "{outcome:?}"
        );
        assert_eq!(lines[5], "Seccomp:\t2");
    }
}

fn every_flag_is_taken() {
    let mut bundle = shell("grep Seccomp_filters /proc/self/status", allowing(json!([])));
    bundle.config["linux"]["seccomp"]["flags"] = json!([
        "SECCOMP_FILTER_FLAG_TSYNC",
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"
    ]);
    let before = std::fs::read_to_string("/proc/self/status").unwrap();
    let own: u32 = before
        .lines()
        .find_map(|line| line.strip_prefix("Seccomp_filters:"))
        .map_or(0, |count| count.trim().parse().unwrap());
    for outcome in run_in_both_ways(&mut bundle) {
        assert_eq!(outcome.stdout, format!("Seccomp_filters:\t{}\n", own + 1));
    }
}

/// A 32-bit program that calls getppid and exits with the error it got, or 0.
fn program_of_32_bits() -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    const HEADERS: u32 = 52 + 32;
    let code: &[u8] = &[
        0xb8, 64, 0, 0, 0, // mov eax, getppid
        0xcd, 0x80, // int 0x80
        0xf7, 0xd8, // neg eax
        0x89, 0xc3, // mov ebx, eax
        0xb8, 1, 0, 0, 0, // mov eax, exit
        0xcd, 0x80, // int 0x80
    ];
    let size = HEADERS + code.len() as u32;
    let mut file = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let halves =
        |file: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|value| file.extend(value.to_le_bytes()));
    let words =
        |file: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|value| file.extend(value.to_le_bytes()));
    // An executable for the 386, its entry, one program header behind this one.
    halves(&mut file, &[2, 3]);
    words(&mut file, &[1, BASE + HEADERS, 52, 0, 0]);
    halves(&mut file, &[52, 32, 1, 0, 0, 0]);
    // The whole file, to be read and executed.
    words(&mut file, &[1, 0, BASE, BASE, size, size, 5, 0x1000]);
    file.extend(code);
    file
}

fn a_32_bit_call_has_its_own_rules() {
    let mut bundle = TestBundle::command(&["/bin/small"]);
    let path = bundle.rootfs().join("bin/small");
    std::fs::write(&path, program_of_32_bits()).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    match Command::new(&path).status() {
        Err(error) if error.raw_os_error() == Some(libc::ENOEXEC) => {
            println!("SKIPPED: this kernel runs no 32-bit programs");
            return;
        }
        status => assert!(status.unwrap().signal().is_none()),
    }
    assert_eq!(bundle.run().code, 0);
    let rule = json!([{ "names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7 }]);
    bundle.config["linux"]["seccomp"] = allowing(rule);
    for outcome in run_in_both_ways(&mut bundle) {
        assert_eq!(outcome.code, KILLED, "its architecture is not named: {outcome:?}");
    }
    bundle.config["linux"]["seccomp"]["architectures"] = json!(["SCMP_ARCH_X86"]);
    for outcome in run_in_both_ways(&mut bundle) {
        assert_eq!(outcome.code, 7, "{outcome:?}");
    }
}

fn a_joining_process_is_filtered() {
    let mut bundle = TestBundle::command(&["/bin/sleep", "600"]);
    bundle.config["linux"]["seccomp"] = allowing(
        json!([{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EXDEV }]),
    );
    let (stdio, _output) = files(&bundle.folder);
    let mut container = bundle.create(stdio).unwrap();
    container.start().unwrap();
    for no_new_privileges in [true, false] {
        let mut process = serde_json::to_value(container.configured_process().unwrap()).unwrap();
        process["args"] = json!([
            "/bin/sh",
            "-c",
            "grep Seccomp: /proc/self/status; mkdir /dev/shm/a"
        ]);
        process["noNewPrivileges"] = no_new_privileges.into();
        let process = serde_json::from_value(process).unwrap();
        let folder = bundle.folder.join(no_new_privileges.to_string());
        std::fs::create_dir(&folder).unwrap();
        let (stdio, output) = files(&folder);
        let executed = container.exec(&process, stdio).unwrap();
        let outcome = output.outcome(executed.wait().unwrap());
        assert_eq!(outcome.stdout, "Seccomp:\t2\n", "{outcome:?}");
        assert!(outcome.stderr.contains("cross-device link"), "{outcome:?}");
    }
    container.delete(true).unwrap();
    wait(&container);
}

/// Then the process loads its filter itself.
fn a_joining_process_may_be_forbidden_what_its_making_takes() {
    for name in ["clone", "setsid", "exit_group", "prlimit64"] {
        let profile = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            { "names": [name, "mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EXDEV }
        ]});
        let mut bundle = TestBundle::command(&["/bin/sleep", "600"]);
        bundle.config["linux"]["seccomp"] = profile;
        bundle.config["process"]["noNewPrivileges"] = false.into();
        let (stdio, _output) = files(&bundle.folder);
        let mut container = bundle.create(stdio).unwrap();
        container.start().unwrap();
        let mut process = serde_json::to_value(container.configured_process().unwrap()).unwrap();
        process["args"] = json!(["/bin/mkdir", "/dev/shm/a"]);
        process["rlimits"] = json!([{ "type": "RLIMIT_NPROC", "soft": 100, "hard": 100 }]);
        let process = serde_json::from_value(process).unwrap();
        let folder = bundle.folder.join("exec");
        std::fs::create_dir(&folder).unwrap();
        let (stdio, output) = files(&folder);
        let executed = container
            .exec(&process, stdio)
            .unwrap_or_else(|error| panic!("{name}: {}", chain(&error)));
        let outcome = output.outcome(executed.wait().unwrap());
        assert!(
            outcome.stderr.contains("cross-device link"),
            "{name}: {outcome:?}"
        );
        container.delete(true).unwrap();
        wait(&container);
        std::fs::remove_dir_all(&bundle.folder).unwrap();
    }
}

fn handing_on(agent: &Agent, names: Value) -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": agent.path,
        "listenerMetadata": "for the agent",
        "syscalls": [{ "names": names, "action": "SCMP_ACT_NOTIFY" }]
    })
}

fn an_agent_decides_about_a_call() {
    an_agent_decides(|_| {});
}

/// Where the process that loads the filter is made by another one.
fn an_agent_decides_about_a_call_among_others() {
    let sleeper = TestBundle::named("-sleeper", &["sleep", "600"]);
    let mut sleeping = sleeper.create(container::Stdio::Inherit).unwrap();
    sleeping.start().unwrap();
    let path = format!("/proc/{}/ns/pid", sleeping.pid().unwrap());
    an_agent_decides(|bundle| {
        let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
        let pid = namespaces.iter_mut().find(|namespace| namespace["type"] == "pid");
        pid.unwrap()["path"] = path.as_str().into();
    });
    sleeping.delete(true).unwrap();
    wait(&sleeping);
}

fn an_agent_decides(change: impl Fn(&mut TestBundle)) {
    for no_new_privileges in [true, false] {
        let mut bundle = TestBundle::shell("mkdir /dev/shm/a || mkdir /dev/shm/b && echo made; ls /dev/shm");
        let agent = Agent::listen(&bundle.folder);
        bundle.config["linux"]["seccomp"] = handing_on(&agent, json!(["mkdir", "mkdirat"]));
        bundle.config["process"]["noNewPrivileges"] = no_new_privileges.into();
        bundle.config["annotations"] = json!({ "key": "value" });
        change(&mut bundle);
        let (stdio, output) = files(&bundle.folder);
        let mut container = bundle
            .create(stdio)
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        // Before anybody starts it.
        let (state, listener) = agent.accept();
        container
            .start()
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        let pid = container.pid().unwrap();
        assert_eq!(
            state,
            json!({
                "ociVersion": "1.0.2", "fds": ["seccompFd"], "pid": pid, "metadata": "for the agent",
                "state": {
                    "ociVersion": "1.0.2", "id": bundle.id.to_string(), "status": "creating", "pid": pid,
                    "bundle": bundle.folder, "annotations": { "key": "value" }
                }
            })
        );
        let mut verdicts = [Verdict::Fail(libc::EXDEV), Verdict::Return(0)].into_iter();
        serve(&listener, |_| verdicts.next().unwrap());
        let outcome = output.outcome(wait(&container));
        assert_eq!(outcome.stdout, "made\n", "{outcome:?}");
        assert!(outcome.stderr.contains("cross-device link"), "{outcome:?}");
        container.delete(false).unwrap();
        std::fs::remove_dir_all(&bundle.folder).unwrap();
    }
}

fn wait_for_agent(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid);
    let ended = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()).unwrap();
    assert_eq!(ended.unwrap().1.exit_status(), Some(0));
}

/// Sending, reading and executing among them: the engine's own steps after the filter is loaded.
fn an_agent_may_get_every_call_there_is() {
    for no_new_privileges in [true, false] {
        let mut bundle = TestBundle::shell("echo said");
        let agent = Agent::listen(&bundle.folder);
        bundle.config["linux"]["seccomp"] =
            json!({ "defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": agent.path });
        bundle.config["process"]["noNewPrivileges"] = no_new_privileges.into();
        let notes = bundle.folder.join("notes");
        let serving = agent.serve_in_background(&notes);
        assert_eq!(bundle.output(), "said\n");
        wait_for_agent(serving);
        let notes = std::fs::read_to_string(notes).unwrap();
        for number in [
            libc::SYS_read,
            libc::SYS_sendmsg,
            libc::SYS_execve,
            libc::SYS_write,
        ] {
            assert!(
                notes.lines().any(|line| line == number.to_string()),
                "{number}: {notes}"
            );
        }
        std::fs::remove_dir_all(&bundle.folder).unwrap();
    }
}

fn an_agent_hears_of_a_joining_process() {
    let mut bundle = TestBundle::command(&["/bin/sleep", "600"]);
    let agent = Agent::listen(&bundle.folder);
    bundle.config["linux"]["seccomp"] = handing_on(&agent, json!(["mkdir", "mkdirat"]));
    let (stdio, _output) = files(&bundle.folder);
    let mut container = bundle.create(stdio).unwrap();
    container.start().unwrap();
    let _first = agent.accept();
    for no_new_privileges in [true, false] {
        let mut process = serde_json::to_value(container.configured_process().unwrap()).unwrap();
        process["args"] = json!(["mkdir", "/dev/shm/a"]);
        process["noNewPrivileges"] = no_new_privileges.into();
        let process = serde_json::from_value(process).unwrap();
        let (stdio, output) = files(&bundle.folder);
        let executed = container
            .exec(&process, stdio)
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        let (state, listener) = agent.accept();
        assert_eq!(state["pid"], executed.pid());
        assert_eq!(state["state"]["pid"], container.pid().unwrap());
        assert_eq!(state["state"]["status"], "running");
        serve(&listener, |_| Verdict::Fail(libc::EXDEV));
        let outcome = output.outcome(executed.wait().unwrap());
        assert!(
            outcome.code != 0 && outcome.stderr.contains("cross-device link"),
            "{outcome:?}"
        );
    }
    container.delete(true).unwrap();
    wait(&container);
}

fn a_listener_that_cannot_be_taken_is_told() {
    let mut bundle = TestBundle::command(&["true"]);
    let agent = Agent::listen(&bundle.folder);
    let mut profile = handing_on(&agent, json!(["mkdir"]));
    let forbidden = json!({ "names": ["read"], "action": "SCMP_ACT_ERRNO" });
    profile["syscalls"].as_array_mut().unwrap().push(forbidden);
    bundle.config["linux"]["seccomp"] = profile;
    for no_new_privileges in [true, false] {
        bundle.config["process"]["noNewPrivileges"] = no_new_privileges.into();
        let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
        assert!(message.contains("has to allow read"), "{message}");
    }
}

fn without_an_agent_nothing_is_created() {
    for no_new_privileges in [true, false] {
        let mut bundle = TestBundle::command(&["true"]);
        let agent = Agent::listen(&bundle.folder);
        bundle.config["linux"]["seccomp"] = handing_on(&agent, json!(["mkdir"]));
        bundle.config["process"]["noNewPrivileges"] = no_new_privileges.into();
        let (loaded, states) = (bundle.bundle(), bundle.states());
        let refused = || {
            let error =
                container::create(CreateOptions::new(&states, &bundle.id, &loaded).stdio(Stdio::Inherit));
            let error = error.unwrap_err();
            assert!(!states.join(bundle.id.to_string()).exists());
            let text = chain(&error);
            match error {
                CreateError::SeccompAgent(error) => (error, text),
                _ => panic!("{text}"),
            }
        };
        // Nobody listens at what is left of it.
        let path = agent.path.clone();
        drop(agent);
        let (error, text) = refused();
        assert!(matches!(error, SeccompAgentError::Unreachable { .. }), "{text}");
        assert!(text.contains("Connection refused"), "{text}");
        std::fs::remove_file(&path).unwrap();
        let (error, text) = refused();
        assert!(matches!(error, SeccompAgentError::Unreachable { .. }), "{text}");
        assert!(
            text.contains(path.to_str().unwrap()) && text.contains("No such file"),
            "{text}"
        );
        let datagrams = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        let (error, text) = refused();
        assert!(matches!(error, SeccompAgentError::NotAStream { .. }), "{text}");
        drop(datagrams);
        std::fs::remove_dir_all(&bundle.folder).unwrap();
    }
}

fn a_section_that_says_nothing_is_none() {
    let bundle = shell("grep Seccomp: /proc/self/status", json!({}));
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find(|line| line.starts_with("Seccomp:")).unwrap();
    assert_eq!(bundle.output(), format!("{own}\n"));
}
