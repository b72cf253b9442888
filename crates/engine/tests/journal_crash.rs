//! A process that is killed, or whose system calls fail, at any point of what it does with a journal.
//!
//! This binary is also that process: with `work FOLDER` it makes the journal of a build in `FOLDER/build`, keeps room for its end, appends,
//! resumes it as another process would, and ends it. What fails it tries once more. It leaves a file in `FOLDER/done` for each thing that it
//! could tell somebody. Otherwise it runs itself under `strace`, with a fault at each call in turn, and where no file can grow beyond so many
//! bytes; and looks after each: what was told is there, in order, once; nothing else is; and whoever comes next can write the end.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test with a main of its own"
)]

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use engine::event::{Event, StepId, Stream};
use engine::journal::{Body, FILE_NAME, JournalError, RESERVE, Reader, Record, Writer};
use engine::state;
use testkit::faults::{self, Ended, Fault, Point, Soak, Victim, figure};

/// Records before the journal is resumed, and in all but the last.
const FIRST: usize = 6;
const ALL: usize = 9;
/// What the child ends with when something failed twice.
const FAILED_TWICE: i32 = 3;
/// How much more room each run on a small disk has than the one before.
const ROOM_STEP_BYTES: usize = 13;

fn record(n: usize) -> Record {
    let body = match n {
        ALL => Body::Event(Event::Cancelled),
        n if n % 3 == 0 => Body::Event(Event::Warning {
            text: format!("warning {n}"),
        }),
        n => Body::Output {
            step: StepId(7),
            stream: Stream::Stdout,
            bytes: vec![u8::try_from(n).unwrap(); n * 211],
        },
    };
    let at_ms = u64::try_from(n).unwrap();
    Record { at_ms, body }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["work", folder] => work(Path::new(folder)),
        ["--list", ..] => ExitCode::SUCCESS,
        // What `cargo test NAME` and the like ask for.
        ref words
            if !words
                .iter()
                .all(|word| word.starts_with('-') || "journal_crash".contains(word)) =>
        {
            ExitCode::SUCCESS
        }
        _ => {
            every_call();
            ExitCode::SUCCESS
        }
    }
}

fn twice<T>(mut act: impl FnMut() -> Result<T, JournalError>) -> Option<T> {
    act().or_else(|_| act()).ok()
}

/// The process that suffers.
fn work(folder: &Path) -> ExitCode {
    faults::begin();
    let build = folder.join("build");
    let tell = |what: &str| std::fs::File::create(folder.join("done").join(what)).is_ok();
    let created = twice(|| {
        Writer::create(&build).inspect_err(|_| {
            // As of a build that could not be begun.
            let _absent = std::fs::remove_file(build.join(FILE_NAME));
        })
    });
    let Some(mut writer) = created else {
        return ExitCode::from(3);
    };
    let _unheard = tell("created");
    let mut has_failed = false;
    match twice(|| writer.reserve()) {
        Some(_) => drop(tell("reserved")),
        None => has_failed = true,
    }
    for n in 0..=ALL {
        if n == FIRST {
            // What could not be made durable is not asked for again.
            match writer.sync() {
                Ok(()) => drop(tell(&format!("synced-{n}"))),
                Err(_) => has_failed = true,
            }
            match twice(|| Writer::resume(&build)) {
                Some(resumed) => writer = resumed,
                None => has_failed = true,
            }
        }
        // From here on the reserve may be gone.
        if n == ALL && !tell("ending") {
            return ExitCode::from(3);
        }
        match twice(|| writer.append(&record(n))) {
            Some(()) => drop(tell(&format!("appended-{n}"))),
            None => has_failed = true,
        }
    }
    match writer.sync() {
        Ok(()) => drop(tell("synced-end")),
        Err(_) => has_failed = true,
    }
    if has_failed {
        ExitCode::from(3)
    } else {
        ExitCode::SUCCESS
    }
}

fn prepare(folder: &Path) {
    std::fs::create_dir_all(folder.join("done")).unwrap();
    std::fs::create_dir(folder.join("build")).unwrap();
}

/// Looks at what is left, and goes on with it as whoever finds it does.
fn look_after(folder: &Path, when: &str) {
    let build = folder.join("build");
    let done = |what: &str| folder.join("done").join(what).exists();
    if !done("created") {
        return;
    }
    let found = read(&build, when);
    let mut expected = (0..=ALL).map(|n| (n, record(n)));
    for one in &found {
        // Told or not: in order, and once.
        let (n, _) = expected
            .find(|(n, expected)| {
                let is_it = expected == one;
                assert!(
                    is_it || !done(&format!("appended-{n}")),
                    "{when}: {n} is lost"
                );
                is_it
            })
            .unwrap_or_else(|| panic!("{when}: nobody wrote {one:?}"));
        assert!(n <= ALL);
    }
    for (n, _) in expected {
        assert!(!done(&format!("appended-{n}")), "{when}: {n} is lost");
    }
    let has_ended = found.last() == Some(&record(ALL));
    let reserve = build.join(RESERVE);
    if done("reserved") && !done("ending") {
        assert!(reserve.metadata().unwrap().len() >= 64 << 10, "{when}");
    }
    assert_eq!(
        state::of(&build).unwrap().0.is_terminal(),
        has_ended,
        "{when}"
    );
    let mut writer = Writer::resume(&build).unwrap_or_else(|error| panic!("{when}: {error}"));
    if !has_ended {
        writer.append(&record(ALL)).unwrap();
        writer.sync().unwrap();
        assert_eq!(read(&build, when).len(), found.len() + 1, "{when}");
        assert!(!reserve.exists(), "{when}");
    }
    assert!(state::of(&build).unwrap().0.is_terminal(), "{when}");
}

fn read(build: &Path, when: &str) -> Vec<Record> {
    let mut reader = Reader::open(build).unwrap_or_else(|error| panic!("{when}: {error}"));
    let next = || {
        let next = reader.next();
        next.unwrap_or_else(|error| panic!("{when}: {error}"))
    };
    std::iter::from_fn(next).collect()
}

fn every_call() {
    let began = Instant::now();
    let scratch = tempfile::tempdir_in(faults::quick_folder()).unwrap();
    let victim = Victim::new(&std::env::current_exe().unwrap(), &["work"]);
    let first = scratch.path().join("first");
    prepare(&first);
    let points = victim.points(&first);
    look_after(&first, "without a fault");
    // They are few: all of them every time.
    let runs = faults::plan(&points, Soak::Yes);
    let failed_twice = AtomicUsize::new(0);
    let suffer = |index: usize, (point, fault): &(Point, Fault)| {
        let folder = scratch.path().join(index.to_string());
        prepare(&folder);
        let ended = victim.suffer(&folder, point, *fault);
        let when = format!("{fault:?} at {point}");
        match (fault, ended) {
            (Fault::Kill, Ended::Killed) | (_, Ended::Code(0)) => {}
            (Fault::Error(_) | Fault::ErrorFrom(_), Ended::Code(FAILED_TWICE)) => {
                failed_twice.fetch_add(1, Ordering::Relaxed);
            }
            (_, ended) => panic!("{when}: it ended with {ended:?}"),
        }
        look_after(&folder, &when);
        std::fs::remove_dir_all(&folder).unwrap();
    };
    faults::in_parallel(&runs, &suffer);
    let n_rooms = small_disks(&victim, scratch.path());
    figure(
        "F8",
        &[
            ("journal_crash_points", points.len().to_string()),
            ("runs", runs.len().to_string()),
            ("rooms", n_rooms.to_string()),
            ("failed_twice", failed_twice.into_inner().to_string()),
            ("invariant_breaks", "0".to_owned()),
            ("acknowledged_lost", "0".to_owned()),
            ("seconds", began.elapsed().as_secs().to_string()),
        ],
    );
}

/// No room for more than so many bytes, of every number: a record is cut anywhere, and taken back.
fn small_disks(victim: &Victim, scratch: &Path) -> usize {
    let size = scratch.join("first/build").join(FILE_NAME);
    let size = usize::try_from(size.metadata().unwrap().len()).unwrap();
    let rooms: Vec<usize> = (0..size + ROOM_STEP_BYTES)
        .step_by(ROOM_STEP_BYTES)
        .collect();
    faults::in_parallel(&rooms, &|_, room| {
        let folder = scratch.join(format!("room-{room}"));
        prepare(&folder);
        let code = victim.suffer_small_files(&folder, u64::try_from(*room).unwrap());
        let when = format!("room for {room} bytes");
        // The reserve is larger than all of it.
        assert_eq!(code, Some(FAILED_TWICE), "{when}");
        look_after(&folder, &when);
        std::fs::remove_dir_all(&folder).unwrap();
    });
    rooms.len()
}
