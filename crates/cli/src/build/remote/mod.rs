//! `kiln build --server`: the same build, carried out by a server. It is shown by its journal here as there.

mod agents;
mod files;
pub(crate) mod request;
mod watch;

use engine::id::BuildId;
use engine::spec::Limits;
use futures_util::StreamExt as _;

use self::files::{Telling, Uploader};
use super::agent;
use super::context::{self, Input};
use super::explain::Explained;
use super::outputs;
use super::{download, options, report};
use crate::args::BuildArgs;
use crate::client::{self, Target};
use crate::failure::{Exit, Failure, OrExit, Outcome};
use crate::git;
use crate::progress::{self, Style};
use service::config::Config;
use source::git::TargetMode;

/// Builds on a server.
pub(crate) async fn run(server: &Target, args: &BuildArgs) -> Outcome {
    // What the server's configuration decides is not said in the request.
    let mut options = options::decide(args, &Config::default())?;
    let outputs = outputs::decide(args, &mut options)?;
    let input = pinned(context::read(&args.context, args.file.as_deref())?).await?;
    let found = agent::find(&args.steps.ssh)?;
    let mut client = client::connect(server).await?;
    let style = if args.quiet {
        Style::Quiet
    } else {
        Style::choose(args.progress)
    };
    let mut uploader = Uploader {
        client: &mut client.kiln,
        // What is too much is the server's to say.
        limits: &Limits {
            context_bytes: u64::MAX,
            context_files: u64::MAX,
            ..Limits::default()
        },
        telling: match style {
            Style::Quiet | Style::Rawjson => Telling::No,
            Style::Plain | Style::PlainTerminal(_) | Style::Tty(_) => Telling::Yes,
        },
    };
    let files = uploader
        .files(input, &args.contexts, &args.earlier.cache_from)
        .await?;
    let request = request::request(args, files, options, &outputs)?;
    let started = client.kiln.start_build(request).await;
    let started = started.map_err(client::failure)?.into_inner();
    let id = started.build.unwrap_or_default().build_id;
    let id: BuildId = id.parse().or_exit(Exit::Internal)?;
    // As long as we watch.
    let _lent = agents::lend(&client.kiln, &id, found);
    let explained = Explained::default();
    let records = watch::records(client.kiln.clone(), id.clone());
    let records = records.inspect(|record| explained.note_if(record));
    let showing = progress::show(style, records);
    let state = tokio::select! {
        state = showing => state?,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.or_exit(Exit::Internal)?;
            return Err(Failure::text(Exit::Interrupted, "interrupted")
                .hint(format!("build {id} goes on: see `kiln ls` and `kiln logs {id}` with the same --server")));
        }
    };
    if args.earlier.explain {
        explained.tell();
    }
    let image = report::image(state, style)?;
    for (output, format, dest) in outputs.exports() {
        download::deliver(&mut client.kiln, id.as_str(), output, format, dest).await?;
    }
    report::tell(args, &id, &image, style)
}

/// Replaces a branch or tag by the commit that it stands for now: what is built is what the user sees now, and with the user's own git.
async fn pinned(mut input: Input) -> Outcome<Input> {
    if let Input::Git(git) = &mut input
        && let Some(commit) = git::commit_of(&git.source).await?
    {
        git.source.target_mode = TargetMode::RemoteCommit;
        git.source.target = commit;
    }
    Ok(input)
}
