//! Whether what a server has written beside the builds is as it has to be: requests, what is known of names, wishes for subassemblies.
//!
//! A part of `kiln fsck`. It runs beside a server, and looks only at what nobody has touched for a while; unless it is to repair, it changes
//! nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use engine::id::BuildId;
use store::check::{Checking, Problem, Remedy, Report, Severity};

use crate::builds::provenance;
use crate::subassembly::wishes;

/// What changed a shorter time ago may still be on its way.
const SETTLED_AFTER: Duration = Duration::from_secs(120);

/// Looks through `server/` of a state directory, and adds what is found to `report`.
///
/// # Errors
/// When it cannot be looked through.
pub fn run(state: &Path, how: Checking, report: &mut Report) -> io::Result<()> {
    let server = state.join("server");
    let builds = state.join("builds");
    for path in settled(&server.join("requests"))? {
        let id = path.file_name().and_then(|name| name.to_str());
        let id = id.and_then(|name| name.parse::<BuildId>().ok());
        if !id.is_some_and(|id| builds.join(id.as_str()).is_dir()) {
            let text = "the request of a build that is not there any more";
            leftover(report, how, &path, text);
        }
    }
    for path in settled(&server.join("names"))? {
        match whole(&path, provenance::problem)? {
            Found::Right => {}
            Found::Unfinished => leftover(report, how, &path, "was never finished"),
            Found::Wrong(problem) => {
                let text = format!("what is known of a name cannot be used: {problem}");
                let problem = Problem::new(Severity::Damaged, subject(&path), text);
                let advice = "builds that publish under that name fail until it is forgotten; the next one then wants force_rebuild";
                let remedy = Remedy::forgetting("removes it", || fs::remove_file(&path));
                report.add(how.repair, problem.advice(advice), Some(remedy));
            }
        }
    }
    for path in settled(&server.join("subassemblies"))? {
        match whole(&path, wishes::problem)? {
            Found::Right => {}
            Found::Unfinished => leftover(report, how, &path, "was never finished"),
            Found::Wrong(problem) => {
                let text = format!(
                    "somebody has asked for a subassembly, and for which is lost: {problem}"
                );
                let problem = Problem::new(Severity::Damaged, subject(&path), text);
                let remedy = Remedy::of("removes it", || fs::remove_file(&path));
                let advice = "whoever wants it asks again";
                report.add(how.repair, problem.advice(advice), Some(remedy));
            }
        }
    }
    Ok(())
}

enum Found {
    Right,
    Unfinished,
    Wrong(String),
}

/// Looks at a file that is to end with `.json`, unless it was never finished.
fn whole(path: &Path, look: fn(&Path) -> io::Result<Option<String>>) -> io::Result<Found> {
    if path.extension().is_none_or(|extension| extension != "json") {
        return Ok(Found::Unfinished);
    }
    match look(path) {
        Ok(None) => Ok(Found::Right),
        Ok(Some(problem)) => Ok(Found::Wrong(problem)),
        // Gone meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Right),
        Err(error) => Err(error),
    }
}

fn leftover(report: &mut Report, how: Checking, path: &Path, text: &str) {
    let problem = Problem::new(Severity::Leftover, subject(path), text.to_owned());
    let remedy = Remedy::of("removes it", || fs::remove_file(path));
    report.add(how.repair, problem.advice(""), Some(remedy));
}

fn subject(path: &Path) -> String {
    let mut parts: Vec<_> = path
        .components()
        .rev()
        .take(3)
        .map(|part| part.as_os_str().to_string_lossy().into_owned())
        .collect();
    parts.reverse();
    parts.join("/")
}

/// Returns the files in a folder that nobody has touched for a while, in order; none when it is not there.
fn settled(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let modified = fs::symlink_metadata(&path).and_then(|found| found.modified());
        if modified.is_ok_and(|at| at + SETTLED_AFTER < SystemTime::now()) {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use oci::Digest;
    use store::check::{Depth, Repair};

    use super::*;
    use crate::builds::provenance::Provenance;

    fn findings(state: &Path, repair: Repair) -> Vec<(Severity, String, bool)> {
        let mut report = Report::default();
        let depth = Depth::Bytes;
        run(state, Checking { depth, repair }, &mut report).unwrap();
        let told = report.findings.into_iter().map(|finding| {
            let is_repaired = finding.outcome == store::check::Outcome::Repaired;
            (finding.severity, finding.subject, is_repaired)
        });
        told.collect()
    }

    #[test]
    fn what_a_server_has_left_or_cannot_read_is_told_and_put_right() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(findings(state.path(), Repair::Nothing), []);
        let server = state.path().join("server");
        let [kept, gone] = [1, 2].map(|n| BuildId::from_random([n; 16]));
        fs::create_dir_all(state.path().join("builds").join(kept.as_str())).unwrap();
        for folder in ["requests", "subassemblies"] {
            fs::create_dir_all(server.join(folder)).unwrap();
        }
        let names = Provenance::open(&server.join("names")).unwrap();
        names
            .made("registry/a:1", "identity", &Digest::sha256(b"x"))
            .unwrap();
        let known = fs::read_dir(server.join("names")).unwrap().next().unwrap();
        let known = fs::read(known.unwrap().path()).unwrap();
        let other = format!("names/{}.json", "0".repeat(64));
        for (name, text) in [
            (format!("requests/{}", kept.as_str()), &b"request"[..]),
            (format!("requests/{}", gone.as_str()), b"request"),
            (format!("requests/{}.draft", kept.as_str()), b"reque"),
            ("names/broken.json".to_owned(), b"{"),
            (other.clone(), &known),
            ("names/half.draft".to_owned(), b"{"),
            ("subassemblies/broken.json".to_owned(), b"{}"),
        ] {
            fs::write(server.join(name), text).unwrap();
        }
        // Just made: on its way, as far as anybody knows.
        assert_eq!(findings(state.path(), Repair::AndForget), []);
        let then = SystemTime::now() - Duration::from_secs(600);
        for folder in ["requests", "names", "subassemblies"] {
            for entry in fs::read_dir(server.join(folder)).unwrap() {
                let file = fs::File::open(entry.unwrap().path()).unwrap();
                file.set_modified(then).unwrap();
            }
        }
        let (left, damaged) = (Severity::Leftover, Severity::Damaged);
        let expected = |forgets: bool, repairs: bool| {
            let mut rows = vec![
                (
                    left,
                    format!("server/requests/{}.draft", kept.as_str()),
                    repairs,
                ),
                (left, format!("server/requests/{}", gone.as_str()), repairs),
                (damaged, format!("server/{other}"), forgets),
                (damaged, "server/names/broken.json".to_owned(), forgets),
                (left, "server/names/half.draft".to_owned(), repairs),
                (
                    damaged,
                    "server/subassemblies/broken.json".to_owned(),
                    repairs,
                ),
            ];
            rows.sort_by(|a, b| a.1.cmp(&b.1));
            rows
        };
        let sorted = |repair| {
            let mut rows = findings(state.path(), repair);
            rows.sort_by(|a, b| a.1.cmp(&b.1));
            rows
        };
        assert_eq!(sorted(Repair::Nothing), expected(false, false));
        assert_eq!(sorted(Repair::AndForget), expected(true, true));
        assert_eq!(findings(state.path(), Repair::Nothing), []);
        assert!(
            names
                .made("registry/a:1", "identity", &Digest::sha256(b"y"))
                .is_ok()
        );
    }
}
