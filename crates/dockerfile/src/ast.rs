//! The instructions of a Dockerfile as they stand in it: nothing expanded, nothing resolved, every word with its place.

use crate::diagnostic::Span;

/// A parsed Dockerfile.
#[derive(Debug, Clone, PartialEq)]
pub struct Dockerfile {
    /// What `# escape=` says, else a backslash.
    pub escape: char,
    /// What `# syntax=` says.
    pub syntax: Option<Word>,
    /// What `# check=` says.
    pub check: Option<Word>,
    /// The instructions in their order.
    pub instructions: Vec<Instruction>,
}

/// A piece of text and its place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Word {
    /// The text with its quotes, escapes and variables, continuation lines joined.
    pub text: String,
    /// Where it stands.
    pub span: Span,
}

/// One instruction.
#[derive(Debug, Clone, PartialEq)]
pub struct Instruction {
    /// What it says.
    pub body: Body,
    /// `--name=value`, in their order.
    pub flags: Vec<Flag>,
    /// The whole instruction as text, continuation lines joined, without heredoc bodies.
    pub text: String,
    /// The whole instruction, heredoc bodies included.
    pub span: Span,
    /// Its first word.
    pub keyword: Span,
    /// The bodies of its heredocs.
    pub heredocs: Vec<Heredoc>,
    /// The comments right above it, without their `#`.
    pub comments: Vec<String>,
    /// What `# check=` right above it says.
    pub check: Option<Word>,
}

impl Instruction {
    /// Returns the flag called `name`, the last one if it was given several times.
    pub fn flag(&self, name: &str) -> Option<&Flag> {
        self.flags.iter().rev().find(|flag| flag.name == name)
    }
}

/// A flag of an instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// Without the dashes.
    pub name: String,
    /// What follows `=`; `None` without one.
    pub value: Option<String>,
    /// Where it stands.
    pub span: Span,
}

/// A heredoc: `<<NAME` on the instruction's line and the lines up to `NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// The word that ends it.
    pub name: String,
    /// The lines, line ends included; leading tabs are still there.
    pub content: String,
    /// `<<-`: leading tabs do not count.
    pub chomp: bool,
    /// True when the name was not quoted: variables within are expanded (by COPY and ADD; a shell does it for RUN).
    pub expand: bool,
    /// Where the lines stand.
    pub span: Span,
}

impl Heredoc {
    /// Returns the content, leading tabs stripped where `<<-` asks for it.
    pub fn text(&self) -> String {
        if !self.chomp {
            return self.content.clone();
        }
        self.content
            .split_inclusive('\n')
            .map(|line| line.trim_start_matches('\t'))
            .collect()
    }
}

/// What an instruction says.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// `FROM image [AS name]`.
    From {
        /// Image, stage or `scratch`.
        image: Word,
        /// Name of the stage, in lower case.
        name: Option<Word>,
    },
    /// `ARG name[=value] …`.
    Arg(Vec<Argument>),
    /// `ENV name=value …`.
    Env(Vec<Pair>),
    /// `LABEL name=value …`.
    Label(Vec<Pair>),
    /// `MAINTAINER text`.
    Maintainer(Word),
    /// `RUN command`.
    Run(CommandLine),
    /// `CMD command`.
    Cmd(CommandLine),
    /// `ENTRYPOINT command`.
    Entrypoint(CommandLine),
    /// `COPY source … destination`.
    Copy(Transfer),
    /// `ADD source … destination`.
    Add(Transfer),
    /// `WORKDIR path`.
    Workdir(Word),
    /// `USER name[:group]`.
    User(Word),
    /// `EXPOSE port …`.
    Expose(Vec<Word>),
    /// `VOLUME path …`.
    Volume(Vec<Word>),
    /// `STOPSIGNAL signal`.
    StopSignal(Word),
    /// `SHELL ["program", …]`.
    Shell(Vec<String>),
    /// `HEALTHCHECK NONE` (`None`) or `HEALTHCHECK CMD command`.
    Healthcheck(Option<CommandLine>),
    /// `ONBUILD instruction`.
    OnBuild(Box<OnBuild>),
}

impl Body {
    /// Returns the instruction's word in upper case.
    pub fn keyword(&self) -> &'static str {
        match self {
            Self::From { .. } => "FROM",
            Self::Arg(_) => "ARG",
            Self::Env(_) => "ENV",
            Self::Label(_) => "LABEL",
            Self::Maintainer(_) => "MAINTAINER",
            Self::Run(_) => "RUN",
            Self::Cmd(_) => "CMD",
            Self::Entrypoint(_) => "ENTRYPOINT",
            Self::Copy(_) => "COPY",
            Self::Add(_) => "ADD",
            Self::Workdir(_) => "WORKDIR",
            Self::User(_) => "USER",
            Self::Expose(_) => "EXPOSE",
            Self::Volume(_) => "VOLUME",
            Self::StopSignal(_) => "STOPSIGNAL",
            Self::Shell(_) => "SHELL",
            Self::Healthcheck(_) => "HEALTHCHECK",
            Self::OnBuild(_) => "ONBUILD",
        }
    }
}

/// `name[=value]` of an ARG.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argument {
    /// The name.
    pub name: Word,
    /// The default.
    pub value: Option<Word>,
}

/// `name=value` of an ENV or LABEL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The name.
    pub name: Word,
    /// The value.
    pub value: Word,
    /// True for the old form `ENV name value`.
    pub legacy: bool,
}

/// A command in one of its two forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandLine {
    /// A text for a shell.
    Shell(Word),
    /// `["program", "argument", …]`.
    Exec {
        /// The program and its arguments.
        args: Vec<String>,
        /// Where the list stands.
        span: Span,
    },
}

/// What COPY and ADD move, and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// Paths, patterns and URLs.
    pub sources: Vec<Word>,
    /// Files whose content stands in the Dockerfile; each name is the one of a heredoc of the instruction.
    pub inline: Vec<Word>,
    /// Where to.
    pub destination: Word,
    /// True when it was written as a JSON list.
    pub is_list: bool,
}

/// An instruction for those who build on this image.
#[derive(Debug, Clone, PartialEq)]
pub struct OnBuild {
    /// The instruction as text, heredocs included: what is written into the image.
    pub expression: String,
    /// The instruction.
    pub instruction: Instruction,
}
