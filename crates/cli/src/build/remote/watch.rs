//! The journal of a build on a server, as if it were here: gone on with where it was when the connection broke.

use std::time::Duration;

use api::kiln::v1::kiln_client::KilnClient;
use api::kiln::v1::{WatchBuildRequest, WatchBuildResponse, watch_build_response};
use engine::event::{Event, StepId, Stream as Written};
use engine::id::BuildId;
use engine::journal::{Body, Record};
use futures_util::Stream;
use futures_util::stream::try_unfold;
use tonic::{Code, Status, Streaming};

use crate::client::{self, Wire};
use crate::failure::{Exit, Failure, OrExit, Outcome};

/// How often a broken connection is made again without a record in between, and how long is waited each time.
const TRIES_MAX: u32 = 30;
const PAUSE: Duration = Duration::from_secs(1);

struct Watching {
    client: KilnClient<Wire>,
    id: BuildId,
    records: Option<Streaming<WatchBuildResponse>>,
    n_received: u64,
    n_failed: u32,
    has_ended: bool,
}

/// Returns the records of a build, to its end.
pub(super) fn records(
    client: KilnClient<Wire>,
    id: BuildId,
) -> impl Stream<Item = Outcome<Record>> {
    let watching = Watching {
        client,
        id,
        records: None,
        n_received: 0,
        n_failed: 0,
        has_ended: false,
    };
    try_unfold(watching, |mut watching| async move {
        let record = watching.next().await?;
        Ok(record.map(|record| (record, watching)))
    })
}

impl Watching {
    async fn next(&mut self) -> Outcome<Option<Record>> {
        while !self.has_ended {
            match self.receive().await {
                Ok(Some(message)) => {
                    let record = decode(message)?;
                    self.n_received += 1;
                    self.n_failed = 0;
                    self.has_ended =
                        matches!(&record.body, Body::Event(event) if event.is_terminal());
                    return Ok(Some(record));
                }
                Ok(None) => {
                    let text = "the server ended the stream before the build had ended";
                    return Err(Failure::text(Exit::Unreachable, text));
                }
                Err(status) => self.lost(status).await?,
            }
        }
        Ok(None)
    }

    async fn receive(&mut self) -> Result<Option<WatchBuildResponse>, Status> {
        if let Some(records) = &mut self.records {
            return records.message().await;
        }
        let request = WatchBuildRequest {
            build_id: self.id.to_string(),
            skip: self.n_received,
        };
        let records = self.client.watch_build(request).await?.into_inner();
        self.records.insert(records).message().await
    }

    /// Waits before the next try; fails when there is to be none.
    async fn lost(&mut self, status: Status) -> Outcome {
        self.records = None;
        self.n_failed += 1;
        // What a connection that breaks, or a server that restarts, looks like.
        let is_passing = matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Cancelled
        );
        if !is_passing || self.n_failed > TRIES_MAX {
            let id = &self.id;
            return Err(client::failure(status).hint(format!(
                "the build may go on: see `kiln logs {id}` with the same --server"
            )));
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }
}

fn decode(message: WatchBuildResponse) -> Outcome<Record> {
    let WatchBuildResponse { at_ms, body } = message;
    let body = match body {
        Some(watch_build_response::Body::Event(text)) => {
            let event: Event = serde_json::from_str(&text).or_exit(Exit::Internal)?;
            Body::Event(event)
        }
        Some(watch_build_response::Body::Output(output)) => Body::Output {
            step: StepId(output.step),
            stream: if output.stderr {
                Written::Stderr
            } else {
                Written::Stdout
            },
            bytes: output.data,
        },
        None => {
            let text = "the server sent a record that this version does not know";
            return Err(Failure::text(Exit::Internal, text));
        }
    };
    Ok(Record {
        at_ms: u64::try_from(at_ms).unwrap_or(0),
        body,
    })
}
