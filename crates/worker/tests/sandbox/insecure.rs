//! What a step has with `security.insecure`, and what it has not even then.

use std::fmt::Write as _;
use std::fs;
use std::sync::Arc;

use engine::sandbox::{
    Confinement, LauncherImage, Namespaces, NamespacesOptions, Network, SandboxError, StepExit,
    UserIds,
};

use crate::cases::{Case, cases};
use crate::rig::{Rig, Run, Starter};

pub(crate) const CASES: &[Case] = cases![
    insecure_steps_have_all_capabilities_and_no_filter,
    insecure_steps_may_what_others_may_not,
    insecure_steps_are_still_nobody_on_the_machine,
    insecure_steps_are_refused_unless_allowed,
];

fn insecure<'a>(rig: &'a Rig, script: &str) -> Run<'a> {
    rig.sh(script)
        .with(|run| run.confinement = Confinement::Insecure)
}

async fn insecure_steps_have_all_capabilities_and_no_filter(rig: Arc<Rig>) {
    let script = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status | tr -s '\\t ' ' '";
    let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap();
    let all = (1_u64 << (last.trim().parse::<u32>().unwrap() + 1)) - 1;
    let mut expected = String::new();
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        writeln!(expected, "{set}: {all:016x}").unwrap();
    }
    // A filter around all of this, as in most containers, is inherited.
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let outer = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().to_owned()
    };
    write!(expected, "NoNewPrivs: 0\nSeccomp: {}", outer("Seccomp:")).unwrap();
    assert_eq!(insecure(&rig, script).go().await.text(), expected);
    let user = UserIds {
        uid: 1000,
        gid: 1000,
        groups: Vec::new(),
    };
    let run = insecure(&rig, script).with(|run| run.user = user);
    assert_eq!(run.go().await.text(), expected);
}

async fn insecure_steps_may_what_others_may_not(rig: Arc<Rig>) {
    for script in [
        "mkdir -p /mnt && mount -t tmpfs none /mnt && touch /mnt/x && umount /mnt",
        "mkdir -p /mnt && mount -t proc none /mnt && test -d /mnt/1",
        "mkdir -p /mnt && mount -o bind /etc /mnt && test -f /mnt/hostname",
        "unshare -U -r -m true",
        "unshare -m -p -f -u -n -i true",
        "hostname other && test \"$(hostname)\" = other",
        "grep -q '^sysfs /sys sysfs rw' /proc/mounts",
        "unshare -n sh -c 'echo 7 > /proc/sys/net/ipv4/ip_default_ttl'",
    ] {
        let with = insecure(&rig, script).go().await;
        assert_eq!(with.exit(), StepExit::Code(0), "{script}: {}", with.stderr);
        let without = rig.sh(script).go().await;
        assert_ne!(without.exit(), StepExit::Code(0), "{script}");
    }
}

async fn insecure_steps_are_still_nobody_on_the_machine(rig: Arc<Rig>) {
    let canary = rig.dir.path().join("canary");
    fs::write(&canary, "secret").unwrap();
    let path = canary.display();
    // Which ordinary users have where they may open /dev/net/tun.
    let network = match rig.starter {
        Starter::Root => Network::Default,
        Starter::User => Network::Isolated,
    };
    for script in [
        // Files and processes of the machine.
        &format!("cat {path}"),
        &format!("cat /proc/1/root{path}"),
        "umount -l / && ls /proc/self/../../canary",
        "test \"$(ls /proc | grep -c '^[0-9]')\" -gt 9",
        // Devices.
        "mknod /tmp/null c 1 3",
        "mknod /tmp/disk b 8 0",
        // What belongs to all of the machine.
        "echo 1 > /proc/sysrq-trigger",
        "echo 1 > /proc/sys/vm/drop_caches",
        "echo x > /proc/sys/kernel/core_pattern",
        "echo x > /sys/kernel/uevent_helper",
        "cat /proc/kcore",
        "date -s 2001-01-01 && test \"$(date +%Y)\" = 2001",
        // The network that it shares with the steps after it.
        "echo 7 > /proc/sys/net/ipv4/ip_default_ttl",
        "nsenter -t 1 -n true && ifconfig lo down",
    ] {
        let run = insecure(&rig, script).with(|run| run.network = network);
        let outcome = run.go().await;
        assert_ne!(outcome.exit(), StepExit::Code(0), "{script}");
        assert!(!outcome.stdout.contains("secret"), "{script}");
    }
    assert_eq!(fs::read_to_string(&canary).unwrap(), "secret");
}

async fn insecure_steps_are_refused_unless_allowed(rig: Arc<Rig>) {
    let image = LauncherImage::prepare().unwrap();
    let sandbox = Namespaces::new(NamespacesOptions::new(image));
    let strict = Rig::with_sandbox(sandbox, rig.starter);
    let outcome = insecure(&strict, "true").go().await;
    assert!(
        matches!(&outcome.exit, Err(SandboxError::Invalid { what }) if what.contains("not allowed")),
        "{:?}",
        outcome.exit
    );
    assert_eq!(strict.sh("true").go().await.exit(), StepExit::Code(0));
}
