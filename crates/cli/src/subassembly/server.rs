//! With a server: it makes the file, and we may fetch it.

use std::time::Duration;

use api::builder::{
    CreateSubassemblyRequest, GetSubassemblyRequest, SubassemblyPhase, SubassemblyStatus,
};

use super::{Found, Shape, download, not_there};
use crate::args::subassembly::{CreateArgs, GetArgs};
use crate::client::{self, Client, Target};
use crate::failure::{Exit, Failure, OrExit, Outcome};
use crate::terminal;

/// How often a server is asked whether it is done: the published API has no call that waits.
const PAUSE: Duration = Duration::from_millis(300);

/// `kiln subassembly create --server`.
pub(super) async fn create(server: &Target, args: &CreateArgs) -> Outcome {
    let mut client = client::connect(server).await?;
    let request = CreateSubassemblyRequest {
        oci_reference: args.reference.to_string(),
    };
    let answer = client.subassemblies.create_subassembly(request).await;
    let mut status = status_of(answer.map_err(client::failure)?.into_inner().status)?;
    while status.phase() == SubassemblyPhase::Creating && !args.detach {
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            interrupted = tokio::signal::ctrl_c() => {
                interrupted.or_exit(Exit::Internal)?;
                let failure = Failure::text(Exit::Interrupted, "interrupted");
                return Err(failure.hint("the server goes on: see `kiln subassembly get` with the same --server"));
            }
        }
        status = ask(&mut client, &args.reference.to_string()).await?;
    }
    tell(&status, Shape::from(args.json))
}

/// `kiln subassembly get --server`.
pub(super) async fn get(server: &Target, args: &GetArgs) -> Outcome {
    let mut client = client::connect(server).await?;
    let status = ask(&mut client, &args.reference.to_string()).await?;
    if let (Some(path), SubassemblyPhase::Available) = (&args.output, status.phase()) {
        download::fetch(&status.url, &status.digest, path).await?;
    }
    tell(&status, Shape::from(args.json))
}

async fn ask(client: &mut Client, reference: &str) -> Outcome<SubassemblyStatus> {
    let request = GetSubassemblyRequest {
        oci_reference: reference.to_owned(),
    };
    let answer = client.subassemblies.get_subassembly(request).await;
    status_of(answer.map_err(client::failure)?.into_inner().status)
}

fn status_of(status: Option<SubassemblyStatus>) -> Outcome<SubassemblyStatus> {
    status.ok_or_else(|| Failure::text(Exit::Unreachable, "the server answered without a status"))
}

fn tell(status: &SubassemblyStatus, shape: Shape) -> Outcome {
    match status.phase() {
        SubassemblyPhase::Available => {
            let manifest = serde_json::from_slice(&status.manifest).or_exit(Exit::Unreachable)?;
            let found = Found {
                digest: status.digest.clone(),
                location: status.url.clone(),
                manifest,
            };
            found.tell(shape)
        }
        SubassemblyPhase::Creating => {
            let text = match shape {
                Shape::Line => "creating".to_owned(),
                Shape::Json => serde_json::json!({ "phase": "creating" }).to_string(),
            };
            terminal::data(&text).or_exit(Exit::Machine)
        }
        SubassemblyPhase::Unavailable | SubassemblyPhase::Unspecified => {
            not_there("unavailable", &status.message, shape)
        }
    }
}
