//! `kiln cancel`: ends a build, wherever it is carried out.
//!
//! Returns once the wish is recorded (a server) or once the build has ended (here). A build that has ended stays as it is.

use std::path::Path;
use std::time::{Duration, Instant};

use api::kiln::v1::{BuildPhase, CancelBuildRequest};
use engine::id::BuildId;
use engine::state::{self, BuildState};

use crate::args::CancelArgs;
use crate::builds;
use crate::client::Target;
use crate::failure::{Exit, Failure, OrExit, Outcome};
use crate::{client, place, terminal};

/// How long a worker may take to end its build.
const END_TIMEOUT: Duration = Duration::from_secs(30);
/// How often we look whether it has.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// `kiln cancel`.
pub(crate) async fn run(args: CancelArgs) -> Outcome {
    match args.server.target() {
        Some(server) => on_server(&server, &args.build).await,
        None => here(&args).await,
    }
}

async fn on_server(server: &Target, id: &BuildId) -> Outcome {
    let mut client = client::connect(server).await?;
    let request = CancelBuildRequest {
        build_id: id.to_string(),
    };
    let answer = client.kiln.cancel_build(request).await;
    let build = answer.map_err(client::failure)?.into_inner().build;
    let had_ended = match build.unwrap_or_default().phase() {
        BuildPhase::Succeeded => Some("succeeded"),
        BuildPhase::Failed => Some("failed"),
        // Perhaps by this very wish.
        BuildPhase::Cancelled
        | BuildPhase::Unspecified
        | BuildPhase::Queued
        | BuildPhase::Resolving
        | BuildPhase::Planning
        | BuildPhase::Running
        | BuildPhase::Pushing => None,
    };
    tell(id, had_ended);
    Ok(())
}

async fn here(args: &CancelArgs) -> Outcome {
    let state = place::find(&args.place)?.state;
    let id = &args.build;
    let folder = worker::folder::of(&state, id);
    if !folder.join(worker::folder::RECORD).exists() {
        let text = format!("there is no build {id} in {}", state.display());
        let hint = "`kiln ls` lists those that go on; a server's own are cancelled with --server";
        return Err(Failure::text(Exit::Usage, text).hint(hint));
    }
    let before = state_of(&folder)?;
    if before.is_terminal() {
        tell(id, Some(builds::word(&before)));
        return Ok(());
    }
    let Some(worker) = worker::adopt(&state, id).or_exit(Exit::Machine)? else {
        // It may end between two looks. Else it has not begun, and is not ours to end.
        let now = state_of(&folder)?;
        if now.is_terminal() {
            tell(id, Some(builds::word(&now)));
            return Ok(());
        }
        let text = format!(
            "no worker carries out build {id}: it is still prepared, or its worker was lost"
        );
        return Err(
            Failure::text(Exit::Machine, text).hint("interrupt the `kiln build` that prepares it")
        );
    };
    worker.cancel().or_exit(Exit::Machine)?;
    let deadline = Instant::now() + END_TIMEOUT;
    loop {
        let now = state_of(&folder)?;
        if now.is_terminal() {
            let other = (now != BuildState::Cancelled).then(|| builds::word(&now));
            tell(id, other);
            return Ok(());
        }
        if Instant::now() > deadline {
            let seconds = END_TIMEOUT.as_secs();
            let text = format!("build {id} was told to end, and has not within {seconds} s");
            return Err(Failure::text(Exit::Machine, text));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn state_of(folder: &Path) -> Outcome<BuildState> {
    Ok(state::of(folder).or_exit(Exit::Machine)?.0)
}

fn tell(id: &BuildId, ended_as: Option<&str>) {
    match ended_as {
        None => terminal::say(&format!("build {id} is cancelled")),
        Some(word) => terminal::say(&format!("build {id} had ended: {word}")),
    }
}
