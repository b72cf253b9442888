//! Readers that come and go, freeze and hurry, beside a log that grows: each gets what the text is.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;

use engine::event::{Event, StepId, Stream as OutputStream};
use engine::excerpt::{Excerpt, Form};
use engine::id::BuildId;
use engine::journal::{Body, FILE_NAME, FIRST_OFFSET, Record, Writer};
use engine::spec::{Purpose, Record as BuildRecord};
use futures_util::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;

use super::super::{LogError, Until, Wanted, read};
use super::*;
use crate::agents::Agents;
use crate::builds::build::{Build, Progress};

const PATIENCE: Duration = Duration::from_secs(60);

type Reader = Pin<Box<dyn Stream<Item = Result<Bytes, LogError>> + Send>>;

struct World {
    folder: tempfile::TempDir,
    build: Arc<Build>,
    writer: Writer,
    records: Vec<Record>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let record = BuildRecord {
            id: BuildId::from_random([7; 16]),
            tenant: "default".to_owned(),
            triggered_by: String::new(),
            caller: String::new(),
            supervisor_ref: String::new(),
            reference: "registry.example/workspace:1".to_owned(),
            base_reference: "registry.example/base:1".to_owned(),
            started_at_ms: 1,
            key: String::new(),
            purpose: Purpose::Image,
            request: String::new(),
            labels: std::collections::BTreeMap::new(),
        };
        let progress = Progress {
            folder: Some(folder.path().to_owned()),
            ..Progress::default()
        };
        Self {
            writer: Writer::create(folder.path()).unwrap(),
            build: Arc::new(Build::new(record, Agents::default(), progress)),
            folder,
            records: Vec::new(),
        }
    }

    fn write(&mut self, body: Body) {
        let at_ms = 1000 + self.records.len() as u64;
        let record = Record { at_ms, body };
        self.writer.append(&record).unwrap();
        self.records.push(record);
    }

    /// Lines of two steps, some of them in two halves and some with a name that is censored.
    fn output(&mut self, n: usize) {
        let text = match n % 4 {
            0 => format!("line {n} {}\n", "x".repeat(n % 700)),
            1 => format!("half {n}, "),
            2 => format!("the other half of {n} from registry.example/base:1\n"),
            _ => format!("{n}\nregistry.exam"),
        };
        self.write(Body::Output {
            step: StepId(u32::try_from(n % 2).unwrap()),
            stream: OutputStream::Stdout,
            bytes: text.into_bytes(),
        });
    }

    fn end(&mut self) {
        self.write(Body::Event(Event::Cancelled));
        self.known();
    }

    /// The service knows that the build was cancelled.
    fn known(&self) {
        let at_ms = 1000 + self.records.len() as u64;
        let build = &self.build;
        build.update(|progress| progress.take(&Event::Cancelled, at_ms));
    }

    fn read(&self, wanted: Wanted) -> Reader {
        let shutdown = CancellationToken::new();
        Box::pin(read(Arc::clone(&self.build), wanted, shutdown))
    }

    /// Returns what the log is, by folding it in one go.
    fn text(&self, wanted: Wanted) -> Vec<u8> {
        let mut excerpt = Excerpt::new(wanted.selection);
        let mut text = Vec::new();
        for record in &self.records {
            excerpt.take(record, &mut text);
        }
        if wanted.names == Names::Censored {
            text = Redactor::new(super::super::censored_words(&self.build)).bytes(&text);
        }
        let from = usize::try_from(wanted.offset).unwrap().min(text.len());
        text.split_off(from)
    }

    /// Returns how many reels there are, and the most that a ring holds.
    fn reels(&self) -> (usize, usize) {
        let views = self.build.logs.views();
        let reels = views.iter().flat_map(|shared| &shared.reels);
        let reels: Vec<_> = reels.filter_map(Weak::upgrade).collect();
        let held = reels.iter().map(|reel| reel.inner.ring().n_bytes).max();
        (reels.len(), held.unwrap_or(0))
    }
}

async fn rest(mut reader: Reader) -> Vec<u8> {
    let all = async {
        let mut text = Vec::new();
        while let Some(piece) = reader.next().await {
            text.extend_from_slice(&piece.unwrap());
        }
        text
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap()
}

fn wanted(offset: u64) -> Wanted {
    Wanted {
        offset,
        ..Wanted::default()
    }
}

fn all_wanted() -> Vec<Wanted> {
    let mut all = Vec::new();
    for names in [Names::Shown, Names::Censored] {
        for (step, form) in [(None, Form::Text), (Some(StepId(1)), Form::Raw)] {
            for offset in [0, 1, 70_001, 1_500_000, 3_000_000, 1 << 40] {
                let selection = Selection {
                    step,
                    since_ms: 0,
                    form,
                };
                all.push(Wanted {
                    offset,
                    names,
                    selection,
                    until: Until::End,
                });
            }
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reader_gets_the_text_from_its_offset_on_whenever_it_comes_and_however_it_reads() {
    let mut world = World::new();
    let (mut frozen, mut reading) = (Vec::new(), Vec::new());
    for round in 0..5 {
        for wanted in all_wanted() {
            reading.push((wanted, tokio::spawn(rest(world.read(wanted)))));
            let mut slow = world.read(wanted);
            // Some have begun to read and stop in the middle, others have not begun.
            let begun = if round % 2 == 0 && wanted.offset < 2 && round > 0 {
                slow.next().await.unwrap().unwrap().to_vec()
            } else {
                Vec::new()
            };
            frozen.push((wanted, begun, slow));
        }
        for n in 0..2500 {
            world.output(n);
            if n % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
    }
    world.end();
    for (wanted, reader) in reading {
        assert_eq!(reader.await.unwrap(), world.text(wanted), "{wanted:?}");
    }
    assert!(world.reels().1 <= RING_BYTES);
    for (wanted, mut begun, slow) in frozen {
        begun.extend(rest(slow).await);
        assert_eq!(begun, world.text(wanted), "{wanted:?}");
    }
    // And again from the end, when nobody reads any more and only marks are left.
    for wanted in all_wanted() {
        for until in [Until::End, Until::Now] {
            let wanted = Wanted { until, ..wanted };
            assert_eq!(rest(world.read(wanted)).await, world.text(wanted));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_at_the_same_place_are_one_reel_also_those_that_have_caught_up() {
    let mut world = World::new();
    for n in 0..3000 {
        world.output(n);
    }
    // The first ones come to the end of what is there, then others begin: at first they read for themselves.
    let mut early: Vec<Reader> = (0..20).map(|_| world.read(wanted(0))).collect();
    let there = world.text(wanted(0)).len();
    let catch_up = async |readers: &mut Vec<Reader>| {
        for reader in readers {
            let mut n = 0;
            // The last bytes are in a line that has not ended.
            while n < there - 2000 {
                n += reader.next().await.unwrap().unwrap().len();
            }
        }
    };
    catch_up(&mut early).await;
    assert_eq!(world.reels().0, 1);
    let mut late: Vec<Reader> = (0..20).map(|_| world.read(wanted(0))).collect();
    catch_up(&mut late).await;
    let readers = early.into_iter().chain(late);
    let readers: Vec<_> = readers.map(|reader| tokio::spawn(rest(reader))).collect();
    let one = async {
        let mut n = 3000;
        while world.reels().0 != 1 {
            world.output(n);
            n += 1;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, one).await.unwrap();
    world.end();
    for reader in readers {
        reader.await.unwrap();
    }
    assert_eq!(world.reels().0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_from_far_back_does_not_read_what_is_before_once_that_was_read() {
    let mut world = World::new();
    for n in 0..20_000 {
        world.output(n);
    }
    world.end();
    assert_eq!(rest(world.read(wanted(0))).await, world.text(wanted(0)));
    // Whoever reads the first record from now on, fails.
    let journal = OpenOptions::new()
        .write(true)
        .open(world.folder.path().join(FILE_NAME))
        .unwrap();
    journal.write_all_at(&[0xff; 8], FIRST_OFFSET).unwrap();
    let first = world.read(wanted(0)).next().await.unwrap();
    assert!(matches!(first, Err(LogError::Journal(_))), "{first:?}");
    for until in [Until::End, Until::Now] {
        let far = Wanted {
            until,
            ..wanted(2_500_000)
        };
        assert_eq!(rest(world.read(far)).await, world.text(far));
    }
}

#[test]
fn marks_are_never_more_than_the_limit_and_lie_evenly() {
    let mut world = World::new();
    world.output(0);
    let mut marks = Marks::default();
    let text = |offset| {
        let source = (&world.build, world.folder.path());
        Text::open(source, Selection::default(), &Redactor::default())
            .map(|text| text.moved(offset))
    };
    for mib in 1..2000 {
        let offset = mib * MARK_BYTES;
        if marks.is_wanted(offset) {
            marks.put(text(offset).unwrap().mark().unwrap());
        }
        assert!(marks.all.len() < MARKS_MAX);
        let before = marks.before(offset).map_or(0, Mark::offset);
        assert!(offset - before <= 2 * marks.distance, "{offset}");
    }
}
