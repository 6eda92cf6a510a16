package httpd

import (
	"context"
	"net/http"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/control"
	"github.com/boughdb/bough/internal/core"
)

// ListProjectEndpoints implements GET /projects/{project_id}/endpoints.
func (h *handlers) ListProjectEndpoints(ctx context.Context, req api.ListProjectEndpointsRequestObject) (api.ListProjectEndpointsResponseObject, error) {
	list, err := h.uc.ListEndpoints(ctx, CallerFrom(ctx), req.ProjectID, "")
	if err != nil {
		return nil, err
	}
	return api.ListProjectEndpoints200JSONResponse{Endpoints: each(list, endpoint)}, nil
}

// CreateProjectEndpoint implements POST /projects/{project_id}/endpoints.
func (h *handlers) CreateProjectEndpoint(ctx context.Context, req api.CreateProjectEndpointRequestObject) (api.CreateProjectEndpointResponseObject, error) {
	e := req.Body.Endpoint
	caller := creator(ctx, func(made control.EndpointResult, w http.ResponseWriter) error {
		return api.CreateProjectEndpoint201JSONResponse(endpointOperations(made)).VisitCreateProjectEndpointResponse(w)
	})
	res, err := h.uc.CreateEndpoint(ctx, caller, req.ProjectID, e.BranchID, control.EndpointSpec{
		Type:           core.EndpointType(e.Type),
		Name:           or(e.Name, ""),
		RegionID:       or(e.RegionID, ""),
		MinCU:          e.AutoscalingLimitMinCU,
		MaxCU:          e.AutoscalingLimitMaxCU,
		Provisioner:    string(or(e.Provisioner, "")),
		PGSettings:     pgSettings(e.Settings),
		Preload:        ownLibraries(e.Settings).Value,
		PgBouncer:      asksPool(e.Settings),
		Passwordless:   e.PasswordlessAccess,
		PoolerEnabled:  e.PoolerEnabled,
		PoolerMode:     string(or(e.PoolerMode, "")),
		SuspendTimeout: e.SuspendTimeoutSeconds,
		Disabled:       or(e.Disabled, false),
	})
	if err != nil {
		return nil, err
	}
	return api.CreateProjectEndpoint201JSONResponse(endpointOperations(res)), nil
}

// GetProjectEndpoint implements GET /projects/{project_id}/endpoints/{endpoint_id}.
func (h *handlers) GetProjectEndpoint(ctx context.Context, req api.GetProjectEndpointRequestObject) (api.GetProjectEndpointResponseObject, error) {
	e, err := h.uc.GetEndpoint(ctx, CallerFrom(ctx), req.ProjectID, req.EndpointID)
	if err != nil {
		return nil, err
	}
	return api.GetProjectEndpoint200JSONResponse{Endpoint: endpoint(e)}, nil
}

// UpdateProjectEndpoint implements PATCH /projects/{project_id}/endpoints/{endpoint_id}.
func (h *handlers) UpdateProjectEndpoint(ctx context.Context, req api.UpdateProjectEndpointRequestObject) (api.UpdateProjectEndpointResponseObject, error) {
	e := req.Body.Endpoint
	res, err := h.uc.UpdateEndpoint(ctx, CallerFrom(ctx), req.ProjectID, req.EndpointID, control.EndpointPatch{
		BranchID:       e.BranchID,
		Name:           e.Name,
		MinCU:          e.AutoscalingLimitMinCU,
		MaxCU:          e.AutoscalingLimitMaxCU,
		Provisioner:    (*string)(e.Provisioner),
		PGSettings:     pgSettings(e.Settings),
		Preload:        ownLibraries(e.Settings),
		PgBouncer:      asksPool(e.Settings),
		Passwordless:   e.PasswordlessAccess,
		PoolerEnabled:  e.PoolerEnabled,
		PoolerMode:     (*string)(e.PoolerMode),
		SuspendTimeout: e.SuspendTimeoutSeconds,
		Disabled:       e.Disabled,
	})
	if err != nil {
		return nil, err
	}
	return api.UpdateProjectEndpoint200JSONResponse(endpointOperations(res)), nil
}

// DeleteProjectEndpoint implements DELETE /projects/{project_id}/endpoints/{endpoint_id}.
func (h *handlers) DeleteProjectEndpoint(ctx context.Context, req api.DeleteProjectEndpointRequestObject) (api.DeleteProjectEndpointResponseObject, error) {
	res, err := h.uc.DeleteEndpoint(ctx, CallerFrom(ctx), req.ProjectID, req.EndpointID)
	if gone(err, "ENDPOINT_NOT_FOUND") {
		return api.DeleteProjectEndpoint204Response{}, nil
	}
	if err != nil {
		return nil, err
	}
	return api.DeleteProjectEndpoint200JSONResponse(endpointOperations(res)), nil
}

// StartProjectEndpoint implements POST /projects/{project_id}/endpoints/{endpoint_id}/start.
func (h *handlers) StartProjectEndpoint(ctx context.Context, req api.StartProjectEndpointRequestObject) (api.StartProjectEndpointResponseObject, error) {
	res, err := h.uc.StartEndpoint(ctx, CallerFrom(ctx), req.ProjectID, req.EndpointID)
	if err != nil {
		return nil, err
	}
	return api.StartProjectEndpoint200JSONResponse(endpointOperations(res)), nil
}

// SuspendProjectEndpoint implements POST /projects/{project_id}/endpoints/{endpoint_id}/suspend.
func (h *handlers) SuspendProjectEndpoint(ctx context.Context, req api.SuspendProjectEndpointRequestObject) (api.SuspendProjectEndpointResponseObject, error) {
	res, err := h.uc.SuspendEndpoint(ctx, CallerFrom(ctx), req.ProjectID, req.EndpointID)
	if err != nil {
		return nil, err
	}
	return api.SuspendProjectEndpoint200JSONResponse(endpointOperations(res)), nil
}

// RestartProjectEndpoint implements POST /projects/{project_id}/endpoints/{endpoint_id}/restart.
func (h *handlers) RestartProjectEndpoint(ctx context.Context, req api.RestartProjectEndpointRequestObject) (api.RestartProjectEndpointResponseObject, error) {
	res, err := h.uc.RestartEndpoint(ctx, CallerFrom(ctx), req.ProjectID, req.EndpointID)
	if err != nil {
		return nil, err
	}
	return api.RestartProjectEndpoint200JSONResponse(endpointOperations(res)), nil
}

// pgSettings is nil when the client did not name them.
func pgSettings(s *api.EndpointSettings) map[string]string {
	if s == nil {
		return nil
	}
	return or(s.PgSettings, nil)
}

// ownLibraries are the libraries that the client names for one endpoint. Set and nil means those of the project again.
func ownLibraries(s *api.EndpointSettings) (out control.Optional[core.PreloadLibraries]) {
	if s == nil || s.PreloadLibraries == nil {
		return out
	}
	out.Set = true
	if p := s.PreloadLibraries; p.UseDefaults != nil || p.EnabledLibraries != nil {
		out.Value = &core.PreloadLibraries{UseDefaults: p.UseDefaults, Libraries: or(p.EnabledLibraries, nil)}
	}
	return out
}

// asksPool tells whether the client wants settings of the pool.
func asksPool(s *api.EndpointSettings) bool {
	return s != nil && len(or(s.PgbouncerSettings, nil)) > 0
}

func endpointOperations(res control.EndpointResult) api.EndpointOperations {
	return api.EndpointOperations{Endpoint: endpoint(res.Endpoint), Operations: each(res.Operations, operationView)}
}

func endpoint(e control.EndpointView) api.Endpoint {
	out := api.Endpoint{
		Host:                  e.Host,
		ID:                    e.ID,
		Name:                  opt(e.Name),
		ProjectID:             e.ProjectID,
		BranchID:              e.BranchID,
		AutoscalingLimitMinCU: e.MinCU,
		AutoscalingLimitMaxCU: e.MaxCU,
		RegionID:              e.RegionID,
		Type:                  api.EndpointType(e.Type),
		CurrentState:          api.EndpointState(e.State),
		PendingState:          opt(api.EndpointState(e.PendingState)),
		PoolerEnabled:         e.PoolerEnabled,
		PoolerMode:            api.Transaction,
		Disabled:              e.Disabled,
		PasswordlessAccess:    true,
		LastActive:            optStamp(e.LastActive),
		CreationSource:        e.CreationSource,
		CreatedAt:             stamp(e.CreatedAt),
		UpdatedAt:             stamp(e.UpdatedAt),
		StartedAt:             optStamp(e.StartedAt),
		SuspendedAt:           optStamp(e.SuspendedAt),
		ProxyHost:             e.ProxyHost,
		SuspendTimeoutSeconds: e.SuspendTimeout,
		Provisioner:           api.Provisioner(e.Provisioner),
	}
	if out.CreationSource == "" {
		out.CreationSource = creationSource
	}
	if e.State != core.EndpointInit || len(e.PGSettings) > 0 {
		settings := api.PgSettings{}
		if e.PGSettings != nil {
			settings = e.PGSettings
		}
		out.Settings.PgSettings = &settings
	}
	if p := e.Preload; p != nil {
		libraries := append([]string{}, p.Libraries...)
		out.Settings.PreloadLibraries = &api.PreloadLibraries{UseDefaults: p.UseDefaults, EnabledLibraries: &libraries}
	}
	if e.State == core.EndpointActive {
		out.ComputeReleaseVersion = opt(e.Version)
	}
	if r := e.Runtime; r != nil {
		out.Runtime = &api.EndpointRuntime{SizeCU: r.SizeCU, SizeNote: opt(r.SizeNote), ReplicationLagBytes: r.LagBytes}
		if r.Lag != nil {
			ms := r.Lag.Milliseconds()
			out.Runtime.ReplicationLagMs = &ms
		}
	}
	return out
}
