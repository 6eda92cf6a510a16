package control

import (
	"context"
	"encoding/json"
	"path/filepath"
	"slices"

	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/ops"
	"github.com/boughdb/bough/internal/store"
)

// Several servers can share a data directory. Each project has a holder: the server that runs its operations and watches its
// computes, so that everything this room keeps in memory about a project is in one server. The others reach a running compute
// by its record, and queue operations that the holder runs. A project changes hands when its holder has died, or has given it
// up because nothing of it runs.

// Fleet is the servers of the data directory.
type Fleet interface {
	// Self is this server's number, never 0.
	Self() int64
	// Alive tells whether a server runs.
	Alive(server int64) bool
	// Company tells whether other servers run.
	Company() bool
	// Leads tells whether this server does what one of them does for all.
	Leads() bool
	// Lock waits until no other server, and nobody in this one, holds what has that name.
	Lock(ctx context.Context, name string) (unlock func(), err error)
}

// Peers talks to the other servers; see ops.Queue.
type Peers interface {
	Tell(ctx context.Context, news ops.News, id string)
	Leave(ctx context.Context) (projects []string, err error)
}

// Acquire makes a project this server's, and takes over what runs in it, unless a server that lives holds it; see ops.Runner.
func (s *Service) Acquire(ctx context.Context, projectID string) (server int64, err error) {
	self := s.Fleet.Self()
	for {
		h, err := s.Store.HoldProject(ctx, projectID, self)
		switch {
		case err != nil || h.Server == 0:
			return 0, err
		case h.Server == self && h.Ready:
			return self, nil
		case h.Server == self:
			err = s.takeOver(ctx)
		case s.Fleet.Alive(h.Server):
			return h.Server, nil
		default:
			_, err = s.Store.InheritProject(ctx, projectID, h.Server, self)
		}
		if err != nil {
			return 0, err
		}
	}
}

// holds is an error unless this server holds the project, or takes it.
func (s *Service) holds(ctx context.Context, projectID string) error {
	server, err := s.Acquire(ctx, projectID)
	if err == nil && server != s.Fleet.Self() {
		return errBusy // it looks after it itself
	}
	return err
}

// Inherit goes on with what a server that has died was doing. It can be called again.
func (s *Service) Inherit(ctx context.Context, dead int64) error {
	if err := s.Store.ReleaseDeadClaims(ctx, s.Fleet.Alive); err != nil {
		return err
	}
	if err := s.Store.InheritProjects(ctx, dead, s.Fleet.Self()); err != nil {
		return err
	}
	if err := s.takeOver(ctx); err != nil {
		return err
	}
	busy, err := s.Store.BusyBranches(ctx)
	for _, id := range busy {
		s.Queue.Kick(id)
	}
	return err
}

// takeOver takes over the computes of projects that have become this server's. Nothing is done in them meanwhile.
func (s *Service) takeOver(ctx context.Context) error {
	s.taking.Lock()
	defer s.taking.Unlock()
	list, err := s.Store.UnreadyProjects(ctx, s.Fleet.Self())
	if err != nil || len(list) == 0 {
		return err
	}
	taken := map[string]bool{}
	for _, id := range list {
		taken[id] = true
	}
	inv, err := s.Store.Inventory(ctx)
	if err != nil {
		return err
	}
	places := placesOf(inv)
	ours := func(branchOrVolume string) bool { return taken[places[branchOrVolume]] }
	handles := slices.DeleteFunc(inv.Handles, func(h store.Handle) bool { return !ours(h.BranchID) })
	live, err := s.Store.LiveEndpoints(ctx)
	if err != nil {
		return err
	}
	live = slices.DeleteFunc(live, func(e core.Endpoint) bool { return !taken[e.ProjectID] })
	if err := s.adoptComputes(ctx, handles, live); err != nil {
		return err
	}
	if err := s.endStrays(ctx, func(dataDir string) bool { return ours(filepath.Base(dataDir)) }); err != nil {
		return err
	}
	for _, id := range list {
		if err := s.Store.ReadyProject(ctx, id, s.Fleet.Self()); err != nil {
			return err
		}
	}
	s.log.Info("took over projects", "projects", len(list), "computes", len(handles))
	return nil
}

// placesOf maps branches, their volumes and endpoints, which replicas' volumes are named for, to their projects.
func placesOf(inv store.Inventory) map[string]string {
	places := map[string]string{}
	for _, b := range inv.Branches {
		places[b.ID], places[b.Volume] = b.ProjectID, b.ProjectID
	}
	for _, n := range inv.Snapshots {
		places[n.Volume] = places[n.BranchID]
	}
	for _, e := range inv.Endpoints {
		places[e.ID] = e.ProjectID
	}
	return places
}

// Leave gives up projects in which nothing runs, so that the server which is asked next works on them.
func (s *Service) Leave(ctx context.Context) error {
	if !s.drift.look.TryLock() {
		return nil // a repair may rely on a project
	}
	defer s.drift.look.Unlock()
	_, err := s.Peers.Leave(ctx)
	return err
}

// Told acts on what another server says about an endpoint; see ops.Runner.
func (s *Service) Told(ctx context.Context, news ops.News, endpointID string) {
	switch news {
	case ops.NewsAwaited:
		s.Computes.Hurry(endpointID)
	case ops.NewsChanged:
		s.changed(ctx, endpointID)
	}
}

// changed gives a running compute the limits and the idle timeout that its row has.
func (s *Service) changed(ctx context.Context, endpointID string) {
	spec, up := s.Computes.Spec(endpointID)
	if !up {
		return
	}
	e, err := s.Store.Endpoint(ctx, endpointID)
	if err != nil {
		return // deleted; or its next start takes what the row says
	}
	s.Computes.SetIdleTimeout(endpointID, idleTimeout(e))
	if to := sizeSpec(e); s.Computes.Resizable(spec.Size, to) {
		s.Computes.Resize(endpointID, to)
	}
}

// visit reaches the compute of an active endpoint that another server watches; up is false when it does not run.
func (s *Service) visit(ctx context.Context, e core.Endpoint) (ready compute.Ready, up bool) {
	if e.State != core.EndpointActive {
		return ready, false
	}
	h, err := s.Store.Handle(ctx, e.ID)
	if err != nil {
		return ready, false
	}
	var handle compute.Handle
	if json.Unmarshal(h.Handle, &handle) != nil {
		return ready, false
	}
	ready, err = s.Computes.Visit(ctx, e.ID, handle)
	return ready, err == nil
}

// reachable is running for what only asks the compute: it may be another server's.
func (s *Service) reachable(ctx context.Context, branchID string) (computeID string, up bool, err error) {
	if computeID, up, err = s.running(ctx, branchID); err != nil || up {
		return computeID, up, err
	}
	endpoints, err := s.Store.BranchEndpoints(ctx, branchID)
	if err != nil {
		return "", false, err
	}
	for _, e := range endpoints {
		if e.Type == core.EndpointReadWrite && !e.Deleting {
			_, up = s.visit(ctx, e)
			return e.ID, up, nil
		}
	}
	return "", false, nil
}
