//! A writer that is interrupted and readers of every kind, as many seeds choose: everybody reads what was written, whole and in order.
//!
//! An interrupted write leaves a part of a record in the file. Either the writer lives and takes it back (the disk was full), or it is dead
//! and whoever resumes the journal cuts it off. Readers look at any moment in between, and have read parts of it.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by ending"
)]

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use engine::event::{Event, StepId, Stream};
use engine::journal::{Body, FILE_NAME, FORMAT_VERSION, Reader, Record, Writer};
use testkit::faults::{Dice, figure, quick_folder, soak_time};

/// Seeds of an ordinary run, and what is done with each.
const SEEDS: u64 = 60;
const DEEDS: usize = 120;
/// Length, checksum and kind of a record.
const HEAD_BYTES: u64 = 9;

enum Any {
    /// Reads everything.
    All(Reader, usize),
    /// Reads events only.
    Events(Reader, usize),
}

struct World<'a> {
    folder: &'a Path,
    other: &'a Path,
    writer: Option<Writer>,
    written: Vec<Record>,
    readers: Vec<Any>,
}

fn record(dice: &mut Dice, at_ms: u64) -> Record {
    let body = if dice.below(3) == 0 {
        let text = "x".repeat(usize::try_from(dice.below(300)).unwrap());
        Body::Event(Event::Warning { text })
    } else {
        let size = usize::try_from(dice.below(9000)).unwrap();
        Body::Output {
            step: StepId(u32::try_from(dice.below(4)).unwrap()),
            stream: Stream::Stdout,
            bytes: vec![u8::try_from(dice.below(256)).unwrap(); size],
        }
    };
    Record { at_ms, body }
}

impl World<'_> {
    fn deed(&mut self, dice: &mut Dice) {
        match dice.below(10) {
            0..=3 => self.append(dice),
            4 => self.interrupt(dice),
            5 if self.readers.len() < 6 => self.open(dice),
            _ => self.read(dice),
        }
    }

    fn append(&mut self, dice: &mut Dice) {
        let record = record(dice, self.written.len() as u64);
        self.writer.as_mut().unwrap().append(&record).unwrap();
        self.written.push(record);
    }

    /// Leaves a part of a record in the file, lets somebody read, and takes it back or cuts it off.
    fn interrupt(&mut self, dice: &mut Dice) {
        let begun = self.encoded(&record(dice, 7));
        // Every other time a part of its head, which is where readers can go wrong.
        let most = match dice.below(2) {
            0 => HEAD_BYTES,
            _ => begun.len() as u64,
        };
        let n = usize::try_from(1 + dice.below(most - 1)).unwrap();
        let path = self.folder.join(FILE_NAME);
        let whole = path.metadata().unwrap().len();
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(&begun[..n]).unwrap();
        for _ in 0..dice.below(4) {
            self.read(dice);
        }
        if dice.below(2) == 0 {
            file.set_len(whole).unwrap();
        } else {
            self.writer = None;
            self.writer = Some(Writer::resume(self.folder).unwrap());
        }
    }

    fn encoded(&self, record: &Record) -> Vec<u8> {
        let _absent = std::fs::remove_file(self.other.join(FILE_NAME));
        Writer::create(self.other).unwrap().append(record).unwrap();
        let bytes = std::fs::read(self.other.join(FILE_NAME)).unwrap();
        bytes[FORMAT_VERSION.len()..].to_vec()
    }

    fn open(&mut self, dice: &mut Dice) {
        self.readers.push(if dice.below(2) == 0 {
            Any::All(Reader::open(self.folder).unwrap(), 0)
        } else {
            Any::Events(Reader::skim(self.folder).unwrap(), 0)
        });
    }

    fn read(&mut self, dice: &mut Dice) {
        if self.readers.is_empty() {
            return;
        }
        let who = usize::try_from(dice.below(self.readers.len() as u64)).unwrap();
        for _ in 0..=dice.below(8) {
            if !step(&mut self.readers[who], &self.written) {
                return;
            }
        }
    }
}

/// Reads one record, which has to be the next one; false when there is none yet.
fn step(reader: &mut Any, written: &[Record]) -> bool {
    match reader {
        Any::All(reader, n) => {
            let Some(record) = reader.next().unwrap() else {
                return false;
            };
            assert_eq!(Some(&record), written.get(*n));
            *n += 1;
        }
        Any::Events(reader, n) => {
            let Some((at_ms, event)) = reader.next_event().unwrap() else {
                return false;
            };
            let is_event = |record: &&Record| matches!(record.body, Body::Event(_));
            let expected = written.iter().filter(is_event).nth(*n);
            let body = Body::Event(event);
            assert_eq!(Some(&Record { at_ms, body }), expected);
            *n += 1;
        }
    }
    true
}

fn play(seed: u64) -> usize {
    let scratch = tempfile::tempdir_in(quick_folder()).unwrap();
    let (folder, other) = (scratch.path().join("build"), scratch.path().join("other"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::create_dir(&other).unwrap();
    let mut dice = Dice::new(seed);
    let mut world = World {
        folder: &folder,
        other: &other,
        writer: Some(Writer::create(&folder).unwrap()),
        written: Vec::new(),
        readers: Vec::new(),
    };
    for _ in 0..DEEDS {
        world.deed(&mut dice);
    }
    world.open(&mut dice);
    let n_events = world
        .written
        .iter()
        .filter(|record| matches!(record.body, Body::Event(_)))
        .count();
    for reader in &mut world.readers {
        while step(reader, &world.written) {}
        match reader {
            Any::All(_, n) => assert_eq!(*n, world.written.len()),
            Any::Events(_, n) => assert_eq!(*n, n_events),
        }
    }
    world.written.len()
}

#[test]
fn everybody_reads_what_was_written_whatever_is_interrupted() {
    let (began, time) = (std::time::Instant::now(), soak_time());
    let (mut n_seeds, mut n_records) = (0, 0);
    while n_seeds < SEEDS || time.is_some_and(|time| began.elapsed() < time) {
        let played = std::panic::catch_unwind(|| play(n_seeds));
        assert!(played.is_ok(), "seed {n_seeds}");
        n_records += played.unwrap_or_default();
        n_seeds += 1;
    }
    figure(
        "F21",
        &[
            ("journal_seeds", n_seeds.to_string()),
            ("records", n_records.to_string()),
            ("records_lost_or_torn", "0".to_owned()),
            ("seconds", began.elapsed().as_secs().to_string()),
        ],
    );
}
