//! Leases, uses and collections, as many seeds choose: what was promised to whom is there.
//!
//! Everything is the real store; chance decides who does what next, and how much time passes. Time passes by making everything older: nothing
//! in the store knows what time it is but by the times of files. What is done in one go is not divided here: that collectors, finders and
//! pushers get along in between is shown by tests with threads and, at every system call, by `crash`.
//!
//! A seed that fails is printed; `KILN_SIMULATION_SEED` plays it alone.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test says what went wrong by ending"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::time::Duration;

use oci::Digest;
use store::check::{Checking, Depth, Repair};
use store::collect::{Kind, Policy};
use store::{SnapshotError, Store};
use testkit::faults::{Dice, figure, quick_folder, soak_time};

/// Seeds of an ordinary run, and what is done with each.
const SEEDS: u64 = 500;
const DEEDS: usize = 60;
const THINGS: u64 = 8;
/// A moment: uses are noted again after five seconds, and what was noted within ten is not collected.
const FRESH_S: u64 = 4;
const NAMED: &[&str] = &["kept"];

/// Somebody who uses the store: a worker with a lease, or a server without.
struct User {
    store: Store,
    has_lease: bool,
    /// What it found or made since its lease began.
    blobs: BTreeSet<u64>,
    snapshots: BTreeSet<u64>,
}

struct World {
    path: std::path::PathBuf,
    users: Vec<User>,
    /// What the repository has links to.
    linked: BTreeSet<u64>,
    /// What was found or made within the last moment, by anybody, and how many seconds ago.
    fresh_blobs: BTreeMap<u64, u64>,
    fresh_snapshots: BTreeMap<u64, u64>,
    n_collected: usize,
}

fn content(n: u64) -> Vec<u8> {
    format!("content {n}").into_bytes()
}

fn digest(n: u64) -> Digest {
    Digest::sha256(&content(n))
}

/// Makes everything in a folder older.
fn age(folder: &Path, by: Duration) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            age(&path, by);
        } else if let Ok(file) = File::open(&path) {
            let modified = file.metadata().unwrap().modified().unwrap();
            file.set_modified(modified - by).unwrap();
        }
    }
}

impl World {
    fn new(path: &Path) -> Self {
        let store = Store::open(path, None).unwrap();
        Self {
            path: path.to_owned(),
            users: vec![User::new(store)],
            linked: BTreeSet::new(),
            fresh_blobs: BTreeMap::new(),
            fresh_snapshots: BTreeMap::new(),
            n_collected: 0,
        }
    }

    fn deed(&mut self, dice: &mut Dice) -> String {
        let (who, n) = (
            usize::try_from(dice.below(self.users.len() as u64)).unwrap(),
            dice.below(THINGS),
        );
        match dice.below(12) {
            0 | 1 => self.put(who, n),
            2 | 3 => self.find(who, n),
            4 => self.snapshot(who, n),
            5 => self.link(who, n),
            6 => self.unlink(who, n),
            7 if self.users.len() < 4 => self.begin(dice.below(2)),
            8 if self.users.len() > 1 => self.end(who.max(1), dice.below(2)),
            9 | 10 => self.pass(Duration::from_secs(match dice.below(4) {
                0 => 3,
                1 => 11,
                2 => 700,
                _ => 4000,
            })),
            _ => self.collect(who, dice.below(3)),
        }
    }

    fn put(&mut self, who: usize, n: u64) -> String {
        let user = self.users.get_mut(who).unwrap();
        user.store.put(&content(n)).unwrap();
        user.blobs.insert(n);
        self.fresh_blobs.insert(n, 0);
        format!("{who} puts {n}")
    }

    fn find(&mut self, who: usize, n: u64) -> String {
        let user = self.users.get_mut(who).unwrap();
        let blob = user.store.size_of(&digest(n)).unwrap().is_some();
        let snapshot = user.store.has_snapshot(&digest(n));
        if blob {
            user.blobs.insert(n);
            self.fresh_blobs.insert(n, 0);
        }
        if snapshot {
            user.snapshots.insert(n);
            self.fresh_snapshots.insert(n, 0);
        }
        format!("{who} looks for {n}: {blob}, {snapshot}")
    }

    fn snapshot(&mut self, who: usize, n: u64) -> String {
        let user = self.users.get_mut(who).unwrap();
        let make = || -> Result<bool, SnapshotError> {
            let draft = user.store.new_snapshot()?;
            std::fs::write(draft.path().join("file"), content(n)).unwrap();
            draft.commit(&digest(n))
        };
        let is_new = make().unwrap();
        user.snapshots.insert(n);
        self.fresh_snapshots.insert(n, 0);
        format!("{who} unpacks {n}, new: {is_new}")
    }

    fn link(&mut self, who: usize, n: u64) -> String {
        let is_there = self
            .users
            .get(who)
            .unwrap()
            .store
            .link_blob("a/b", &digest(n))
            .is_ok();
        if is_there {
            self.linked.insert(n);
            self.fresh_blobs.insert(n, 0);
        }
        format!("{who} links {n}: {is_there}")
    }

    fn unlink(&mut self, who: usize, n: u64) -> String {
        self.users
            .get(who)
            .unwrap()
            .store
            .unlink_blob("a/b", &digest(n))
            .unwrap();
        self.linked.remove(&n);
        format!("{who} unlinks {n}")
    }

    fn begin(&mut self, choice: u64) -> String {
        let has_lease = choice == 0;
        let mut user = User::new(Store::open(&self.path, None).unwrap());
        if has_lease {
            user.store.lease().unwrap();
            user.has_lease = true;
        }
        self.users.push(user);
        format!("somebody comes, with a lease: {has_lease}")
    }

    /// Somebody goes, or is killed: then what it has in its session's folder stays behind.
    fn end(&mut self, who: usize, choice: u64) -> String {
        let is_killed = choice == 0;
        if who >= self.users.len() {
            return String::new();
        }
        let user = self.users.remove(who);
        if is_killed {
            let draft = user.store.new_snapshot().unwrap();
            std::fs::write(draft.path().join("half"), "done").unwrap();
        }
        drop(user);
        format!("{who} goes, killed: {is_killed}")
    }

    fn pass(&mut self, time: Duration) -> String {
        age(&self.path, time);
        for fresh in [&mut self.fresh_blobs, &mut self.fresh_snapshots] {
            for age_s in fresh.values_mut() {
                *age_s += time.as_secs();
            }
            fresh.retain(|_, age_s| *age_s <= FRESH_S);
        }
        format!("{} s pass", time.as_secs())
    }

    fn collect(&mut self, who: usize, how: u64) -> String {
        let policy = Policy {
            kinds: Kind::ALL.to_vec(),
            only_unused_for: None,
            unused_for: (how == 0).then_some(Duration::ZERO),
            max_bytes: (how == 1).then_some(5000),
            min_free_bytes: (how == 2).then_some(u64::MAX),
        };
        let collected = self
            .users
            .get(who)
            .unwrap()
            .store
            .collect(&policy, NAMED)
            .unwrap();
        self.n_collected += collected.removed.len();
        format!("{who} collects {how}: {}", collected.removed.len())
    }

    /// Returns what is not as was promised. Looks at the files: asking the store would be a use.
    fn broken(&self) -> Option<String> {
        let is_there = |folder: &str, n: u64| self.path.join(folder).join(digest(n).hex()).exists();
        for n in &self.linked {
            if !is_there("blobs/sha256", *n) {
                return Some(format!("the repository's blob {n} is gone"));
            }
        }
        for user in self.users.iter().filter(|user| user.has_lease) {
            if let Some(n) = user.blobs.iter().find(|n| !is_there("blobs/sha256", **n)) {
                return Some(format!("blob {n} is gone from under a lease"));
            }
            if let Some(n) = user.snapshots.iter().find(|n| !is_there("snapshots", **n)) {
                return Some(format!("snapshot {n} is gone from under a lease"));
            }
        }
        let fresh = self
            .fresh_blobs
            .keys()
            .find(|n| !is_there("blobs/sha256", **n));
        if let Some(n) = fresh {
            return Some(format!("blob {n} was there a moment ago"));
        }
        let fresh = self
            .fresh_snapshots
            .keys()
            .find(|n| !is_there("snapshots", **n));
        fresh.map(|n| format!("snapshot {n} was there a moment ago"))
    }
}

impl User {
    fn new(store: Store) -> Self {
        Self {
            store,
            has_lease: false,
            blobs: BTreeSet::new(),
            snapshots: BTreeSet::new(),
        }
    }
}

/// Plays one seed; returns how much was collected.
fn play(seed: u64) -> usize {
    let scratch = tempfile::tempdir_in(quick_folder()).unwrap();
    let mut world = World::new(&scratch.path().join("store"));
    let mut dice = Dice::new(seed);
    let mut story = Vec::new();
    for _ in 0..DEEDS {
        story.push(world.deed(&mut dice));
        if let Some(broken) = world.broken() {
            panic!("seed {seed}: {broken} after\n{}", story.join("\n"));
        }
    }
    let how = Checking {
        depth: Depth::Bytes,
        repair: Repair::Nothing,
    };
    let user = world.users.first().unwrap();
    let report = user.store.check(how, NAMED).unwrap();
    assert!(!report.is_wrong(), "seed {seed}: {:?}", report.findings);
    world.n_collected
}

#[test]
fn what_was_promised_is_there_whatever_is_done_in_whichever_order() {
    if let Some(seed) = std::env::var_os("KILN_SIMULATION_SEED") {
        play(seed.to_str().unwrap().parse().unwrap());
        return;
    }
    let (began, time) = (std::time::Instant::now(), soak_time());
    let (mut n_seeds, mut n_collected) = (0, 0);
    while n_seeds < SEEDS || time.is_some_and(|time| began.elapsed() < time) {
        n_collected += play(n_seeds);
        n_seeds += 1;
    }
    assert!(n_collected > 0);
    figure(
        "F21",
        &[
            ("seeds", n_seeds.to_string()),
            ("deeds", (n_seeds * DEEDS as u64).to_string()),
            ("collected", n_collected.to_string()),
            ("promises_broken", "0".to_owned()),
            ("seconds", began.elapsed().as_secs().to_string()),
        ],
    );
}
