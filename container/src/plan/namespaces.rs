//! The configuration's `linux.namespaces` and what belongs to them.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType};

use super::SpecError;
use super::map_order::by_key;
use super::mounts::MappingOfMount;

/// A kind of namespace. The value is its flag for clone3(2), unshare(2) and setns(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Namespace {
    Time = 0x80,
    Mount = 0x2_0000,
    Cgroup = 0x200_0000,
    Uts = 0x400_0000,
    Ipc = 0x800_0000,
    User = 0x1000_0000,
    Pid = 0x2000_0000,
    Network = 0x4000_0000,
}

impl Namespace {
    pub(crate) const ALL: [Namespace; 8] = [
        Namespace::Time,
        Namespace::Mount,
        Namespace::Cgroup,
        Namespace::Uts,
        Namespace::Ipc,
        Namespace::User,
        Namespace::Pid,
        Namespace::Network,
    ];

    /// The configuration's word for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Namespace::Time => "time",
            Namespace::Mount => "mount",
            Namespace::Cgroup => "cgroup",
            Namespace::Uts => "uts",
            Namespace::Ipc => "ipc",
            Namespace::User => "user",
            Namespace::Pid => "pid",
            Namespace::Network => "network",
        }
    }

    /// The kernel's word for it, below `/proc/PID/ns`.
    pub(crate) fn file_name(self) -> &'static str {
        match self {
            Namespace::Network => "net",
            Namespace::Mount => "mnt",
            kind => kind.name(),
        }
    }
}

/// Which namespaces the container gets: new ones, existing ones, and for the rest the caller's.
#[derive(Debug, Default)]
pub(crate) struct NamespacePlan {
    created: u64,
    pub(crate) joined: Vec<JoinedNamespace>,
    pub(crate) uid_mappings: Vec<IdMapping>,
    pub(crate) gid_mappings: Vec<IdMapping>,
    /// Clock, seconds, nanoseconds.
    pub(crate) time_offsets: Vec<(&'static str, i64, u32)>,
}

/// An existing namespace, which somebody else made.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct JoinedNamespace {
    /// Its place in `linux.namespaces`, for messages.
    pub(crate) index: usize,
    pub(crate) kind: Namespace,
    /// The file that stands for it.
    pub(crate) path: PathBuf,
}

/// One line of a user namespace's map (user_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IdMapping {
    pub(crate) container: u32,
    pub(crate) host: u32,
    pub(crate) size: u32,
}

/// `UID_GID_MAP_MAX_EXTENTS` of the kernel's `<linux/user_namespace.h>`.
const MAPPINGS_LIMIT: usize = 340;

/// Whether two ranges of ids, of which neither goes beyond the last one, have one in common.
fn overlap(one: u32, other: u32, size_of_one: u32, size_of_other: u32) -> bool {
    one < other.saturating_add(size_of_other) && other < one.saturating_add(size_of_one)
}

impl IdMapping {
    /// The mappings of the field, of which each must map something, and no two the same.
    pub(super) fn all(
        field: &str,
        mappings: &Option<Vec<LinuxIdMapping>>,
    ) -> Result<Vec<IdMapping>, SpecError> {
        let mappings = mappings.as_deref().unwrap_or_default();
        let one = |(index, mapping): (usize, &LinuxIdMapping)| {
            let refuse =
                |name, problem: &str| Err(SpecError::invalid(format!("{field}[{index}].{name}"), problem));
            let (container, host, size) = (mapping.container_id(), mapping.host_id(), mapping.size());
            match (container.checked_add(size), host.checked_add(size)) {
                _ if size == 0 => refuse("size", "maps nothing"),
                // The last of the 32-bit ids stands for none.
                (None, _) => refuse("size", "goes beyond the last id of the container"),
                (_, None) => refuse("size", "goes beyond the last id of the host"),
                _ => Ok(IdMapping {
                    container,
                    host,
                    size,
                }),
            }
        };
        if mappings.len() > MAPPINGS_LIMIT {
            let problem = format!(
                "has {} mappings, and the kernel takes {MAPPINGS_LIMIT}",
                mappings.len()
            );
            return Err(SpecError::invalid(field, problem));
        }
        let mappings: Vec<IdMapping> = mappings.iter().enumerate().map(one).collect::<Result<_, _>>()?;
        for (index, mapping) in mappings.iter().enumerate() {
            let earlier = mappings.iter().take(index).enumerate();
            for (other_index, other) in earlier {
                let name = match mapping {
                    _ if overlap(mapping.container, other.container, mapping.size, other.size) => {
                        "containerID"
                    }
                    _ if overlap(mapping.host, other.host, mapping.size, other.size) => "hostID",
                    _ => continue,
                };
                return Err(SpecError::invalid(
                    format!("{field}[{index}].{name}"),
                    format!("maps ids that {field}[{other_index}] maps"),
                ));
            }
        }
        Ok(mappings)
    }
}

impl NamespacePlan {
    pub(crate) fn new(linux: &Linux) -> Result<NamespacePlan, SpecError> {
        let mut plan = NamespacePlan::default();
        let mut seen = 0;
        for (index, namespace) in linux
            .namespaces()
            .as_deref()
            .unwrap_or_default()
            .iter()
            .enumerate()
        {
            let kind = kind(namespace.typ());
            if seen & kind as u64 != 0 {
                let problem = format!("`{}` is listed twice", kind.name());
                return Err(SpecError::invalid(format!("linux.namespaces[{index}]"), problem));
            }
            seen |= kind as u64;
            match namespace
                .path()
                .as_deref()
                .filter(|path| !path.as_os_str().is_empty())
            {
                None => plan.created |= kind as u64,
                Some(path) => plan.join(index, kind, path)?,
            }
        }
        if plan.isolates(Namespace::User) && !plan.isolates(Namespace::Mount) {
            let problem = "a user namespace needs a mount namespace: its root may not mount in the caller's";
            return Err(SpecError::invalid("linux.namespaces", problem));
        }
        plan.uid_mappings = plan.id_mappings("linux.uidMappings", linux.uid_mappings())?;
        plan.gid_mappings = plan.id_mappings("linux.gidMappings", linux.gid_mappings())?;
        plan.read_time_offsets(linux)?;
        Ok(plan)
    }

    fn join(&mut self, index: usize, kind: Namespace, path: &Path) -> Result<(), SpecError> {
        if !path.is_absolute() {
            let field = format!("linux.namespaces[{index}].path");
            return Err(SpecError::invalid(field, "is not an absolute path"));
        }
        self.joined.push(JoinedNamespace {
            index,
            kind,
            path: path.to_owned(),
        });
        Ok(())
    }

    /// Whether the container gets a new namespace of this kind.
    pub(crate) fn creates(&self, kind: Namespace) -> bool {
        self.created & kind as u64 != 0
    }

    /// Whether the container has a namespace of this kind that is not the caller's own.
    pub(crate) fn isolates(&self, kind: Namespace) -> bool {
        self.isolated() & kind as u64 != 0
    }

    /// The flags of all kinds of which the container has one that is not the caller's own.
    pub(crate) fn isolated(&self) -> u64 {
        self.joined
            .iter()
            .fold(self.created, |flags, joined| flags | joined.kind as u64)
    }

    /// Whether the container gets an existing namespace of this kind.
    pub(crate) fn joins(&self, kind: Namespace) -> bool {
        self.joined.iter().any(|joined| joined.kind == kind)
    }

    /// Whether a process has to stand between the caller and the container's first one. Namespaces of others are joined
    /// with the caller's privileges, which whoever is in the container's user namespace no longer has, and what is made
    /// new has to belong to that user namespace.
    pub(crate) fn needs_process_between(&self) -> bool {
        self.joins(Namespace::User)
            || self.creates(Namespace::User) && self.joined.iter().any(|joined| joined.kind != Namespace::Pid)
    }

    /// The namespaces that clone3 makes. A cgroup namespace shows the cgroup its maker is in, and a time namespace
    /// takes its offsets before anyone is in it; both are made later, by the container's process.
    pub(crate) fn clone_flags(&self) -> u64 {
        self.created & !(Namespace::Cgroup as u64 | Namespace::Time as u64)
    }

    /// Whether the container's process may make all but its pid namespace by itself, once it is there: the caller's
    /// privileges are its own until it gives them away, and nobody who is there already sees it.
    pub(crate) fn may_be_made_inside(&self) -> bool {
        !self.isolates(Namespace::User) && !self.joins(Namespace::Pid)
    }

    fn id_mappings(
        &self,
        field: &str,
        mappings: &Option<Vec<LinuxIdMapping>>,
    ) -> Result<Vec<IdMapping>, SpecError> {
        let is_empty = mappings.as_ref().is_none_or(Vec::is_empty);
        match (self.creates(Namespace::User), is_empty) {
            // Of one that exists the mappings may be given, and then have to be its own.
            _ if self.joins(Namespace::User) => {}
            (true, true) => return Err(SpecError::invalid(field, "is required with a new user namespace")),
            (false, false) => return Err(SpecError::invalid(field, "needs a new user namespace")),
            _ => {}
        }
        let mappings = IdMapping::all(field, mappings)?;
        if !mappings.is_empty() && !mappings.iter().any(|mapping| mapping.container == 0) {
            return Err(SpecError::invalid(
                field,
                "must map the container's id 0, which sets the container up",
            ));
        }
        Ok(mappings)
    }

    /// How the ids of a mount are mapped that has no mapping of its own: as the container's are.
    pub(super) fn mapping_of_mounts(&self) -> Option<MappingOfMount> {
        let joined = self.joined.iter().find(|joined| joined.kind == Namespace::User);
        match joined {
            Some(joined) => Some(MappingOfMount::Namespace(joined.path.clone())),
            None if self.creates(Namespace::User) => Some(MappingOfMount::Ids {
                uids: self.uid_mappings.clone(),
                gids: self.gid_mappings.clone(),
            }),
            None => None,
        }
    }

    fn read_time_offsets(&mut self, linux: &Linux) -> Result<(), SpecError> {
        let Some(offsets) = linux
            .time_offsets()
            .as_ref()
            .filter(|offsets| !offsets.is_empty())
        else {
            return Ok(());
        };
        if !self.creates(Namespace::Time) {
            return Err(SpecError::invalid(
                "linux.timeOffsets",
                "needs a new time namespace",
            ));
        }
        for (clock, offset) in by_key(offsets) {
            let clock = match clock {
                "monotonic" => "monotonic",
                "boottime" => "boottime",
                _ => {
                    let problem = "is no clock: use monotonic or boottime";
                    return Err(SpecError::invalid(format!("linux.timeOffsets.{clock}"), problem));
                }
            };
            let (seconds, nanoseconds) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
            self.time_offsets.push((clock, seconds, nanoseconds));
        }
        Ok(())
    }
}

/// The lines to write to a process's `uid_map` or `gid_map`.
pub(crate) fn id_map(mappings: &[IdMapping]) -> String {
    let mut map = String::new();
    for IdMapping {
        container,
        host,
        size,
    } in mappings
    {
        // Writing to a String cannot fail.
        let _ = writeln!(map, "{container} {host} {size}");
    }
    map
}

/// The mappings in a process's `uid_map` or `gid_map`, as whoever opened it counts ids.
pub(crate) fn parse_id_map(map: &str) -> Vec<IdMapping> {
    let line = |line: &str| {
        let mut numbers = line.split_whitespace().map_while(|number| number.parse().ok());
        Some(IdMapping {
            container: numbers.next()?,
            host: numbers.next()?,
            size: numbers.next()?,
        })
    };
    map.lines().filter_map(line).collect()
}

/// What the container's `id` is on the host, if it is mapped.
pub(crate) fn id_on_the_host(mappings: &[IdMapping], id: u32) -> Option<u32> {
    mappings.iter().find_map(|mapping| {
        let offset = id.checked_sub(mapping.container)?;
        // Neither range goes beyond the last id.
        (offset < mapping.size).then(|| mapping.host.saturating_add(offset))
    })
}

fn kind(kind: LinuxNamespaceType) -> Namespace {
    match kind {
        LinuxNamespaceType::Mount => Namespace::Mount,
        LinuxNamespaceType::Cgroup => Namespace::Cgroup,
        LinuxNamespaceType::Uts => Namespace::Uts,
        LinuxNamespaceType::Ipc => Namespace::Ipc,
        LinuxNamespaceType::User => Namespace::User,
        LinuxNamespaceType::Pid => Namespace::Pid,
        LinuxNamespaceType::Network => Namespace::Network,
        LinuxNamespaceType::Time => Namespace::Time,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(linux: &str) -> Result<NamespacePlan, SpecError> {
        NamespacePlan::new(&serde_json::from_str(linux).unwrap())
    }

    #[test]
    fn cgroup_and_time_namespaces_are_left_to_the_containers_process() {
        let plan =
            plan(r#"{"namespaces":[{"type":"mount"},{"type":"pid"},{"type":"cgroup"},{"type":"time"}]}"#)
                .unwrap();
        assert_eq!(
            plan.clone_flags(),
            (libc::CLONE_NEWNS | libc::CLONE_NEWPID) as u64
        );
        assert!(plan.creates(Namespace::Cgroup) && plan.creates(Namespace::Time));
    }

    #[test]
    fn a_namespace_with_a_path_is_joined_and_isolates() {
        let plan =
            plan(r#"{"namespaces":[{"type":"mount"},{"type":"network","path":"/run/netns/a"}]}"#).unwrap();
        let joined = JoinedNamespace {
            index: 1,
            kind: Namespace::Network,
            path: "/run/netns/a".into(),
        };
        assert_eq!(plan.joined, [joined]);
        assert!(!plan.needs_process_between());
        assert!(plan.isolates(Namespace::Network) && !plan.creates(Namespace::Network));
    }

    #[test]
    fn a_user_namespace_and_one_of_others_need_a_process_between() {
        let ids = r#""uidMappings":[{"containerID":0,"hostID":1,"size":9}],
                     "gidMappings":[{"containerID":0,"hostID":1,"size":9}]"#;
        for (namespaces, between) in [
            (r#"{"type":"user"}"#, false),
            (r#"{"type":"user"},{"type":"pid","path":"/p"}"#, false),
            (r#"{"type":"user"},{"type":"ipc","path":"/p"}"#, true),
            (r#"{"type":"user","path":"/p"}"#, true),
        ] {
            let json = format!(r#"{{"namespaces":[{{"type":"mount"}},{namespaces}],{ids}}}"#);
            assert_eq!(
                plan(&json).unwrap().needs_process_between(),
                between,
                "{namespaces}"
            );
        }
        let without = plan(r#"{"namespaces":[{"type":"mount"},{"type":"user","path":"/p"}]}"#).unwrap();
        assert!(without.uid_mappings.is_empty());
    }

    #[test]
    fn mappings_of_the_same_ids_or_too_many_are_refused_by_their_place() {
        let refused = |ids: &str| {
            let json = format!(
                r#"{{"namespaces":[{{"type":"mount"}},{{"type":"user"}}],"uidMappings":[{ids}],"gidMappings":[
                    {{"containerID":0,"hostID":1,"size":9}}]}}"#
            );
            plan(&json).err().map(|error| error.field().to_owned())
        };
        let mapping = |container: u32, host: u32, size: u32| {
            format!(r#"{{"containerID":{container},"hostID":{host},"size":{size}}}"#)
        };
        let of = |mappings: &[(u32, u32, u32)]| {
            let mappings: Vec<String> = mappings.iter().map(|&(a, b, c)| mapping(a, b, c)).collect();
            refused(&mappings.join(","))
        };
        assert_eq!(of(&[(0, 1000, 10), (10, 1010, 5), (20, 0, 1000)]), None);
        let container = Some("linux.uidMappings[2].containerID".to_owned());
        assert_eq!(of(&[(0, 1000, 10), (20, 2000, 5), (9, 3000, 11)]), container);
        let host = Some("linux.uidMappings[1].hostID".to_owned());
        assert_eq!(of(&[(0, 1000, 10), (10, 1009, 1)]), host);
        let many: Vec<_> = (0..341).map(|id| (id, id, 1)).collect();
        assert_eq!(of(&many), Some("linux.uidMappings".to_owned()));
        assert_eq!(
            of(many.get(1..).unwrap_or_default()),
            Some("linux.uidMappings".to_owned())
        );
        assert_eq!(of(many.get(..340).unwrap_or_default()), None);
    }

    #[test]
    fn an_id_is_found_on_the_host_by_the_range_it_is_in() {
        let mappings = parse_id_map("         0     200000      65536\n     65536       1000          1\n");
        assert_eq!(id_map(&mappings), "0 200000 65536\n65536 1000 1\n");
        let found = [0, 1000, 65_535, 65_536, 65_537].map(|id| id_on_the_host(&mappings, id));
        let expected = [Some(200_000), Some(201_000), Some(265_535), Some(1000), None];
        assert_eq!(found, expected);
        let all = parse_id_map("0 0 4294967295");
        assert_eq!(id_on_the_host(&all, u32::MAX - 1), Some(u32::MAX - 1));
    }

    #[test]
    fn namespaces_that_cannot_be_had_are_refused_by_their_place() {
        for (linux, field) in [
            (
                r#"{"namespaces":[{"type":"user"}],"uidMappings":[{"containerID":0,"hostID":1,"size":9}]}"#,
                "linux.namespaces",
            ),
            (
                r#"{"namespaces":[{"type":"mount"},{"type":"mount"}]}"#,
                "linux.namespaces[1]",
            ),
            (
                r#"{"namespaces":[{"type":"mount"},{"type":"pid","path":"x"}]}"#,
                "linux.namespaces[1].path",
            ),
            (
                r#"{"namespaces":[{"type":"mount"},{"type":"user"}]}"#,
                "linux.uidMappings",
            ),
            (
                r#"{"namespaces":[{"type":"mount"},{"type":"user"}],
                    "uidMappings":[{"containerID":1,"hostID":1,"size":9}]}"#,
                "linux.uidMappings",
            ),
            (
                r#"{"namespaces":[{"type":"mount"}],"uidMappings":[{"containerID":0,"hostID":1,"size":9}]}"#,
                "linux.uidMappings",
            ),
            (
                r#"{"namespaces":[{"type":"mount"}],"timeOffsets":{"boottime":{"secs":1}}}"#,
                "linux.timeOffsets",
            ),
        ] {
            assert_eq!(plan(linux).unwrap_err().field(), field);
        }
    }
}
