//! One joined line → one typed instruction.

use crate::ast::{
    Argument, Body, CommandLine, Flag, Heredoc, Instruction, OnBuild, Pair, Transfer, Word,
};
use crate::diagnostic::Diagnostic;
use crate::suggest::did_you_mean;

use super::source::Piece;
use super::words::{self, Opener};

/// Every instruction and the flags that it knows.
const INSTRUCTIONS: [(&str, &[&str]); 18] = [
    ("FROM", &["platform"]),
    ("ARG", &[]),
    ("ENV", &[]),
    ("LABEL", &[]),
    ("MAINTAINER", &[]),
    ("RUN", &["mount", "network", "security", "device"]),
    ("CMD", &[]),
    ("ENTRYPOINT", &[]),
    (
        "COPY",
        &["from", "chown", "chmod", "link", "parents", "exclude"],
    ),
    (
        "ADD",
        &[
            "chown",
            "chmod",
            "link",
            "keep-git-dir",
            "checksum",
            "unpack",
            "exclude",
        ],
    ),
    ("WORKDIR", &[]),
    ("USER", &[]),
    ("EXPOSE", &[]),
    ("VOLUME", &[]),
    ("STOPSIGNAL", &[]),
    ("SHELL", &[]),
    (
        "HEALTHCHECK",
        &[
            "interval",
            "timeout",
            "start-period",
            "start-interval",
            "retries",
        ],
    ),
    ("ONBUILD", &[]),
];
/// Flags that are true or false, and true without a value.
const SWITCHES: [&str; 4] = ["link", "parents", "keep-git-dir", "unpack"];
/// Flags that may be given several times.
const REPEATABLE: [&str; 3] = ["mount", "device", "exclude"];

/// Parses a line; the bodies of its heredocs are [attached](attach_heredocs) later.
pub(super) fn parse(whole: Piece<'_>, escape: char) -> Result<Instruction, Diagnostic> {
    let (keyword, rest) = whole.split_first();
    let name = keyword.text().to_ascii_uppercase();
    let Some((name, known_flags)) = INSTRUCTIONS.iter().find(|(known, _)| *known == name) else {
        let names = INSTRUCTIONS.iter().map(|(name, _)| *name);
        let message = format!("unknown instruction {:?}", shortened(keyword.text()));
        return Err(
            Diagnostic::error(keyword.span(), message).with_hint_if(did_you_mean(&name, names))
        );
    };
    let (flags, rest) = words::take_flags(rest, escape);
    check_flags(name, known_flags, &flags)?;
    let line = Line {
        name,
        keyword,
        rest: rest.trimmed(),
        escape,
    };
    let body = line.body()?;
    Ok(Instruction {
        body,
        flags,
        text: whole.text().to_owned(),
        span: whole.span(),
        keyword: keyword.span(),
        heredocs: Vec::new(),
        comments: Vec::new(),
        check: None,
    })
}

/// Returns the heredocs that the line opens. They are looked for also in a line that could not be parsed, so that their
/// bodies are not taken for instructions.
pub(super) fn heredocs(whole: Piece<'_>, parsed: Option<&Instruction>) -> Vec<Opener> {
    let opens = if let Some(instruction) = parsed {
        may_open(&instruction.body)
    } else {
        let word = |piece: Piece<'_>| piece.text().to_ascii_uppercase();
        let (keyword, rest) = whole.split_first();
        let keyword = match word(keyword).as_str() {
            "ONBUILD" => word(rest.split_first().0),
            other => other.to_owned(),
        };
        matches!(keyword.as_str(), "RUN" | "COPY" | "ADD")
    };
    if opens {
        words::openers(whole.text())
    } else {
        Vec::new()
    }
}

fn may_open(body: &Body) -> bool {
    match body {
        Body::Run(CommandLine::Shell(_)) => true,
        Body::Copy(transfer) | Body::Add(transfer) => !transfer.is_list,
        Body::OnBuild(inner) => may_open(&inner.instruction.body),
        _ => false,
    }
}

/// Puts the bodies of heredocs into the instruction that opened them.
pub(super) fn attach_heredocs(
    instruction: &mut Instruction,
    bodies: Vec<Heredoc>,
) -> Result<(), Diagnostic> {
    if let Some(last) = bodies.last() {
        instruction.span = instruction.span.to(last.span);
    }
    match &mut instruction.body {
        Body::Copy(transfer) | Body::Add(transfer) if transfer.inline.len() != bodies.len() => {
            return Err(Diagnostic::error(
                instruction.keyword,
                "heredocs of this instruction must be words of their own",
            ));
        }
        Body::OnBuild(on_build) => {
            for heredoc in &bodies {
                on_build.expression.push('\n');
                on_build.expression.push_str(&heredoc.content);
                on_build.expression.push_str(&heredoc.name);
            }
            attach_heredocs(&mut on_build.instruction, bodies.clone())?;
        }
        _ => {}
    }
    instruction.heredocs = bodies;
    Ok(())
}

fn check_flags(instruction: &str, known: &[&str], flags: &[Flag]) -> Result<(), Diagnostic> {
    for (index, flag) in flags.iter().enumerate() {
        let name = flag.name.as_str();
        if !known.contains(&name) {
            let message = format!(
                "{instruction} has no flag {:?}",
                format!("--{}", shortened(name))
            );
            let hint = did_you_mean(name, known.iter().copied())
                .map(|hint| hint.replace("mean ", "mean --"));
            return Err(Diagnostic::error(flag.span, message).with_hint_if(hint));
        }
        if SWITCHES.contains(&name) {
            if !matches!(flag.value.as_deref(), None | Some("true" | "false")) {
                let message = format!("--{name} is either true or false");
                return Err(Diagnostic::error(flag.span, message));
            }
        } else if flag.value.is_none() {
            let message = format!("--{name} needs a value");
            return Err(Diagnostic::error(flag.span, message)
                .with_hint(format!("write --{name}=VALUE, without blanks")));
        }
        let earlier = flags.get(..index).unwrap_or_default();
        if !REPEATABLE.contains(&name) && earlier.iter().any(|other| other.name == name) {
            let message = format!("--{name} may be given once");
            return Err(Diagnostic::error(flag.span, message));
        }
    }
    Ok(())
}

fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

/// An instruction's line, cut into keyword and arguments.
struct Line<'a> {
    name: &'static str,
    keyword: Piece<'a>,
    rest: Piece<'a>,
    escape: char,
}

impl Line<'_> {
    fn body(&self) -> Result<Body, Diagnostic> {
        Ok(match self.name {
            "FROM" => self.from()?,
            "ARG" => Body::Arg(self.arguments()?),
            "ENV" => Body::Env(self.pairs()?),
            "LABEL" => Body::Label(self.pairs()?),
            "MAINTAINER" => Body::Maintainer(self.one()?),
            "RUN" => Body::Run(self.run()?),
            "CMD" => Body::Cmd(words::command_line(self.rest)?),
            "ENTRYPOINT" => Body::Entrypoint(words::command_line(self.rest)?),
            "COPY" => Body::Copy(self.transfer()?),
            "ADD" => Body::Add(self.transfer()?),
            "WORKDIR" => Body::Workdir(self.one()?),
            "USER" => Body::User(self.one()?),
            "EXPOSE" => Body::Expose(self.some(self.blank_separated())?),
            "VOLUME" => self.volume()?,
            "STOPSIGNAL" => Body::StopSignal(self.one()?),
            "SHELL" => self.shell()?,
            "HEALTHCHECK" => self.healthcheck()?,
            _ => self.on_build()?,
        })
    }

    fn error(&self, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(self.keyword.span(), message)
    }

    /// Returns all that follows as one word.
    fn one(&self) -> Result<Word, Diagnostic> {
        if self.rest.text().is_empty() {
            return Err(self.error(format!("{} needs an argument", self.name)));
        }
        Ok(self.rest.word())
    }

    fn some<T>(&self, words: Vec<T>) -> Result<Vec<T>, Diagnostic> {
        if words.is_empty() {
            return Err(self.error(format!("{} needs at least one argument", self.name)));
        }
        Ok(words)
    }

    fn blank_separated(&self) -> Vec<Word> {
        let parts = self.rest.split_blanks();
        parts.iter().map(Piece::word).collect()
    }

    /// Returns a JSON list or words separated by blanks.
    fn list(&self) -> Result<Vec<Word>, Diagnostic> {
        let span = self.rest.span();
        Ok(match words::json_list(self.rest)? {
            Some(texts) => texts.into_iter().map(|text| Word { text, span }).collect(),
            None => self.blank_separated(),
        })
    }

    fn from(&self) -> Result<Body, Diagnostic> {
        let words = self.rest.split_blanks();
        match words.as_slice() {
            [] => Err(self
                .error("FROM needs an image")
                .with_hint("FROM image [AS name]")),
            [image] => Ok(Body::From {
                image: image.word(),
                name: None,
            }),
            [image, keyword, name] if keyword.text().eq_ignore_ascii_case("as") => {
                let word = Word {
                    text: name.text().to_ascii_lowercase(),
                    span: name.span(),
                };
                if !is_stage_name(&word.text) {
                    let message = format!("invalid name {:?} for a stage", shortened(name.text()));
                    return Err(Diagnostic::error(word.span, message).with_hint(
                        "it starts with a letter and holds only letters, digits, dots, dashes and underscores",
                    ));
                }
                Ok(Body::From {
                    image: image.word(),
                    name: Some(word),
                })
            }
            [_, second, ..] => Err(
                Diagnostic::error(second.span(), "unexpected argument of FROM")
                    .with_label("AS and a name are expected, or nothing")
                    .with_hint("FROM image [AS name]"),
            ),
        }
    }

    fn arguments(&self) -> Result<Vec<Argument>, Diagnostic> {
        let words = self.some(words::split_quoted(self.rest, self.escape))?;
        words
            .into_iter()
            .map(|piece| {
                let (name, value) = split_at_equals(piece);
                if name.text().is_empty() {
                    return Err(Diagnostic::error(
                        piece.span(),
                        "an ARG needs a name before =",
                    ));
                }
                Ok(Argument {
                    name: name.word(),
                    value: value.map(|value| value.word()),
                })
            })
            .collect()
    }

    fn pairs(&self) -> Result<Vec<Pair>, Diagnostic> {
        let words = self.some(words::split_quoted(self.rest, self.escape))?;
        if words.first().is_some_and(|word| !word.text().contains('=')) {
            let (name, value) = self.rest.split_first();
            if value.text().is_empty() {
                return Err(
                    Diagnostic::error(name.span(), format!("{} needs a value", self.name))
                        .with_hint(format!("{} name=value", self.name)),
                );
            }
            return Ok(vec![Pair {
                name: name.word(),
                value: value.word(),
                legacy: true,
            }]);
        }
        words
            .into_iter()
            .map(|piece| {
                let (name, value) = split_at_equals(piece);
                let Some(value) = value else {
                    let message = format!(
                        "{:?} is not of the form name=value",
                        shortened(piece.text())
                    );
                    return Err(Diagnostic::error(piece.span(), message)
                        .with_hint("put a value that holds blanks in quotes"));
                };
                if name.text().is_empty() {
                    let message = format!("{} needs a name before =", self.name);
                    return Err(Diagnostic::error(piece.span(), message));
                }
                Ok(Pair {
                    name: name.word(),
                    value: value.word(),
                    legacy: false,
                })
            })
            .collect()
    }

    fn run(&self) -> Result<CommandLine, Diagnostic> {
        let command = words::command_line(self.rest)?;
        match &command {
            CommandLine::Shell(word) if word.text.is_empty() => {
                Err(self.error("RUN needs a command"))
            }
            CommandLine::Exec { args, .. } if args.is_empty() => {
                Err(self.error("RUN needs a command"))
            }
            _ => Ok(command),
        }
    }

    fn transfer(&self) -> Result<Transfer, Diagnostic> {
        let is_json = words::json_list(self.rest)?.is_some();
        let mut words = self.list()?;
        let destination = words.pop();
        let Some(destination) = destination.filter(|_| !words.is_empty()) else {
            return Err(self
                .error(format!(
                    "{} needs at least one source and a destination",
                    self.name
                ))
                .with_hint(format!("{} source … destination", self.name)));
        };
        if !is_json && Opener::parse(&destination.text).is_some() {
            return Err(Diagnostic::error(
                destination.span,
                "a heredoc cannot be a destination",
            ));
        }
        let mut transfer = Transfer {
            sources: Vec::new(),
            inline: Vec::new(),
            destination,
            is_list: is_json,
        };
        for word in words {
            match Opener::parse(&word.text) {
                Some(opener) if !is_json => transfer.inline.push(Word {
                    text: opener.name,
                    span: word.span,
                }),
                _ => transfer.sources.push(word),
            }
        }
        Ok(transfer)
    }

    fn volume(&self) -> Result<Body, Diagnostic> {
        let mut words = self.some(self.list()?)?;
        for word in &mut words {
            word.text = word.text.trim().to_owned();
            if word.text.is_empty() {
                return Err(Diagnostic::error(word.span, "a volume needs a path"));
            }
        }
        Ok(Body::Volume(words))
    }

    fn shell(&self) -> Result<Body, Diagnostic> {
        match words::json_list(self.rest)? {
            Some(list) if !list.is_empty() => Ok(Body::Shell(list)),
            Some(_) => Err(self.error("SHELL needs at least one argument")),
            None => Err(self
                .error("SHELL needs its arguments as a list")
                .with_hint("SHELL [\"/bin/bash\", \"-c\"]")),
        }
    }

    fn healthcheck(&self) -> Result<Body, Diagnostic> {
        let (kind, command) = self.rest.split_first();
        match kind.text().to_ascii_uppercase().as_str() {
            "NONE" if !command.text().is_empty() => Err(Diagnostic::error(
                kind.span(),
                "HEALTHCHECK NONE takes no arguments",
            )),
            "NONE" => Ok(Body::Healthcheck(None)),
            "CMD" => {
                let command = words::command_line(command)?;
                let is_empty = match &command {
                    CommandLine::Shell(word) => word.text.is_empty(),
                    CommandLine::Exec { args, .. } => args.is_empty(),
                };
                if is_empty {
                    return Err(Diagnostic::error(
                        kind.span(),
                        "HEALTHCHECK CMD needs a command",
                    ));
                }
                Ok(Body::Healthcheck(Some(command)))
            }
            "" => Err(self
                .error("HEALTHCHECK needs an argument")
                .with_hint("CMD command, or NONE")),
            _ => {
                let message = format!("unknown kind {:?} of HEALTHCHECK", shortened(kind.text()));
                Err(Diagnostic::error(kind.span(), message).with_hint("CMD command, or NONE"))
            }
        }
    }

    fn on_build(&self) -> Result<Body, Diagnostic> {
        let word = self.one()?;
        let first = self.rest.split_first().0;
        let keyword = first.text().to_ascii_uppercase();
        if matches!(keyword.as_str(), "ONBUILD" | "FROM" | "MAINTAINER") {
            let message = format!("{keyword} cannot be an ONBUILD trigger");
            return Err(Diagnostic::error(first.span(), message));
        }
        Ok(Body::OnBuild(Box::new(OnBuild {
            expression: word.text,
            instruction: parse(self.rest, self.escape)?,
        })))
    }
}

fn split_at_equals(piece: Piece<'_>) -> (Piece<'_>, Option<Piece<'_>>) {
    let text = piece.text();
    match text.find('=') {
        Some(at) => (piece.part(0..at), Some(piece.part(at + 1..text.len()))),
        None => (piece, None),
    }
}

/// Tells whether `name` may name a stage.
fn is_stage_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b))
}
