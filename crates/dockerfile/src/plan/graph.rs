//! Stages, their names and numbers, and what depends on what.

use std::collections::{BTreeMap, BTreeSet};

use oci::Platform;

use super::origin::{Known, Origin, SCRATCH, is_later, origins};
use super::types::{
    BaseKey, BaseNeed, GraphArgument, GraphBase, GraphStage, NeedKind, PlanOptions, Replaced,
    Scope, StageGraph,
};
use super::{arguments, named};
use crate::ast::{Argument, Body, Dockerfile, Instruction, Word};
use crate::diagnostic::{Diagnostic, Span};
use crate::expand::{Budget, ExpandError, Lexer};
use crate::outline::{self, OutlineArgument};
use crate::suggest::did_you_mean;

/// Builds the graph.
pub(super) fn build(
    file: &Dockerfile,
    options: &PlanOptions,
) -> Result<StageGraph, Vec<Diagnostic>> {
    let globals = predefined(file, options);
    let mut builder = Builder {
        file,
        options,
        lexer: Lexer::new(file.escape),
        budget: Budget::default(),
        globals: globals.clone(),
        defaults: globals,
        declared: BTreeSet::new(),
        arguments: Vec::new(),
        used: BTreeSet::new(),
        stages: Vec::new(),
        names: BTreeMap::new(),
        warnings: Vec::new(),
        errors: Vec::new(),
    };
    for found in arguments::check(&options.build_args) {
        if found.is_error() {
            builder.errors.push(found);
        } else {
            builder.warnings.push(found);
        }
    }
    builder.read();
    let target = builder.target();
    let edges = builder.edges();
    if let Some(target) = target {
        builder.mark_reachable(target, &edges);
    }
    let (Some(target), true) = (target, builder.errors.is_empty()) else {
        builder.errors.sort_by_key(|error| error.span.start);
        return Err(builder.errors);
    };
    let needs = builder.needs(&edges);
    Ok(StageGraph {
        stages: builder.stages,
        target,
        needs,
        globals: builder.globals,
        arguments: builder.arguments,
        warnings: builder.warnings,
    })
}

/// Says what went wrong with expanding `word`.
pub(super) fn expansion_error(word: &Word, error: &ExpandError) -> Diagnostic {
    Diagnostic::error(word.span, error.to_string())
}

/// Returns the variables that are set before the first line, if an ARG asks for them.
fn predefined(file: &Dockerfile, options: &PlanOptions) -> BTreeMap<String, String> {
    let mut globals = BTreeMap::new();
    let platforms = [
        ("BUILD", &options.build_platform),
        ("TARGET", &options.platform),
    ];
    for (prefix, platform) in platforms {
        let mut set = |name: &str, value: &str| {
            globals.insert(format!("{prefix}{name}"), value.to_owned());
        };
        set("PLATFORM", &platform.to_string());
        set("OS", &platform.os);
        set(
            "OSVERSION",
            platform.os_version.as_deref().unwrap_or_default(),
        );
        set("ARCH", &platform.architecture);
        set("VARIANT", platform.variant.as_deref().unwrap_or_default());
    }
    let last = file.instructions.iter().rev().find_map(|instruction| {
        let Body::From { name, .. } = &instruction.body else {
            return None;
        };
        Some(name.as_ref().map(|name| name.text.as_str()))
    });
    let target = options.target.as_deref().or(last.flatten());
    let target = target.unwrap_or("default");
    globals.insert("TARGETSTAGE".to_owned(), target.to_owned());
    globals
        .into_iter()
        .map(|(name, value)| match options.build_args.get(&name) {
            Some(given) => (name, given.clone()),
            None => (name, value),
        })
        .collect()
}

/// What a stage depends on besides its base, and where it says so.
type Edges = Vec<Vec<Result<(Origin, Span), Diagnostic>>>;

pub(super) struct Builder<'a> {
    file: &'a Dockerfile,
    options: &'a PlanOptions,
    pub(super) lexer: Lexer,
    pub(super) budget: Budget,
    pub(super) globals: BTreeMap<String, String>,
    /// What they would be without build arguments.
    pub(super) defaults: BTreeMap<String, String>,
    /// The ARGs before the first FROM, with a value or without.
    pub(super) declared: BTreeSet<String>,
    arguments: Vec<GraphArgument>,
    /// The variables of the FROM that is being read.
    used: BTreeSet<String>,
    stages: Vec<GraphStage>,
    names: BTreeMap<String, usize>,
    pub(super) warnings: Vec<Diagnostic>,
    errors: Vec<Diagnostic>,
}

impl Builder<'_> {
    fn read(&mut self) {
        let file = self.file;
        for (index, instruction) in file.instructions.iter().enumerate() {
            let result = match &instruction.body {
                Body::From { image, name } => self.from(index, instruction, image, name.as_ref()),
                Body::Arg(arguments) if self.stages.is_empty() => {
                    self.global_args(instruction, arguments)
                }
                _ if self.stages.is_empty() => Err(Diagnostic::error(
                    instruction.keyword,
                    format!("{} before the first FROM", instruction.body.keyword()),
                )
                .with_hint("only ARG may come before FROM")),
                _ => {
                    let stage = self.stages.last_mut();
                    if let Some(stage) = stage.filter(|stage| stage.replaced == Replaced::No) {
                        stage.instructions.end = index + 1;
                    }
                    Ok(())
                }
            };
            self.errors.extend(result.err());
        }
        if self.stages.is_empty() && self.errors.is_empty() {
            let span = file.instructions.last().map(|last| last.keyword);
            self.errors.push(Diagnostic::error(
                span.unwrap_or_default(),
                "the Dockerfile has no FROM",
            ));
        }
    }

    fn expand(&self, word: &Word) -> Result<crate::expand::Expanded, Diagnostic> {
        self.lexer
            .expand(&word.text, &self.globals, &self.budget)
            .map_err(|error| expansion_error(word, &error))
    }

    fn global_args(
        &mut self,
        instruction: &Instruction,
        arguments: &[Argument],
    ) -> Result<(), Diagnostic> {
        for argument in arguments {
            let name = &argument.name.text;
            let mut uses = BTreeSet::new();
            let value = match (self.options.build_args.get(name), &argument.value) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(word)) => {
                    let expanded = self.expand(word)?;
                    uses = expanded.used;
                    Some(expanded.text)
                }
                (None, None) => None,
            };
            let noted = OutlineArgument {
                name: name.clone(),
                value: value.clone(),
                description: outline::described(instruction, name),
                span: instruction.span,
            };
            self.arguments.push(GraphArgument {
                argument: noted,
                uses,
            });
            if let Some(value) = value {
                self.globals.insert(name.clone(), value);
            }
            let default = argument.value.as_ref().map(|word| {
                let defaults = self.lexer.expand(&word.text, &self.defaults, &self.budget);
                defaults.map(|expanded| expanded.text)
            });
            if let Some(Ok(value)) = default {
                self.defaults.insert(name.clone(), value);
            }
            self.declared.insert(name.clone());
        }
        Ok(())
    }

    fn from(
        &mut self,
        index: usize,
        instruction: &Instruction,
        image: &Word,
        name: Option<&Word>,
    ) -> Result<(), Diagnostic> {
        // The stage is entered even when its base is wrong, so that numbers and names of the others stay right.
        let wanted = self.platform(instruction);
        let platform = wanted.as_ref().ok().cloned().flatten();
        let platform = platform.unwrap_or_else(|| self.options.platform.clone());
        let replacement = name.and_then(|name| named::base(self.options, &name.text, &platform));
        let replaced = match replacement {
            Some(_) => Replaced::Yes,
            None => Replaced::No,
        };
        let base = match replacement {
            Some(base) => Ok(base),
            None => self.base(image, &platform),
        };
        let n_stages = self.stages.len();
        if let Some(name) = name {
            self.names.insert(name.text.clone(), n_stages);
        }
        self.lint_default_base(image, instruction.span);
        // A stage of this file has its platform already; --platform on it changes nothing, as with BuildKit.
        let inherited = match &base {
            Ok(GraphBase::Stage(index)) => {
                self.stages.get(*index).map(|stage| stage.platform.clone())
            }
            _ => None,
        };
        let error = base.as_ref().err().cloned().or(wanted.err());
        self.stages.push(GraphStage {
            name: name.map(|word| word.text.clone()),
            base: base.unwrap_or(GraphBase::Scratch),
            platform: inherited.unwrap_or(platform),
            span: instruction.span,
            instructions: index + 1..index + 1,
            replaced,
            uses: std::mem::take(&mut self.used),
            reachable: false,
        });
        error.map_or(Ok(()), Err)
    }

    fn base(&mut self, image: &Word, platform: &Platform) -> Result<GraphBase, Diagnostic> {
        let expanded = self.expand(image)?;
        self.lint_undefined(image, &expanded);
        self.used.extend(expanded.used.iter().cloned());
        let text = expanded.text.as_str();
        if text.is_empty() {
            return Err(self.empty(
                image,
                &expanded.unset,
                "the name of the base image is empty",
            ));
        }
        let known = self.names.get(text);
        if let Some(index) = known.or_else(|| self.names.get(&text.to_ascii_lowercase())) {
            return Ok(GraphBase::Stage(*index));
        }
        if text == SCRATCH {
            return Ok(GraphBase::Scratch);
        }
        if let Some(base) = named::base(self.options, text, platform) {
            return Ok(base);
        }
        let reference = text.parse().map_err(|reason| {
            let names = self.names.keys().map(String::as_str);
            Diagnostic::error(image.span, format!("invalid base {text:?}: {reason}"))
                .with_hint_if(did_you_mean(text, names))
        })?;
        Ok(GraphBase::Image(BaseKey {
            reference,
            platform: platform.clone(),
            layout: None,
        }))
    }

    fn platform(&mut self, instruction: &Instruction) -> Result<Option<Platform>, Diagnostic> {
        let Some(flag) = instruction.flag("platform") else {
            return Ok(None);
        };
        let word = Word {
            text: flag.value.clone().unwrap_or_default(),
            span: flag.span,
        };
        if word.text.is_empty() {
            return Ok(None);
        }
        let expanded = self.expand(&word)?;
        self.lint_undefined(&word, &expanded);
        self.used.extend(expanded.used.iter().cloned());
        self.lint_platform(&word, &expanded, instruction);
        if expanded.text.is_empty() {
            return Err(self.empty(&word, &expanded.unset, "the platform is empty"));
        }
        let platform: Platform =
            expanded
                .text
                .parse()
                .map_err(|reason: oci::platform::PlatformError| {
                    Diagnostic::error(word.span, reason.to_string())
                })?;
        if platform.os != "linux" {
            let message = format!("platform {platform} is not supported yet: only linux is");
            return Err(Diagnostic::error(word.span, message));
        }
        Ok(Some(platform))
    }

    fn empty(&self, word: &Word, unset: &BTreeSet<String>, message: &str) -> Diagnostic {
        let error = Diagnostic::error(word.span, message);
        let Some(name) = unset.first() else {
            return error;
        };
        let near = did_you_mean(name, self.globals.keys().map(String::as_str));
        let hint = format!("{name} is not set; only an ARG before the first FROM can be used here");
        error.with_hint(near.unwrap_or(hint))
    }

    /// Returns the index of the stage to build.
    fn target(&mut self) -> Option<usize> {
        let Some(target) = &self.options.target else {
            return self.stages.len().checked_sub(1);
        };
        let by_name = self.names.get(&target.to_ascii_lowercase()).copied();
        let by_number = target.parse::<usize>().ok();
        let found = by_name.or(by_number.filter(|index| *index < self.stages.len()));
        if found.is_none() && !self.stages.is_empty() {
            let names = self.names.keys().map(String::as_str);
            let message = format!("there is no stage {target:?} to build");
            self.errors.push(
                Diagnostic::error(Span::default(), message)
                    .with_hint_if(did_you_mean(target, names)),
            );
        }
        found
    }

    fn edges(&mut self) -> Edges {
        let mut all = Vec::new();
        for (current, stage) in self.stages.iter().enumerate() {
            let known = Known {
                options: self.options,
                names: &self.names,
                n_stages: self.stages.len(),
                current,
            };
            let mut edges = Vec::new();
            let instructions = self.file.instructions.get(stage.instructions.clone());
            for instruction in instructions.unwrap_or_default() {
                match origins(instruction, &known) {
                    Ok(origins) => edges.extend(origins.into_iter().map(Ok)),
                    Err(error) if is_later(instruction, &known) => edges.push(Err(error)),
                    Err(error) => self.errors.push(error),
                }
            }
            all.push(edges);
        }
        all
    }

    fn mark_reachable(&mut self, target: usize, edges: &Edges) {
        let mut open = match self.options.scope {
            Scope::Needed => vec![target],
            Scope::All => (0..self.stages.len()).collect(),
        };
        while let Some(index) = open.pop() {
            let Some(stage) = self.stages.get_mut(index) else {
                continue;
            };
            if std::mem::replace(&mut stage.reachable, true) {
                continue;
            }
            if let GraphBase::Stage(base) = stage.base {
                open.push(base);
            }
            for edge in edges.get(index).into_iter().flatten() {
                match edge {
                    Ok((Origin::Stage(index), _)) => open.push(*index),
                    Ok(_) => {}
                    // Of a stage that nobody needs it is no matter, as with BuildKit.
                    Err(error) => self.errors.push(error.clone()),
                }
            }
        }
    }

    /// Returns the stage whose name is near that of an image.
    fn near(&self, key: &BaseKey) -> Option<String> {
        let name = key.reference.familiar();
        let name = name.split(':').next().unwrap_or_default();
        did_you_mean(name, self.names.keys().map(String::as_str))
    }

    fn needs(&self, edges: &Edges) -> Vec<BaseNeed> {
        let mut needs: Vec<BaseNeed> = Vec::new();
        let mut add = |need: BaseNeed| {
            if !needs.iter().any(|known| known.key == need.key) {
                needs.push(need);
            }
        };
        for (stage, edges) in self.stages.iter().zip(edges) {
            if !stage.reachable {
                continue;
            }
            if let GraphBase::Image(key) = &stage.base {
                add(BaseNeed {
                    key: key.clone(),
                    span: stage.span,
                    kind: NeedKind::From,
                    hint: self.near(key),
                });
            }
            for (origin, span) in edges.iter().flatten() {
                if let Origin::Image(key) = origin {
                    add(BaseNeed {
                        key: key.clone(),
                        span: *span,
                        kind: NeedKind::CopyFrom,
                        hint: self.near(key),
                    });
                }
            }
        }
        needs
    }
}
