//! A wait for the disk that fails late: meanwhile another process has found the name, and was promised that it stays.

use std::error::Error;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use oci::Digest;
use store::Store;
use testkit::faults::{self, Point, Victim};

use super::FAILED_TWICE;

const CONTENT: &[u8] = b"of two writers";
/// How long the first one waits before it fails, which is when the second one does all that it does.
const DELAY: Duration = Duration::from_secs(3);

/// The process that suffers: makes one blob.
pub(super) fn one(folder: &Path) -> ExitCode {
    let Ok(store) = Store::open(&folder.join("store"), None) else {
        return ExitCode::from(4);
    };
    faults::begin();
    let make = || {
        let mut ingest = store.ingest()?;
        ingest.write_all(CONTENT)?;
        ingest.commit(None)?;
        Ok::<_, Box<dyn Error>>(())
    };
    match make() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(3),
    }
}

pub(super) fn another_was_promised_it(scratch: &Path) {
    let victim = Victim::new(&std::env::current_exe().unwrap(), &["one"]);
    let folder_of = |name: &str| {
        let folder = scratch.join(name);
        std::fs::create_dir(&folder).unwrap();
        drop(Store::open(&folder.join("store"), None).unwrap());
        folder
    };
    let points = victim.points(&folder_of("late-points"));
    let waits: Vec<&Point> = points.iter().filter(|p| p.call == "fsync").collect();
    let [of_bytes, of_name] = waits[..] else {
        panic!("it waits for its bytes and for its name: {waits:?}");
    };
    let digest = Digest::sha256(CONTENT);

    let folder = folder_of("late-bytes");
    let code = victim.suffer_late(&folder, of_bytes, "EIO", Duration::ZERO);
    assert_eq!(code, Some(FAILED_TWICE));
    let store = Store::open(&folder.join("store"), None).unwrap();
    assert_eq!(
        store.size_of(&digest).unwrap(),
        None,
        "bytes that may be lost"
    );

    let folder = folder_of("late-name");
    let store = Store::open(&folder.join("store"), None).unwrap();
    let code = std::thread::scope(|scope| {
        let first = scope.spawn(|| victim.suffer_late(&folder, of_name, "EIO", DELAY));
        let began = Instant::now();
        while store.size_of(&digest).unwrap().is_none() {
            assert!(began.elapsed() < DELAY * 10, "the first one gives no name");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut ingest = store.ingest().unwrap();
        ingest.write_all(CONTENT).unwrap();
        ingest.commit(None).unwrap();
        assert!(!first.is_finished(), "the first one was to fail later");
        first.join().unwrap()
    });
    assert_eq!(code, Some(FAILED_TWICE));
    let bytes = store.read_blob(&digest, 1000).unwrap();
    assert_eq!(
        bytes.as_deref(),
        Some(CONTENT),
        "what the second was promised"
    );
}
