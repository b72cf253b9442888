#!/bin/sh
set -e
if [ "$1" = db ] && [ "$(id -u)" = 0 ]; then
    exec gosu db "$0" "$@"
fi
echo "$* as $(id -un): $(ls /docker-entrypoint-initdb.d)"
