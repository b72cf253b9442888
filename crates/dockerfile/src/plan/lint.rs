//! Rules about what only shows while planning: variables, bases, options.

use std::collections::BTreeSet;

use oci::{Platform, Reference};

use super::graph::Builder;
use super::settings::NOT_VARIABLES;
use super::stage::Stage;
use crate::ast::{Body, CommandLine, Instruction, Pair, Transfer, Word};
use crate::diagnostic::{Diagnostic, Span};
use crate::expand::Expanded;
use crate::limits::{LINTS_MAX, SUGGESTIONS_MAX};
use crate::lint::rules::{self, Rule};
use crate::path;
use crate::suggest::did_you_mean;

/// Words in the name of a variable that tell that it holds a secret.
const SECRET_WORDS: [&str; 10] = [
    "apikey",
    "auth",
    "credential",
    "credentials",
    "key",
    "password",
    "pword",
    "passwd",
    "secret",
    "token",
];
/// Words that tell that it does not, after all.
const HARMLESS_WORDS: [&str; 3] = ["public", "file", "version"];
/// The variable that says what an image is to run on.
const TARGET_PLATFORM: &str = "TARGETPLATFORM";
/// Most undefined variables that one instruction is told about.
pub(super) const UNDEFINED_MAX: usize = 20;

/// What a stage has had so far, as far as rules care.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    cmd: Option<Span>,
    entrypoint: Option<Span>,
    healthcheck: Option<Span>,
    /// True when a WORKDIR of this file was carried out: relative ones are safe then.
    has_workdir: bool,
}

impl Seen {
    /// Returns what a stage that starts from this one begins with.
    pub(super) fn handed_on(&self) -> Self {
        Self {
            has_workdir: self.has_workdir,
            ..Self::default()
        }
    }
}

impl Builder<'_> {
    /// Tells about variables of a FROM that nothing declares.
    pub(super) fn lint_undefined(&mut self, word: &Word, expanded: &Expanded) {
        for name in &expanded.unset {
            if self.declared.contains(name) {
                continue;
            }
            if self.warnings.len() >= SUGGESTIONS_MAX {
                return;
            }
            let known = self.declared.iter().chain(self.globals.keys());
            let near = did_you_mean(name, known.map(String::as_str));
            let message = format!("no ARG before the first FROM declares {name:?}");
            let lint = Diagnostic::lint(&rules::UNDEFINED_ARG_IN_FROM, word.span, message);
            self.warnings.push(lint.with_hint_if(near));
        }
    }

    /// Tells about a platform that says nothing, or always the same.
    pub(super) fn lint_platform(&mut self, word: &Word, expanded: &Expanded, from: &Instruction) {
        let target = self.globals.get(TARGET_PLATFORM);
        let is_target =
            expanded.used.iter().eq([TARGET_PLATFORM]) && target == Some(&expanded.text);
        if is_target && expanded.unset.is_empty() {
            let message = "the platform that is asked for is the default";
            let lint = Diagnostic::lint(&rules::REDUNDANT_TARGET_PLATFORM, word.span, message);
            self.warnings.push(lint);
        }
        let is_constant = expanded.used.is_empty() && expanded.unset.is_empty();
        let platform = expanded.text.parse::<Platform>().ok();
        let Some(platform) = platform.filter(|_| is_constant) else {
            return;
        };
        let name = match &from.body {
            Body::From {
                name: Some(name), ..
            } => name.text.as_str(),
            _ => "",
        };
        if !name.contains(&platform.os) && !name.contains(&platform.architecture) {
            let message = format!("the platform is always {platform}");
            let rule = &rules::FROM_PLATFORM_FLAG_CONST_DISALLOWED;
            let hint = "use $BUILDPLATFORM, or say it in the name of the stage";
            self.warnings
                .push(Diagnostic::lint(rule, word.span, message).with_hint(hint));
        }
    }

    /// Tells about a base that is none without build arguments.
    pub(super) fn lint_default_base(&mut self, image: &Word, span: Span) {
        let expanded = self.lexer.expand(&image.text, &self.defaults, &self.budget);
        let is_wrong = expanded.is_ok_and(|expanded| {
            let reference = expanded.text.parse::<Reference>();
            reference.is_err()
        });
        if is_wrong {
            let message = format!("{:?} names no image without build arguments", image.text);
            let rule = &rules::INVALID_DEFAULT_ARG_IN_FROM;
            self.warnings.push(Diagnostic::lint(rule, span, message));
        }
    }
}

impl Stage<'_> {
    fn push_lint(&mut self, lint: Diagnostic) {
        let n_lints = self.shared.n_lints.get();
        if n_lints < LINTS_MAX {
            self.shared.n_lints.set(n_lints + 1);
            self.warnings.push(lint);
        }
    }

    /// Holds `instruction` to the rules, as the stage is before it.
    pub(super) fn lint(&mut self, instruction: &Instruction) {
        match &instruction.body {
            Body::Cmd(command) => {
                self.json_args(instruction, command);
                let before = self.seen.cmd.replace(instruction.span);
                self.once(instruction, before);
            }
            Body::Entrypoint(command) => {
                self.json_args(instruction, command);
                let before = self.seen.entrypoint.replace(instruction.span);
                self.once(instruction, before);
            }
            Body::Healthcheck(command) => {
                if let (None, Some(flag)) = (command, instruction.flags.first()) {
                    let message = "times mean nothing to HEALTHCHECK NONE";
                    self.push_lint(Diagnostic::warning(flag.span, message));
                }
                let before = self.seen.healthcheck.replace(instruction.span);
                self.once(instruction, before);
            }
            Body::Env(pairs) => {
                self.legacy(instruction, pairs);
                for pair in pairs {
                    let name = self.expand_silently(&pair.name);
                    let name = name.map_or_else(|| pair.name.text.clone(), |name| name.text);
                    self.secret("ENV", &name, pair.name.span);
                }
            }
            Body::Label(pairs) => self.legacy(instruction, pairs),
            Body::Arg(arguments) => {
                for argument in arguments {
                    self.secret("ARG", &argument.name.text, argument.name.span);
                }
            }
            Body::Workdir(word) => self.workdir_is_safe(word),
            Body::Expose(words) => self.ports(words),
            Body::Copy(transfer) | Body::Add(transfer) => self.ignored(instruction, transfer),
            _ => {}
        }
    }

    /// Tells about the variables that `instruction` used and that nothing has declared.
    pub(super) fn lint_undefined(&mut self) {
        let used = self.undefined.take();
        let mut told = BTreeSet::new();
        for (name, span) in used {
            if NOT_VARIABLES.contains(&name.as_str()) || !told.insert(name.clone()) {
                continue;
            }
            let pairs = self.scope.snapshot();
            let known = pairs.iter().map(|(name, _)| name.as_str());
            let message = format!("the variable {name:?} is not defined");
            let lint = Diagnostic::lint(&rules::UNDEFINED_VAR, span, message);
            let n_suggested = self.shared.n_suggested.get();
            self.shared.n_suggested.set(n_suggested + 1);
            if n_suggested >= SUGGESTIONS_MAX {
                self.push_lint(lint);
                continue;
            }
            self.push_lint(lint.with_hint_if(did_you_mean(&name, known)));
        }
    }

    /// Tells when the base is not made for the platform that was asked for.
    pub(super) fn lint_base(&mut self, span: Span, wanted: &Platform) {
        let config = &self.config;
        if config.os == wanted.os && config.architecture == wanted.architecture {
            return;
        }
        let message = format!(
            "the base image is made for {}/{}, and {wanted} was asked for",
            config.os, config.architecture
        );
        self.tell(&rules::INVALID_BASE_IMAGE_PLATFORM, span, message);
    }

    fn tell(&mut self, rule: &'static Rule, span: Span, message: String) {
        self.push_lint(Diagnostic::lint(rule, span, message));
    }

    fn json_args(&mut self, instruction: &Instruction, command: &CommandLine) {
        let CommandLine::Shell(_) = command else {
            return;
        };
        if self.config.config.shell.is_empty() {
            let keyword = instruction.body.keyword();
            let message = format!("{keyword} is run by a shell, which does not pass on signals");
            let lint = Diagnostic::lint(&rules::JSON_ARGS_RECOMMENDED, instruction.span, message);
            let hint = format!("{keyword} [\"program\", \"argument\"], or SHELL before it");
            self.push_lint(lint.with_hint(hint));
        }
    }

    fn once(&mut self, instruction: &Instruction, before: Option<Span>) {
        if let Some(span) = before {
            let keyword = instruction.body.keyword();
            let message = format!("this {keyword} does not count: the stage has another one");
            self.tell(&rules::MULTIPLE_INSTRUCTIONS_DISALLOWED, span, message);
        }
    }

    fn legacy(&mut self, instruction: &Instruction, pairs: &[Pair]) {
        if pairs.iter().any(|pair| pair.legacy) {
            let keyword = instruction.body.keyword();
            let message = format!("{keyword} without an equals sign");
            let lint = Diagnostic::lint(&rules::LEGACY_KEY_VALUE_FORMAT, instruction.span, message);
            self.push_lint(lint.with_hint(format!("{keyword} name=value")));
        }
    }

    fn secret(&mut self, keyword: &str, name: &str, span: Span) {
        let lower = name.to_ascii_lowercase();
        let has = |words: &[&str]| lower.split('_').any(|word| words.contains(&word));
        if has(&SECRET_WORDS) && !has(&HARMLESS_WORDS) {
            let message = format!("{keyword} {name} stays in the image");
            let lint = Diagnostic::lint(&rules::SECRETS_USED_IN_ARG_OR_ENV, span, message);
            self.push_lint(lint.with_hint("pass secrets with RUN --mount=type=secret"));
        }
    }

    fn workdir_is_safe(&mut self, word: &Word) {
        let expanded = self.expand_silently(word);
        let is_absolute = expanded.is_none_or(|expanded| expanded.text.starts_with('/'));
        if !self.seen.has_workdir && !is_absolute {
            let message = format!("where {:?} is depends on the base image", word.text);
            self.tell(&rules::WORKDIR_RELATIVE_PATH, word.span, message);
        }
        self.seen.has_workdir = true;
    }

    fn ports(&mut self, words: &[Word]) {
        for word in words {
            let Some(expanded) = self.expand_silently(word) else {
                continue;
            };
            for spec in expanded.words {
                let protocol = spec.split_once('/').map_or("", |(_, protocol)| protocol);
                if protocol.chars().any(char::is_uppercase) {
                    let message = format!("the protocol of {spec:?} is not in lower case");
                    self.tell(&rules::EXPOSE_PROTO_CASING, word.span, message);
                }
                if spec.contains(':') {
                    let message = format!("{spec:?} names more than a port of the container");
                    self.tell(&rules::EXPOSE_INVALID_FORMAT, word.span, message);
                }
            }
        }
    }

    fn ignored(&mut self, instruction: &Instruction, transfer: &Transfer) {
        let Some(ignore) = self.shared.options.ignore.clone() else {
            return;
        };
        let from = instruction
            .flag("from")
            .and_then(|flag| flag.value.as_deref());
        if from.is_some_and(|from| !from.is_empty()) || ignore.has_exceptions() {
            return;
        }
        for word in &transfer.sources {
            let Some(source) = self.expand_silently(word) else {
                continue;
            };
            let is_remote = source.text.contains("://") || source.text.starts_with("git@");
            let cleaned = path::clean(&source.text);
            let cleaned = cleaned.trim_start_matches('/');
            let is_ignored = match cleaned {
                "" | "." => ignore.hides_everything(),
                path => ignore.matches(path).unwrap_or(false),
            };
            if is_ignored && !is_remote {
                let message = format!("{:?} is hidden by .dockerignore", source.text);
                self.tell(&rules::COPY_IGNORED_FILE, word.span, message);
            }
        }
    }

    /// Expands without telling about what is not defined: whoever carries the instruction out does.
    fn expand_silently(&self, word: &Word) -> Option<Expanded> {
        let before = self.undefined.borrow().len();
        let expanded = self.expand(word).ok();
        self.undefined.borrow_mut().truncate(before);
        expanded
    }
}
