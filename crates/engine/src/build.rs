//! The whole of a build, in one function.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dockerfile::BaseKey;
use oci::{ImageConfig, Reference};
use registry::client::{Client, Options};
use store::Store;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::assemble::{self, Image, LayerRef};
use crate::event::{BuiltImage, Event, Failure, FailureKind, Phase};
use crate::execute::ahead::Ahead;
use crate::execute::cache::{Cache, Scope};
use crate::execute::depot::{Depot, Work, note_content};
use crate::execute::layers::StageResult;
use crate::execute::shown::Shown;
use crate::execute::{Counters, Execution, execute};
use crate::failure::{chain, failure, platform, registry as registry_failure};
use crate::publish::Publisher;
use crate::recorder::Recorder;
use crate::resolve::bases::Library;
use crate::resolve::context::{self, BuildContext, Places, work_folder};
use crate::resolve::uploaded::Shelf;
use crate::resolve::{self, Resolved};
use crate::sandbox::Sandbox;
use crate::share::table::{Learning, Table};
use crate::spec::{
    BuildSpec, CacheFrom, CacheMountScope, CacheTo, Context, LayoutImage, NamedContext, Source,
};
use crate::{publish, share};

/// What a build works with.
pub struct Rig {
    /// Blobs, snapshots, the cache and the embedded registry.
    pub store: Store,
    /// How steps run.
    pub sandbox: Arc<dyn Sandbox>,
    /// The journal.
    pub recorder: Recorder,
    /// The build's folder.
    pub folder: PathBuf,
    /// Ends the build early.
    pub cancel: CancellationToken,
}

impl std::fmt::Debug for Rig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rig")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

/// Builds what `spec` asks for, and publishes it.
///
/// 1. resolve: fetch the sources, parse the Dockerfile, pin every base to a digest;
/// 2. plan: which steps in which stages;
/// 3. execute: run the steps whose results are not known, writing layers in the background;
/// 4. assemble: configuration and manifest;
/// 5. publish: under every name that was asked for, and only then say so.
pub async fn build(spec: &BuildSpec, rig: &Rig) -> Result<BuiltImage, Failure> {
    rig.recorder.event(&Event::Phase {
        phase: Phase::Resolving,
    });
    let layouts = layouts(spec, rig).await?;
    let (library, publisher) = helpers(spec, rig, layouts)?;
    let built = match &spec.source {
        Source::Image { reference } => copy_image(spec, rig, &library, &publisher, reference).await,
        Source::Dockerfile {
            context,
            dockerfile,
            context_path,
        } => {
            let places = Places {
                dockerfile: dockerfile.as_deref(),
                context_path: context_path.as_deref(),
            };
            build_dockerfile(spec, rig, (&library, &publisher), context, &places).await
        }
    };
    publisher.ahead.end().await;
    built
}

fn helpers(spec: &BuildSpec, rig: &Rig, layouts: Layouts) -> Result<(Library, Publisher), Failure> {
    let registries = &spec.registries;
    let options = Options {
        proxy: registries.proxy.clone(),
        egress: registries.egress.clone(),
        ..Options::default()
    };
    let pull = Client::new(registries.hosts.clone(), registries.pull.clone(), options);
    let pull = pull.map_err(|e| registry_failure("set up the registry client", &e))?;
    let publish = pull.with_keychain(registries.publish.clone());
    let library = Library {
        store: rig.store.clone(),
        pull: pull.clone(),
        registries: registries.clone(),
        recorder: rig.recorder.clone(),
        layouts,
        stored: Shown::new(spec, &rig.store, &pull).stored(),
    };
    let shown = Shown::new(spec, &rig.store, &pull);
    let depot = Depot {
        store: rig.store.clone(),
        pull,
        recorder: rig.recorder.clone(),
        layer_bytes: spec.limits.layer_bytes,
        cancel: rig.cancel.clone(),
        work: Arc::<Work>::default(),
        shown,
    };
    let ahead = Ahead::new(&publish, &spec.outputs, &registries.embedded, &rig.cancel);
    let publisher = Publisher {
        depot,
        client: publish,
        ahead,
        embedded: registries.embedded.clone(),
        folder: rig.folder.clone(),
        export_bytes: spec.limits.export_bytes,
    };
    Ok((library, publisher))
}

/// Gives up talking to registries when the build is to end: they may never answer. Steps are not given up so but killed and waited for.
async fn unless_cancelled<T>(
    rig: &Rig,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let done = rig.cancel.run_until_cancelled(work).await;
    done.unwrap_or_else(|| Err(failure(FailureKind::Platform, "cancelled")))
}

/// OCI layouts by the names that they stand for.
type Layouts = BTreeMap<String, (PathBuf, LayoutImage)>;

/// Returns where the layouts are that stand for images; those that were uploaded are put together first.
async fn layouts(spec: &BuildSpec, rig: &Rig) -> Result<Layouts, Failure> {
    let shelf = Shelf {
        store: rig.store.clone(),
        tenant: spec.tenant.clone(),
    };
    let mut layouts = Layouts::new();
    for (index, (name, context)) in spec.contexts.iter().enumerate() {
        let layout = match context {
            NamedContext::Layout { path, image } => (path.clone(), image.clone()),
            NamedContext::UploadedLayout { context, image } => {
                let into = work_folder(&rig.folder).join(format!("layout-{index}"));
                let path = shelf.put_together(context, into, &rig.cancel).await?;
                (path, image.clone())
            }
            _ => continue,
        };
        layouts.insert(name.clone(), layout);
    }
    Ok(layouts)
}

/// Puts uploaded caches together. One that cannot be is no reason for a build to fail.
async fn uploaded_caches(spec: &BuildSpec, rig: &Rig) -> share::read::Uploads {
    let shelf = Shelf {
        store: rig.store.clone(),
        tenant: spec.tenant.clone(),
    };
    let mut uploads = share::read::Uploads::new();
    for (index, from) in spec.cache_from.iter().enumerate() {
        let CacheFrom::Uploaded { context, .. } = from else {
            continue;
        };
        if uploads.contains_key(context) {
            continue;
        }
        let into = work_folder(&rig.folder).join(format!("cache-{index}"));
        let path = shelf.put_together(context, into, &rig.cancel).await;
        uploads.insert(context.clone(), path.map_err(|failure| failure.message));
    }
    uploads
}

async fn build_dockerfile(
    spec: &BuildSpec,
    rig: &Rig,
    (library, publisher): (&Library, &Publisher),
    context: &Context,
    places: &Places<'_>,
) -> Result<BuiltImage, Failure> {
    let recorder = &rig.recorder;
    let work = work_folder(&rig.folder);
    let workspace = {
        let work = (&rig.store, (work.as_path(), &rig.cancel));
        context::load(spec, context, places, recorder, work).await?
    };
    let platform = &spec.options.platform;
    let uploads = uploaded_caches(spec, rig).await;
    let from = (&spec.cache_from[..], &uploads);
    let resolving = async {
        let (resolved, imported) = tokio::join!(
            resolve::resolve(&workspace, spec, library, recorder),
            share::read::read_all(from, platform, library, recorder),
        );
        Ok((resolved?, imported))
    };
    let (resolved, imported) = unless_cancelled(rig, Box::pin(resolving)).await?;
    let learning = if spec.cache_to.is_empty() {
        Learning::Off
    } else {
        Learning::On
    };
    let table = Arc::new(Table::new(imported, learning));
    let named = {
        let work = (&rig.store, (work.as_path(), &rig.cancel));
        context::load_named(spec, &resolved.plan, recorder, work).await?
    };
    recorder.event(&Event::Phase {
        phase: Phase::Running,
    });
    let epoch = asked_epoch(spec)?
        .or(resolved.plan.source_date_epoch)
        .or(workspace.commit_time);
    let inputs = (workspace, named, resolved);
    let execution = execution(spec, rig, publisher, (inputs, table), epoch);
    let target = execute(&execution).await?;
    let image = assemble_target(&execution, &target, &spec.cache_to).await?;
    recorder.event(&Event::Phase {
        phase: Phase::Pushing,
    });
    let (table, plan) = (&execution.cache.table, &execution.plan);
    let publishing = async {
        let references = publish::publish(publisher, &image, &spec.outputs, recorder).await?;
        share::write::write_all(&spec.cache_to, table, plan, publisher, recorder).await?;
        Ok(references)
    };
    let references = unless_cancelled(rig, Box::pin(publishing)).await?;
    keep_snapshots(&execution).await;
    Ok(BuiltImage {
        digest: image.digest.clone(),
        config_digest: image.manifest.config.digest.clone(),
        references,
        outputs: publish::output_names(&spec.outputs),
        n_run: execution.counters.run.load(Ordering::Relaxed),
        n_cached: execution.counters.cached.load(Ordering::Relaxed),
    })
}

/// Returns the date that the caller asked for: as an option, or as the build argument that everybody uses for it.
fn asked_epoch(spec: &BuildSpec) -> Result<Option<i64>, Failure> {
    const NAME: &str = "SOURCE_DATE_EPOCH";
    let argument = spec
        .options
        .build_args
        .get(NAME)
        .filter(|value| !value.is_empty());
    let argument = argument.map(|value| value.parse()).transpose();
    let argument = argument.map_err(|_| {
        failure(
            FailureKind::Dockerfile,
            format!("build argument {NAME} is not a number of seconds"),
        )
    })?;
    Ok(spec.options.source_date_epoch.or(argument))
}

/// What a build works on.
type Inputs = (context::Workspace, BTreeMap<String, BuildContext>, Resolved);

fn execution(
    spec: &BuildSpec,
    rig: &Rig,
    publisher: &Publisher,
    ((workspace, contexts, resolved), table): (Inputs, Arc<Table>),
    epoch: Option<i64>,
) -> Arc<Execution> {
    let scope = Scope {
        tenant: spec.tenant.clone(),
        platform: spec.options.platform.to_string(),
    };
    Arc::new(Execution {
        plan: resolved.plan,
        bases: resolved.bases,
        dockerfile: workspace.dockerfile,
        context: workspace.context,
        contexts,
        options: spec.options.clone(),
        limits: spec.limits.clone(),
        fetch: spec.fetch.clone(),
        secrets: spec.secrets.clone(),
        ssh: spec.ssh.clone(),
        mounts_of: (
            spec.tenant.clone(),
            match spec.options.cache_mounts {
                CacheMountScope::Project => Some(workspace.project.clone()),
                CacheMountScope::Tenant => None,
            },
        ),
        context_copies: tokio::sync::Mutex::default(),
        cache: Cache::new(rig.store.clone(), scope, workspace.project, table),
        depot: publisher.depot.clone(),
        ahead: publisher.ahead.clone(),
        recorder: rig.recorder.clone(),
        sandbox: Arc::clone(&rig.sandbox),
        work: work_folder(&rig.folder),
        cancel: rig.cancel.clone(),
        epoch,
        slots: Semaphore::new(usize::try_from(spec.limits.parallel_steps.max(1)).unwrap_or(1)),
        counters: Counters::default(),
        fresh: std::sync::Mutex::default(),
    })
}

/// Makes the image of the target stage.
async fn assemble_target(
    execution: &Execution,
    target: &StageResult,
    cache_to: &[CacheTo],
) -> Result<Image, Failure> {
    let stage = execution.plan.stage(execution.plan.target);
    let stage = stage.ok_or_else(|| failure(FailureKind::Platform, "the plan has no target"))?;
    let mut config: ImageConfig = stage.config.clone();
    // That of a base is about its own steps.
    config.extra.remove(share::document::FIELD);
    if cache_to.contains(&CacheTo::Inline) {
        let document = share::write::inline(&execution.cache.table, &execution.plan);
        let document =
            serde_json::to_value(&document).map_err(|e| platform("encode the cache", &e))?;
        config
            .extra
            .insert(share::document::FIELD.to_owned(), document);
    }
    let created = execution.epoch.or(target.created);
    let date = created.map(assemble::rfc3339);
    for entry in config.history.iter_mut().skip(stage.n_base_history) {
        entry.created.clone_from(&date);
    }
    let mut layers: Vec<LayerRef> = Vec::new();
    for layer in target.layers.iter() {
        match (layer.written().await?, layer.history_index) {
            (Some(written), _) => layers.push(written),
            (None, Some(index)) => assemble::mark_empty(&mut config.history, index),
            (None, None) => {}
        }
    }
    let options = &execution.options;
    let form = (options.media_types, &options.annotations);
    assemble::assemble(config, layers, created, form)
}

/// Leaves the directories of this build's steps to later builds, so that nobody has to unpack their layers.
async fn keep_snapshots(execution: &Arc<Execution>) {
    let layers = execution.take_fresh();
    // Side by side, so that the disk is waited for once.
    let kept = layers.iter().map(|layer| async {
        let (Some((path, _)), Ok(Some(written))) = (layer.fresh_directory(), layer.written().await)
        else {
            return;
        };
        let store = execution.depot.store.clone();
        let kept =
            tokio::task::spawn_blocking(move || keep_snapshot(&store, &path, &written)).await;
        if let Ok(Err(error)) = kept {
            execution
                .recorder
                .warn(format!("a layer was not kept unpacked: {error}"));
        }
    });
    futures_util::future::join_all(kept).await;
}

fn keep_snapshot(store: &Store, directory: &Path, layer: &LayerRef) -> Result<(), String> {
    note_content(store, layer);
    if store.has_snapshot(&layer.diff_id) {
        return Ok(());
    }
    let draft = store.new_snapshot().map_err(|e| chain(&e))?;
    // A directory replaces an empty one in one step.
    std::fs::rename(directory, draft.path()).map_err(|e| e.to_string())?;
    draft
        .commit(&layer.diff_id)
        .map(drop)
        .map_err(|e| chain(&e))
}

/// Publishes an image as it is under other names.
async fn copy_image(
    spec: &BuildSpec,
    rig: &Rig,
    library: &Library,
    publisher: &Publisher,
    reference: &Reference,
) -> Result<BuiltImage, Failure> {
    let key = BaseKey {
        reference: reference.clone(),
        platform: spec.options.platform.clone(),
        layout: None,
    };
    let base = unless_cancelled(rig, Box::pin(library.pin(&key))).await?;
    rig.recorder.event(&Event::Phase {
        phase: Phase::Pushing,
    });
    let image = Image {
        digest: oci::Digest::sha256(&base.manifest_bytes),
        media_type: oci::Document::Manifest(base.manifest.clone())
            .media_type()
            .to_owned(),
        manifest_bytes: base.manifest_bytes,
        manifest: base.manifest,
        config_bytes: base.config_bytes,
        config_origin: Some(base.pinned),
        layers: base.layers,
    };
    let publishing = publish::publish(publisher, &image, &spec.outputs, &rig.recorder);
    let references = unless_cancelled(rig, Box::pin(publishing)).await?;
    Ok(BuiltImage {
        digest: image.digest,
        config_digest: image.manifest.config.digest,
        references,
        outputs: publish::output_names(&spec.outputs),
        n_run: 0,
        n_cached: 0,
    })
}
