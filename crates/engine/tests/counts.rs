//! How many system calls what is done for each file costs: counted, so that it is the same on every machine, busy or not.
//!
//! A workload is done under `strace` for two numbers of files; what the larger one takes more, divided by the files, is what one file costs.
//! Starting up, threads that meet, and memory are in neither. Whoever makes a number larger has a reason and writes it here; who makes it
//! smaller, too.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::panic,
    reason = "a test says what went wrong by ending, and tells itself by the environment what to do"
)]

use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::process::Command;

use engine::rootfs::content::{ContentOptions, digest_recalled};
use engine::rootfs::copy::{Archives, CopyOptions, Destination, Mtime, Owner, copy};
use engine::rootfs::diff::{DiffOptions, diff};
use engine::rootfs::filter::Source;
use engine::rootfs::memory::{Memory, Recall, Settling};
use engine::rootfs::root::Root;
use engine::rootfs::unpack::{UnpackLimits, unpack};
use oci::tar::{Entry, Kind, Writer};
use store::Store;
use testkit::process::{run, tool};
use tokio_util::sync::CancellationToken;

/// Says in the traced process what to do: how many files, and in which folder.
const ORDER: &str = "KILN_TEST_COUNTED";
/// Numbers of files that are compared.
const FEW: usize = 1000;
const MANY: usize = 3000;
const FILES_IN_FOLDER: usize = 100;
/// What depends on chance or on the allocator, and not on what is done; and `fcntl`, with which builds that check themselves look at what
/// they close.
const UNCOUNTED: &str = "trace=!fcntl,futex,mmap,munmap,mremap,brk,madvise,sched_yield,clone,clone3,mprotect,restart_syscall";

/// Waits for the disk.
const WAITS: &str = "trace=fsync,fdatasync,syncfs,sync_file_range";

/// Does `work` if this is the traced process; returns what it costs for each file otherwise. `prepare` is not counted.
fn cost(test: &str, prepare: &dyn Fn(usize, &Path), work: &dyn Fn(usize, &Path)) -> Option<f64> {
    cost_in(UNCOUNTED, test, prepare, work)
}

/// The same in calls of one kind.
fn cost_in(
    kind: &str,
    test: &str,
    prepare: &dyn Fn(usize, &Path),
    work: &dyn Fn(usize, &Path),
) -> Option<f64> {
    if let Ok(order) = std::env::var(ORDER) {
        let (n, folder) = order.split_once(' ').unwrap();
        work(n.parse().unwrap(), Path::new(folder));
        return None;
    }
    let calls = |n: usize| {
        let folder = tempfile::tempdir().unwrap();
        prepare(n, folder.path());
        let report = folder.path().join("report");
        let mut traced = Command::new(tool("strace", "strace"));
        traced
            .args(["-f", "-c", "-U", "calls,name", "-e", kind, "-o"])
            .arg(&report)
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--test-threads", "1"])
            .env(ORDER, format!("{n} {}", folder.path().display()));
        run(&mut traced);
        total(&fs::read_to_string(&report).unwrap())
    };
    let more = calls(MANY) - calls(FEW);
    Some(more / f64::from(u32::try_from(MANY - FEW).unwrap()))
}

fn total(report: &str) -> f64 {
    if report.trim().is_empty() {
        return 0.0;
    }
    let total = report.lines().find_map(|line| {
        let (calls, name) = line.trim().split_once(' ')?;
        (name.trim() == "total").then(|| calls.parse().unwrap())
    });
    total.unwrap_or_else(|| panic!("no total in\n{report}"))
}

/// Directories cost something as well: a hundredth of each file's share, and some for the growth of buffers.
fn check(what: &str, cost: Option<f64>, files_only: f64) {
    let Some(cost) = cost else { return };
    assert!(
        (files_only..files_only + 0.5).contains(&cost),
        "{what} takes {cost:.2} system calls for each file, not {files_only}"
    );
}

fn name(n: usize) -> String {
    format!("d{:03}/f{n:05}", n / FILES_IN_FOLDER)
}

fn files(n: usize, folder: &Path) {
    for n in 0..n {
        let path = folder.join(name(n));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("content of {n}")).unwrap();
    }
}

fn archive(n: usize) -> Vec<u8> {
    let mut archive = Writer::new(Vec::new());
    for n in 0..n {
        if n % FILES_IN_FOLDER == 0 {
            let name = name(n);
            let folder = name.split('/').next().unwrap();
            let mut entry = Entry::new(folder, Kind::Directory);
            entry.mode = 0o755;
            archive.append(&entry, &mut std::io::empty()).unwrap();
        }
        let content = format!("content of {n}");
        let mut entry = Entry::new(name(n), Kind::File);
        entry.size = content.len() as u64;
        archive.append(&entry, &mut content.as_bytes()).unwrap();
    }
    archive.finish().unwrap()
}

#[test]
fn unpacking_a_file_takes_open_write_owner_mode_time_and_close() {
    let cost = cost(
        "unpacking_a_file_takes_open_write_owner_mode_time_and_close",
        &|_, folder| fs::create_dir(folder.join("into")).unwrap(),
        &|n, folder| {
            let into = folder.join("into");
            let (limits, cancel) = (UnpackLimits::default(), CancellationToken::new());
            unpack(Cursor::new(archive(n)), &into, &limits, &cancel).unwrap();
        },
    );
    check("unpacking", cost, 6.0);
}

#[test]
fn archiving_a_file_takes_look_open_attributes_read_and_close() {
    let cost = cost(
        "archiving_a_file_takes_look_open_attributes_read_and_close",
        &|n, folder| files(n, &folder.join("upper")),
        &|_, folder| {
            let cancel = CancellationToken::new();
            let upper = folder.join("upper");
            diff(
                &upper,
                &mut std::io::sink(),
                DiffOptions::default(),
                &cancel,
            )
            .unwrap();
        },
    );
    check("archiving", cost, ARCHIVING);
}

/// Looking at it, opening it, listing its attributes, reading it, and closing it.
const ARCHIVING: f64 = 5.0;

fn digested(folder: &Path, memory: &Memory) -> Option<Memory> {
    let root = Root::open(&folder.join("from")).unwrap();
    let options = ContentOptions {
        owner: Owner::Fixed(0, 0),
        mode: None,
        ignore: None,
        n_threads: 1,
    };
    let recall = Recall {
        memory,
        now_ms: i64::MAX,
        settling: Settling::of(root.as_fd()),
    };
    let sources = [Source::new("/", None, &[]).unwrap()];
    let cancel = CancellationToken::new();
    digest_recalled(&root, &sources, &options, Some(recall), &cancel)
        .unwrap()
        .memory
}

#[test]
fn digesting_a_file_that_is_remembered_takes_one_look() {
    let cost = cost(
        "digesting_a_file_that_is_remembered_takes_one_look",
        &|n, folder| {
            files(n, &folder.join("from"));
            let memory = digested(folder, &Memory::default()).unwrap();
            fs::write(folder.join("memory"), memory.to_bytes()).unwrap();
        },
        &|_, folder| {
            let memory = Memory::from_bytes(&fs::read(folder.join("memory")).unwrap());
            assert_eq!(digested(folder, &memory), None);
        },
    );
    check("digesting what is remembered", cost, 1.0);
}

#[test]
fn noting_what_a_step_has_made_waits_for_no_disk() {
    let cost = cost_in(
        WAITS,
        "noting_what_a_step_has_made_waits_for_no_disk",
        &|_, _| (),
        &|n, folder| {
            let store = Store::open(&folder.join("store"), None).unwrap();
            for n in 0..n {
                store
                    .note_record("step", &format!("key{n}"), b"note")
                    .unwrap();
            }
            let drafts = (0..n / FILES_IN_FOLDER).map(|_| store.new_snapshot().unwrap());
            drop(drafts.collect::<Vec<_>>());
        },
    );
    let is_none = cost.is_none_or(|cost| cost.abs() < f64::EPSILON);
    assert!(is_none, "{cost:?} waits for each");
}

#[test]
fn copying_a_file_takes_what_reading_and_writing_it_takes() {
    let cost = cost(
        "copying_a_file_takes_what_reading_and_writing_it_takes",
        &|n, folder| {
            files(n, &folder.join("from"));
            fs::create_dir(folder.join("into")).unwrap();
        },
        &|_, folder| {
            let from = Root::open(&folder.join("from")).unwrap();
            let into = Root::open(&folder.join("into")).unwrap();
            let options = CopyOptions {
                owner: Owner::Fixed(0, 0),
                mode: None,
                mtime: Mtime::FromSource,
                destination: Destination::Directory,
                archives: Archives::Copy,
                ignore: None,
                limits: UnpackLimits::default(),
            };
            let sources = [Source::new("/", None, &[]).unwrap()];
            let cancel = CancellationToken::new();
            copy(
                &from,
                &sources,
                &into,
                Path::new("/app/"),
                &options,
                &cancel,
            )
            .unwrap();
        },
    );
    check("copying", cost, COPYING);
}

/// Look, clear the way, open and make, read to the end, write, owner, mode, attributes, time, and close both.
const COPYING: f64 = 13.0;
