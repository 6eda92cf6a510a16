#!/usr/bin/env bash
# Runs every test, with the race detector, and says at the end what was skipped and why. As root the end-to-end tests run once more as an ordinary user.
set -euo pipefail
cd "$(dirname "$0")/.."
go build ./...
go vet ./...
go test -json -race -timeout 15m ./... | go run ./scripts/testsummary
[ "$(id -u)" != 0 ] || scripts/test-unprivileged.sh
