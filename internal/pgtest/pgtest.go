// Package pgtest gives tests real PostgreSQL clusters: unprivileged, on a private Unix socket, gone with the test.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/compute/local"
	"github.com/boughdb/bough/internal/postgres"
)

// startTimeout bounds every wait for a server.
const startTimeout = 60 * time.Second

// cache is the template of this test binary; it exists only under Run.
var cache struct {
	dir   string
	mu    sync.Mutex
	built map[int]bool // by major
}

// Run runs a test binary's tests with a template cluster that all of them copy, and removes it. Call it from TestMain:
//
//	func TestMain(m *testing.M) { os.Exit(pgtest.Run(m)) }
//
// Without it every NewCluster pays for an initdb.
func Run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "pgt")
	if err == nil {
		err = os.Chmod(dir, 0o711)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "pgtest:", err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	cache.dir, cache.built = dir, map[int]bool{}
	return m.Run()
}

// Builds lists the installed majors, oldest first; PGTEST_MAJOR picks one of them.
func Builds(t testing.TB) []postgres.Build {
	t.Helper()
	builds, err := postgres.FindBuilds(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := os.Getenv("PGTEST_MAJOR"); want != "" {
		builds = slices.DeleteFunc(builds, func(b postgres.Build) bool { return fmt.Sprint(b.Major) != want })
	}
	if len(builds) == 0 {
		t.Fatal("no PostgreSQL installation found; run: make deps")
	}
	return builds
}

// Build is the PostgreSQL that projects get by default, or the one that PGTEST_MAJOR picks.
func Build(t testing.TB) postgres.Build {
	t.Helper()
	b, _ := postgres.Default(Builds(t))
	return b
}

// BuildWith is Build, or the newest installation that has all of these programs. Where none has, it is Build: a test that
// cannot do without skips.
func BuildWith(t testing.TB, programs ...string) postgres.Build {
	t.Helper()
	builds := Builds(t)
	standard, _ := postgres.Default(builds)
	for _, b := range append(builds, standard) { // the last that fits counts
		fits := true
		for _, name := range programs {
			_, err := os.Stat(b.Tool(name))
			fits = fits && err == nil
		}
		if fits {
			standard = b
		}
	}
	return standard
}

// Each runs a test on every installed major, beside each other.
func Each(t *testing.T, test func(t *testing.T, b postgres.Build)) {
	t.Helper()
	for _, b := range Builds(t) {
		t.Run(fmt.Sprint(b.Major), func(t *testing.T) {
			t.Parallel()
			test(t, b)
		})
	}
}

// Cred is the OS user of test clusters: nil unless the tests run as root.
func Cred(t testing.TB) *syscall.Credential {
	t.Helper()
	cred, err := local.Credential("")
	if err != nil {
		t.Fatal(err)
	}
	return cred
}

// TempDir is a fresh folder with a short path that the servers' OS user owns and can reach. (testing's own may be too long
// for a socket, and closed to others.) Processes of PostgreSQL that still work under it are ended with the test.
func TempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pgt")
	if err != nil {
		t.Fatal(err)
	}
	cred := Cred(t)
	t.Cleanup(func() {
		killUnder(t, cred, dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("pgtest: %v", err)
		}
	})
	if cred != nil {
		if err := os.Chown(dir, int(cred.Uid), int(cred.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// killUnder ends the servers whose data directory lies under dir.
func killUnder(t testing.TB, cred *syscall.Credential, dir string) {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout) // the test's own has ended
	defer cancel()
	d, err := local.New(cred, nil)
	if err != nil {
		t.Error(err)
		return
	}
	found, err := d.Scan(ctx, dir)
	if err != nil {
		t.Error(err)
	}
	for _, f := range found {
		if err := d.Clear(ctx, f.DataDir, ""); err != nil {
			t.Errorf("pgtest: server on %s: %v", f.DataDir, err)
		}
	}
}

// CopyCluster copies a stopped (or crashed) cluster's data directory, pg_wal included, to a path that must not exist.
func CopyCluster(t testing.TB, from, to string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", "--reflink=auto", from, to).CombinedOutput(); err != nil {
		t.Fatalf("copy of %s: %v: %s", from, err, out)
	}
}

// DataDir makes a data directory like a project's template at dir/data and returns its path; no server runs on it.
func DataDir(t testing.TB, b postgres.Build, dir string) string {
	t.Helper()
	to := filepath.Join(dir, "data")
	if cache.dir == "" {
		template(t, b, to)
		return to
	}
	cache.mu.Lock()
	defer cache.mu.Unlock()
	from := filepath.Join(cache.dir, fmt.Sprint(b.Major))
	if !cache.built[b.Major] {
		_ = os.RemoveAll(from) // of a try that failed
		template(t, b, from)
		cache.built[b.Major] = true
	}
	CopyCluster(t, from, to)
	return to
}

func template(t testing.TB, b postgres.Build, dataDir string) {
	t.Helper()
	o := postgres.InitOptions{DataDir: dataDir, Cred: Cred(t)}
	if err := postgres.CreateTemplate(t.Context(), b, o, TempDir(t)); err != nil {
		t.Fatal(err)
	}
}

// Options changes what NewCluster makes.
type Options struct {
	Size     postgres.SizeSpec // default 0.25 CU
	Settings map[string]string // user settings; see postgres.Config
	Extra    []string          // name=value settings that no user may set, such as wal_level=logical
	Preload  []string          // libraries
	Build    postgres.Build    // runs it; default Build
	Stopped  bool              // do not start it
}

// Cluster is a server with the contents of a project's template.
type Cluster struct {
	Build     postgres.Build
	DataDir   string
	SocketDir string
	LogFile   string

	opts   Options
	driver *local.Driver
	proc   compute.Process // nil while stopped
}

// NewCluster makes and starts a cluster that ends with the test.
func NewCluster(t testing.TB, o Options) *Cluster {
	t.Helper()
	dir := TempDir(t)
	if o.Build.Major == 0 {
		o.Build = Build(t)
	}
	b := o.Build
	for _, plain := range Builds(t) {
		if plain.Major == b.Major {
			b = plain // a view of it (postgres.Overlays) has no initdb
		}
	}
	cred := Cred(t)
	driver, err := local.New(cred, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{
		Build: o.Build, DataDir: DataDir(t, b, dir), SocketDir: filepath.Join(dir, "s"), LogFile: filepath.Join(dir, "log"),
		opts: o, driver: driver,
	}
	if err := postgres.OwnedDir(c.SocketDir, cred); err != nil {
		t.Fatal(err)
	}
	settings := postgres.Config(postgres.ConfigOptions{Build: o.Build, Size: o.Size, Preload: o.Preload, PGSettings: o.Settings})
	if err := postgres.WriteConfig(c.DataDir, settings, cred); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Crash(t)
		if t.Failed() {
			if log, err := os.ReadFile(c.LogFile); err == nil && len(log) > 0 {
				t.Logf("log of %s:\n%s", c.DataDir, log[max(0, len(log)-4096):])
			}
		}
	})
	if !o.Stopped {
		c.Start(t)
	}
	return c
}

// Start starts a stopped cluster and waits until it answers and is not in recovery.
func (c *Cluster) Start(t testing.TB) {
	t.Helper()
	if c.proc != nil {
		return
	}
	args := append([]string{"unix_socket_directories=" + c.SocketDir}, c.opts.Extra...)
	p, err := c.driver.Start(t.Context(), compute.Launch{
		Build: c.Build, DataDir: c.DataDir, SocketDir: c.SocketDir, LogFile: c.LogFile, Args: args,
	})
	if err != nil {
		t.Fatal(err)
	}
	c.proc = p
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	for {
		conn, err := postgres.Connect(ctx, c.SocketDir, postgres.AdminDatabase)
		if err == nil {
			ready := conn.PgConn().ParameterStatus("in_hot_standby") == "off"
			_ = conn.Close(ctx)
			if ready {
				return
			}
		}
		select {
		case <-p.Done():
			t.Fatalf("postgres ended at start: %s", p.Exit().Status)
		case <-ctx.Done():
			t.Fatalf("postgres does not get ready: %v", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Stop shuts the cluster down cleanly. It is safe twice.
func (c *Cluster) Stop(t testing.TB) {
	t.Helper()
	c.end(t, compute.StopFast)
}

// Crash kills every process of the cluster at once, as a loss of power would. It is safe twice.
func (c *Cluster) Crash(t testing.TB) {
	t.Helper()
	c.end(t, compute.StopKill)
}

func (c *Cluster) end(t testing.TB, mode compute.StopMode) {
	t.Helper()
	if c.proc == nil {
		return
	}
	p := c.proc
	c.proc = nil
	defer p.Release()
	if err := p.Signal(mode); err != nil {
		t.Errorf("pgtest: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout) // also used after the test has ended
	defer cancel()
	select {
	case <-p.Done():
	case <-ctx.Done():
		t.Errorf("pgtest: server on %s does not stop", c.DataDir)
	}
	if err := c.driver.Clear(ctx, c.DataDir, c.SocketDir); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pgtest: %v", err)
	}
}

// PID is the running postmaster's.
func (c *Cluster) PID() int { return c.proc.Handle().PID }

// Conn is a platform session to a database ("" is the administrative one) that ends with the test.
func (c *Cluster) Conn(t testing.TB, database string) *pgx.Conn {
	t.Helper()
	if database == "" {
		database = postgres.AdminDatabase
	}
	conn, err := postgres.Connect(t.Context(), c.SocketDir, database)
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, conn)
	return conn
}

// UserConn is a client's session, which counts as activity.
func (c *Cluster) UserConn(t testing.TB, user, database string) *pgx.Conn {
	t.Helper()
	return UserConn(t, c.SocketDir, user, database)
}

// UserConn connects as any role over the socket in socketDir.
func UserConn(t testing.TB, socketDir, user, database string) *pgx.Conn {
	t.Helper()
	cfg, err := postgres.ConnConfig(socketDir, database)
	if err != nil {
		t.Fatal(err)
	}
	cfg.User = user
	cfg.RuntimeParams = map[string]string{"application_name": "pgtest"}
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, conn)
	return conn
}

func closeAtEnd(t testing.TB, conn *pgx.Conn) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_ = conn.Close(ctx)
	})
}
