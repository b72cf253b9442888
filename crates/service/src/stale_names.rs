//! Forgetting what is known of names under which nothing stands any more, a few each minute.
//!
//! What is known of a name keeps an image from who asks for other inputs ([`crate::builds::provenance`]), so it goes only when there is no
//! such image and none is on its way: no build of the name is kept, and the registry says that it has nothing under it. Another registry
//! than the embedded one is believed only if it has just told of something else in the same repository: many say "not found" to who
//! may not look.

use std::collections::HashSet;
use std::fs::ReadDir;
use std::sync::Arc;
use std::time::Duration;

use oci::Reference;
use tokio_util::sync::CancellationToken;

use crate::builds::provenance::Remembered;
use crate::failure::chain;
use crate::lifecycle::Service;

/// Between one look and the next.
const INTERVAL: Duration = Duration::from_secs(60);
/// Names that are looked at each time.
const AT_ONCE: usize = 16;
/// After all names were looked at, for so long none is.
const ROUND: Duration = Duration::from_secs(24 * 3600);

/// Where the round is.
enum Round {
    At(ReadDir),
    Over(tokio::time::Instant),
}

/// What stands under a name.
struct Answer {
    seen: Remembered,
    reference: Reference,
    is_there: bool,
}

/// Goes on until the service stops.
pub(crate) async fn run(service: Arc<Service>, stop: CancellationToken) {
    let look = async {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut round = None;
        loop {
            ticks.tick().await;
            round = Some(look(&service, round).await);
        }
    };
    stop.run_until_cancelled(Box::pin(look)).await;
}

async fn look(service: &Arc<Service>, round: Option<Round>) -> Round {
    let (known, now) = (Arc::clone(service), tokio::time::Instant::now());
    let next = move || next(&known, round, now);
    let (round, seen) = match tokio::task::spawn_blocking(next).await {
        Ok(Ok(next)) => next,
        Ok(Err(error)) => {
            tracing::warn!(
                error = chain(&error),
                "what is known of names cannot be listed"
            );
            return Round::Over(now);
        }
        Err(error) => {
            tracing::warn!(%error, "what is known of names cannot be listed");
            return Round::Over(now);
        }
    };
    let mut answers = Vec::new();
    for seen in seen {
        let Ok(reference) = seen.name().parse::<Reference>() else {
            continue;
        };
        match service.images.existing(&reference).await {
            Ok(found) => answers.push(Answer {
                seen,
                reference,
                is_there: found.is_some(),
            }),
            Err(error) => tracing::debug!(%error, %reference, "what is known of it is kept"),
        }
    }
    let is_embedded = |reference: &Reference| service.images.is_embedded(reference);
    for seen in gone(answers, &is_embedded) {
        let known = Arc::clone(service);
        let name = seen.name().to_owned();
        let forget = move || {
            let builds = &known.builds;
            builds
                .provenance()
                .forget(&seen, || builds.has_name(seen.name()))
        };
        match tokio::task::spawn_blocking(forget).await {
            Ok(Ok(true)) => tracing::debug!(name, "what was known of a name is forgotten"),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = chain(&error), name, "a name is not forgotten");
            }
            Err(error) => tracing::warn!(%error, name, "a name is not forgotten"),
        }
    }
    round
}

/// Returns the next names of which no build is kept. Blocking.
fn next(
    service: &Service,
    round: Option<Round>,
    now: tokio::time::Instant,
) -> std::io::Result<(Round, Vec<Remembered>)> {
    let builds = &service.builds;
    let mut files = match round {
        Some(Round::Over(since)) if now.duration_since(since) < ROUND => {
            return Ok((Round::Over(since), Vec::new()));
        }
        Some(Round::At(files)) => files,
        Some(Round::Over(_)) | None => builds.provenance().files()?,
    };
    let mut seen = Vec::new();
    for _ in 0..AT_ONCE {
        let Some(file) = files.next() else {
            return Ok((Round::Over(now), seen));
        };
        // One that cannot be read is for who looks for damage.
        let remembered = builds.provenance().remembered(&file?.path());
        seen.extend(remembered.filter(|seen| !builds.has_name(seen.name())));
    }
    Ok((Round::At(files), seen))
}

/// Returns the names of which is certain that nothing stands under them.
fn gone(answers: Vec<Answer>, is_embedded: &dyn Fn(&Reference) -> bool) -> Vec<Remembered> {
    let there = answers.iter().filter(|answer| answer.is_there);
    let believed: HashSet<String> = there.map(|answer| answer.reference.name()).collect();
    let gone = answers.into_iter().filter(|answer| {
        let Answer {
            reference,
            is_there,
            ..
        } = answer;
        !is_there && (is_embedded(reference) || believed.contains(&reference.name()))
    });
    gone.map(|answer| answer.seen).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_tells_of_other_images_is_believed_that_one_is_gone() {
        let answers = [
            ("embedded:1/base-images:a", false),
            ("embedded:1/base-images:b", true),
            ("registry.example/open:a", false),
            ("registry.example/open:b", true),
            ("registry.example/closed:a", false),
            ("other.example/open:a", false),
        ];
        let answers = answers.map(|(name, is_there)| Answer {
            seen: Remembered::of(name),
            reference: name.parse().unwrap(),
            is_there,
        });
        let is_embedded = |reference: &Reference| reference.host() == "embedded:1";
        let gone = gone(answers.into(), &is_embedded);
        let names: Vec<&str> = gone.iter().map(Remembered::name).collect();
        assert_eq!(
            names,
            ["embedded:1/base-images:a", "registry.example/open:a"]
        );
    }
}
