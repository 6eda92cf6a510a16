package httpd

import (
	"context"
	"net/http"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/control"
	"github.com/boughdb/bough/internal/core"
)

// ListProjectBranchRoles implements GET …/roles.
func (h *handlers) ListProjectBranchRoles(ctx context.Context, req api.ListProjectBranchRolesRequestObject) (api.ListProjectBranchRolesResponseObject, error) {
	list, err := h.uc.ListRoles(ctx, CallerFrom(ctx), req.ProjectID, req.BranchID)
	if err != nil {
		return nil, err
	}
	return api.ListProjectBranchRoles200JSONResponse{Roles: each(list, role)}, nil
}

// CreateProjectBranchRole implements POST …/roles.
func (h *handlers) CreateProjectBranchRole(ctx context.Context, req api.CreateProjectBranchRoleRequestObject) (api.CreateProjectBranchRoleResponseObject, error) {
	caller := creator(ctx, func(made control.RoleResult, w http.ResponseWriter) error {
		return api.CreateProjectBranchRole201JSONResponse(roleOperations(made)).VisitCreateProjectBranchRoleResponse(w)
	})
	res, err := h.uc.CreateRole(ctx, caller, req.ProjectID, req.BranchID, control.CreateRole{
		Name: req.Body.Role.Name, NoLogin: or(req.Body.Role.NoLogin, false),
	})
	if err != nil {
		return nil, err
	}
	return api.CreateProjectBranchRole201JSONResponse(roleOperations(res)), nil
}

// GetProjectBranchRole implements GET …/roles/{role_name}.
func (h *handlers) GetProjectBranchRole(ctx context.Context, req api.GetProjectBranchRoleRequestObject) (api.GetProjectBranchRoleResponseObject, error) {
	r, err := h.uc.GetRole(ctx, CallerFrom(ctx), req.ProjectID, req.BranchID, req.RoleName)
	if err != nil {
		return nil, err
	}
	return api.GetProjectBranchRole200JSONResponse{Role: role(r)}, nil
}

// DeleteProjectBranchRole implements DELETE …/roles/{role_name}.
func (h *handlers) DeleteProjectBranchRole(ctx context.Context, req api.DeleteProjectBranchRoleRequestObject) (api.DeleteProjectBranchRoleResponseObject, error) {
	res, err := h.uc.DeleteRole(ctx, CallerFrom(ctx), req.ProjectID, req.BranchID, req.RoleName)
	if gone(err, "ROLE_NOT_FOUND") {
		return api.DeleteProjectBranchRole204Response{}, nil
	}
	if err != nil {
		return nil, err
	}
	return api.DeleteProjectBranchRole200JSONResponse(roleOperations(res)), nil
}

// GetProjectBranchRolePassword implements GET …/roles/{role_name}/reveal_password.
func (h *handlers) GetProjectBranchRolePassword(ctx context.Context, req api.GetProjectBranchRolePasswordRequestObject) (api.GetProjectBranchRolePasswordResponseObject, error) {
	password, err := h.uc.RevealPassword(ctx, CallerFrom(ctx), req.ProjectID, req.BranchID, req.RoleName)
	if err != nil {
		return nil, err
	}
	return api.GetProjectBranchRolePassword200JSONResponse{Password: password}, nil
}

// ResetProjectBranchRolePassword implements POST …/roles/{role_name}/reset_password.
func (h *handlers) ResetProjectBranchRolePassword(ctx context.Context, req api.ResetProjectBranchRolePasswordRequestObject) (api.ResetProjectBranchRolePasswordResponseObject, error) {
	res, err := h.uc.ResetPassword(ctx, CallerFrom(ctx), req.ProjectID, req.BranchID, req.RoleName)
	if err != nil {
		return nil, err
	}
	return api.ResetProjectBranchRolePassword200JSONResponse(roleOperations(res)), nil
}

func roleOperations(res control.RoleResult) api.RoleOperations {
	return api.RoleOperations{Role: role(res.Role), Operations: each(res.Operations, operationView)}
}

// role shows a password only where the use case put one: on creation and reset.
func role(r core.Role) api.Role {
	protected := r.Protected
	return api.Role{
		BranchID: r.BranchID, Name: r.Name, Password: opt(r.Password), Protected: &protected,
		CreatedAt: stamp(r.CreatedAt), UpdatedAt: stamp(r.UpdatedAt),
	}
}
