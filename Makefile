# What one does here; `make check` is all of what CI does.
#
#   make demo                 shows kiln at work, from nothing to a running image
#   make test                 runs every test; `make test FILTER=git` those whose names contain git
#   make check                format, lints, tests, docs, tidy
#   make corpus               compares Kiln with BuildKit, Dockerfile by Dockerfile; `make corpus CASES='copy/ mount/'` some of them
#   make bench                times the same builds by Kiln and its peers; `make bench WORKLOADS='W1 W6' ROUNDS=5` some of them, as often
#   make scale                what the n-th build, blob and line of a log cost, and 32 builds at once
#   make soak SECONDS=600     kills, fails and fills everything, so long for each part, and prints figures; as root for all of them
#   make world                builds Dockerfiles as the world writes them, with what package registries offer
#
# Nothing here wants a network beyond the package mirrors of this machine, and nothing is left running.

FILTER ?=
SECONDS_PER_TARGET ?= 30

APPS ?=
WORKLOADS ?=
SECONDS ?= 600
ROUNDS ?= 3

.PHONY: demo test soak world bench scale corpus generated check format lint docs tidy e2e fuzz deny packages

demo:
	scripts/demo.sh

# An ordinary user's tests of mounts and owners run in a user namespace of their own; root's need none. Small disks to fill are root's alone to make.
ifeq ($(shell id -u),0)
test: packages
	cargo test --workspace -- $(FILTER)
else
test: packages
	cargo test --workspace --exclude engine -- --skip a_full_disk_fails_builds_in_words_and_nothing_else $(FILTER)
	CARGO_TARGET_$(shell uname -m | tr a-z A-Z)_UNKNOWN_LINUX_GNU_RUNNER='unshare --user --map-auto --map-root-user --mount' \
	    cargo test --package engine -- $(FILTER)
endif

check: format lint docs tidy generated test

format:
	cargo fmt --all --check

lint:
	cargo clippy --workspace --all-targets -- -D warnings

docs:
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps

tidy:
	cargo xtask tidy

# What is made of the .proto files is made again; whoever changed one commits what comes of it. Then the contract is held against what was
# published.
generated: packages
	proto/generate.sh
	proto/check.sh

# What every run of the tests does a little of: every system call of every way of writing is killed and failed, servers and workers are
# killed, disks are filled, everything is collected beside pushes and pulls. In the end, a table of figures, see docs/operations.md.
soak: packages
	scripts/soak.sh $(SECONDS)

# The end-to-end tests alone.
e2e: packages
	cargo test --package tests -- $(FILTER)

# Every case of tests/corpus with Kiln, and with BuildKit where buildkitd and buildctl are on PATH; UPDATE=1 writes what BuildKit does into them.
corpus: packages
	KILN_CORPUS=buildkit KILN_CORPUS_CASES='$(CASES)' KILN_UPDATE_EXPECTED='$(UPDATE)' cargo test --package tests corpus:: -- --nocapture

# Dockerfiles of tests/world; `make world APPS='go-service workspace'` some of them. Needs package registries, hence apart from `test`.
world: packages
	scripts/world.sh $(APPS)

# Ratios to BuildKit where buildkitd and buildctl are on PATH, to buildah where that is, to Docker where dockerd, docker, containerd and runc are;
# docs/performance.md has what they were. As root, for BuildKit is at its best then. What was measured is written to target/bench.
bench: packages
	cargo build --release --package kiln --package bench
	$${CARGO_TARGET_DIR:-target}/release/bench --kiln $${CARGO_TARGET_DIR:-target}/release/kiln --rounds $(ROUNDS) --out target/bench $(WORKLOADS)

# What the n-th build, blob and line of a log cost, and many builds at once.
scale: packages
	cargo build --release --package kiln --package bench
	$${CARGO_TARGET_DIR:-target}/release/bench --kiln $${CARGO_TARGET_DIR:-target}/release/kiln --out target/scale scale

# Each fuzz target for a little while; needs cargo-fuzz and a nightly toolchain.
fuzz:
	cargo xtask fuzz-smoke $(SECONDS_PER_TARGET)

# Licences, advisories and duplicates of what we depend on; needs cargo-deny.
deny:
	cargo deny check

packages:
	scripts/packages
