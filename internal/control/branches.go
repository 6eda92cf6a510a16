package control

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/internal/store"
)

// CreateBranch makes a branch of the parent's head, or of a moment in its history.
func (s *Service) CreateBranch(ctx context.Context, c core.Caller, projectID string, p CreateBranch) (BranchCreated, error) {
	var none BranchCreated
	project, err := s.project(ctx, c, projectID)
	if err != nil {
		return none, err
	}
	if p.Archived {
		return none, notHere("branch.archived", "there is no slower storage to archive it to; leave it out or send false")
	}
	var parent core.Branch
	if p.ParentID == "" {
		parent, err = s.Store.DefaultBranch(ctx, projectID)
	} else {
		_, parent, err = s.branch(ctx, c, projectID, p.ParentID)
	}
	if err != nil {
		return none, err
	}
	branch := core.Branch{
		ID: core.NewBranchID(), ProjectID: projectID, ParentID: parent.ID, Name: cmp.Or(p.Name, core.NewBranchName()),
		State: core.BranchInit, PendingState: core.BranchReady, Protected: p.Protected, InitSource: initParentData,
		CreatedBy: c.UserID, CreatedByName: c.UserName, Annotation: p.Annotation,
	}
	branch.VolumeID = branch.ID
	schemaOnly := p.InitSource == initSchemaOnly
	if schemaOnly { // a root: nothing ties it to where its schema is from
		branch.ParentID, branch.InitSource = "", initSchemaOnly
		branch.Promote = true // it starts before it is ready: whoever takes that start over must know
		if err := s.canCopySchemas(ctx, project); err != nil {
			return none, err
		}
	}
	if err := expireAt(&branch, p.ExpiresAt, time.Now()); err != nil {
		return none, err
	}
	if err := checkExpiring(branch, 0); err != nil {
		return none, err
	}
	if p.Annotation != nil {
		now := time.Now()
		branch.AnnotatedAt = &now
	}
	if err := checkName("branch.name", branch.Name, 256); err != nil {
		return none, err
	}
	at := moment{LSN: p.ParentLSN, Time: p.ParentTimestamp}
	if at.LSN != "" && at.Time != nil {
		return none, core.Invalidf("branch.parent_lsn and branch.parent_timestamp name two moments; give one of them")
	}
	if schemaOnly && !at.head() {
		return none, notBuilt("a schema-only branch of a past moment")
	}
	var endpoints []core.Endpoint
	for _, spec := range p.Endpoints {
		e, err := s.newEndpoint(ctx, project, branch.ID, spec)
		if err != nil {
			return none, err
		}
		endpoints = append(endpoints, e)
	}
	// The first start of the branch is the read_write one's, and so are the URIs.
	slices.SortStableFunc(endpoints, func(a, b core.Endpoint) int { return -cmp.Compare(a.Type, b.Type) })
	if err := checkReplicas(branch.ID, endpoints); err != nil {
		return none, err
	}
	if err := s.admit(ctx); err != nil {
		return none, err
	}
	if _, err := s.installed(ctx, project.PGVersion); err != nil {
		return none, err
	}
	if parent.State == core.BranchReady {
		if err := s.checkData(parent); err != nil {
			return none, err
		}
		if err := s.awaitCatalog(ctx, parent.ID); err != nil {
			return none, err
		}
		if err := s.refreshCatalog(ctx, parent); err != nil {
			return none, err
		}
		switch {
		case schemaOnly:
		case at.head():
			branch.ParentLSN, err = s.headLSN(ctx, parent)
		default:
			branch.ParentLSN, branch.ParentTimestamp, err = s.choose(ctx, parent, &at)
		}
		if err != nil {
			return none, err
		}
	}
	var out BranchCreated
	err = s.Store.Tx(ctx, func(q store.Q) error {
		out = BranchCreated{}
		if _, err := q.ShareProject(ctx, projectID); err != nil {
			return err
		}
		parent, err := q.LockBranch(ctx, projectID, parent.ID)
		if err != nil {
			return err
		}
		if !schemaOnly {
			if err := staysForGood(parent, "have children"); err != nil {
				return err
			}
		}
		if parent.State != core.BranchReady {
			if parent.PendingState == "" {
				return core.Errorf(core.KindUnprocessable, "", "branch %s has no data: its creation failed; delete it", parent.ID)
			}
			return busy(projectID)
		}
		if queued, err := catalogChanges(ctx, q, parent.ID); err != nil || len(queued) > 0 {
			return cmp.Or(err, busy(projectID))
		}
		create := newOperation(c, projectID, branch.ID, "", core.ActionCreateBranch)
		if schemaOnly {
			create.Params = schemaOf(parent.ID)
		} else {
			create.Params = at.params()
			branch.Setup, branch.LogicalSize = parent.Setup, parent.LogicalSize
		}
		if out.Branch, err = q.InsertBranch(ctx, branch); err != nil {
			return err
		}
		if err := q.CopyCatalog(ctx, parent.ID, branch.ID); err != nil {
			return err
		}
		ops := []core.Operation{create}
		for _, e := range endpoints {
			saved, err := q.InsertEndpoint(ctx, e)
			if err != nil {
				return err
			}
			out.Endpoints = append(out.Endpoints, s.endpointView(saved))
			if saved.PendingState == core.EndpointActive {
				ops = append(ops, newOperation(c, projectID, branch.ID, e.ID, core.ActionStartCompute))
			}
		}
		if out.Roles, err = q.Roles(ctx, branch.ID); err != nil {
			return err
		}
		if out.Databases, err = q.Databases(ctx, branch.ID); err != nil {
			return err
		}
		if out.Operations, err = s.Queue.Enqueue(ctx, q, ops...); err != nil {
			return err
		}
		if out.URIs, err = s.branchConnections(project, out); err != nil {
			return err
		}
		return keep(ctx, q, c, out)
	})
	if err != nil {
		return none, err
	}
	s.noteExpiry(out.Branch)
	s.Queue.Kick(branch.ID)
	return out, nil
}

// branchConnections lists how the owner of each database reaches it, when passwords are stored and there is an endpoint.
func (s *Service) branchConnections(project core.Project, b BranchCreated) ([]ConnectionURI, error) {
	var uris []ConnectionURI
	if len(b.Endpoints) == 0 || !project.StorePasswords {
		return uris, nil
	}
	for _, d := range b.Databases {
		i := slices.IndexFunc(b.Roles, func(r core.Role) bool { return r.Name == d.OwnerName && len(r.Sealed) > 0 })
		if i < 0 {
			continue
		}
		password, err := s.openPassword(b.Roles[i])
		if err != nil {
			return nil, err
		}
		uris = append(uris, s.connection(b.Endpoints[0].ID, d.OwnerName, password, d.Name))
	}
	return uris, nil
}

func busy(projectID string) error {
	e := core.Errorf(core.KindLocked, "", "project %s has conflicting operations that are still running; try again when they have finished", projectID)
	e.RetryAfter = time.Second
	return e
}

// headLSN is where a ready branch's WAL ends: flushed, when it runs; the last checkpoint, when it sleeps.
func (s *Service) headLSN(ctx context.Context, b core.Branch) (core.LSN, error) {
	if id, ok, err := s.reachable(ctx, b.ID); err != nil {
		return 0, err
	} else if ok {
		if lsn, _, err := (&origin{s: s, id: id}).FlushLSN(ctx); err == nil {
			return lsn, nil
		}
		// It stopped in between: what it left says where it ended.
	}
	data, err := postgres.ReadControl(s.Volumes.Path(b.VolumeID))
	return data.Checkpoint, err
}

// ListBranches returns a page of a project's branches.
func (s *Service) ListBranches(ctx context.Context, c core.Caller, projectID string, p ListBranches) (BranchPage, error) {
	if _, err := s.project(ctx, c, projectID); err != nil {
		return BranchPage{}, err
	}
	f := store.BranchFilter{ProjectID: projectID, Search: p.Search, SortBy: cmp.Or(p.SortBy, "updated_at"), Limit: p.Limit, Cursor: p.Cursor}
	switch {
	case f.Limit == 0:
		f.Limit = 10_000
	case f.Limit < 1 || f.Limit > 10_000:
		return BranchPage{}, core.Invalidf("limit must be between 1 and 10000")
	}
	switch strings.ToLower(cmp.Or(p.SortOrder, "desc")) {
	case "desc":
		f.Desc = true
	case "asc":
	default:
		return BranchPage{}, core.Invalidf("sort_order must be one of asc, desc")
	}
	page := BranchPage{SortBy: f.SortBy, SortOrder: "ASC"}
	if f.Desc {
		page.SortOrder = "DESC"
	}
	var err error
	if page.Branches, page.Next, err = s.Store.ListBranches(ctx, f); err != nil {
		return page, err
	}
	return page, s.addBranchUsage(ctx, projectID, page.Branches)
}

// CountBranches counts a project's branches; with search, those that ListBranches finds by it.
func (s *Service) CountBranches(ctx context.Context, c core.Caller, projectID, search string) (int64, error) {
	if _, err := s.project(ctx, c, projectID); err != nil {
		return 0, err
	}
	return s.Store.CountBranches(ctx, projectID, search)
}

// SetDefaultBranch makes a branch the project's default; the one that was is an ordinary branch from then on.
func (s *Service) SetDefaultBranch(ctx context.Context, c core.Caller, projectID, id string) (BranchResult, error) {
	if _, _, err := s.branch(ctx, c, projectID, id); err != nil {
		return BranchResult{}, err
	}
	var saved core.Branch
	err := s.Store.Tx(ctx, func(q store.Q) error {
		if _, err := q.LockProject(ctx, projectID); err != nil { // one default at a time
			return err
		}
		b, err := q.LockBranch(ctx, projectID, id)
		if err != nil {
			return err
		}
		if saved = b; b.Default {
			return nil
		}
		if b.State != core.BranchReady && b.PendingState == "" {
			return core.Errorf(core.KindUnprocessable, "", "branch %s has no data, because its creation failed: it cannot be the default", id)
		}
		if err := staysForGood(b, "be the default"); err != nil {
			return err
		}
		saved, err = q.SetDefaultBranch(ctx, projectID, id)
		return err
	})
	if err == nil {
		saved, err = s.withUsage(ctx, saved)
	}
	return BranchResult{Branch: saved}, err
}

// GetBranch returns one branch.
func (s *Service) GetBranch(ctx context.Context, c core.Caller, projectID, id string) (core.Branch, error) {
	_, b, err := s.branch(ctx, c, projectID, id)
	if err != nil {
		return b, err
	}
	return s.withUsage(ctx, b)
}

// UpdateBranch renames or protects a branch, or says when it is deleted.
func (s *Service) UpdateBranch(ctx context.Context, c core.Caller, projectID, id string, p BranchPatch) (BranchResult, error) {
	if _, _, err := s.branch(ctx, c, projectID, id); err != nil {
		return BranchResult{}, err
	}
	var saved core.Branch
	err := s.Store.Tx(ctx, func(q store.Q) error {
		b, err := q.LockBranch(ctx, projectID, id)
		if err != nil {
			return err
		}
		if p.Name != nil {
			if err := checkName("branch.name", *p.Name, 256); err != nil {
				return err
			}
			b.Name = *p.Name
		}
		if p.Protected != nil {
			b.Protected = *p.Protected
		}
		if p.ExpiresAt.Set {
			if err := expireAt(&b, p.ExpiresAt.Value, time.Now()); err != nil {
				return err
			}
			children, err := q.CountChildren(ctx, id)
			if err == nil {
				err = checkExpiring(b, children)
			}
			if err != nil {
				return err
			}
		} else if b.Protected {
			if err := staysForGood(b, "be protected"); err != nil {
				return err
			}
		}
		saved, err = q.UpdateBranch(ctx, b)
		return err
	})
	if err == nil {
		s.noteExpiry(saved)
		saved, err = s.withUsage(ctx, saved)
	}
	return BranchResult{Branch: saved, Operations: []core.Operation{}}, err
}

// DeleteBranch deletes a branch without children, its endpoints and its data.
func (s *Service) DeleteBranch(ctx context.Context, c core.Caller, projectID, id string) (BranchResult, error) {
	if _, _, err := s.branch(ctx, c, projectID, id); err != nil {
		return BranchResult{}, err
	}
	var out BranchResult
	err := s.Store.Tx(ctx, func(q store.Q) error {
		b, err := q.LockBranch(ctx, projectID, id)
		if err != nil {
			return err
		}
		if err := deletable(ctx, q, b); err != nil {
			return err
		}
		out.Branch, out.Operations, err = s.markBranchDeleting(ctx, q, c, projectID, id)
		return err
	})
	if err != nil {
		return BranchResult{}, err
	}
	s.Queue.Kick(id)
	out.Branch, err = s.withUsage(ctx, out.Branch)
	return out, err
}

// deletable refuses to delete a branch, whose row q has locked, by the rules.
func deletable(ctx context.Context, q store.Q, b core.Branch) error {
	refuse := func(format string, args ...any) error {
		return core.Errorf(core.KindUnprocessable, "BRANCH_DELETE_REFUSED", format, args...)
	}
	children, err := q.CountChildren(ctx, b.ID)
	switch {
	case err != nil:
		return err
	case b.Default:
		return refuse("branch %s is the project's default branch, which cannot be deleted", b.ID)
	case b.ParentID == "" && b.InitSource != initSchemaOnly:
		return refuse("branch %s is a root branch, which cannot be deleted", b.ID)
	case b.Protected:
		return refuse("branch %s is protected; remove the protection first", b.ID)
	case children > 0:
		return refuse("branch %s has children (%d); delete them first", b.ID, children)
	}
	return nil
}

// markBranchDeleting hides a branch and queues what removes it.
func (s *Service) markBranchDeleting(ctx context.Context, q store.Q, c core.Caller, projectID, id string) (core.Branch, []core.Operation, error) {
	if _, err := q.LockBranch(ctx, projectID, id); err != nil {
		return core.Branch{}, nil, err
	}
	endpoints, err := q.Endpoints(ctx, projectID, id)
	if err != nil {
		return core.Branch{}, nil, err
	}
	var ops []core.Operation
	for _, e := range endpoints {
		if _, err := q.MarkEndpointDeleting(ctx, e.ID); err != nil {
			return core.Branch{}, nil, err
		}
		if e.State == core.EndpointActive || e.PendingState != "" {
			ops = append(ops, newOperation(c, projectID, id, e.ID, core.ActionSuspendCompute))
		}
	}
	ops = append(ops, newOperation(c, projectID, id, "", core.ActionDeleteTimeline))
	b, err := q.MarkBranchDeleting(ctx, id)
	if err != nil {
		return b, nil, err
	}
	ops, err = s.Queue.Enqueue(ctx, q, ops...)
	return b, ops, err
}
