package store

import (
	"context"
	"time"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/store/db"
)

func toProject(r db.Project) core.Project {
	return core.Project{
		ID: r.ID, OrgID: r.OrgID, CreatedBy: r.CreatedBy, Name: r.Name, RegionID: r.RegionID, PGVersion: int(r.PgVersion),
		Provisioner: r.Provisioner,
		Defaults: core.EndpointDefaults{
			MinCU: r.DefaultMinCu, MaxCU: r.DefaultMaxCu, SuspendTimeout: r.DefaultSuspend, PGSettings: fromJSON(r.DefaultPgSettings),
		},
		Settings: r.Settings, StorePasswords: r.StorePasswords, HistoryRetention: r.HistoryRetention,
		ComputeLastActive: r.ComputeLastActive, Deleting: r.Deleting, CreatedAt: r.CreatedAt, UpdatedAt: r.UpdatedAt,
	}
}

// InsertProject adds a project.
func (q Q) InsertProject(ctx context.Context, p core.Project) (core.Project, error) {
	r, err := q.db.InsertProject(ctx, db.InsertProjectParams{
		ID: p.ID, OrgID: p.OrgID, CreatedBy: p.CreatedBy, Name: p.Name, RegionID: p.RegionID, PgVersion: int32(p.PGVersion),
		Provisioner: p.Provisioner, DefaultMinCu: p.Defaults.MinCU, DefaultMaxCu: p.Defaults.MaxCU,
		DefaultSuspend: p.Defaults.SuspendTimeout, DefaultPgSettings: toJSON(p.Defaults.PGSettings), Settings: p.Settings,
		StorePasswords: p.StorePasswords, HistoryRetention: p.HistoryRetention,
	})
	return one(r, err, toProject, "project", p.ID)
}

// Project returns one project that is not being deleted.
func (q Q) Project(ctx context.Context, id string) (core.Project, error) {
	r, err := q.db.GetProject(ctx, id)
	return one(r, err, toProject, "project", id)
}

// LockProject is Project, and keeps others from changing it until the transaction ends.
func (q Q) LockProject(ctx context.Context, id string) (core.Project, error) {
	r, err := q.db.LockProject(ctx, id)
	return one(r, err, toProject, "project", id)
}

// ShareProject is Project, and keeps others from deleting it until the transaction ends.
func (q Q) ShareProject(ctx context.Context, id string) (core.Project, error) {
	r, err := q.db.ShareProject(ctx, id)
	return one(r, err, toProject, "project", id)
}

// ProjectFilter selects projects; see ListProjects.
type ProjectFilter struct {
	OrgIDs    []string
	ProjectID string // "" or the only one
	Search    string // part of a name or an id
	After     string // ids greater than this
	Limit     int
}

// ListProjects returns projects ordered by id.
func (q Q) ListProjects(ctx context.Context, f ProjectFilter) ([]core.Project, error) {
	r, err := q.db.ListProjects(ctx, db.ListProjectsParams{
		OrgIds: f.OrgIDs, ProjectID: f.ProjectID, Search: f.Search, After: f.After, MaxRows: int32(f.Limit),
	})
	return many(r, err, toProject)
}

// UpdateProject writes what a PATCH can change.
func (q Q) UpdateProject(ctx context.Context, p core.Project) (core.Project, error) {
	r, err := q.db.UpdateProject(ctx, db.UpdateProjectParams{
		ID: p.ID, Name: p.Name, DefaultMinCu: p.Defaults.MinCU, DefaultMaxCu: p.Defaults.MaxCU, DefaultSuspend: p.Defaults.SuspendTimeout,
		DefaultPgSettings: toJSON(p.Defaults.PGSettings), Settings: p.Settings, HistoryRetention: p.HistoryRetention,
	})
	return one(r, err, toProject, "project", p.ID)
}

// TouchProject records that a compute of the project was active at a time, to the second: when many of its computes wake
// at once, most leave the row alone, which would be locked from one commit to the next.
func (q Q) TouchProject(ctx context.Context, id string, at time.Time) error {
	return internal(q.db.TouchProjectActivity(ctx, db.TouchProjectActivityParams{ID: id, At: at, UnlessAfter: at.Add(-time.Second)}))
}

// MarkProjectDeleting hides a project until its storage is gone.
func (q Q) MarkProjectDeleting(ctx context.Context, id string) error {
	return internal(q.db.MarkProjectDeleting(ctx, id))
}

// AwaitProject waits for who else removes branches of a project, so that one of them sees that none is left.
func (q Q) AwaitProject(ctx context.Context, id string) error {
	return internal(q.db.AwaitProject(ctx, id))
}

// DeleteProjectIfEmpty removes a project that is being deleted when its last branch is gone.
func (q Q) DeleteProjectIfEmpty(ctx context.Context, id string) error {
	_, err := q.db.DeleteProjectIfEmpty(ctx, id)
	return internal(err)
}
