//! COPY and ADD.

use super::origin::{Origin, origin};
use super::remote::{self, Kind};
use super::stage::{Stage, shown};
use super::types::{
    Checksum, ChecksumAlgorithm, CopyFrom, CopyOp, CopySource, GitFolder, InlineFile, Link, Op,
    PathSource, RemoteFile, Unpack,
};
use super::user;
use crate::ast::{Flag, Instruction, Transfer, Word};
use crate::chmod::Chmod;
use crate::diagnostic::{Diagnostic, Span};
use crate::expand::{Lexer, Quotes};
use crate::ignore::IgnoreFile;
use crate::{glob, path};

impl Stage<'_> {
    /// Plans a COPY or ADD.
    pub(super) fn copy(
        &mut self,
        instruction: &Instruction,
        transfer: &Transfer,
    ) -> Result<(), Diagnostic> {
        let keyword = instruction.body.keyword();
        let from = self.copy_from(instruction)?;
        let chown = self.flag_value(instruction, "chown")?;
        let chmod = self.flag_value(instruction, "chmod")?;
        let mut created_by = keyword.to_owned();
        if is_on(instruction, "parents") {
            created_by.push_str(" --parents");
        }
        for (name, value) in [("chown", &chown), ("chmod", &chmod)] {
            if let Some((value, _)) = value {
                created_by.extend([" --", name, "=", value.as_str()]);
            }
        }
        let sources = self.sources(instruction, transfer, &mut created_by)?;
        let inline = self.inline_files(instruction, &mut created_by)?;
        let destination = self.expand(&transfer.destination)?.text;
        created_by.extend([" ", destination.as_str(), " # buildkit"]);
        let is_directory = is_directory(&destination);
        if !is_directory && sources.len() + inline.len() > 1 {
            let message = "several sources, but the destination does not end with a slash";
            let warning = Diagnostic::warning(transfer.destination.span, message).with_hint(
                "unless it is a directory already, the last source overwrites the others",
            );
            self.warnings.push(warning);
        }
        // With a mode, BuildKit copies as if there were no --link. Layers that were made so far, and destinations behind links
        // (/bin of most images is one), depend on it.
        let link = if is_on(instruction, "link") && chmod.is_none() {
            Link::Yes
        } else {
            Link::No
        };
        let op = CopyOp {
            from,
            sources,
            inline,
            exclude: excluded(instruction)?,
            destination: path::join(self.directory(), &destination),
            destination_is_directory: is_directory,
            chown: chown
                .map(|(value, flag)| checked_owner(&value, flag))
                .transpose()?,
            chmod: chmod
                .map(|(value, flag)| parse_mode(&value, flag))
                .transpose()?,
            unpack: unpacked(instruction),
            link,
        };
        self.add_plan_bytes(created_by.len());
        self.add_step(
            instruction,
            Op::Copy(Box::new(op)),
            shown(instruction),
            created_by,
        );
        Ok(())
    }

    /// Returns what is copied but for heredocs.
    fn sources(
        &self,
        instruction: &Instruction,
        transfer: &Transfer,
        created_by: &mut String,
    ) -> Result<Vec<CopySource>, Diagnostic> {
        let keyword = instruction.body.keyword();
        let mut sources = Vec::new();
        for word in &transfer.sources {
            let source = self.expand(word)?.text;
            created_by.push(' ');
            created_by.push_str(&source);
            let error = |message: String| Diagnostic::error(word.span, message);
            let kind = remote::classify(&source)
                .map_err(|reason| error(format!("{keyword} cannot take {source:?}: {reason}")))?;
            let what = match (keyword, &kind) {
                ("ADD", _) | (_, Kind::Path) => None,
                (_, Kind::File(_)) => Some("a URL"),
                (_, Kind::Git(_)) => Some("a git repository"),
            };
            if let Some(what) = what {
                let message = format!("{keyword} cannot take {what}");
                return Err(error(message).with_hint("ADD can"));
            }
            sources.push(match kind {
                Kind::Path if is_on(instruction, "parents") => {
                    CopySource::Path(with_parents(word.span, &source)?)
                }
                Kind::Path => CopySource::Path(PathSource {
                    path: clean_source(word.span, &source)?,
                    below: None,
                }),
                Kind::File(file) => CopySource::File(file),
                Kind::Git(git) => CopySource::Git(git),
            });
        }
        self.checksum(instruction, &mut sources)?;
        keep_git_directory(instruction, &mut sources)?;
        Ok(sources)
    }

    /// Puts `--checksum` where it belongs.
    fn checksum(
        &self,
        instruction: &Instruction,
        sources: &mut [CopySource],
    ) -> Result<(), Diagnostic> {
        let Some((value, flag)) = self.flag_value(instruction, "checksum")? else {
            return Ok(());
        };
        let error = |message: &str| Diagnostic::error(flag.span, message);
        match sources {
            [CopySource::File(RemoteFile { checksum, .. })] => {
                let parsed = parse_checksum(&value).ok_or_else(|| {
                    error(&format!("{value:?} is not a checksum")).with_hint(
                        "--checksum=sha256:… with 64 hexadecimal digits, or sha384, sha512",
                    )
                })?;
                *checksum = Some(parsed);
            }
            [CopySource::Git(GitFolder { commit, .. })] => {
                if commit.as_ref().is_some_and(|commit| *commit != value) {
                    return Err(error("the address names another commit"));
                }
                if !remote::is_commit(&value) {
                    let message = format!("{value:?} is not (the beginning of) a commit");
                    return Err(error(&message));
                }
                *commit = Some(value);
            }
            [CopySource::Path(_)] => {
                return Err(error("--checksum is for URLs and git repositories"));
            }
            _ => return Err(error("--checksum needs exactly one source")),
        }
        Ok(())
    }

    fn copy_from(&self, instruction: &Instruction) -> Result<CopyFrom, Diagnostic> {
        Ok(match origin(instruction, &self.known())? {
            None | Some(Origin::Context) => CopyFrom::Context,
            Some(Origin::Nothing) => {
                let message = "there is nothing to copy from";
                return Err(Diagnostic::error(instruction.keyword, message));
            }
            Some(Origin::Stage(index)) => {
                let planned = self.indices.get(&index).copied();
                CopyFrom::Stage(planned.ok_or_else(|| {
                    let message = "this stage is not part of the plan";
                    Diagnostic::error(instruction.keyword, message)
                })?)
            }
            Some(Origin::Image(key)) => CopyFrom::Image(key),
            Some(Origin::Named(name)) => CopyFrom::Named(name),
        })
    }

    /// Returns the expanded value of a flag, unless that is empty.
    fn flag_value<'i>(
        &self,
        instruction: &'i Instruction,
        name: &str,
    ) -> Result<Option<(String, &'i Flag)>, Diagnostic> {
        let Some(flag) = instruction.flag(name) else {
            return Ok(None);
        };
        let word = Word {
            text: flag.value.clone().unwrap_or_default(),
            span: flag.span,
        };
        let value = self.expand(&word)?.text;
        Ok(Some((value, flag)).filter(|(value, _)| !value.is_empty()))
    }

    fn inline_files(
        &self,
        instruction: &Instruction,
        created_by: &mut String,
    ) -> Result<Vec<InlineFile>, Diagnostic> {
        let mut files = Vec::new();
        for heredoc in &instruction.heredocs {
            if matches!(heredoc.name.as_str(), "" | "." | "..") || heredoc.name.contains('/') {
                let message = format!("{:?} cannot be a file name", heredoc.name);
                return Err(Diagnostic::error(instruction.keyword, message));
            }
            let mut content = heredoc.text();
            if heredoc.expand {
                let lexer = Lexer {
                    quotes: Quotes::Ordinary,
                    ..Lexer::new('\\')
                };
                let expanded = lexer.expand(&content, &self.scope, &self.shared.budget);
                let expanded =
                    expanded.map_err(|error| Diagnostic::error(heredoc.span, error.to_string()))?;
                self.note_unset(&expanded, heredoc.span);
                content = expanded.text;
            }
            created_by.push_str(" <<");
            created_by.push_str(&heredoc.name);
            self.add_plan_bytes(content.len());
            files.push(InlineFile {
                name: heredoc.name.clone(),
                content,
            });
        }
        Ok(files)
    }
}

fn is_on(instruction: &Instruction, switch: &str) -> bool {
    let flag = instruction.flag(switch);
    flag.is_some_and(|flag| flag.value.as_deref() != Some("false"))
}

fn unpacked(instruction: &Instruction) -> Unpack {
    match instruction.body.keyword() {
        "ADD" if instruction.flag("unpack").is_none() => Unpack::Local,
        "ADD" if is_on(instruction, "unpack") => Unpack::All,
        _ => Unpack::None,
    }
}

/// Returns what `--exclude` says, checked. Variables are not expanded in it, as in `BuildKit`.
fn excluded(instruction: &Instruction) -> Result<Vec<String>, Diagnostic> {
    let flags = instruction.flags.iter();
    let flags = flags.filter(|flag| flag.name == "exclude");
    let mut patterns = Vec::new();
    for flag in flags {
        let pattern = flag.value.clone().unwrap_or_default();
        if let Err(reason) = IgnoreFile::of_patterns(std::slice::from_ref(&pattern)) {
            let reason = std::error::Error::source(&reason)
                .map_or_else(|| reason.to_string(), ToString::to_string);
            let message = format!("invalid pattern {pattern:?}: {reason}");
            return Err(Diagnostic::error(flag.span, message));
        }
        patterns.push(pattern);
    }
    Ok(patterns)
}

/// Says of every repository whether `.git` is copied.
fn keep_git_directory(
    instruction: &Instruction,
    sources: &mut [CopySource],
) -> Result<(), Diagnostic> {
    let Some(flag) = instruction.flag("keep-git-dir") else {
        return Ok(());
    };
    let keeps = flag.value.as_deref() != Some("false");
    let mut n_repositories = 0;
    for source in sources {
        if let CopySource::Git(git) = source {
            if git.git_directory.is_some_and(|said| said != keeps) {
                let message = "the address says otherwise about the git directory";
                return Err(Diagnostic::error(flag.span, message));
            }
            git.git_directory = Some(keeps);
            n_repositories += 1;
        }
    }
    if n_repositories == 0 && keeps {
        let message = "--keep-git-dir is for git repositories";
        return Err(Diagnostic::error(flag.span, message));
    }
    Ok(())
}

/// Returns a source as a path from the root of where it is.
fn clean_source(span: Span, source: &str) -> Result<String, Diagnostic> {
    if source.contains('\0') {
        return Err(Diagnostic::error(span, "a path cannot hold NUL"));
    }
    let cleaned = path::clean(&format!("/{source}"));
    let cleaned = cleaned.trim_start_matches('/');
    if let Err(reason) = glob::Pattern::parse(cleaned) {
        let message = format!("invalid pattern {source:?}: {reason}");
        return Err(Diagnostic::error(span, message));
    }
    Ok(if cleaned.is_empty() { "." } else { cleaned }.to_owned())
}

/// Cuts a source of `--parents` at its first `/./`: what is before is looked for, what is behind is copied with its directories.
fn with_parents(span: Span, source: &str) -> Result<PathSource, Diagnostic> {
    let (path, below) = source.split_once("/./").unwrap_or(("", source));
    let below = clean_source(span, below)?;
    if below == "." {
        let message = "--parents needs something below the root of what is copied from";
        return Err(Diagnostic::error(span, message));
    }
    if let Err(reason) = IgnoreFile::only(&below) {
        let message = format!("invalid pattern {source:?}: {reason}");
        return Err(Diagnostic::error(span, message));
    }
    Ok(PathSource {
        path: clean_source(span, path)?,
        below: Some(below),
    })
}

fn parse_checksum(text: &str) -> Option<Checksum> {
    let (algorithm, hex) = text.split_once(':')?;
    let (algorithm, n_digits) = match algorithm {
        "sha256" => (ChecksumAlgorithm::Sha256, 64),
        "sha384" => (ChecksumAlgorithm::Sha384, 96),
        "sha512" => (ChecksumAlgorithm::Sha512, 128),
        _ => return None,
    };
    let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    (hex.len() == n_digits && hex.bytes().all(is_hex)).then(|| Checksum {
        algorithm,
        hex: hex.to_owned(),
    })
}

/// Tells whether a destination is written as a directory.
fn is_directory(destination: &str) -> bool {
    matches!(destination, "" | "." | "..")
        || destination.ends_with('/')
        || destination.ends_with("/.")
        || destination.ends_with("/..")
}

fn checked_owner(value: &str, flag: &Flag) -> Result<String, Diagnostic> {
    // `user:` says no more than `user`, and without a user it is root's.
    let value = value.strip_suffix(':').unwrap_or(value);
    let of_root = value.strip_prefix(':').map(|group| format!("0:{group}"));
    let value = of_root.as_deref().unwrap_or(value);
    if let Err(reason) = user::check(value) {
        let message = format!("invalid owner {value:?}: {reason}");
        return Err(Diagnostic::error(flag.span, message).with_hint("--chown=user[:group]"));
    }
    Ok(value.to_owned())
}

fn parse_mode(value: &str, flag: &Flag) -> Result<Chmod, Diagnostic> {
    Chmod::parse(value).map_err(|reason| {
        Diagnostic::error(flag.span, format!("invalid mode {value:?}: {reason}"))
            .with_hint("--chmod=755 or --chmod=u=rwX,go=rX")
    })
}
