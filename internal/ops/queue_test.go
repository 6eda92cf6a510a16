package ops_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/ops"
	"github.com/boughdb/bough/internal/pgtest"
	"github.com/boughdb/bough/internal/store"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Run(m)) }

// world is a control database with one project and some branches.
type world struct {
	store    *store.Store
	project  core.Project
	branches []core.Branch
	dead     sync.Map // numbers of servers
}

func newWorld(t *testing.T, branches int) *world {
	t.Helper()
	ctx := t.Context()
	c := pgtest.NewCluster(t, pgtest.Options{})
	s, err := store.Open(ctx, "postgres:///postgres?sslmode=disable&user=cloud_admin&host="+c.SocketDir, 16)
	check(t, err)
	t.Cleanup(s.Close)
	org, err := s.InsertOrganization(ctx, core.NewOrgID(), "h", "Org")
	check(t, err)
	w := &world{store: s}
	w.project, err = s.InsertProject(ctx, core.Project{ID: core.NewProjectID(), OrgID: org.ID, Name: "p", RegionID: "local", PGVersion: 17, Provisioner: "x", Settings: json.RawMessage(`{}`)})
	check(t, err)
	for range branches {
		id := core.NewBranchID()
		b, err := s.InsertBranch(ctx, core.Branch{ID: id, ProjectID: w.project.ID, Name: id, State: core.BranchReady, InitSource: "parent-data", VolumeID: id})
		check(t, err)
		w.branches = append(w.branches, b)
	}
	return w
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// member is a server of a fleet that a test makes.
type member struct {
	w    *world
	self int64
}

func (m member) Self() int64 { return m.self }

func (m member) Alive(server int64) bool {
	_, dead := m.w.dead.Load(server)
	return !dead
}

func (m member) Company() bool { return m.self > 1 }

// queue makes a queue that is stopped with the test: the server of that number. From the second on they have company.
func (w *world) queue(t *testing.T, server int64) *ops.Queue {
	t.Helper()
	q, err := ops.New(t.Context(), w.store, member{w, server}, slog.New(slog.DiscardHandler))
	check(t, err)
	t.Cleanup(func() { q.Stop(context.WithoutCancel(t.Context())) })
	return q
}

// start makes a queue work.
func (w *world) start(t *testing.T, q *ops.Queue, server int64, s *script) {
	t.Helper()
	s.w, s.self = w, server
	check(t, q.Start(t.Context(), s))
}

// enqueue queues operations and returns their ids.
func (w *world) enqueue(t *testing.T, q *ops.Queue, branch core.Branch, actions ...core.OperationAction) []string {
	t.Helper()
	var ids []string
	check(t, w.store.Tx(t.Context(), func(tx store.Q) error {
		ids = nil
		if _, err := tx.LockBranchByID(t.Context(), branch.ID); err != nil {
			return err
		}
		for _, a := range actions {
			saved, err := q.Enqueue(t.Context(), tx, core.Operation{ID: core.NewUUID(), ProjectID: w.project.ID, BranchID: branch.ID, Action: a})
			if err != nil {
				return err
			}
			ids = append(ids, saved[0].ID)
		}
		return nil
	}))
	return ids
}

// script is a Runner that records what it is asked for.
type script struct {
	run  func(ctx context.Context, op core.Operation) (ops.Commit, error)
	w    *world
	self int64

	mu     sync.Mutex
	order  []string
	failed []string
}

func (s *script) Run(ctx context.Context, op core.Operation) (ops.Commit, error) {
	s.mu.Lock()
	s.order = append(s.order, op.ID)
	s.mu.Unlock()
	if s.run == nil {
		return nil, nil
	}
	return s.run(ctx, op)
}

func (s *script) Failed(op core.Operation, _ error) ops.Commit {
	s.mu.Lock()
	s.failed = append(s.failed, op.ID)
	s.mu.Unlock()
	return nil
}

func (s *script) Ended(core.Operation, core.OperationStatus, time.Duration) {}

func (s *script) Told(context.Context, ops.News, string) {}

func (s *script) Acquire(ctx context.Context, projectID string) (int64, error) {
	for {
		h, err := s.w.store.HoldProject(ctx, projectID, s.self)
		if err != nil {
			return 0, err
		}
		if _, dead := s.w.dead.Load(h.Server); !dead {
			return h.Server, nil
		}
		if err := s.w.store.InheritProjects(ctx, h.Server, s.self); err != nil {
			return 0, err
		}
		if err := s.w.store.ReadyProject(ctx, projectID, s.self); err != nil {
			return 0, err
		}
	}
}

func (s *script) ran() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.order)
}

func TestABranchIsSerialAndBranchesAreParallel(t *testing.T) {
	w := newWorld(t, 2)
	q := w.queue(t, 1)
	slow := w.branches[0].ID
	proceed := make(chan struct{})
	s := &script{run: func(ctx context.Context, op core.Operation) (ops.Commit, error) {
		if op.BranchID == slow && op.Action == core.ActionCreateBranch {
			select {
			case <-proceed:
			case <-ctx.Done():
			}
		}
		return nil, nil
	}}
	w.start(t, q, 1, s)
	first := w.enqueue(t, q, w.branches[0], core.ActionCreateBranch, core.ActionStartCompute, core.ActionSuspendCompute)
	q.Kick(slow)
	other := w.enqueue(t, q, w.branches[1], core.ActionStartCompute)
	q.Kick(w.branches[1].ID)
	check(t, q.Wait(t.Context(), other[0])) // although the other branch is stuck
	close(proceed)
	check(t, q.Wait(t.Context(), first[2]))
	var order []string
	for _, id := range s.ran() {
		if id != other[0] {
			order = append(order, id)
		}
	}
	if !slices.Equal(order, first) {
		t.Errorf("ran %v, want %v", order, first)
	}
}

func TestNobodyKicks(t *testing.T) {
	w := newWorld(t, 1)
	q := w.queue(t, 1)
	s := &script{}
	w.start(t, q, 1, s)
	ids := w.enqueue(t, q, w.branches[0], core.ActionStartCompute) // only the River job knows
	check(t, q.Wait(t.Context(), ids[0]))
}

func TestTheCommitAndTheEndAreOne(t *testing.T) {
	w := newWorld(t, 1)
	q := w.queue(t, 1)
	b := w.branches[0]
	tries := 0
	s := &script{run: func(context.Context, core.Operation) (ops.Commit, error) {
		tries++
		return func(ctx context.Context, tx store.Q) error {
			if err := tx.SetBranchSize(ctx, b.ID, int64(tries)); err != nil {
				return err
			}
			if tries == 1 {
				return errors.New("the commit fails after its change")
			}
			return nil
		}, nil
	}}
	w.start(t, q, 1, s)
	ids := w.enqueue(t, q, b, core.ActionStartCompute)
	q.Kick(b.ID)
	check(t, q.Wait(t.Context(), ids[0]))
	got, err := w.store.BranchByID(t.Context(), b.ID)
	check(t, err)
	op, err := w.store.Operation(t.Context(), w.project.ID, ids[0])
	check(t, err)
	if *got.LogicalSize != 2 || op.FailuresCount != 1 || op.Status != core.OpFinished || op.Error != "" {
		t.Errorf("size %d, operation %+v", *got.LogicalSize, op)
	}
}

func TestFailures(t *testing.T) {
	for name, tc := range map[string]struct {
		err     error
		tries   int
		message string
	}{
		"transient": {core.Errorf(core.KindUnavailable, "", "the compute does not answer"), ops.MaxFailures, "the compute does not answer"},
		"permanent": {core.Errorf(core.KindNoSpace, "", "the disk is full"), 1, "the disk is full"},
		"hidden":    {errors.New("password=secret"), ops.MaxFailures, "internal error; the server's log has the details under the operation's id "},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			q := w.queue(t, 1)
			s := &script{run: func(context.Context, core.Operation) (ops.Commit, error) { return nil, tc.err }}
			w.start(t, q, 1, s)
			ids := w.enqueue(t, q, w.branches[0], core.ActionStartCompute)
			q.Kick(w.branches[0].ID)
			if err := q.Wait(t.Context(), ids[0]); err == nil {
				t.Fatal("a failed operation counts as finished")
			}
			op, err := w.store.Operation(t.Context(), w.project.ID, ids[0])
			check(t, err)
			want := tc.message
			if name == "hidden" {
				want += op.ID
			}
			if op.Status != core.OpFailed || op.Error != want || op.FailuresCount != tc.tries || len(s.ran()) != tc.tries || len(s.failed) != 1 {
				t.Errorf("operation %+v after %d tries", op, len(s.ran()))
			}
		})
	}
}

// TestTheNextServerGoesOn stops a server in the middle of an operation.
func TestTheNextServerGoesOn(t *testing.T) {
	w := newWorld(t, 1)
	begun := make(chan struct{})
	first := w.queue(t, 1)
	stuck := &script{run: func(ctx context.Context, _ core.Operation) (ops.Commit, error) {
		close(begun)
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	w.start(t, first, 1, stuck)
	ids := w.enqueue(t, first, w.branches[0], core.ActionCreateBranch, core.ActionStartCompute)
	first.Kick(w.branches[0].ID)
	<-begun
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	first.Stop(gone)

	w.dead.Store(int64(1), nil)
	second := w.queue(t, 2)
	s := &script{}
	w.start(t, second, 2, s)
	check(t, second.Wait(t.Context(), ids[1]))
	if got := s.ran(); !slices.Equal(got, ids) {
		t.Errorf("the second server ran %v, want %v", got, ids)
	}
}

// TestTwoServersShareTheWork queues work of one project at both servers: the one that holds the project does all of it, once
// and in order, and who waits at the other hears of it.
func TestTwoServersShareTheWork(t *testing.T) {
	const each = 20
	w := newWorld(t, 4)
	var queues []*ops.Queue
	var scripts []*script
	for server := int64(2); server < 4; server++ {
		q, s := w.queue(t, server), &script{}
		w.start(t, q, server, s)
		queues, scripts = append(queues, q), append(scripts, s)
	}
	var all sync.WaitGroup
	for i := range each {
		for n, q := range queues {
			b := w.branches[(i+n)%len(w.branches)]
			all.Go(func() {
				ids := w.enqueue(t, q, b, core.ActionStartCompute, core.ActionSuspendCompute)
				q.Kick(b.ID)
				if err := q.Wait(t.Context(), ids[1]); err != nil {
					t.Error(err)
				}
			})
		}
	}
	all.Wait()
	first, second := scripts[0].ran(), scripts[1].ran()
	if len(first)+len(second) != each*2*2 {
		t.Errorf("%d and %d operations ran, %d were queued", len(first), len(second), each*2*2)
	}
	if len(first) > 0 && len(second) > 0 {
		t.Errorf("both servers worked on a project: %d and %d operations", len(first), len(second))
	}
	ran := slices.Sorted(slices.Values(append(first, second...)))
	if len(slices.Compact(ran)) != each*2*2 {
		t.Error("an operation ran twice")
	}
}

// TestAProjectThatRestsIsAnybodys lets a server give up what it does not need: the other takes it.
func TestAProjectThatRestsIsAnybodys(t *testing.T) {
	w := newWorld(t, 1)
	b := w.branches[0]
	first, second := w.queue(t, 2), w.queue(t, 3)
	one, two := &script{}, &script{}
	w.start(t, first, 2, one)
	w.start(t, second, 3, two)
	run := func(q *ops.Queue) {
		ids := w.enqueue(t, q, b, core.ActionStartCompute)
		q.Kick(b.ID)
		check(t, q.Wait(t.Context(), ids[0]))
	}
	run(first)
	run(second)
	left, err := first.Leave(t.Context())
	check(t, err)
	if !slices.Equal(left, []string{w.project.ID}) {
		t.Fatalf("left %v", left)
	}
	run(second)
	check(t, w.store.SaveHandle(t.Context(), b.ID, b.ID, json.RawMessage(`{}`)))
	if left, err := second.Leave(t.Context()); err != nil || len(left) > 0 {
		t.Errorf("left %v although something runs, %v", left, err)
	}
	run(first)
	if len(one.ran()) != 2 || len(two.ran()) != 2 {
		t.Errorf("%d and %d operations", len(one.ran()), len(two.ran()))
	}
}
