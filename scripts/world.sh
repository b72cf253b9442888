#!/usr/bin/env bash
# Builds Dockerfiles as the world writes them (tests/world/apps), against the package registries that this machine reaches.
#
#   make world                      all of them
#   make world APPS='go-service'    some of them
#
# Each is built without the cache, looked into by the steps of its `check` without a network, and built again, when nothing
# may run and the image must be the same. Their base images are built first, by kiln, from Debian's packages, and are kept
# in `$TMPDIR` or /var/tmp.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
world=$root/tests/world
# Not below /root, where the workers of root could not enter.
cache=${TMPDIR:-/var/tmp}/kiln-world-$(id -u)
mkdir -p "$cache"
chmod 711 "$cache"
logs=$(mktemp -d "${TMPDIR:-/tmp}/kiln-world-XXXXXX")
trap 'rm -rf "$logs"' EXIT

command -v mmdebstrap > /dev/null || { echo 'mmdebstrap is missing: install the Debian package mmdebstrap' >&2; exit 1; }

if [ -n "${KILN_BINARY:-}" ]; then
    kiln=$KILN_BINARY
else
    cargo build --quiet --package kiln
    kiln=${CARGO_TARGET_DIR:-target}/debug/kiln
fi
export KILN_STATE=$cache/state KILN_CONFIG=$cache/kiln.toml
: > "$KILN_CONFIG"

# What is tried anew when a package registry does not answer.
build() { "$kiln" build --progress plain "$@"; }

# --- bases --------------------------------------------------------------------------------------------------------------

if [ ! -e "$cache/debian.tar" ]; then
    echo 'making debian:bookworm'
    mmdebstrap --quiet --variant=minbase --include=ca-certificates bookworm "$cache/debian.draft.tar"
    mv "$cache/debian.draft.tar" "$cache/debian.tar"
fi
mkdir -p "$cache/debian"
ln -f "$cache/debian.tar" "$cache/debian/debian.tar"
# Steps trust whom this machine trusts.
cp /etc/ssl/certs/ca-certificates.crt "$cache/debian/"
cat > "$cache/debian/Dockerfile" << 'END'
FROM scratch
ADD debian.tar /
COPY ca-certificates.crt /etc/ssl/certs/
CMD ["bash"]
END
build -t debian:bookworm -t debian:bookworm-slim "$cache/debian" > "$logs/base" 2>&1 || { cat "$logs/base"; exit 1; }

declare -A tag_of=(
    [node]=node:18-bookworm [python]=python:3.11-bookworm [golang]=golang:1.19 [rust]=rust:1.78 [maven]=maven:3-openjdk-17
    [ruby]=ruby:3.1 [php]=php:8.2-cli [gcc]=gcc:12 [nginx]=nginx:bookworm
)
base() {
    grep -q -h "${tag_of[$1]%:*}:" "${dockerfiles[@]}" || return 0
    echo "making ${tag_of[$1]}"
    build -t "${tag_of[$1]}" "$world/bases/$1" > "$logs/base" 2>&1 || { tail -n 40 "$logs/base"; exit 1; }
}

apps=("$@")
[ ${#apps[@]} -gt 0 ] || mapfile -t apps < <(ls "$world/apps")
dockerfiles=()
for app in "${apps[@]}"; do dockerfiles+=("$world/apps/$app/Dockerfile"); done
for name in "${!tag_of[@]}"; do base "$name"; done

# --- applications -------------------------------------------------------------------------------------------------------

digest() { sed -n 's/^built \(sha256:[0-9a-f]*\): .*/\1/p' "$1"; }

# Says what is wrong, if anything is.
try() {
    local app=$1 folder=$world/apps/$1 options=() context=$world/apps/$1
    if [ -e "$folder/options" ]; then read -r -a options < "$folder/options"; fi
    # Paths in options are those of the folder.
    cd "$folder"
    build --no-cache "${options[@]}" -t "world/$app" "$context" > "$logs/first" 2>&1 || { tail -n 40 "$logs/first"; echo 'it does not build'; return; }
    { echo "FROM world/$app"; cat "$folder/check"; } > "$logs/check.Dockerfile"
    build --no-cache --network none - < "$logs/check.Dockerfile" > "$logs/check" 2>&1 || { tail -n 30 "$logs/check"; echo 'the image is not right'; return; }
    build "${options[@]}" -t "world/$app" "$context" > "$logs/second" 2>&1 || { tail -n 40 "$logs/second"; echo 'it does not build again'; return; }
    grep -q ': 0 steps run' "$logs/second" || { grep -i miss "$logs/second" || true; echo 'nothing changed, and yet steps were run'; return; }
    [ "$(digest "$logs/first")" = "$(digest "$logs/second")" ] || echo 'nothing changed, and yet it is another image'
}

failed=0
for app in "${apps[@]}"; do
    started=$SECONDS
    wrong=$(try "$app")
    if [ -z "$wrong" ]; then
        printf 'ok      %-28s %3d s\n' "$app" $((SECONDS - started))
    else
        printf 'FAILED  %s\n%s\n' "$app" "$(sed 's/^/        /' <<< "$wrong")"
        failed=$((failed + 1))
    fi
done
printf '%d passed, %d failed\n' $((${#apps[@]} - failed)) "$failed"
[ "$failed" = 0 ]
