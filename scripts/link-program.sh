#!/usr/bin/env bash
# Makes a built program usable by hand: bin/duckpipe, which finds its extensions beside itself. scripts/link-program.sh <profile>
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$CARGO_TARGET_DIR/$([ "$1" = dev ] && echo debug || echo "$1")
ln -sfn "$DUCKPIPE_EXTENSIONS" "$folder/extensions"
mkdir -p bin
ln -sfn "$folder/duckpipe" bin/duckpipe
