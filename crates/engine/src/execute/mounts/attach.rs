//! Mounts over one root filesystem: what there is to mount on, and what is mounted.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use dockerfile::{Mount, MountAccess, RunOp, RunSecurity};
use rustix::fs::FileType;

use super::{Fetched, Source, agent};
use crate::event::{Failure, FailureKind};
use crate::execute::Execution;
use crate::failure::{dockerfile as dockerfile_failure, failure, platform};
use crate::rootfs::overlay::{self, Upper};
use crate::rootfs::root::Root;
use crate::sandbox::{self, Access, Mounted, Place, PlaceKind, StepMount};

/// What is attempted when directories are stacked.
const STACKING: &str = "mount files of another stage, image or context";

/// Filesystems of the kernel's, which no link leads a mount into.
const KERNEL: [&str; 3] = ["proc", "sys", "dev"];
/// Made anew for each step: nothing of the image is there.
const SHARED_MEMORY: &str = "dev/shm";
/// Where sockets of agents are that say nothing else.
const AGENTS: &str = "/run/buildkit/ssh_agent";

/// What keeps files from being changed that can only be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Backing {
    /// The mount.
    #[default]
    Bare,
    /// Another layer over them: a command that may mount can take the first back.
    Covered,
}

/// The mounts of one step.
#[derive(Debug, Default)]
pub(in crate::execute) struct Attached {
    pub(in crate::execute) mounts: Vec<StepMount>,
    /// What has to be there for them.
    pub(in crate::execute) places: Vec<Place>,
    /// Variables that they bring along.
    pub(in crate::execute) env: Vec<(String, String)>,
    /// Locks.
    pub(in crate::execute) held: Vec<OwnedFd>,
    /// Sockets of agents among the mounts.
    n_agents: usize,
    backing: Backing,
}

/// Returns the mounts for a step on `view`, what the steps before have left.
pub(in crate::execute) fn attach(
    execution: &Execution,
    op: &RunOp,
    fetched: &Fetched,
    view: &Root,
) -> Result<Attached, Failure> {
    let mut attached = Attached {
        backing: match op.security {
            RunSecurity::Sandbox => Backing::Bare,
            RunSecurity::Insecure => Backing::Covered,
        },
        ..Attached::default()
    };
    for (mount, source) in op.mounts.iter().zip(&fetched.sources) {
        attached.attach(execution, (mount, source), view)?;
    }
    // What is within another mount comes after it.
    attached.mounts.sort_by(|a, b| a.target.cmp(&b.target));
    Ok(attached)
}

fn access_of(mount: &Mount) -> Access {
    let access = match mount {
        Mount::Bind(bind) => bind.access,
        Mount::Cache(cache) => cache.access,
        Mount::Tmpfs(tmpfs) => tmpfs.access,
        Mount::Secret(_) | Mount::Ssh(_) => MountAccess::ReadOnly,
    };
    match access {
        MountAccess::ReadOnly => Access::Read,
        MountAccess::ReadWrite => Access::Write,
    }
}

impl Attached {
    fn attach(
        &mut self,
        execution: &Execution,
        (mount, source): (&Mount, &Source),
        view: &Root,
    ) -> Result<(), Failure> {
        let (target, access) = (mount.target(), access_of(mount));
        match (mount, source) {
            (_, Source::NoSecret) => {}
            // As with BuildKit, the variable is there without a socket too.
            (_, Source::NoAgent) => drop(self.name_agent(target)),
            (Mount::Secret(secret), Source::Secret(content)) => {
                if let Some(name) = &secret.env {
                    self.env
                        .push((name.clone(), text(&secret.id, content.reveal())?));
                }
                if let Some(target) = target {
                    let what = Mounted::Secret {
                        content: content.clone(),
                        uid: secret.owner.uid,
                        gid: secret.owner.gid,
                        mode: secret.owner.mode,
                    };
                    self.add(view, target, what, PlaceKind::File)?;
                }
            }
            (_, Source::Agent(socket)) => {
                let target = self.name_agent(target);
                let what = Mounted::Files {
                    mount: directory(&socket.directory)?,
                    source: agent::NAME.to_owned(),
                    access: Access::Write,
                };
                self.add(view, &target, what, PlaceKind::File)?;
            }
            (Mount::Tmpfs(tmpfs), _) => {
                let what = Mounted::Memory {
                    size_bytes: tmpfs.size_bytes,
                    access,
                };
                self.add(view, &tmpfs.target, what, PlaceKind::Directory)?;
            }
            (_, Source::Cache(guard, source)) => {
                let held = guard
                    .hold()
                    .map_err(|e| platform("hold a cache mount", &e))?;
                self.held.push(held);
                let mount = sandbox::detached_copy(guard.directory().as_fd())
                    .map_err(|e| platform("mount a cache mount", &e))?;
                self.add_files(view, target.unwrap_or_default(), (mount, source), access)?;
            }
            (_, Source::Directories(lowers, source)) => {
                let mount = if access == Access::Read && self.backing == Backing::Bare {
                    stacked(lowers)?
                } else {
                    stacked_to_write(execution, lowers)?
                };
                self.add_files(view, target.unwrap_or_default(), (mount, source), access)?;
            }
            (_, Source::Secret(_) | Source::Memory) => {
                let message = "a mount was given what is not its own";
                return Err(failure(FailureKind::Platform, message));
            }
        }
        Ok(())
    }

    /// Returns where the next socket of an agent is; the first one has a variable.
    fn name_agent(&mut self, target: Option<&str>) -> String {
        let target = target.map_or_else(|| format!("{AGENTS}.{}", self.n_agents), str::to_owned);
        if self.n_agents == 0 {
            self.env.push(("SSH_AUTH_SOCK".to_owned(), target.clone()));
        }
        self.n_agents += 1;
        target
    }

    /// Adds a file or directory of `mount`, which has to be there.
    fn add_files(
        &mut self,
        view: &Root,
        target: &str,
        (mount, source): (OwnedFd, &str),
        access: Access,
    ) -> Result<(), Failure> {
        let root = Root::from_fd(mount);
        let found = root
            .stat(Path::new(source))
            .map_err(|e| dockerfile_failure("find what is to be mounted", &e))?;
        let kind = match found.map(|found| found.kind) {
            Some(FileType::Directory) => PlaceKind::Directory,
            Some(FileType::RegularFile) => PlaceKind::File,
            Some(_) => {
                let message = format!(
                    "/{source}, which is to be mounted at {target}, is neither a file nor a directory"
                );
                return Err(failure(FailureKind::Dockerfile, message));
            }
            None => {
                let message =
                    format!("/{source}, which is to be mounted at {target}, does not exist");
                return Err(failure(FailureKind::Dockerfile, message));
            }
        };
        let what = Mounted::Files {
            mount: root.into_fd(),
            source: source.to_owned(),
            access,
        };
        self.add(view, target, what, kind)
    }

    fn add(
        &mut self,
        view: &Root,
        target: &str,
        what: Mounted,
        kind: PlaceKind,
    ) -> Result<(), Failure> {
        let path = resolved(view, target)?;
        let is_in = |place: &str| {
            path.strip_prefix(place)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let refused = |why: &str| {
            let message = format!("nothing can be mounted at {target}: {why}");
            Err(failure(FailureKind::Dockerfile, message))
        };
        if path.is_empty() {
            return refused("it leads to the root of the file system");
        }
        if !is_in(SHARED_MEMORY) {
            if KERNEL.into_iter().any(is_in) {
                return refused("it leads into a filesystem of the kernel's");
            }
            check_place(view, &path, kind).or_else(|why| refused(&why))?;
            self.places.push(Place {
                path: path.clone(),
                kind,
            });
        }
        self.mounts.push(StepMount { target: path, what });
        Ok(())
    }
}

/// Returns where `target` leads in the image, without links and leading slash.
fn resolved(view: &Root, target: &str) -> Result<String, Failure> {
    let trimmed = target.trim_start_matches('/');
    if trimmed == SHARED_MEMORY || trimmed.starts_with("dev/shm/") {
        return Ok(trimmed.to_owned());
    }
    let path = view
        .resolve(Path::new(target))
        .map_err(|e| dockerfile_failure(&format!("mount at {target}"), &e))?;
    path.into_os_string().into_string().map_err(|_| {
        let message =
            format!("nothing can be mounted at {target}: it leads to a name that is not text");
        failure(FailureKind::Dockerfile, message)
    })
}

/// Says why there can be no place of this kind.
fn check_place(view: &Root, path: &str, kind: PlaceKind) -> Result<(), String> {
    let look = |path: &Path| view.lstat(path).map_err(|e| e.to_string());
    for above in Path::new(path).ancestors().skip(1) {
        if let Some(found) = look(above)?
            && found.kind != FileType::Directory
        {
            return Err(format!("/{} is not a directory", above.display()));
        }
    }
    let is_directory = match look(Path::new(path))? {
        Some(found) => found.kind == FileType::Directory,
        None => return Ok(()),
    };
    match (is_directory, kind) {
        (true, PlaceKind::File) => {
            Err("a directory is there, and a file is to be mounted".to_owned())
        }
        (false, PlaceKind::Directory) => {
            Err("a file is there, and a directory is to be mounted".to_owned())
        }
        _ => Ok(()),
    }
}

fn text(id: &str, content: &[u8]) -> Result<String, Failure> {
    let text = std::str::from_utf8(content).ok();
    let text = text.filter(|text| !text.contains('\0')).ok_or_else(|| {
        let message = format!("secret {id:?} cannot be a variable: it is not text");
        failure(FailureKind::Dockerfile, message)
    })?;
    Ok(text.to_owned())
}

fn directory(path: &Path) -> Result<OwnedFd, Failure> {
    let root = Root::open(path).map_err(|e| platform("open a directory to mount", &e))?;
    sandbox::detached_copy(root.as_fd()).map_err(|e| platform("mount a directory", &e))
}

/// Stacks directories.
fn stacked(lowers: &[std::path::PathBuf]) -> Result<OwnedFd, Failure> {
    overlay::mount(lowers, None).map_err(|e| platform(STACKING, &e))
}

/// Stacks directories; what is written goes nowhere.
fn stacked_to_write(
    execution: &Execution,
    lowers: &[std::path::PathBuf],
) -> Result<OwnedFd, Failure> {
    let view = stacked(lowers)?;
    let upper = Upper::create(Some(view.as_fd()), &execution.scratch()?.join("step"));
    let upper = upper.map_err(|e| platform(STACKING, &e))?;
    overlay::mount(lowers, Some(&upper)).map_err(|e| platform(STACKING, &e))
}
