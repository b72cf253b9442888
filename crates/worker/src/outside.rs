//! What a build has outside of its folder: its cgroups.
//!
//! They are noted in `cgroups/<id>` of the state directory before they are made, and the note goes after them: whoever is killed in between,
//! starter or worker or both, leaves a note by which the next one finds them ([`sweep`]). A note is locked as long as the starter lives,
//! for between the making of cgroups and the first step of a worker nothing else tells that somebody needs them.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::sandbox::CgroupParent;
use rustix::fs::FlockOperation;

use crate::folder;

/// How often, and after which pauses, cgroups of a dead worker are tried to be removed.
const TRIES_MAX: u32 = 40;
const PAUSE: Duration = Duration::from_millis(50);
/// What a note is called until it is whole and locked, which it is at once unless its maker is killed.
const UNFINISHED: &str = "new";
const UNFINISHED_FOR: Duration = Duration::from_secs(3600);

/// A note that was made by this process; its lock goes with it.
#[derive(Debug)]
pub(crate) struct Note {
    _locked: File,
}

/// Returns where the cgroups of the build in `build` are noted.
fn path_of(build: &Path) -> Option<PathBuf> {
    let state = build.parent()?.parent()?;
    Some(state.join(folder::CGROUPS).join(build.file_name()?))
}

/// Notes what will be made for the build in `build`.
pub(crate) fn note(build: &Path, cgroups: &CgroupParent) -> io::Result<Note> {
    let path = path_of(build).ok_or(io::ErrorKind::InvalidInput)?;
    if let Some(notes) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(notes)?;
    }
    let unfinished = path.with_extension(UNFINISHED);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    file.write_all(&serde_json::to_vec(cgroups)?)?;
    fs::rename(&unfinished, &path)?;
    Ok(Note { _locked: file })
}

/// Returns the cgroups that are noted for the build in `build`.
pub(crate) fn noted(build: &Path) -> Option<CgroupParent> {
    let text = fs::read(path_of(build)?).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Removes what the build in `build` has outside of it; waits a moment for processes that were killed to be gone.
pub(crate) fn remove(build: &Path) {
    for _ in 0..TRIES_MAX {
        if try_remove(build) {
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Removes what can be removed by now; tells whether nothing is left.
pub(crate) fn try_remove(build: &Path) -> bool {
    let Some(path) = path_of(build) else {
        return true;
    };
    let is_gone = noted(build).is_none_or(|cgroups| cgroups.remove());
    if is_gone {
        // One that cannot be removed is looked at again, and nothing else.
        let _no_harm = fs::remove_file(path);
    }
    is_gone
}

/// Removes what builds of dead starters and dead workers left outside of their folders; never waits. Returns of how many builds something
/// is there still, because somebody lives who needs it or processes are still ending.
pub fn sweep(state: &Path) -> usize {
    let Ok(notes) = fs::read_dir(state.join(folder::CGROUPS)) else {
        return 0;
    };
    notes
        .flatten()
        .filter(|note| !is_swept(state, &note.path()))
        .count()
}

fn is_swept(state: &Path, note: &Path) -> bool {
    if note.extension().is_some_and(|end| end == UNFINISHED) {
        // Nothing was made yet. Its lock is not looked at, for that would be in the way of its maker.
        let changed_at = fs::metadata(note).and_then(|found| found.modified());
        if changed_at.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > UNFINISHED_FOR)) {
            let _no_harm = fs::remove_file(note);
        }
        return true;
    }
    let Some(name) = note.file_name() else {
        return true;
    };
    let build = state.join(folder::BUILDS).join(name);
    let is_dead = || !build.exists() || folder::try_lock(&build).is_ok_and(|held| held.is_some());
    is_free(note) && is_dead() && try_remove(&build)
}

/// Tells whether nobody holds the lock of a note.
fn is_free(note: &Path) -> bool {
    let Ok(file) = File::open(note) else {
        // Gone meanwhile.
        return false;
    };
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A state directory with one build whose cgroups are folders somewhere.
    struct Scene {
        dir: tempfile::TempDir,
        build: PathBuf,
        cgroups: CgroupParent,
    }

    impl Scene {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let build = dir.path().join("builds/b");
            fs::create_dir_all(&build).unwrap();
            fs::write(build.join(folder::LOCK), "").unwrap();
            let own = dir.path().join("cgroup/kiln-b");
            let text = format!(
                r#"{{"version":"One","hierarchies":[{{"directory":{own:?},"controllers":["pids"]}}]}}"#
            );
            let cgroups = serde_json::from_str(&text).unwrap();
            Self {
                dir,
                build,
                cgroups,
            }
        }

        fn make_cgroups(&self) {
            fs::create_dir_all(self.dir.path().join("cgroup/kiln-b/step-1")).unwrap();
        }

        fn sweep(&self) -> (usize, bool) {
            let n_left = sweep(self.dir.path());
            (n_left, self.dir.path().join("cgroup/kiln-b").exists())
        }
    }

    #[test]
    fn what_a_killed_starter_left_is_removed_with_its_note() {
        let scene = Scene::new();
        drop(note(&scene.build, &scene.cgroups).unwrap());
        scene.make_cgroups();
        assert_eq!(scene.sweep(), (0, false));
        let notes = fs::read_dir(scene.dir.path().join(folder::CGROUPS)).unwrap();
        assert_eq!(notes.count(), 0);
    }

    #[test]
    fn a_note_that_is_being_made_is_not_swept_away() {
        let scene = Scene::new();
        let is_done = std::sync::atomic::AtomicBool::new(false);
        let order = std::sync::atomic::Ordering::Relaxed;
        std::thread::scope(|threads| {
            threads.spawn(|| {
                while !is_done.load(order) {
                    sweep(scene.dir.path());
                }
            });
            for n in 0..500 {
                let build = scene.build.with_file_name(format!("b{n}"));
                let made = note(&build, &scene.cgroups);
                is_done.store(made.is_err(), order);
                let _noted = made.unwrap();
                assert!(noted(&build).is_some(), "{n}");
            }
            is_done.store(true, order);
        });
    }

    #[test]
    fn what_a_killed_starter_only_noted_is_forgotten() {
        let scene = Scene::new();
        drop(note(&scene.build, &scene.cgroups).unwrap());
        assert_eq!(scene.sweep(), (0, false));
    }

    #[test]
    fn nothing_is_taken_from_a_starter_or_a_worker_that_lives() {
        let scene = Scene::new();
        let noted = note(&scene.build, &scene.cgroups).unwrap();
        scene.make_cgroups();
        assert_eq!(scene.sweep(), (1, true), "the starter lives");
        drop(noted);
        let held = folder::try_lock(&scene.build).unwrap().unwrap();
        assert_eq!(scene.sweep(), (1, true), "the worker lives");
        drop(held);
        assert_eq!(scene.sweep(), (0, false));
    }

    #[test]
    fn what_belongs_to_a_build_that_is_forgotten_is_removed_too() {
        let scene = Scene::new();
        drop(note(&scene.build, &scene.cgroups).unwrap());
        scene.make_cgroups();
        fs::remove_dir_all(&scene.build).unwrap();
        assert_eq!(scene.sweep(), (0, false));
    }

    #[test]
    fn a_cgroup_that_is_in_use_is_noted_until_it_is_gone() {
        let scene = Scene::new();
        drop(note(&scene.build, &scene.cgroups).unwrap());
        scene.make_cgroups();
        // Like one with processes in it, a folder with a file cannot be removed.
        let busy = scene.dir.path().join("cgroup/kiln-b/busy");
        fs::write(&busy, "").unwrap();
        assert_eq!(scene.sweep(), (1, true));
        fs::remove_file(&busy).unwrap();
        assert_eq!(scene.sweep(), (0, false));
    }
}
