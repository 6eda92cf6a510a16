package store

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/store/db"
)

func toBranch(r db.Branch) core.Branch {
	return core.Branch{
		ID: r.ID, ProjectID: r.ProjectID, ParentID: orEmpty(r.ParentID), ParentLSN: core.LSN(r.ParentLsn), ParentTimestamp: r.ParentTimestamp,
		Name: r.Name, State: core.BranchState(r.State), PendingState: core.BranchState(r.PendingState), StateReason: r.StateReason,
		StateChangedAt: r.StateChangedAt, Default: r.IsDefault, Protected: r.Protected, InitSource: r.InitSource, ExpiresAt: r.ExpiresAt, TTL: ttl(r.TtlSeconds),
		LogicalSize: r.LogicalSize, CreatedBy: r.CreatedBy, CreatedByName: r.CreatedByName, CreationSource: "console",
		CreatedAt: r.CreatedAt, UpdatedAt: r.UpdatedAt, Annotation: fromJSON(r.Annotation), AnnotatedAt: r.AnnotatedAt,
		VolumeID: r.VolumeID, Incarnation: int(r.Incarnation), Promote: r.Promote, Setup: r.Setup, Deleting: r.Deleting,
	}
}

func ttl(seconds *int64) time.Duration {
	if seconds == nil {
		return 0
	}
	return time.Duration(*seconds) * time.Second
}

func ttlSeconds(d time.Duration) *int64 {
	if d == 0 {
		return nil
	}
	return new(int64(d / time.Second))
}

// InsertBranch adds a branch; KindConflict when its name is taken.
func (q Q) InsertBranch(ctx context.Context, b core.Branch) (core.Branch, error) {
	var annotation json.RawMessage
	if b.Annotation != nil {
		annotation = toJSON(b.Annotation)
	}
	r, err := q.db.InsertBranch(ctx, db.InsertBranchParams{
		ID: b.ID, ProjectID: b.ProjectID, ParentID: nilIfEmpty(b.ParentID), ParentLsn: int64(b.ParentLSN), ParentTimestamp: b.ParentTimestamp,
		Name: b.Name, State: string(b.State), PendingState: string(b.PendingState), IsDefault: b.Default, Protected: b.Protected,
		InitSource: b.InitSource, ExpiresAt: b.ExpiresAt, CreatedBy: b.CreatedBy, CreatedByName: b.CreatedByName,
		Annotation: annotation, AnnotatedAt: b.AnnotatedAt, VolumeID: b.VolumeID, Promote: b.Promote, Setup: b.Setup, LogicalSize: b.LogicalSize,
		TtlSeconds: ttlSeconds(b.TTL),
	})
	if taken(err, "branches_name") {
		return core.Branch{}, branchTaken(b.Name)
	}
	return one(r, err, toBranch, "branch", b.ID)
}

func branchTaken(name string) error {
	return core.Errorf(core.KindConflict, "BRANCH_ALREADY_EXISTS", "a branch named %q exists already; choose another name", name)
}

// Branch returns one branch of a project that is not being deleted.
func (q Q) Branch(ctx context.Context, projectID, id string) (core.Branch, error) {
	r, err := q.db.GetBranch(ctx, db.GetBranchParams{ID: id, ProjectID: projectID})
	return one(r, err, toBranch, "branch", id)
}

// BranchByID returns one branch, also while it is being deleted.
func (q Q) BranchByID(ctx context.Context, id string) (core.Branch, error) {
	r, err := q.db.GetBranchByID(ctx, id)
	return one(r, err, toBranch, "branch", id)
}

// LockBranch is Branch, and keeps others from changing it or queueing work on it until the transaction ends.
func (q Q) LockBranch(ctx context.Context, projectID, id string) (core.Branch, error) {
	r, err := q.db.LockBranch(ctx, db.LockBranchParams{ID: id, ProjectID: projectID})
	return one(r, err, toBranch, "branch", id)
}

// LockBranchByID is BranchByID with the lock of LockBranch.
func (q Q) LockBranchByID(ctx context.Context, id string) (core.Branch, error) {
	r, err := q.db.LockBranchByID(ctx, id)
	return one(r, err, toBranch, "branch", id)
}

// DefaultBranch returns a project's default branch.
func (q Q) DefaultBranch(ctx context.Context, projectID string) (core.Branch, error) {
	r, err := q.db.GetDefaultBranch(ctx, projectID)
	return one(r, err, toBranch, "default branch of project", projectID)
}

// ProjectBranches returns every branch of a project, those being deleted too, newest first.
func (q Q) ProjectBranches(ctx context.Context, projectID string) ([]core.Branch, error) {
	r, err := q.db.ListProjectBranches(ctx, projectID)
	return many(r, err, toBranch)
}

// BranchName is what a person calls a branch, and where it is.
type BranchName struct {
	ID, Name, VolumeID, ProjectID, ProjectName string
	Deleting                                   bool
}

// BranchNames returns the names of all branches, those being deleted too.
func (q Q) BranchNames(ctx context.Context) ([]BranchName, error) {
	rows, err := q.db.ListBranchNames(ctx)
	return many(rows, err, func(r db.ListBranchNamesRow) BranchName {
		return BranchName{r.ID, r.Name, r.VolumeID, r.ProjectID, r.ProjectName, r.Deleting}
	})
}

// CountChildren counts the children of a branch that are not being deleted.
func (q Q) CountChildren(ctx context.Context, id string) (int64, error) {
	n, err := q.db.CountChildren(ctx, &id)
	return n, internal(err)
}

// CountBranches counts a project's branches; with search, those that ListBranches finds by it.
func (q Q) CountBranches(ctx context.Context, projectID, search string) (int64, error) {
	n, err := q.db.CountBranches(ctx, db.CountBranchesParams{ProjectID: projectID, Search: search})
	return n, internal(err)
}

// SetDefaultBranch makes a branch the default of its project, whose row the caller has locked, instead of the one that is.
func (q Q) SetDefaultBranch(ctx context.Context, projectID, id string) (core.Branch, error) {
	if err := q.db.ClearDefaultBranch(ctx, projectID); err != nil {
		return core.Branch{}, internal(err)
	}
	r, err := q.db.SetDefaultBranch(ctx, id)
	return one(r, err, toBranch, "branch", id)
}

// UpdateBranch writes what a PATCH can change; KindConflict when the name is taken.
func (q Q) UpdateBranch(ctx context.Context, b core.Branch) (core.Branch, error) {
	r, err := q.db.UpdateBranch(ctx, db.UpdateBranchParams{ID: b.ID, Name: b.Name, Protected: b.Protected, ExpiresAt: b.ExpiresAt, TtlSeconds: ttlSeconds(b.TTL)})
	if taken(err, "branches_name") {
		return core.Branch{}, branchTaken(b.Name)
	}
	return one(r, err, toBranch, "branch", b.ID)
}

// Expiring is a branch that is deleted at a time.
type Expiring struct {
	ID, ProjectID string
	At            time.Time
}

// Expiring returns the branches that are deleted next, the first one first.
func (q Q) Expiring(ctx context.Context, limit int) ([]Expiring, error) {
	rows, err := q.db.ListExpiring(ctx, int32(limit))
	return many(rows, err, func(r db.ListExpiringRow) Expiring { return Expiring{r.ID, r.ProjectID, *r.ExpiresAt} })
}

// BranchReady records that a branch's storage exists; lsn and at are where it forked (0 and nil for a root).
func (q Q) BranchReady(ctx context.Context, id string, lsn core.LSN, at *time.Time, promote bool) error {
	return internal(q.db.BranchReady(ctx, db.BranchReadyParams{ID: id, ParentLsn: int64(lsn), ParentTimestamp: at, Promote: promote}))
}

// BranchFailed records why a branch did not come to be.
func (q Q) BranchFailed(ctx context.Context, id, reason string) error {
	return internal(q.db.BranchFailed(ctx, db.BranchFailedParams{ID: id, StateReason: reason}))
}

// BranchStarted records that the first start is done: recovery ended, roles and databases applied; and the logical size in
// bytes. One statement: a second one would make PostgreSQL look at the parent's row again, and lock it, after the child's.
func (q Q) BranchStarted(ctx context.Context, id string, bytes int64) error {
	return internal(q.db.BranchStarted(ctx, db.BranchStartedParams{ID: id, LogicalSize: bytes}))
}

// SetBranchSize records the logical size in bytes.
func (q Q) SetBranchSize(ctx context.Context, id string, bytes int64) error {
	return internal(q.db.SetBranchSize(ctx, db.SetBranchSizeParams{ID: id, LogicalSize: &bytes}))
}

// MarkBranchDeleting hides a branch until its storage is gone.
func (q Q) MarkBranchDeleting(ctx context.Context, id string) (core.Branch, error) {
	r, err := q.db.MarkBranchDeleting(ctx, id)
	return one(r, err, toBranch, "branch", id)
}

// DeleteBranch removes the row and what hangs on it; children that are being deleted themselves are detached.
func (q Q) DeleteBranch(ctx context.Context, id string) error {
	if err := q.db.DetachChildren(ctx, &id); err != nil {
		return internal(err)
	}
	return internal(q.db.DeleteBranch(ctx, id))
}

// BranchFilter selects branches; see ListBranches.
type BranchFilter struct {
	ProjectID string
	Search    string // part of a name or an id
	SortBy    string // name, created_at or updated_at
	Desc      bool
	Limit     int
	Cursor    string // from the page before
}

// branchCursor is the place of a page's last row: the value sorted by, and the id that breaks ties.
type branchCursor struct {
	Name string    `json:"n,omitempty"`
	At   time.Time `json:"t,omitzero"`
	ID   string    `json:"i"`
}

// ListBranches returns a page of branches and the cursor of the next page, "" when this one is not full.
func (q Q) ListBranches(ctx context.Context, f BranchFilter) (page []core.Branch, next string, err error) {
	sql, args, err := f.query()
	if err != nil {
		return nil, "", err
	}
	rows, err := q.tx.Query(ctx, sql, args)
	if err != nil {
		return nil, "", internal(err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[db.Branch])
	if err != nil {
		return nil, "", internal(err)
	}
	page, _ = many(found, nil, toBranch)
	if len(page) == f.Limit {
		last := page[len(page)-1]
		c := branchCursor{ID: last.ID}
		switch f.SortBy {
		case "name":
			c.Name = last.Name
		case "created_at":
			c.At = last.CreatedAt
		default:
			c.At = last.UpdatedAt
		}
		b, err := json.Marshal(c)
		if err != nil {
			return nil, "", internal(err)
		}
		next = base64.RawURLEncoding.EncodeToString(b)
	}
	return page, next, nil
}

// query is the SQL of a page: it depends on the order that is asked for.
func (f BranchFilter) query() (string, pgx.NamedArgs, error) {
	column, ok := map[string]string{"name": "name", "created_at": "created_at", "updated_at": "updated_at"}[f.SortBy]
	if !ok {
		return "", nil, core.Invalidf("sort_by must be one of name, created_at, updated_at")
	}
	order, than := "ASC", ">"
	if f.Desc {
		order, than = "DESC", "<"
	}
	args := pgx.NamedArgs{"project": f.ProjectID, "limit": f.Limit}
	var sql strings.Builder
	sql.WriteString("SELECT * FROM branches WHERE project_id = @project AND NOT deleting")
	if f.Search != "" {
		sql.WriteString(" AND (position(lower(@search) IN lower(name)) > 0 OR position(lower(@search) IN id) > 0)")
		args["search"] = f.Search
	}
	if f.Cursor != "" {
		c, err := parseCursor(f.Cursor)
		if err != nil {
			return "", nil, err
		}
		fmt.Fprintf(&sql, " AND (%s, id) %s (@value, @id)", column, than)
		args["id"] = c.ID
		if column == "name" {
			args["value"] = c.Name
		} else {
			args["value"] = c.At
		}
	}
	fmt.Fprintf(&sql, " ORDER BY %[1]s %[2]s, id %[2]s LIMIT @limit", column, order)
	return sql.String(), args, nil
}

func parseCursor(s string) (branchCursor, error) {
	var c branchCursor
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err != nil || c.ID == "" || strings.Contains(c.Name+c.ID, "\x00") { // no text in PostgreSQL has zero bytes
		return c, core.Invalidf("cursor is not one that this list returned; start again without it")
	}
	return c, nil
}
