package store

import (
	"context"
	"encoding/json"
	"time"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/store/db"
)

func toEndpoint(r db.Endpoint) core.Endpoint {
	return core.Endpoint{
		ID: r.ID, ProjectID: r.ProjectID, BranchID: r.BranchID, RegionID: r.RegionID, Name: r.Name, Type: core.EndpointType(r.Type),
		MinCU: r.MinCu, MaxCU: r.MaxCu, Provisioner: r.Provisioner, PGSettings: fromJSON(r.PgSettings), Preload: preloadFrom(r.Preload), PoolerEnabled: r.PoolerEnabled,
		SuspendTimeout: r.SuspendTimeout, Disabled: r.Disabled, State: core.EndpointState(r.State),
		PendingState: core.EndpointState(r.PendingState), LastActive: r.LastActive, StartedAt: r.StartedAt, SuspendedAt: r.SuspendedAt,
		CreationSource: "console", CreatedAt: r.CreatedAt, UpdatedAt: r.UpdatedAt, Deleting: r.Deleting,
	}
}

func preloadFrom(raw json.RawMessage) *core.PreloadLibraries {
	var p *core.PreloadLibraries
	_ = json.Unmarshal(raw, &p) // as it was written
	return p
}

func preloadJSON(p *core.PreloadLibraries) json.RawMessage {
	if p == nil {
		return nil
	}
	raw, _ := json.Marshal(p) // cannot fail
	return raw
}

// InsertEndpoint adds an endpoint; KindConflict for a second read_write one on a branch.
func (q Q) InsertEndpoint(ctx context.Context, e core.Endpoint) (core.Endpoint, error) {
	r, err := q.db.InsertEndpoint(ctx, db.InsertEndpointParams{
		ID: e.ID, ProjectID: e.ProjectID, BranchID: e.BranchID, Name: e.Name, RegionID: e.RegionID, Type: string(e.Type), MinCu: e.MinCU,
		MaxCu: e.MaxCU, Provisioner: e.Provisioner, PgSettings: toJSON(e.PGSettings), PoolerEnabled: e.PoolerEnabled,
		SuspendTimeout: e.SuspendTimeout, Disabled: e.Disabled, State: string(e.State), PendingState: string(e.PendingState),
		Preload: preloadJSON(e.Preload),
	})
	if taken(err, "endpoints_read_write") {
		return core.Endpoint{}, core.Errorf(core.KindConflict, "ENDPOINT_ALREADY_EXISTS",
			"branch %s has a read_write endpoint already; a branch can have only one", e.BranchID)
	}
	return one(r, err, toEndpoint, "endpoint", e.ID)
}

// Endpoint returns one endpoint that is not being deleted.
func (q Q) Endpoint(ctx context.Context, id string) (core.Endpoint, error) {
	r, err := q.db.GetEndpoint(ctx, id)
	return one(r, err, toEndpoint, "endpoint", id)
}

// EndpointAccess is Endpoint with what decides who may connect: whether its branch is protected, and its project's settings.
func (q Q) EndpointAccess(ctx context.Context, id string) (e core.Endpoint, protected bool, settings json.RawMessage, err error) {
	r, err := q.db.GetEndpointAccess(ctx, id)
	e, err = one(r.Endpoint, err, toEndpoint, "endpoint", id)
	return e, r.Protected, r.Settings, err
}

// AnyEndpoint returns one endpoint, also while it is being deleted.
func (q Q) AnyEndpoint(ctx context.Context, id string) (core.Endpoint, error) {
	r, err := q.db.GetAnyEndpoint(ctx, id)
	return one(r, err, toEndpoint, "endpoint", id)
}

// LockEndpoint is Endpoint, and keeps others from changing it until the transaction ends.
func (q Q) LockEndpoint(ctx context.Context, id string) (core.Endpoint, error) {
	r, err := q.db.LockEndpoint(ctx, id)
	return one(r, err, toEndpoint, "endpoint", id)
}

// Endpoints returns a project's endpoints, newest first; with branchID, those of that branch.
func (q Q) Endpoints(ctx context.Context, projectID, branchID string) ([]core.Endpoint, error) {
	r, err := q.db.ListEndpoints(ctx, db.ListEndpointsParams{ProjectID: projectID, BranchID: branchID})
	return many(r, err, toEndpoint)
}

// BranchEndpoints returns a branch's endpoints, those being deleted too, oldest first.
func (q Q) BranchEndpoints(ctx context.Context, branchID string) ([]core.Endpoint, error) {
	r, err := q.db.ListBranchEndpoints(ctx, branchID)
	return many(r, err, toEndpoint)
}

// LiveEndpoints returns the endpoints that are active or about to change.
func (q Q) LiveEndpoints(ctx context.Context) ([]core.Endpoint, error) {
	r, err := q.db.ListActiveEndpoints(ctx)
	return many(r, err, toEndpoint)
}

// UpdateEndpoint writes what a PATCH can change.
func (q Q) UpdateEndpoint(ctx context.Context, e core.Endpoint) (core.Endpoint, error) {
	r, err := q.db.UpdateEndpoint(ctx, db.UpdateEndpointParams{
		ID: e.ID, Name: e.Name, MinCu: e.MinCU, MaxCu: e.MaxCU, Provisioner: e.Provisioner, PgSettings: toJSON(e.PGSettings),
		PoolerEnabled: e.PoolerEnabled, SuspendTimeout: e.SuspendTimeout, Disabled: e.Disabled, Preload: preloadJSON(e.Preload),
	})
	return one(r, err, toEndpoint, "endpoint", e.ID)
}

// SetEndpointPending records where an endpoint is going; "" for nowhere.
func (q Q) SetEndpointPending(ctx context.Context, id string, s core.EndpointState) (core.Endpoint, error) {
	r, err := q.db.SetEndpointPending(ctx, db.SetEndpointPendingParams{ID: id, PendingState: string(s)})
	return one(r, err, toEndpoint, "endpoint", id)
}

// EndpointActive records that the compute runs since at.
func (q Q) EndpointActive(ctx context.Context, id string, at time.Time) error {
	return internal(q.db.EndpointActive(ctx, db.EndpointActiveParams{ID: id, StartedAt: &at}))
}

// EndpointIdle records that no compute runs.
func (q Q) EndpointIdle(ctx context.Context, id string) error {
	return internal(q.db.EndpointIdle(ctx, id))
}

// TouchEndpoint records that the compute was active at a time.
func (q Q) TouchEndpoint(ctx context.Context, id string, at time.Time) error {
	return internal(q.db.TouchEndpoint(ctx, db.TouchEndpointParams{ID: id, At: at}))
}

// MarkEndpointDeleting hides an endpoint until its compute is gone.
func (q Q) MarkEndpointDeleting(ctx context.Context, id string) (core.Endpoint, error) {
	r, err := q.db.MarkEndpointDeleting(ctx, id)
	return one(r, err, toEndpoint, "endpoint", id)
}

// DeleteEndpoint removes the row.
func (q Q) DeleteEndpoint(ctx context.Context, id string) error {
	return internal(q.db.DeleteEndpoint(ctx, id))
}

// Handle is a compute's persisted handle.
type Handle struct {
	ComputeID string // an endpoint's id, or a branch's
	BranchID  string
	Handle    json.RawMessage
	StartedAt time.Time
}

// SaveHandle stores a handle before its process is trusted.
func (q Q) SaveHandle(ctx context.Context, computeID, branchID string, handle json.RawMessage) error {
	return internal(q.db.SaveHandle(ctx, db.SaveHandleParams{ComputeID: computeID, BranchID: branchID, Handle: handle}))
}

// DeleteHandle forgets a handle.
func (q Q) DeleteHandle(ctx context.Context, computeID string) error {
	return internal(q.db.DeleteHandle(ctx, computeID))
}

// Handles returns every handle.
func (q Q) Handles(ctx context.Context) ([]Handle, error) {
	r, err := q.db.ListHandles(ctx)
	return many(r, err, func(r db.Handle) Handle { return Handle(r) })
}

// Handle returns the record of a running compute.
func (q Q) Handle(ctx context.Context, computeID string) (Handle, error) {
	r, err := q.db.GetHandle(ctx, computeID)
	return one(r, err, func(r db.Handle) Handle { return Handle(r) }, "compute", computeID)
}

// CountEndpoints counts the endpoints in each state.
func (q Q) CountEndpoints(ctx context.Context) (map[string]int, error) {
	rows, err := q.db.CountEndpointStates(ctx)
	if err != nil {
		return nil, internal(err)
	}
	out := map[string]int{string(core.EndpointInit): 0, string(core.EndpointActive): 0, string(core.EndpointIdle): 0}
	for _, r := range rows {
		out[r.State] = int(r.Count)
	}
	return out, nil
}
