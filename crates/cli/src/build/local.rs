//! `kiln build` without a server.

use std::path::Path;
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
use super::lend::Lent;
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
    let ready = found.ready()?;
    let id = new_id()?;
    let folder =
        worker::prepare(&ready.command, &record(&id, args, &outputs)).or_exit(Exit::Machine)?;
    let limits = options::limits(args, &found.config.limits);
    let spec = spec(
        &id,
        input,
        &outputs,
        (options, limits),
        (&found, &ready, &folder),
        args,
    );
    let explained = Explained::default();
    let built = match spec {
        // The agents are served until the build has ended, and what is lent stays at its path.
        Ok((spec, _held)) => carry_out(&ready, &spec, style, &explained).await,
        Err(failure) => Err(failure),
    };
    let state = match built {
        Ok(state) => state,
        Err(failure) => {
            // Nothing that was prepared and not carried out is left behind.
            if worker::conclude(&folder).is_err() {
                terminal::say("warning: the build's folder could not be put in order.");
            }
            return Err(failure);
        }
    };
    if args.earlier.explain {
        explained.tell();
    }
    let image = report::image(state, style);
    let delivered = match &image {
        Ok(_) => outputs.deliver(&folder.join(worker::folder::OUTPUT)),
        Err(_) => Ok(()),
    };
    clear(&folder.join(worker::folder::OUTPUT));
    delivered?;
    report::tell(args, &id, &image?, style)?;
    storage::collect_if_due(&ready, &found).await;
    Ok(())
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
    _lent: Option<Lent>,
}

fn spec(
    id: &BuildId,
    input: Input,
    outputs: &Outputs,
    (options, limits): (BuildOptions, Limits),
    (found, ready, folder): (&Found, &Ready, &Path),
    args: &BuildArgs,
) -> Outcome<(BuildSpec, Held)> {
    let scratch = folder.join(worker::folder::WORK);
    let reader = match ready.command.owner {
        Some(owner) => Reader::Other(owner.uid, owner.gid),
        None => Reader::Caller,
    };
    let agents = agent::serve(&args.steps.ssh, folder, reader)?;
    let contexts = named::prepare(&args.contexts, &scratch, reader, &limits)?;
    let mut lent = None;
    let (context, dockerfile, context_path) = match input {
        Input::Git(git) => (
            Context::Git(git.source),
            Some(git.dockerfile_path),
            Some(git.context_path),
        ),
        Input::Archive(input) => {
            let path = import::archive(&input.start, &scratch, reader, &limits)?;
            (
                Context::Archive { path },
                input.dockerfile,
                Some(".".to_owned()),
            )
        }
        Input::Folder(input) => {
            lent = match reader {
                Reader::Other(..) => import::lend(&input, &limits, &ready.user_namespace)?,
                Reader::Caller => None,
            };
            let Prepared {
                context,
                dockerfile,
            } = match &lent {
                Some(lent) => import::prepared(&input, lent.path()),
                None => import::prepare(&input, &scratch.join(CONTEXT), reader, &limits)?,
            };
            (context, dockerfile, Some(".".to_owned()))
        }
    };
    let spec = BuildSpec {
        cache_from: named::caches(&args.earlier.cache_from, &scratch, reader, &limits)?,
        cache_to: outputs.caches.clone(),
        secrets: secrets::read(&args.steps.secrets)?,
        ssh: agents.sockets.clone(),
        id: id.clone(),
        tenant: TENANT.to_owned(),
        source: Source::Dockerfile {
            context,
            dockerfile,
            context_path,
        },
        options,
        contexts,
        outputs: outputs.spec.clone(),
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
            _lent: lent,
        },
    ))
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
