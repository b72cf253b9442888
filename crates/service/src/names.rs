//! Names of images, and the identities of requests. Pure.
//!
//! The published names are an alias that callers compute and store: they cover five of a request's inputs and none of its content.
//! What is reused is therefore never decided by a name alone but by [`Inputs::identity`], which covers everything that changes what is
//! built; see [`crate::builds::provenance`].

use oci::{Digest, Reference};
use serde::Serialize;
use source::initializer::Initializer;

use crate::access::Tenant;
use crate::request::Source;

/// What the published service calls the version of its build process; part of every workspace image's name.
const WORKSPACE_BUILD_VERSION: &str = "2";

/// The request's fields that the published name of a base image is made of, exactly as they were sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct NamedFields {
    /// `clone_taget` of the git initializer.
    pub clone_target: String,
    /// `context_path` of the source.
    pub context_path: String,
    /// `dockerfile_path` of the source.
    pub dockerfile_path: String,
    /// `dockerfile_version` of the source.
    pub dockerfile_version: String,
    /// `remote_uri` of the git initializer.
    pub remote_uri: String,
}

/// Returns the tag of a base image: of the trusted caller's as published; of any other tenant's over all inputs and the tenant.
pub fn base_tag(fields: &NamedFields, tenant: &Tenant, inputs: &Inputs<'_>) -> String {
    let initializer = match inputs.source {
        Source::File(file) => Some(&file.initializer),
        Source::Image(_) => None,
    };
    let mut lines = vec![
        ("ContextPath", fields.context_path.as_str()),
        ("DockerfilePath", &fields.dockerfile_path),
        ("DockerfileVersion", &fields.dockerfile_version),
    ];
    let (identity, text);
    match initializer {
        None | Some(Initializer::Git(_)) => lines.extend([
            ("CloneTarget", fields.clone_target.as_str()),
            ("RemoteURI", &fields.remote_uri),
            ("Source", "git"),
        ]),
        // The published service names nothing but git. Of the same shape, over everything that decides what comes of it; nobody can read
        // what it was made of.
        Some(other) => {
            // Strings, numbers and lists: writing them down cannot fail.
            text = sha256_hex(&serde_json::to_string(&other.identity()).unwrap_or_default());
            lines.extend([("Initializer", text.as_str()), ("Source", other.name())]);
        }
    }
    lines.sort_unstable();
    if !tenant.is_default() {
        identity = inputs.identity(tenant);
        lines.push(("Identity", &identity));
        lines.push(("Tenant", tenant.as_str()));
        lines.sort_unstable();
    }
    let mut text = String::new();
    for (key, value) in lines {
        text.extend([key, ": ", value, "\n"]);
    }
    text.push('\n');
    sha256_hex(&text)
}

/// Returns the tag of the workspace image over the base image of this name.
pub fn workspace_tag(base_ref: &str) -> String {
    sha256_hex(&format!("{base_ref}\n{WORKSPACE_BUILD_VERSION}\n"))
}

/// Returns the name of the workspace image over the base image of this name.
pub fn workspace_ref(repository: &Reference, base_ref: &str) -> String {
    format!("{}:{}", repository.name(), workspace_tag(base_ref))
}

/// Everything in a request that changes what is built, and nothing that does not (credentials, force, who asked).
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    source: &'a Source,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Canonical<'a> {
    Image(String),
    File {
        git: Box<source::git::GitSource>,
        dockerfile: Option<&'a str>,
        context_path: Option<&'a str>,
        fields: &'a NamedFields,
    },
    Filled {
        initializer: Initializer,
        dockerfile: Option<&'a str>,
        context_path: Option<&'a str>,
        version: &'a str,
    },
}

impl<'a> Inputs<'a> {
    /// Returns the inputs of a source.
    pub fn of(source: &'a Source) -> Self {
        Self { source }
    }

    /// Returns the hash of the inputs and the tenant, in hexadecimal.
    pub fn identity(&self, tenant: &Tenant) -> String {
        let canonical = match self.source {
            Source::Image(reference) => Canonical::Image(reference.to_string()),
            Source::File(file) => match file.initializer.identity() {
                Initializer::Git(git) => Canonical::File {
                    git,
                    dockerfile: file.dockerfile.as_deref(),
                    context_path: file.context_path.as_deref(),
                    fields: &file.fields,
                },
                initializer => Canonical::Filled {
                    initializer,
                    dockerfile: file.dockerfile.as_deref(),
                    context_path: file.context_path.as_deref(),
                    version: &file.fields.dockerfile_version,
                },
            },
        };
        // A value made of strings, maps of strings and enums: writing it down cannot fail.
        let text = serde_json::to_string(&(tenant.as_str(), canonical)).unwrap_or_default();
        sha256_hex(&text)
    }

    /// Tells whether everything that the published name does not cover has the value it has when nobody sets it.
    pub fn are_plain(&self) -> bool {
        match self.source {
            // The name of its workspace image is made of the digest.
            Source::Image(_) => true,
            Source::File(file) => {
                // The name of anything else is made of all of it.
                let Initializer::Git(git) = &file.initializer else {
                    return true;
                };
                git.custom_config.is_empty()
                    && git.upstream.is_none()
                    && git.checkout_location.is_root()
            }
        }
    }
}

/// Whether an image that exists is looked for, or built in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rebuild {
    /// Only when there is none.
    IfMissing,
    /// In any case, every step.
    Force,
}

/// What the key of a request to rebuild ends with.
const FORCE: &str = "-force";

/// Returns the key under which identical requests of one tenant are one build.
pub fn request_key(tenant: &Tenant, inputs: &Inputs<'_>, rebuild: Rebuild) -> String {
    let mut key = inputs.identity(tenant);
    if rebuild == Rebuild::Force {
        key.push_str(FORCE);
    }
    key
}

/// Returns the identity of the inputs that a request key was made of.
pub fn identity_of(key: &str) -> &str {
    key.strip_suffix(FORCE).unwrap_or(key)
}

fn sha256_hex(text: &str) -> String {
    Digest::sha256(text.as_bytes()).hex().to_owned()
}

#[cfg(test)]
mod tests {
    use source::git::GitSource;

    use super::*;
    use crate::request::tests::file_source;

    fn change(source: &mut Source, change: &dyn Fn(&mut GitSource)) {
        if let Source::File(file) = source
            && let Initializer::Git(git) = &mut file.initializer
        {
            change(git);
        }
    }

    fn golden_fields() -> NamedFields {
        NamedFields {
            clone_target: "deadbeef".to_owned(),
            context_path: ".".to_owned(),
            dockerfile_path: ".gitpod.Dockerfile".to_owned(),
            dockerfile_version: "abc123".to_owned(),
            remote_uri: "https://github.com/gitpod-io/gitpod.git".to_owned(),
        }
    }

    const GOLDEN_BASE: &str = "3097b12a862fe3744c4894738d519f5652f3ca460c0d64c721d2de134d590a26";

    #[test]
    fn the_golden_vectors_of_the_contract_hold() {
        let source = file_source();
        let tag = base_tag(&golden_fields(), &Tenant::default(), &Inputs::of(&source));
        assert_eq!(tag, GOLDEN_BASE);
        assert_eq!(
            workspace_tag("source-image:latest"),
            "2b1325adbf901167f47a914a62d377c98f1e32e0837dafb95ca86ca9d08ab14e"
        );
        assert_eq!(
            workspace_tag(&format!("registry.example.com/base-images:{GOLDEN_BASE}")),
            "168e5751d88f7fd9176f00dc07001856acd33e5f5908ce27ee60f13a2442a605"
        );
    }

    #[test]
    fn another_tenant_has_names_of_its_own_over_all_inputs() {
        let (mut source, fields) = (file_source(), golden_fields());
        let (one, two) = (Tenant::new("one").unwrap(), Tenant::new("two").unwrap());
        let of_one = base_tag(&fields, &one, &Inputs::of(&source));
        assert_ne!(of_one, GOLDEN_BASE);
        assert_ne!(of_one, base_tag(&fields, &two, &Inputs::of(&source)));
        change(&mut source, &|git| {
            let config = &mut git.custom_config;
            config.insert("core.eol".to_owned(), "crlf".to_owned());
        });
        assert_ne!(of_one, base_tag(&fields, &one, &Inputs::of(&source)));
    }

    #[test]
    fn the_identity_covers_what_the_name_does_not_but_no_credential() {
        let tenant = Tenant::default();
        let identity = |by: &dyn Fn(&mut GitSource)| {
            let mut source = file_source();
            change(&mut source, by);
            Inputs::of(&source).identity(&tenant)
        };
        let plain = identity(&|_| ());
        assert_eq!(
            plain,
            identity(&|git| git.auth = source::git::GitAuth::Basic {
                user: "u".to_owned(),
                password: "p".to_owned()
            })
        );
        let changes: [&dyn Fn(&mut GitSource); 4] = [
            &|git| {
                git.custom_config
                    .insert("core.eol".to_owned(), "crlf".to_owned());
            },
            &|git| git.checkout_location = "sub".parse().unwrap(),
            &|git| git.target_mode = source::git::TargetMode::RemoteBranch,
            &|git| git.depth = source::git::Depth::Full,
        ];
        for change in changes {
            assert_ne!(plain, identity(change));
        }
        let other = Tenant::new("other").unwrap();
        assert_ne!(plain, Inputs::of(&file_source()).identity(&other));
    }

    #[test]
    fn workspaces_that_are_filled_otherwise_have_names_over_everything_that_fills_them() {
        let of = |initializer: serde_json::Value, path: &str| {
            let mut source = file_source();
            let Source::File(file) = &mut source else {
                panic!("not a file");
            };
            file.initializer = serde_json::from_value(initializer).unwrap();
            let fields = NamedFields {
                dockerfile_path: path.to_owned(),
                ..NamedFields::default()
            };
            let inputs = Inputs::of(&source);
            assert!(inputs.are_plain());
            base_tag(&fields, &Tenant::default(), &inputs)
        };
        let git = |password: &str, target: &str| serde_json::json!({"kind": "git", "remote": "https://example.com/a.git", "target_mode": "remote_branch", "target": target, "auth": {"basic": {"user": "u", "password": password}}});
        let file = |url: &str, digest: char| {
            let digest = format!("sha256:{}", digest.to_string().repeat(64));
            serde_json::json!({"kind": "download", "target": ".", "files": [{"url": url, "path": "Dockerfile", "digest": digest}]})
        };
        let all = |password: &str, target: &str, url: &str, digest: char| {
            let parts = [git(password, target), file(url, digest)];
            serde_json::json!({"kind": "composite", "parts": parts})
        };
        let plain = of(
            all("one", "main", "https://a.example/x?s=1", 'a'),
            "Dockerfile",
        );
        assert_eq!(
            plain, "3bc335ecc085944b578a140a2c64882281547c79c9ef5dee3b46bfcc4b6753d9",
            "a name is for ever"
        );
        assert_eq!(
            plain,
            of(
                all("two", "main", "https://b.example/x?s=2", 'a'),
                "Dockerfile"
            ),
            "who may and from where"
        );
        for other in [
            of(
                all("one", "dev", "https://a.example/x?s=1", 'a'),
                "Dockerfile",
            ),
            of(
                all("one", "main", "https://a.example/x?s=1", 'b'),
                "Dockerfile",
            ),
            of(all("one", "main", "https://a.example/x?s=1", 'a'), "other"),
            of(file("https://a.example/x", 'a'), "Dockerfile"),
            of(
                serde_json::json!({"kind": "snapshot", "key": "a.tar"}),
                "Dockerfile",
            ),
            of(
                serde_json::json!({"kind": "snapshot", "key": "b.tar"}),
                "Dockerfile",
            ),
        ] {
            assert_ne!(plain, other);
        }
    }

    #[test]
    fn force_makes_another_request_of_it() {
        let (source, tenant) = (file_source(), Tenant::default());
        let key = |rebuild| request_key(&tenant, &Inputs::of(&source), rebuild);
        assert_eq!(key(Rebuild::Force), key(Rebuild::Force));
        assert_ne!(key(Rebuild::Force), key(Rebuild::IfMissing));
        for rebuild in [Rebuild::Force, Rebuild::IfMissing] {
            let identity = Inputs::of(&source).identity(&tenant);
            assert_eq!(identity_of(&key(rebuild)), identity);
        }
    }
}
