//! `kiln build` without a server.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use engine::follow::follow;
use engine::id::BuildId;
use engine::spec::{
    BuildOptions, BuildSpec, Context, Limits, Purpose, Readable, Record, Registries, Source,
};
use engine::state::BuildState;
use futures_util::StreamExt;
use source::git::{FetchOptions, GitDirectory};
use tokio::signal::unix::{SignalKind, signal};
use worker::Canceller;

use super::agent::{self, Agents};
use super::context::{self, Input};
use super::explain::Explained;
use super::import::{self, Prepared, Reader};
use super::lend::{Lent, Reach};
use super::outputs::{self, Outputs};
use super::{named, options, report, secrets};
use crate::args::BuildArgs;
use crate::environment;
use crate::failure::{Exit, Failure, OrExit, Outcome};
use crate::place::{self, Found, Ready};
use crate::progress::{self, Style, now_ms};
use crate::{storage, terminal};

/// Whose cache is used: this machine's user is nobody's tenant.
pub(crate) const TENANT: &str = "";
/// Name of a copied context within a build's scratch folder.
const CONTEXT: &str = "context";
/// The build argument that lets COPY see `.git` of a repository.
const KEEP_GIT_ARGUMENT: &str = "BUILDKIT_CONTEXT_KEEP_GIT_DIR";
/// How long a worker may take to go once its build has ended.
const WORKER_GRACE: Duration = Duration::from_secs(30);

/// Builds on this machine.
pub(crate) async fn run(args: &BuildArgs) -> Outcome {
    let style = if args.quiet {
        Style::Quiet
    } else {
        Style::choose(args.progress)
    };
    let found = place::find(&args.place)?;
    let mut options = options::decide(args, &found.config)?;
    let outputs = outputs::decide(args, &mut options)?;
    let input = context::read(&args.context, args.file.as_deref())?;
    let asked = Asked {
        args,
        style,
        ready: found.ready()?,
        found,
        input,
        outputs,
        options,
    };
    let mut done = asked.build(Lending::Allowed).await?;
    if asked.would_a_copy_help(&done)? {
        clear(&done.folder.join(worker::folder::OUTPUT));
        terminal::say(
            "warning: some of the context cannot be lent to the build; once more with a copy of it",
        );
        done = asked.build(Lending::Refused).await?;
    }
    asked.deliver(done).await
}

/// What was asked for.
struct Asked<'a> {
    args: &'a BuildArgs,
    style: Style,
    found: Found,
    ready: Ready,
    input: Input,
    outputs: Outputs,
    options: BuildOptions,
}

/// Whether the context may be lent to a worker that is somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lending {
    Allowed,
    /// It is copied.
    Refused,
}

/// A build that has ended.
struct Done {
    id: BuildId,
    folder: PathBuf,
    state: BuildState,
    explained: Explained,
    /// Whether its context was lent.
    was_lent: bool,
}

impl Asked<'_> {
    async fn build(&self, lending: Lending) -> Outcome<Done> {
        let id = new_id()?;
        let record = record(&id, self.args, &self.outputs);
        let folder = worker::prepare(&self.ready.command, &record).or_exit(Exit::Machine)?;
        let explained = Explained::default();
        let built = match self.spec(&id, &folder, lending) {
            Ok((spec, held)) => {
                // The agents are served until the build has ended, and what is lent stays at its path.
                let built = carry_out(&self.ready, &spec, self.style, &explained).await;
                built.map(|state| (state, held.lent.is_some()))
            }
            Err(failure) => Err(failure),
        };
        match built {
            Ok((state, was_lent)) => Ok(Done {
                id,
                folder,
                state,
                explained,
                was_lent,
            }),
            Err(failure) => {
                // Nothing that was prepared and not carried out is left behind.
                if worker::conclude(&folder).is_err() {
                    terminal::say("warning: the build's folder could not be put in order.");
                }
                Err(failure)
            }
        }
    }

    /// Tells whether a build has failed that was lent what cannot be lent. That of a command is not why a command fails.
    fn would_a_copy_help(&self, done: &Done) -> Outcome<bool> {
        let is_worth_a_look = match &done.state {
            BuildState::Failed { failure } => done.was_lent && failure.exit_code.is_none(),
            _ => false,
        };
        match &self.input {
            Input::Folder(input) if is_worth_a_look => Ok(!import::can_be_lent(input, Reach::All)?),
            _ => Ok(false),
        }
    }

    /// Brings what was built to where it was asked for, and tells of it.
    async fn deliver(&self, done: Done) -> Outcome {
        if self.args.earlier.explain {
            done.explained.tell();
        }
        let output = done.folder.join(worker::folder::OUTPUT);
        let image = report::image(done.state, self.style);
        let delivered = match &image {
            Ok(_) => self.outputs.deliver(&output),
            Err(_) => Ok(()),
        };
        clear(&output);
        delivered?;
        report::tell(self.args, &done.id, &image?, self.style)?;
        storage::collect_if_due(&self.ready, &self.found).await;
        Ok(())
    }
}

/// Returns a new id.
pub(crate) fn new_id() -> Outcome<BuildId> {
    let mut random = [0; 16];
    let failed = |error| Failure::text(Exit::Machine, format!("get random bytes: {error}"));
    getrandom::fill(&mut random).map_err(failed)?;
    Ok(BuildId::from_random(random))
}

fn record(id: &BuildId, args: &BuildArgs, outputs: &Outputs) -> Record {
    Record {
        id: id.clone(),
        tenant: TENANT.to_owned(),
        triggered_by: "kiln build".to_owned(),
        caller: String::new(),
        supervisor_ref: String::new(),
        reference: outputs.first_name().unwrap_or_default(),
        base_reference: String::new(),
        started_at_ms: now_ms(),
        key: String::new(),
        purpose: Purpose::Image,
        request: String::new(),
        labels: args.times.labels(),
    }
}

/// What a build needs of the process that has started it.
struct Held {
    _agents: Agents,
    lent: Option<Lent>,
}

impl Asked<'_> {
    fn spec(&self, id: &BuildId, folder: &Path, lending: Lending) -> Outcome<(BuildSpec, Held)> {
        let (args, found) = (self.args, &self.found);
        let limits = options::limits(args, &found.config.limits);
        let scratch = folder.join(worker::folder::WORK);
        let reader = match self.ready.command.owner {
            Some(owner) => Reader::Other(owner.uid, owner.gid),
            None => Reader::Caller,
        };
        let agents = agent::serve(&args.steps.ssh, folder, reader)?;
        let contexts = named::prepare(&args.contexts, &scratch, reader, &limits)?;
        let (source, lent) = self.source((&scratch, reader), &limits, lending)?;
        let spec = BuildSpec {
            cache_from: named::caches(&args.earlier.cache_from, &scratch, reader, &limits)?,
            cache_to: self.outputs.caches.clone(),
            secrets: secrets::read(&args.steps.secrets)?,
            ssh: agents.sockets.clone(),
            id: id.clone(),
            tenant: TENANT.to_owned(),
            source,
            options: self.options.clone(),
            contexts,
            outputs: self.outputs.spec.clone(),
            registries: Registries {
                use_kept: !args.earlier.pull,
                ..registries(found)?
            },
            fetch: FetchOptions {
                git_directory: git_directory(args),
                ..fetch_options(found)
            },
            limits,
        };
        Ok((
            spec,
            Held {
                _agents: agents,
                lent,
            },
        ))
    }

    /// Returns what is built, where the worker finds it, and what holds it there.
    fn source(
        &self,
        (scratch, reader): (&Path, Reader),
        limits: &Limits,
        lending: Lending,
    ) -> Outcome<(Source, Option<Lent>)> {
        let mut lent = None;
        let (context, dockerfile, context_path) = match &self.input {
            Input::Git(git) => (
                Context::Git(git.source.clone()),
                Some(git.dockerfile_path.clone()),
                Some(git.context_path.clone()),
            ),
            Input::Archive(input) => {
                let path = import::archive(&input.start, scratch, reader, limits)?;
                (
                    Context::Archive { path },
                    input.dockerfile.clone(),
                    Some(".".to_owned()),
                )
            }
            Input::Folder(input) => {
                lent = match (reader, lending) {
                    (Reader::Other(..), Lending::Allowed) => {
                        import::lend(input, &self.ready.user_namespace)?
                    }
                    (Reader::Caller, _) | (_, Lending::Refused) => None,
                };
                let Prepared {
                    context,
                    dockerfile,
                } = match &lent {
                    Some(lent) => import::prepared(input, lent.path()),
                    None => import::prepare(input, &scratch.join(CONTEXT), reader, limits)?,
                };
                (context, dockerfile, Some(".".to_owned()))
            }
        };
        let source = Source::Dockerfile {
            context,
            dockerfile,
            context_path,
        };
        Ok((source, lent))
    }
}

/// As with docker, COPY sees the files of a commit, and its history only if that is asked for.
fn git_directory(args: &BuildArgs) -> GitDirectory {
    let arguments = options::build_args(args);
    GitDirectory::of_argument(arguments.get(KEEP_GIT_ARGUMENT).map(String::as_str))
}

/// Returns how registries are reached: as the user who calls.
pub(crate) fn registries(found: &Found) -> Outcome<Registries> {
    let keychain = place::keychain()?;
    let hosts = found.config.registry.with_files_read();
    Ok(Registries {
        hosts: hosts.or_exit(Exit::Usage)?,
        pull: keychain.clone(),
        publish: keychain,
        proxy: place::client_options().proxy,
        egress: found.config.egress_policy(egress::Reach::Private),
        embedded: Vec::new(),
        readable: Readable::default(),
        use_kept: true,
    })
}

/// Returns how sources are fetched.
pub(crate) fn fetch_options(found: &Found) -> FetchOptions {
    let proxies = environment::proxies();
    FetchOptions {
        proxy: proxies.https,
        no_proxy: proxies.no_proxy,
        egress: found.config.egress_policy(egress::Reach::Private),
        ..found.config.git.fetch_options()
    }
}

/// Has a worker carry `spec` out, and shows how it goes.
pub(crate) async fn carry_out(
    ready: &Ready,
    spec: &BuildSpec,
    style: Style,
    explained: &Explained,
) -> Outcome<BuildState> {
    let mut interrupt = signal(SignalKind::interrupt()).or_exit(Exit::Internal)?;
    let mut terminate = signal(SignalKind::terminate()).or_exit(Exit::Internal)?;
    let handle = worker::launch(&ready.command, spec)
        .await
        .or_exit(Exit::Machine)?;
    let canceller = handle.canceller().or_exit(Exit::Machine)?;
    let records = follow(handle.folder.clone()).map(|record| record.or_exit(Exit::Internal));
    let records = records.inspect(|record| explained.note_if(record));
    let mut showing = pin!(progress::show(style, records));
    let mut waiting = pin!(handle.wait());
    let (mut is_gone, mut n_interrupts) = (false, 0_u32);
    let state = loop {
        tokio::select! {
            state = &mut showing => break state?,
            waited = &mut waiting, if !is_gone => {
                is_gone = true;
                waited.or_exit(Exit::Internal)?;
            }
            _ = interrupt.recv() => n_interrupts += 1,
            _ = terminate.recv() => n_interrupts += 1,
        }
        if n_interrupts > 0 && !is_gone {
            cancel(canceller.as_ref(), n_interrupts)?;
        }
    };
    if !is_gone {
        let gone = tokio::time::timeout(WORKER_GRACE, waiting).await;
        gone.or_exit(Exit::Internal)?.or_exit(Exit::Internal)?;
    }
    Ok(state)
}

/// Asks the worker to stop; whoever asks twice does not want to wait.
fn cancel(worker: Option<&Canceller>, n_interrupts: u32) -> Outcome {
    if n_interrupts > 1 {
        return Err(Failure::text(
            Exit::Interrupted,
            "interrupted; the worker is still stopping its steps",
        ));
    }
    if let Some(worker) = worker {
        terminal::say("cancelling; once more to leave without waiting");
        worker.cancel().or_exit(Exit::Machine)?;
    }
    Ok(())
}

/// Removes what the worker left to be fetched. Large, and of no use to anybody once it has been delivered.
fn clear(output: &Path) {
    if store::remove_tree(output).is_err() {
        terminal::say(&format!(
            "warning: {} could not be removed.",
            output.display()
        ));
    }
}
