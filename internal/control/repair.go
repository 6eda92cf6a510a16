package control

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/internal/store"
)

// The repairs of reconciliation. Each looks again before it acts, holding what keeps everybody else from changing what it
// looks at: the lock of a branch's volume, the lock of its row, or both. A lock that is held is not waited for.

// ifUnowned does something to what has an id and no row owns, after reading the rows again.
func (s *Service) ifUnowned(ctx context.Context, id string, own func(owners) bool, do func() error) error {
	inv, err := s.Store.Inventory(ctx)
	if err != nil {
		return err
	}
	if own(owned(inv)) {
		return errNothing
	}
	if project := placesOf(inv)[id]; project != "" { // a replica that sleeps
		if err := s.holds(ctx, project); err != nil {
			return err
		}
	}
	return do()
}

func (s *Service) removeOrphanVolume(ctx context.Context, id string) error {
	unlock, ok := s.locks.tryLock(id)
	if !ok {
		return errBusy
	}
	defer unlock()
	if _, busy := s.drafts.Load(id); busy || missing(s.Volumes.Path(id)) {
		return errNothing
	}
	return s.ifUnowned(ctx, id, func(o owners) bool { return o.volumes[id] }, func() error {
		if err := s.Driver.Clear(ctx, s.Volumes.Path(id), ""); err != nil {
			return err
		}
		return s.Volumes.Delete(ctx, id)
	})
}

func (s *Service) removeOrphanWAL(ctx context.Context, id string) error {
	unlock, ok := s.locks.tryLock(id)
	if !ok {
		return errBusy
	}
	defer unlock()
	if _, busy := s.drafts.Load(id); busy || missing(filepath.Join(s.WAL.Root(), id)) {
		return errNothing
	}
	return s.ifUnowned(ctx, id, func(o owners) bool { return o.wal[id] }, func() error { return s.WAL.Delete(ctx, id) })
}

// removeOldWAL removes a WAL directory that is not of the branch's incarnation, unless its data directory uses it.
func (s *Service) removeOldWAL(ctx context.Context, branchID, incarnation string) error {
	b, unlock, err := s.quietBranch(ctx, branchID)
	if err != nil {
		return err
	}
	defer unlock()
	n, err := strconv.Atoi(incarnation)
	if err != nil {
		return core.Errorf(core.KindPrecondition, "", "it is not a WAL directory of Bough; move %s away by hand", filepath.Join(s.WAL.Root(), branchID, incarnation))
	}
	path := s.WAL.Path(b.ID, n)
	if n == b.Incarnation || missing(path) {
		return errNothing
	}
	if link, err := os.Readlink(filepath.Join(s.Volumes.Path(b.VolumeID), "pg_wal")); err != nil || link == path {
		return core.Errorf(core.KindPrecondition, "", "the data of branch %s may use %s", b.ID, path)
	}
	return s.WAL.DeleteIncarnation(ctx, b.ID, n)
}

// quietBranch locks a branch's volume and returns the branch when no operation is open on it and its project is this server's.
func (s *Service) quietBranch(ctx context.Context, branchID string) (b core.Branch, unlock func(), err error) {
	release, ok := s.locks.tryLock(branchID)
	if !ok {
		return b, nil, errBusy
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	b, err = s.Store.BranchByID(ctx, branchID)
	if core.IsKind(err, core.KindNotFound) {
		return b, nil, errNothing
	}
	if err == nil {
		err = s.holds(ctx, b.ProjectID)
	}
	if err != nil {
		return b, nil, err
	}
	pending, err := s.Store.PendingOperations(ctx, branchID)
	if err == nil && len(pending) > 0 {
		err = errNothing
	}
	return b, release, err
}

// clearVolume removes what a dead server left in the volume of a sleeping branch.
func (s *Service) clearVolume(ctx context.Context, branchID string) error {
	b, unlock, err := s.quietBranch(ctx, branchID)
	if err != nil {
		return err
	}
	defer unlock()
	dir := s.Volumes.Path(b.VolumeID)
	if slices.ContainsFunc(s.Computes.Units(), unitOn(dir)) || missing(filepath.Join(dir, "postmaster.pid")) {
		return errNothing
	}
	return s.Driver.Clear(ctx, dir, "")
}

// endStray ends a server that no compute of ours is.
func (s *Service) endStray(ctx context.Context, p compute.Found) error {
	inv, err := s.Store.Inventory(ctx)
	if err != nil {
		return err
	}
	id := filepath.Base(p.DataDir)
	if project := placesOf(inv)[id]; project != "" {
		if err := s.holds(ctx, project); err != nil {
			return err
		}
	}
	for _, b := range inv.Branches {
		if b.Volume == id {
			id = b.ID
		}
	}
	unlock, ok := s.locks.tryLock(id)
	if !ok {
		return errBusy
	}
	defer unlock()
	if _, busy := s.drafts.Load(filepath.Base(p.DataDir)); busy || slices.ContainsFunc(s.Computes.Units(), unitOn(p.DataDir)) {
		return errNothing
	}
	found, err := s.Driver.Scan(ctx, p.DataDir)
	if err != nil {
		return err
	}
	if !slices.Contains(found, p) {
		return errNothing // it was just stopping
	}
	return s.Driver.Clear(ctx, p.DataDir, "")
}

// setAccess gives a folder of the computes its owner and mode.
func setAccess(path string, uid, gid int) error {
	if missing(path) {
		return errNothing
	}
	err := os.Chmod(path, 0o700)
	if uid >= 0 {
		err = errors.Join(err, os.Lchown(path, uid, gid))
	}
	return core.Wrap(err, "control.reconcile", "the server may lack the right to change it")
}

// remakeTemplate makes a template again; what is left of it goes first, which no project needs: copies are independent.
func (s *Service) remakeTemplate(ctx context.Context, b postgres.Build) error {
	t := templateRef(b.Major)
	unlock, err := s.Fleet.Lock(ctx, t.Volume)
	if err != nil {
		return err
	}
	if missing(s.WAL.Path(t.Branch, t.Incarnation)) || missing(s.Volumes.Path(t.Volume)) {
		err = errors.Join(s.Volumes.Delete(ctx, t.Volume), s.WAL.Delete(ctx, t.Branch))
	}
	unlock()
	if err != nil {
		return err
	}
	return s.ensureTemplate(ctx, b)
}

// kickBranch starts the work on a branch whose server is gone.
func (s *Service) kickBranch(ctx context.Context, branchID string) error {
	if err := s.Store.ReleaseDeadClaims(ctx, s.Fleet.Alive); err != nil {
		return err
	}
	s.Queue.Kick(branchID)
	return nil
}

// resumeBranch goes on with a branch whose operation was lost.
func (s *Service) resumeBranch(ctx context.Context, branchID string) error {
	err := s.Store.Tx(ctx, func(q store.Q) error {
		b, err := q.LockBranchByID(ctx, branchID)
		if core.IsKind(err, core.KindNotFound) {
			return errNothing
		}
		if err != nil {
			return err
		}
		pending, err := q.PendingOperations(ctx, branchID)
		switch {
		case err != nil:
			return err
		case len(pending) > 0 || (b.PendingState == "" && !b.Deleting):
			return errNothing
		case b.Deleting:
			_, err = s.Queue.Enqueue(ctx, q, newOperation(core.Caller{}, b.ProjectID, b.ID, "", core.ActionDeleteTimeline))
			return err
		}
		return q.BranchFailed(ctx, branchID, "its creation was interrupted and cannot go on; delete the branch and make it again")
	})
	if err == nil {
		s.Queue.Kick(branchID)
	}
	return err
}

// settleHandle takes over a compute by its record, or removes the record of one that is gone.
func (s *Service) settleHandle(ctx context.Context, h store.Handle) error {
	_, unlock, err := s.quietBranch(ctx, h.BranchID)
	if err != nil {
		return err
	}
	defer unlock()
	if slices.ContainsFunc(s.Computes.Units(), unitOf(h.ComputeID)) {
		return errNothing
	}
	now, err := s.Store.Handles(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(now, func(n store.Handle) bool { return n.ComputeID == h.ComputeID && string(n.Handle) == string(h.Handle) }) {
		return errNothing
	}
	if err := s.adopt(ctx, h); err != nil {
		s.log.Warn("a compute was not taken over; its record is removed", "compute_id", h.ComputeID, "error", err)
		return s.Store.DeleteHandle(ctx, h.ComputeID)
	}
	return nil
}

// recordHandle writes the record of a running compute.
func (s *Service) recordHandle(ctx context.Context, endpointID, branchID string) error {
	_, unlock, err := s.quietBranch(ctx, branchID)
	if err != nil {
		return err
	}
	defer unlock()
	for _, u := range s.Computes.Units() {
		if u.EndpointID == endpointID && u.Running {
			return s.persist(branchID, endpointID)(ctx, u.Handle)
		}
	}
	return errNothing
}

// removeGroup removes the control group of an endpoint that sleeps; branchID is "" for one that does not exist.
func (s *Service) removeGroup(ctx context.Context, id, branchID string) error {
	if branchID == "" {
		branchID = id // work on a branch without an endpoint
	}
	unlock, ok := s.locks.tryLock(branchID)
	if !ok {
		return errBusy
	}
	defer unlock()
	if b, err := s.Store.BranchByID(ctx, branchID); err == nil {
		if err := s.holds(ctx, b.ProjectID); err != nil {
			return err
		}
	}
	return s.Computes.RemoveGroup(ctx, id)
}

// stopUnknown stops a compute whose endpoint is gone, or whose work is over.
func (s *Service) stopUnknown(ctx context.Context, u compute.Unit) error {
	if _, err := s.Store.AnyEndpoint(ctx, u.EndpointID); !core.IsKind(err, core.KindNotFound) {
		return errors.Join(err, errNothing)
	}
	branch := filepath.Base(u.DataDir)
	if _, unlock, err := s.quietBranch(ctx, u.EndpointID); err == nil {
		defer unlock()
	} else if !errors.Is(err, errNothing) {
		return err
	} else if pending, err := s.Store.PendingOperations(ctx, branch); err != nil || len(pending) > 0 {
		return errors.Join(err, errBusy)
	}
	if err := s.Computes.Stop(ctx, u.EndpointID, compute.StopFast); err != nil {
		return err
	}
	return s.Store.DeleteHandle(ctx, u.EndpointID)
}

// settleEndpoint makes an endpoint's row say what is, when no operation is open that will.
func (s *Service) settleEndpoint(ctx context.Context, id string) error {
	e, err := s.Store.AnyEndpoint(ctx, id)
	if core.IsKind(err, core.KindNotFound) {
		return errNothing
	}
	if err != nil {
		return err
	}
	b, unlock, err := s.quietBranch(ctx, e.BranchID)
	if err != nil {
		return err
	}
	defer unlock()
	asleep := false
	err = s.Store.Tx(ctx, func(q store.Q) error {
		asleep = false
		if _, err := q.LockBranchByID(ctx, b.ID); err != nil {
			return err
		}
		pending, err := q.PendingOperations(ctx, b.ID)
		if err != nil {
			return err
		}
		e, err := q.AnyEndpoint(ctx, id)
		if err != nil || len(pending) > 0 || b.Deleting {
			return errors.Join(err, errNothing)
		}
		ready, up := s.Computes.Lookup(id)
		_, sleeps := e.IdleTimeout()
		switch {
		case e.Deleting || (up && e.Disabled):
			return s.queueUnasked(ctx, q, e, core.EndpointIdle, "reconciliation", core.ActionSuspendCompute)
		case up && (e.State != core.EndpointActive || e.PendingState != ""):
			return q.EndpointActive(ctx, id, ready.StartedAt)
		case up, e.State != core.EndpointActive && e.PendingState == "":
			return errNothing
		case e.State == core.EndpointActive && e.PendingState == "" && !sleeps && !e.Disabled && !s.full.Load():
			return s.queueUnasked(ctx, q, e, core.EndpointActive, "its compute was lost", core.ActionStartCompute)
		}
		asleep = true
		return q.EndpointIdle(ctx, id)
	})
	if err != nil {
		return err
	}
	if asleep && e.Type == core.EndpointReadWrite {
		s.trim(ctx, ref(b))
	}
	s.Queue.Kick(b.ID)
	return nil
}

// bounce restarts a compute that nobody can reach.
func (s *Service) bounce(ctx context.Context, id, reason string) error {
	queued, err := s.unasked(ctx, id, func(q store.Q, e core.Endpoint) error {
		ready, up := s.Computes.Lookup(id)
		if !up || !missing(filepath.Join(ready.SocketDir, postgres.SocketName)) {
			return errNothing
		}
		return s.queueUnasked(ctx, q, e, core.EndpointActive, reason, core.ActionSuspendCompute, core.ActionStartCompute)
	})
	if core.IsKind(err, core.KindNotFound) || (err == nil && !queued) {
		return errNothing
	}
	return err
}

// checkData refuses to work on a branch whose files are gone, with an error that says so: PostgreSQL's own would be
// internal, and a new folder in their place would be invented data.
func (s *Service) checkData(b core.Branch) error {
	if b.State != core.BranchReady {
		return nil
	}
	what := "data"
	switch r := ref(b); {
	case missing(s.Volumes.Path("")):
		return s.unreachable()
	case missing(s.Volumes.Path(r.Volume)):
	case missing(s.WAL.Path(r.Branch, r.Incarnation)):
		what = "write-ahead log"
	default:
		return nil
	}
	s.Nudge()
	return &core.Error{Kind: core.KindUnprocessable, Op: "control.data",
		Message: "the " + what + " of branch " + b.ID + " is missing on the server; its operator can restore it from a backup, or delete the branch",
		Hint:    "bough doctor tells which folder is missing"}
}

// unreachable is the error of a server whose pool is not there.
func (s *Service) unreachable() error {
	s.Nudge()
	return &core.Error{Kind: core.KindUnavailable, Op: "control.data", RetryAfter: time.Second,
		Message: "the server's storage cannot be reached; try again in a moment, or ask its operator to run bough doctor", Hint: "is the pool mounted?"}
}

// sweepDrafts removes the templates that a killed server had been making. Nothing else is made before its row is.
func (s *Service) sweepDrafts(ctx context.Context) error {
	volumes, err := s.Volumes.List(ctx)
	if err != nil {
		return err
	}
	logs, err := s.WAL.List(ctx)
	if err != nil {
		return err
	}
	for _, id := range volumes {
		if isDraft(id) {
			if err := s.Volumes.Delete(ctx, id); err != nil {
				return err
			}
		}
	}
	for _, id := range logs {
		if isDraft(id) || (strings.HasPrefix(id, "template-") && !slices.Contains(volumes, id)) {
			if err := s.WAL.Delete(ctx, id); err != nil {
				return err
			}
		}
	}
	return nil
}
