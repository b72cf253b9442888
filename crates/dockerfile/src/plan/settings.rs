//! Instructions that change only the image's configuration.

use oci::config::{Empty, Healthcheck};

use super::stage::{Layer, Stage};
use super::{notation, ports, signal, user};
use crate::ast::{Argument, Body, CommandLine, Instruction, Pair, Word};
use crate::diagnostic::Diagnostic;
use crate::outline::{self, OutlineArgument};

/// Shortest time between or for health checks, in nanoseconds (docker's limit).
const HEALTHCHECK_MIN_NS: u64 = 1_000_000;
/// ARGs that steer a build and are no variables for its commands.
pub(super) const NOT_VARIABLES: [&str; 2] =
    ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

impl Stage<'_> {
    /// Carries out `instruction`, which makes no layer.
    pub(super) fn setting(&mut self, instruction: &Instruction) -> Result<(), Diagnostic> {
        match &instruction.body {
            Body::Arg(arguments) => self.arg(instruction, arguments),
            Body::Env(pairs) => self.env(pairs),
            Body::Label(pairs) => self.label(pairs),
            Body::Maintainer(name) => {
                self.record_setting(format!("MAINTAINER {}", name.text));
                self.config.author = Some(name.text.clone());
                Ok(())
            }
            Body::Cmd(command) => {
                self.cmd(command);
                Ok(())
            }
            Body::Entrypoint(command) => {
                self.entrypoint(command);
                Ok(())
            }
            Body::User(name) => self.user(name),
            Body::Expose(words) => self.expose(words),
            Body::Volume(words) => self.volume(words),
            Body::StopSignal(word) => self.stop_signal(word),
            Body::Shell(shell) => {
                self.record_setting(format!("SHELL {}", notation::list(shell)));
                self.set_shell(shell);
                self.config.config.shell.clone_from(shell);
                Ok(())
            }
            Body::Healthcheck(command) => self.healthcheck(instruction, command.as_ref()),
            Body::OnBuild(on_build) => {
                // Without an entry in the history, as with BuildKit.
                self.add_config_bytes(on_build.expression.len());
                self.config
                    .config
                    .on_build
                    .push(on_build.expression.clone());
                Ok(())
            }
            Body::From { .. } | Body::Run(_) | Body::Copy(_) | Body::Add(_) | Body::Workdir(_) => {
                Err(Diagnostic::error(
                    instruction.keyword,
                    "this instruction cannot stand here",
                ))
            }
        }
    }

    fn record_setting(&mut self, created_by: String) {
        self.record(created_by, Layer::No);
    }

    fn arg(&mut self, instruction: &Instruction, arguments: &[Argument]) -> Result<(), Diagnostic> {
        let mut created_by = "ARG".to_owned();
        for argument in arguments {
            let name = argument.name.text.as_str();
            let given = self.shared.options.build_args.get(name);
            let value = match (given, &argument.value) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(word)) => Some(self.expand(word)?.text),
                (None, None) => self.shared.globals.get(name).cloned(),
            };
            self.note_argument(instruction, argument, value.as_deref());
            created_by.push(' ');
            created_by.push_str(name);
            if let Some(value) = &value {
                if !NOT_VARIABLES.contains(&name) {
                    self.set_variable(name, value);
                }
                created_by.push('=');
                created_by.push_str(value);
            }
            self.declared.insert(name.to_owned());
            self.build_args.push((name.to_owned(), value));
            if created_by.len() > crate::limits::CONFIG_MAX_BYTES || self.is_full() {
                break;
            }
        }
        self.record_setting(created_by);
        Ok(())
    }

    /// Notes an ARG for whoever asks what the stage takes.
    fn note_argument(
        &mut self,
        instruction: &Instruction,
        argument: &Argument,
        value: Option<&str>,
    ) {
        let name = &argument.name.text;
        let is_given = self.shared.options.build_args.contains_key(name);
        if argument.value.is_none() && !is_given && self.shared.globals.contains_key(name) {
            self.inherited.insert(name.clone());
            return;
        }
        self.add_plan_bytes(name.len() + value.map_or(0, str::len));
        self.arguments.push(OutlineArgument {
            name: name.clone(),
            value: value.map(str::to_owned),
            description: outline::described(instruction, name),
            span: instruction.span,
        });
    }

    /// Expands all pairs before any of them takes effect: on one line, values come from before the line.
    fn expand_pairs(&self, pairs: &[Pair]) -> Result<Vec<(String, String)>, Diagnostic> {
        let mut expanded = Vec::new();
        for pair in pairs {
            let name = self.expand(&pair.name)?.text;
            if name.is_empty() || name.contains('=') {
                let message = format!("{name:?} cannot be a name");
                return Err(Diagnostic::error(pair.name.span, message));
            }
            expanded.push((name, self.expand(&pair.value)?.text));
        }
        Ok(expanded)
    }

    fn env(&mut self, pairs: &[Pair]) -> Result<(), Diagnostic> {
        let mut created_by = "ENV".to_owned();
        for (name, value) in self.expand_pairs(pairs)? {
            created_by.extend([" ", name.as_str(), "=", value.as_str()]);
            self.set_variable(&name, &value);
            self.image_env.set(&name, &value);
        }
        self.add_config_bytes(created_by.len());
        self.record_setting(created_by);
        Ok(())
    }

    fn label(&mut self, pairs: &[Pair]) -> Result<(), Diagnostic> {
        let mut created_by = "LABEL".to_owned();
        for (name, value) in self.expand_pairs(pairs)? {
            created_by.extend([" ", name.as_str(), "=", value.as_str()]);
            self.config.config.labels.insert(name, value);
        }
        self.add_config_bytes(created_by.len());
        self.record_setting(created_by);
        Ok(())
    }

    fn command(&self, command: &CommandLine) -> Vec<String> {
        match command {
            CommandLine::Exec { args, .. } => args.clone(),
            CommandLine::Shell(word) => self.with_shell(&word.text),
        }
    }

    fn cmd(&mut self, command: &CommandLine) {
        let args = self.command(command);
        self.record_setting(format!("CMD {}", notation::quoted_list(&args)));
        self.config.config.cmd = Some(args).filter(|args| !args.is_empty());
        self.config.config.args_escaped = Some(true);
        self.cmd_is_set = true;
    }

    fn entrypoint(&mut self, command: &CommandLine) {
        let args = self.command(command);
        self.record_setting(format!("ENTRYPOINT {}", notation::quoted_list(&args)));
        self.config.config.entrypoint = Some(args).filter(|args| !args.is_empty());
        if !self.cmd_is_set {
            // The base's CMD was meant for the base's ENTRYPOINT.
            self.config.config.cmd = None;
        }
    }

    fn user(&mut self, word: &Word) -> Result<(), Diagnostic> {
        let name = self.expand(word)?.text;
        if name.is_empty() {
            // As with docker: nobody in particular, which is root.
            let message = "the user is empty: steps and the image run as root";
            self.warnings.push(Diagnostic::warning(word.span, message));
            self.record_setting("USER ".to_owned());
            self.config.config.user = name;
            return Ok(());
        }
        user::check(&name).map_err(|reason| {
            Diagnostic::error(word.span, format!("invalid user {name:?}: {reason}"))
                .with_hint("USER name[:group], each a name or a number")
        })?;
        self.record_setting(format!("USER {name}"));
        self.config.config.user = name;
        Ok(())
    }

    fn expose(&mut self, words: &[Word]) -> Result<(), Diagnostic> {
        let mut words: Vec<&Word> = words.iter().collect();
        words.sort_by(|a, b| a.text.cmp(&b.text));
        let mut exposed = Vec::new();
        for word in words {
            for spec in self.expand(word)?.words {
                ports::parse(&spec, &mut exposed).map_err(|reason| {
                    Diagnostic::error(word.span, format!("invalid port {spec:?}: {reason}"))
                        .with_hint("EXPOSE 8080, 8080/udp or 8000-8010")
                })?;
                if exposed.len() > ports::PORTS_MAX {
                    let message = format!("more than {} ports in one EXPOSE", ports::PORTS_MAX);
                    return Err(Diagnostic::error(word.span, message));
                }
            }
        }
        // BuildKit says nothing of variables here, and what nothing names exposes nothing.
        self.undefined.borrow_mut().clear();
        let created_by = format!("EXPOSE {}", notation::list(&exposed));
        self.add_config_bytes(created_by.len());
        let ports = exposed.into_iter().map(|port| (port, Empty {}));
        self.config.config.exposed_ports.extend(ports);
        self.record_setting(created_by);
        Ok(())
    }

    fn volume(&mut self, words: &[Word]) -> Result<(), Diagnostic> {
        let mut volumes = Vec::new();
        for word in words {
            let volume = self.expand(word)?.text;
            if volume.is_empty() {
                return Err(Diagnostic::error(word.span, "a volume needs a path"));
            }
            volumes.push(volume);
        }
        let created_by = format!("VOLUME {}", notation::list(&volumes));
        self.add_config_bytes(created_by.len());
        let volumes = volumes.into_iter().map(|volume| (volume, Empty {}));
        self.config.config.volumes.extend(volumes);
        self.record_setting(created_by);
        Ok(())
    }

    fn stop_signal(&mut self, word: &Word) -> Result<(), Diagnostic> {
        let name = self.expand(word)?.text;
        if !signal::is_known(&name) {
            let message = format!("invalid signal {name:?}");
            return Err(
                Diagnostic::error(word.span, message).with_hint_if(signal::suggestion(&name))
            );
        }
        self.record_setting(format!("STOPSIGNAL {name}"));
        self.config.config.stop_signal = Some(name);
        Ok(())
    }

    fn healthcheck(
        &mut self,
        instruction: &Instruction,
        command: Option<&CommandLine>,
    ) -> Result<(), Diagnostic> {
        let test = match command {
            None => vec!["NONE".to_owned()],
            Some(CommandLine::Exec { args, .. }) => {
                let kind = std::iter::once("CMD".to_owned());
                kind.chain(args.iter().cloned()).collect()
            }
            Some(CommandLine::Shell(word)) => vec!["CMD-SHELL".to_owned(), word.text.clone()],
        };
        let (check, is_none) = (Healthcheck::default(), command.is_none());
        let check = if is_none {
            // Times mean nothing to a check that there is not.
            Healthcheck { test, ..check }
        } else {
            timed(instruction, test)?
        };
        self.record_setting(format!("HEALTHCHECK {}", notation::healthcheck(&check)));
        self.config.config.healthcheck = Some(check);
        Ok(())
    }
}

fn timed(instruction: &Instruction, test: Vec<String>) -> Result<Healthcheck, Diagnostic> {
    Ok(Healthcheck {
        test,
        interval: duration(instruction, "interval")?,
        timeout: duration(instruction, "timeout")?,
        start_period: duration(instruction, "start-period")?,
        start_interval: duration(instruction, "start-interval")?,
        retries: retries(instruction)?,
    })
}

fn duration(instruction: &Instruction, name: &str) -> Result<Option<u64>, Diagnostic> {
    let Some(flag) = instruction.flag(name) else {
        return Ok(None);
    };
    let text = flag.value.as_deref().unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    let error = |reason: &str| {
        let message = format!("invalid duration {text:?} for --{name}: {reason}");
        Diagnostic::error(flag.span, message).with_hint("write it as 30s or 1m30s")
    };
    match notation::parse_duration(text) {
        None => Err(error("a number with a unit is expected")),
        Some(0) => Ok(None),
        Some(ns) if ns < HEALTHCHECK_MIN_NS => Err(error("it is shorter than 1ms")),
        Some(ns) => Ok(Some(ns)),
    }
}

fn retries(instruction: &Instruction) -> Result<Option<u64>, Diagnostic> {
    let Some(flag) = instruction.flag("retries") else {
        return Ok(None);
    };
    let text = flag.value.as_deref().unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    let number = text.parse::<u64>().ok();
    let number = number.filter(|number| i32::try_from(*number).is_ok());
    let number = number.ok_or_else(|| {
        let message = format!("invalid number {text:?} for --retries");
        Diagnostic::error(flag.span, message)
    })?;
    Ok(Some(number).filter(|number| *number > 0))
}
