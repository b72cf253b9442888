//! The most memory that a builder held: all of its processes together, looked at again and again while it works.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const PAUSE: Duration = Duration::from_millis(20);

/// Looks at processes until it is asked for what it saw.
pub(crate) struct Sampler {
    stop: Arc<AtomicBool>,
    peak: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    /// Starts looking at `roots` and everything that descends from them, and at every process whose command line has `mark`.
    pub(crate) fn start(roots: Vec<u32>, mark: String) -> Self {
        let (stop, peak) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, seen) = (Arc::clone(&stop), Arc::clone(&peak));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                seen.fetch_max(resident_bytes(&roots, &mark), Ordering::Relaxed);
                std::thread::sleep(PAUSE);
            }
        });
        Self {
            stop,
            peak,
            thread: Some(thread),
        }
    }

    /// Returns the most that was seen at once, in bytes.
    pub(crate) fn finish(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It cannot panic; if it did, what it saw until then counts.
            let _ended = thread.join();
        }
        self.peak.load(Ordering::Relaxed)
    }
}

/// Returns the anonymous memory of the processes: file pages are the kernel's cache, which everybody shares.
fn resident_bytes(roots: &[u32], mark: &str) -> u64 {
    let mut parents: HashMap<u32, (u32, u64, bool)> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(id) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let text = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let field = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let is_marked = String::from_utf8_lossy(&command).contains(mark);
        let parent = field("PPid:").and_then(|id| u32::try_from(id).ok());
        let resident = field("RssAnon:").unwrap_or(0) + field("RssShmem:").unwrap_or(0);
        parents.insert(id, (parent.unwrap_or(0), resident * 1024, is_marked));
    }
    let counts = |id: &u32| {
        let mut id = *id;
        for _ in 0..64 {
            match parents.get(&id) {
                Some((_, _, true)) => return true,
                _ if roots.contains(&id) => return true,
                Some((parent, _, _)) if *parent > 1 => id = *parent,
                _ => return false,
            }
        }
        false
    };
    let own = std::process::id();
    parents
        .iter()
        .filter(|(id, _)| **id != own && counts(id))
        .map(|(_, (_, bytes, _))| bytes)
        .sum()
}
