//! The compiled program against the meaning of the profile.

mod evaluator;
mod far_jumps;
mod interpreter;
mod oracle;
mod random_profiles;

use oci_spec::runtime::LinuxSeccomp;
use serde_json::{Value, json};

use super::SeccompPlan;
use super::architecture::X32_BIT;
use interpreter::{CallData, run};

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const ALLOW: u32 = 0x7fff_0000;
const KILL_THREAD: u32 = 0;

fn errno(number: i32) -> u32 {
    0x0005_0000 | number as u32
}

fn plan(seccomp: Value) -> Result<SeccompPlan, crate::plan::SpecError> {
    SeccompPlan::new(&serde_json::from_value::<LinuxSeccomp>(seccomp).unwrap())
}

/// What the profile does with a call.
fn verdict(seccomp: &Value, machine: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let data = CallData {
        number,
        machine,
        arguments,
    };
    run(&plan(seccomp.clone()).unwrap().program, &data).0
}

/// A profile that denies by default.
fn denying(syscalls: Value) -> Value {
    json!({ "defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86"], "syscalls": syscalls })
}

const READ: u32 = libc::SYS_read as u32;
const NONE: [u64; 6] = [0; 6];

fn first(value: u64) -> [u64; 6] {
    [value, 0, 0, 0, 0, 0]
}

#[test]
fn every_action_has_its_value() {
    for (action, value) in [
        (json!({ "action": "SCMP_ACT_KILL" }), 0),
        (json!({ "action": "SCMP_ACT_KILL_THREAD" }), 0),
        (json!({ "action": "SCMP_ACT_KILL_PROCESS" }), 0x8000_0000),
        (json!({ "action": "SCMP_ACT_TRAP" }), 0x0003_0000),
        (json!({ "action": "SCMP_ACT_ERRNO" }), errno(libc::EPERM)),
        (
            json!({ "action": "SCMP_ACT_ERRNO", "errnoRet": 38 }),
            errno(libc::ENOSYS),
        ),
        (json!({ "action": "SCMP_ACT_ERRNO", "errnoRet": 0 }), errno(0)),
        (json!({ "action": "SCMP_ACT_TRACE" }), 0x7ff0_0001),
        (
            json!({ "action": "SCMP_ACT_TRACE", "errnoRet": 0xffff }),
            0x7ff0_ffff,
        ),
        (json!({ "action": "SCMP_ACT_LOG" }), 0x7ffc_0000),
        (json!({ "action": "SCMP_ACT_NOTIFY" }), 0x7fc0_0000),
    ] {
        let mut entry = action;
        entry["names"] = json!(["read"]);
        let profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/agent", "syscalls": [entry]
        });
        assert_eq!(verdict(&profile, X86_64, READ, NONE), value, "{profile}");
        assert_eq!(verdict(&profile, X86_64, READ + 1, NONE), ALLOW);
    }
    let default = json!({ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13 });
    assert_eq!(verdict(&default, X86_64, READ, NONE), errno(libc::EACCES));
}

#[test]
fn arguments_are_compared_with_all_their_bits() {
    let high = 1 << 40;
    for (operator, value, two, fits, does_not) in [
        ("NE", 5, 0, vec![4, 6, 5 | high], vec![5]),
        ("EQ", 5 | high, 0, vec![5 | high], vec![5, high, 5 | high << 1]),
        (
            "LT",
            5 | high,
            0,
            vec![0, 6, 4 | high],
            vec![5 | high, 6 | high, high << 1],
        ),
        ("LE", 5 | high, 0, vec![0, 6, 5 | high], vec![6 | high, high << 1]),
        ("GT", 5 | high, 0, vec![6 | high, high << 1], vec![0, 6, 5 | high]),
        (
            "GE",
            5 | high,
            0,
            vec![5 | high, 6 | high, high << 1],
            vec![0, 6, 4 | high],
        ),
        (
            "MASKED_EQ",
            0xf0 | high,
            0x50 | high,
            vec![0x5f | high, 0x150 | high],
            vec![0x50, 0x60 | high],
        ),
    ] {
        let profile = denying(json!([{ "names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [
            { "index": 3, "value": value, "valueTwo": two, "op": format!("SCMP_CMP_{operator}") }
        ] }]));
        for (arguments, expected) in [(fits, ALLOW), (does_not, errno(libc::EPERM))] {
            for argument in arguments {
                let mut all = [7; 6];
                all[3] = argument;
                let found = verdict(&profile, X86_64, READ, all);
                assert_eq!(found, expected, "{operator} of {argument:#x} and {value:#x}");
            }
        }
    }
}

#[test]
fn a_32_bit_call_is_compared_with_32_bits() {
    let profile = denying(json!([{ "names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [
        { "index": 0, "value": u64::MAX, "op": "SCMP_CMP_EQ" }
    ] }]));
    assert_eq!(verdict(&profile, I386, 3, first(0xffff_ffff)), ALLOW);
    assert_eq!(
        verdict(&profile, X86_64, READ, first(0xffff_ffff)),
        errno(libc::EPERM)
    );
}

#[test]
fn different_arguments_are_asked_together_and_the_same_one_in_turn() {
    let profile = |first_index, second_index| {
        denying(json!([{ "names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [
            { "index": first_index, "value": 1, "op": "SCMP_CMP_EQ" },
            { "index": second_index, "value": 2, "op": "SCMP_CMP_EQ" }
        ] }]))
    };
    let both = profile(0, 1);
    assert_eq!(verdict(&both, X86_64, READ, [1, 2, 0, 0, 0, 0]), ALLOW);
    assert_eq!(
        verdict(&both, X86_64, READ, [1, 1, 0, 0, 0, 0]),
        errno(libc::EPERM)
    );
    let either = profile(0, 0);
    assert_eq!(verdict(&either, X86_64, READ, first(1)), ALLOW);
    assert_eq!(verdict(&either, X86_64, READ, first(2)), ALLOW);
    assert_eq!(verdict(&either, X86_64, READ, first(3)), errno(libc::EPERM));
}

#[test]
fn a_rule_without_conditions_decides_and_among_others_the_first() {
    let rule = |errno: i32, value: Option<u64>| {
        let arguments = value.map(|value| json!([{ "index": 0, "value": value, "op": "SCMP_CMP_GE" }]));
        json!({ "names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno, "args": arguments })
    };
    let profile = denying(json!([rule(5, Some(1)), rule(6, None), rule(7, None)]));
    assert_eq!(verdict(&profile, X86_64, READ, first(1)), errno(6));
    let profile = denying(json!([rule(5, Some(7)), rule(6, Some(3)), rule(7, Some(1))]));
    for (argument, expected) in [(8, 5), (4, 6), (2, 7), (0, libc::EPERM)] {
        assert_eq!(verdict(&profile, X86_64, READ, first(argument)), errno(expected));
    }
    // A rule that says what the default says is none.
    let profile = denying(json!([rule(libc::EPERM, None), rule(6, Some(3))]));
    assert_eq!(verdict(&profile, X86_64, READ, first(3)), errno(6));
}

#[test]
fn only_named_architectures_and_the_native_one_are_let_in() {
    let allow = json!([{ "names": ["read", "ioctl"], "action": "SCMP_ACT_ALLOW" }]);
    let profile = |architectures: Value| json!({ "defaultAction": "SCMP_ACT_ERRNO", "architectures": architectures, "syscalls": allow });
    let calls = |profile: &Value| {
        [
            (X86_64, READ),
            (X86_64, X32_BIT),
            (X86_64, X32_BIT | 514),
            (I386, 3),
            (0xc000_00b7, 63),
        ]
        .map(|(machine, number)| verdict(profile, machine, number, NONE))
    };
    let native = [ALLOW, KILL_THREAD, KILL_THREAD, KILL_THREAD, KILL_THREAD];
    assert_eq!(calls(&profile(json!([]))), native);
    assert_eq!(
        calls(&profile(json!(["SCMP_ARCH_NATIVE", "SCMP_ARCH_AARCH64"]))),
        native
    );
    let all = profile(json!(["SCMP_ARCH_X86", "SCMP_ARCH_X32"]));
    assert_eq!(calls(&all), [ALLOW, ALLOW, ALLOW, ALLOW, KILL_THREAD]);
    // The number of ioctl for x86-64 is none of x32.
    assert_eq!(verdict(&all, X86_64, X32_BIT | 16, NONE), errno(libc::EPERM));
    // A tracer skips a call by giving it this number.
    assert_eq!(
        verdict(&profile(json!([])), X86_64, u32::MAX, NONE),
        errno(libc::EPERM)
    );
}

#[test]
fn calls_newer_than_the_profile_do_not_exist() {
    let profile = |default: &str, number: Option<i32>| {
        json!({
            "defaultAction": default, "defaultErrnoRet": number, "architectures": ["SCMP_ARCH_X86"],
            // 435 on both, 439 on both.
            "syscalls": [{ "names": ["faccessat2"], "action": "SCMP_ACT_ERRNO", "errnoRet": 2 },
                         { "names": ["clone3"], "action": "SCMP_ACT_ALLOW" }]
        })
    };
    for machine in [X86_64, I386] {
        let calls = |profile: &Value| {
            [435, 438, 439, 440, 1000].map(|number| verdict(profile, machine, number, NONE))
        };
        let (eperm, enosys, enoent) = (errno(libc::EPERM), errno(libc::ENOSYS), errno(libc::ENOENT));
        assert_eq!(
            calls(&profile("SCMP_ACT_ERRNO", None)),
            [ALLOW, eperm, enoent, enosys, enosys]
        );
        assert_eq!(
            calls(&profile("SCMP_ACT_KILL", None)),
            [ALLOW, KILL_THREAD, enoent, enosys, enosys]
        );
        assert_eq!(
            calls(&profile("SCMP_ACT_LOG", None)),
            [ALLOW, 0x7ffc_0000, enoent, 0x7ffc_0000, 0x7ffc_0000]
        );
        assert_eq!(
            calls(&profile("SCMP_ACT_ERRNO", Some(38))),
            [ALLOW, enosys, enoent, enosys, enosys]
        );
    }
}

#[test]
fn sockets_of_x86_are_decided_on_both_ways() {
    let profile = denying(
        json!([{ "names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [
        { "index": 0, "value": 40, "op": "SCMP_CMP_NE" }
    ] }]),
    );
    let socketcall = 102;
    assert_eq!(verdict(&profile, I386, 359, first(2)), ALLOW);
    assert_eq!(verdict(&profile, I386, 359, first(40)), errno(libc::EPERM));
    assert_eq!(verdict(&profile, I386, socketcall, first(1)), ALLOW);
    assert_eq!(verdict(&profile, I386, socketcall, first(2)), errno(libc::EPERM));
}

#[test]
fn a_program_that_the_kernel_would_not_take_is_refused() {
    let rules: Vec<Value> = (0..3000)
        .map(|value| {
            json!({ "names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [
                { "index": 0, "value": value * 2, "op": "SCMP_CMP_EQ" }
            ] })
        })
        .collect();
    let fits = denying(json!(rules[..500]));
    assert_eq!(verdict(&fits, X86_64, READ, first(998)), ALLOW);
    assert_eq!(verdict(&fits, X86_64, READ, first(999)), errno(libc::EPERM));
    let error = plan(denying(json!(rules))).unwrap_err();
    assert_eq!(error.field(), "linux.seccomp.syscalls");
    assert!(error.to_string().contains("4096"), "{error}");
}

#[test]
fn a_long_list_of_allowed_calls_is_decided_in_few_steps() {
    let names: Vec<&str> = syscalls::x86_64::Sysno::iter()
        .filter(|call| call.id() % 7 != 3)
        .map(|call| call.name())
        .collect();
    let plan = plan(denying(json!([{ "names": names, "action": "SCMP_ACT_ALLOW" }]))).unwrap();
    let longest = (0..500)
        .map(|number| {
            let data = CallData {
                number,
                machine: X86_64,
                arguments: NONE,
            };
            run(&plan.program, &data).1
        })
        .max();
    assert!(longest.unwrap() <= 16, "{longest:?}");
    assert!(plan.program.len() < 1000, "{}", plan.program.len());
}

#[test]
fn mistakes_are_refused_by_their_place() {
    let one = |entry: Value| {
        json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        { "names": ["write"], "action": "SCMP_ACT_LOG" }, entry
    ] })
    };
    for (profile, field) in [
        (
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1 }),
            "linux.seccomp.defaultErrnoRet",
        ),
        (
            json!({ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096 }),
            "linux.seccomp.defaultErrnoRet",
        ),
        (
            one(json!({ "names": [], "action": "SCMP_ACT_LOG" })),
            "linux.seccomp.syscalls[1].names",
        ),
        (
            one(json!({ "names": ["read", ""], "action": "SCMP_ACT_LOG" })),
            "linux.seccomp.syscalls[1].names[1]",
        ),
        (
            one(json!({ "names": ["read"], "action": "SCMP_ACT_KILL", "errnoRet": 1 })),
            "linux.seccomp.syscalls[1].errnoRet",
        ),
        (
            one(json!({ "names": ["read"], "action": "SCMP_ACT_TRACE", "errnoRet": 65536 })),
            "linux.seccomp.syscalls[1].errnoRet",
        ),
        (
            one(json!({ "names": ["read"], "action": "SCMP_ACT_KILL", "args": [
                { "index": 0, "value": 1, "op": "SCMP_CMP_EQ" }, { "index": 6, "value": 1, "op": "SCMP_CMP_EQ" }
            ] })),
            "linux.seccomp.syscalls[1].args[1].index",
        ),
        (
            one(json!({ "names": ["read"], "action": "SCMP_ACT_NOTIFY" })),
            "linux.seccomp.listenerPath",
        ),
        (
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x" }),
            "linux.seccomp.listenerMetadata",
        ),
    ] {
        assert_eq!(plan(profile).unwrap_err().field(), field);
    }
}

#[test]
fn flags_are_those_of_the_kernel() {
    let flags = |flags: Value, action: &str| {
        let profile = json!({
            "defaultAction": action, "flags": flags, "listenerPath": "/agent", "listenerMetadata": "m"
        });
        plan(profile).unwrap().flags
    };
    let all = json!([
        "SECCOMP_FILTER_FLAG_TSYNC",
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"
    ]);
    assert_eq!(flags(json!([]), "SCMP_ACT_ALLOW"), 0);
    assert_eq!(flags(all.clone(), "SCMP_ACT_ALLOW"), 0b1_0111);
    assert_eq!(flags(all, "SCMP_ACT_NOTIFY"), 0b11_1111);
}

#[test]
fn the_agent_counts_only_where_calls_are_handed_on() {
    let agent = |action: &str| {
        let profile = json!({ "defaultAction": action, "listenerPath": "/agent", "listenerMetadata": "m" });
        plan(profile).unwrap().agent
    };
    assert_eq!(agent("SCMP_ACT_ALLOW"), None);
    let agent = agent("SCMP_ACT_NOTIFY").unwrap();
    assert_eq!(
        (agent.path.to_str(), agent.metadata.as_deref()),
        (Some("/agent"), Some("m"))
    );
}
