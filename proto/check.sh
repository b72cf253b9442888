#!/usr/bin/env bash
# Holds the .proto files against the rules of buf.yaml, and the published packages against what was published (contract.binpb, which
# `buf build --path builder --path content-service-api -o contract.binpb` made). Run after generate.sh, which installs buf.
set -euo pipefail
cd "$(dirname "$0")"
PATH=$PWD/../sdk/typescript/node_modules/.bin:$PATH
buf lint
buf breaking --path builder --path content-service-api --against contract.binpb
