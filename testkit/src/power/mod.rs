//! What a disk may hold after the power has gone: the states that a process can have left at any moment of its work.
//!
//! 1. [`record`] runs a process under `strace` and notes what it did to the files of a folder, and what it waited for the disk for;
//! 2. at every moment of that, what had not been waited for may be there, or not, or in parts ([`Recording::lay_out`]);
//! 3. [`every_state`] puts such states on the disk, one after the other, for somebody to look at.
//!
//! The disk is a bad one, worse than most file systems: a wait for a file makes its bytes and its length durable, a wait for a folder the names
//! in it, and nothing else. Names do not wait for bytes nor bytes for names, and what came later may be there without what came before. A
//! rename is there or not, never by half. What the process has told (files that it makes in the folder `done`) is always there: somebody
//! else has heard it.

mod disk;
mod trace;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

pub use disk::{Fate, Recording};

use crate::faults::{self, Dice, Victim};

/// The folder of what is told.
pub const TOLD: &str = "done";
/// States of a soak, at least.
const SOAKED_MIN: usize = 10_000;
/// Random states of one moment that are tried before the next moment, in a soak.
const RANDOM_AT_ONCE: u64 = 8;

/// Runs a process in `folder`, where it must succeed, and notes what it does there.
#[must_use]
pub fn record(victim: &Victim, folder: &Path) -> Recording {
    let folder = std::fs::canonicalize(folder).unwrap_or_else(|error| panic!("{error}"));
    let mut disk = disk::Recorder::of(&folder);
    let log = folder.with_extension("strace");
    victim.trace(&folder, &log, trace::CALLS);
    let text = std::fs::read_to_string(&log).unwrap_or_else(|error| panic!("{error}"));
    for call in trace::calls(&text) {
        disk.take(&call);
    }
    disk.finish()
}

/// What of a moment is chosen.
#[derive(Debug, Clone, Copy)]
enum Choice {
    /// Nothing that was not waited for.
    Nothing,
    /// Names without bytes.
    Names,
    /// Bytes without names.
    Bytes,
    /// All but one.
    Without(usize),
    /// One alone.
    Only(usize),
    /// By chance.
    Random(u64),
}

impl Choice {
    fn fates(self, is_name: &[bool]) -> Vec<Fate> {
        let keep = |is_kept: bool| if is_kept { Fate::Kept } else { Fate::Lost };
        let each = is_name.iter();
        match self {
            Self::Nothing => each.map(|_| Fate::Lost).collect(),
            Self::Names => each.map(|is_name| keep(*is_name)).collect(),
            Self::Bytes => each.map(|is_name| keep(!is_name)).collect(),
            Self::Without(one) => each.enumerate().map(|(n, _)| keep(n != one)).collect(),
            Self::Only(one) => each.enumerate().map(|(n, _)| keep(n == one)).collect(),
            Self::Random(seed) => {
                let mut dice = Dice::new(seed);
                let mut fate = || match dice.below(5) {
                    0 | 1 => Fate::Lost,
                    2 | 3 => Fate::Kept,
                    _ => Fate::Torn(dice.below(1 << 32)),
                };
                each.map(|_| fate()).collect()
            }
        }
    }
}

/// How many states there were.
#[derive(Debug)]
pub struct Seen {
    /// Different ones.
    pub n_states: usize,
    /// Moments at which the power went.
    pub n_moments: usize,
    /// Most that was on its way to the disk at one of them.
    pub n_pending_max: usize,
    /// The seed of chance.
    pub seed: u64,
}

/// Puts states on the disk, in folders below `scratch`, and lets `look` look at each, with words for which one it is: an ordinary run some of
/// every moment, a soak as many as there is time for.
pub fn every_state(
    recording: &Recording,
    scratch: &Path,
    look: &(dyn Fn(&Path, &str) + Sync),
) -> Seen {
    let (began, time) = (Instant::now(), faults::soak_time());
    let seed = time.map_or(1, |_| u64::from(std::process::id()));
    let moments = recording.n_moments();
    let known = Mutex::new(HashSet::new());
    let n_states = AtomicUsize::new(0);
    let try_one = |moment: usize, choice: Choice| {
        let fates = choice.fates(&recording.pending(moment));
        let is_new = |signature| {
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            known.insert(signature)
        };
        if !is_new(recording.signature(moment, &fates)) {
            return;
        }
        let n = n_states.fetch_add(1, Ordering::Relaxed);
        let folder: PathBuf = scratch.join(format!("state-{n}"));
        recording.lay_out(moment, &fates, &folder);
        look(
            &folder,
            &format!("{choice:?} after {}", recording.describe(moment)),
        );
        std::fs::remove_dir_all(&folder).unwrap_or_else(|error| panic!("{error}"));
    };
    let rounds: Vec<usize> = (0..moments).collect();
    faults::in_parallel(&rounds, &|_, moment| {
        let moment = *moment;
        for choice in [Choice::Nothing, Choice::Names, Choice::Bytes] {
            try_one(moment, choice);
        }
        let n_pending = recording.pending(moment).len();
        if time.is_some() {
            for one in 0..n_pending {
                try_one(moment, Choice::Without(one));
                try_one(moment, Choice::Only(one));
            }
        }
        try_one(moment, Choice::Random(seed.wrapping_add(moment as u64)));
    });
    let mut round = 0_u64;
    while let Some(time) = time
        && (n_states.load(Ordering::Relaxed) < SOAKED_MIN || began.elapsed() < time)
        && round < 1000
    {
        round += 1;
        faults::in_parallel(&rounds, &|_, moment| {
            for n in 0..RANDOM_AT_ONCE {
                let base = seed.wrapping_mul(1_000_003).wrapping_add(*moment as u64);
                try_one(
                    *moment,
                    Choice::Random(base.wrapping_add((round * RANDOM_AT_ONCE + n) << 24)),
                );
            }
        });
    }
    Seen {
        n_states: n_states.into_inner(),
        n_moments: moments,
        n_pending_max: (0..moments)
            .map(|moment| recording.pending(moment).len())
            .max()
            .unwrap_or_default(),
        seed,
    }
}
