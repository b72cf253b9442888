//! Subassemblies: who asked for which, and where each stands.
//!
//! Making one is a build like any other (`engine::subassembly`): it waits for its turn, has a worker and a journal, and outlives this
//! process. Where it stands is never kept here:
//!
//! * available: the store has a record of it, and the file; with a bucket, the bucket has the file;
//! * creating: a build of its key runs, or waits;
//! * unavailable: the newest build of its key failed, which is remembered as long as builds are; or nobody has asked.
//!
//! What is asked for is written down (`wishes`) until it has an end, so that one which was still waiting when the service stopped is
//! started by the next one.

mod bucket;
pub(crate) mod wishes;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine::spec::{BuildSpec, Output, Purpose, Record, Source};
use engine::state::BuildState;
use engine::subassembly::{self, Format, Stored};
use oci::Reference;
use store::Store;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::bucket::Opened;
use self::wishes::{Pulling, Wish, Wishes};
use crate::access::{Caller, Tenant};
use crate::agents::Agents;
use crate::builds::Order;
use crate::builds::build::Build;
use crate::failure::{Failure, build_message, chain};
use crate::lifecycle::Service;
use crate::names::Rebuild;

pub use self::bucket::{Ambient, BucketError, Shelf};
pub use self::wishes::WishError;

/// What a caller is told when the store or the folder of wishes fails.
const FAILED: &str = "cannot tell where the subassembly stands";

/// Where a subassembly stands.
#[derive(Debug, Clone)]
pub enum Standing {
    /// It is being made, or waits for its turn.
    Creating,
    /// It is there.
    Available(Box<Available>),
    /// It is not there, and why.
    Unavailable(String),
}

/// A subassembly whose file is there.
#[derive(Debug, Clone)]
pub struct Available {
    /// What it is.
    pub stored: Stored,
    /// Its address in the bucket; when there is none, the file is in the store.
    pub url: Option<String>,
}

/// Every subassembly of this service. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Subassemblies {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    service: Arc<Service>,
    store: Store,
    format: Format,
    url_lifetime: Duration,
    bucket: Option<Shelf>,
    wishes: Wishes,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What [`Subassemblies`] are made of.
#[derive(Debug)]
pub struct Parts {
    /// Resolves images and starts builds.
    pub service: Arc<Service>,
    /// Where the files are.
    pub store: Store,
    /// What files are made.
    pub format: Format,
    /// How long the address of a file is good.
    pub url_lifetime: Duration,
    /// Where files are put, beside the store.
    pub bucket: Option<Shelf>,
    /// What goes on beside the calls.
    pub tasks: TaskTracker,
    /// Cancelled when the service is about to stop.
    pub stop: CancellationToken,
}

impl Subassemblies {
    /// Returns the subassemblies; `folder` is for what is asked for.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub fn open(parts: Parts, folder: &Path) -> Result<Self, WishError> {
        Ok(Self {
            inner: Arc::new(Inner {
                service: parts.service,
                store: parts.store,
                format: parts.format,
                url_lifetime: parts.url_lifetime,
                bucket: parts.bucket,
                wishes: Wishes::open(folder)?,
                tasks: parts.tasks,
                stop: parts.stop,
            }),
        })
    }

    /// Sees to it that the subassembly of an image is made: once, however many ask. One that failed is tried again.
    pub async fn create(
        &self,
        caller: &Caller,
        reference: &Reference,
    ) -> Result<Standing, Failure> {
        let tenant = &caller.tenant;
        let image = self.resolve(caller, reference).await?;
        match self.stands(tenant, &image).await? {
            Standing::Unavailable(_) => {
                let wish = Wish {
                    tenant: tenant.as_str().to_owned(),
                    image,
                    pulls_as: Pulling::of(caller),
                };
                self.start(wish).await?;
                Ok(Standing::Creating)
            }
            standing => Ok(standing),
        }
    }

    /// Returns where the subassembly of an image stands.
    pub async fn get(&self, caller: &Caller, reference: &Reference) -> Result<Standing, Failure> {
        let image = self.resolve(caller, reference).await?;
        self.stands(&caller.tenant, &image).await
    }

    /// Starts what was asked for in an earlier process and has no end yet.
    pub async fn resume(&self) {
        let wishes = match self.blocking(|inner| inner.wishes.all()).await {
            Ok(wishes) => wishes,
            Err(error) => {
                tracing::error!(
                    error = chain(&error),
                    "subassemblies that were waiting are not made"
                );
                return;
            }
        };
        for wish in wishes {
            let image = wish.image.clone();
            if let Err(error) = self.resume_one(wish).await {
                tracing::error!(error = chain(&error), %image, "a subassembly that was waiting is not made");
            }
        }
    }

    async fn resume_one(&self, wish: Wish) -> Result<(), Failure> {
        let key = wish.key(self.inner.format);
        if let Some(build) = self.inner.service.builds.running_under(&key) {
            self.watch(build);
            return Ok(());
        }
        let is_over = self.inner.service.builds.newest_under(&key).is_some()
            || self.find(&key).await?.is_some();
        if is_over {
            return self.forget(key).await;
        }
        self.start(wish).await
    }

    /// With the service's own credentials, if the caller may use them: there are none in the request.
    async fn resolve(&self, caller: &Caller, reference: &Reference) -> Result<Reference, Failure> {
        let service = &self.inner.service;
        let rights = Pulling::of(caller).rights();
        let rights = rights.of(caller, &service.settings.repositories);
        service.images.resolve(reference, &rights).await
    }

    async fn stands(&self, tenant: &Tenant, image: &Reference) -> Result<Standing, Failure> {
        let wish = Wish {
            tenant: tenant.as_str().to_owned(),
            image: image.clone(),
            pulls_as: Pulling::Nobody,
        };
        let key = wish.key(self.inner.format);
        // In this order: a build that has ended well has left its record before.
        let newest = self.inner.service.builds.newest_under(&key);
        if let Some(available) = self.find(&key).await? {
            return Ok(Standing::Available(Box::new(available)));
        }
        let Some(build) = newest else {
            return Ok(Standing::Unavailable(
                "nobody has asked for it to be made".to_owned(),
            ));
        };
        Ok(match build.progress().state {
            BuildState::Queued { .. } | BuildState::Active { .. } => Standing::Creating,
            BuildState::Failed { failure } => Standing::Unavailable(build_message(&failure)),
            BuildState::Cancelled => Standing::Unavailable("making it was cancelled".to_owned()),
            BuildState::Succeeded { .. } => {
                Standing::Unavailable("its file is not there any more".to_owned())
            }
        })
    }

    async fn start(&self, wish: Wish) -> Result<(), Failure> {
        let order = self.order(&wish).await?;
        // Written down first: from here on it is remembered.
        let format = self.inner.format;
        let (kept, wish) = (wish.key(format), wish);
        self.blocking(move |inner| inner.wishes.add(&wish, format))
            .await?;
        match self.inner.service.builds.start_or_join(order).await {
            Ok((build, _)) => {
                self.watch(build);
                Ok(())
            }
            Err(failure) => {
                self.forget(kept).await?;
                Err(failure)
            }
        }
    }

    async fn order(&self, wish: &Wish) -> Result<Order, Failure> {
        let service = &self.inner.service;
        let environment = service.settings.environment;
        let id = (environment.new_id)()
            .map_err(|error| Failure::platform("cannot make a build id", error))?;
        let keychains = service.images.keychains(&wish.pulls_as.rights()).await?;
        let tenant = Tenant::new(&wish.tenant)
            .map_err(|error| Failure::platform("the tenant of a subassembly is unknown", error))?;
        let spec = BuildSpec {
            cache_from: Vec::new(),
            cache_to: Vec::new(),
            secrets: BTreeMap::new(),
            ssh: BTreeMap::new(),
            id: id.clone(),
            tenant: wish.tenant.clone(),
            source: Source::Image {
                reference: wish.image.clone(),
            },
            options: service.options(Rebuild::IfMissing),
            outputs: vec![Output::Subassembly {
                format: self.inner.format,
                tenant: wish.tenant.clone(),
                bucket: self.bucket().await?.map(|opened| Box::new(opened.bucket)),
            }],
            registries: service.registries(&tenant, keychains),
            contexts: BTreeMap::new(),
            fetch: service.settings.fetch.clone(),
            limits: service.settings.limits.clone(),
        };
        let record = Record {
            id,
            tenant: wish.tenant.clone(),
            triggered_by: String::new(),
            caller: String::new(),
            supervisor_ref: String::new(),
            reference: wish.image.to_string(),
            base_reference: wish.image.to_string(),
            started_at_ms: (environment.now_ms)(),
            key: wish.key(self.inner.format),
            purpose: Purpose::Subassembly,
            request: String::new(),
            labels: std::collections::BTreeMap::new(),
        };
        Ok(Order {
            record,
            spec,
            agents: Agents::default(),
        })
    }

    /// Forgets the wish once its build has ended, however it did.
    fn watch(&self, build: Arc<Build>) {
        let all = self.clone();
        self.inner.tasks.spawn(async move {
            let mut progress = build.watch();
            let ended = progress.wait_for(|progress| progress.state.is_terminal());
            if all
                .inner
                .stop
                .run_until_cancelled(ended)
                .await
                .is_none_or(|ended| ended.is_err())
            {
                return;
            }
            if let Err(error) = all.forget(build.record.key.clone()).await {
                tracing::warn!(
                    error = chain(&error),
                    "a subassembly that has ended is still on the list"
                );
            }
        });
    }

    async fn find(&self, key: &str) -> Result<Option<Available>, Failure> {
        let store = self.inner.store.clone();
        let key = key
            .strip_prefix(wishes::KEY_PREFIX)
            .unwrap_or(key)
            .to_owned();
        let opened = self.bucket().await?;
        let look = if opened.is_some() {
            subassembly::recorded
        } else {
            subassembly::find
        };
        let found = tokio::task::spawn_blocking(move || look(&store, &key)).await;
        let found = found
            .map_err(|error| Failure::platform(FAILED, error))?
            .map_err(|error| Failure::platform(FAILED, error))?;
        match (found, opened) {
            (Some(stored), Some(opened)) => self.in_bucket(stored, &opened).await,
            (found, _) => Ok(found.map(|stored| Available { stored, url: None })),
        }
    }

    /// Returns a subassembly with an address in the bucket, if its file is there.
    async fn in_bucket(
        &self,
        stored: Stored,
        opened: &Opened,
    ) -> Result<Option<Available>, Failure> {
        let name = subassembly::object_name(&stored.digest)
            .map_err(|error| Failure::platform(FAILED, error))?;
        let (objects, lifetime) = (&opened.objects, self.inner.url_lifetime);
        let size = objects.head(&name).await;
        if size.map_err(|error| Failure::platform(FAILED, error))? != Some(stored.size_bytes) {
            return Ok(None);
        }
        let url = objects.presign(&name, lifetime).await;
        let url = url.map_err(|error| Failure::platform(FAILED, error))?;
        Ok(Some(Available {
            stored,
            url: url.map(String::from),
        }))
    }

    /// Returns the bucket, if there is one.
    async fn bucket(&self) -> Result<Option<Opened>, Failure> {
        if self.inner.bucket.is_none() {
            return Ok(None);
        }
        let inner = Arc::clone(&self.inner);
        let open = move || inner.bucket.as_ref().map(Shelf::open).transpose();
        let opened = tokio::task::spawn_blocking(open).await;
        opened
            .map_err(|error| Failure::platform(FAILED, error))?
            .map_err(|error| Failure::platform(FAILED, error))
    }

    async fn forget(&self, key: String) -> Result<(), Failure> {
        self.blocking(move |inner| inner.wishes.remove(&key)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, WishError> + Send + 'static,
    ) -> Result<T, Failure> {
        let inner = Arc::clone(&self.inner);
        let done = tokio::task::spawn_blocking(move || work(&inner)).await;
        done.map_err(|error| Failure::platform(FAILED, error))?
            .map_err(|error| Failure::platform(FAILED, error))
    }
}
