package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"

	"github.com/boughdb/bough/internal/core"
)

// Inspector asks a build's own postgres program what it makes of settings, without a running server. Its methods are safe for
// concurrent use.
type Inspector struct {
	dir  string // scratch; the servers' OS user can traverse it
	cred *syscall.Credential

	mu    sync.Mutex
	known map[string]map[string]string // by program and version: contexts by setting, lower case
}

// NewInspector makes an Inspector that keeps its scratch files under dir. cred is the OS user of servers, nil when it is the
// caller's.
func NewInspector(dir string, cred *syscall.Credential) *Inspector {
	return &Inspector{dir: dir, cred: cred, known: map[string]map[string]string{}}
}

const inspectTimeout = 20 * time.Second // for one short run of the program

// run runs the build's postgres as the servers' OS user.
func (i *Inspector) run(ctx context.Context, b Build, args ...string) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, b.Tool("postgres"), args...)
	cmd.Env, cmd.Dir = ServerEnv(), "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: i.cred}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return out.String(), errs.String(), err
}

// contexts returns the settings that a configuration file of this build may hold, with their contexts (postmaster, sighup,
// superuser, user …; see the view pg_settings).
func (i *Inspector) contexts(ctx context.Context, b Build) (map[string]string, error) {
	key := b.Tool("postgres") + " " + b.Version
	i.mu.Lock()
	known := i.known[key]
	i.mu.Unlock()
	if known != nil {
		return known, nil
	}
	out, errs, err := i.run(ctx, b, "--describe-config")
	if err != nil {
		return nil, core.Wrap(fmt.Errorf("%w: %s", err, errs), "postgres.describe_config", "")
	}
	known = map[string]string{}
	for line := range strings.Lines(out) {
		if f := strings.Split(line, "\t"); len(f) > 2 { // name, context, group, type, …
			known[settingKey(f[0])] = f[1]
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.known[key] = known
	return known, nil
}

// NeedsRestart tells whether a change of these settings needs a restart of a running server. Settings of extensions, which
// the build does not know, are returned in unknown.
func (i *Inspector) NeedsRestart(ctx context.Context, b Build, keys []string) (restart bool, unknown []string, err error) {
	if len(keys) == 0 {
		return false, nil, nil
	}
	contexts, err := i.contexts(ctx, b)
	if err != nil {
		return false, nil, err
	}
	for _, key := range keys {
		switch c, ok := contexts[settingKey(key)]; {
		case c == "postmaster":
			restart = true
		case !ok:
			unknown = append(unknown, key)
		}
	}
	return restart, unknown, nil
}

// NeedsRestart asks a running server the same about settings of extensions. Those that it does not know need none: nothing
// reads them.
func NeedsRestart(ctx context.Context, conn *pgx.Conn, keys []string) (bool, error) {
	var restart bool
	err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_settings WHERE lower(name) = ANY($1) AND context = 'postmaster')", keys).Scan(&restart)
	return restart, err
}

// TrySettings refuses values of extensions' settings that a running server does not take. What only a start or a reload can
// set, and what belongs to modules that it has not loaded, passes.
func TrySettings(ctx context.Context, conn *pgx.Conn, settings map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		if !strings.Contains(name, ".") {
			continue
		}
		var now string
		err := conn.QueryRow(ctx, "SELECT set_config($1, $2, true)", settingKey(name), settings[name]).Scan(&now)
		switch sqlState(err) {
		case stateInvalidValue, stateInvalidName, stateUndefinedObject:
			e, _ := errors.AsType[*pgconn.PgError](err)
			said := e.Message
			if e.Hint != "" {
				said += " (" + e.Hint + ")"
			}
			return core.Invalidf("pg_settings: PostgreSQL says: %s", said)
		}
	}
	return nil
}

// prefixOwner names the module whose settings begin with a prefix, where that is not the prefix itself.
var prefixOwner = map[string]string{"cron": "pg_cron", "postgis": "postgis-3", "columnar": "citus"}

// Check refuses the user settings of o when the build does not know one or does not take its value, or when a server with all
// of o's settings could not start at its size. clusterDir is a data directory of the build's major whose control file is
// read; "" leaves out what needs one.
func (i *Inspector) Check(ctx context.Context, o ConfigOptions, clusterDir string) error {
	if len(o.PGSettings) == 0 {
		return nil
	}
	if err := CheckSettings(o.PGSettings); err != nil {
		return err
	}
	contexts, err := i.contexts(ctx, o.Build)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(o.PGSettings)) {
		key, value := settingKey(name), o.PGSettings[name]
		if prefix, _, ok := strings.Cut(key, "."); ok {
			owner := prefix
			if other := prefixOwner[prefix]; other != "" {
				owner = other
			}
			if !o.Build.HasLibrary(owner) && o.Build.extensionVersion(owner) == "" {
				return core.Invalidf("pg_settings: %q is a setting of %q, which is not installed for PostgreSQL %d here", name, prefix, o.Build.Major)
			}
			continue
		}
		if contexts[key] == "" {
			_, _, err := i.run(ctx, o.Build, append([]string{"-C", key}, standalone...)...)
			if err == nil {
				return core.Invalidf("pg_settings: %q cannot be set in PostgreSQL's configuration", name)
			}
			return core.Invalidf("pg_settings: PostgreSQL %d has no setting %q", o.Build.Major, name)
		}
		if n, err := strconv.ParseInt(strings.TrimSpace(value), 0, 64); err == nil && floors[key] > 0 && n < floors[key] {
			return core.Invalidf("pg_settings: %q must be at least %d: the platform needs some itself", name, floors[key])
		}
	}
	return i.dryRun(ctx, o, clusterDir)
}

// standalone lets `postgres -C` work without a data directory.
var standalone = []string{"-c", "config_file=/dev/null", "-c", "data_directory=/", "-c", "hba_file=/dev/null", "-c", "ident_file=/dev/null"}

// dryRun takes a server's start to where its shared memory is sized. From major 15 on `postgres -C shared_memory_size` does
// that, preloaded libraries included; up to 14 the program only looks at each value, and the rest is estimated.
func (i *Inspector) dryRun(ctx context.Context, o ConfigOptions, clusterDir string) error {
	args := []string{"-C", "shared_buffers"}
	full := o.Build.Major >= 15 && clusterDir != ""
	if full {
		dir, release, err := i.scratch(ctx, o.Build, clusterDir)
		if err != nil {
			return err
		}
		defer release()
		args = []string{"-C", "shared_memory_size", "-D", dir}
	} else {
		args = append(args, standalone...)
	}
	settings := Config(o)
	for _, s := range settings {
		args = append(args, "-c", s.Name+"="+s.Value)
	}
	out, errs, err := i.run(ctx, o.Build, args...)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if said := complaint(errs); said != "" {
			return core.Invalidf("pg_settings: PostgreSQL says: %s", said)
		}
		return core.Wrap(fmt.Errorf("%w: %s", err, errs), "postgres.check_settings", "postgres -C failed")
	}
	n, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	if err != nil {
		return core.Wrap(fmt.Errorf("postgres -C printed %q", out), "postgres.check_settings", "")
	}
	need := n * mib
	if !full {
		need = n*8192 + estimateShared(settings)
	}
	if limit := o.memory() * 3 / 4; need > limit {
		return core.Invalidf("pg_settings: with these settings PostgreSQL takes %d MB of shared memory at its start, more than the %d MB that a compute of "+
			"this size may use for that; make shared_buffers, max_connections and the like smaller, or the compute larger", need/mib, limit/mib)
	}
	return nil
}

// estimateShared is roughly what a server of major 14 takes beside its buffers: 300 bytes for each lock that its processes may
// hold.
func estimateShared(settings []Setting) int64 {
	values := map[string]int64{"max_locks_per_transaction": 64, "max_pred_locks_per_transaction": 64}
	for _, s := range settings {
		if n, err := strconv.ParseFloat(s.Value, 64); err == nil {
			values[s.Name] = int64(n)
		}
	}
	processes := values["max_connections"] + values["max_worker_processes"] + values["max_wal_senders"] + values["max_prepared_transactions"] + values["autovacuum_max_workers"]
	return processes * (20_000 + 300*(values["max_locks_per_transaction"]+values["max_pred_locks_per_transaction"]))
}

// scratch is a folder that passes for a data directory as far as the dry run reads it: the version and the control file of a
// real one. PostgreSQL takes it for its own, so it is the caller's alone until release, also among servers that share a data
// directory.
func (i *Inspector) scratch(ctx context.Context, b Build, clusterDir string) (dir string, release func(), err error) {
	const op = "postgres.check_settings"
	dir = filepath.Join(i.dir, "check-"+strconv.Itoa(b.Major))
	if err := os.MkdirAll(i.dir, 0o755); err != nil {
		return "", nil, core.Wrap(err, op, "")
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", nil, core.Wrap(err, op, "")
	}
	release = func() { _ = lock.Close() } // gives the lock back
	for {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			break
		}
		select {
		case <-ctx.Done():
			release()
			return "", nil, ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
	if err == nil {
		err = i.fillScratch(dir, clusterDir)
	}
	if err != nil {
		release()
		return "", nil, core.Wrap(err, op, "")
	}
	return dir, release, nil
}

func (i *Inspector) fillScratch(dir, clusterDir string) error {
	if _, err := os.Stat(filepath.Join(dir, "postgresql.conf")); err == nil { // written last
		return nil
	}
	for _, d := range []string{dir, filepath.Join(dir, "global")} {
		if err := OwnedDir(d, i.cred); err != nil {
			return err
		}
	}
	for _, name := range []string{"PG_VERSION", "global/pg_control", "postgresql.conf"} {
		content, err := os.ReadFile(filepath.Join(clusterDir, name))
		if name == "postgresql.conf" {
			content, err = nil, nil
		}
		if err == nil {
			err = replaceFile(filepath.Join(dir, name), content, i.cred, false)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

var (
	fatalLine = regexp.MustCompile(`(?m)(?:FATAL:  |^postgres: )(.+)$`)
	hintLine  = regexp.MustCompile(`(?m)HINT:  (.+)$`)
)

// complaint is what a postgres that did not start says for its reason.
func complaint(stderr string) string {
	m := fatalLine.FindStringSubmatch(stderr)
	if m == nil {
		return ""
	}
	said := strings.TrimSpace(m[1])
	if hint := hintLine.FindStringSubmatch(stderr); hint != nil {
		said += " (" + strings.TrimSpace(hint[1]) + ")"
	}
	return said
}
