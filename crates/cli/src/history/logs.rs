//! `kiln logs`: what a build and its steps have said, and what they say next.
//!
//! The log is data: only what a terminal would act upon is taken out of it, and only for a terminal.

use std::path::Path;
use std::time::Duration;

use api::kiln::v1 as wire;
use engine::event::StepId;
use engine::excerpt::{Excerpt, Form, Selection};
use engine::follow::Follower;
use engine::journal::Reader;
use tonic::Code;

use super::find;
use crate::args::Progress;
use crate::args::history::LogsArgs;
use crate::client::{self, Client};
use crate::failure::{Exit, OrExit, Outcome};
use crate::progress::Style;
use crate::terminal;

/// How often a broken connection is made again without anything in between, and how long is waited each time.
const TRIES_MAX: u32 = 30;
const PAUSE: Duration = Duration::from_secs(1);

/// `kiln logs`.
pub(crate) async fn logs(args: LogsArgs) -> Outcome {
    if let Some(server) = args.server.target() {
        let mut client = client::connect(&server).await?;
        let build_id = find::id(&mut client, &args.build).await?;
        return of_server(&mut client, request(&args, build_id)).await;
    }
    let folder = find::folder(&args.place, &args.build)?.folder;
    of_folder(&folder, &args).await
}

fn show(text: Vec<u8>) -> Outcome {
    let style = if std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        Style::choose(Progress::Plain)
    } else {
        Style::Plain
    };
    terminal::data_bytes(&style.text(text)).or_exit(Exit::Machine)
}

async fn of_folder(folder: &Path, args: &LogsArgs) -> Outcome {
    let mut excerpt = Excerpt::new(Selection {
        step: args.step.map(StepId),
        since_ms: args.since.map(|since| since.0).unwrap_or_default(),
        form: if args.raw { Form::Raw } else { Form::Text },
    });
    if !args.follow {
        let mut reader = Reader::open(folder).or_exit(Exit::Machine)?;
        while let Some(record) = reader.next().or_exit(Exit::Internal)? {
            let mut text = Vec::new();
            excerpt.take(&record, &mut text);
            show(text)?;
        }
        return Ok(());
    }
    let mut follower = Follower::open(folder).or_exit(Exit::Machine)?;
    while let Some(record) = follower.next().await.or_exit(Exit::Internal)? {
        let mut text = Vec::new();
        excerpt.take(&record, &mut text);
        show(text)?;
    }
    Ok(())
}

fn request(args: &LogsArgs, build_id: String) -> wire::GetLogRequest {
    let form = if args.raw {
        wire::LogForm::Raw
    } else {
        wire::LogForm::Text
    };
    let since = args.since.map(|since| since.0).unwrap_or_default();
    wire::GetLogRequest {
        build_id,
        offset: 0,
        step: args.step.unwrap_or_default(),
        since_ms: i64::try_from(since).unwrap_or(i64::MAX),
        form: form.into(),
        follow: args.follow,
        censored: false,
    }
}

/// Goes on where it was when the connection breaks, or the server restarts.
pub(super) async fn of_server(client: &mut Client, mut request: wire::GetLogRequest) -> Outcome {
    let mut n_failed = 0;
    loop {
        let before = request.offset;
        let Err(status) = read(client, &mut request).await? else {
            return Ok(());
        };
        n_failed = if request.offset > before {
            1
        } else {
            n_failed + 1
        };
        let is_passing = matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Cancelled
        );
        if !is_passing || n_failed > TRIES_MAX {
            return Err(client::failure(status));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Shows the log from the request's offset on, and moves the offset.
async fn read(
    client: &mut Client,
    request: &mut wire::GetLogRequest,
) -> Outcome<Result<(), tonic::Status>> {
    let mut log = match client.kiln.get_log(request.clone()).await {
        Ok(log) => log.into_inner(),
        Err(status) => return Ok(Err(status)),
    };
    loop {
        match log.message().await {
            Ok(Some(piece)) => {
                request.offset = piece.offset + piece.content.len() as u64;
                show(piece.content.into())?;
            }
            Ok(None) => return Ok(Ok(())),
            Err(status) => return Ok(Err(status)),
        }
    }
}
