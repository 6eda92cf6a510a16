package history

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"

	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/compute/local"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/pgtest"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/internal/storage"
)

const patience = time.Minute

// rig is a pool, WAL directories and a root branch "p" with an empty cluster that nobody runs.
type rig struct {
	dir   string
	pool  *storage.Pool
	dirs  *Dirs
	build postgres.Build
}

// eachBackend runs a test on every backend that this process may use.
func eachBackend(t *testing.T, test func(t *testing.T, r *rig)) {
	for _, backend := range []string{storage.BackendBtrfs, storage.BackendReflink, storage.BackendCopy} {
		t.Run(backend, func(t *testing.T) {
			if backend != storage.BackendCopy && os.Geteuid() != 0 {
				t.Skip("needs root: mounts a file system")
			}
			test(t, newRig(t, backend, ""))
		})
	}
}

// newRig makes a rig; walRoot "" puts the WAL directories beside the pool.
func newRig(t *testing.T, backend, walRoot string) *rig {
	t.Helper()
	dir := pgtest.TempDir(t)
	if backend == storage.BackendReflink {
		pgtest.MountAt(t, "xfs", 4<<30, dir)
	}
	if walRoot == "" {
		walRoot = filepath.Join(dir, "wal")
	}
	uid, gid := -1, -1
	cred := pgtest.Cred(t)
	if cred != nil {
		uid, gid = int(cred.Uid), int(cred.Gid)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := storage.Unmount(ctx, dir); err != nil {
			t.Error(err)
		}
	})
	pool, err := storage.Open(t.Context(), storage.Options{Dir: dir, Backend: backend, SizeBytes: 4 << 30, UID: uid, GID: gid})
	must(t, err)
	r := &rig{dir: dir, pool: pool, dirs: NewDirs(walRoot, uid, gid), build: pgtest.BuildWith(t, "pg_checksums", "pg_waldump")}
	must(t, pool.Create(t.Context(), "p"))
	must(t, r.dirs.Create(t.Context(), "p", 1))
	must(t, postgres.InitDB(t.Context(), r.build, postgres.InitOptions{
		DataDir: pool.Path("p"), WALDir: r.dirs.Path("p", 1), Cred: cred,
	}))
	must(t, postgres.WriteConfig(pool.Path("p"), postgres.Config(postgres.ConfigOptions{Build: r.build}), cred))
	return r
}

func (r *rig) wal(id string) string { return r.dirs.Path(id, 1) }

func (r *rig) control(t *testing.T, id string) ControlInfo {
	t.Helper()
	c, err := readControl(r.pool.Path(id))
	must(t, err)
	return c
}

func readControl(dataDir string) (ControlInfo, error) {
	c, err := postgres.ReadControl(dataDir)
	return ControlInfo{
		Checkpoint: c.Checkpoint, Redo: c.Redo, Timeline: c.Timeline, RecoveryTimeline: c.MinRecoveryTimeline,
		SegmentSize: c.WALSegmentSize, Clean: c.State == postgres.StateShutDown,
	}, err
}

func (r *rig) request(t *testing.T, parent, child string, running *server) ForkRequest {
	req := ForkRequest{
		Parent: Ref{parent, parent, 1}, Child: Ref{child, child, 1},
		Volumes: r.pool, Dirs: r.dirs, ReadControl: readControl, CleanChild: postgres.CleanChild,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	if running != nil {
		src := postgres.NewSource(running.connect(t), r.build.Major)
		t.Cleanup(func() { src.Close(context.Background()) })
		req.Running = src
	}
	return req
}

func (r *rig) fork(t *testing.T, parent, child string, running *server) ForkResult {
	t.Helper()
	res, err := Fork(t.Context(), r.request(t, parent, child, running))
	must(t, err)
	return res
}

// server is a running cluster.
type server struct {
	r      *rig
	id     string
	socket string
	driver *local.Driver
	proc   compute.Process
	conn   *pgx.Conn
}

// start starts a branch's cluster; one that has never run is promoted.
func (r *rig) start(t *testing.T, id string) *server {
	t.Helper()
	var args []string
	_, err := os.Lstat(filepath.Join(r.pool.Path(id), "standby.signal"))
	promote := err == nil
	if promote {
		args = append(args, "hot_standby=off", "restore_command=")
	}
	s := r.launch(t, id, args...)
	s.conn = s.ready(t, promote)
	return s
}

// launch runs a server on a branch's volume and does not wait for it.
func (r *rig) launch(t *testing.T, id string, args ...string) *server {
	t.Helper()
	cred := pgtest.Cred(t)
	driver, err := local.New(cred, nil)
	must(t, err)
	s := &server{r: r, id: id, socket: filepath.Join(r.dir, "s-"+id), driver: driver}
	must(t, postgres.OwnedDir(s.socket, cred))
	log := filepath.Join(r.dir, "log-"+id)
	s.proc, err = driver.Start(t.Context(), compute.Launch{
		EndpointID: id, Build: r.build, DataDir: r.pool.Path(id), SocketDir: s.socket, LogFile: log,
		Args: append([]string{"unix_socket_directories=" + s.socket}, args...),
	})
	must(t, err)
	t.Cleanup(func() {
		s.end(t, compute.StopKill)
		if text, err := os.ReadFile(log); err == nil && t.Failed() {
			t.Logf("log of %s:\n%s", id, text[max(0, len(text)-4096):])
		}
	})
	return s
}

// ready waits until the cluster takes writes.
func (s *server) ready(t *testing.T, promote bool) *pgx.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		conn, err := postgres.Connect(ctx, s.socket, postgres.AdminDatabase)
		if err == nil {
			if conn.PgConn().ParameterStatus("in_hot_standby") == "off" {
				t.Cleanup(func() { conn.Close(context.Background()) })
				return conn
			}
			conn.Close(ctx)
		}
		var pgErr *pgconn.PgError
		if promote && errors.As(err, &pgErr) && pgErr.Code == "57P03" {
			must(t, s.proc.Promote())
		}
		select {
		case <-s.proc.Done():
			t.Fatalf("postgres on %s ended: %s", s.id, s.proc.Exit().Status)
		case <-ctx.Done():
			t.Fatalf("postgres on %s does not get ready: %v", s.id, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (s *server) stop(t *testing.T)  { t.Helper(); s.end(t, compute.StopFast) }
func (s *server) crash(t *testing.T) { t.Helper(); s.end(t, compute.StopKill) }

func (s *server) end(t *testing.T, mode compute.StopMode) {
	t.Helper()
	if s.proc == nil {
		return
	}
	p := s.proc
	s.proc = nil
	defer p.Release()
	if err := p.Signal(mode); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience) // also after the test
	defer cancel()
	select {
	case <-p.Done():
	case <-ctx.Done():
		t.Errorf("postgres on %s does not stop", s.id)
	}
	if err := s.driver.Clear(ctx, s.r.pool.Path(s.id), s.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func (s *server) connect(t *testing.T) *pgx.Conn {
	t.Helper()
	conn, err := postgres.Connect(t.Context(), s.socket, postgres.AdminDatabase)
	must(t, err)
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func (s *server) exec(t *testing.T, sql string) {
	t.Helper()
	if _, err := s.conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s on %s: %v", sql, s.id, err)
	}
}

func (s *server) text(t *testing.T, sql string) string {
	t.Helper()
	var v string
	if err := s.conn.QueryRow(t.Context(), sql).Scan(&v); err != nil {
		t.Fatalf("%s on %s: %v", sql, s.id, err)
	}
	return v
}

func (s *server) lsn(t *testing.T, function string) core.LSN {
	t.Helper()
	lsn, err := core.ParseLSN(s.text(t, "SELECT "+function+"::text"))
	must(t, err)
	return lsn
}

func (s *server) timeline(t *testing.T) string {
	t.Helper()
	return s.text(t, "SELECT substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)")
}

// checkSums reads every page of a stopped cluster.
func (r *rig) checkSums(t *testing.T, id string) {
	t.Helper()
	if _, err := os.Stat(r.build.Tool("pg_checksums")); err != nil {
		t.Logf("PostgreSQL %s has no pg_checksums here: not checked", r.build.Version)
		return
	}
	cmd := exec.Command(r.build.Tool("pg_checksums"), "--check", "-D", r.pool.Path(id))
	if cred := pgtest.Cred(t); cred != nil {
		cmd.SysProcAttr = &unix.SysProcAttr{Credential: cred}
	}
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Bad checksums:  0") {
		t.Errorf("pg_checksums of %s: %v: %s", id, err, out)
	}
}

// segments returns the names in a WAL directory that are segments, with their link counts.
func segments(t *testing.T, dir string) map[string]uint64 {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	found := map[string]uint64{}
	for _, e := range entries {
		if len(e.Name()) != 24 {
			continue
		}
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(dir, e.Name()), &st))
		found[e.Name()] = st.Nlink
	}
	return found
}

// hashes is the content of a folder's files by name.
func hashes(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	sums := map[string]string{}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		f, err := os.Open(filepath.Join(dir, e.Name()))
		must(t, err)
		h := sha256.New()
		_, err = io.Copy(h, f)
		must(t, errors.Join(err, f.Close()))
		sums[e.Name()] = fmt.Sprintf("%x", h.Sum(nil))
	}
	return sums
}

func wantSameHashes(t *testing.T, what string, before, after map[string]string) {
	t.Helper()
	for name, sum := range before {
		if after[name] != sum {
			t.Errorf("%s: %s has changed", what, name)
		}
	}
	if len(before) == 0 {
		t.Errorf("%s: no files", what)
	}
}

// wantNothing checks that nothing of a branch exists.
func (r *rig) wantNothing(t *testing.T, id string) {
	t.Helper()
	for _, path := range []string{r.pool.Path(id), filepath.Dir(r.wal(id))} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there (%v)", path, err)
		}
	}
}

func diskUse(t *testing.T, dir string) int64 {
	t.Helper()
	var sum int64
	must(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		sum += st.Blocks * 512
		return err
	}))
	return sum
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t *testing.T, err error, kind core.Kind) {
	t.Helper()
	if !core.IsKind(err, kind) {
		t.Fatalf("error = %v, want kind %d", err, kind)
	}
}
