//! Which devices a container may open and make: `linux.resources.devices`, between "nothing" and the defaults.

use std::fmt;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::plan::SpecError;

/// One rule. A later one overrides an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceRule {
    pub(super) allow: bool,
    pub(super) devices: Devices,
    pub(super) access: Access,
}

/// The devices a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Devices {
    All,
    /// None stands for every number.
    Some {
        kind: DeviceType,
        major: Option<u32>,
        minor: Option<u32>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeviceType {
    Block,
    Character,
}

/// Bits as the kernel's device programs have them: make a node, read, write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access(pub(super) u8);

impl Access {
    pub(super) const MAKE: Access = Access(1);
    pub(super) const ALL: Access = Access(7);
}

/// What every container may use: it may make any node, but open only these. They are the default devices of the
/// runtime specification, terminals included.
const DEFAULTS: [DeviceRule; 11] = [
    allow(DeviceType::Character, None, None, Access::MAKE),
    allow(DeviceType::Block, None, None, Access::MAKE),
    allow(DeviceType::Character, Some(1), Some(3), Access::ALL),
    allow(DeviceType::Character, Some(1), Some(5), Access::ALL),
    allow(DeviceType::Character, Some(1), Some(7), Access::ALL),
    allow(DeviceType::Character, Some(1), Some(8), Access::ALL),
    allow(DeviceType::Character, Some(1), Some(9), Access::ALL),
    allow(DeviceType::Character, Some(5), Some(0), Access::ALL),
    allow(DeviceType::Character, Some(5), Some(1), Access::ALL),
    allow(DeviceType::Character, Some(5), Some(2), Access::ALL),
    allow(DeviceType::Character, Some(136), None, Access::ALL),
];

const fn allow(kind: DeviceType, major: Option<u32>, minor: Option<u32>, access: Access) -> DeviceRule {
    DeviceRule {
        allow: true,
        devices: Devices::Some { kind, major, minor },
        access,
    }
}

/// Deny everything, then the configuration's rules in order, then the defaults.
pub(super) fn plan(rules: &[LinuxDeviceCgroup]) -> Result<Vec<DeviceRule>, SpecError> {
    let mut plan = vec![DeviceRule {
        allow: false,
        devices: Devices::All,
        access: Access::ALL,
    }];
    for (index, rule) in rules.iter().enumerate() {
        let field = |name: &str| format!("linux.resources.devices[{index}].{name}");
        let number = |value: Option<i64>, name: &str| match value {
            None | Some(-1) => Ok(None),
            Some(value) => u32::try_from(value)
                .map(Some)
                .map_err(|_| SpecError::invalid(field(name), format!("{value} is not a device number"))),
        };
        let access = access(rule.access().as_deref())
            .ok_or_else(|| SpecError::invalid(field("access"), "is not made of the letters r, w and m"))?;
        let (major, minor) = (number(rule.major(), "major")?, number(rule.minor(), "minor")?);
        let mut push = |devices| {
            plan.push(DeviceRule {
                allow: rule.allow(),
                devices,
                access,
            })
        };
        match rule.typ() {
            None | Some(LinuxDeviceType::A) if major.is_none() && minor.is_none() => push(Devices::All),
            None | Some(LinuxDeviceType::A) => {
                push(Devices::Some {
                    kind: DeviceType::Block,
                    major,
                    minor,
                });
                push(Devices::Some {
                    kind: DeviceType::Character,
                    major,
                    minor,
                });
            }
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => {
                push(Devices::Some {
                    kind: DeviceType::Character,
                    major,
                    minor,
                });
            }
            Some(LinuxDeviceType::B) => push(Devices::Some {
                kind: DeviceType::Block,
                major,
                minor,
            }),
            Some(LinuxDeviceType::P) => {
                return Err(SpecError::invalid(
                    field("type"),
                    "a device is of type a, b, c or u",
                ));
            }
        }
    }
    plan.extend(DEFAULTS);
    // Most configurations begin by denying everything themselves.
    plan.dedup();
    Ok(plan)
}

/// Absent or empty means all.
fn access(letters: Option<&str>) -> Option<Access> {
    let Some(letters) = letters.filter(|letters| !letters.is_empty()) else {
        return Some(Access::ALL);
    };
    letters.bytes().try_fold(Access(0), |access, letter| {
        let bit = match letter {
            b'm' => 1,
            b'r' => 2,
            b'w' => 4,
            _ => return None,
        };
        Some(Access(access.0 | bit))
    })
}

impl fmt::Display for Access {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (bit, letter) in [(2, "r"), (4, "w"), (1, "m")] {
            if self.0 & bit != 0 {
                formatter.write_str(letter)?;
            }
        }
        Ok(())
    }
}

/// The form that version 1's `devices.allow` and `devices.deny` take.
impl fmt::Display for DeviceRule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Devices::Some { kind, major, minor } = self.devices else {
            return write!(formatter, "a *:* {}", self.access);
        };
        let kind = match kind {
            DeviceType::Block => 'b',
            DeviceType::Character => 'c',
        };
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        write!(
            formatter,
            "{kind} {}:{} {}",
            number(major),
            number(minor),
            self.access
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(json: &str) -> Result<Vec<DeviceRule>, SpecError> {
        plan(&serde_json::from_str::<Vec<LinuxDeviceCgroup>>(json).unwrap())
    }

    #[test]
    fn without_rules_everything_is_denied_but_the_defaults() {
        let plan = rules("[]").unwrap();
        assert_eq!(plan[0].to_string(), "a *:* rwm");
        assert!(!plan[0].allow);
        assert_eq!(plan[1..], DEFAULTS);
    }

    #[test]
    fn a_leading_denial_of_everything_is_not_repeated() {
        let plan =
            rules(r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":229}]"#);
        let words: Vec<String> = plan.unwrap()[..2].iter().map(DeviceRule::to_string).collect();
        assert_eq!(words, ["a *:* rwm", "c 10:229 rwm"]);
    }

    #[test]
    fn a_rule_for_all_types_with_a_number_becomes_one_for_each_type() {
        let plan = rules(r#"[{"allow":true,"type":"a","major":8,"access":"r"}]"#).unwrap();
        assert_eq!([plan[1].to_string(), plan[2].to_string()], ["b 8:* r", "c 8:* r"]);
    }

    #[test]
    fn rules_without_sense_are_refused_by_their_place() {
        for (json, field) in [
            (
                r#"[{"allow":true,"access":"x"}]"#,
                "linux.resources.devices[0].access",
            ),
            (
                r#"[{"allow":true,"type":"p"}]"#,
                "linux.resources.devices[0].type",
            ),
            (
                r#"[{"allow":true,"type":"c","major":-5}]"#,
                "linux.resources.devices[0].major",
            ),
        ] {
            assert_eq!(rules(json).unwrap_err().field(), field);
        }
    }
}
