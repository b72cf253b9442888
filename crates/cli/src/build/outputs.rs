//! What is to become of the image: `-t`, `--push` and `-o` as outputs of the build, and exported files brought to where they belong.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use engine::spec::{BuildOptions, CacheTo, ExportFormat, MediaTypes, Output};
use oci::Reference;

use crate::args::BuildArgs;
use crate::args::cache::CacheToArg;
use crate::args::output::{Dest, ImagePlace, OutputKind, OutputOption};
use crate::failure::{Exit, Failure, OrExit, Outcome};
use crate::tree::{self, Keep, Rules, Special};

/// The outputs of a build.
#[derive(Debug)]
pub(crate) struct Outputs {
    /// For the worker.
    pub(crate) spec: Vec<Output>,
    /// Caches that are written, for the worker.
    pub(crate) caches: Vec<CacheTo>,
    /// What is left to do once it is done.
    exports: Vec<Export>,
}

#[derive(Debug)]
struct Export {
    name: String,
    format: ExportFormat,
    dest: Dest,
}

/// Decides what becomes of the image. What outputs say about layers is written into `options`.
pub(crate) fn decide(args: &BuildArgs, options: &mut BuildOptions) -> Outcome<Outputs> {
    let mut outputs = Outputs {
        spec: Vec::new(),
        caches: Vec::new(),
        exports: Vec::new(),
    };
    for cache in &args.earlier.cache_to {
        outputs.cache(cache)?;
    }
    layers(&args.outputs, options)?;
    let tags: Vec<Reference> = args.tags.iter().map(tagged).collect::<Outcome<_>>()?;
    let mut is_published = false;
    for output in &args.outputs {
        match &output.kind {
            OutputKind::Image { names, place } => {
                is_published = true;
                let names = names.iter().map(tagged).collect::<Outcome<Vec<_>>>()?;
                let names = if names.is_empty() { &tags } else { &names };
                outputs.publish(
                    names,
                    if args.push {
                        ImagePlace::Registry
                    } else {
                        *place
                    },
                )?;
            }
            OutputKind::File { format, dest } => outputs.export(*format, dest, &tags),
        }
    }
    // Without `-o` the names alone say what is wanted; with it, only `--push` adds to it.
    if !is_published && (args.push || (args.outputs.is_empty() && !tags.is_empty())) {
        let place = if args.push {
            ImagePlace::Registry
        } else {
            ImagePlace::Store
        };
        outputs.publish(&tags, place)?;
    }
    let stdouts = outputs.exports.iter().filter(|e| e.dest == Dest::Stdout);
    if stdouts.count() > 1 {
        let text = "only one output can go to standard output";
        return Err(Failure::text(Exit::Usage, text));
    }
    Ok(outputs)
}

/// Gives a name without a tag the one that is meant.
fn tagged(name: &Reference) -> Outcome<Reference> {
    if name.digest().is_some() {
        let text = format!("the image name {name} has a digest: that is for the build to find out");
        return Err(Failure::text(Exit::Usage, text));
    }
    name.with_tag(name.tag_or_latest()).or_exit(Exit::Usage)
}

fn layers(outputs: &[OutputOption], options: &mut BuildOptions) -> Outcome {
    let mut compressions: Vec<_> = outputs.iter().filter_map(|o| o.compression).collect();
    let mut media_types: Vec<_> = outputs.iter().filter_map(|o| o.media_types).collect();
    compressions.dedup();
    media_types.dedup();
    if compressions.len() > 1 || media_types.len() > 1 {
        let text = "outputs with different compression or media types need builds of their own";
        return Err(Failure::text(Exit::Usage, text));
    }
    options.compression = compressions.pop().unwrap_or(options.compression);
    options.media_types = media_types.pop().unwrap_or(options.media_types);
    if options.media_types == MediaTypes::Docker && !options.annotations.is_empty() {
        let text = "--annotation needs OCI media types: docker's manifests have no place for it";
        return Err(Failure::text(Exit::Usage, text));
    }
    Ok(())
}

impl Outputs {
    fn publish(&mut self, names: &[Reference], place: ImagePlace) -> Outcome {
        if names.is_empty() {
            let text = "an image that is pushed or kept needs a name";
            return Err(Failure::text(Exit::Usage, text).hint("name it with -t NAME"));
        }
        for reference in names {
            let reference = reference.clone();
            self.spec.push(match place {
                ImagePlace::Registry => Output::Publish { reference },
                ImagePlace::Store => Output::Keep { reference },
            });
        }
        Ok(())
    }

    fn export(&mut self, format: ExportFormat, dest: &Dest, tags: &[Reference]) {
        let name = format!("export-{}", self.exports.len());
        self.spec.push(Output::Export {
            format,
            name: name.clone(),
            references: tags.to_vec(),
        });
        let dest = dest.clone();
        self.exports.push(Export { name, format, dest });
    }

    fn cache(&mut self, cache: &CacheToArg) -> Outcome {
        self.caches.push(match cache {
            CacheToArg::Registry(reference, steps, on_error) => CacheTo::Registry {
                reference: tagged(reference)?,
                steps: *steps,
                on_error: *on_error,
            },
            CacheToArg::Inline => CacheTo::Inline,
            CacheToArg::Folder(path, steps) => {
                let name = format!("cache-{}", self.exports.len());
                self.exports.push(Export {
                    name: name.clone(),
                    format: ExportFormat::Local,
                    dest: Dest::Path(path.clone()),
                });
                let steps = *steps;
                CacheTo::Folder { name, steps }
            }
        });
        Ok(())
    }

    /// Returns the first name that the image is given.
    pub(crate) fn first_name(&self) -> Option<String> {
        self.spec.iter().find_map(|output| match output {
            Output::Publish { reference } | Output::Keep { reference } => {
                Some(reference.to_string())
            }
            Output::Export { references, .. } => references.first().map(ToString::to_string),
            Output::Subassembly { .. } => None,
        })
    }

    /// Returns what a server exports: which output of the request it is, in which form, and where to. Caches come after everything else.
    pub(crate) fn exports(&self) -> impl Iterator<Item = (u32, ExportFormat, &Dest)> {
        let files = self.spec.iter().map(|output| match output {
            Output::Export { name, .. } => Some(name),
            Output::Publish { .. } | Output::Keep { .. } | Output::Subassembly { .. } => None,
        });
        let caches = self.caches.iter().filter_map(|cache| match cache {
            CacheTo::Folder { name, .. } | CacheTo::Archive { name, .. } => Some(Some(name)),
            CacheTo::Registry { .. } | CacheTo::Inline => None,
        });
        (0..).zip(files.chain(caches)).filter_map(|(index, name)| {
            let name = name?;
            let export = self.exports.iter().find(|export| export.name == *name)?;
            Some((index, export.format, &export.dest))
        })
    }

    /// Brings exported files from the build's output folder to where they belong.
    pub(crate) fn deliver(&self, folder: &Path) -> Outcome {
        for export in &self.exports {
            let from = folder.join(&export.name);
            match (&export.dest, export.format) {
                (Dest::Stdout, _) => to_stdout(&from),
                (Dest::Path(dest), ExportFormat::Local) => to_folder(&from, dest),
                (Dest::Path(dest), _) => to_file(&from, dest),
            }
            .or_exit(Exit::Machine)?;
        }
        Ok(())
    }
}

fn to_stdout(from: &Path) -> anyhow::Result<()> {
    let mut file = File::open(from).with_context(|| format!("open {}", from.display()))?;
    let mut stdout = io::stdout().lock();
    io::copy(&mut file, &mut stdout)
        .and_then(|_| stdout.flush())
        .context("write to standard output")
}

fn to_folder(from: &Path, dest: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dest).with_context(|| format!("create {}", dest.display()))?;
    let rules = Rules {
        keep: &|_, _| Keep::Yes,
        owner: None,
        special: Special::LeaveOut,
        files_max: u64::MAX,
        bytes_max: u64::MAX,
    };
    tree::copy(from, dest, &rules)
        .with_context(|| format!("write the root filesystem to {}", dest.display()))?;
    Ok(())
}

fn to_file(from: &Path, dest: &Path) -> anyhow::Result<()> {
    write_file(dest, |file| {
        let mut source = File::open(from)?;
        io::copy(&mut source, file).map(drop)
    })
}

/// Writes a file so that it is whole or not there: beside it first, then in its place. A device or pipe is written to as it is.
pub(crate) fn write_file(
    dest: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> anyhow::Result<()> {
    let failed = || format!("write {}", dest.display());
    let is_special = fs::metadata(dest).is_ok_and(|found| {
        let kind = found.file_type();
        kind.is_fifo() || kind.is_char_device() || kind.is_socket() || kind.is_block_device()
    });
    if is_special {
        let mut file = OpenOptions::new()
            .write(true)
            .open(dest)
            .with_context(failed)?;
        return write(&mut file).with_context(failed);
    }
    let beside = beside(dest);
    let mut file = File::create(&beside).with_context(failed)?;
    let written = write(&mut file).and_then(|()| fs::rename(&beside, dest));
    if written.is_err() {
        // The error that matters is the first one.
        let _ = fs::remove_file(&beside);
    }
    written.with_context(failed)
}

fn beside(dest: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(dest.file_name().unwrap_or_default());
    name.push(format!(".kiln-{}", std::process::id()));
    dest.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use engine::spec::Compression;

    use super::*;
    use crate::args::{Cli, Command};

    fn decided(line: &[&str]) -> Outcome<(Vec<Output>, BuildOptions)> {
        let line = ["kiln", "build", "."].iter().chain(line);
        let Command::Build(args) = Cli::try_parse_from(line).unwrap().command else {
            panic!("not a build");
        };
        let mut options = BuildOptions::default();
        let outputs = decide(&args, &mut options)?;
        Ok((outputs.spec, options))
    }

    fn keep(name: &str) -> Output {
        let reference = name.parse().unwrap();
        Output::Keep { reference }
    }

    fn publish(name: &str) -> Output {
        let reference = name.parse().unwrap();
        Output::Publish { reference }
    }

    #[test]
    fn names_alone_keep_the_image_and_push_pushes_it() {
        let spec = |line: &[&str]| decided(line).unwrap().0;
        assert_eq!(spec(&["-t", "app"]), [keep("app:latest")]);
        assert_eq!(
            spec(&["-t", "app", "-t", "a.b/c:1", "--push"]),
            [publish("app:latest"), publish("a.b/c:1")]
        );
        assert_eq!(
            spec(&["-t", "app", "-o", "type=image,push=true"]),
            [publish("app:latest")]
        );
        assert_eq!(spec(&["-o", "type=image,name=x:2"]), [keep("x:2")]);
        assert_eq!(spec(&[]), []);
    }

    #[test]
    fn an_export_carries_the_names_and_keeps_nothing_else() {
        let (spec, options) =
            decided(&["-t", "app", "-o", "type=oci,dest=x,compression=zstd"]).unwrap();
        assert_eq!(
            spec,
            [Output::Export {
                format: ExportFormat::Oci,
                name: "export-0".to_owned(),
                references: vec!["app:latest".parse().unwrap()],
            }]
        );
        assert_eq!(options.compression, Compression::Zstd);
    }

    #[test]
    fn contradictions_are_usage_errors() {
        let digest = format!("app@sha256:{}", "a".repeat(64));
        for line in [
            &["--push"][..],
            &["-o", "type=image"],
            &["-t", &digest],
            &["-o", "-", "-o", "type=oci,dest=-"],
            &[
                "-o",
                "type=oci,dest=a,compression=zstd",
                "-o",
                "type=oci,dest=b,compression=gzip",
            ],
        ] {
            assert_eq!(decided(line).unwrap_err().exit(), Exit::Usage, "{line:?}");
        }
    }

    #[test]
    fn a_file_is_whole_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let dest = folder.path().join("out");
        write_file(&dest, |file| file.write_all(b"one")).unwrap();
        let failed = write_file(&dest, |file| {
            file.write_all(b"tw")?;
            Err(io::Error::other("no more"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&dest).unwrap(), b"one");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        write_file(Path::new("/dev/null"), |file| file.write_all(b"x")).unwrap();
    }
}
