//! A step, as the launcher is told about it: everything of [`StepCommand`] but its descriptors.

use super::cgroup::StepCgroup;
use super::launcher::wire::{Plan, PlanMount, PlanMounted};
use super::namespaces::StepNetwork;
use super::{Mounted, StepCommand, StepMount};

/// Returns what the launcher needs to know.
pub(super) fn plan(step: &StepCommand, network: &StepNetwork, cgroup: Option<&StepCgroup>) -> Plan {
    Plan {
        args: step.args.clone(),
        env: step.env.clone(),
        cwd: step.cwd.clone(),
        uid: step.user.uid,
        gid: step.user.gid,
        groups: step.user.groups.clone(),
        network: network.kind,
        confinement: step.confinement,
        hostname: step.hostname.clone(),
        etc: step.etc.clone(),
        hosts_file: hosts_file(&step.hostname, &step.extra_hosts),
        resolv_file: network.resolv_conf.clone(),
        open_files: step.limits.open_files,
        processes: step.limits.processes,
        shm_bytes: step.limits.shm_bytes,
        ulimits: step.limits.ulimits.clone(),
        mounts: step.mounts.iter().map(plan_mount).collect(),
        cgroup_procs: cgroup.map(StepCgroup::procs_files).unwrap_or_default(),
    }
}

fn plan_mount(mount: &StepMount) -> PlanMount {
    PlanMount {
        target: mount.target.clone(),
        what: match &mount.what {
            Mounted::Files { source, access, .. } => PlanMounted::Files {
                source: source.clone(),
                access: *access,
            },
            Mounted::Memory { size_bytes, access } => PlanMounted::Memory {
                size_bytes: *size_bytes,
                access: *access,
            },
            Mounted::Secret {
                content,
                uid,
                gid,
                mode,
            } => PlanMounted::Secret {
                content: content.clone(),
                uid: *uid,
                gid: *gid,
                mode: *mode,
            },
        },
    }
}

fn hosts_file(hostname: &str, extra: &[(String, String)]) -> String {
    use std::fmt::Write as _;
    let mut text =
        String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    // Writing to a string cannot fail.
    let _ = writeln!(text, "127.0.0.1\t{hostname}");
    for (name, address) in extra {
        let _ = writeln!(text, "{address}\t{name}");
    }
    text
}
