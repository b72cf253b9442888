//! What `--check` and `--call` look at: the Dockerfile and the ignore file of a folder, a repository or an archive.
//!
//! A repository is fetched into a folder that is gone afterwards, without its submodules and without files kept with LFS. Of an
//! archive nothing is unpacked: the files that matter are read as it goes by.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use dockerfile::ignore::{FILE_NAME as IGNORE_FILE, IgnoreFile};
use engine::rootfs::root::Root;
use oci::layer::{self, decompress_any};
use oci::tar::{self, Kind};
use rustix::fs::FileType;
use source::git::{FetchError, FetchErrorKind, FetchOptions, GitDirectory, Lfs, Submodules};
use source::path::RelPath;
use tokio_util::sync::CancellationToken;

use super::answer::Source;
use super::context::{ArchiveInput, Dockerfile, FolderInput, GitInput, Input};
use super::{import, local};
use crate::args::BuildArgs;
use crate::failure::{Exit, Failure, OrExit, Outcome};
use crate::place;

/// What a Dockerfile is called that nobody has named; the second only where there is none of the first.
const DOCKERFILES: [&str; 2] = ["Dockerfile", "dockerfile"];
/// Largest Dockerfile or ignore file that is read.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// What is looked at.
pub(super) struct Looked {
    pub(super) source: Source,
    pub(super) ignore: IgnoreFile,
}

/// Finds what `args` mean.
pub(super) async fn look(args: &BuildArgs, input: Input) -> Outcome<Looked> {
    match input {
        Input::Folder(input) => Ok(Looked {
            source: source(&input)?,
            ignore: import::ignore_file(&input)?,
        }),
        Input::Git(input) => repository(args, &input).await,
        Input::Archive(input) => archive(&input, io::stdin().lock()).or_exit(Exit::Usage),
    }
}

fn source(input: &FolderInput) -> Outcome<Source> {
    let (name, text) = match (&input.dockerfile, &input.path) {
        (Dockerfile::Outside { text, path }, _) => {
            let name = path.as_ref().map(|path| path.display().to_string());
            (name.unwrap_or_else(|| "-".to_owned()), text.clone())
        }
        (Dockerfile::Inside(inside), root) => {
            let path = root.clone().unwrap_or_default().join(inside);
            let failed = |e| anyhow::Error::new(e).context(format!("read {}", path.display()));
            let bytes = fs::read(&path).map_err(failed).or_exit(Exit::Usage)?;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            (inside.display().to_string(), text)
        }
    };
    Ok(Source { name, text })
}

/// A folder that is gone when this is.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Outcome<Self> {
        let id = local::new_id()?;
        let path = std::env::temp_dir().join(format!("kiln-{}", id.as_str()));
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("create {}", path.display()))
            .or_exit(Exit::Machine)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is below the folder for what is temporary.
        let _ = store::remove_tree(&self.0);
    }
}

async fn repository(args: &BuildArgs, input: &GitInput) -> Outcome<Looked> {
    let found = place::find(&args.place)?;
    let mut options = FetchOptions {
        git_directory: GitDirectory::Remove,
        submodules: Submodules::Off,
        lfs: Lfs::Off,
        ..local::fetch_options(&found)
    };
    let limits = &found.config.limits;
    options.limits.size_bytes = options.limits.size_bytes.min(limits.context_bytes);
    options.limits.n_files = options.limits.n_files.min(limits.context_files);
    let scratch = Scratch::new()?;
    let cancel = CancellationToken::new();
    let say = |_: &str| {};
    let fetching = source::git::fetch(&input.source, &scratch.0, &options, &say, &cancel);
    tokio::pin!(fetching);
    let fetched = tokio::select! {
        fetched = &mut fetching => fetched,
        _ = tokio::signal::ctrl_c() => {
            cancel.cancel();
            fetching.await
        }
    };
    fetched.map_err(not_fetched)?;
    let root = Root::open(&scratch.0).or_exit(Exit::Machine)?;
    let names = match &args.file {
        Some(_) => vec![input.dockerfile_path.clone()],
        None => DOCKERFILES
            .map(|name| join(&input.context_path, name))
            .into(),
    };
    let read = |name: &str| -> anyhow::Result<Option<Vec<u8>>> {
        // A link at the end is followed, within the repository.
        let path = root
            .resolve(Path::new(name))
            .with_context(|| format!("find {name}"))?;
        let found = root
            .stat(&path)
            .with_context(|| format!("look at {name}"))?;
        if found.is_none_or(|found| found.kind != FileType::RegularFile) {
            return Ok(None);
        }
        let content = root.read_file(&path, FILE_MAX_BYTES);
        content.map(Some).with_context(|| format!("read {name}"))
    };
    chosen(&names, &input.context_path, read).or_exit(Exit::BuildFailed)
}

fn not_fetched(error: FetchError) -> Failure {
    let exit = match error.kind() {
        FetchErrorKind::Invalid => Exit::Usage,
        FetchErrorKind::NotFound(_) | FetchErrorKind::Limit => Exit::BuildFailed,
        FetchErrorKind::Unauthorized | FetchErrorKind::Unavailable => Exit::Unreachable,
        FetchErrorKind::Cancelled => Exit::Interrupted,
        FetchErrorKind::Git => Exit::Machine,
    };
    Failure::new(exit, error)
}

fn join(folder: &str, name: &str) -> String {
    match folder {
        "" | "." => name.to_owned(),
        folder => format!("{folder}/{name}"),
    }
}

/// Returns the first of `names` that is there, with what is ignored: its own ignore file goes before that of the context.
fn chosen(
    names: &[String],
    context: &str,
    read: impl Fn(&str) -> anyhow::Result<Option<Vec<u8>>>,
) -> anyhow::Result<Looked> {
    for name in names {
        let Some(text) = read(name)? else { continue };
        let ignores = [format!("{name}{IGNORE_FILE}"), join(context, IGNORE_FILE)];
        let mut ignore = IgnoreFile::empty();
        for path in ignores {
            if let Some(text) = read(&path)? {
                ignore = IgnoreFile::parse(&text).with_context(|| format!("read {path}"))?;
                break;
            }
        }
        return Ok(Looked {
            source: Source {
                name: name.clone(),
                text: String::from_utf8_lossy(&text).into_owned(),
            },
            ignore,
        });
    }
    let name = names.first().map_or("", String::as_str);
    anyhow::bail!("there is no Dockerfile at {name:?}")
}

/// Reads the archive that begins with what was read of it and goes on with `rest`.
fn archive(input: &ArchiveInput, rest: impl Read) -> anyhow::Result<Looked> {
    let names: Vec<String> = match &input.dockerfile {
        Some(name) => {
            let path = RelPath::parse(name).with_context(|| format!("find {name:?}"))?;
            vec![path.as_str().to_owned()]
        }
        None => DOCKERFILES.map(str::to_owned).into(),
    };
    let own = names.iter().map(|name| format!("{name}{IGNORE_FILE}"));
    let wanted: Vec<String> = own
        .chain(names.iter().cloned())
        .chain([IGNORE_FILE.to_owned()])
        .collect();
    let unpacked = decompress_any(input.start.as_slice().chain(rest), layer::Limits::default());
    let unpacked = unpacked.context("read standard input")?;
    let mut reader = tar::Reader::new(BufReader::new(unpacked), tar::Limits::default());
    let mut files = BTreeMap::new();
    while let Some(entry) = reader
        .next()
        .context("read the archive on standard input")?
    {
        let path = String::from_utf8_lossy(&entry.path).into_owned();
        let path = RelPath::parse(&path).map(|path| path.as_str().to_owned());
        let Some(path) = path.ok().filter(|path| wanted.contains(path)) else {
            continue;
        };
        anyhow::ensure!(
            entry.kind == Kind::File,
            "{path} is not a plain file in the archive: unpack it, and check the folder"
        );
        anyhow::ensure!(
            entry.size <= FILE_MAX_BYTES,
            "{path} is larger than {FILE_MAX_BYTES} bytes"
        );
        let mut content = Vec::new();
        let read = reader
            .by_ref()
            .take(FILE_MAX_BYTES)
            .read_to_end(&mut content);
        read.with_context(|| format!("read {path}"))?;
        files.insert(path, content);
    }
    chosen(&names, "", |name| Ok(files.get(name).cloned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(entries: &[(&str, &str)]) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let mut tar = std::process::Command::new("tar");
        tar.arg("c").arg("-C").arg(folder.path());
        for (name, text) in entries {
            match text.strip_prefix("-> ") {
                Some(target) => {
                    std::os::unix::fs::symlink(target, folder.path().join(name)).unwrap();
                }
                None => fs::write(folder.path().join(name), text).unwrap(),
            }
            tar.arg(format!("./{name}"));
        }
        tar.output().unwrap().stdout
    }

    fn looked(bytes: &[u8], dockerfile: Option<&str>) -> anyhow::Result<Looked> {
        let (start, rest) = bytes.split_at(bytes.len().min(100));
        let input = ArchiveInput {
            start: start.to_vec(),
            dockerfile: dockerfile.map(str::to_owned),
        };
        archive(&input, rest)
    }

    #[test]
    fn a_dockerfile_and_what_is_ignored_are_found_in_an_archive() {
        let bytes = packed(&[
            ("a", "x"),
            (".dockerignore", "a"),
            ("dockerfile", "FROM lower"),
            ("Dockerfile", "FROM upper"),
            ("other", "FROM other"),
            ("other.dockerignore", "b"),
        ]);
        let found = looked(&bytes, None).unwrap();
        assert_eq!(found.source.text, "FROM upper");
        assert!(found.ignore.matches("a").unwrap() && !found.ignore.matches("b").unwrap());
        let found = looked(&bytes, Some("./other")).unwrap();
        assert_eq!(
            (found.source.name.as_str(), found.source.text.as_str()),
            ("other", "FROM other")
        );
        assert!(found.ignore.matches("b").unwrap() && !found.ignore.matches("a").unwrap());
        let lower = packed(&[("dockerfile", "FROM lower")]);
        assert_eq!(looked(&lower, None).unwrap().source.text, "FROM lower");
    }

    #[test]
    fn archives_without_a_dockerfile_that_can_be_read_are_errors() {
        let large = "x".repeat(usize::try_from(FILE_MAX_BYTES).unwrap() + 1);
        for (entries, name, words) in [
            (vec![("a", "x")], None, "no Dockerfile"),
            (vec![("Dockerfile", "-> a")], None, "not a plain file"),
            (vec![("Dockerfile", "FROM a")], Some("../a"), "find"),
            (vec![("Dockerfile", large.as_str())], None, "larger than"),
        ] {
            let error = looked(&packed(&entries), name).err().unwrap();
            assert!(format!("{error:#}").contains(words), "{error:#}");
        }
        assert!(looked(b"\x1f\x8bbroken", None).is_err());
    }
}
