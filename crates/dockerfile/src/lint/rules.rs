//! The rules: their names and links are those of the Dockerfile reference, so that `# check=skip=…` means the same everywhere.

/// A rule that a Dockerfile may break and still be built.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name in the Dockerfile reference.
    pub name: &'static str,
    /// What it asks for.
    pub description: &'static str,
    /// Where it is explained; empty where it is not.
    pub url: &'static str,
    /// Whether it has to be asked for.
    pub kind: RuleKind,
}

/// Whether a rule has to be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleKind {
    /// It holds unless it is skipped.
    Usual,
    /// It holds where `experimental=` names it.
    Experimental,
}

/// A name of a stage in upper case.
pub static STAGE_NAME_CASING: Rule = Rule {
    name: "StageNameCasing",
    description: "names of stages are in lower case",
    url: "https://docs.docker.com/go/dockerfile/rule/stage-name-casing/",
    kind: RuleKind::Usual,
};
/// `FROM` and `as` in different case.
pub static FROM_AS_CASING: Rule = Rule {
    name: "FromAsCasing",
    description: "FROM and AS are written in the same case",
    url: "https://docs.docker.com/go/dockerfile/rule/from-as-casing/",
    kind: RuleKind::Usual,
};
/// An empty line within an instruction.
pub static NO_EMPTY_CONTINUATION: Rule = Rule {
    name: "NoEmptyContinuation",
    description: "an instruction that goes on over several lines has no empty line in it",
    url: "https://docs.docker.com/go/dockerfile/rule/no-empty-continuation/",
    kind: RuleKind::Usual,
};
/// Instructions in different case.
pub static CONSISTENT_INSTRUCTION_CASING: Rule = Rule {
    name: "ConsistentInstructionCasing",
    description: "all instructions are written in the same case, upper or lower",
    url: "https://docs.docker.com/go/dockerfile/rule/consistent-instruction-casing/",
    kind: RuleKind::Usual,
};
/// Two stages of one name.
pub static DUPLICATE_STAGE_NAME: Rule = Rule {
    name: "DuplicateStageName",
    description: "every stage has a name of its own",
    url: "https://docs.docker.com/go/dockerfile/rule/duplicate-stage-name/",
    kind: RuleKind::Usual,
};
/// A stage called `scratch` or `context`.
pub static RESERVED_STAGE_NAME: Rule = Rule {
    name: "ReservedStageName",
    description: "no stage has a name that means something else",
    url: "https://docs.docker.com/go/dockerfile/rule/reserved-stage-name/",
    kind: RuleKind::Usual,
};
/// CMD or ENTRYPOINT for a shell.
pub static JSON_ARGS_RECOMMENDED: Rule = Rule {
    name: "JSONArgsRecommended",
    description: "CMD and ENTRYPOINT are lists, so that signals reach the program and not a shell",
    url: "https://docs.docker.com/go/dockerfile/rule/json-args-recommended/",
    kind: RuleKind::Usual,
};
/// MAINTAINER.
pub static MAINTAINER_DEPRECATED: Rule = Rule {
    name: "MaintainerDeprecated",
    description: "the author is named by a label, not by MAINTAINER",
    url: "https://docs.docker.com/go/dockerfile/rule/maintainer-deprecated/",
    kind: RuleKind::Usual,
};
/// A variable of FROM that nothing declares.
pub static UNDEFINED_ARG_IN_FROM: Rule = Rule {
    name: "UndefinedArgInFrom",
    description: "variables of FROM are declared by an ARG before it",
    url: "https://docs.docker.com/go/dockerfile/rule/undefined-arg-in-from/",
    kind: RuleKind::Usual,
};
/// A relative WORKDIR after none.
pub static WORKDIR_RELATIVE_PATH: Rule = Rule {
    name: "WorkdirRelativePath",
    description: "the first WORKDIR is absolute, so that it does not depend on the base",
    url: "https://docs.docker.com/go/dockerfile/rule/workdir-relative-path/",
    kind: RuleKind::Usual,
};
/// A variable that nothing declares.
pub static UNDEFINED_VAR: Rule = Rule {
    name: "UndefinedVar",
    description: "variables are declared before they are used",
    url: "https://docs.docker.com/go/dockerfile/rule/undefined-var/",
    kind: RuleKind::Usual,
};
/// Two CMDs in one stage.
pub static MULTIPLE_INSTRUCTIONS_DISALLOWED: Rule = Rule {
    name: "MultipleInstructionsDisallowed",
    description: "a stage has one CMD, one ENTRYPOINT and one HEALTHCHECK: only the last one counts",
    url: "https://docs.docker.com/go/dockerfile/rule/multiple-instructions-disallowed/",
    kind: RuleKind::Usual,
};
/// `ENV name value`.
pub static LEGACY_KEY_VALUE_FORMAT: Rule = Rule {
    name: "LegacyKeyValueFormat",
    description: "ENV and LABEL are written with an equals sign",
    url: "https://docs.docker.com/go/dockerfile/rule/legacy-key-value-format/",
    kind: RuleKind::Usual,
};
/// A base for another machine.
pub static INVALID_BASE_IMAGE_PLATFORM: Rule = Rule {
    name: "InvalidBaseImagePlatform",
    description: "the base image is made for the platform that is asked for",
    url: "",
    kind: RuleKind::Usual,
};
/// `--platform=$TARGETPLATFORM`.
pub static REDUNDANT_TARGET_PLATFORM: Rule = Rule {
    name: "RedundantTargetPlatform",
    description: "FROM does not name the platform that it has anyway",
    url: "https://docs.docker.com/go/dockerfile/rule/redundant-target-platform/",
    kind: RuleKind::Usual,
};
/// A secret that stays in the image.
pub static SECRETS_USED_IN_ARG_OR_ENV: Rule = Rule {
    name: "SecretsUsedInArgOrEnv",
    description: "secrets are mounted, not passed by ARG or ENV, which stay in the image",
    url: "https://docs.docker.com/go/dockerfile/rule/secrets-used-in-arg-or-env/",
    kind: RuleKind::Usual,
};
/// An ARG whose default makes no base.
pub static INVALID_DEFAULT_ARG_IN_FROM: Rule = Rule {
    name: "InvalidDefaultArgInFrom",
    description: "without build arguments, FROM still names an image",
    url: "https://docs.docker.com/go/dockerfile/rule/invalid-default-arg-in-from/",
    kind: RuleKind::Usual,
};
/// `--platform=linux/amd64`.
pub static FROM_PLATFORM_FLAG_CONST_DISALLOWED: Rule = Rule {
    name: "FromPlatformFlagConstDisallowed",
    description: "the platform of FROM is a variable, or told by the name of the stage",
    url: "https://docs.docker.com/go/dockerfile/rule/from-platform-flag-const-disallowed/",
    kind: RuleKind::Usual,
};
/// A source that the ignore file hides.
pub static COPY_IGNORED_FILE: Rule = Rule {
    name: "CopyIgnoredFile",
    description: "what is copied is not hidden by .dockerignore",
    url: "https://docs.docker.com/go/dockerfile/rule/copy-ignored-file/",
    kind: RuleKind::Usual,
};
/// A comment that describes nothing.
pub static INVALID_DEFINITION_DESCRIPTION: Rule = Rule {
    name: "InvalidDefinitionDescription",
    description: "a comment right above a stage or ARG begins with its name",
    url: "https://docs.docker.com/go/dockerfile/rule/invalid-definition-description/",
    kind: RuleKind::Experimental,
};
/// `EXPOSE 80/TCP`.
pub static EXPOSE_PROTO_CASING: Rule = Rule {
    name: "ExposeProtoCasing",
    description: "the protocol of EXPOSE is in lower case",
    url: "https://docs.docker.com/go/dockerfile/rule/expose-proto-casing/",
    kind: RuleKind::Usual,
};
/// `EXPOSE 127.0.0.1:80:80`.
pub static EXPOSE_INVALID_FORMAT: Rule = Rule {
    name: "ExposeInvalidFormat",
    description: "EXPOSE names ports of the container alone",
    url: "https://docs.docker.com/go/dockerfile/rule/expose-invalid-format/",
    kind: RuleKind::Usual,
};

/// Every rule.
pub static ALL: [&Rule; 22] = [
    &STAGE_NAME_CASING,
    &FROM_AS_CASING,
    &NO_EMPTY_CONTINUATION,
    &CONSISTENT_INSTRUCTION_CASING,
    &DUPLICATE_STAGE_NAME,
    &RESERVED_STAGE_NAME,
    &JSON_ARGS_RECOMMENDED,
    &MAINTAINER_DEPRECATED,
    &UNDEFINED_ARG_IN_FROM,
    &WORKDIR_RELATIVE_PATH,
    &UNDEFINED_VAR,
    &MULTIPLE_INSTRUCTIONS_DISALLOWED,
    &LEGACY_KEY_VALUE_FORMAT,
    &INVALID_BASE_IMAGE_PLATFORM,
    &REDUNDANT_TARGET_PLATFORM,
    &SECRETS_USED_IN_ARG_OR_ENV,
    &INVALID_DEFAULT_ARG_IN_FROM,
    &FROM_PLATFORM_FLAG_CONST_DISALLOWED,
    &COPY_IGNORED_FILE,
    &INVALID_DEFINITION_DESCRIPTION,
    &EXPOSE_PROTO_CASING,
    &EXPOSE_INVALID_FORMAT,
];
