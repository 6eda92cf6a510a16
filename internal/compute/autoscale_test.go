package compute_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/compute/cgroup"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/pgtest"
	"github.com/boughdb/bough/internal/postgres"
)

// grouped is a rig whose computes are limited, on a machine that counts as one of four processors and 8 GiB.
type grouped struct {
	*rig
	tree *cgroup.Tree
	name string
}

const machineMem = int64(8) << 30

func newGrouped(t *testing.T, lo, hi float64) *grouped {
	t.Helper()
	name := fmt.Sprintf("test-%d-%s", os.Getpid(), strings.ToLower(t.Name()))
	tree, err := cgroup.Open(name)
	if core.IsKind(err, core.KindPrecondition) {
		t.Skip("needs root and cgroup controllers: " + core.UserMessage(err))
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after everything of the rig has ended
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 20*time.Second)
		defer cancel()
		if err := cgroup.Clean(ctx, name); err != nil {
			t.Error(err)
		}
	})
	g := &grouped{rig: newRig(t), tree: tree, name: name}
	g.spec.Size = postgres.SizeSpec{MinCU: lo, MaxCU: hi}
	g.reopen(t, tree)
	return g
}

// reopen gives the rig a new Manager; one without a tree sets no limits.
func (g *grouped) reopen(t *testing.T, tree *cgroup.Tree) {
	t.Helper()
	g.manager.Close()
	g.manager = compute.NewManager(t.Context(), compute.Options{
		Driver: g.driver, RunDir: filepath.Join(g.dir, "run"), LogDir: filepath.Join(g.dir, "log"), Cred: pgtest.Cred(t),
		Observer: g.events, QuitTimeout: 6 * time.Second, Groups: tree, MachineCPUs: 4, MachineMem: machineMem,
		ScaleEvery: 50 * time.Millisecond,
	})
	t.Cleanup(g.manager.Close)
}

// file reads one of the group's files; the two versions have their own names for what is the same.
func (g *grouped) file(t *testing.T, v1, v2 string) string {
	t.Helper()
	paths := []string{filepath.Join("/sys/fs/cgroup", v2)}
	if controller, rest, ok := strings.Cut(v1, "/"); ok && g.tree.Version() == 1 {
		paths, _ = filepath.Glob(filepath.Join("/sys/fs/cgroup", controller, "bough", g.name, endpoint, rest))
	} else {
		paths[0] = filepath.Join("/sys/fs/cgroup/bough", g.name, endpoint, v2)
	}
	if len(paths) == 0 {
		t.Fatalf("no file %s", v1)
	}
	raw, err := os.ReadFile(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(raw))
}

func (g *grouped) cores(t *testing.T) float64 {
	t.Helper()
	cores, err := g.tree.Group(endpoint).CPU()
	if err != nil {
		t.Fatal(err)
	}
	return cores
}

// inside lists the processes of the group in a hierarchy.
func (g *grouped) inside(t *testing.T, controller string) []int {
	var pids []int
	for f := range strings.FieldsSeq(g.file(t, controller+"/cgroup.procs", "cgroup.procs")) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids
}

// family lists the processes that work in the data directory.
func (g *grouped) family(t *testing.T) []int {
	t.Helper()
	real, err := filepath.EvalSymlinks(g.spec.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	cwds, _ := filepath.Glob("/proc/[0-9]*/cwd")
	var pids []int
	for _, link := range cwds {
		if cwd, err := os.Readlink(link); err == nil && cwd == real {
			pid, _ := strconv.Atoi(strings.Split(link, "/")[2])
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

// burn keeps n sessions busy until the test ends or stop is called, and fails the test when one of them is cut off.
func (g *grouped) burn(t *testing.T, n int) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, n)
	for range n {
		conn, err := g.manager.Conn(t.Context(), endpoint, "neondb")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer conn.Close(context.WithoutCancel(ctx))
			for ctx.Err() == nil {
				if _, err := conn.Exec(context.WithoutCancel(ctx), "SELECT sum(i) FROM generate_series(1, 20000) i"); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		for range n {
			if err := wait(t, done, "end of a busy session"); err != nil {
				t.Errorf("a session was cut off: %v", err)
			}
		}
	}
	t.Cleanup(stop)
	return stop
}

func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it does not happen that %s", what)
		}
	}
}

// Everything of a compute is in its group, which has the limits of its size, and is gone with it.
func TestComputeIsLimited(t *testing.T) {
	g := newGrouped(t, 0.25, 0.25)
	g.start(t)
	if got := g.cores(t); got != 0.25 {
		t.Errorf("limit of CPU = %v", got)
	}
	if got := g.file(t, "memory/memory.limit_in_bytes", "memory.max"); got != strconv.Itoa(1<<30) {
		t.Errorf("limit of memory = %s; want 1 GiB", got)
	}
	g.exec(t, "CREATE TABLE public.t AS SELECT i FROM generate_series(1, 1000) i")
	// Processes come and go: both lists are compared until they are the same.
	for _, controller := range []string{"cpu", "memory"} {
		until(t, "the group holds the compute's processes and no other", func() bool {
			before := g.family(t)
			in := g.inside(t, controller)
			return len(in) > 4 && slices.Equal(in, before) && slices.Equal(in, g.family(t))
		})
	}
	stop := g.burn(t, 2)
	until(t, "the limit is felt", func() bool {
		u, err := g.tree.Group(endpoint).Usage()
		return err == nil && u.Throttled > 300*time.Millisecond
	})
	stop()
	if size, ok := g.manager.Size(endpoint); !ok || size.CU != 0.25 || size.Note != "" {
		t.Errorf("Size = %+v, %v", size, ok)
	}
	if up, down := g.manager.Autoscaled(); up != 0 || down != 0 {
		t.Errorf("a fixed size was scaled %d times up, %d down", up, down)
	}
	if err := g.manager.Stop(t.Context(), endpoint, compute.StopFast); err != nil {
		t.Fatal(err)
	}
	if ids, err := g.tree.IDs(); err != nil || len(ids) != 0 {
		t.Errorf("groups after the stop: %v, %v", ids, err)
	}
	// A crash leaves none either.
	ready := g.start(t)
	if err := syscall.Kill(ready.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wait(t, g.events.exits, "crash report")
	if ids, err := g.tree.IDs(); err != nil || len(ids) != 0 {
		t.Errorf("groups after the crash: %v, %v", ids, err)
	}
}

// Load makes a compute larger and its end smaller, while sessions stay; a new server goes on where the old one was.
func TestSizeFollowsLoad(t *testing.T) {
	g := newGrouped(t, 0.25, 8)
	g.start(t)
	size, ok := g.manager.Size(endpoint)
	if !ok || size.CU != 0.25 || !strings.Contains(size.Note, "more than this machine has (4 CPUs, 8.0 GiB)") {
		t.Fatalf("Size = %+v, %v", size, ok)
	}
	if got := g.file(t, "memory/memory.limit_in_bytes", "memory.max"); got != strconv.FormatInt(machineMem, 10) {
		t.Errorf("limit of memory = %s; want the machine's", got)
	}
	idle, err := g.manager.Conn(t.Context(), endpoint, "neondb") // open all the time
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close(t.Context())
	stop := g.burn(t, 3)
	until(t, "load makes it larger", func() bool {
		size, _ := g.manager.Size(endpoint)
		return size.CU > 0.25
	})
	g.reopen(t, g.tree)
	if alive, err := g.manager.Attach(t.Context(), g.spec, g.handle); err != nil || !alive {
		t.Fatalf("alive = %v, err = %v", alive, err)
	}
	if size, _ := g.manager.Size(endpoint); size.CU <= 0.25 {
		t.Errorf("size after a restart of the server = %v", size.CU)
	}
	if err := g.manager.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !g.tree.Group(endpoint).Exists() {
		t.Fatal("the group of a running compute was swept away")
	}
	stop()
	until(t, "idleness makes it small again", func() bool {
		size, _ := g.manager.Size(endpoint)
		return size.CU == 0.25 && g.cores(t) == 0.25
	})
	if up, down := g.manager.Autoscaled(); down == 0 {
		t.Errorf("counted %d rises and %d falls", up, down)
	}
	if err := idle.Ping(t.Context()); err != nil {
		t.Errorf("an idle session was cut off: %v", err)
	}
}

// Limits that ask for no other setting are taken while the compute runs.
func TestResizeWithoutRestart(t *testing.T) {
	g := newGrouped(t, 0.5, 1)
	ready := g.start(t)
	from, to := g.spec.Size, postgres.SizeSpec{MinCU: 0.75, MaxCU: 1}
	if !g.manager.Resizable(from, to) || g.manager.Resizable(from, postgres.SizeSpec{MinCU: 0.5, MaxCU: 4}) {
		t.Fatal("a larger minimum needs no restart, a larger maximum does: other shared buffers, other workers")
	}
	g.manager.Resize(endpoint, to)
	if got := g.cores(t); got != 0.75 {
		t.Errorf("limit of CPU = %v", got)
	}
	if now, ok := g.manager.Lookup(endpoint); !ok || now.PID != ready.PID {
		t.Error("it was restarted")
	}
	g.manager.Resize("ep-no-such-00000000", to)
}

// A server that sets no limits takes those of its predecessor off, says so, and one that does again leaves the compute alone.
func TestWithoutGroups(t *testing.T) {
	g := newGrouped(t, 0.25, 1)
	g.start(t)
	g.reopen(t, nil)
	if err := cgroup.Lift(g.name); err != nil {
		t.Fatal(err)
	}
	if alive, err := g.manager.Attach(t.Context(), g.spec, g.handle); err != nil || !alive {
		t.Fatalf("alive = %v, err = %v", alive, err)
	}
	if size, _ := g.manager.Size(endpoint); size.CU != 1 || !strings.Contains(size.Note, "not enforced") {
		t.Errorf("Size = %+v", size)
	}
	if got := g.cores(t); got != 0 {
		t.Errorf("limit of CPU = %v; want none", got)
	}
	if err := g.manager.Stop(t.Context(), endpoint, compute.StopFast); err != nil {
		t.Fatal(err)
	}
	g.start(t)
	g.reopen(t, g.tree)
	if err := g.tree.Group(endpoint).Remove(t.Context()); err != nil { // nothing is in it
		t.Fatal(err)
	}
	if alive, err := g.manager.Attach(t.Context(), g.spec, g.handle); err != nil || !alive {
		t.Fatalf("alive = %v, err = %v", alive, err)
	}
	if size, _ := g.manager.Size(endpoint); !strings.Contains(size.Note, "a restart gives it one") {
		t.Errorf("Size = %+v", size)
	}
	if err := g.tree.Group("ep-stray-00000000").Make(1); err != nil {
		t.Fatal(err)
	}
	if err := g.manager.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if ids, err := g.tree.IDs(); err != nil || len(ids) != 0 {
		t.Errorf("groups after sweeping: %v, %v", ids, err)
	}
}
