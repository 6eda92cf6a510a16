package control

import (
	"cmp"
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/ops"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/internal/store"
)

// newEndpoint checks a request for an endpoint and completes it with the project's defaults.
func (s *Service) newEndpoint(ctx context.Context, project core.Project, branchID string, p EndpointSpec) (core.Endpoint, error) {
	var none core.Endpoint
	e := core.Endpoint{
		ID: core.NewEndpointID(), ProjectID: project.ID, BranchID: branchID, Name: p.Name, RegionID: cmp.Or(p.RegionID, project.RegionID),
		Type: p.Type, SuspendTimeout: project.Defaults.SuspendTimeout, Disabled: p.Disabled, PoolerEnabled: p.PoolerEnabled != nil && *p.PoolerEnabled,
		State: core.EndpointInit, PendingState: core.EndpointActive,
	}
	switch p.Type {
	case core.EndpointReadWrite, core.EndpointReadOnly:
	default:
		return none, core.Invalidf("endpoint.type must be one of read_write, read_only")
	}
	if e.RegionID != project.RegionID {
		return none, core.Invalidf("endpoint.region_id must be the project's: %s", project.RegionID)
	}
	if p.PoolerMode != "" && p.PoolerMode != "transaction" {
		return none, core.Invalidf("endpoint.pooler_mode must be transaction")
	}
	if e.Name != "" {
		if err := checkName("endpoint.name", e.Name, 256); err != nil {
			return none, err
		}
	}
	var err error
	if e.Provisioner, err = checkProvisioner(cmp.Or(p.Provisioner, project.Provisioner)); err != nil {
		return none, err
	}
	if e.MinCU, e.MaxCU, err = startSize(p.MinCU, p.MaxCU, project.Defaults, e.Provisioner); err != nil {
		return none, err
	}
	if p.SuspendTimeout != nil {
		if err := checkSuspend(*p.SuspendTimeout); err != nil {
			return none, err
		}
		e.SuspendTimeout = *p.SuspendTimeout
	}
	if e.Disabled {
		e.State, e.PendingState = core.EndpointIdle, ""
	}
	if err := cmp.Or(poolSettings(p.PgBouncer), passwordless(p.Passwordless)); err != nil {
		return none, err
	}
	if e.PGSettings = project.Defaults.PGSettings; p.PGSettings != nil {
		e.PGSettings = p.PGSettings
	}
	e.Preload = p.Preload
	return e, s.checkSettings(ctx, project, e.Preload, e.MinCU, e.MaxCU, e.PGSettings)
}

// ListEndpoints returns a project's endpoints; with branchID, those of that branch.
func (s *Service) ListEndpoints(ctx context.Context, c core.Caller, projectID, branchID string) ([]EndpointView, error) {
	var err error
	if branchID != "" {
		_, _, err = s.branch(ctx, c, projectID, branchID)
	} else {
		_, err = s.project(ctx, c, projectID)
	}
	if err != nil {
		return nil, err
	}
	list, err := s.Store.Endpoints(ctx, projectID, branchID)
	return s.endpointViews(list), err
}

// CreateEndpoint adds an endpoint to a branch and starts it.
func (s *Service) CreateEndpoint(ctx context.Context, c core.Caller, projectID, branchID string, p EndpointSpec) (EndpointResult, error) {
	project, _, err := s.branch(ctx, c, projectID, branchID)
	if err != nil {
		return EndpointResult{}, err
	}
	e, err := s.newEndpoint(ctx, project, branchID, p)
	if err != nil {
		return EndpointResult{}, err
	}
	if err := s.full.check(); err != nil {
		return EndpointResult{}, err
	}
	if _, err := s.installed(ctx, project.PGVersion); err != nil {
		return EndpointResult{}, err
	}
	out := EndpointResult{}
	err = s.Store.Tx(ctx, func(q store.Q) error {
		if _, err := q.LockBranch(ctx, projectID, branchID); err != nil {
			return err
		}
		if isReplica(e) {
			list, err := q.Endpoints(ctx, projectID, branchID)
			if err == nil {
				err = checkReplicas(branchID, append(list, e))
			}
			if err != nil {
				return err
			}
		}
		saved, err := q.InsertEndpoint(ctx, e)
		if err != nil {
			return err
		}
		out = EndpointResult{Endpoint: s.endpointView(saved), Operations: []core.Operation{}}
		if saved.PendingState == core.EndpointActive {
			out.Operations, err = s.Queue.Enqueue(ctx, q, newOperation(c, projectID, branchID, e.ID, core.ActionStartCompute))
		}
		if err != nil {
			return err
		}
		return keep(ctx, q, c, out)
	})
	if err == nil {
		s.Queue.Kick(branchID)
	}
	return out, err
}

// GetEndpoint returns one endpoint.
func (s *Service) GetEndpoint(ctx context.Context, c core.Caller, projectID, id string) (EndpointView, error) {
	_, e, err := s.endpoint(ctx, c, projectID, id)
	v := s.endpointView(e)
	if err == nil {
		v.Runtime = s.runtime(ctx, e)
	}
	return v, err
}

// change runs fn on a locked endpoint; fn returns the endpoint to show and the operations to queue.
func (s *Service) change(ctx context.Context, c core.Caller, projectID, id string,
	fn func(q store.Q, e core.Endpoint) (core.Endpoint, []core.Operation, error),
) (EndpointResult, error) {
	_, e, err := s.endpoint(ctx, c, projectID, id)
	if err != nil {
		return EndpointResult{}, err
	}
	var out EndpointResult
	err = s.Store.Tx(ctx, func(q store.Q) error {
		// The branch first: who queues work holds its lock, in this order everywhere.
		if _, err := q.LockBranch(ctx, projectID, e.BranchID); err != nil {
			return err
		}
		locked, err := q.LockEndpoint(ctx, id)
		if err != nil {
			return err
		}
		shown, ops, err := fn(q, locked)
		if err != nil {
			return err
		}
		out = EndpointResult{Endpoint: s.endpointView(shown)}
		out.Operations, err = s.Queue.Enqueue(ctx, q, ops...)
		return err
	})
	if err != nil {
		return EndpointResult{}, err
	}
	s.Queue.Kick(e.BranchID)
	return out, nil
}

// wants is where an endpoint will be when its queue is empty.
func wants(e core.Endpoint) core.EndpointState {
	return cmp.Or(e.PendingState, e.State)
}

// UpdateEndpoint changes an endpoint. A running compute takes new limits of its size at once when they ask for the same
// settings, else by a restart.
func (s *Service) UpdateEndpoint(ctx context.Context, c core.Caller, projectID, id string, p EndpointPatch) (EndpointResult, error) {
	if err := cmp.Or(poolSettings(p.PgBouncer), passwordless(p.Passwordless)); err != nil {
		return EndpointResult{}, err
	}
	var idle time.Duration
	var resized postgres.SizeSpec
	checked, settings, err := s.checkPatch(ctx, c, projectID, id, p)
	if err != nil {
		return EndpointResult{}, err
	}
	out, err := s.change(ctx, c, projectID, id, func(q store.Q, e core.Endpoint) (core.Endpoint, []core.Operation, error) {
		before := e
		resized = postgres.SizeSpec{}
		if p.BranchID != nil && *p.BranchID != e.BranchID {
			return e, nil, core.Invalidf("an endpoint cannot move to another branch; create one there")
		}
		if p.PoolerMode != nil && *p.PoolerMode != "transaction" {
			return e, nil, core.Invalidf("endpoint.pooler_mode must be transaction")
		}
		if p.Name != nil {
			if err := checkName("endpoint.name", *p.Name, 256); err != nil {
				return e, nil, err
			}
			e.Name = *p.Name
		}
		var err error
		if p.Provisioner != nil {
			if e.Provisioner, err = checkProvisioner(*p.Provisioner); err != nil {
				return e, nil, err
			}
		}
		if e.MinCU, e.MaxCU, err = size(p.MinCU, p.MaxCU, core.EndpointDefaults{MinCU: e.MinCU, MaxCU: e.MaxCU}, e.Provisioner); err != nil {
			return e, nil, err
		}
		if p.SuspendTimeout != nil {
			if err := checkSuspend(*p.SuspendTimeout); err != nil {
				return e, nil, err
			}
			e.SuspendTimeout = *p.SuspendTimeout
		}
		if p.PoolerEnabled != nil {
			e.PoolerEnabled = *p.PoolerEnabled
		}
		if p.Disabled != nil {
			e.Disabled = *p.Disabled
		}
		if p.PGSettings != nil {
			if !maps.Equal(checked.PGSettings, e.PGSettings) {
				settings.restart = true // changed by somebody else meanwhile: the sure way
			}
			e.PGSettings = p.PGSettings
		}
		if p.Preload.Set {
			e.Preload = p.Preload.Value
		}
		saved, err := q.UpdateEndpoint(ctx, e)
		if err != nil {
			return e, nil, err
		}
		idle = idleTimeout(saved)
		if wants(saved) != core.EndpointActive {
			return saved, nil, nil
		}
		switch {
		case saved.Disabled && !before.Disabled:
			saved, err = q.SetEndpointPending(ctx, id, core.EndpointIdle)
			return saved, []core.Operation{newOperation(c, projectID, e.BranchID, id, core.ActionSuspendCompute)}, err
		case settings.restart || !s.Computes.Resizable(sizeSpec(before), sizeSpec(saved)):
			if err := s.runnable(ctx, q, projectID, e.BranchID); err != nil {
				return e, nil, err
			}
			saved, err = q.SetEndpointPending(ctx, id, core.EndpointActive)
			return saved, restartOperations(c, saved), err
		case saved.MinCU != before.MinCU || saved.MaxCU != before.MaxCU:
			resized = sizeSpec(saved)
		}
		if len(settings.keys) > 0 {
			apply, err := reloadOperation(c, saved)
			return saved, []core.Operation{apply}, err
		}
		return saved, nil, nil
	})
	if err == nil {
		s.Computes.SetIdleTimeout(id, idle)
		if resized != (postgres.SizeSpec{}) {
			s.Computes.Resize(id, resized)
		}
		s.Peers.Tell(ctx, ops.NewsChanged, id)
	}
	return out, err
}

// sizeSpec is an endpoint's limits as the compute room takes them.
func sizeSpec(e core.Endpoint) postgres.SizeSpec {
	return postgres.SizeSpec{MinCU: e.MinCU, MaxCU: e.MaxCU}
}

// checkPatch looks at the settings of a patched endpoint before anything is locked: that takes a program's run. It returns
// the endpoint as it was.
func (s *Service) checkPatch(ctx context.Context, c core.Caller, projectID, id string, p EndpointPatch) (core.Endpoint, settingsChange, error) {
	project, e, err := s.endpoint(ctx, c, projectID, id)
	if err != nil || (p.PGSettings == nil && !p.Preload.Set && (len(e.PGSettings) == 0 || (p.MinCU == nil && p.MaxCU == nil))) {
		return e, settingsChange{}, err
	}
	own := e.Preload
	if p.Preload.Set {
		own = p.Preload.Value
	}
	after := e.PGSettings
	if p.PGSettings != nil {
		after = p.PGSettings
	}
	minimum, maximum, err := size(p.MinCU, p.MaxCU, core.EndpointDefaults{MinCU: e.MinCU, MaxCU: e.MaxCU}, "")
	if err != nil {
		return e, settingsChange{}, err
	}
	if err := s.checkSettings(ctx, project, own, minimum, maximum, after); err != nil {
		return e, settingsChange{}, err
	}
	change, err := s.changeOf(ctx, project, id, e.PGSettings, after)
	if err == nil && p.Preload.Set {
		var build postgres.Build
		if build, err = s.build(ctx, project.PGVersion); err == nil {
			list := func(own *core.PreloadLibraries) []string { return preloadFor(project.Settings, own).list(build) }
			change.restart = change.restart || !slices.Equal(list(e.Preload), list(own))
		}
	}
	return e, change, err
}

// idleTimeout is an endpoint's timeout as the compute room takes it.
func idleTimeout(e core.Endpoint) time.Duration {
	if d, ok := e.IdleTimeout(); ok {
		return d
	}
	return -1
}

// DeleteEndpoint stops and removes an endpoint; its branch stays.
func (s *Service) DeleteEndpoint(ctx context.Context, c core.Caller, projectID, id string) (EndpointResult, error) {
	res, err := s.change(ctx, c, projectID, id, func(q store.Q, e core.Endpoint) (core.Endpoint, []core.Operation, error) {
		if e.State != core.EndpointActive && e.PendingState == "" {
			return e, nil, q.DeleteEndpoint(ctx, id) // a replica that sleeps has no files
		}
		e, err := q.MarkEndpointDeleting(ctx, id)
		return e, []core.Operation{newOperation(c, projectID, e.BranchID, id, core.ActionSuspendCompute)}, err
	})
	if err == nil && len(res.Operations) == 0 {
		_ = os.RemoveAll(filepath.Join(s.RunDir, id)) // what stays is found by reconciliation
	}
	return res, err
}

// StartEndpoint wakes an endpoint's compute.
func (s *Service) StartEndpoint(ctx context.Context, c core.Caller, projectID, id string) (EndpointResult, error) {
	return s.change(ctx, c, projectID, id, func(q store.Q, e core.Endpoint) (core.Endpoint, []core.Operation, error) {
		if e.Disabled {
			return e, nil, disabled(id)
		}
		if wants(e) == core.EndpointActive {
			return e, nil, nil
		}
		if err := s.runnable(ctx, q, projectID, e.BranchID); err != nil {
			return e, nil, err
		}
		e, err := q.SetEndpointPending(ctx, id, core.EndpointActive)
		return e, []core.Operation{newOperation(c, projectID, e.BranchID, id, core.ActionStartCompute)}, err
	})
}

func disabled(id string) error {
	return core.Errorf(core.KindUnprocessable, "ENDPOINT_DISABLED", "endpoint %s is disabled; enable it first", id)
}

// SuspendEndpoint stops an endpoint's compute.
func (s *Service) SuspendEndpoint(ctx context.Context, c core.Caller, projectID, id string) (EndpointResult, error) {
	return s.change(ctx, c, projectID, id, func(q store.Q, e core.Endpoint) (core.Endpoint, []core.Operation, error) {
		if wants(e) == core.EndpointIdle {
			return e, nil, nil
		}
		e, err := q.SetEndpointPending(ctx, id, core.EndpointIdle)
		return e, []core.Operation{newOperation(c, projectID, e.BranchID, id, core.ActionSuspendCompute)}, err
	})
}

// RestartEndpoint stops and starts an endpoint's compute.
func (s *Service) RestartEndpoint(ctx context.Context, c core.Caller, projectID, id string) (EndpointResult, error) {
	return s.change(ctx, c, projectID, id, func(q store.Q, e core.Endpoint) (core.Endpoint, []core.Operation, error) {
		if e.Disabled {
			return e, nil, disabled(id)
		}
		if err := s.runnable(ctx, q, projectID, e.BranchID); err != nil {
			return e, nil, err
		}
		e, err := q.SetEndpointPending(ctx, id, core.EndpointActive)
		return e, restartOperations(c, e), err
	})
}

// restartOperations stop and start a compute.
func restartOperations(c core.Caller, e core.Endpoint) []core.Operation {
	return []core.Operation{
		newOperation(c, e.ProjectID, e.BranchID, e.ID, core.ActionSuspendCompute),
		newOperation(c, e.ProjectID, e.BranchID, e.ID, core.ActionStartCompute),
	}
}
