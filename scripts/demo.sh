#!/usr/bin/env bash
# Shows kiln at work on a bare machine: nothing is fetched, nothing is left running, nothing is left behind.
#
#   make demo                 as root or as an ordinary user with subordinate ids
#   KEEP=1 make demo          leaves the scratch folder for a look around
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m' dim=$'\e[2m' off=$'\e[0m'; else bold='' dim='' off=''; fi
say() { printf '\n%s==> %s%s\n' "$bold" "$*" "$off"; }
note() { printf '%s    %s%s\n' "$dim" "$*" "$off"; }
fail() { printf 'demo: %s\n' "$*" >&2; exit 1; }

# --- what the machine needs -------------------------------------------------------------------------------------------

declare -A package_of=([git]=git [gcc]=gcc [busybox]=busybox-static [unshare]=util-linux [newuidmap]=uidmap [pasta]=passt)
missing=()
for program in "${!package_of[@]}"; do
    command -v "$program" > /dev/null || missing+=("${package_of[$program]}")
done
command -v dpkg-query > /dev/null || fail 'this demo makes its base images from installed Debian packages; dpkg-query is missing'
[ -e "$(gcc -print-file-name=libc.a 2> /dev/null)" ] || missing+=(libc6-dev)
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ]; then
        say "Installing ${missing[*]}"
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
    else
        fail "please install the Debian packages: ${missing[*]}"
    fi
fi

# --- scratch, and what is stopped at the end --------------------------------------------------------------------------

scratch=$(mktemp -d "${TMPDIR:-/tmp}/kiln-demo-XXXXXX")
# Workers of root run as somebody else and walk through here.
chmod 711 "$scratch"
started=()
finish() {
    status=$?
    trap - EXIT INT TERM
    for pid in "${started[@]}"; do kill "$pid" 2> /dev/null || true; done
    for pid in "${started[@]}"; do wait "$pid" 2> /dev/null || true; done
    if [ "$status" != 0 ] && [ -s "$scratch/server.log" ]; then
        echo "--- the end of the server's log:" >&2
        tail -n 20 "$scratch/server.log" >&2
    fi
    if [ -n "${KEEP:-}" ]; then
        echo "left behind: $scratch"
    elif ! rm -rf "$scratch" 2> /dev/null; then
        # Some files belong to subordinate ids; within a namespace that has them they are ours to remove.
        unshare --user --map-auto --map-root-user rm -rf "$scratch" 2> /dev/null || echo "could not remove $scratch" >&2
    fi
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# --- build ------------------------------------------------------------------------------------------------------------

say 'Building kiln'
cargo build --package kiln --package testkit --bins
target=${CARGO_TARGET_DIR:-target}/debug
kiln=$target/kiln
"$kiln" version

# --- a server ---------------------------------------------------------------------------------------------------------

say 'Starting a server with a fresh state directory'
export KILN_STATE=$scratch/state KILN_CONFIG=$scratch/kiln.toml
# Steps need this device for a network of their own; where only root may open it, they get none. Nothing here needs one.
network=default
[ -w /dev/net/tun ] || network=none
start_server() {
    # The configuration names the server's own port (as a mirror), so the port is chosen here; if somebody is faster, again.
    for _ in $(seq 20); do
        port=$((20000 + RANDOM % 30000))
        address=127.0.0.1:$port
        (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null && continue
        printf 'network = "%s"\negress.reach = "private"\n[registry."docker.io"]\nmirrors = ["%s/bases"]\n' "$network" "$address" > "$KILN_CONFIG"
        "$kiln" serve --listen "$address" > "$scratch/server.log" 2>&1 &
        server=$!
        for _ in $(seq 100); do
            if ! kill -0 "$server" 2> /dev/null; then break; fi
            if (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null; then started+=("$server"); return; fi
            sleep 0.1
        done
        kill "$server" 2> /dev/null || true
        wait "$server" 2> /dev/null || true
        grep -qi 'in use' "$scratch/server.log" || break
    done
    cat "$scratch/server.log" >&2
    fail 'the server did not start'
}
start_server
note "kiln serve --listen $address"

# --- base images ------------------------------------------------------------------------------------------------------

say "Making base images from this machine's own compiler and busybox"
mkdir -p "$scratch/gcc" "$scratch/busybox"
scripts/toolchain.sh "$scratch/gcc/root.tar"
printf 'FROM scratch\nADD root.tar /\nENV PATH=/usr/bin:/bin\nCMD ["sh"]\n' > "$scratch/gcc/Dockerfile"
cp "$(command -v busybox)" "$scratch/busybox/busybox"
cat > "$scratch/busybox/Dockerfile" << 'END'
FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
RUN mkdir -p /tmp /etc && chmod 1777 /tmp && echo 'root:x:0:0:root:/:/bin/sh' > /etc/passwd && echo 'root:x:0:' > /etc/group
CMD ["sh"]
END
# Built by this process without the server, then pushed to the server's registry as to any other.
"$kiln" build --network "$network" --push -t "$address/bases/library/gcc:14" "$scratch/gcc"
"$kiln" build --network "$network" --push -t "$address/bases/library/busybox" "$scratch/busybox"
note "Dockerfiles say \"FROM gcc:14\"; the server is configured to ask $address/bases first."

# --- a git server -----------------------------------------------------------------------------------------------------

say 'Serving examples/ from a git server'
mkfifo "$scratch/git-address"
"$target/git-server" examples > "$scratch/git-address" &
started+=($!)
read -r repository < "$scratch/git-address"
note "$repository"

# --- the build --------------------------------------------------------------------------------------------------------

say 'Building a C program in two stages, through the gRPC API'
note "kiln build --server $address -t hello-c:1 $repository#main:hello-c"
"$kiln" build --server "$address" -t hello-c:1 --metadata-file "$scratch/built.json" "$repository#main:hello-c"
image=$(sed -n 's/^ *"image.name": "\(.*\)",*$/\1/p' "$scratch/built.json")
digest=$(sed -n 's/^ *"containerimage.digest": "\(.*\)",*$/\1/p' "$scratch/built.json")
[ -n "$image" ] && [ -n "$digest" ] || fail 'the build did not say what it made'

say 'The same build again: nothing has changed, nothing is run'
"$kiln" build --server "$address" "$repository#main:hello-c"

# --- the image --------------------------------------------------------------------------------------------------------

by_digest=${image%:*}@$digest
say 'The image'
cat << END
    name    $image
    digest  $digest

    docker pull $by_digest
    podman pull --tls-verify=false $by_digest
    skopeo inspect --tls-verify=false docker://$by_digest
END

say 'Running it once'
run_with_podman() {
    podman --root "$scratch/podman" --runroot "$scratch/podman-run" --storage-driver vfs --cgroup-manager cgroupfs \
        run --rm --tls-verify=false --network none --cgroups disabled "$by_digest" "from $1"
}
run_with_unshare() {
    printf 'FROM %s\n' "$by_digest" | "$kiln" build --quiet --network "$network" -o "$scratch/rootfs" - > /dev/null
    unshare --user --map-root-user --mount --pid --fork chroot "$scratch/rootfs" /hello "from $1"
}
if command -v podman > /dev/null && run_with_podman podman 2> "$scratch/podman.log"; then
    note 'pulled and run by podman'
else
    run_with_unshare 'an empty root filesystem'
    note 'written out by kiln build -o and run with unshare and chroot'
fi

say 'The image as one file: a subassembly'
note "kiln subassembly create --server $address $by_digest"
"$kiln" subassembly create --server "$address" --json "$by_digest" | grep -E '"(format|size|uncompressedSize|url)"'
"$kiln" subassembly get --server "$address" -o "$scratch/subassembly.tar.zst" "$by_digest"
note "downloaded: $(stat -c %s "$scratch/subassembly.tar.zst") bytes"

say 'Done. Everything that was started is stopped now.'
