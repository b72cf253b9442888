//! Any bytes are read as an archive, or refused; what was read and is written again is read the same.

#![no_main]

use std::io::Read as _;

use libfuzzer_sys::fuzz_target;
use oci::tar::{Entry, Limits, Reader, Writer};

/// Most bytes of content that are kept.
const MAX_CONTENT_BYTES: u64 = 1 << 20;

fn read(data: &[u8]) -> Option<Vec<(Entry, Vec<u8>)>> {
    let limits = Limits {
        metadata_bytes: 64 << 10,
        path_bytes: 4096,
        headers: 1000,
    };
    let mut reader = Reader::new(data, limits);
    let mut entries = Vec::new();
    loop {
        match reader.next() {
            Ok(Some(entry)) => {
                assert!(
                    !entry.path.is_empty()
                        && !entry.path.contains(&0)
                        && entry.path.len() <= limits.path_bytes
                );
                assert!(!entry.link.contains(&0) && entry.mode <= 0o7777);
                if entry.size > MAX_CONTENT_BYTES {
                    return None;
                }
                let mut content = Vec::new();
                if reader.read_to_end(&mut content).is_err() {
                    return None;
                }
                assert_eq!(content.len() as u64, entry.size);
                entries.push((entry, content));
            }
            Ok(None) => return Some(entries),
            Err(_) => {
                assert!(reader.next().is_err(), "goes on after an error");
                return None;
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let _start = oci::tar::is_archive(data);
    let Some(entries) = read(data) else { return };
    let mut writer = Writer::new(Vec::new());
    for (entry, content) in &entries {
        // What a reader accepts, a writer may still refuse.
        if writer.append(entry, &mut content.as_slice()).is_err() {
            return;
        }
    }
    let archive = writer.finish().expect("writing to memory");
    let again = read(&archive).expect("what was written can be read");
    assert_eq!(again.len(), entries.len());
    for ((before, content), (after, content_again)) in entries.iter().zip(&again) {
        assert_eq!(content, content_again);
        assert_eq!(
            (
                &before.path,
                before.kind,
                before.mode,
                before.uid,
                before.gid,
                &before.link,
                &before.xattrs
            ),
            (
                &after.path,
                after.kind,
                after.mode,
                after.uid,
                after.gid,
                &after.link,
                &after.xattrs
            )
        );
    }
});
