//! When a failed request is sent again, and after how long.
//!
//! Transient failures alone (no connection, resets, slowness, 5xx, 408, 429) are tried again, with exponential backoff and full
//! jitter, for so many tries as [`Options`] says, and as long as the host's retry budget lasts: a host that fails all the time
//! must not get a multiple of its traffic from us.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::Options;
use super::error::Problem;

/// Retries that a host may use up at once.
const BUDGET_MAX: f64 = 50.0;
/// Retries that a host earns per successful request.
const BUDGET_PER_SUCCESS: f64 = 0.1;
/// Retries that a host earns per second.
const BUDGET_PER_SECOND: f64 = 1.0;
/// Hosts that budgets are kept of; beyond, all of them start anew.
const BUDGET_HOSTS_MAX: usize = 1024;

/// The retry budgets of all hosts.
#[derive(Debug, Default)]
pub(crate) struct Budgets {
    by_host: Mutex<HashMap<String, Budget>>,
}

#[derive(Debug, Clone, Copy)]
struct Budget {
    left: f64,
    at: Instant,
}

impl Budgets {
    /// Takes one retry out of the budget of `host`, if there is one left.
    fn take(&self, host: &str) -> bool {
        self.with(host, |budget| {
            let has_one = budget.left >= 1.0;
            if has_one {
                budget.left -= 1.0;
            }
            has_one
        })
    }

    pub(crate) fn earn(&self, host: &str) {
        self.with(host, |budget| {
            budget.left = (budget.left + BUDGET_PER_SUCCESS).min(BUDGET_MAX);
        });
    }

    fn with<R>(&self, host: &str, f: impl FnOnce(&mut Budget) -> R) -> R {
        let now = Instant::now();
        let mut by_host = self.by_host.lock().unwrap_or_else(PoisonError::into_inner);
        if by_host.len() >= BUDGET_HOSTS_MAX && !by_host.contains_key(host) {
            by_host.clear();
        }
        let budget = by_host.entry(host.to_owned()).or_insert(Budget {
            left: BUDGET_MAX,
            at: now,
        });
        let earned = now.duration_since(budget.at).as_secs_f64() * BUDGET_PER_SECOND;
        budget.left = (budget.left + earned).min(BUDGET_MAX);
        budget.at = now;
        f(budget)
    }
}

/// What decides about a further try.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy<'a> {
    pub(crate) options: &'a Options,
    pub(crate) budgets: &'a Budgets,
    pub(crate) host: &'a str,
    /// Tries in all.
    pub(crate) tries: u32,
}

/// Counts the tries of one operation.
#[derive(Debug, Default)]
pub(crate) struct Tries {
    n_done: u32,
    /// Whether bytes came that were not those that were asked for.
    has_mismatched: bool,
}

impl Tries {
    /// Waits until the next try is due, or gives the problem back when there is to be none.
    pub(crate) async fn after(
        &mut self,
        problem: Problem,
        policy: Policy<'_>,
    ) -> Result<(), Problem> {
        self.n_done += 1;
        // Bits that turned on the way are right the second time; a registry that has other bytes has them then, too.
        let may_help = problem.is_transient()
            || problem.is_mismatch() && !std::mem::replace(&mut self.has_mismatched, true);
        let may_retry = may_help && self.n_done < policy.tries;
        if !may_retry || !policy.budgets.take(policy.host) {
            return Err(problem);
        }
        let delay = match problem.retry_after() {
            Some(asked) => asked.min(policy.options.retry_after_max),
            None => backoff(policy.options, self.n_done),
        };
        tracing::debug!(host = policy.host, n_done = self.n_done, ?delay, %problem, "trying again");
        tokio::time::sleep(delay).await;
        Ok(())
    }

    /// Waits like after a failed try; for what is no failure but takes a moment.
    pub(crate) async fn pause(&mut self, policy: Policy<'_>) {
        self.n_done += 1;
        tokio::time::sleep(backoff(policy.options, self.n_done)).await;
    }

    /// Says that there was progress: what follows has all its tries again.
    pub(crate) fn reset(&mut self) {
        self.n_done = 0;
    }
}

/// Runs `request` until it succeeds, fails for good, or was tried often enough.
pub(crate) async fn retrying<T, F>(
    policy: Policy<'_>,
    mut request: impl FnMut() -> F,
) -> Result<T, Problem>
where
    F: Future<Output = Result<T, Problem>>,
{
    let mut tries = Tries::default();
    loop {
        match request().await {
            Ok(value) => {
                policy.budgets.earn(policy.host);
                return Ok(value);
            }
            Err(problem) => tries.after(problem, policy).await?,
        }
    }
}

/// Returns a random duration up to the exponentially growing limit.
fn backoff(options: &Options, n_done: u32) -> Duration {
    let factor = 2_u32.saturating_pow(n_done.saturating_sub(1));
    let limit = options
        .backoff_base
        .saturating_mul(factor)
        .min(options.backoff_max);
    limit.mul_f64(random_fraction())
}

/// Returns a number from 0 to 1. Without a source of randomness there is no jitter, which is no reason to fail.
fn random_fraction() -> f64 {
    let mut bytes = [0_u8; 4];
    match getrandom::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 1.0,
    }
}

/// Reads a `Retry-After` header: seconds or a date. What cannot be read, and what lies in the past, is no wish at all.
pub(crate) fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than fit mean "very long"; the caller has a limit.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    date.duration_since(now).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_as_seconds_or_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (value, expected) in [
            ("0", Some(0)),
            (" 2 ", Some(2)),
            ("1000000000", Some(1_000_000_000)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("-1", None),
            ("1.5", None),
            ("", None),
            ("soon", None),
            ("Sun, 06 Nov 1994 08:49:40 GMT", Some(3)),
            ("Sun, 06 Nov 1994 08:49:30 GMT", None),
            ("Sun, 99 Nov 1994 08:49:30 GMT", None),
        ] {
            let parsed = parse_retry_after(value, now).map(|d| d.as_secs());
            assert_eq!(parsed, expected, "{value:?}");
        }
    }

    #[test]
    fn backoff_grows_and_stays_within_its_limit() {
        let options = Options::default();
        for n_done in 1..100 {
            assert!(backoff(&options, n_done) <= options.backoff_max);
        }
        assert!(backoff(&options, 1) <= options.backoff_base);
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_always_fails_uses_up_its_budget() {
        let budgets = Budgets::default();
        let taken = (0..1000).filter(|_| budgets.take("a.example")).count();
        assert_eq!(taken, 50);
        assert!(budgets.take("b.example"));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!((0..10).filter(|_| budgets.take("a.example")).count(), 3);
    }
}
