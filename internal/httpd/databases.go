package httpd

import (
	"context"
	"net/http"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/control"
	"github.com/boughdb/bough/internal/core"
)

// ListProjectBranchDatabases implements GET …/databases.
func (h *handlers) ListProjectBranchDatabases(ctx context.Context, req api.ListProjectBranchDatabasesRequestObject) (api.ListProjectBranchDatabasesResponseObject, error) {
	list, err := h.uc.ListDatabases(ctx, CallerFrom(ctx), req.ProjectID, req.BranchID)
	if err != nil {
		return nil, err
	}
	return api.ListProjectBranchDatabases200JSONResponse{Databases: each(list, database)}, nil
}

// CreateProjectBranchDatabase implements POST …/databases.
func (h *handlers) CreateProjectBranchDatabase(ctx context.Context, req api.CreateProjectBranchDatabaseRequestObject) (api.CreateProjectBranchDatabaseResponseObject, error) {
	d := req.Body.Database
	caller := creator(ctx, func(made control.DatabaseResult, w http.ResponseWriter) error {
		return api.CreateProjectBranchDatabase201JSONResponse(databaseOperations(made)).VisitCreateProjectBranchDatabaseResponse(w)
	})
	res, err := h.uc.CreateDatabase(ctx, caller, req.ProjectID, req.BranchID, d.Name, d.OwnerName)
	if err != nil {
		return nil, err
	}
	return api.CreateProjectBranchDatabase201JSONResponse(databaseOperations(res)), nil
}

// GetProjectBranchDatabase implements GET …/databases/{database_name}.
func (h *handlers) GetProjectBranchDatabase(ctx context.Context, req api.GetProjectBranchDatabaseRequestObject) (api.GetProjectBranchDatabaseResponseObject, error) {
	d, err := h.uc.GetDatabase(ctx, CallerFrom(ctx), req.ProjectID, req.BranchID, req.DatabaseName)
	if err != nil {
		return nil, err
	}
	return api.GetProjectBranchDatabase200JSONResponse{Database: database(d)}, nil
}

// UpdateProjectBranchDatabase implements PATCH …/databases/{database_name}.
func (h *handlers) UpdateProjectBranchDatabase(ctx context.Context, req api.UpdateProjectBranchDatabaseRequestObject) (api.UpdateProjectBranchDatabaseResponseObject, error) {
	res, err := h.uc.UpdateDatabase(ctx, CallerFrom(ctx), req.ProjectID, req.BranchID, req.DatabaseName, control.DatabasePatch{
		Name: req.Body.Database.Name, OwnerName: req.Body.Database.OwnerName,
	})
	if err != nil {
		return nil, err
	}
	return api.UpdateProjectBranchDatabase200JSONResponse(databaseOperations(res)), nil
}

// DeleteProjectBranchDatabase implements DELETE …/databases/{database_name}.
func (h *handlers) DeleteProjectBranchDatabase(ctx context.Context, req api.DeleteProjectBranchDatabaseRequestObject) (api.DeleteProjectBranchDatabaseResponseObject, error) {
	res, err := h.uc.DeleteDatabase(ctx, CallerFrom(ctx), req.ProjectID, req.BranchID, req.DatabaseName)
	if gone(err, "DATABASE_NOT_FOUND") {
		return api.DeleteProjectBranchDatabase204Response{}, nil
	}
	if err != nil {
		return nil, err
	}
	return api.DeleteProjectBranchDatabase200JSONResponse(databaseOperations(res)), nil
}

func databaseOperations(res control.DatabaseResult) api.DatabaseOperations {
	return api.DatabaseOperations{Database: database(res.Database), Operations: each(res.Operations, operationView)}
}

func database(d core.Database) api.Database {
	return api.Database{
		ID: d.ID, BranchID: d.BranchID, Name: d.Name, OwnerName: d.OwnerName,
		CreatedAt: stamp(d.CreatedAt), UpdatedAt: stamp(d.UpdatedAt),
	}
}
