package control

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/ops"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/internal/store"
)

// wakeAttempts bounds how often a wake starts anew because the compute was suspended under it.
const wakeAttempts = 5

// Door is what the Postgres front door asks: which endpoint, whose password, where to connect.
type Door struct{ s *Service }

// Door returns the control plane as the front door sees it.
func (s *Service) Door() Door { return Door{s} }

// Endpoint finds an endpoint by its id, and from where clients may connect to it; KindNotFound when there is none. running
// tells whether the compute answers that says who may log in: its own, or a replica's primary.
func (d Door) Endpoint(ctx context.Context, id string) (e core.Endpoint, access core.Access, running bool, err error) {
	if !core.ValidID(id) {
		return e, access, false, core.NotFoundf("endpoint %q not found", clip(id))
	}
	e, protected, settings, err := d.s.Store.EndpointAccess(ctx, id)
	if err != nil {
		return e, access, false, err
	}
	if access, err = accessOf(settings, protected); err != nil {
		return e, access, false, err
	}
	if isReplica(e) {
		_, running, err = d.s.reachable(ctx, e.BranchID)
		return e, access, running, err
	}
	if _, running = d.s.Computes.Lookup(id); !running {
		_, running = d.s.visit(ctx, e)
	}
	return e, access, running, nil
}

// Verifier returns the SCRAM verifier of a role on an endpoint's branch; found is false for a role that is unknown or has
// none. fresh asks the catalog of a running compute instead of its copy; it never wakes one.
func (d Door) Verifier(ctx context.Context, endpointID, role string, fresh bool) (verifier string, found bool, err error) {
	if fresh {
		// A replica may be behind: its primary is asked.
		if spec, up := d.s.Computes.Spec(endpointID); up && spec.Standby == nil {
			if verifier, err := d.catalogVerifier(ctx, endpointID, role); err == nil {
				return verifier, verifier != "", nil
			}
		}
		// It stopped in between: the copy was refreshed at that.
	}
	e, err := d.s.Store.Endpoint(ctx, endpointID)
	if err != nil {
		return "", false, err
	}
	if fresh {
		if id, up, err := d.s.reachable(ctx, e.BranchID); err == nil && up {
			if verifier, err := d.catalogVerifier(ctx, id, role); err == nil {
				return verifier, verifier != "", nil
			}
		}
	}
	r, err := d.s.Store.Role(ctx, e.BranchID, role)
	if core.IsKind(err, core.KindNotFound) || (err == nil && (r.NoLogin || r.Verifier == "")) {
		return "", false, nil
	}
	return r.Verifier, err == nil, err
}

// catalogVerifier asks a running compute's catalog; "" for a role that may not log in now.
func (d Door) catalogVerifier(ctx context.Context, computeID, role string) (verifier string, err error) {
	err = d.s.Computes.Do(ctx, computeID, func(conn *pgx.Conn) (err error) {
		verifier, err = postgres.ReadVerifier(ctx, conn, role)
		return err
	})
	return verifier, err
}

// Wake returns the path of the compute's socket, starting the compute when it sleeps. Concurrent calls share one start. The
// error is safe to show.
func (d Door) Wake(ctx context.Context, endpointID string) (socketPath string, err error) {
	if r, up := d.s.Computes.Lookup(endpointID); up {
		return r.SocketPath, nil
	}
	if err := d.s.full.check(); err != nil {
		return "", err // without an operation for each of many tries
	}
	began := time.Now()
	// The start goes on when this caller gives up: others may wait for it.
	ch := d.s.waking.DoChan(endpointID, func() (any, error) {
		r, err := d.s.wake(context.WithoutCancel(ctx), endpointID)
		d.s.Recorder.Woken(time.Since(began), err)
		return r, err
	})
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case res := <-ch:
		if res.Err != nil {
			return "", res.Err
		}
		return res.Val.(compute.Ready).SocketPath, nil
	}
}

func (s *Service) wake(ctx context.Context, endpointID string) (compute.Ready, error) {
	for range wakeAttempts {
		if r, up := s.Computes.Lookup(endpointID); up {
			return r, nil
		}
		ready, forget := s.readiness.await(endpointID)
		s.Computes.Hurry(endpointID) // a start that nobody waited for until now
		elsewhere, err := s.awaitWake(ctx, endpointID, ready)
		forget()
		if err != nil || elsewhere.PID != 0 {
			return elsewhere, err
		}
	}
	return compute.Ready{}, core.Errorf(core.KindUnavailable, "", "endpoint %s is being suspended or disabled; try again", endpointID)
}

// awaitWake returns when the endpoint's compute is ready, or the operation that starts it has ended. The first does not
// wait for the second: that is one commit later. elsewhere is set when the compute runs and is another server's.
func (s *Service) awaitWake(ctx context.Context, endpointID string, ready <-chan struct{}) (elsewhere compute.Ready, err error) {
	opID, elsewhere, err := s.enqueueWake(ctx, endpointID)
	if err != nil || opID == "" {
		return elsewhere, err
	}
	s.Peers.Tell(ctx, ops.NewsAwaited, endpointID)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- s.Queue.Wait(ctx, opID) }() // ends with ctx
	select {
	case <-ready:
		return elsewhere, nil
	case err := <-ended:
		return elsewhere, err
	}
}

// readiness tells who waits for a compute that it is ready.
type readiness struct {
	mu      sync.Mutex
	waiting map[string]chan struct{}
}

// await returns a channel that is closed when the compute gets ready. There is one waiter for each endpoint at a time.
func (r *readiness) await(endpointID string) (ready <-chan struct{}, forget func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting == nil {
		r.waiting = map[string]chan struct{}{}
	}
	ch := make(chan struct{})
	r.waiting[endpointID] = ch
	return ch, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.waiting[endpointID] == ch {
			delete(r.waiting, endpointID)
		}
	}
}

// awaited tells whether a client waits for the compute.
func (r *readiness) awaited(endpointID string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waiting[endpointID] != nil
}

// tell closes the channel of who waits, if somebody does.
func (r *readiness) tell(endpointID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ch, ok := r.waiting[endpointID]; ok {
		close(ch)
		delete(r.waiting, endpointID)
	}
}

// enqueueWake returns the start that is queued for an endpoint, after queueing one if there was none; or nothing is queued,
// because the compute runs under another server.
func (s *Service) enqueueWake(ctx context.Context, endpointID string) (opID string, elsewhere compute.Ready, err error) {
	e, err := s.Store.Endpoint(ctx, endpointID)
	if err != nil {
		return "", elsewhere, err
	}
	if e.PendingState == "" {
		if r, up := s.visit(ctx, e); up {
			return "", r, nil
		}
	}
	if err := s.runnable(ctx, s.Store.Q, e.ProjectID, e.BranchID); err != nil {
		return "", elsewhere, err // without an operation for each of many tries
	}
	err = s.Store.Tx(ctx, func(q store.Q) error {
		// A crash of the machine that forgets this record also ends the compute it starts.
		if err := q.CommitLater(ctx); err != nil {
			return err
		}
		b, err := q.LockBranch(ctx, e.ProjectID, e.BranchID)
		if err != nil {
			return err
		}
		if b.State != core.BranchReady && b.PendingState == "" {
			return core.Errorf(core.KindUnprocessable, "", "branch %s has no data: %s", b.ID, b.StateReason)
		}
		if err := s.checkData(b); err != nil {
			return err // without an operation for each of many tries
		}
		e, err := q.LockEndpoint(ctx, endpointID)
		if err != nil {
			return err
		}
		if e.Disabled {
			return disabled(endpointID)
		}
		pending, err := q.PendingOperations(ctx, e.BranchID)
		if err != nil {
			return err
		}
		opID = ""
		for _, op := range pending {
			if op.EndpointID == endpointID {
				switch op.Action {
				case core.ActionStartCompute:
					opID = op.ID
				case core.ActionSuspendCompute:
					opID = "" // what starts before it will not last
				}
			}
		}
		if opID != "" {
			return nil
		}
		queued, err := s.Queue.Record(ctx, q, newOperation(core.Caller{}, e.ProjectID, e.BranchID, endpointID, core.ActionStartCompute))
		if err != nil {
			return err
		}
		opID = queued.ID
		_, err = q.SetEndpointPending(ctx, endpointID, core.EndpointActive)
		return err
	})
	if err != nil {
		return "", elsewhere, err
	}
	s.Queue.Kick(e.BranchID)
	return opID, elsewhere, nil
}
