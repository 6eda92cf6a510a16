package httpd

import (
	"context"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/core"
)

// ListProjectOperations implements GET /projects/{project_id}/operations.
func (h *handlers) ListProjectOperations(ctx context.Context, req api.ListProjectOperationsRequestObject) (api.ListProjectOperationsResponseObject, error) {
	const most = 1000
	page, err := h.uc.ListOperations(ctx, CallerFrom(ctx), req.ProjectID, or(req.Params.Limit, most), or(req.Params.Cursor, ""))
	if err != nil {
		return nil, err
	}
	out := api.ListProjectOperations200JSONResponse{Operations: each(page.Operations, operationView)}
	if page.Cursor != "" {
		out.Pagination = &api.Pagination{Cursor: page.Cursor}
	}
	return out, nil
}

// GetProjectOperation implements GET /projects/{project_id}/operations/{operation_id}.
func (h *handlers) GetProjectOperation(ctx context.Context, req api.GetProjectOperationRequestObject) (api.GetProjectOperationResponseObject, error) {
	op, err := h.uc.GetOperation(ctx, CallerFrom(ctx), req.ProjectID, req.OperationID)
	if err != nil {
		return nil, err
	}
	return api.GetProjectOperation200JSONResponse{Operation: operationView(op)}, nil
}

func operationView(op core.Operation) api.Operation {
	return api.Operation{
		ID:              op.ID,
		ProjectID:       op.ProjectID,
		BranchID:        opt(op.BranchID),
		EndpointID:      opt(op.EndpointID),
		Action:          api.OperationAction(op.Action),
		Status:          api.OperationStatus(op.Status),
		Error:           opt(op.Error),
		FailuresCount:   int32(op.FailuresCount),
		CreatedAt:       stamp(op.CreatedAt),
		UpdatedAt:       stamp(op.UpdatedAt),
		TotalDurationMs: op.TotalDuration.Milliseconds(),
	}
}
