package compute_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/compute/local"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/pgtest"
	"github.com/boughdb/bough/internal/postgres"
)

func TestMain(m *testing.M) {
	code := pgtest.Run(m)
	if code == 0 {
		if err := goleak.Find(); err != nil {
			println(err.Error())
			code = 1
		}
	}
	os.Exit(code)
}

const endpoint = "ep-test-one-00000001"

// events is an Observer that hands everything to channels; samples that nobody waits for are dropped.
type events struct {
	exits   chan compute.Exit
	idle    chan time.Time
	samples chan compute.Sample
}

func newEvents() *events {
	return &events{make(chan compute.Exit, 10), make(chan time.Time, 1), make(chan compute.Sample, 1)}
}

func (e *events) ComputeExited(_ context.Context, _ string, exit compute.Exit) { e.exits <- exit }

func (e *events) ComputeIdle(_ context.Context, _ string, last time.Time) {
	select {
	case e.idle <- last:
	default:
	}
}

func (e *events) ComputeSampled(_ context.Context, _ string, s compute.Sample) {
	select {
	case <-e.samples:
	default:
	}
	e.samples <- s
}

// wait receives from ch within a generous deadline.
func wait[T any](t *testing.T, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(30 * time.Second):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

type rig struct {
	dir     string
	events  *events
	driver  *local.Driver
	manager *compute.Manager
	spec    compute.Spec

	mu     sync.Mutex
	handle compute.Handle
	starts int
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{dir: pgtest.TempDir(t), events: newEvents()}
	driver, err := local.New(pgtest.Cred(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.driver = driver
	b := pgtest.Build(t)
	r.spec = compute.Spec{
		EndpointID: endpoint, Build: b, DataDir: pgtest.DataDir(t, b, r.dir),
		Size: postgres.SizeSpec{MinCU: 0.25, MaxCU: 0.25}, IdleTimeout: -1,
	}
	r.reopen(t)
	return r
}

// reopen gives the rig a new Manager, as a restarted server has.
func (r *rig) reopen(t *testing.T) {
	t.Helper()
	if r.manager != nil {
		r.manager.Close()
	}
	r.manager = compute.NewManager(t.Context(), compute.Options{
		Driver: r.driver, RunDir: filepath.Join(r.dir, "run"), LogDir: filepath.Join(r.dir, "log"), Cred: pgtest.Cred(t),
		Observer: r.events, QuitTimeout: 6 * time.Second,
	})
	t.Cleanup(r.manager.Close)
}

func (r *rig) persist(_ context.Context, h compute.Handle) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	raw, err := json.Marshal(h) // as it is kept
	if err != nil {
		return err
	}
	r.starts++
	return json.Unmarshal(raw, &r.handle)
}

func (r *rig) start(t *testing.T) compute.Ready {
	t.Helper()
	ready, err := r.manager.Start(t.Context(), r.spec, r.persist)
	if err != nil {
		t.Fatal(err)
	}
	return ready
}

// servers counts the postmasters under the rig's folder.
func (r *rig) servers(t *testing.T) int {
	t.Helper()
	found, err := r.driver.Scan(t.Context(), r.dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(found)
}

func (r *rig) exec(t *testing.T, sql string) {
	t.Helper()
	conn, err := r.manager.Conn(t.Context(), endpoint, "neondb")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

func TestStartStop(t *testing.T) {
	r := newRig(t)
	began := time.Now()
	ready := r.start(t)
	t.Logf("first start took %v", time.Since(began))
	if got, ok := r.manager.Lookup(endpoint); !ok || got != ready {
		t.Fatalf("Lookup = %+v, %v; want %+v", got, ok, ready)
	}
	if r.handle.PID != ready.PID || r.handle.Version != compute.HandleVersion || r.handle.StartTicks == 0 {
		t.Fatalf("handle = %+v", r.handle)
	}
	for range 2 {
		if err := r.manager.Stop(t.Context(), endpoint, compute.StopFast); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := r.manager.Lookup(endpoint); ok || r.servers(t) != 0 || len(r.manager.Running()) != 0 {
		t.Fatal("the compute still runs")
	}
	control, err := postgres.ReadControl(r.spec.DataDir)
	if err != nil || control.State != postgres.StateShutDown {
		t.Fatalf("state = %v, err = %v; want a clean shutdown", control.State, err)
	}
	if again := r.start(t); again.PID == ready.PID {
		t.Fatal("the second start returned the first process")
	}
	if len(r.events.exits) != 0 {
		t.Fatal("a stop was reported as a crash")
	}
}

func TestConcurrentStartsShareOneProcess(t *testing.T) {
	r := newRig(t)
	var wg sync.WaitGroup
	pids := make([]int, 50)
	for i := range pids {
		wg.Go(func() {
			ready, err := r.manager.Start(t.Context(), r.spec, r.persist)
			if err != nil {
				t.Error(err)
			}
			pids[i] = ready.PID
		})
	}
	wg.Wait()
	for _, pid := range pids {
		if pid != pids[0] {
			t.Fatalf("two processes: %d and %d", pid, pids[0])
		}
	}
	if r.starts != 1 || r.servers(t) != 1 {
		t.Fatalf("%d starts, %d servers; want one", r.starts, r.servers(t))
	}
}

// The caller that began a start gives up; the one that joined still gets the compute.
func TestStartOutlivesItsFirstCaller(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	inPersist := make(chan struct{})
	goOn := make(chan struct{})
	first := make(chan error, 1)
	go func() {
		_, err := r.manager.Start(ctx, r.spec, func(ctx context.Context, h compute.Handle) error {
			close(inPersist)
			<-goOn
			return r.persist(ctx, h)
		})
		first <- err
	}()
	<-inPersist
	cancel()
	if err := wait(t, first, "answer to the first caller"); !errors.Is(err, context.Canceled) {
		t.Fatalf("err = %v", err)
	}
	close(goOn)
	r.start(t)
	if r.starts != 1 {
		t.Fatalf("%d starts", r.starts)
	}
}

func TestPersistFailureLeavesNothing(t *testing.T) {
	r := newRig(t)
	boom := errors.New("boom")
	_, err := r.manager.Start(t.Context(), r.spec, func(context.Context, compute.Handle) error { return boom })
	if !errors.Is(err, boom) || strings.Contains(core.UserMessage(err), "boom") {
		t.Fatalf("err = %v", err)
	}
	if r.servers(t) != 0 {
		t.Fatal("a server runs")
	}
	r.start(t)
}

func TestStopDuringStart(t *testing.T) {
	r := newRig(t)
	inPersist := make(chan struct{})
	result := make(chan error, 1)
	go func() {
		_, err := r.manager.Start(t.Context(), r.spec, func(ctx context.Context, h compute.Handle) error {
			close(inPersist)
			<-ctx.Done()
			return ctx.Err()
		})
		result <- err
	}()
	<-inPersist
	if err := r.manager.Stop(t.Context(), endpoint, compute.StopFast); err != nil {
		t.Fatal(err)
	}
	if err := wait(t, result, "answer"); !core.IsKind(err, core.KindUnavailable) {
		t.Fatalf("err = %v", err)
	}
	if r.servers(t) != 0 {
		t.Fatal("a server runs")
	}
	r.start(t)
}

func TestAttachAfterRestart(t *testing.T) {
	r := newRig(t)
	before := r.start(t)
	r.exec(t, "CREATE TABLE public.t AS SELECT 1 AS n")
	r.reopen(t)
	if r.servers(t) != 1 {
		t.Fatal("closing the manager ended the compute")
	}
	alive, err := r.manager.Attach(t.Context(), r.spec, r.handle)
	if err != nil || !alive {
		t.Fatalf("alive = %v, err = %v", alive, err)
	}
	if after, ok := r.manager.Lookup(endpoint); !ok || after.PID != before.PID || after.SocketPath != before.SocketPath {
		t.Fatalf("Lookup = %+v, %v; want %+v", after, ok, before)
	}
	r.exec(t, "INSERT INTO public.t VALUES (2)")

	// An adopted compute's crash is seen as well.
	if err := syscall.Kill(before.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wait(t, r.events.exits, "crash report")
	if alive, err := r.manager.Attach(t.Context(), r.spec, r.handle); err != nil || alive {
		t.Fatalf("dead process: alive = %v, err = %v", alive, err)
	}
	r.start(t)
	if err := r.manager.Stop(t.Context(), endpoint, compute.StopFast); err != nil {
		t.Fatal(err)
	}
}

// A handle whose pid went to another process, or of another boot, is not followed.
func TestAttachRefusesStrangers(t *testing.T) {
	r := newRig(t)
	r.start(t)
	if err := r.manager.Stop(t.Context(), endpoint, compute.StopFast); err != nil {
		t.Fatal(err)
	}
	reused := r.handle
	reused.PID = os.Getpid()
	rebooted := r.handle
	rebooted.BootID = "00000000-0000-0000-0000-000000000000"
	for _, h := range []compute.Handle{reused, rebooted, {}} {
		if alive, err := r.manager.Attach(t.Context(), r.spec, h); alive || (err != nil && h.Version != 0) {
			t.Fatalf("handle %+v: alive = %v, err = %v", h, alive, err)
		}
	}
}

func TestCrashIsReportedAndNothingLeft(t *testing.T) {
	r := newRig(t)
	ready := r.start(t)
	r.exec(t, "CREATE TABLE public.t AS SELECT generate_series(1, 1000) AS n")
	client := pgtest.UserConn(t, ready.SocketDir, postgres.DefaultOwner, "neondb")
	busy := make(chan struct{})
	go func() { // a backend that does not look for its postmaster by itself
		defer close(busy)
		_, _ = client.Exec(t.Context(), "SELECT count(*) FROM generate_series(1, 2000000000)")
	}()
	if err := syscall.Kill(ready.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	exit := wait(t, r.events.exits, "crash report")
	if exit.Clean || exit.Status != "signal: killed" {
		t.Fatalf("exit = %+v", exit)
	}
	wait(t, busy, "end of the orphaned backend")
	if r.servers(t) != 0 {
		t.Fatal("something still runs")
	}
	r.start(t)
	conn, err := r.manager.Conn(t.Context(), endpoint, "neondb")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	var n int
	if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM public.t").Scan(&n); err != nil || n != 1000 {
		t.Fatalf("rows = %d, err = %v", n, err)
	}
}

// A server that nobody knows of (its handle was never persisted) is ended before another one starts.
func TestStartEndsAForgottenServer(t *testing.T) {
	r := newRig(t)
	first := r.start(t)
	r.reopen(t)
	second := r.start(t)
	if second.PID == first.PID || r.servers(t) != 1 {
		t.Fatalf("pids %d and %d, %d servers", first.PID, second.PID, r.servers(t))
	}
}

// A crash left postmaster.pid behind, and its pid meanwhile belongs to another process of the servers' OS user.
func TestStaleLockFile(t *testing.T) {
	r := newRig(t)
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: pgtest.Cred(t)}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	ready := r.start(t)
	r.reopen(t)
	if err := r.driver.Clear(t.Context(), r.spec.DataDir, ready.SocketDir); err != nil {
		t.Fatal(err)
	}
	lock := filepath.Join(r.spec.DataDir, "postmaster.pid")
	content := strings.Join([]string{itoa(cmd.Process.Pid), r.spec.DataDir, "1700000000", "5432", ready.SocketDir, "", "", "ready", ""}, "\n")
	if err := os.WriteFile(lock, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	r.start(t)
	if err := cmd.Process.Signal(syscall.Signal(0)); err != nil {
		t.Fatalf("the stranger was ended: %v", err)
	}
}

func TestFailureMessages(t *testing.T) {
	for name, c := range map[string]struct {
		break_ func(*testing.T, *rig)
		kind   core.Kind
		says   string
		hint   string
	}{
		"unknown setting": {
			func(_ *testing.T, r *rig) { r.spec.PGSettings = map[string]string{"no_such_setting": "1"} },
			core.KindUnprocessable, `unrecognized configuration parameter "no_such_setting"`, "FATAL",
		},
		"bad value": {
			func(_ *testing.T, r *rig) { r.spec.PGSettings = map[string]string{"work_mem": "lots'\n"} },
			core.KindUnprocessable, `invalid value for parameter "work_mem"`, "FATAL",
		},
		"missing library": {
			func(_ *testing.T, r *rig) {
				r.spec.Preload = []string{"no_such_library"}
			},
			core.KindUnprocessable, `"no_such_library"`, "FATAL",
		},
		"damaged control file": {
			func(t *testing.T, r *rig) {
				if err := os.Truncate(filepath.Join(r.spec.DataDir, "global", "pg_control"), 100); err != nil {
					t.Fatal(err)
				}
			},
			core.KindUnavailable, "ended during start-up", "pg_control",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			c.break_(t, r)
			_, err := r.manager.Start(t.Context(), r.spec, r.persist)
			e, ok := errors.AsType[*core.Error](err)
			if !ok || e.Kind != c.kind || !strings.Contains(e.Message, c.says) || !strings.Contains(e.Hint, c.hint) {
				t.Fatalf("err = %#v", err)
			}
			if strings.Contains(e.Message, r.dir) {
				t.Fatalf("the message shows a path: %s", e.Message)
			}
			if _, ok := r.manager.Lookup(endpoint); ok || r.servers(t) != 0 {
				t.Fatal("something runs")
			}
		})
	}
}

// Promotion of a copy: of a crashed cluster and of one that was shut down; each ends on a new timeline with all its rows, and
// starts again like any other.
func TestPromote(t *testing.T) {
	for name, mode := range map[string]compute.StopMode{"crashed": compute.StopKill, "shut down": compute.StopFast} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.start(t)
			r.exec(t, "CREATE TABLE public.t AS SELECT generate_series(1, 50000) AS n")
			if err := r.manager.Stop(t.Context(), endpoint, mode); err != nil {
				t.Fatal(err)
			}
			child := filepath.Join(r.dir, "child")
			pgtest.CopyCluster(t, r.spec.DataDir, child)
			if err := postgres.CleanChild(child); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(child, "standby.signal"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			r.spec.DataDir, r.spec.Promote = child, true
			// Larger settings in the child than in its parent must not matter, nor smaller ones.
			r.spec.Size = postgres.SizeSpec{MinCU: 1, MaxCU: 1}
			for i := range 2 {
				began := time.Now()
				r.start(t)
				t.Logf("start %d took %v", i, time.Since(began))
				conn, err := r.manager.Conn(t.Context(), endpoint, "neondb")
				if err != nil {
					t.Fatal(err)
				}
				var n, timeline int
				var recovering bool
				err = conn.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM public.t), pg_is_in_recovery(),
					('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int`).Scan(&n, &recovering, &timeline)
				if err != nil || n != 50000 || recovering || timeline != 2 {
					t.Fatalf("rows %d, in recovery %v, timeline %d, err %v", n, recovering, timeline, err)
				}
				_ = conn.Close(t.Context())
				if _, err := os.Stat(filepath.Join(child, "promote")); !os.IsNotExist(err) {
					t.Fatalf("promote file: %v", err)
				}
				if err := r.manager.Stop(t.Context(), endpoint, compute.StopFast); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// A copy of a subscriber starts without acting on a subscription: nobody who asks its publisher's name is ever answered.
func TestPromoteDetachesSubscriptions(t *testing.T) {
	var publisher net.ListenConfig
	ln, err := publisher.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	calls := make(chan struct{}, 1000)
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			calls <- struct{}{}
			_ = conn.Close()
		}
	})
	t.Cleanup(func() { _ = ln.Close(); accepting.Wait() })

	r := newRig(t)
	r.start(t)
	r.exec(t, "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 port="+itoa(ln.Addr().(*net.TCPAddr).Port)+
		" dbname=x' PUBLICATION p WITH (connect = false, slot_name = 'slot')")
	r.exec(t, "ALTER SUBSCRIPTION s ENABLE")
	wait(t, calls, "call of the subscriber itself")
	if err := r.manager.Stop(t.Context(), endpoint, compute.StopKill); err != nil {
		t.Fatal(err)
	}
	if err := postgres.CleanChild(r.spec.DataDir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.spec.DataDir, "standby.signal"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for len(calls) > 0 {
		<-calls
	}
	r.spec.Promote = true
	before := r.starts
	ready := r.start(t)
	if r.starts != before+2 || r.servers(t) != 1 || r.handle.PID != ready.PID {
		t.Errorf("%d handles were persisted, %d servers run, the last handle is %d of %d", r.starts-before, r.servers(t), r.handle.PID, ready.PID)
	}
	conn, err := r.manager.Conn(t.Context(), endpoint, "neondb")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var workers string
	var detached bool
	if err := conn.QueryRow(t.Context(), "SELECT current_setting('max_logical_replication_workers'), (SELECT NOT subenabled AND subslotname IS NULL FROM pg_subscription)").
		Scan(&workers, &detached); err != nil || workers == "0" || !detached {
		t.Errorf("%s workers, detached %v, %v", workers, detached, err)
	}
	if n := len(calls); n != 0 {
		t.Errorf("the copy called the publisher %d times", n)
	}
}

// TestAttachEndsAHeldFirstStart: the server that was to part a copy from its subscriptions is not taken for a ready one.
func TestAttachEndsAHeldFirstStart(t *testing.T) {
	r := newRig(t)
	r.start(t)
	if err := r.manager.Stop(t.Context(), endpoint, compute.StopFast); err != nil {
		t.Fatal(err)
	}
	sockets := filepath.Join(r.dir, "run", endpoint)
	p, err := r.driver.Start(t.Context(), compute.Launch{
		EndpointID: endpoint, Build: r.spec.Build, DataDir: r.spec.DataDir, SocketDir: sockets, LogFile: filepath.Join(r.dir, "held.log"),
		Args: []string{"unix_socket_directories=" + sockets, postgres.NoLogicalWorkers},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	r.spec.Promote = true
	alive, err := r.manager.Attach(t.Context(), r.spec, p.Handle())
	if alive || err != nil || r.servers(t) != 0 {
		t.Errorf("alive %v, %v, %d servers", alive, err, r.servers(t))
	}
	r.start(t)
}

// An observer may stop the compute from inside its callback.
func TestStopFromCallback(t *testing.T) {
	r := newRig(t)
	stopped := make(chan error, 1)
	o := &stopper{done: stopped}
	r.manager.Close()
	r.manager = compute.NewManager(t.Context(), compute.Options{
		Driver: r.driver, RunDir: filepath.Join(r.dir, "run"), LogDir: filepath.Join(r.dir, "log"), Cred: pgtest.Cred(t), Observer: o,
	})
	t.Cleanup(r.manager.Close)
	o.manager.Store(r.manager)
	r.spec.IdleTimeout = 300 * time.Millisecond
	r.start(t)
	if err := wait(t, stopped, "stop"); err != nil {
		t.Fatal(err)
	}
	if r.servers(t) != 0 {
		t.Fatal("a server runs")
	}
}

type stopper struct {
	manager atomic.Pointer[compute.Manager]
	done    chan error
}

func (s *stopper) ComputeExited(context.Context, string, compute.Exit)    {}
func (s *stopper) ComputeSampled(context.Context, string, compute.Sample) {}
func (s *stopper) ComputeIdle(ctx context.Context, id string, _ time.Time) {
	s.done <- s.manager.Load().Stop(ctx, id, compute.StopFast)
}
