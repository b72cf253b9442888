//! Bases that lie about `/dev`, `/proc`, `/sys` and `/etc`, each beside a canary that nothing may touch.

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use engine::sandbox::{Access, Mounted, SandboxError, StepExit, StepMount, detached_copy};
use rustix::fs::{CWD, FileType, Mode};

use crate::cases::{Case, cases};
use crate::rig::{Outcome, Rig, make_base};

pub(crate) const CASES: &[Case] = cases![
    directories_of_the_kernel_that_are_links_or_files_are_repaired,
    devices_of_the_base_are_neither_followed_nor_used,
    injected_files_are_not_written_through_links,
    a_working_directory_below_a_link_stays_inside,
    an_etc_that_is_a_link_is_followed_inside_and_only_there,
    a_source_that_is_flipped_while_it_is_mounted_leads_nowhere_else,
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

/// Steps that are run while the source of their mount is flipped.
const FLIPPED_RUNS: usize = 60;

async fn a_source_that_is_flipped_while_it_is_mounted_leads_nowhere_else(rig: Arc<Rig>) {
    let dir = tempfile::tempdir_in(rig.dir.path()).unwrap();
    let (cache, canary) = (dir.path().join("cache"), dir.path().join("canary"));
    for folder in [&cache, &canary, &cache.join("selected")] {
        fs::create_dir(folder).unwrap();
    }
    fs::write(canary.join("file"), "canary").unwrap();
    fs::write(cache.join("selected/file"), "inside").unwrap();
    fs::create_dir(rig.base().join("m")).unwrap();
    symlink(&canary, cache.join("absolute")).unwrap();
    symlink("../canary", cache.join("relative")).unwrap();
    let (is_over, n_flips) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU32::new(0)),
    );
    let flipping = {
        let (is_over, n_flips, cache) = (Arc::clone(&is_over), Arc::clone(&n_flips), cache.clone());
        std::thread::spawn(move || {
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            while !is_over.load(Ordering::Relaxed) {
                for link in ["absolute", "relative"] {
                    // There and back: what is selected is the folder, the link, and the folder again.
                    for _ in 0..2 {
                        let (a, b) = (cache.join("selected"), cache.join(link));
                        rustix::fs::renameat_with(CWD, &a, CWD, &b, flags).unwrap();
                        n_flips.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        })
    };
    let (mut n_inside, mut n_refused) = (0, 0);
    for _ in 0..FLIPPED_RUNS {
        let mount = detached_copy(fs::File::open(&cache).unwrap().as_fd()).unwrap();
        let mounted = StepMount {
            target: "m".to_owned(),
            what: Mounted::Files {
                mount,
                source: "selected".to_owned(),
                access: Access::Write,
            },
        };
        let run = rig.sh("cat /m/file; echo seen > /m/file 2>/dev/null; echo inside > /m/file");
        let outcome = run.with(|run| run.mounts = vec![mounted]).go().await;
        assert!(!outcome.stdout.contains("canary"), "{}", outcome.stdout);
        match outcome.exit {
            Ok(StepExit::Code(0)) => n_inside += 1,
            // A link leads to what is not there.
            Err(SandboxError::SetUp { .. } | SandboxError::MountPoint { .. }) => n_refused += 1,
            other => panic!("{other:?}: {}", outcome.stderr),
        }
    }
    is_over.store(true, Ordering::Relaxed);
    flipping.join().unwrap();
    assert_eq!(n_inside + n_refused, FLIPPED_RUNS);
    assert!(n_inside > 0 && n_flips.load(Ordering::Relaxed) > 1000);
    assert_eq!(fs::read_to_string(canary.join("file")).unwrap(), "canary");
}
