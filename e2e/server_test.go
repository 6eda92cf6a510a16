package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/boughdb/bough/internal/pgtest"
	"github.com/boughdb/bough/sdk"
)

const (
	startLimit = 90 * time.Second // a first start makes two clusters
	opLimit    = 90 * time.Second // for one operation on a busy machine
	pollEvery  = 20 * time.Millisecond
)

// admin is what DIR/admin.json says.
type admin struct {
	APIURL string `json:"api_url"`
	APIKey string `json:"api_key"`
	PGAddr string `json:"pg_addr"`
}

// server is a `bough serve` with a data directory of its own.
type server struct {
	t    *testing.T
	base string // holds everything
	dir  string // the data directory
	args []string

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{}
	admin  admin
	*sdk.Client
}

func isRoot() bool { return os.Geteuid() == 0 }

// backend is the storage backend of tests that do not choose one.
func backend() string {
	if isRoot() {
		return "btrfs"
	}
	return "copy"
}

// backends is every one that this user can have.
func backends() []string {
	if isRoot() {
		return []string{"btrfs", "reflink", "copy"}
	}
	return []string{"copy"}
}

// needRoot skips what only root can set up.
func needRoot(t *testing.T, why string) {
	t.Helper()
	if !isRoot() {
		t.Skip("needs root: " + why)
	}
}

// start makes a server with the default backend and waits until it is ready. Everything is gone when the test ends.
func start(t *testing.T, args ...string) *server {
	t.Helper()
	return startOn(t, backend(), args...)
}

func startOn(t *testing.T, storage string, args ...string) *server {
	t.Helper()
	s := prepare(t, storage, args...)
	s.Start()
	return s
}

// prepare makes a server that is not started.
func prepare(t *testing.T, storage string, args ...string) *server {
	t.Helper()
	base, err := os.MkdirTemp("", "bough-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(base, 0o755); err != nil { // the computes' user must pass
		t.Fatal(err)
	}
	if base, err = filepath.EvalSymlinks(base); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(base, "data")
	if storage == "reflink" {
		dir = filepath.Join(pgtest.Mount(t, "xfs", 8<<30), "data")
	}
	return prepareIn(t, base, dir, storage, args...)
}

func prepareIn(t *testing.T, base, dir, storage string, args ...string) *server {
	t.Helper()
	noteSources()
	s := &server{t: t, base: base, dir: dir}
	s.args = append([]string{
		"serve", "--data-dir", dir, "--http-listen", "127.0.0.1:0", "--pg-listen", "127.0.0.1:0", "--storage", storage,
		"--storage-size", "6GiB", "--host-reserve", "256MiB", "--pool-reserve", "256MiB",
		"--rate-limit", "off", // tests ask often, to see soon
	}, args...)
	t.Cleanup(s.end)
	return s
}

// noteSources looks at every source file, so that `go test` does not show cached results of another server.
var noteSources = sync.OnceFunc(func() {
	for _, root := range []string{"../cmd", "../internal", "../sdk", "../api", "../go.mod"} {
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				_, _ = os.Stat(path) // away from the sources there are none
			}
			return nil
		})
	}
})

func (s *server) logFile() string { return filepath.Join(s.base, "server.log") }

// Start starts the server and waits until it is ready.
func (s *server) Start() {
	s.t.Helper()
	if err := s.tryStart(); err != nil {
		s.t.Fatal(err)
	}
}

// launch starts the process.
func (s *server) launch() error {
	log, err := os.OpenFile(s.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(program, s.args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		_ = cmd.Wait() // the state is in cmd.ProcessState
	}()
	s.mu.Lock()
	s.cmd, s.exited = cmd, exited
	s.mu.Unlock()
	return nil
}

func (s *server) tryStart() error {
	if err := s.launch(); err != nil {
		return err
	}
	deadline := time.Now().Add(startLimit)
	for {
		if s.ready() {
			return nil
		}
		select {
		case <-s.exited:
			return fmt.Errorf("the server ended: %v", s.cmd.ProcessState)
		case <-time.After(pollEvery):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the server was not ready within %v", startLimit)
		}
	}
}

// ready tells whether this data directory's server answers. The key proves that it is not another one on an old port.
func (s *server) ready() bool {
	raw, err := os.ReadFile(filepath.Join(s.dir, "admin.json"))
	if err != nil {
		return false
	}
	var a admin
	if json.Unmarshal(raw, &a) != nil {
		return false
	}
	res, err := http.Get(strings.TrimSuffix(a.APIURL, "/api/v2") + "/healthz")
	if err != nil {
		return false
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return false
	}
	c, err := sdk.New(sdk.Options{BaseURL: a.APIURL, APIKey: a.APIKey, MaxRetries: -1})
	if err != nil {
		return false
	}
	if _, err := c.Me(s.t.Context()); err != nil {
		return false
	}
	s.mu.Lock()
	s.admin, s.Client = a, c
	s.mu.Unlock()
	return true
}

func (s *server) pgAddr() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.admin.PGAddr
}

// Kill9 kills the server and nothing else.
func (s *server) Kill9() {
	s.t.Helper()
	s.stop(syscall.SIGKILL)
}

// Term ends the server the orderly way; computes stay.
func (s *server) Term() {
	s.t.Helper()
	s.stop(syscall.SIGTERM)
}

func (s *server) stop(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatalf("signal %v: %v; the server had ended by itself", sig, err)
	}
	select {
	case <-s.exited:
	case <-time.After(time.Minute):
		s.t.Fatalf("the server did not end within a minute of %v", sig)
	}
}

// Restart kills the server and starts it again.
func (s *server) Restart() {
	s.t.Helper()
	s.Kill9()
	s.Start()
}

// bough runs the command line against this server's data directory.
func (s *server) bough(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.t.Context()), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "BOUGH_DATA_DIR="+s.dir)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("bough %s: %w\n%s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), err
}

// Down stops everything.
func (s *server) Down() {
	s.t.Helper()
	if _, err := s.bough("down", "--data-dir", s.dir); err != nil {
		s.t.Error(err)
	}
}

// end stops everything and checks that nothing stays on the machine.
func (s *server) end() {
	if differences := spec.take(); len(differences) > 0 {
		s.t.Errorf("answers differ from the published specification; repair the server, or list in differences.tsv why not:\n%s", strings.Join(differences, "\n"))
	}
	if s.t.Failed() {
		s.t.Logf("end of the server's log:\n%s", tail(s.logFile(), 12_000))
	}
	if _, err := os.Stat(s.dir); err == nil {
		s.Down()
	}
	if s.exited != nil {
		<-s.exited
	}
	if left := s.leftovers(); len(left) > 0 {
		s.t.Errorf("left behind by bough down:\n  %s", strings.Join(left, "\n  "))
	}
	if err := os.RemoveAll(s.base); err != nil {
		s.t.Error(err)
	}
}

// leftovers lists the processes, mounts, loop devices and files outside of the data directory that belong to it.
func (s *server) leftovers() []string {
	var left []string
	for _, p := range append(processes(s.base), processes(s.dir)...) {
		left = append(left, fmt.Sprintf("process %d (%s) in %s", p.pid, p.comm, p.cwd))
	}
	for _, m := range mountsBelow(s.dir) {
		left = append(left, "mount "+m)
	}
	for _, l := range loopsBelow(s.dir) {
		left = append(left, "loop device "+l)
	}
	sum := sha256.Sum256([]byte(s.dir))
	for _, run := range []string{"/run/bough", os.Getenv("XDG_RUNTIME_DIR") + "/bough", filepath.Join(os.TempDir(), fmt.Sprintf("bough-%d", os.Geteuid()))} {
		path := filepath.Join(run, hex.EncodeToString(sum[:4]))
		if _, err := os.Lstat(path); err == nil {
			left = append(left, "sockets in "+path)
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/bough/", "/sys/fs/cgroup/*/bough/"} {
		groups, _ := filepath.Glob(pattern + hex.EncodeToString(sum[:4]))
		for _, path := range groups {
			left = append(left, "control group "+path)
		}
	}
	return left
}

func tail(path string, n int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-n):])
}

// eventually polls until check returns "", and fails the test with what it returned last.
func eventually(t *testing.T, limit time.Duration, check func() string) {
	t.Helper()
	if problem := within(limit, check); problem != "" {
		t.Fatalf("after %v: %s", limit, problem)
	}
}

func within(limit time.Duration, check func() string) string {
	deadline := time.Now().Add(limit)
	for {
		problem := check()
		if problem == "" || time.Now().After(deadline) {
			return problem
		}
		time.Sleep(pollEvery) // between two looks, not instead of one
	}
}
