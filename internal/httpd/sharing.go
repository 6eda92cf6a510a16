package httpd

import (
	"context"
	"net/http"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/control"
	"github.com/boughdb/bough/internal/core"
)

// ListSharedProjects implements GET /projects/shared.
func (h *handlers) ListSharedProjects(ctx context.Context, req api.ListSharedProjectsRequestObject) (api.ListSharedProjectsResponseObject, error) {
	page, err := h.uc.ListSharedProjects(ctx, CallerFrom(ctx), control.ListProjects{
		Limit: or(req.Params.Limit, 10), Cursor: or(req.Params.Cursor, ""), Search: or(req.Params.Search, ""),
	})
	if err != nil {
		return nil, err
	}
	out := api.ListSharedProjects200JSONResponse{Projects: each(page.Projects, h.projectListItem)}
	if page.Cursor != "" {
		out.Pagination = &api.Pagination{Cursor: page.Cursor}
	}
	return out, nil
}

func permission(p core.ProjectPermission) api.ProjectPermission {
	return api.ProjectPermission{ID: p.ID, GrantedToEmail: p.Email, GrantedAt: stamp(p.GrantedAt)}
}

// ListProjectPermissions implements GET /projects/{project_id}/permissions.
func (h *handlers) ListProjectPermissions(ctx context.Context, req api.ListProjectPermissionsRequestObject) (api.ListProjectPermissionsResponseObject, error) {
	list, err := h.uc.ListPermissions(ctx, CallerFrom(ctx), req.ProjectID)
	if err != nil {
		return nil, err
	}
	return api.ListProjectPermissions200JSONResponse{ProjectPermissions: each(list, permission)}, nil
}

// GrantPermissionToProject implements POST /projects/{project_id}/permissions.
func (h *handlers) GrantPermissionToProject(ctx context.Context, req api.GrantPermissionToProjectRequestObject) (api.GrantPermissionToProjectResponseObject, error) {
	p, err := h.uc.GrantPermission(ctx, creator(ctx, func(made core.ProjectPermission, w http.ResponseWriter) error {
		return api.GrantPermissionToProject200JSONResponse(permission(made)).VisitGrantPermissionToProjectResponse(w)
	}), req.ProjectID, req.Body.Email)
	if err != nil {
		return nil, err
	}
	return api.GrantPermissionToProject200JSONResponse(permission(p)), nil
}

// RevokePermissionFromProject implements DELETE /projects/{project_id}/permissions/{permission_id}.
func (h *handlers) RevokePermissionFromProject(ctx context.Context, req api.RevokePermissionFromProjectRequestObject) (api.RevokePermissionFromProjectResponseObject, error) {
	p, err := h.uc.RevokePermission(ctx, CallerFrom(ctx), req.ProjectID, req.PermissionID)
	if err != nil {
		return nil, err
	}
	out := permission(p)
	out.RevokedAt = opt(stamp(h.now()))
	return api.RevokePermissionFromProject200JSONResponse(out), nil
}

func jwks(j core.JWKS) api.JWKS {
	out := api.JWKS{
		ID: j.ID, ProjectID: j.ProjectID, BranchID: opt(j.BranchID), JwksURL: j.URL, ProviderName: j.ProviderName,
		CreatedAt: stamp(j.CreatedAt), UpdatedAt: stamp(j.UpdatedAt), JwtAudience: opt(j.Audience),
	}
	if len(j.RoleNames) > 0 {
		out.RoleNames = &j.RoleNames
	}
	return out
}

// GetProjectJWKS implements GET /projects/{project_id}/jwks.
func (h *handlers) GetProjectJWKS(ctx context.Context, req api.GetProjectJWKSRequestObject) (api.GetProjectJWKSResponseObject, error) {
	list, err := h.uc.ListJWKS(ctx, CallerFrom(ctx), req.ProjectID)
	if err != nil {
		return nil, err
	}
	return api.GetProjectJWKS200JSONResponse{Jwks: each(list, jwks)}, nil
}

// AddProjectJWKS implements POST /projects/{project_id}/jwks.
func (h *handlers) AddProjectJWKS(ctx context.Context, req api.AddProjectJWKSRequestObject) (api.AddProjectJWKSResponseObject, error) {
	j, err := h.uc.AddJWKS(ctx, creator(ctx, func(made core.JWKS, w http.ResponseWriter) error {
		return jwksAdded(made).VisitAddProjectJWKSResponse(w)
	}), core.JWKS{
		ProjectID: req.ProjectID, BranchID: or(req.Body.BranchID, ""), URL: req.Body.JwksURL, ProviderName: req.Body.ProviderName,
		Audience: or(req.Body.JwtAudience, ""), RoleNames: or(req.Body.RoleNames, nil),
	})
	if err != nil {
		return nil, err
	}
	return jwksAdded(j), nil
}

func jwksAdded(j core.JWKS) api.AddProjectJWKS201JSONResponse {
	return api.AddProjectJWKS201JSONResponse{Jwks: jwks(j), Operations: []api.Operation{}}
}

// DeleteProjectJWKS implements DELETE /projects/{project_id}/jwks/{jwks_id}.
func (h *handlers) DeleteProjectJWKS(ctx context.Context, req api.DeleteProjectJWKSRequestObject) (api.DeleteProjectJWKSResponseObject, error) {
	j, err := h.uc.DeleteJWKS(ctx, CallerFrom(ctx), req.ProjectID, req.JwksID)
	if err != nil {
		return nil, err
	}
	return api.DeleteProjectJWKS200JSONResponse(jwks(j)), nil
}
