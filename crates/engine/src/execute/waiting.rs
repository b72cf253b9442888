//! Waiting for a place to run a step in, where not all builds of this machine may run theirs at the same time.
//!
//! A step holds everything else that it needs by then, so that who has a place never waits for who has none.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use store::{Place, PlaceError};
use tokio::sync::{SemaphorePermit, oneshot};

use super::Execution;
use super::stage::{Prepared, located};
use crate::event::{Failure, FailureKind};
use crate::failure::{failure, platform};

/// How long a step waits before the log says so.
const SILENCE: Duration = Duration::from_secs(1);

/// What a step holds while it runs.
pub(super) struct Turn<'a> {
    _of_the_build: Option<SemaphorePermit<'a>>,
    _of_the_machine: Option<Place>,
}

/// Waits until a step may run, beside the others of its build and those of all.
pub(super) async fn turn<'a>(
    execution: &'a Arc<Execution>,
    prepared: &Prepared<'_>,
) -> Result<Turn<'a>, Failure> {
    let of_the_build = execution.slots.acquire().await;
    let of_the_machine = place(execution, &prepared.name).await;
    let of_the_machine = of_the_machine.map_err(|e| located(execution, prepared.step, e))?;
    Ok(Turn {
        _of_the_build: of_the_build.ok(),
        _of_the_machine: of_the_machine,
    })
}

/// Waits for a place for the step `name`; there is none to wait for where nothing limits them. A cancelled build is not waited for.
async fn place(execution: &Arc<Execution>, name: &str) -> Result<Option<Place>, Failure> {
    let Some(n_places) = execution.limits.parallel_steps_in_all else {
        return Ok(None);
    };
    let mut place = ask(execution, n_places)?;
    let unwanted = execution.cancel.cancelled();
    tokio::pin!(unwanted);
    let at_once = tokio::select! {
        place = &mut place => Some(place),
        () = &mut unwanted => Some(Ok(Ok(None))),
        () = tokio::time::sleep(SILENCE) => None,
    };
    let place = if let Some(place) = at_once {
        place
    } else {
        let text = format!("waiting to run {name}");
        let reason = format!("{n_places} steps run already, which is as many as may");
        let vertex = execution.recorder.begin(&text, Some(reason));
        let place = tokio::select! {
            place = &mut place => place,
            () = &mut unwanted => Ok(Ok(None)),
        };
        vertex.finish();
        place
    };
    match place {
        Ok(Ok(Some(place))) => Ok(Some(place)),
        Ok(Ok(None)) | Err(_) => Err(failure(FailureKind::Platform, "cancelled")),
        Ok(Err(error)) => Err(platform("wait for a place to run a step", &error)),
    }
}

/// Asks for a place. In a thread of its own, which nobody waits for: in the line it cannot be told that the build was cancelled, and then it
/// ends with the worker.
fn ask(
    execution: &Execution,
    n_places: NonZeroU32,
) -> Result<oneshot::Receiver<Result<Option<Place>, PlaceError>>, Failure> {
    let (tell, told) = oneshot::channel();
    let (store, cancel) = (execution.depot.store.clone(), execution.cancel.clone());
    let asking = move || {
        let place = store.place(n_places, &|| cancel.is_cancelled() || tell.is_closed());
        // Whom nobody waits for lets go at once.
        let _given_back = tell.send(place);
    };
    let thread = std::thread::Builder::new().name("step-place".to_owned());
    let started = thread.spawn(asking);
    started.map_err(|error| platform("wait for a place to run a step", &error))?;
    Ok(told)
}
