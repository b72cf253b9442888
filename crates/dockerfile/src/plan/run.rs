//! RUN and WORKDIR.

use std::collections::BTreeMap;

use super::mount;
use super::stage::{Layer, Stage, shown};
use super::types::{InlineScript, Op, RunNetwork, RunOp, RunSecurity};
use super::user;
use crate::ast::{CommandLine, Instruction, Word};
use crate::diagnostic::Diagnostic;
use crate::expand::Variables;
use crate::parse::Opener;
use crate::path;

/// Where a heredoc with an interpreter of its own is put while it runs.
const SCRIPT_DIRECTORY: &str = "/dev/pipes";
/// Build arguments that reach commands without an ARG, in lower case.
const PROXIES: [&str; 5] = [
    "http_proxy",
    "https_proxy",
    "ftp_proxy",
    "no_proxy",
    "all_proxy",
];

/// Tells whether `name` is a proxy variable, in any case.
pub(super) fn is_proxy(name: &str) -> bool {
    PROXIES.iter().any(|proxy| name.eq_ignore_ascii_case(proxy))
}

impl Stage<'_> {
    /// Plans a RUN.
    pub(super) fn run_command(
        &mut self,
        instruction: &Instruction,
        command: &CommandLine,
    ) -> Result<(), Diagnostic> {
        let (network, security) = check_run_flags(instruction)?;
        self.check_can_run(instruction)?;
        let mounts = mount::parse(self, instruction)?;
        let mut script = None;
        let mut text = shown(instruction);
        let args = match command {
            CommandLine::Exec { args, .. } => args.clone(),
            CommandLine::Shell(word) if instruction.heredocs.is_empty() => {
                self.with_shell(&word.text)
            }
            CommandLine::Shell(word) => {
                let (line, file) = heredoc_command(word, instruction);
                if let (Some(heredoc), Some(_)) =
                    (instruction.heredocs.first(), Opener::parse(&word.text))
                {
                    text.extend([" (", summary(&heredoc.content).as_str(), ")"]);
                }
                script = file;
                self.with_shell(&line)
            }
        };
        let created_by = format!("RUN {}{} # buildkit", self.args_prefix(), args.join(" "));
        self.add_plan_bytes(args.iter().map(String::len).sum());
        let op = Op::Run(RunOp {
            args,
            proxy: self.proxy(),
            script,
            network,
            security,
            mounts,
        });
        self.add_step(instruction, op, text, created_by);
        Ok(())
    }

    /// Plans a WORKDIR.
    pub(super) fn workdir(
        &mut self,
        instruction: &Instruction,
        word: &Word,
    ) -> Result<(), Diagnostic> {
        let expanded = self.expand(word)?.text;
        if expanded.contains('\0') {
            return Err(Diagnostic::error(word.span, "a path cannot hold NUL"));
        }
        let directory = path::join(self.directory(), &expanded);
        // A slash at the end of an absolute path stays in the configuration, as with `BuildKit`.
        let keeps_slash = expanded.starts_with('/') && expanded.ends_with('/') && directory != "/";
        let slash = if keeps_slash { "/" } else { "" };
        self.config.config.working_dir = format!("{directory}{slash}");
        let created_by = format!("WORKDIR {directory}{slash}");
        if directory == "/" {
            self.record(created_by, Layer::No);
            return Ok(());
        }
        self.check_user(instruction)?;
        self.add_plan_bytes(directory.len());
        let op = Op::Workdir { path: directory };
        self.add_step(instruction, op, shown(instruction), created_by);
        Ok(())
    }

    fn check_can_run(&self, instruction: &Instruction) -> Result<(), Diagnostic> {
        let machine = &self.shared.options.build_platform;
        let runs_386 = machine.architecture == "amd64" && self.platform.architecture == "386";
        if !self.platform.satisfies(machine) && !runs_386 {
            let message = format!(
                "commands for {} cannot be run on {machine} yet",
                self.platform
            );
            return Err(Diagnostic::error(instruction.keyword, message));
        }
        self.check_user(instruction)
    }

    fn check_user(&self, instruction: &Instruction) -> Result<(), Diagnostic> {
        let name = &self.config.config.user;
        if name.is_empty() {
            return Ok(());
        }
        // USER was checked at its line; what is wrong here comes from the base image.
        user::check(name).map_err(|reason| {
            let message = format!("the base image's user {name:?} is invalid: {reason}");
            Diagnostic::error(instruction.keyword, message)
                .with_hint("set another one with USER before this line")
        })
    }

    /// Returns the declared ARGs as they stand before the command in the history: `|2 A=1 B=2 `.
    fn args_prefix(&self) -> String {
        let mut places = BTreeMap::new();
        let mut pairs: Vec<String> = Vec::new();
        for (name, value) in &self.build_args {
            let value = self.scope.value(name).or(value.as_deref());
            let pair = format!("{name}={}", value.unwrap_or_default());
            let known = places.get(name).copied();
            if let Some(known) = known.and_then(|place: usize| pairs.get_mut(place)) {
                *known = pair;
            } else {
                places.insert(name, pairs.len());
                pairs.push(pair);
            }
        }
        if pairs.is_empty() {
            return String::new();
        }
        format!("|{} {} ", pairs.len(), pairs.join(" "))
    }

    fn proxy(&self) -> Vec<(String, String)> {
        let mut found = BTreeMap::new();
        for (name, value) in &self.shared.options.build_args {
            if is_proxy(name) {
                found.insert(name.to_ascii_lowercase(), value);
            }
        }
        let both = |(name, value): (String, &String)| {
            [
                (name.to_ascii_uppercase(), value.clone()),
                (name, value.clone()),
            ]
        };
        found.into_iter().flat_map(both).collect()
    }
}

fn check_run_flags(instruction: &Instruction) -> Result<(RunNetwork, RunSecurity), Diagnostic> {
    let (mut network, mut security) = (RunNetwork::Default, RunSecurity::Sandbox);
    for flag in &instruction.flags {
        let value = flag.value.as_deref().unwrap_or_default();
        let error = |message: String| Diagnostic::error(flag.span, message);
        let invalid = || error(format!("invalid {} {value:?}", flag.name));
        match (flag.name.as_str(), value) {
            ("network", "default") => network = RunNetwork::Default,
            ("network", "none") => network = RunNetwork::None,
            ("network", "host") => network = RunNetwork::Host,
            ("network", _) => return Err(invalid().with_hint("default, none or host")),
            ("security", "sandbox") => security = RunSecurity::Sandbox,
            ("security", "insecure") => security = RunSecurity::Insecure,
            ("security", _) => return Err(invalid().with_hint("sandbox or insecure")),
            ("device", _) => {
                let message = "commands are given no devices here".to_owned();
                let hint = "leave --device out: /dev/null and the like are there anyway";
                return Err(error(message).with_hint(hint));
            }
            // Mounts have a parser of their own.
            _ => {}
        }
    }
    Ok((network, security))
}

/// Returns what the shell is to run, and the file that has to be there for it.
fn heredoc_command(word: &Word, instruction: &Instruction) -> (String, Option<InlineScript>) {
    let heredocs = &instruction.heredocs;
    if let (Some(heredoc), Some(_)) = (heredocs.first(), Opener::parse(&word.text)) {
        let content = heredoc.text();
        if !content.starts_with("#!") {
            return (content, None);
        }
        let path = path::join(SCRIPT_DIRECTORY, &heredoc.name.replace('/', "_"));
        let script = InlineScript {
            path: path.clone(),
            content,
        };
        return (path, Some(script));
    }
    // Something more than a heredoc: given back to the shell as it was written.
    let mut line = word.text.clone();
    for heredoc in heredocs {
        line.push('\n');
        line.push_str(&heredoc.content);
        line.push_str(&heredoc.name);
    }
    (line, None)
}

fn summary(content: &str) -> String {
    let mut lines = content.trim().lines();
    let first = lines.next().unwrap_or_default();
    let dots = if lines.next().is_some() { "..." } else { "" };
    format!("{first}{dots}")
}
