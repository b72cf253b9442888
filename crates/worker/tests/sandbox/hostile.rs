//! Bases that lie about `/dev`, `/proc`, `/sys` and `/etc`, each beside a canary that nothing may touch.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::sandbox::SandboxError;
use rustix::fs::{CWD, FileType, Mode};

use crate::cases::{Case, cases};
use crate::rig::{Outcome, Rig, make_base};

pub(crate) const CASES: &[Case] = cases![
    directories_of_the_kernel_that_are_links_or_files_are_repaired,
    devices_of_the_base_are_neither_followed_nor_used,
    injected_files_are_not_written_through_links,
    a_working_directory_below_a_link_stays_inside,
    an_etc_that_is_a_link_is_followed_inside_and_only_there,
];

/// A base of one's own and a canary beside it.
struct Trap {
    dir: tempfile::TempDir,
}

impl Trap {
    fn new(rig: &Rig) -> Self {
        let dir = tempfile::tempdir_in(rig.dir.path()).unwrap();
        make_base(&dir.path().join("base"));
        for directory in ["canary", "canary/pts", "canary/shm", "canary/empty"] {
            fs::create_dir(dir.path().join(directory)).unwrap();
        }
        for file in ["ptmx", "null", "resolv.conf", "hosts", "hostname"] {
            fs::write(dir.path().join("canary").join(file), "canary").unwrap();
        }
        Self { dir }
    }

    fn base(&self, path: &str) -> PathBuf {
        self.dir.path().join("base").join(path)
    }

    fn canary(&self) -> PathBuf {
        self.dir.path().join("canary")
    }

    /// Runs a step that uses what was injected, and looks at the canary afterwards.
    async fn run(&self, rig: &Rig) -> Outcome {
        let before = listing(&self.canary());
        let script = "echo x > /dev/null && cat /etc/hostname && test -c /dev/null && test -d /proc/1 && ls /sys/kernel > /dev/null && rm -f /dev/ptmx; test -d /etc";
        let outcome = rig
            .sh(script)
            .with(|run| run.base = self.dir.path().join("base"))
            .go()
            .await;
        assert_eq!(before, listing(&self.canary()));
        outcome
    }
}

fn listing(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.push((path.clone(), Vec::new()));
            found.extend(listing(&path));
        } else {
            found.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

async fn directories_of_the_kernel_that_are_links_or_files_are_repaired(rig: Arc<Rig>) {
    for path in ["dev", "proc", "sys"] {
        let absolute = Trap::new(&rig);
        symlink(absolute.canary(), absolute.base(path)).unwrap();
        assert_eq!(absolute.run(&rig).await.text(), "step");
        let relative = Trap::new(&rig);
        symlink("../canary", relative.base(path)).unwrap();
        assert_eq!(relative.run(&rig).await.text(), "step");
        let file = Trap::new(&rig);
        fs::write(file.base(path), "a file").unwrap();
        assert_eq!(file.run(&rig).await.text(), "step");
    }
}

async fn devices_of_the_base_are_neither_followed_nor_used(rig: Arc<Rig>) {
    let case = Trap::new(&rig);
    fs::create_dir(case.base("dev")).unwrap();
    for (name, target) in [
        ("null", "null"),
        ("pts", "pts"),
        ("shm", "shm"),
        ("console", "new"),
        ("ptmx", "ptmx"),
    ] {
        symlink(case.canary().join(target), case.base("dev").join(name)).unwrap();
    }
    symlink("/proc/sys/kernel/core_pattern", case.base("dev/zero")).unwrap();
    assert_eq!(case.run(&rig).await.text(), "step");
}

async fn injected_files_are_not_written_through_links(rig: Arc<Rig>) {
    let whole = Trap::new(&rig);
    fs::remove_dir(whole.base("etc")).unwrap();
    symlink(whole.canary(), whole.base("etc")).unwrap();
    assert_eq!(whole.run(&rig).await.text(), "step");
    let single = Trap::new(&rig);
    symlink(
        single.canary().join("resolv.conf"),
        single.base("etc/resolv.conf"),
    )
    .unwrap();
    symlink(single.canary().join("new"), single.base("etc/hosts")).unwrap();
    symlink("/proc/self/fd/3", single.base("etc/hostname")).unwrap();
    assert_eq!(single.run(&rig).await.text(), "step");
    let odd = Trap::new(&rig);
    fs::create_dir(odd.base("etc/hosts")).unwrap();
    rustix::fs::mknodat(
        CWD,
        odd.base("etc/hostname"),
        FileType::Fifo,
        Mode::from_raw_mode(0o666),
        0,
    )
    .unwrap();
    symlink("/", odd.base("run")).unwrap();
    symlink(odd.canary(), odd.base("etc/ssl")).unwrap();
    assert_eq!(odd.run(&rig).await.text(), "step");
}

async fn a_working_directory_below_a_link_stays_inside(rig: Arc<Rig>) {
    let case = Trap::new(&rig);
    symlink(case.canary(), case.base("a")).unwrap();
    let before = listing(&case.canary());
    let base = case.dir.path().join("base");
    let outcome = rig
        .sh("pwd")
        .with(|run| (run.base, run.cwd) = (base.clone(), "/a/b".to_owned()))
        .go()
        .await;
    assert_eq!(before, listing(&case.canary()));
    // The link leads nowhere inside the root: nothing is made behind it.
    assert!(
        matches!(outcome.exit, Err(SandboxError::SetUp { .. })),
        "{}",
        outcome.stdout
    );
    fs::remove_file(case.base("a")).unwrap();
    symlink("/tmp", case.base("a")).unwrap();
    let outcome = rig
        .sh("pwd")
        .with(|run| (run.base, run.cwd) = (base, "/a/b".to_owned()))
        .go()
        .await;
    assert_eq!(outcome.text(), "/tmp/b");
}

async fn an_etc_that_is_a_link_is_followed_inside_and_only_there(rig: Arc<Rig>) {
    let inside = Trap::new(&rig);
    fs::create_dir(inside.base("usr")).unwrap();
    fs::rename(inside.base("etc"), inside.base("usr/etc")).unwrap();
    fs::write(inside.base("usr/etc/mine"), "mine\n").unwrap();
    symlink("usr/etc", inside.base("etc")).unwrap();
    let script = "cat /etc/mine /etc/hostname /usr/etc/hostname && grep -q extra /etc/hosts && echo new > /etc/new";
    let run = rig.sh(script);
    let base = inside.dir.path().join("base");
    let outcome = run.with(|run| run.base = base).go().await;
    assert_eq!(outcome.text(), "mine\nstep\nstep");
    // What the step writes is where the link leads, and what was mounted over is not part of the layer.
    let written = fs::read_dir(outcome.upper().join("usr/etc")).unwrap();
    let names: Vec<_> = written.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["new"]);
    assert!(!outcome.upper().join("etc").exists());
    let outside = Trap::new(&rig);
    fs::remove_dir_all(outside.base("etc")).unwrap();
    symlink(outside.canary(), outside.base("etc")).unwrap();
    assert_eq!(outside.run(&rig).await.text(), "step");
}
