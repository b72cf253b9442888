//! What a Dockerfile offers to whoever builds it: its targets, and the arguments and secrets of one of them.

use std::collections::{BTreeMap, BTreeSet};

use crate::ast::{Body, Dockerfile, Instruction};
use crate::diagnostic::Span;
use crate::plan::{Plan, StageGraph};

/// A stage that can be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// What `AS` says.
    pub name: Option<String>,
    /// What the comment above it says.
    pub description: Option<String>,
    /// What it starts from, as it is written.
    pub base: String,
    /// Its `--platform`, as it is written.
    pub platform: Option<String>,
    /// Its FROM.
    pub span: Span,
    /// True for the one that is built when none is asked for.
    pub is_default: bool,
}

/// What a target takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outline {
    /// The target's name.
    pub name: Option<String>,
    /// What the comment above it says.
    pub description: Option<String>,
    /// Its ARGs and those of the stages that it needs, in their order.
    pub arguments: Vec<OutlineArgument>,
    /// The secrets that its steps mount.
    pub secrets: Vec<OutlineMount>,
    /// The SSH agents that its steps mount.
    pub ssh: Vec<OutlineMount>,
}

/// An ARG.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlineArgument {
    /// Its name.
    pub name: String,
    /// Its value in this build, if it has one.
    pub value: Option<String>,
    /// What the comment above it says.
    pub description: Option<String>,
    /// Where it is declared.
    pub span: Span,
}

/// A secret or an SSH agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlineMount {
    /// Its id.
    pub id: String,
    /// True when the step fails without it.
    pub is_required: bool,
    /// Where it is mounted first.
    pub span: Span,
}

/// Returns all stages.
pub fn targets(file: &Dockerfile) -> Vec<Target> {
    let mut targets = Vec::new();
    for instruction in &file.instructions {
        let Body::From { image, name } = &instruction.body else {
            continue;
        };
        let name = name.as_ref().map(|name| name.text.clone());
        let flag = instruction.flag("platform");
        targets.push(Target {
            description: name
                .as_deref()
                .and_then(|name| described(instruction, name)),
            name,
            base: image.text.clone(),
            platform: flag.and_then(|flag| flag.value.clone()),
            span: instruction.span,
            is_default: false,
        });
    }
    if let Some(last) = targets.last_mut() {
        last.is_default = true;
    }
    targets
}

/// Returns what the target of `plan` takes.
pub fn outline(file: &Dockerfile, graph: &StageGraph, plan: &Plan) -> Outline {
    let target = targets(file).into_iter().nth(graph.target);
    let mut outline = Outline {
        name: target.as_ref().and_then(|target| target.name.clone()),
        description: target.and_then(|target| target.description),
        ..Outline::default()
    };
    let mut arguments = BTreeMap::new();
    let mut wanted = BTreeSet::new();
    for stage in &plan.stages {
        wanted.extend(stage.inherited.iter().cloned());
        for argument in &stage.arguments {
            let known = arguments.entry(argument.name.clone());
            known.or_insert_with(|| argument.clone());
        }
        if let Some(of_file) = graph.stages.get(stage.declared_index) {
            wanted.extend(of_file.uses.iter().cloned());
            let own = file.instructions.get(of_file.instructions.clone());
            for instruction in own.unwrap_or_default() {
                mounts(instruction, &mut outline);
            }
        }
    }
    // From the last one back: an ARG can only use earlier ones.
    for argument in graph.arguments.iter().rev() {
        if wanted.contains(&argument.argument.name) {
            wanted.extend(argument.uses.iter().cloned());
            let known = arguments.entry(argument.argument.name.clone());
            known.or_insert_with(|| argument.argument.clone());
        }
    }
    outline.arguments = arguments.into_values().collect();
    outline
        .arguments
        .sort_by_key(|argument| argument.span.start);
    outline
}

/// Returns what the comments above `instruction` say about `name`.
pub(crate) fn described(instruction: &Instruction, name: &str) -> Option<String> {
    let mut comments = instruction.comments.iter();
    comments.find_map(|comment| {
        let rest = comment.strip_prefix(name)?.strip_prefix(' ')?;
        Some(rest.to_owned())
    })
}

fn mounts(instruction: &Instruction, outline: &mut Outline) {
    let flags = instruction.flags.iter().filter(|flag| flag.name == "mount");
    for flag in flags {
        let pairs: BTreeMap<&str, &str> = flag
            .value
            .as_deref()
            .unwrap_or_default()
            .split(',')
            .map(|field| field.split_once('=').unwrap_or((field, "true")))
            .collect();
        let get = |names: &[&str]| names.iter().find_map(|name| pairs.get(name).copied());
        let (list, default) = match get(&["type"]) {
            Some("secret") => (&mut outline.secrets, None),
            Some("ssh") => (&mut outline.ssh, Some("default")),
            _ => continue,
        };
        let target = get(&["target", "dst", "destination"]);
        let of_target = target.and_then(|target| target.rsplit('/').next());
        let Some(id) = get(&["id", "source", "src"]).or(default).or(of_target) else {
            continue;
        };
        let is_required = get(&["required"]).is_some_and(|value| value == "true" || value == "1");
        match list.iter_mut().find(|known| known.id == id) {
            Some(known) => known.is_required |= is_required,
            None => list.push(OutlineMount {
                id: id.to_owned(),
                is_required,
                span: flag.span,
            }),
        }
    }
}
