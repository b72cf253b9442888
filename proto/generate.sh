#!/usr/bin/env bash
# Makes everything that is made of the .proto files: the Go module's and the TypeScript package's generated code, mocks and licence headers.
# The Rust types are made while building (crates/api). Running it twice changes nothing.
#
# Installs what it needs by itself, pinned: Go plugins into $XDG_CACHE_HOME/kiln/go-tools, npm packages into sdk/typescript/node_modules.
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd .. && pwd)

PROTOC_GEN_GO=v1.36.12
# The newest that can still give streams interfaces of their own, which is what callers of the published client mock.
PROTOC_GEN_GO_GRPC=v1.5.1
MOCKGEN=v0.6.0
LICENCE='SPDX-License-Identifier: Apache-2.0'

for program in go npm node; do
    command -v "$program" > /dev/null || { echo "$program is missing: see scripts/packages" >&2; exit 1; }
done

tools=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/kiln/go-tools/$PROTOC_GEN_GO-$PROTOC_GEN_GO_GRPC-$MOCKGEN
if [ ! -x "$tools/mockgen" ]; then
    mkdir -p "$tools"
    for tool in "google.golang.org/protobuf/cmd/protoc-gen-go@$PROTOC_GEN_GO" \
        "google.golang.org/grpc/cmd/protoc-gen-go-grpc@$PROTOC_GEN_GO_GRPC" "go.uber.org/mock/mockgen@$MOCKGEN"; do
        GOFLAGS=-mod=mod GOBIN=$tools go install "$tool"
    done
fi
# What is installed is what the lock file says.
if [ ! -e "$root/sdk/typescript/node_modules/.package-lock.json" ] \
    || [ "$root/sdk/typescript/package-lock.json" -nt "$root/sdk/typescript/node_modules/.package-lock.json" ]; then
    (cd "$root/sdk/typescript" && npm ci --silent --no-audit --no-fund > /dev/null)
fi
export PATH=$tools:$root/sdk/typescript/node_modules/.bin:$PATH

# --- messages and services ----------------------------------------------------------------------------------------------

# What is not generated any more does not stay.
rm -rf "$root"/sdk/go/{builder,contentservice,kiln} "$root/sdk/typescript/src/generated"
buf generate

# --- mocks of what callers mock -------------------------------------------------------------------------------------------

cd "$root/sdk/go"
header=$(mktemp)
trap 'rm -f "$header"' EXIT
echo "$LICENCE" > "$header"
mock() {
    # Without the command: it holds the name of the file above, which is another one each time.
    mockgen -copyright_file "$header" -write_command_comment=false -typed -package mock -destination "$1/mock/mock.go" "kiln.dev/sdk/go/$1" "$2"
}
mock builder ImageBuilderClient,ImageBuilder_BuildClient,ImageBuilder_LogsClient,ImageBuilderServer,ImageBuilder_BuildServer,ImageBuilder_LogsServer,SubassemblyServiceClient,SubassemblyServiceServer
gofmt -w builder contentservice kiln

# --- licence headers -----------------------------------------------------------------------------------------------------

cd "$root/sdk"
{ find go/builder go/contentservice go/kiln -name '*.go'; find typescript/src/generated -name '*.ts'; } | while read -r file; do
    head -n 3 "$file" | grep -q "$LICENCE" && continue
    printf '// %s\n\n%s\n' "$LICENCE" "$(cat "$file")" > "$file.new"
    mv "$file.new" "$file"
done
