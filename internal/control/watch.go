package control

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/history"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/internal/storage"
	"github.com/boughdb/bough/internal/store"
)

const (
	spaceEvery = 2 * time.Second
	// A compute that crashes more often than this is left asleep; the next connection tries again.
	crashLimit  = 3
	crashWindow = time.Minute
)

// fullFlag is set while the storage is so full that computes must not run.
type fullFlag struct{ atomic.Bool }

func (f *fullFlag) check() error {
	if f.Load() {
		return core.Errorf(core.KindNoSpace, "", "the server's storage is full, so computes are suspended to keep the data safe; delete branches or projects, or add disk space")
	}
	return nil
}

// admit refuses new branches when space is short.
func (s *Service) admit(ctx context.Context) error {
	if err := s.full.check(); err != nil {
		return err
	}
	if missing(s.Volumes.Path("")) {
		return s.unreachable()
	}
	return s.Volumes.Admit(ctx)
}

// crashLog remembers when computes crashed.
type crashLog struct {
	mu sync.Mutex
	at map[string][]time.Time
}

// tooMany records a crash and tells whether the limit is passed.
func (l *crashLog) tooMany(id string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at == nil {
		l.at = map[string][]time.Time{}
	}
	recent := []time.Time{now}
	for _, t := range l.at[id] {
		if now.Sub(t) < crashWindow {
			recent = append(recent, t)
		}
	}
	l.at[id] = recent
	return len(recent) > crashLimit
}

// Watcher is told what happens to running computes; see compute.Observer.
type Watcher struct{ S *Service }

// reasonIdle is why an unused compute is suspended.
const reasonIdle = "idle"

// because is the parameter of an operation that nobody asked for.
func because(reason string) json.RawMessage {
	b, _ := json.Marshal(map[string]string{"reason": reason}) // cannot fail
	return b
}

// ComputeExited restarts a compute that crashed, through an operation that says so.
func (w Watcher) ComputeExited(ctx context.Context, id string, exit compute.Exit) {
	s := w.S
	s.log.Error("compute crashed", "endpoint_id", id, "status", exit.Status)
	err := s.Store.DeleteHandle(ctx, id)
	if err == nil {
		err = s.restart(ctx, id, "crash: "+exit.Status, s.crashes.tooMany(id, time.Now()))
	}
	if err != nil && !core.IsKind(err, core.KindNotFound) && ctx.Err() == nil {
		s.log.Error("cannot restart a crashed compute; the next connection does", "endpoint_id", id, "error", err)
	}
}

// unasked changes an endpoint that is active and has nothing queued, without a user having asked: fn gets it with the rows of
// its branch and its own locked. done is false when the endpoint is in another state; what is queued takes care of it.
func (s *Service) unasked(ctx context.Context, id string, fn func(q store.Q, e core.Endpoint) error) (done bool, err error) {
	e, err := s.Store.Endpoint(ctx, id)
	if err != nil {
		return false, err
	}
	err = s.Store.Tx(ctx, func(q store.Q) error {
		done = false
		if _, err := q.LockBranch(ctx, e.ProjectID, e.BranchID); err != nil {
			return err
		}
		e, err := q.LockEndpoint(ctx, id)
		if err != nil || e.State != core.EndpointActive || e.PendingState != "" {
			return err
		}
		done = true
		return fn(q, e)
	})
	if err != nil {
		return false, err
	}
	s.Queue.Kick(e.BranchID)
	return done, nil
}

// queueUnasked queues operations that nobody asked for, with the reason in their parameters, and sets where they lead. q has
// locked the branch.
func (s *Service) queueUnasked(ctx context.Context, q store.Q, e core.Endpoint, to core.EndpointState, reason string, actions ...core.OperationAction) error {
	if _, err := q.SetEndpointPending(ctx, e.ID, to); err != nil {
		return err
	}
	queued := make([]core.Operation, len(actions))
	for i, action := range actions {
		queued[i] = newOperation(core.Caller{}, e.ProjectID, e.BranchID, e.ID, action)
		queued[i].Params = because(reason)
	}
	_, err := s.Queue.Enqueue(ctx, q, queued...)
	return err
}

// restart queues a start of a compute that ended by itself, or marks it as asleep when it is to be left so. Work on a branch
// without an endpoint is started again by its operation.
func (s *Service) restart(ctx context.Context, id, reason string, leave bool) error {
	_, err := s.unasked(ctx, id, func(q store.Q, e core.Endpoint) error {
		if leave || e.Disabled {
			return q.EndpointIdle(ctx, id)
		}
		return s.queueUnasked(ctx, q, e, core.EndpointActive, reason, core.ActionStartCompute)
	})
	return err
}

// ComputeIdle suspends a compute that nobody uses.
func (w Watcher) ComputeIdle(ctx context.Context, id string, lastActive time.Time) {
	if err := w.S.suspend(ctx, id, reasonIdle); err != nil && ctx.Err() == nil && !core.IsKind(err, core.KindNotFound) {
		w.S.log.Warn("cannot suspend an idle compute", "endpoint_id", id, "error", err)
	}
}

// suspend queues a suspension unless something else is queued for the endpoint.
func (s *Service) suspend(ctx context.Context, id, reason string) error {
	_, err := s.unasked(ctx, id, func(q store.Q, e core.Endpoint) error {
		return s.queueUnasked(ctx, q, e, core.EndpointIdle, reason, core.ActionSuspendCompute)
	})
	return err
}

// ComputeSampled keeps the control database's copy of the catalog and the time of the last activity.
func (w Watcher) ComputeSampled(ctx context.Context, id string, sample compute.Sample) {
	s := w.S
	err := func() error {
		e, _, settings, err := s.Store.EndpointAccess(ctx, id)
		if err != nil {
			return err
		}
		if !isReplica(e) {
			if err := s.meterLook(ctx, e, sample.LSN, quotaOf(settings).LogicalSize > 0); err != nil {
				return err
			}
		}
		if isReplica(e) { // its catalog is its primary's, a moment ago
			if err := s.tendReplica(ctx, e); err != nil {
				return err
			}
		} else if seen, ok := s.seen.Load(e.BranchID); !ok || seen != sample.Fingerprint {
			if err := s.refreshCatalog(ctx, core.Branch{ID: e.BranchID}); err != nil {
				return err
			}
		}
		if e.LastActive != nil && sample.LastActive.Sub(*e.LastActive) < time.Second {
			return nil
		}
		return errors.Join(s.Store.TouchEndpoint(ctx, id, sample.LastActive), s.Store.TouchProject(ctx, e.ProjectID, sample.LastActive))
	}()
	if err != nil && ctx.Err() == nil && !core.IsKind(err, core.KindNotFound) {
		s.log.Warn("cannot record a look at a compute", "endpoint_id", id, "error", err)
	}
}

// watchSpace suspends every compute before the storage fails under them, and lets them wake when there is space again.
func (s *Service) watchSpace(ctx context.Context) {
	tick := time.NewTicker(spaceEvery)
	defer tick.Stop()
	for {
		look := s.Volumes.Space
		if s.Fleet.Leads() {
			look = s.Volumes.MakeRoom
			if s.full.Load() {
				if err := s.Volumes.Flush(); err != nil {
					s.log.Warn("cannot flush a full pool", "error", err)
				}
			}
		}
		space, err := look(ctx)
		switch full := err == nil && space.Level == storage.LevelCritical; {
		case err != nil:
			if ctx.Err() == nil {
				s.log.Warn("cannot see how much space is left", "error", err)
			}
		case full:
			if !s.full.Swap(true) {
				s.log.Error("storage is nearly full: suspending every compute", "host_free", space.Host.Free, "pool_free", space.Pool.Free,
					"hint", "delete branches or projects, or add disk space; computes wake again by themselves when there is room")
			}
			for _, id := range s.Computes.Running() {
				if err := s.suspend(ctx, id, "storage is full"); err != nil && !core.IsKind(err, core.KindNotFound) {
					s.log.Error("cannot suspend a compute although the storage is full", "endpoint_id", id, "error", err)
				}
			}
		case s.full.Swap(false):
			s.log.Info("there is space again: computes may wake")
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// ensureTemplate makes the volume that projects of a major version are copied from, once.
func (s *Service) ensureTemplate(ctx context.Context, b postgres.Build) error {
	name := templateRef(b.Major)
	if exists(s.Volumes.Path(name.Volume)) {
		return nil
	}
	unlock, err := s.Fleet.Lock(ctx, name.Volume)
	if err != nil {
		return err
	}
	defer unlock()
	if exists(s.Volumes.Path(name.Volume)) {
		return nil // meanwhile
	}
	began := time.Now()
	// An initdb that outlived a killed server may still write to its draft: each try has one of its own.
	try := "-draft-" + core.NewUUID()[:8]
	draft := history.Ref{Volume: name.Volume + try, Branch: name.Branch + try, Incarnation: 1}
	s.drafts.Store(draft.Volume, nil)
	defer s.drafts.Delete(draft.Volume) // after it was removed
	clean := func(ctx context.Context) error {
		return errors.Join(s.Volumes.Delete(ctx, draft.Volume), s.WAL.Delete(ctx, draft.Branch))
	}
	if err := clean(ctx); err != nil {
		return err
	}
	defer func() {
		if err := clean(context.WithoutCancel(ctx)); err != nil {
			s.log.Warn("cannot remove a template's draft", "error", err)
		}
	}()
	if err := s.Volumes.Create(ctx, draft.Volume); err != nil {
		return err
	}
	if err := os.MkdirAll(s.RunDir, 0o755); err != nil {
		return core.Wrap(err, "control.template", "")
	}
	init := s.Init
	// initdb wants to make its WAL folder itself.
	init.DataDir, init.WALDir = s.Volumes.Path(draft.Volume), s.WAL.Path(draft.Branch, draft.Incarnation)
	if err := postgres.CreateTemplate(ctx, b, init, s.RunDir); err != nil {
		return err
	}
	s.trim(ctx, draft)
	// The fork is the commit: a volume of the template's name is complete.
	if _, err := s.fork(ctx, draft, name, nil); err != nil {
		return err
	}
	s.log.Info("template ready", "major", b.Major, "took", time.Since(began))
	return nil
}
