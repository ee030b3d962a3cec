//! The tests that have no meaning behind the microVM wall, each with the reason. Everything else passes behind both.

use std::fmt;

/// Why a test is of the shared kernel alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reason {
    Interface,
    Records,
    HostCgroups,
    CallersMeans,
    HostNamespaces,
    HostNetwork,
    NetworkDevices,
    CreateContainerHooks,
    SeccompAgents,
    HostPolicy,
    Descriptors,
    Sockets,
    Overlays,
    IdMappings,
    HostProc,
    MountsBelow,
    Renaming,
    Propagation,
    HostProcesses,
    GuestKernel,
    MachineEnds,
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Reason::Interface => "it asks the engine for what the command line does not offer",
            Reason::Records => "it changes what the engine has written down",
            Reason::HostCgroups => "it looks at cgroups of the host, and the container's are the guest's",
            Reason::CallersMeans => {
                "it takes means from the caller, or covers them, and the guest's engine has its own"
            }
            Reason::HostNamespaces => "it joins a namespace of the host's, or of another machine",
            Reason::HostNetwork => "it has the host's network",
            Reason::NetworkDevices => "it moves a network device of the host's",
            Reason::CreateContainerHooks => "createContainer hooks are refused",
            Reason::SeccompAgents => "seccomp agents are refused",
            Reason::HostPolicy => "labels are of the host's policy, and left out for a guest",
            Reason::Descriptors => "descriptors of the caller cannot be handed into a machine",
            Reason::Sockets => "sockets of the host cannot be bound into a machine",
            Reason::Overlays => "layers of an overlay are folders of the host, and refused",
            Reason::IdMappings => "virtio-fs has no mounts with mappings of their own, which are refused",
            Reason::HostProc => "it has the host's /proc, and what is below is the guest's",
            Reason::MountsBelow => {
                "mounts below the source of a recursive bind are one file system in a machine"
            }
            Reason::Renaming => "mounts on a folder of virtio-fs go when the host renames the folder",
            Reason::HostProcesses => "it looks at the container's process, and the host has its attendant",
            Reason::Propagation => "mounts do not propagate between the host and a machine",
            Reason::GuestKernel => {
                "the guest's kernel has no NUMA nodes or 32-bit programs, and counts no pressure"
            }
            Reason::MachineEnds => "the machine ends with its only container",
        })
    }
}

/// Those of one reason, by their names.
const TESTS: &[(Reason, &[&str])] = &[
    (
        Reason::Interface,
        &[
            "hooks::a_creator_killed_during_its_hooks_leaves_what_can_be_deleted",
            "life::a_caller_with_threads_is_refused",
            "life::one_that_ended_can_be_opened_until_it_was_waited_for",
            "life::what_is_to_be_started_at_once_needs_a_process",
            "life::what_its_creator_starts_ends_with_it_before",
            "life::what_its_creator_starts_nobody_else_does",
            "pod_cgroups::a_cgroup_of_others_is_refused",
            "pod_cgroups::a_limit_that_is_refused_leaves_nothing",
            "pod_cgroups::a_process_is_inside_from_its_first_instruction",
            "pod_cgroups::cgroup2_alone_holds_and_kills_processes",
            "pod_cgroups::limits_are_set_changed_and_lifted",
            "pod_cgroups::memory_in_use_is_not_taken_away",
            "pod_cgroups::what_was_never_made_is_removed_without_ado",
            "pod_cgroups::what_was_written_down_is_made_used_and_removed",
            "terminal::streams_that_contradict_the_configuration_are_refused",
            "update::running_out_of_memory_is_told",
        ],
    ),
    (
        Reason::Records,
        &[
            "life::a_damaged_record_is_deleted_by_force_with_what_it_tells",
            "life::a_record_that_tells_nothing_leaves_a_warning",
            "life::a_starter_that_dies_after_its_word_leaves_a_running_container",
            "life::a_starter_that_dies_before_its_word_starts_nothing",
            "life::what_a_dead_creator_left_can_be_deleted",
        ],
    ),
    (
        Reason::HostCgroups,
        &[
            "cgroups::block_devices_are_weighed_and_throttled",
            "cgroups::buffers_of_tcp_are_limited_where_the_kernel_still_counts_them",
            "cgroups::bursts_idleness_and_unlimited_values_are_written",
            "cgroups::cgroup2_alone_holds_a_container_and_its_devices",
            "cgroups::huge_pages_are_limited_in_cgroup2",
            "cgroups::huge_pages_are_limited_on_whichever_version_has_them",
            "cgroups::limits_are_written_to_the_files",
            "cgroups::limits_without_their_controller_or_file_are_named",
            "cgroups::those_who_fork_for_ever_die_in_cgroup2",
            "exec::a_process_is_put_into_cgroups_below_the_containers",
            "pause::a_paused_container_stands_still_and_goes_on_in_cgroup2",
            "pause::a_paused_container_stands_still_and_goes_on_without_cgroup2",
            "pause::force_deletes_what_froze_itself",
            "pause::what_is_frozen_above_is_paused_and_says_so_when_resumed",
            "pause::what_somebody_else_froze_is_paused_and_can_be_resumed",
            "update::memory_in_use_is_no_limit_to_version_1_unasked",
            "update::huge_pages_can_be_limited_later_in_cgroup2",
        ],
    ),
    (
        Reason::CallersMeans,
        &[
            "devices::without_the_privilege_to_make_nodes_the_callers_are_bound",
            "escapes::a_null_device_that_is_none_hides_nothing_and_is_refused",
            "escapes::a_parameter_that_somebody_covered_is_not_written",
            "privileges::what_cannot_be_granted_is_a_warning",
        ],
    ),
    (
        Reason::HostNamespaces,
        &[
            "namespaces::a_container_that_begins_among_others_has_nothing_to_take",
            "namespaces::a_container_that_begins_among_others_lacks_nothing",
            "namespaces::a_namespace_that_cannot_be_joined_is_reported_from_between",
            "namespaces::a_joined_uts_namespace_takes_the_host_name",
            "namespaces::a_new_user_namespace_and_a_network_of_the_hosts_go_together",
            "namespaces::an_existing_mount_namespace_is_joined",
            "namespaces::an_existing_network_is_joined",
            "namespaces::an_existing_pid_namespace_is_joined_and_the_caller_keeps_its_own",
            "namespaces::an_existing_time_namespace_is_joined",
            "namespaces::an_existing_user_namespace_gets_namespaces_of_its_own",
            "namespaces::an_existing_user_namespace_is_joined_with_what_belongs_to_it",
            "namespaces::cgroups_are_bound_where_their_namespace_is_of_other_users",
            "namespaces::nothing_is_set_in_a_namespace_of_the_callers",
            "namespaces::mappings_other_than_those_of_a_joined_user_namespace_are_refused",
        ],
    ),
    (
        Reason::HostNetwork,
        &[
            "mounts::without_a_network_of_its_own_a_user_namespace_sees_the_callers_sysfs",
            "namespaces::a_creation_without_a_mount_namespace_that_fails_leaves_no_mount",
            "namespaces::without_a_mount_namespace_nothing_can_be_hidden",
            "namespaces::without_a_mount_namespace_the_root_is_changed_and_unmounted_again",
        ],
    ),
    (
        Reason::NetworkDevices,
        &[
            "net_devices::a_device_is_moved_into_a_network_that_is_joined",
            "net_devices::a_device_is_moved_with_its_addresses_under_its_new_name",
            "net_devices::a_device_that_cannot_be_moved_is_named",
            "net_devices::devices_change_their_names_with_each_other",
        ],
    ),
    (
        Reason::CreateContainerHooks,
        &[
            "hooks::a_creator_that_waits_for_a_hook_gives_way_to_deletion_by_force",
            "hooks::a_hook_in_the_containers_namespaces_that_hangs_is_ended",
            "hooks::what_cannot_be_executed_in_the_containers_namespaces_is_undone",
            "hooks::hooks_of_the_hosts_programs_run_in_the_containers_namespaces",
            "hooks::what_a_hook_in_the_containers_namespaces_refuses_is_undone",
        ],
    ),
    (
        Reason::SeccompAgents,
        &[
            "seccomp::a_listener_that_cannot_be_taken_is_told",
            "seccomp::an_agent_decides_about_a_call",
            "seccomp::an_agent_decides_about_a_call_among_others",
            "seccomp::an_agent_hears_of_a_joining_process",
            "seccomp::an_agent_may_get_every_call_there_is",
            "seccomp::without_an_agent_nothing_is_created",
        ],
    ),
    (
        Reason::HostPolicy,
        &["exec::a_label_that_would_confine_nothing_is_refused"],
    ),
    (
        Reason::Descriptors,
        &["exec::descriptors_are_kept_only_where_that_is_asked_for"],
    ),
    (Reason::Sockets, &["mounts::a_socket_and_a_device_are_bound"]),
    (
        Reason::Overlays,
        &[
            "mounts::an_overlay_shows_its_layers",
            "mounts::an_overlay_with_more_layers_than_the_new_interface_takes_is_mounted",
        ],
    ),
    (
        Reason::IdMappings,
        &[
            "mounts::a_mount_without_mapping_takes_the_containers",
            "mounts::a_recursive_id_mapping_reaches_the_mounts_below",
            "mounts::ids_of_a_mount_are_mapped_by_its_own_mapping",
        ],
    ),
    (Reason::HostProc, &["mounts::the_callers_procfs_is_bound_on_proc"]),
    (
        Reason::MountsBelow,
        &[
            "mounts::a_remount_leaves_the_mounts_below_as_they_are",
            "mounts::recursive_attributes_reach_the_mounts_below_and_others_do_not",
            "paths::a_recursive_ro_protects_what_is_mounted_below",
        ],
    ),
    (
        Reason::Renaming,
        &["escapes::a_mount_point_that_is_swapped_for_a_link_stays_inside"],
    ),
    (
        Reason::HostProcesses,
        &["namespaces::root_of_a_user_namespace_is_somebody_else_on_the_host"],
    ),
    (
        Reason::Propagation,
        &["mounts::mounts_of_the_host_reach_a_slave_and_not_a_private_bind"],
    ),
    (
        Reason::GuestKernel,
        &[
            "scheduling::a_node_that_is_not_there_is_told",
            "scheduling::a_program_has_its_memory_policy",
            "seccomp::a_32_bit_call_has_its_own_rules",
            "update::pressure_is_told_where_there_is_cgroup2",
        ],
    ),
    (
        Reason::MachineEnds,
        &["cgroups::what_was_used_is_told_after_the_end"],
    ),
];

/// Why this test is of the shared kernel alone, if it is.
pub(crate) fn reason(name: &str) -> Option<Reason> {
    let name = listed_as(name);
    let (reason, _) = TESTS.iter().find(|(_, names)| names.contains(&name))?;
    Some(*reason)
}

/// Fails where the list names a test that there is not, or one twice.
pub(crate) fn check(tests: &[&str]) {
    let tests: Vec<&str> = tests.iter().map(|name| listed_as(name)).collect();
    let mut listed: Vec<&str> = TESTS.iter().flat_map(|(_, names)| *names).copied().collect();
    for name in &listed {
        assert!(
            tests.contains(name),
            "shared_kernel_only.rs lists `{name}`, and there is no such test"
        );
    }
    listed.sort_unstable();
    for pair in listed.windows(2) {
        assert_ne!(pair[0], pair[1], "shared_kernel_only.rs lists a test twice");
    }
}

/// The name without that of this program.
fn listed_as(name: &str) -> &str {
    name.split_once("::").map_or(name, |(_, name)| name)
}
