#!/usr/bin/env bash
# Installs the packages that Bough (run) or its tests (test) need and that are missing, and says so. Needs root for that;
# an ordinary user is told what to ask for. It never touches an existing PostgreSQL cluster.
set -euo pipefail
what=${1:-run}
say() { echo "deps: $*" >&2; }

packages=()
need() { # need PACKAGE TEST...
	local package=$1
	shift
	"$@" >/dev/null 2>&1 || packages+=("$package")
}
server_installed() { compgen -G '/usr/lib/postgresql/1[4-8]/bin/postgres'; }
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
		export DEBIAN_FRONTEND=noninteractive
		log=$(mktemp)
		trap 'rm -f "$log"' EXIT
		{ apt-get update && apt-get install -y --no-install-recommends "${packages[@]}"; } >"$log" 2>&1 || {
			tail -n 30 "$log" >&2
			say "apt-get failed; see above"
			exit 1
		}
	fi
fi

if root && ! id bough >/dev/null 2>&1; then
	say "making the system user bough, as which computes run"
	useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin bough
fi
