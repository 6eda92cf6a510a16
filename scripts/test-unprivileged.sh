#!/usr/bin/env bash
# As root: runs the main end-to-end tests as the user nobody, with the copy backend, from a folder of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "not root: make test is unprivileged already"; exit 0; }
work=$(mktemp -d /tmp/bough-unpriv-XXXXXX)
trap 'rm -rf "$work"' EXIT
go build -o "$work/bough" ./cmd/bough
go test -c -o "$work/e2e.test" ./e2e
cp README.md "$work/"
mkdir "$work/api"
cp -r api/testdata "$work/api/"
mkdir "$work/e2e" "$work/home" "$work/tmp"
chown -R nobody "$work"
cd "$work/e2e"
echo "end-to-end as nobody:"
setpriv --reuid=nobody --regid=nogroup --clear-groups env -i PATH="$PATH" HOME="$work/home" TMPDIR="$work/tmp" BOUGH_TEST_BINARY="$work/bough" \
	"$work/e2e.test" -test.timeout 10m -test.run 'TestMainJob|TestSleepAndWake|TestTour'
