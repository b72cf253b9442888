//! Collections beside pushes, pulls and deletions: short in an ordinary run, as long as `KILN_SOAK_SECONDS` says in a soak.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test says what went wrong by ending"
)]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use oci::{Digest, Document};
use store::Store;
use store::check::{Checking, Depth, Repair};
use store::collect::{Kind, Policy};
use testkit::faults::{Dice, figure, soak_time};

/// Layers that everybody's images are made of: so many that one is not used for so long that it is collected, and then pushed again.
const LAYERS: u64 = 4000;
const LAYERS_OF_AN_IMAGE: usize = 4;
/// Collections of an ordinary run.
const CYCLES: usize = 40;
const PUSHERS: u64 = 3;
const STABLE: &str = "soak/stable";
const NAMED: &[&str] = &["kept"];

fn layer(n: u64) -> Vec<u8> {
    format!("layer {n} ").into_bytes().repeat(200)
}

fn descriptor(bytes: &[u8]) -> String {
    let (digest, size) = (Digest::sha256(bytes), bytes.len());
    format!("{{\"mediaType\":\"text/plain\",\"digest\":\"{digest}\",\"size\":{size}}}")
}

/// Pushes an image as a registry does: what is there is not sent again.
fn push(store: &Store, repository: &str, tag: &str, layers: &[u64]) -> Digest {
    let bring = |bytes: &[u8]| {
        let digest = Digest::sha256(bytes);
        loop {
            // Found and gone before it got its link: then it is sent like any other.
            if store.size_of(&digest).unwrap().is_none() {
                store.put(bytes).unwrap();
            }
            if store.link_blob(repository, &digest).is_ok() {
                return;
            }
        }
    };
    let config = format!("{{\"layers\":{layers:?}}}").into_bytes();
    bring(&config);
    let layers: Vec<Vec<u8>> = layers.iter().map(|n| layer(*n)).collect();
    for bytes in &layers {
        bring(bytes);
    }
    let layers: Vec<String> = layers.iter().map(|bytes| descriptor(bytes)).collect();
    let (config, layers) = (descriptor(&config), layers.join(","));
    let manifest = format!("{{\"schemaVersion\":2,\"config\":{config},\"layers\":[{layers}]}}");
    store
        .put_manifest(repository, manifest.as_bytes(), Some(tag))
        .unwrap()
}

/// Reads all of an image that is there, which has to be whole.
fn pull(store: &Store, repository: &str, key: &str) -> usize {
    let Some((digest, bytes)) = store.manifest(repository, key).unwrap() else {
        return 0;
    };
    let Ok(Document::Manifest(manifest)) = Document::parse(None, &bytes) else {
        panic!("{digest} is no manifest")
    };
    for descriptor in std::iter::once(&manifest.config).chain(&manifest.layers) {
        let there = store.has_blob(repository, &descriptor.digest).unwrap();
        let read = store.read_blob(&descriptor.digest, 1 << 20).unwrap();
        assert!(
            there && read.is_some(),
            "blob unknown: {} of {repository}:{key}",
            descriptor.digest
        );
    }
    1 + manifest.layers.len()
}

#[test]
#[expect(
    clippy::too_many_lines,
    reason = "who does what beside whom is on one page"
)]
fn no_blob_is_missing_however_often_is_collected() {
    let scratch = tempfile::tempdir().unwrap();
    let store = Store::open(&scratch.path().join("store"), None).unwrap();
    let seed = u64::from(std::process::id());
    let (began, time) = (Instant::now(), soak_time());
    let (stop, n_pushes, n_pulls) = (
        AtomicBool::new(false),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    let is_going = || !stop.load(Ordering::Relaxed);
    let policy = Policy {
        kinds: Kind::ALL.to_vec(),
        only_unused_for: None,
        unused_for: Some(Duration::ZERO),
        max_bytes: None,
        min_free_bytes: None,
    };
    let (mut n_cycles, mut n_removed) = (0, 0);
    std::thread::scope(|scope| {
        // Whoever panics must not leave the others going on for ever.
        let stopping = Stopping(&stop);
        for who in 0..PUSHERS {
            let (store, n_pushes) = (&store, &n_pushes);
            let stop = &stop;
            scope.spawn(move || {
                let _stopping = Stopping(stop);
                let mut dice = Dice::new(seed + who);
                while !stop.load(Ordering::Relaxed) {
                    // Of its own, of which it takes everything away again; and one that everybody reads and nobody takes anything from.
                    let own = format!("soak/app{who}");
                    let layers: Vec<u64> = (0..LAYERS_OF_AN_IMAGE)
                        .map(|_| dice.below(LAYERS))
                        .collect();
                    let digest = push(store, &own, "latest", &layers);
                    assert!(pull(store, &own, "latest") > LAYERS_OF_AN_IMAGE);
                    store.delete_manifest(&own, &digest).unwrap();
                    for n in layers {
                        let digest = Digest::sha256(&layer(n));
                        store.unlink_blob(&own, &digest).unwrap();
                    }
                    if dice.below(8) == 0 {
                        let layers = [dice.below(50), dice.below(50)];
                        push(store, STABLE, &format!("t{}", dice.below(4)), &layers);
                    }
                    if dice.below(3) == 0 {
                        // Of no repository: the collector's at once.
                        let loose = store.put(&dice.below(u64::MAX).to_le_bytes()).unwrap();
                        let path = store.path().join("blobs/sha256").join(loose.hex());
                        let hour_ago = SystemTime::now() - Duration::from_secs(3600);
                        if let Ok(file) = std::fs::File::open(path) {
                            file.set_modified(hour_ago).unwrap();
                        }
                    }
                    n_pushes.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(|| {
            let _stopping = Stopping(&stop);
            let mut dice = Dice::new(seed + 100);
            while is_going() {
                let tag = format!("t{}", dice.below(4));
                n_pulls.fetch_add(pull(&store, STABLE, &tag), Ordering::Relaxed);
            }
        });
        while is_going() && n_pushes.load(Ordering::Relaxed) < 50 {
            std::thread::sleep(Duration::from_millis(1));
        }
        while is_going() && (n_cycles < CYCLES || time.is_some_and(|time| began.elapsed() < time)) {
            n_removed += store.collect(&policy, NAMED).unwrap().removed.len();
            n_cycles += 1;
        }
        drop(stopping);
    });
    let how = Checking {
        depth: Depth::Bytes,
        repair: Repair::Nothing,
    };
    let report = store.check(how, NAMED).unwrap();
    assert!(!report.is_wrong(), "{:?}", report.findings);
    assert!(n_removed > 0);
    figure(
        "F14",
        &[
            ("cycles", n_cycles.to_string()),
            ("pushes", n_pushes.into_inner().to_string()),
            ("blobs_pulled", n_pulls.into_inner().to_string()),
            ("removed", n_removed.to_string()),
            ("missing", "0".to_owned()),
            ("seed", seed.to_string()),
            ("seconds", began.elapsed().as_secs().to_string()),
        ],
    );
}

struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
