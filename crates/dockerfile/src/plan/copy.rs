//! COPY and ADD.

use super::graph::{Origin, origin};
use super::stage::{Stage, shown};
use super::types::{CopyFrom, CopyOp, InlineFile, Op};
use super::user;
use crate::ast::{Flag, Instruction, Transfer, Word};
use crate::diagnostic::Diagnostic;
use crate::expand::{Lexer, Quotes};
use crate::{glob, path};

/// Largest mode that `--chmod` may set.
const MODE_MAX: u32 = 0o7777;

impl Stage<'_> {
    /// Plans a COPY or ADD.
    pub(super) fn copy(
        &mut self,
        instruction: &Instruction,
        transfer: &Transfer,
    ) -> Result<(), Diagnostic> {
        let keyword = instruction.body.keyword();
        let is_add = keyword == "ADD";
        check_supported(keyword, instruction)?;
        let from = self.copy_from(instruction)?;
        let chown = self.flag_value(instruction, "chown")?;
        let chmod = self.flag_value(instruction, "chmod")?;
        let mut created_by = keyword.to_owned();
        for (name, value) in [("chown", &chown), ("chmod", &chmod)] {
            if let Some((value, _)) = value {
                created_by.extend([" --", name, "=", value.as_str()]);
            }
        }
        let mut sources = Vec::new();
        for word in &transfer.sources {
            let source = self.expand(word)?.text;
            created_by.push(' ');
            created_by.push_str(&source);
            sources.push(check_source(keyword, word, &source)?);
        }
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
        let op = CopyOp {
            from,
            sources,
            inline,
            destination: path::join(self.directory(), &destination),
            destination_is_directory: is_directory,
            chown: chown
                .map(|(value, flag)| checked_owner(value, flag))
                .transpose()?,
            chmod: chmod
                .map(|(value, flag)| parse_mode(&value, flag))
                .transpose()?,
            unpack_archives: is_add && !is_off(instruction, "unpack"),
        };
        self.add_plan_bytes(created_by.len());
        self.add_step(instruction, Op::Copy(op), shown(instruction), created_by);
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
                content = expanded
                    .map_err(|error| Diagnostic::error(heredoc.span, error.to_string()))?
                    .text;
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

fn is_off(instruction: &Instruction, switch: &str) -> bool {
    let flag = instruction.flag(switch);
    flag.is_some_and(|flag| flag.value.as_deref() == Some("false"))
}

fn check_supported(keyword: &str, instruction: &Instruction) -> Result<(), Diagnostic> {
    for flag in &instruction.flags {
        let is_done = match flag.name.as_str() {
            "from" | "chown" | "chmod" | "unpack" => true,
            name @ ("link" | "parents" | "keep-git-dir") => is_off(instruction, name),
            _ => false,
        };
        if !is_done {
            let message = format!("{keyword} --{} is not supported yet", flag.name);
            return Err(Diagnostic::error(flag.span, message));
        }
    }
    Ok(())
}

/// Returns a source as a path from the root of where it is.
fn check_source(keyword: &str, word: &Word, source: &str) -> Result<String, Diagnostic> {
    let error = |message: &str| Err(Diagnostic::error(word.span, message));
    let starts_with = |prefixes: &[&str]| prefixes.iter().any(|prefix| source.starts_with(prefix));
    let remote = if starts_with(&["http://", "https://"]) {
        Some("a URL")
    } else if starts_with(&["git://", "ssh://", "git@"]) {
        Some("a git repository")
    } else {
        None
    };
    match remote {
        Some(what) if keyword == "ADD" => {
            return error(&format!("ADD of {what} is not supported yet"));
        }
        Some(what) => return error(&format!("COPY cannot take {what}")),
        None => {}
    }
    if source.contains('\0') {
        return error("a path cannot hold NUL");
    }
    let cleaned = path::clean(&format!("/{source}"));
    let cleaned = cleaned.trim_start_matches('/');
    if let Err(reason) = glob::Pattern::parse(cleaned) {
        return error(&format!("invalid pattern {source:?}: {reason}"));
    }
    Ok(if cleaned.is_empty() { "." } else { cleaned }.to_owned())
}

/// Tells whether a destination is written as a directory.
fn is_directory(destination: &str) -> bool {
    matches!(destination, "" | "." | "..")
        || destination.ends_with('/')
        || destination.ends_with("/.")
        || destination.ends_with("/..")
}

fn checked_owner(value: String, flag: &Flag) -> Result<String, Diagnostic> {
    match user::check(&value) {
        Ok(()) => Ok(value),
        Err(reason) => {
            let message = format!("invalid owner {value:?}: {reason}");
            Err(Diagnostic::error(flag.span, message).with_hint("--chown=user[:group]"))
        }
    }
}

fn parse_mode(value: &str, flag: &Flag) -> Result<u32, Diagnostic> {
    let is_octal = value.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    let looks_symbolic = value.starts_with(|c: char| "ugoa+-=".contains(c));
    if looks_symbolic {
        let message = format!("the symbolic mode {value:?} is not supported yet");
        return Err(Diagnostic::error(flag.span, message).with_hint("write it in octal: 755"));
    }
    let mode = u32::from_str_radix(value, 8).ok();
    mode.filter(|mode| is_octal && *mode <= MODE_MAX)
        .ok_or_else(|| {
            let message = format!("invalid mode {value:?}");
            Diagnostic::error(flag.span, message).with_hint("an octal number up to 7777")
        })
}
