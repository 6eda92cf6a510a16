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

// queue makes a queue that is stopped with the test.
func (w *world) queue(t *testing.T) *ops.Queue {
	t.Helper()
	q, err := ops.New(t.Context(), w.store, slog.New(slog.DiscardHandler))
	check(t, err)
	t.Cleanup(func() { q.Stop(context.WithoutCancel(t.Context())) })
	return q
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
	run func(ctx context.Context, op core.Operation) (ops.Commit, error)

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

func (s *script) ran() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.order)
}

func TestABranchIsSerialAndBranchesAreParallel(t *testing.T) {
	w := newWorld(t, 2)
	q := w.queue(t)
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
	check(t, q.Start(t.Context(), s))
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
	q := w.queue(t)
	s := &script{}
	check(t, q.Start(t.Context(), s))
	ids := w.enqueue(t, q, w.branches[0], core.ActionStartCompute) // only the River job knows
	check(t, q.Wait(t.Context(), ids[0]))
}

func TestTheCommitAndTheEndAreOne(t *testing.T) {
	w := newWorld(t, 1)
	q := w.queue(t)
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
	check(t, q.Start(t.Context(), s))
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
			q := w.queue(t)
			s := &script{run: func(context.Context, core.Operation) (ops.Commit, error) { return nil, tc.err }}
			check(t, q.Start(t.Context(), s))
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
	first := w.queue(t)
	stuck := &script{run: func(ctx context.Context, _ core.Operation) (ops.Commit, error) {
		close(begun)
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	check(t, first.Start(t.Context(), stuck))
	ids := w.enqueue(t, first, w.branches[0], core.ActionCreateBranch, core.ActionStartCompute)
	first.Kick(w.branches[0].ID)
	<-begun
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	first.Stop(gone)

	second := w.queue(t)
	s := &script{}
	check(t, second.Start(t.Context(), s))
	check(t, second.Wait(t.Context(), ids[1]))
	if got := s.ran(); !slices.Equal(got, ids) {
		t.Errorf("the second server ran %v, want %v", got, ids)
	}
}
