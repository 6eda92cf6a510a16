package httpd

import (
	"context"
	"net/http"
	"time"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/control"
	"github.com/boughdb/bough/internal/core"
)

// ListProjectBranches implements GET /projects/{project_id}/branches.
func (h *handlers) ListProjectBranches(ctx context.Context, req api.ListProjectBranchesRequestObject) (api.ListProjectBranchesResponseObject, error) {
	page, err := h.uc.ListBranches(ctx, CallerFrom(ctx), req.ProjectID, control.ListBranches{
		Search:    or(req.Params.Search, ""),
		SortBy:    string(or(req.Params.SortBy, api.UpdatedAt)),
		SortOrder: string(or(req.Params.SortOrder, api.Desc)),
		Limit:     or(req.Params.Limit, 0),
		Cursor:    or(req.Params.Cursor, ""),
	})
	if err != nil {
		return nil, err
	}
	out := api.ListProjectBranches200JSONResponse{
		Branches:    each(page.Branches, branch),
		Annotations: map[string]api.Annotation{},
		Pagination:  &api.CursorPagination{Next: opt(page.Next), SortBy: opt(page.SortBy), SortOrder: opt(page.SortOrder)},
	}
	for _, b := range page.Branches {
		if len(b.Annotation) > 0 {
			out.Annotations[b.ID] = annotation(b)
		}
	}
	return out, nil
}

// CreateProjectBranch implements POST /projects/{project_id}/branches.
func (h *handlers) CreateProjectBranch(ctx context.Context, req api.CreateProjectBranchRequestObject) (api.CreateProjectBranchResponseObject, error) {
	var in control.CreateBranch
	if body := req.Body; body != nil {
		if b := body.Branch; b != nil {
			in = control.CreateBranch{
				Name:            or(b.Name, ""),
				ParentID:        or(b.ParentID, ""),
				ParentLSN:       or(b.ParentLSN, ""),
				ParentTimestamp: b.ParentTimestamp,
				Protected:       or(b.Protected, false),
				Archived:        or(b.Archived, false),
				InitSource:      or(b.InitSource, ""),
				ExpiresAt:       b.ExpiresAt,
			}
		}
		in.Annotation = or(body.AnnotationValue, nil)
		for _, e := range or(body.Endpoints, nil) {
			in.Endpoints = append(in.Endpoints, control.EndpointSpec{
				Type:           core.EndpointType(e.Type),
				MinCU:          e.AutoscalingLimitMinCU,
				MaxCU:          e.AutoscalingLimitMaxCU,
				Provisioner:    string(or(e.Provisioner, "")),
				PGSettings:     pgSettings(e.Settings),
				Preload:        ownLibraries(e.Settings).Value,
				PgBouncer:      asksPool(e.Settings),
				SuspendTimeout: e.SuspendTimeoutSeconds,
			})
		}
	}
	made, err := h.uc.CreateBranch(ctx, creator(ctx, func(made control.BranchCreated, w http.ResponseWriter) error {
		return branchCreated(made).VisitCreateProjectBranchResponse(w)
	}), req.ProjectID, in)
	if err != nil {
		return nil, err
	}
	return branchCreated(made), nil
}

func branchCreated(made control.BranchCreated) api.CreateProjectBranch201JSONResponse {
	out := api.CreateProjectBranch201JSONResponse{
		Branch:     branch(made.Branch),
		Endpoints:  each(made.Endpoints, endpoint),
		Operations: each(made.Operations, operationView),
		Roles:      each(made.Roles, role),
		Databases:  each(made.Databases, database),
	}
	if len(made.URIs) > 0 {
		uris := each(made.URIs, connection)
		out.ConnectionUris = &uris
	}
	return out
}

// GetProjectBranch implements GET /projects/{project_id}/branches/{branch_id}.
func (h *handlers) GetProjectBranch(ctx context.Context, req api.GetProjectBranchRequestObject) (api.GetProjectBranchResponseObject, error) {
	b, err := h.uc.GetBranch(ctx, CallerFrom(ctx), req.ProjectID, req.BranchID)
	if err != nil {
		return nil, err
	}
	return api.GetProjectBranch200JSONResponse{Branch: branch(b), Annotation: annotation(b)}, nil
}

// UpdateProjectBranch implements PATCH /projects/{project_id}/branches/{branch_id}.
func (h *handlers) UpdateProjectBranch(ctx context.Context, req api.UpdateProjectBranchRequestObject) (api.UpdateProjectBranchResponseObject, error) {
	p := control.BranchPatch{Name: req.Body.Branch.Name, Protected: req.Body.Branch.Protected}
	p.ExpiresAt.Set, p.ExpiresAt.Value = req.Body.Branch.ExpiresAt.Set, req.Body.Branch.ExpiresAt.Time
	res, err := h.uc.UpdateBranch(ctx, CallerFrom(ctx), req.ProjectID, req.BranchID, p)
	if err != nil {
		return nil, err
	}
	return api.UpdateProjectBranch200JSONResponse{
		Branch: branch(res.Branch), Operations: each(res.Operations, operationView),
	}, nil
}

// DeleteProjectBranch implements DELETE /projects/{project_id}/branches/{branch_id}.
func (h *handlers) DeleteProjectBranch(ctx context.Context, req api.DeleteProjectBranchRequestObject) (api.DeleteProjectBranchResponseObject, error) {
	res, err := h.uc.DeleteBranch(ctx, CallerFrom(ctx), req.ProjectID, req.BranchID)
	if gone(err, "BRANCH_NOT_FOUND") {
		return api.DeleteProjectBranch204Response{}, nil
	}
	if err != nil {
		return nil, err
	}
	return api.DeleteProjectBranch200JSONResponse{
		Branch: branch(res.Branch), Operations: each(res.Operations, operationView),
	}, nil
}

// CountProjectBranches implements GET /projects/{project_id}/branches/count.
func (h *handlers) CountProjectBranches(ctx context.Context, req api.CountProjectBranchesRequestObject) (api.CountProjectBranchesResponseObject, error) {
	n, err := h.uc.CountBranches(ctx, CallerFrom(ctx), req.ProjectID, or(req.Params.Search, ""))
	if err != nil {
		return nil, err
	}
	return api.CountProjectBranches200JSONResponse{Count: int(n)}, nil
}

// SetDefaultProjectBranch implements POST /projects/{project_id}/branches/{branch_id}/set_as_default.
func (h *handlers) SetDefaultProjectBranch(ctx context.Context, req api.SetDefaultProjectBranchRequestObject) (api.SetDefaultProjectBranchResponseObject, error) {
	res, err := h.uc.SetDefaultBranch(ctx, CallerFrom(ctx), req.ProjectID, req.BranchID)
	if err != nil {
		return nil, err
	}
	return api.SetDefaultProjectBranch200JSONResponse{
		Branch: branch(res.Branch), Operations: each(res.Operations, operationView),
	}, nil
}

// ListProjectBranchEndpoints implements GET /projects/{project_id}/branches/{branch_id}/endpoints.
func (h *handlers) ListProjectBranchEndpoints(ctx context.Context, req api.ListProjectBranchEndpointsRequestObject) (api.ListProjectBranchEndpointsResponseObject, error) {
	list, err := h.uc.ListEndpoints(ctx, CallerFrom(ctx), req.ProjectID, req.BranchID)
	if err != nil {
		return nil, err
	}
	return api.ListProjectBranchEndpoints200JSONResponse{Endpoints: each(list, endpoint)}, nil
}

func branch(b core.Branch) api.Branch {
	isDefault := b.Default
	computed := seconds(b.Usage.Compute)
	out := api.Branch{
		ID:              b.ID,
		ProjectID:       b.ProjectID,
		ParentID:        opt(b.ParentID),
		ParentTimestamp: optExact(b.ParentTimestamp),
		Name:            b.Name,
		CurrentState:    string(b.State),
		PendingState:    opt(string(b.PendingState)),
		StateChangedAt:  stamp(b.StateChangedAt),
		LogicalSize:     b.LogicalSize,
		CreationSource:  b.CreationSource,
		Primary:         &isDefault,
		Default:         b.Default,
		Protected:       b.Protected,
		CreatedAt:       stamp(b.CreatedAt),
		UpdatedAt:       stamp(b.UpdatedAt),
		ExpiresAt:       optStamp(b.ExpiresAt),
		InitSource:      opt(b.InitSource),

		ActiveTimeSeconds:  seconds(b.Usage.Active),
		ComputeTimeSeconds: computed,
		CPUUsedSec:         computed,
		WrittenDataBytes:   b.Usage.Written,
		DataTransferBytes:  b.Usage.Transferred,
	}
	if b.TTL > 0 {
		out.TTLIntervalSeconds = opt(int64(b.TTL / time.Second))
	}
	if b.ParentID != "" && b.ParentLSN != 0 {
		out.ParentLSN = opt(b.ParentLSN.String())
	}
	if out.CreationSource == "" {
		out.CreationSource = creationSource
	}
	if b.CreatedByName != "" {
		name, image := b.CreatedByName, ""
		out.CreatedBy = &api.BranchCreator{Name: &name, Image: &image}
	}
	return out
}

func annotation(b core.Branch) api.Annotation {
	out := api.Annotation{
		Object: api.AnnotationObject{Type: "console/branch", ID: b.ID},
		Value:  api.AnnotationValue{},
	}
	if len(b.Annotation) > 0 {
		out.Value = b.Annotation
		created := stamp(b.CreatedAt)
		out.CreatedAt, out.UpdatedAt = &created, optStamp(b.AnnotatedAt)
	}
	return out
}
