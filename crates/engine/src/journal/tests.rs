use super::*;
use crate::event::Phase;

fn records() -> Vec<Record> {
    let output = |n: u32| Record {
        at_ms: 7 + u64::from(n),
        body: Body::Output {
            step: StepId(n),
            stream: Stream::Stderr,
            bytes: vec![u8::try_from(n % 251).unwrap(); (n as usize * 97) % 5000],
        },
    };
    let event = Record {
        at_ms: 1,
        body: Body::Event(Event::Phase {
            phase: Phase::Running,
        }),
    };
    std::iter::once(event).chain((0..300).map(output)).collect()
}

fn read_all(folder: &Path) -> Vec<Record> {
    let mut reader = Reader::open(folder).unwrap();
    std::iter::from_fn(|| reader.next().unwrap()).collect()
}

#[test]
fn what_was_appended_is_read_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(folder.path()).unwrap();
    let mut reader = Reader::open(folder.path()).unwrap();
    for record in records() {
        assert_eq!(reader.next().unwrap(), None);
        writer.append(&record).unwrap();
        assert_eq!(reader.next().unwrap().as_ref(), Some(&record));
    }
    assert_eq!(read_all(folder.path()), records());
}

#[test]
fn who_wants_events_only_reads_no_output() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(folder.path()).unwrap();
    let mut reader = Reader::skim(folder.path()).unwrap();
    let event = |phase| Event::Phase { phase };
    let phases = [Phase::Resolving, Phase::Running, Phase::Pushing];
    for (at_ms, phase) in (0..).zip(phases) {
        assert_eq!(reader.next_event().unwrap(), None);
        for record in records().split_off(1) {
            writer.append(&record).unwrap();
        }
        assert_eq!(reader.next_event().unwrap(), None);
        let body = Body::Event(event(phase));
        writer.append(&Record { at_ms, body }).unwrap();
        assert_eq!(reader.next_event().unwrap(), Some((at_ms, event(phase))));
    }
    // Half a record of output is not passed over.
    let path = folder.path().join(FILE_NAME);
    let whole = std::fs::read(&path).unwrap();
    let output = encode(&records()[250]).unwrap();
    std::fs::write(&path, [&whole[..], &output[..output.len() - 1]].concat()).unwrap();
    assert_eq!(reader.next_event().unwrap(), None);
    let body = Body::Event(event(Phase::Pushing));
    let last = encode(&Record { at_ms: 9, body }).unwrap();
    std::fs::write(&path, [&whole[..], &output, &last].concat()).unwrap();
    assert_eq!(
        reader.next_event().unwrap(),
        Some((9, event(Phase::Pushing)))
    );
}

#[test]
fn a_torn_tail_is_cut_at_every_length_and_writing_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    let (first, last) = (&records()[0], &records()[3]);
    let mut writer = Writer::create(folder.path()).unwrap();
    writer.append(first).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let tail = encode(last).unwrap();
    for cut in 0..tail.len() {
        std::fs::write(&path, [&whole[..], &tail[..cut]].concat()).unwrap();
        let mut writer = Writer::resume(folder.path()).unwrap();
        writer.append(last).unwrap();
        assert_eq!(
            read_all(folder.path()),
            [first.clone(), last.clone()],
            "cut at {cut}"
        );
    }
}

#[test]
fn a_record_that_could_not_be_written_whole_is_taken_back_and_readers_go_on() {
    // Whoever reads sees the beginning of the record, then the one that is written in its place.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    let mut writer = Writer::create(folder.path()).unwrap();
    writer.append(&records()[0]).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let (large, small) = (&records()[200], &records()[3]);
    for cut in [1, 7, 8, 9, 20, 1000] {
        std::fs::write(&path, &whole).unwrap();
        let mut reader = Reader::open(folder.path()).unwrap();
        assert_eq!(reader.next().unwrap().as_ref(), Some(&records()[0]));
        let begun = encode(large).unwrap();
        std::fs::write(&path, [&whole[..], &begun[..cut]].concat()).unwrap();
        assert_eq!(reader.next().unwrap(), None, "cut at {cut}");
        std::fs::write(&path, [&whole[..], &encode(small).unwrap()].concat()).unwrap();
        assert_eq!(reader.next().unwrap().as_ref(), Some(small), "cut at {cut}");
    }
}

#[test]
fn what_is_reserved_is_given_up_for_the_last_record() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(folder.path()).unwrap();
    let reserve = writer.reserve().unwrap();
    assert!(reserve.metadata().unwrap().len() >= 64 << 10);
    writer.append(&records()[0]).unwrap();
    assert!(reserve.exists());
    let body = Body::Event(Event::Cancelled);
    writer.append(&Record { at_ms: 1, body }).unwrap();
    assert!(!reserve.exists());
}

#[test]
fn a_flipped_bit_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    let mut writer = Writer::create(folder.path()).unwrap();
    writer.append(&records()[5]).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for at in FORMAT_VERSION.len() + 4..whole.len() {
        let mut bad = whole.clone();
        bad[at] ^= 1;
        std::fs::write(&path, bad).unwrap();
        let read = Reader::open(folder.path()).unwrap().next();
        assert!(
            matches!(read, Err(JournalError::Damaged { .. })),
            "bit at {at}"
        );
    }
}

#[test]
fn a_file_of_another_kind_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(FILE_NAME), b"something else").unwrap();
    assert!(matches!(
        Reader::open(folder.path()),
        Err(JournalError::Format { .. })
    ));
}

#[test]
fn a_length_of_which_a_part_was_taken_back_passes_over_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let output = |size: usize| Record {
        at_ms: 5,
        body: Body::Output {
            step: StepId(1),
            stream: Stream::Stdout,
            bytes: vec![b'x'; size],
        },
    };
    let event = |phase| Record {
        at_ms: 6,
        body: Body::Event(Event::Phase { phase }),
    };
    for n_torn in 1..=FRAME_BYTES {
        let path = folder.path().join(FILE_NAME);
        let mut writer = Writer::create(folder.path()).unwrap();
        writer.append(&event(Phase::Resolving)).unwrap();
        writer.append(&output(10)).unwrap();
        let whole = path.metadata().unwrap().len();
        let mut file = plainly().append(true).open(&path).unwrap();
        let torn = encode(&output(100)).unwrap();
        file.write_all(&torn[..n_torn]).unwrap();
        let mut reader = Reader::skim(folder.path()).unwrap();
        // Reads ahead, and so the part that is taken back now.
        reader.next_event().unwrap().unwrap();
        file.set_len(whole).unwrap();
        for record in [output(300), event(Phase::Running), output(300)] {
            writer.append(&record).unwrap();
        }
        let running = Event::Phase {
            phase: Phase::Running,
        };
        assert_eq!(reader.next_event().unwrap(), Some((6, running)), "{n_torn}");
        std::fs::remove_file(path).unwrap();
    }
}
