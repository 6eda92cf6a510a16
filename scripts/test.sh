#!/usr/bin/env bash
# Runs every test, with the race detector, and says at the end what was skipped and why. As root the end-to-end tests run
# once more as an ordinary user.
set -euo pipefail
cd "$(dirname "$0")/.."
go build ./...
go vet ./...
go -C tools build -o "$PWD/bin/tools/gotestsum" gotest.tools/gotestsum
bin/tools/gotestsum --format pkgname --format-icons text --format-hide-empty-pkg -- -race -timeout 30m ./...
[ "$(id -u)" != 0 ] || scripts/test-unprivileged.sh
