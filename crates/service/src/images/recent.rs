//! Answers of registries that are given once more, for a moment.
//!
//! An answer belongs to one tenant, one way of proving who asks, and one reference ([`Key`]): nobody else is ever given it. It is as old as
//! its question: what is given was true at most [`Recent::fresh_for`] before it was asked for. Requests for the same that come while the
//! registry is being asked wait for its one answer. Failures are not remembered. There are never more than [`ANSWERS_MAX`] answers: beyond,
//! registries are asked as if there were no memory.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use oci::Reference;
use registry::keychain::Credential;

use super::credentials::Stamp;
use crate::access::Tenant;
use crate::failure::Failure;

/// Most answers that are remembered: a few hundred bytes each.
pub(super) const ANSWERS_MAX: usize = 4096;

/// Whose answer it is, and to what.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// Who asks.
    pub(super) tenant: Tenant,
    /// For what: name, and tag or digest.
    pub(super) image: String,
    /// With what of the service's.
    pub(super) granted: Granted,
    /// With what of the request's own.
    pub(super) own: Option<Print>,
}

/// What of the service's a request may use for the image's host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Granted {
    /// Nothing.
    Nothing,
    /// What the file says, as it is now, if there is one.
    File(Option<Stamp>),
}

/// What tells one credential from another, and tells nothing about it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Print([u8; 32]);

impl fmt::Debug for Print {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Print(…)")
    }
}

type Answer = Result<Reference, Arc<Failure>>;
type Question = BoxFuture<'static, Answer>;

struct Entry {
    /// Which question it was: an older one does not take the place of a newer one.
    number: u64,
    asked_at: Instant,
    said: Said,
}

enum Said {
    /// Nothing yet. Nobody waits any more when it cannot be upgraded.
    Nothing(WeakShared<Question>),
    This(Reference),
}

/// The answers.
pub(super) struct Recent {
    fresh_for: Duration,
    key: hmac::Key,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    entries: HashMap<Key, Entry>,
    n_questions: u64,
}

impl fmt::Debug for Recent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recent").finish_non_exhaustive()
    }
}

/// What there is already.
enum Found {
    Answer(Reference),
    Question(u64, Shared<Question>),
}

impl Recent {
    /// Returns a memory whose answers are good for `fresh_for`. `secret` is of this process alone.
    pub(super) fn new(fresh_for: Duration, secret: &[u8]) -> Self {
        Self {
            fresh_for,
            key: hmac::Key::new(hmac::HMAC_SHA256, secret),
            table: Mutex::default(),
        }
    }

    /// Returns what tells this credential from others, as long as this process lives.
    pub(super) fn print(&self, credential: &Credential) -> Print {
        let mut context = hmac::Context::with_key(&self.key);
        let (kind, parts) = match credential {
            Credential::Basic { username, password } => {
                (1_u8, [username.as_str(), password.reveal()])
            }
            Credential::IdentityToken(token) => (2, [token.reveal(), ""]),
            Credential::RegistryToken(token) => (3, [token.reveal(), ""]),
        };
        context.update(&[kind]);
        for part in parts {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part.as_bytes());
        }
        let tag = context.sign();
        let mut print = [0; 32];
        for (to, from) in print.iter_mut().zip(tag.as_ref()) {
            *to = *from;
        }
        Print(print)
    }

    /// Returns the answer to `key` that is known, or that somebody waits for, or asks.
    pub(super) async fn answer<F>(
        &self,
        key: Key,
        ask: impl FnOnce() -> F,
    ) -> Result<Reference, Failure>
    where
        F: Future<Output = Result<Reference, Failure>> + Send + 'static,
    {
        if self.fresh_for.is_zero() {
            return ask().await;
        }
        let (number, question) = match self.find_or_ask(&key, ask, Instant::now()) {
            Found::Answer(reference) => return Ok(reference),
            Found::Question(number, question) => (number, question),
        };
        let answer = question.await;
        self.table().take(&key, number, &answer);
        answer.map_err(|failure| Arc::try_unwrap(failure).unwrap_or_else(|shared| shared.again()))
    }

    fn find_or_ask<F>(&self, key: &Key, ask: impl FnOnce() -> F, now: Instant) -> Found
    where
        F: Future<Output = Result<Reference, Failure>> + Send + 'static,
    {
        let mut table = self.table();
        let known = table.entries.get(key);
        let fresh = known.filter(|entry| entry.is_fresh(self.fresh_for, now));
        match fresh.map(|entry| (entry.number, &entry.said)) {
            Some((_, Said::This(reference))) => return Found::Answer(reference.clone()),
            Some((number, Said::Nothing(question))) => {
                if let Some(question) = question.upgrade() {
                    return Found::Question(number, question);
                }
            }
            None => {}
        }
        let question: Question = ask().map(|answer| answer.map_err(Arc::new)).boxed();
        let question = question.shared();
        table.n_questions += 1;
        let number = table.n_questions;
        if let Some(waiting) = question.downgrade() {
            let entry = Entry {
                number,
                asked_at: now,
                said: Said::Nothing(waiting),
            };
            table.put(key, entry, self.fresh_for);
        }
        Found::Question(number, question)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn is_fresh(&self, fresh_for: Duration, now: Instant) -> bool {
        now.saturating_duration_since(self.asked_at) <= fresh_for
    }
}

impl Table {
    fn put(&mut self, key: &Key, entry: Entry, fresh_for: Duration) {
        if self.entries.len() >= ANSWERS_MAX {
            let now = entry.asked_at;
            self.entries.retain(|_, old| old.is_fresh(fresh_for, now));
        }
        if self.entries.len() < ANSWERS_MAX || self.entries.contains_key(key) {
            self.entries.insert(key.clone(), entry);
        }
    }

    /// Remembers what came of a question, unless a newer one was asked meanwhile.
    fn take(&mut self, key: &Key, number: u64, answer: &Answer) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        if entry.number != number {
            return;
        }
        match answer {
            Ok(reference) => entry.said = Said::This(reference.clone()),
            Err(_) => drop(self.entries.remove(key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use oci::Digest;
    use registry::keychain::{Keychain, Secret};
    use tokio::sync::Semaphore;

    use super::*;
    use crate::failure::Blame;

    const FRESH: Duration = Duration::from_secs(3600);

    fn recent(fresh_for: Duration) -> Recent {
        Recent::new(fresh_for, b"secret")
    }

    fn key(tenant: &str) -> Key {
        Key {
            tenant: Tenant::new(tenant).unwrap(),
            image: "registry.example/a:1".to_owned(),
            granted: Granted::Nothing,
            own: None,
        }
    }

    fn resolved(content: &str) -> Reference {
        let reference: Reference = "registry.example/a:1".parse().unwrap();
        reference.with_digest(Digest::sha256(content.as_bytes()))
    }

    /// A clock is not waited for: the question is made older.
    fn age(recent: &Recent, by: Duration) {
        let mut table = recent.table();
        for entry in table.entries.values_mut() {
            entry.asked_at -= by;
        }
    }

    /// A registry that says what it has, and counts.
    #[derive(Default)]
    struct Peer(AtomicUsize);

    impl Peer {
        fn says(&self, content: &str) -> impl Future<Output = Result<Reference, Failure>> + use<> {
            self.0.fetch_add(1, Ordering::Relaxed);
            let answer = resolved(content);
            async move { Ok(answer) }
        }

        fn n_asked(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[tokio::test]
    async fn an_answer_is_given_again_to_whom_it_was_given_and_to_nobody_else() {
        let (recent, peer) = (recent(FRESH), Peer::default());
        let print = |user: &str, password: &str| {
            recent.print(&Credential::Basic {
                username: user.to_owned(),
                password: Secret::new(password),
            })
        };
        let keys = [
            key("a"),
            key("b"),
            Key {
                image: "registry.example/a:2".to_owned(),
                ..key("a")
            },
            Key {
                granted: Granted::File(None),
                ..key("a")
            },
            Key {
                own: Some(print("u", "p")),
                ..key("a")
            },
            Key {
                own: Some(print("up", "")),
                ..key("a")
            },
            Key {
                own: Some(recent.print(&Credential::IdentityToken(Secret::new("u")))),
                ..key("a")
            },
            Key {
                own: Some(recent.print(&Credential::RegistryToken(Secret::new("u")))),
                ..key("a")
            },
        ];
        for (n, key) in keys.iter().enumerate() {
            let content = n.to_string();
            for _ in 0..3 {
                let answer = recent.answer(key.clone(), || peer.says(&content)).await;
                assert_eq!(answer.unwrap(), resolved(&content), "{key:?}");
            }
            assert_eq!(peer.n_asked(), n + 1, "{key:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_grows_old_from_when_it_was_asked_for_and_failures_are_forgotten() {
        let (recent, peer) = (recent(Duration::from_millis(1)), Peer::default());
        let first = recent.answer(key("a"), || peer.says("old")).await.unwrap();
        assert_eq!(first, resolved("old"));
        age(&recent, Duration::from_millis(2));
        let second = recent.answer(key("a"), || peer.says("new")).await.unwrap();
        assert_eq!(second, resolved("new"));

        let recent = self::recent(FRESH);
        let fails = || async { Err(Failure::new(Blame::Registry, "busy")) };
        let failed = recent.answer(key("a"), fails).await;
        assert_eq!(failed.unwrap_err().to_string(), "busy");
        assert!(recent.table().entries.is_empty());
        assert!(recent.answer(key("a"), || peer.says("x")).await.is_ok());
    }

    #[tokio::test]
    async fn who_asks_meanwhile_gets_the_one_answer_also_when_the_first_one_leaves() {
        let (recent, peer) = (Arc::new(recent(FRESH)), Peer::default());
        let open = Arc::new(Semaphore::new(0));
        let slow = |content: &str| {
            let (answer, open) = (peer.says(content), Arc::clone(&open));
            async move {
                open.acquire().await.unwrap().forget();
                answer.await
            }
        };
        let mut first = Box::pin(recent.answer(key("a"), || slow("one")));
        let mut second = Box::pin(recent.answer(key("a"), || slow("two")));
        assert!(futures_util::poll!(&mut first).is_pending());
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        open.add_permits(1);
        assert_eq!(second.await.unwrap(), resolved("one"));
        assert_eq!(peer.n_asked(), 1);

        // When all have left, the question is not asked any more, and the next one asks anew.
        let mut left = Box::pin(recent.answer(key("b"), || slow("left")));
        assert!(futures_util::poll!(&mut left).is_pending());
        drop(left);
        open.add_permits(1);
        let next = recent.answer(key("b"), || slow("next")).await;
        assert_eq!(next.unwrap(), resolved("next"));
    }

    #[tokio::test]
    async fn who_asks_later_than_answers_are_good_does_not_wait_for_an_old_question() {
        let (recent, peer) = (recent(FRESH), Peer::default());
        let open = Arc::new(Semaphore::new(0));
        let (answer, opened) = (peer.says("old"), Arc::clone(&open));
        let slow = || async move {
            opened.acquire().await.unwrap().forget();
            answer.await
        };
        let mut first = Box::pin(recent.answer(key("a"), slow));
        assert!(futures_util::poll!(&mut first).is_pending());
        age(&recent, 2 * FRESH);
        let later = recent.answer(key("a"), || peer.says("new")).await.unwrap();
        assert_eq!(later, resolved("new"));
        open.add_permits(1);
        assert_eq!(first.await.unwrap(), resolved("old"));
        // The old answer does not take the place of the new one.
        let known = recent.answer(key("a"), || peer.says("none")).await.unwrap();
        assert_eq!(known, resolved("new"));
        assert_eq!(peer.n_asked(), 2);
    }

    #[tokio::test]
    async fn there_are_never_more_answers_than_the_limit_and_old_ones_make_room() {
        let (recent, peer) = (recent(FRESH), Peer::default());
        let of = |n: usize| Key {
            image: n.to_string(),
            ..key("a")
        };
        for n in 0..ANSWERS_MAX + 10 {
            recent.answer(of(n), || peer.says("x")).await.unwrap();
        }
        assert_eq!(recent.table().entries.len(), ANSWERS_MAX);
        let n_before = peer.n_asked();
        recent.answer(of(0), || peer.says("x")).await.unwrap();
        assert_eq!(peer.n_asked(), n_before);
        age(&recent, 2 * FRESH);
        recent
            .answer(of(ANSWERS_MAX), || peer.says("x"))
            .await
            .unwrap();
        assert_eq!(recent.table().entries.len(), 1);
    }

    #[tokio::test]
    async fn without_a_time_every_request_asks() {
        let (recent, peer) = (recent(Duration::ZERO), Peer::default());
        for n in 1..4 {
            recent.answer(key("a"), || peer.says("x")).await.unwrap();
            assert_eq!(peer.n_asked(), n);
        }
        assert!(recent.table().entries.is_empty());
    }

    #[test]
    fn what_is_remembered_of_a_credential_shows_nothing_of_it() {
        let keychain = Keychain::from_additional([("registry.example", "dXNlcjpwYXNzd29yZA==")]);
        let credential = keychain.unwrap().get("registry.example").cloned().unwrap();
        let key = Key {
            own: Some(recent(FRESH).print(&credential)),
            ..key("a")
        };
        let shown = format!("{key:?}");
        assert!(
            !shown.contains("password") && shown.contains("Print(…)"),
            "{shown}"
        );
    }
}
