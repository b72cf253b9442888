#!/usr/bin/env bash
# Kills, fails and fills everything, `$1` seconds for each part, also what comes after a part that failed; then says what came of it: a row for
# each figure, as docs/operations.md explains them. Fails when a part did.
set -uo pipefail
cd "$(dirname "$0")/.."

seconds=${1:?how many seconds for each part}
figures=$(mktemp)
trap 'rm -f "$figures"' EXIT
export KILN_SOAK_SECONDS=$seconds KILN_SOAK_FIGURES=$figures

failed=()
part() {
    printf '\n== %s\n' "$*"
    "$@" || failed+=("$*")
}

part cargo test --package store --test crash
part cargo test --package engine --test journal_crash
part cargo test --package worker --test crash
part cargo test --package store --test simulation -- --nocapture
part cargo test --package store --test busy -- --nocapture
part cargo test --package engine --test journal_simulation -- --nocapture
# Optimised, both what is measured and who measures: some of its figures are of time. Callers are on other machines: they do not wait for a
# processor because builds have them, in a session of their own that goes before others.
part cargo test --release --package tests --no-run
part setsid --wait sh -c 'echo -10 2>/dev/null >/proc/self/autogroup; exec cargo test --release --package tests soak:: -- --nocapture --test-threads=1 --skip as_fast_with_many_readers'
# But not those who read all they can get: elsewhere they would have nothing of these processors, and here they would leave nothing for the build.
part cargo test --release --package tests as_fast_with_many_readers -- --nocapture

printf '\n'
sort -V "$figures" | awk -F '\t' '{ printf "%-4s %-52s %14s  %-10s %s\n", $1, $2, $3, $4, $5 }'
for one in "${failed[@]}"; do
    printf 'failed: %s\n' "$one"
done
[ ${#failed[@]} = 0 ]
