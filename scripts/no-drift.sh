#!/usr/bin/env bash
# Runs a generator and fails when it changes a file.
set -euo pipefail
cd "$(dirname "$0")/.."
before=$(mktemp) after=$(mktemp)
trap 'rm -f "$before" "$after"' EXIT
state() { git ls-files '*.gen.go' 'internal/store/db/*.go' | xargs sha256sum; }
state >"$before"
"$@"
state >"$after"
diff "$before" "$after" || { echo "generated code is not up to date: commit what 'make generate' wrote"; exit 1; }
