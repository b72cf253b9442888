//! One stage: its instructions carried out on a configuration, in order.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use oci::{History, ImageConfig, Platform};

use super::environment::Scope;
use super::graph::expansion_error;
use super::lint::{Seen, UNDEFINED_MAX};
use super::origin::Known;
use super::trigger::Work;
use super::types::{
    Base, BaseKey, BaseRef, CopyFrom, CopyOp, GraphBase, GraphStage, Op, PlanOptions, PlanStage,
    StageGraph, StageIndex, Step,
};
use crate::ast::{Body, Dockerfile, Instruction, Word};
use crate::diagnostic::{Diagnostic, Span};
use crate::expand::{Budget, Expanded, Lexer};
use crate::limits::{CONFIG_MAX_BYTES, DIAGNOSTICS_MAX, ENVIRONMENT_MAX_BYTES, PLAN_MAX_BYTES};
use crate::outline::OutlineArgument;

/// What `BuildKit` writes into every entry of the history.
const HISTORY_COMMENT: &str = "buildkit.dockerfile.v0";
/// PATH where a base sets none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What the shell form is passed to where no SHELL says otherwise.
const DEFAULT_SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// What all stages of a plan have in common.
pub(super) struct Shared<'a> {
    pub(super) options: &'a PlanOptions,
    pub(super) globals: &'a BTreeMap<String, String>,
    pub(super) names: &'a BTreeMap<String, usize>,
    pub(super) n_stages: usize,
    pub(super) lexer: Lexer,
    pub(super) budget: Budget,
    plan_bytes: Cell<usize>,
    /// Broken rules that were told.
    pub(super) n_lints: Cell<usize>,
    /// Undefined variables for which a near name was looked for.
    pub(super) n_suggested: Cell<usize>,
}

/// What a stage hands on to those that start from it.
#[derive(Clone)]
struct Handed {
    scope: Scope,
    config: ImageConfig,
    build_args: Vec<(String, Option<String>)>,
    declared: BTreeSet<String>,
    seen: Seen,
}

/// Plans all needed stages.
pub(super) fn plan_all(
    file: &Dockerfile,
    graph: &StageGraph,
    options: &PlanOptions,
    bases: &BTreeMap<BaseKey, Base>,
    work: &Work,
) -> Result<(Vec<PlanStage>, Vec<Diagnostic>, StageIndex), Vec<Diagnostic>> {
    let shared = Shared {
        options,
        globals: &graph.globals,
        names: &work.names,
        n_stages: graph.stages.len(),
        lexer: Lexer::new(file.escape),
        budget: Budget::default(),
        plan_bytes: Cell::new(0),
        n_lints: Cell::new(0),
        n_suggested: Cell::new(0),
    };
    let mut planned: Vec<PlanStage> = Vec::new();
    let needed = work.reachable.iter().enumerate();
    let needed = needed.filter_map(|(index, reachable)| reachable.then_some(index));
    let indices: BTreeMap<usize, StageIndex> = needed
        .enumerate()
        .map(|(place, index)| (index, StageIndex(place)))
        .collect();
    let mut handed: BTreeMap<usize, Handed> = BTreeMap::new();
    let mut warnings = Vec::new();
    let mut errors = Vec::new();
    for (index, stage) in graph.stages.iter().enumerate() {
        if !indices.contains_key(&index) {
            continue;
        }
        let parent = match stage.base {
            GraphBase::Stage(parent) => handed.get(&parent),
            _ => None,
        };
        let mut current = Stage::new(&shared, &indices, index, stage, bases, parent);
        let own = file.instructions.get(stage.instructions.clone());
        let triggers = work.triggers.get(index).map(Vec::as_slice);
        if let GraphBase::Files(name) = &stage.base {
            current.start_from_files(name, stage);
        }
        if let GraphBase::Image(key) = &stage.base {
            current.lint_base(stage.span, &key.platform);
        }
        current.in_triggers = true;
        current.run(triggers.unwrap_or_default(), &mut errors);
        current.in_triggers = false;
        current.run(own.unwrap_or_default(), &mut errors);
        current.seal();
        if index == graph.target {
            let labels = &mut current.config.config.labels;
            labels.extend(options.labels.clone());
        }
        warnings.append(&mut current.warnings);
        handed.insert(index, current.hand_on());
        planned.push(current.finish(index, stage));
    }
    let target = indices.get(&graph.target).copied();
    match target {
        Some(target) if errors.is_empty() => Ok((planned, warnings, target)),
        _ => Err(errors),
    }
}

/// A stage being planned.
pub(super) struct Stage<'a> {
    pub(super) shared: &'a Shared<'a>,
    pub(super) indices: &'a BTreeMap<usize, StageIndex>,
    pub(super) index: usize,
    pub(super) platform: Platform,
    pub(super) scope: Scope,
    pub(super) config: ImageConfig,
    /// ENV of the image; written into the configuration at the end, because that keeps a list, which is slow to search.
    pub(super) image_env: Scope,
    /// The ARGs declared so far.
    pub(super) declared: BTreeSet<String>,
    /// The same and their values, in their order.
    pub(super) build_args: Vec<(String, Option<String>)>,
    pub(super) cmd_is_set: bool,
    pub(super) seen: Seen,
    pub(super) arguments: Vec<OutlineArgument>,
    pub(super) inherited: BTreeSet<String>,
    /// Variables that were asked for and not defined, since they were last told about.
    pub(super) undefined: RefCell<Vec<(String, Span)>>,
    pub(super) warnings: Vec<Diagnostic>,
    base: BaseRef,
    shell: Arc<Vec<String>>,
    n_base_history: usize,
    in_triggers: bool,
    first_number: usize,
    steps: Vec<Step>,
    config_bytes: usize,
}

impl<'a> Stage<'a> {
    fn new(
        shared: &'a Shared<'a>,
        indices: &'a BTreeMap<usize, StageIndex>,
        index: usize,
        stage: &GraphStage,
        bases: &BTreeMap<BaseKey, Base>,
        parent: Option<&Handed>,
    ) -> Self {
        let scratch = || {
            let mut config = ImageConfig::scratch(&stage.platform);
            "/".clone_into(&mut config.config.working_dir);
            config
        };
        let (base, mut config) = match &stage.base {
            GraphBase::Scratch | GraphBase::Files(_) => (BaseRef::Scratch, scratch()),
            GraphBase::Image(key) => {
                let config = bases.get(key).map(|base| base.config.clone());
                (BaseRef::Image(key.clone()), config.unwrap_or_else(scratch))
            }
            GraphBase::Stage(parent) => match indices.get(parent) {
                Some(index) => (BaseRef::Stage(*index), scratch()),
                None => (BaseRef::Scratch, scratch()),
            },
        };
        let (mut scope, mut build_args) = (Scope::default(), Vec::new());
        if let Some(parent) = parent {
            config.clone_from(&parent.config);
            scope.clone_from(&parent.scope);
            build_args.clone_from(&parent.build_args);
        }
        config.created = None;
        config.config.on_build.clear();
        if config.config.env_value("PATH").is_none() {
            config.config.set_env("PATH", DEFAULT_PATH);
        }
        let mut image_env = Scope::default();
        for pair in &config.config.env {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            scope.set(name, value);
            image_env.set(name, value);
        }
        if !config.config.working_dir.is_empty() {
            config.config.working_dir = crate::path::join("/", &config.config.working_dir);
        }
        let shell = if config.config.shell.is_empty() {
            DEFAULT_SHELL.map(str::to_owned).to_vec()
        } else {
            config.config.shell.clone()
        };
        Self {
            shared,
            indices,
            index,
            platform: stage.platform.clone(),
            scope,
            image_env,
            n_base_history: config.history.len(),
            config,
            build_args,
            cmd_is_set: false,
            seen: parent.map(|parent| parent.seen.clone()).unwrap_or_default(),
            undefined: RefCell::default(),
            declared: parent
                .map(|parent| parent.declared.clone())
                .unwrap_or_default(),
            arguments: Vec::new(),
            inherited: BTreeSet::new(),
            warnings: Vec::new(),
            first_number: usize::from(matches!(base, BaseRef::Image(_))) + 1,
            base,
            shell: Arc::new(shell),
            in_triggers: false,
            steps: Vec::new(),
            config_bytes: 0,
        }
    }

    fn run(&mut self, instructions: &[Instruction], errors: &mut Vec<Diagnostic>) {
        for instruction in instructions {
            if errors.len() >= DIAGNOSTICS_MAX {
                return;
            }
            errors.extend(self.instruction(instruction).err());
        }
    }

    fn instruction(&mut self, instruction: &Instruction) -> Result<(), Diagnostic> {
        self.lint(instruction);
        match &instruction.body {
            Body::Run(command) => self.run_command(instruction, command),
            Body::Copy(transfer) | Body::Add(transfer) => self.copy(instruction, transfer),
            Body::Workdir(path) => self.workdir(instruction, path),
            _ => self.setting(instruction),
        }?;
        self.lint_undefined();
        self.check_size(instruction)
    }

    fn check_size(&self, instruction: &Instruction) -> Result<(), Diagnostic> {
        let exceeded = if self.scope.size_bytes() > ENVIRONMENT_MAX_BYTES {
            format!("the variables of this stage take more than {ENVIRONMENT_MAX_BYTES} bytes")
        } else if self.config_bytes > CONFIG_MAX_BYTES {
            format!(
                "this stage adds more than {CONFIG_MAX_BYTES} bytes to the image's configuration"
            )
        } else if self.shared.plan_bytes.get() > PLAN_MAX_BYTES {
            format!("the steps of this Dockerfile take more than {PLAN_MAX_BYTES} bytes")
        } else {
            return Ok(());
        };
        Err(Diagnostic::error(instruction.keyword, exceeded))
    }

    /// Counts what the plan holds.
    pub(super) fn add_plan_bytes(&self, n_bytes: usize) {
        let sum = self.shared.plan_bytes.get().saturating_add(n_bytes);
        self.shared.plan_bytes.set(sum);
    }

    /// Counts what the configuration holds.
    pub(super) fn add_config_bytes(&mut self, n_bytes: usize) {
        self.config_bytes = self.config_bytes.saturating_add(n_bytes);
    }

    /// Tells whether the stage may not grow any more, so that loops within one instruction can stop.
    pub(super) fn is_full(&self) -> bool {
        self.config_bytes > CONFIG_MAX_BYTES || self.scope.size_bytes() > ENVIRONMENT_MAX_BYTES
    }

    /// Returns what `word` becomes here.
    pub(super) fn expand(&self, word: &Word) -> Result<Expanded, Diagnostic> {
        let expanded = self
            .shared
            .lexer
            .expand(&word.text, &self.scope, &self.shared.budget)
            .map_err(|error| expansion_error(word, &error))?;
        self.note_unset(&expanded, word.span);
        Ok(expanded)
    }

    /// Notes the variables that were asked for at `span` and are not set.
    pub(super) fn note_unset(&self, expanded: &Expanded, span: Span) {
        let mut undefined = self.undefined.borrow_mut();
        for name in &expanded.unset {
            if undefined.len() >= UNDEFINED_MAX {
                return;
            }
            if !self.declared.contains(name) {
                undefined.push((name.clone(), span));
            }
        }
    }

    /// Sets a variable, for expansion and for commands.
    pub(super) fn set_variable(&mut self, name: &str, value: &str) {
        if self.scope.is_shared() {
            self.add_plan_bytes(self.scope.size_bytes());
        }
        self.scope.set(name, value);
    }

    /// Returns what `--from` may name here.
    pub(super) fn known(&self) -> Known<'a> {
        Known {
            options: self.shared.options,
            names: self.shared.names,
            n_stages: self.shared.n_stages,
            current: self.index,
        }
    }

    /// Returns the shell of the shell form followed by `script`.
    pub(super) fn with_shell(&self, script: &str) -> Vec<String> {
        let shell = self.shell.iter().cloned();
        shell.chain([script.to_owned()]).collect()
    }

    /// Sets the shell of the shell form.
    pub(super) fn set_shell(&mut self, shell: &[String]) {
        self.shell = Arc::new(shell.to_vec());
    }

    /// Returns the working directory, absolute.
    pub(super) fn directory(&self) -> &str {
        match self.config.config.working_dir.as_str() {
            "" | "/" => "/",
            path => path.strip_suffix('/').unwrap_or(path),
        }
    }

    /// Adds an entry to the history.
    pub(super) fn record(&mut self, created_by: String, makes_layer: Layer) {
        self.add_config_bytes(created_by.len() + HISTORY_COMMENT.len());
        self.add_plan_bytes(created_by.len());
        self.config.history.push(History {
            created_by: Some(created_by),
            comment: Some(HISTORY_COMMENT.to_owned()),
            empty_layer: (makes_layer == Layer::No).then_some(true),
            ..History::default()
        });
    }

    /// Adds a step and its entry in the history.
    pub(super) fn add_step(
        &mut self,
        instruction: &Instruction,
        op: Op,
        text: String,
        created_by: String,
    ) {
        self.add_step_at(instruction.span, op, text, created_by);
    }

    fn add_step_at(&mut self, span: Span, op: Op, text: String, created_by: String) {
        self.record(created_by, Layer::Yes);
        self.add_plan_bytes(text.len());
        self.steps.push(Step {
            number: self.first_number + self.steps.len(),
            text,
            span,
            from_trigger: self.in_triggers,
            op,
            history_index: self.config.history.len() - 1,
            env: self.scope.snapshot(),
            user: self.config.config.user.clone(),
            workdir: self.directory().to_owned(),
            shell: Arc::clone(&self.shell),
        });
    }

    /// Begins with the files of a named context.
    fn start_from_files(&mut self, name: &str, stage: &GraphStage) {
        let text = format!("FROM {name}");
        let op = Op::Copy(Box::new(CopyOp::everything(CopyFrom::Named(
            name.to_owned(),
        ))));
        self.add_step_at(stage.span, op, text.clone(), text);
    }

    fn seal(&mut self) {
        let pairs = self.image_env.snapshot();
        let pairs = pairs.iter().map(|(name, value)| format!("{name}={value}"));
        self.config.config.env = pairs.collect();
    }

    fn hand_on(&self) -> Handed {
        Handed {
            scope: self.scope.clone(),
            config: self.config.clone(),
            build_args: self.build_args.clone(),
            declared: self.declared.clone(),
            seen: self.seen.handed_on(),
        }
    }

    fn finish(self, index: usize, stage: &GraphStage) -> PlanStage {
        let display_name = match &stage.name {
            _ if self.shared.n_stages == 1 => String::new(),
            Some(name) => name.clone(),
            None => format!("stage-{index}"),
        };
        PlanStage {
            name: stage.name.clone(),
            declared_index: index,
            display_name,
            span: stage.span,
            base: self.base,
            platform: self.platform,
            n_numbered: self.first_number - 1 + self.steps.len(),
            steps: self.steps,
            config: self.config,
            n_base_history: self.n_base_history,
            arguments: self.arguments,
            inherited: self.inherited,
        }
    }
}

/// Whether an entry of the history stands for a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layer {
    Yes,
    No,
}

/// Returns the instruction as it is shown: its word in upper case, then its text.
pub(super) fn shown(instruction: &Instruction) -> String {
    let keyword = instruction.body.keyword();
    let rest = instruction.text.get(keyword.len()..).unwrap_or_default();
    format!("{keyword}{rest}")
}
