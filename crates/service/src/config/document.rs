//! The configuration, explained: what `kiln config` prints.

/// Returns a configuration file with every key at its default, explained. Keys without a default are commented out.
pub fn print_documented() -> &'static str {
    DOCUMENTED
}

const DOCUMENTED: &str = r#"# Configuration of `kiln serve`. Every key is shown with its default; a key that is not known is an error.

# Where to listen. Port 0 lets the system choose; STATE/server/address says which one it was.
listen = "127.0.0.1:8080"

# host:port under which clients reach this server: in the names of images in the embedded registry, and in the addresses of logs.
# The bound address when not given (with 127.0.0.1 in the place of an address that means "all").
#address = "kiln.example.com:8080"

# Where builds, layers, images and logs are kept. /var/lib/kiln for root, else $XDG_DATA_HOME/kiln.
#state = "/var/lib/kiln"

# Where images are published. Repositories of the embedded registry when not given.
#base_image_repository = "registry.example.com/base-images"
#workspace_image_repository = "registry.example.com/workspace-images"

# Without [[callers]] (below), whoever reaches the port may do everything. So it is only served on this machine's loopback addresses, unless
# clients need certificates (tls.client_ca) or this is true.
open_to_network = false

# What names begin with that callers of kiln.v1 (kiln build --server -t) give to images in the embedded registry: host/builds/NAME.
# Empty: images are kept under no such names.
build_namespace = "builds"

# What all names of other tenants than the default one begin with in the embedded registry: host/tenants/TENANT/NAME.
tenant_namespace = "tenants"

# Repositories of the embedded registry that every tenant may pull, each with what is below it.
shared_repositories = []

# A docker config.json (or .dockerconfigjson) with the service's registry credentials: auths, credHelpers, credsStore.
# Read again when it changes.
#pull_secret_file = "/etc/kiln/docker-config.json"

# Whether tokens for Amazon's registries are fetched, one per account and region, by the program
# docker-credential-ecr-login (Debian: amazon-ecr-credential-helper) and with what it finds for credentials.
enable_additional_ecr_auth = false

# Network of RUN steps that do not say: "default" (a way out, but not to this machine), "none", or "host"
# (needs limits.allow_host_network).
network = "default"

# How new layers are compressed: "gzip", which everything reads, or "zstd".
compression = "gzip"

# Certificates, in PEM form. Plain text without them. With client_ca, clients without a certificate it signed are refused before they have
# said anything: clients = "need-certificate". With "may-have-certificate" they need a token instead ([[callers]]).
#[tls]
#cert = "/etc/kiln/server.pem"
#key = "/etc/kiln/server.key"
#client_ca = "/etc/kiln/clients.pem"
#clients = "need-certificate"

# Who may call, one table each. With any, nobody else may: every call needs a token or a certificate of one of them. A token is sent as
# `authorization: Bearer TOKEN`, or as the password of any user (docker login). A caller is of one tenant, and reaches what is that
# tenant's; builds, logs, contexts, caches, cache mounts, subassemblies and repositories of others are not there for it. These tables are
# read again when this file changes, and let others in or out; nothing else of it is.
#[[callers]]
# What the log calls it.
#name = "ci"
# Whose it is: a word of a-z, 0-9, `-`, `_` and `.`. "default" when not given, whose images have the published names.
#tenant = "team-a"
# "pull": pull from the embedded registry. "read": look at builds, logs and images, and pull. "build": build, cancel, upload, push, and
# read. "credentials": have the service's registry credentials used for what its requests say (auth); without it, only those that a request
# brings. "metrics": /metrics. "admin": all of these, and every tenant's repositories in the embedded registry.
#rights = ["build"]
# A file with its tokens, one a line, of 24 or more characters each: `openssl rand -hex 32`. Read again when it changes, so that a token can
# be replaced, or taken back, while the server runs.
#token_file = "/etc/kiln/tokens/ci"
# Or the SHA-256 of tokens, in hexadecimal: `printf %s TOKEN | sha256sum`.
#token_sha256 = ["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"]
# Or what its certificate, signed by tls.client_ca, says: cn:NAME, dns:NAME, uri:URI or email:ADDRESS. Compared whole.
#certificates = ["cn:ci", "uri:spiffe://example.com/ci"]

# Images whose digests are looked up ahead of time, and again every interval.
[ref_cache]
interval = "6h"
refs = []
# How long what a registry says of any other image is told again to who has asked for it: the same tenant, with the same credentials. Only
# where a name is asked for (ResolveBaseImage, ResolveWorkspaceImage): a build always asks the registry. "0s": everybody does. At most "1h".
fresh_for = "1s"

# How much is kept of layers, unpacked layers, cache mounts and results of steps. What a repository of the embedded registry holds is not
# among them, and never collected. Of the rest goes first what was used longest ago; never what a build that is running has used.
[cache]
# What they may take in all; 60 % of the disk when not given.
#max_bytes = 107374182400
# What is to be free on the disk, if need be without a cache but for what was used within the last hour; 5 % of it when not given, and
# 10 GiB at most.
#min_free_bytes = 10737418240
# How long what nobody uses is kept.
unused_for = "30d"

# How much the server takes on.
[server]
# Builds that run at the same time.
max_running_builds = 8
# Builds that wait for their turn; more are refused with RESOURCE_EXHAUSTED.
max_queued_builds = 256
# Connections at the same time; more wait to be accepted.
max_connections = 4096
# Largest gRPC request, in bytes.
max_request_bytes = 104857600
# How long open streams get to end when the server stops. Builds go on.
drain_timeout = "10s"
# How often a build is begun again when its worker was killed, by the kernel for want of memory, say. It keeps its id, its log and those who
# watch it. Not after a restart of the server: what is secret in a build is in no file.
retries_of_lost_workers = 0
# Its niceness, as nice(1) has it: less than 0, and it gets the processors before its builds, so that it answers on a busy machine, too. Takes
# effect where the system allows it (root, or CAP_SYS_NICE); 0 leaves the server as one among its builds, which keep what it was started with.
niceness = -5
# How long an ended build and its log are kept.
retention = "7d"
# How much the journals of ended builds may take together, in bytes: the oldest go first. Not limited when not given.
#retention_bytes = 10737418240

# Which builds are taken on. What is too much is refused with RESOURCE_EXHAUSTED and the name of the key. Tenants that want more than there
# is get the same share of the places where builds run, by the time that their builds take; the builds of one tenant run in the order in
# which they came. A build that waits says how many come before it, and is not lost when the server restarts.
[admission]
# Builds of one tenant that run at the same time; as many as server.max_running_builds when not given.
#tenant_running = 4
# Builds of one tenant that wait; as many as server.max_queued_builds when not given, and half of them where there are callers.
#tenant_queued = 100
# What has to be free on the disk for another build; 2 % of it when not given, and 1 GiB at most. Before a build is refused, what nobody uses
# is collected.
#min_free_bytes = 1073741824
# Tenants for which something else is meant.
#[admission.tenants.team-a]
# How much it gets when others want something too, compared with them: 1 to 1000.
#weight = 2
#running = 4
#queued = 100

# Folders that callers upload to build from. How much one may hold, limits.context_bytes and limits.context_files say.
[contexts]
# How long a build can be started from one. What was uploaded is kept for up to twice as long, and need not be sent again meanwhile.
lifetime = "1h"
# What those of one tenant may take in all, in bytes; 20 % of the disk when not given. Small files count for as much of the disk as there is
# for each file that it can hold. Before an upload is refused with RESOURCE_EXHAUSTED, contents go that no context needs any more, the oldest
# first. Uploads also leave free what a build needs (admission.min_free_bytes) and as much again, 256 MiB of that at most: they are refused
# before builds are.
#max_bytes = 107374182400
# Uploads of one tenant at the same time; more wait for their turn.
max_uploads = 4
# How long they wait before they are refused with RESOURCE_EXHAUSTED.
wait_timeout = "2m"
# How long the next piece of an upload may take to come.
piece_timeout = "60s"

# Where connections may lead that a request asks for: registries, git, downloads, one-time secrets. A name is resolved once, and what
# is connected to is one of the addresses that were judged. Hosts that other keys name (repositories, registry tables and their
# mirrors, git.http_hosts, git.secret_hosts, ref_cache.refs) may be reached wherever they are.
[egress]
# "public": the Internet. "private": also this machine and private networks. When not given, "public" for `kiln serve` and "private"
# for `kiln build`. Link-local addresses and the metadata services of clouds are reached only if they are listed.
#reach = "public"
# Networks that may be reached whatever they are, as 10.0.0.0/8.
networks = []
# Hosts (name or name:port) that may be reached wherever they are.
hosts = []

# What git may talk to, beyond any host over https and this machine over http.
[git]
# Hosts (name or name:port) to which plain http is allowed.
http_hosts = []
# Hosts that one-time secrets may come from; any https host when empty.
secret_hosts = []
# Certificate authorities in PEM form, instead of the system's.
#ca_file = "/etc/kiln/git-ca.pem"
# Which submodules are fetched: "off", "same-host" (those at the repository's own scheme, host and port), or "all" (those at any host that
# may be connected to; only the repository's own host gets its credential). The log says which are not. At most 64, four levels deep.
submodules = "off"
# Whether files kept with LFS are fetched from the repository's own LFS service: "on", or "off", which leaves their pointers and says so in
# the log.
lfs = "off"

# What one build may use up.
[limits]
# The whole build, in seconds.
wall_time_s = 3600
# One step, in seconds.
step_time_s = 3600
# How long one step may write nothing, in seconds. Not limited when not given.
#step_idle_s = 1800
# Memory of one step, in bytes. Not limited when not given.
#step_memory_bytes = 4294967296
# Most that a request may want for /dev/shm in its steps, in bytes; they have 64 MiB when it does not say. `kiln build` on this machine allows
# what its --shm-size asks for.
step_shm_bytes = 1073741824
# Processes and threads of one step.
step_pids = 4096
# Steps that run at the same time.
parallel_steps = 8
# Steps of all builds that run at the same time, those of `kiln build` with this configuration and state directory among them. They run in the
# order in which they are ready; a step that waits for longer than a second says so in the log. Waiting takes from wall_time_s and not from
# step_time_s. Not limited when not given.
#parallel_steps_in_all = 8
# Output of one step that is kept, in bytes: of more, the beginning and the end (a quarter of it, 1 MiB at most), with a mark in between.
step_log_bytes = 268435456
# Output of all steps of one build that is kept, in bytes: of more, the beginning, and of every step after that its end (a quarter of it
# and 64 MiB at most for all of them, and 4 KiB of each in any case), with marks in between.
log_bytes = 1073741824
# Files of the context that are fetched, uploaded or copied, in bytes and in number.
context_bytes = 17179869184
context_files = 2000000
# One layer, uncompressed, in bytes.
layer_bytes = 68719476736
# One exported file, in bytes.
export_bytes = 68719476736
# Whether steps may use this machine's network.
allow_host_network = false
# Whether steps may ask to be kept from less (RUN --security=insecure): all rights of their user namespace, no filter of system calls.
allow_insecure = false

# Archives for the initializers snapshot, prebuild and backup: tar, plain or compressed, named by their path in the folder. A tenant's
# backup is TENANT/full.tar. Workers, who are another user, must be able to read them.
[snapshots]
#folder = "/srv/kiln/snapshots"

# How subassemblies are made: one image's root filesystem as one file.
[subassembly]
# What the file is: "tar+zstd", an archive that needs no other program, or "squashfs", which Linux mounts (made by tar2sqfs, Debian
# package squashfs-tools-ng).
format = "tar+zstd"
# How long the address of a file is good.
url_lifetime = "1h"
# A bucket that the files are put into as well; addresses lead there then, and are good for 7 days at most.
#bucket = "subassemblies"
# What the names of files in the bucket begin with.
#bucket_prefix = "kiln/production"

# How buckets are reached: stores that speak the protocol of S3. Keys that no file holds are taken from AWS_ACCESS_KEY_ID,
# AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN; where the store is, from AWS_ENDPOINT_URL and AWS_REGION when it is not said here.
[objects]
# The store; Amazon's of the region when not given.
#endpoint = "https://s3.example.com"
# Where the store says it is; us-east-1 when not given.
#region = "eu-central-1"
# Files with the keys; read again for each use.
#access_key_id_file = "/etc/kiln/s3/id"
#secret_access_key_file = "/etc/kiln/s3/secret"
#session_token_file = "/etc/kiln/s3/session"

# How workers are started.
[worker]
# First of the 65536 user and group ids that a worker runs as. /etc/subuid and /etc/subgid decide when not given.
#user_namespace_base = 100000

# How a registry is reached, one table for each host; registries on loopback addresses are plain http by default.
#[registry."docker.io"]
#mirrors = ["mirror.example.com"]
#[registry."mirror.example.com"]
#http = false
#insecure = false
#ca = ["/etc/kiln/mirror-ca.pem"]
#keypair = [{ key = "/etc/kiln/mirror.key", cert = "/etc/kiln/mirror.pem" }]
"#;
