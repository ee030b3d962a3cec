//! Random profiles, and random calls near what they are about.

use oci_spec::runtime::LinuxSeccomp;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use super::super::architecture::X32_BIT;
use super::super::profile::Profile;
use super::super::{SeccompPlan, tables};
use super::evaluator::evaluate;
use super::interpreter::{CallData, run};
use super::oracle::Libseccomp;

/// Calls of every kind: alike in all tables, with numbers of their own, multiplexed, new, and of other machines.
const NAMES: [&str; 24] = [
    "read",
    "write",
    "open",
    "close",
    "ioctl",
    "readv",
    "execve",
    "clone",
    "socket",
    "accept",
    "sendmsg",
    "socketcall",
    "ipc",
    "shmget",
    "semop",
    "personality",
    "uselib",
    "openat2",
    "clone3",
    "faccessat2",
    "preadv2",
    "clock_gettime64",
    "arm_fadvise64_64",
    "no_such_call",
];
const VALUES: [u64; 12] = [
    0,
    1,
    2,
    5,
    9,
    40,
    0x7e02_0000,
    0x1_0000_0000,
    0x1_0000_0005,
    0x5_0000_0001,
    u32::MAX as u64,
    u64::MAX,
];

fn action() -> impl Strategy<Value = (&'static str, Option<u32>)> {
    prop_oneof![
        4 => Just(("SCMP_ACT_ALLOW", None)),
        3 => select(vec![None, Some(0), Some(1), Some(38), Some(95)]).prop_map(|errno| ("SCMP_ACT_ERRNO", errno)),
        1 => Just(("SCMP_ACT_TRACE", Some(7))),
        2 => select(vec!["SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY"])
            .prop_map(|action| (action, None)),
    ]
}

fn argument() -> impl Strategy<Value = Value> {
    let operators = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
    (0..6usize, select(VALUES.to_vec()), select(VALUES.to_vec()), select(operators.to_vec())).prop_map(
        |(index, value, two, operator)| {
            json!({ "index": index % 3, "value": value, "valueTwo": two, "op": format!("SCMP_CMP_{operator}") })
        },
    )
}

fn entry() -> impl Strategy<Value = Value> {
    let names = proptest::collection::vec(select(NAMES.to_vec()), 1..4);
    let arguments = proptest::collection::vec(argument(), 0..4);
    (names, action(), arguments).prop_map(|(names, (action, errno), arguments)| {
        json!({ "names": names, "action": action, "errnoRet": errno, "args": arguments })
    })
}

fn profile() -> impl Strategy<Value = LinuxSeccomp> {
    let architectures = proptest::sample::subsequence(
        vec![
            "SCMP_ARCH_X86_64",
            "SCMP_ARCH_X86",
            "SCMP_ARCH_X32",
            "SCMP_ARCH_ARM",
        ],
        0..4,
    );
    let entries = prop_oneof![
        4 => proptest::collection::vec(entry(), 0..12),
        1 => proptest::collection::vec(entry(), 40..80),
    ];
    (action(), architectures, entries).prop_map(|((default, errno), architectures, entries)| {
        let profile = json!({
            "defaultAction": default, "defaultErrnoRet": errno, "architectures": architectures, "syscalls": entries,
            "listenerPath": "/agent"
        });
        serde_json::from_value(profile).unwrap()
    })
}

fn call() -> impl Strategy<Value = CallData> {
    let named = select(vec![
        0, 1, 2, 3, 4, 5, 6, 11, 16, 19, 29, 41, 43, 46, 54, 56, 59, 64, 65, 86, 102, 117, 120, 134, 135,
        136, 145, 327, 328, 359, 364, 370, 378, 379, 395, 403, 435, 437, 439, 440, 514, 515, 518, 520, 546,
        547, 548,
    ]);
    let number = prop_oneof![
        8 => (named, prop_oneof![3 => Just(0), 1 => Just(X32_BIT)]).prop_map(|(number, bit)| number | bit),
        1 => select(vec![X32_BIT - 1, X32_BIT, u32::MAX - 1, u32::MAX, 1 << 31]),
        1 => any::<u32>(),
    ];
    let machine = prop_oneof![
        4 => Just(0xc000_003eu32),
        4 => Just(0x4000_0003u32),
        1 => Just(0xc000_00b7u32),
        1 => any::<u32>(),
    ];
    let near = (select(VALUES.to_vec()), -1..2i64).prop_map(|(value, by)| value.wrapping_add_signed(by));
    let argument = prop_oneof![6 => near, 1 => any::<u64>()];
    (number, machine, proptest::array::uniform6(argument)).prop_map(|(number, machine, arguments)| {
        // The kernel fills a 32-bit call's arguments up with zeros.
        let arguments = match machine {
            0x4000_0003 => arguments.map(|argument| argument & u64::from(u32::MAX)),
            _ => arguments,
        };
        CallData {
            number,
            machine,
            arguments,
        }
    })
}

/// Profiles of which libseccomp makes the same as we say: each call in one rule, for which rules that overlap are
/// taken in is libseccomp's secret, with one condition to an argument; and nothing of the calls newer than the profile,
/// which is runc's.
fn plain_profile() -> impl Strategy<Value = LinuxSeccomp> {
    let default = select(vec!["SCMP_ACT_ALLOW", "SCMP_ACT_LOG"]);
    let architectures =
        proptest::sample::subsequence(vec!["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"], 0..4);
    // socketcall and ipc are decided by the rules about what they stand for. With a call that one of the architectures
    // has no number for, libseccomp 2.5.4 makes programs that forget to load the number of the call.
    let left_out = [
        "socketcall",
        "ipc",
        "accept",
        "semop",
        "no_such_call",
        "uselib",
        "clock_gettime64",
        "arm_fadvise64_64",
    ];
    let names: Vec<&str> = NAMES
        .into_iter()
        .filter(|name| !left_out.contains(name))
        .collect();
    let names = proptest::sample::subsequence(names, 0..12).prop_shuffle();
    let rule = (action(), proptest::collection::vec(argument(), 0..4));
    let rules = proptest::collection::vec(rule, 12);
    (default, architectures, names, rules).prop_map(|(default, architectures, names, rules)| {
        let entries: Vec<Value> = names
            .into_iter()
            .zip(rules)
            .map(|(name, ((action, errno), mut arguments))| {
                arguments.sort_by_key(|argument| argument["index"].as_u64());
                arguments.dedup_by_key(|argument| argument["index"].as_u64());
                json!({ "names": [name], "action": action, "errnoRet": errno, "args": arguments })
            })
            .collect();
        let profile = json!({
            "defaultAction": default, "architectures": architectures, "syscalls": entries, "listenerPath": "/agent"
        });
        serde_json::from_value(profile).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_program_does_what_the_profile_says(
        profile in profile(),
        calls in proptest::collection::vec(call(), 200),
    ) {
        let program = match SeccompPlan::new(&profile) {
            Ok(plan) => plan.program,
            Err(error) => {
                prop_assert_eq!(error.field(), "linux.seccomp.syscalls");
                return Ok(());
            }
        };
        let tables = tables(&profile, &Profile::new(&profile).unwrap());
        for call in calls {
            let verdict = run(&program, &call).0;
            prop_assert_eq!(verdict, evaluate(&profile, &call), "{:x?}", call);
            if let Some(table) = tables.iter().find(|table| table.machine == call.machine) {
                prop_assert_eq!(verdict, table.action(call.number, call.arguments).0, "{:x?}", call);
            }
        }
    }

    #[test]
    fn the_program_does_what_libseccomps_does(
        profile in plain_profile(),
        calls in proptest::collection::vec(call(), 200),
    ) {
        let Some(libseccomp) = Libseccomp::load() else {
            return Ok(());
        };
        let (ours, theirs) = (SeccompPlan::new(&profile).unwrap().program, libseccomp.compile(&profile));
        for call in calls {
            prop_assert_eq!(run(&ours, &call).0, run(&theirs, &call).0, "{:x?}", call);
        }
    }
}
