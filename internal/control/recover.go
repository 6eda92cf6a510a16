package control

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/store"
)

// Recover makes what is and what should be one after any end of an earlier server: it takes over the computes that still
// run, ends the processes that nobody owns, and marks as asleep what is gone. It comes before the queue starts, which then
// goes on with what was not finished. Files that no row owns are left to reconciliation, which takes its time: no crash of
// a server leaves any but templates' drafts. It is for a server that starts while no other one runs on the data directory.
func (s *Service) Recover(ctx context.Context) error {
	handles, err := s.Store.Handles(ctx)
	if err != nil {
		return err
	}
	live, err := s.Store.LiveEndpoints(ctx)
	if err != nil {
		return err
	}
	if err := s.adoptComputes(ctx, handles, live); err != nil {
		return err
	}
	if err := s.endStrays(ctx, func(string) bool { return true }); err != nil {
		return err
	}
	if err := s.Store.HoldAlone(ctx, s.Fleet.Self()); err != nil {
		return err
	}
	return s.sweepDrafts(ctx)
}

// strayPatience is how long computes that nobody owns may take to end.
const strayPatience = 2 * time.Minute

// adoptComputes takes over computes by their handles, and makes the endpoints that should run, or are about to, say what is.
func (s *Service) adoptComputes(ctx context.Context, handles []store.Handle, live []core.Endpoint) error {
	for _, h := range handles {
		if err := s.adopt(ctx, h); err != nil {
			s.log.Warn("a compute was not taken over; it is ended", "compute_id", h.ComputeID, "error", err)
			if err := s.Store.DeleteHandle(ctx, h.ComputeID); err != nil {
				return err
			}
		}
	}
	for _, e := range live {
		_, up := s.Computes.Lookup(e.ID)
		pending, err := s.Store.PendingOperations(ctx, e.BranchID)
		if err != nil {
			return err
		}
		queued := slices.ContainsFunc(pending, func(op core.Operation) bool { return op.EndpointID == e.ID })
		if queued || (up && e.State == core.EndpointActive && e.PendingState == "") {
			continue
		}
		_, sleeps := e.IdleTimeout()
		switch {
		case up:
			err = s.Store.EndpointActive(ctx, e.ID, time.Now())
		case !sleeps && e.State == core.EndpointActive && e.PendingState == "":
			s.meterEnd(ctx, e)
			err = s.restart(ctx, e.ID, "ended while the server was away", false)
		default:
			s.log.Info("a compute ended while the server was away", "endpoint_id", e.ID)
			s.meterEnd(ctx, e)
			if err = s.Store.EndpointIdle(ctx, e.ID); err == nil {
				if isReplica(e) {
					err = s.removeReplica(ctx, e.ID)
				} else {
					err = s.trimBranch(ctx, e.BranchID)
				}
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// trimBranch trims a branch whose compute was stopped by somebody else: `bough down`, the machine.
func (s *Service) trimBranch(ctx context.Context, id string) error {
	b, err := s.Store.BranchByID(ctx, id)
	if err != nil {
		return err
	}
	s.trim(ctx, ref(b))
	return nil
}

// adopt takes over one compute; a handle whose process is gone is forgotten.
func (s *Service) adopt(ctx context.Context, h store.Handle) error {
	var handle compute.Handle
	if err := json.Unmarshal(h.Handle, &handle); err != nil {
		return core.Wrap(err, "control.adopt", "the handle was written by another version")
	}
	b, err := s.Store.BranchByID(ctx, h.BranchID)
	if err != nil {
		return err
	}
	e, err := s.Store.AnyEndpoint(ctx, h.ComputeID)
	if core.IsKind(err, core.KindNotFound) {
		e, err = core.Endpoint{}, nil // work on a branch
	}
	if err != nil {
		return err
	}
	spec, err := s.spec(ctx, b, h.ComputeID, e)
	if err != nil {
		return err
	}
	alive, err := s.Computes.Attach(ctx, spec, handle)
	if err != nil || alive {
		return err
	}
	return s.Store.DeleteHandle(ctx, h.ComputeID)
}

// endStrays ends servers that run on our volumes and were not taken over: the server died before it knew them.
func (s *Service) endStrays(ctx context.Context, ours func(dataDir string) bool) error {
	known := map[int]bool{}
	for _, id := range s.Computes.Running() {
		if r, ok := s.Computes.Lookup(id); ok {
			known[r.PID] = true
		}
	}
	// Again until there is none: one that has only just been started is cleared once it works in its folder, and one whose
	// folder is gone ends by itself within a minute.
	ctx, cancel := context.WithTimeout(ctx, strayPatience)
	defer cancel()
	for {
		found, err := s.Driver.Scan(ctx, s.Volumes.Path(""))
		if err != nil {
			return err
		}
		strays := 0
		for _, f := range found {
			if known[f.PID] || !ours(f.DataDir) {
				continue
			}
			strays++
			s.log.Warn("ending a compute that nobody owns", "pid", f.PID, "data_dir", f.DataDir)
			if err := s.Driver.Clear(ctx, f.DataDir, ""); err != nil {
				return err
			}
		}
		if strays == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return core.Wrap(ctx.Err(), "control.recover", "a compute that nobody owns does not end; see the log")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Start begins the background work: the watch over space, reconciliation, the end of old records and of
// branches that expire, maintenance, and the template of the default version.
func (s *Service) Start(ctx context.Context) {
	ctx, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	s.work.Go(func() { s.watchSpace(ctx) })
	s.work.Go(func() { s.reconcileLoop(ctx) })
	s.work.Go(func() { s.pruneLoop(ctx) })
	s.work.Go(func() { s.maintenanceLoop(ctx) })
	s.work.Go(func() { s.archiveLoop(ctx) })
	s.work.Go(func() { s.snapshotLoop(ctx) })
	s.work.Go(func() { s.retainLoop(ctx) })
	s.work.Go(func() { s.expiryLoop(ctx) })
	s.work.Go(func() {
		b, err := s.build(ctx, 0)
		if err == nil {
			err = s.ensureTemplate(ctx, b)
		}
		if err != nil && ctx.Err() == nil && !errors.Is(err, context.Canceled) {
			s.log.Error("cannot make the template; the first project tries again", "error", err)
		}
	})
}

// Stop ends the background work and waits for it. Computes keep running.
func (s *Service) Stop() {
	s.stopOnce.Do(func() {
		if s.stop != nil {
			s.stop()
		}
		if s.stopPost != nil {
			s.stopPost()
		}
		s.work.Wait()
	})
}
