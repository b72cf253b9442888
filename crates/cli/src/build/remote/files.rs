//! What a build on a server is made from: repositories, which it fetches, and files of this machine, which are uploaded.

use std::collections::HashMap;
use std::path::Path;

use api::contentservice::{
    CloneTargetMode, GitAuthMethod, GitConfig, GitInitializer, WorkspaceInitializer,
    workspace_initializer,
};
use api::kiln::v1 as wire;
use engine::spec::{LayoutImage, Limits};
use source::git::{GitAuth, GitSource, TargetMode};

use super::context::{self, Dockerfile, FolderInput, Input};
use crate::args::cache::CacheFromArg;
use crate::args::named::{NamedArg, NamedWhat};
use crate::build::named;
use crate::build::upload::{self, Client, Uploaded};
use crate::failure::{Exit, Failure, Outcome};
use crate::terminal;

/// All of the files.
const EVERYTHING: &str = ".";

/// What is built from.
pub(super) struct Files {
    pub(super) from: wire::BuildFiles,
    pub(super) dockerfile_path: String,
    pub(super) dockerfile_text: String,
    pub(super) context_path: String,
    pub(super) project: String,
    /// What stands for stages and images.
    pub(super) contexts: HashMap<String, wire::NamedContext>,
    /// Caches that are folders here.
    pub(super) caches: Vec<wire::NamedLayout>,
}

/// Whether what is uploaded is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Telling {
    Yes,
    No,
}

/// Uploads what a server cannot fetch for itself.
pub(super) struct Uploader<'a> {
    pub(super) client: &'a mut Client,
    pub(super) limits: &'a Limits,
    pub(super) telling: Telling,
}

impl Uploader<'_> {
    /// Returns what is built from, on the server.
    pub(super) async fn files(
        &mut self,
        input: Input,
        args: &[NamedArg],
        caches: &[CacheFromArg],
    ) -> Outcome<Files> {
        let mut files = match input {
            Input::Git(git) => Files {
                from: repository(&git.source),
                dockerfile_path: git.dockerfile_path,
                dockerfile_text: String::new(),
                context_path: git.context_path,
                project: String::new(),
                contexts: HashMap::new(),
                caches: Vec::new(),
            },
            Input::Folder(input) => self.folder(&input).await?,
            Input::Archive(input) => {
                let uploaded = upload::archive(self.client, input.start, self.limits).await?;
                self.tell("standard input", &uploaded);
                Files {
                    from: uploaded_files(uploaded, upload::ARCHIVE),
                    dockerfile_path: input.dockerfile.unwrap_or_default(),
                    dockerfile_text: String::new(),
                    context_path: EVERYTHING.to_owned(),
                    project: project("-"),
                    contexts: HashMap::new(),
                    caches: Vec::new(),
                }
            }
        };
        files.contexts = self.contexts(args).await?;
        for cache in caches {
            if let CacheFromArg::Folder(path, image) = cache
                && named::is_there(path)
            {
                files.caches.push(self.layout(path, image).await?);
            }
        }
        Ok(files)
    }

    async fn folder(&mut self, input: &FolderInput) -> Outcome<Files> {
        let uploaded = upload::folder(self.client, input, self.limits).await?;
        self.tell(&input.name, &uploaded);
        let (dockerfile_path, dockerfile_text) = match &input.dockerfile {
            Dockerfile::Inside(path) => (path.to_string_lossy().into_owned(), String::new()),
            Dockerfile::Outside { text, .. } => (String::new(), text.clone()),
        };
        let path = input.path.as_ref().map(|path| path.to_string_lossy());
        Ok(Files {
            from: uploaded_files(uploaded, ""),
            dockerfile_path,
            dockerfile_text,
            context_path: EVERYTHING.to_owned(),
            project: project(path.as_deref().unwrap_or(&input.name)),
            contexts: HashMap::new(),
            caches: Vec::new(),
        })
    }

    async fn contexts(
        &mut self,
        args: &[NamedArg],
    ) -> Outcome<HashMap<String, wire::NamedContext>> {
        let mut contexts = HashMap::new();
        for arg in args {
            let what = Some(self.context(&arg.what).await?);
            let context = wire::NamedContext { what };
            if contexts.insert(arg.name.clone(), context).is_some() {
                let text = format!("two contexts are called {:?}", arg.name);
                return Err(Failure::text(Exit::Usage, text));
            }
        }
        Ok(contexts)
    }

    async fn context(&mut self, what: &NamedWhat) -> Outcome<wire::named_context::What> {
        use wire::named_context::What;
        Ok(match what {
            NamedWhat::Scratch => What::Image("scratch".to_owned()),
            NamedWhat::Image(reference) => What::Image(reference.to_string()),
            NamedWhat::Repository(address) => {
                let input = context::repository_at(address)?;
                What::Files(wire::NamedFiles {
                    files: Some(repository(&input.source)),
                    folder: input.context_path,
                })
            }
            NamedWhat::Folder(path) => {
                let input = named::folder_input(path)?;
                let uploaded = upload::folder(self.client, &input, self.limits).await?;
                self.tell(&input.name, &uploaded);
                What::Files(wire::NamedFiles {
                    files: Some(uploaded_files(uploaded, "")),
                    folder: String::new(),
                })
            }
            NamedWhat::Layout(path, image) => What::Layout(self.layout(path, image).await?),
        })
    }

    async fn layout(&mut self, path: &Path, image: &LayoutImage) -> Outcome<wire::NamedLayout> {
        let folder = named::folder(path)?;
        let uploaded = upload::layout(self.client, &folder, self.limits).await?;
        self.tell(&path.to_string_lossy(), &uploaded);
        Ok(wire::NamedLayout {
            context_id: uploaded.context_id,
            image: match image {
                LayoutImage::Default => None,
                LayoutImage::Tag(tag) => Some(wire::named_layout::Image::Tag(tag.clone())),
                LayoutImage::Digest(digest) => {
                    Some(wire::named_layout::Image::Digest(digest.to_string()))
                }
            },
        })
    }

    fn tell(&self, name: &str, uploaded: &Uploaded) {
        if self.telling == Telling::Yes {
            let n = uploaded.sent_bytes;
            terminal::say(&format!(
                "uploaded {name}: {n} bytes that the server lacked"
            ));
        }
    }
}

/// Returns what caches of files of this machine are kept under: neither another machine's nor another folder's.
fn project(path: &str) -> String {
    let name = rustix::system::uname();
    format!("{}:{path}", name.nodename().to_string_lossy())
}

fn uploaded_files(uploaded: Uploaded, archive: &str) -> wire::BuildFiles {
    wire::BuildFiles {
        from: Some(wire::build_files::From::Uploaded(wire::UploadedFiles {
            context_id: uploaded.context_id,
            archive: archive.to_owned(),
        })),
    }
}

fn repository(source: &GitSource) -> wire::BuildFiles {
    let initializer = WorkspaceInitializer {
        spec: Some(workspace_initializer::Spec::Git(initializer(source))),
    };
    wire::BuildFiles {
        from: Some(wire::build_files::From::Workspace(initializer)),
    }
}

fn initializer(source: &GitSource) -> GitInitializer {
    let mode = match source.target_mode {
        TargetMode::RemoteHead => CloneTargetMode::RemoteHead,
        TargetMode::RemoteCommit => CloneTargetMode::RemoteCommit,
        TargetMode::RemoteBranch => CloneTargetMode::RemoteBranch,
        TargetMode::LocalBranch => CloneTargetMode::LocalBranch,
    };
    let mut config = GitConfig::default();
    if let GitAuth::Basic { user, password } = &source.auth {
        config.authentication = GitAuthMethod::BasicAuth.into();
        config.auth_user.clone_from(user);
        config.auth_password.clone_from(password);
    }
    GitInitializer {
        remote_uri: source.remote.as_str().to_owned(),
        target_mode: mode.into(),
        clone_taget: source.target.clone(),
        config: Some(config),
        ..GitInitializer::default()
    }
}
