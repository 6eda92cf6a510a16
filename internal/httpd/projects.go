package httpd

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/control"
	"github.com/boughdb/bough/internal/core"
)

// handlers implements the generated server: each method calls one use case and maps its result.
type handlers struct {
	uc    UseCases
	now   func() time.Time
	maxCU float64
}

var _ api.StrictServerInterface = (*handlers)(nil)

// ListProjects implements GET /projects.
func (h *handlers) ListProjects(ctx context.Context, req api.ListProjectsRequestObject) (api.ListProjectsResponseObject, error) {
	out := api.ListProjects200JSONResponse{
		Projects: []api.ProjectListItem{}, Applications: api.ProjectApplications{}, Integrations: api.ProjectApplications{},
	}
	if or(req.Params.Recoverable, false) {
		return out, nil // a deletion is final here
	}
	page, err := h.uc.ListProjects(ctx, CallerFrom(ctx), control.ListProjects{
		Limit:  or(req.Params.Limit, 10),
		Cursor: or(req.Params.Cursor, ""),
		Search: or(req.Params.Search, ""),
		OrgID:  or(req.Params.OrgID, ""),
	})
	if err != nil {
		return nil, err
	}
	out.Projects = each(page.Projects, h.projectListItem)
	if page.Cursor != "" {
		out.Pagination = &api.Pagination{Cursor: page.Cursor}
	}
	return out, nil
}

// CreateProject implements POST /projects.
func (h *handlers) CreateProject(ctx context.Context, req api.CreateProjectRequestObject) (api.CreateProjectResponseObject, error) {
	p := req.Body.Project
	in := control.CreateProject{
		OrgID:            or(p.OrgID, ""),
		Name:             or(p.Name, ""),
		RegionID:         or(p.RegionID, ""),
		PGVersion:        or(p.PgVersion, 0),
		Provisioner:      string(or(p.Provisioner, "")),
		StorePasswords:   p.StorePasswords,
		HistoryRetention: p.HistoryRetentionSeconds,
		Defaults:         defaultsSpec(p.DefaultEndpointSettings),
	}
	if in.Defaults.MinCU == nil {
		in.Defaults.MinCU = p.AutoscalingLimitMinCU
	}
	if in.Defaults.MaxCU == nil {
		in.Defaults.MaxCU = p.AutoscalingLimitMaxCU
	}
	if b := p.Branch; b != nil {
		in.BranchName, in.RoleName, in.DatabaseName = or(b.Name, ""), or(b.RoleName, ""), or(b.DatabaseName, "")
		in.Annotation = or(b.Annotations, nil)
	}
	var err error
	if in.Settings, err = settingsAsSent(p.Settings); err != nil {
		return nil, err
	}
	made, err := h.uc.CreateProject(ctx, creator(ctx, func(made control.ProjectCreated, w http.ResponseWriter) error {
		return h.projectCreated(made).VisitCreateProjectResponse(w)
	}), in)
	if err != nil {
		return nil, err
	}
	return h.projectCreated(made), nil
}

func (h *handlers) projectCreated(made control.ProjectCreated) api.CreateProject201JSONResponse {
	return api.CreateProject201JSONResponse{
		Project:        h.project(made.Project),
		Branch:         branch(made.Branch),
		Endpoints:      each(made.Endpoints, endpoint),
		Roles:          each(made.Roles, role),
		Databases:      each(made.Databases, database),
		Operations:     each(made.Operations, operationView),
		ConnectionUris: each(made.URIs, connection),
	}
}

// GetProject implements GET /projects/{project_id}.
func (h *handlers) GetProject(ctx context.Context, req api.GetProjectRequestObject) (api.GetProjectResponseObject, error) {
	p, err := h.uc.GetProject(ctx, CallerFrom(ctx), req.ProjectID)
	if err != nil {
		return nil, err
	}
	out := h.project(p)
	if p.OwnerName != "" || p.OwnerEmail != "" {
		out.Owner = &api.ProjectOwner{
			Email: p.OwnerEmail, Name: p.OwnerName, BranchesLimit: noLimit, SubscriptionType: "UNKNOWN",
		}
	}
	return api.GetProject200JSONResponse{Project: out}, nil
}

// UpdateProject implements PATCH /projects/{project_id}.
func (h *handlers) UpdateProject(ctx context.Context, req api.UpdateProjectRequestObject) (api.UpdateProjectResponseObject, error) {
	p := req.Body.Project
	in := control.ProjectPatch{Name: p.Name, HistoryRetention: p.HistoryRetentionSeconds}
	if p.DefaultEndpointSettings != nil {
		spec := defaultsSpec(p.DefaultEndpointSettings)
		in.Defaults = &spec
	}
	var err error
	if in.Settings, err = settingsAsSent(p.Settings); err != nil {
		return nil, err
	}
	res, err := h.uc.UpdateProject(ctx, CallerFrom(ctx), req.ProjectID, in)
	if err != nil {
		return nil, err
	}
	return api.UpdateProject200JSONResponse{
		Project: h.project(res.Project), Operations: each(res.Operations, operationView),
	}, nil
}

// DeleteProject implements DELETE /projects/{project_id}.
func (h *handlers) DeleteProject(ctx context.Context, req api.DeleteProjectRequestObject) (api.DeleteProjectResponseObject, error) {
	p, err := h.uc.DeleteProject(ctx, CallerFrom(ctx), req.ProjectID)
	if err != nil {
		return nil, err
	}
	return api.DeleteProject200JSONResponse{Project: h.project(p)}, nil
}

// GetAvailablePreloadLibraries implements GET /projects/{project_id}/available_preload_libraries.
func (h *handlers) GetAvailablePreloadLibraries(ctx context.Context, req api.GetAvailablePreloadLibrariesRequestObject) (api.GetAvailablePreloadLibrariesResponseObject, error) {
	list, err := h.uc.PreloadLibraries(ctx, CallerFrom(ctx), req.ProjectID)
	if err != nil {
		return nil, err
	}
	libraries := each(list, func(l control.PreloadLibrary) api.AvailablePreloadLibrary {
		return api.AvailablePreloadLibrary{
			LibraryName: l.Name, Description: l.Description, IsDefault: l.Default, IsExperimental: l.Experimental, Version: l.Version,
		}
	})
	return api.GetAvailablePreloadLibraries200JSONResponse{Libraries: &libraries}, nil
}

// GetConnectionURI implements GET /projects/{project_id}/connection_uri.
func (h *handlers) GetConnectionURI(ctx context.Context, req api.GetConnectionURIRequestObject) (api.GetConnectionURIResponseObject, error) {
	uri, err := h.uc.ConnectionURI(ctx, CallerFrom(ctx), req.ProjectID, control.URIParams{
		BranchID:   or(req.Params.BranchID, ""),
		EndpointID: or(req.Params.EndpointID, ""),
		Database:   req.Params.DatabaseName,
		Role:       req.Params.RoleName,
		Pooled:     or(req.Params.Pooled, true),
	})
	if err != nil {
		return nil, err
	}
	return api.GetConnectionURI200JSONResponse{URI: uri}, nil
}

func defaultsSpec(d *api.DefaultEndpointSettings) control.DefaultsSpec {
	if d == nil {
		return control.DefaultsSpec{}
	}
	return control.DefaultsSpec{
		MinCU: d.AutoscalingLimitMinCU, MaxCU: d.AutoscalingLimitMaxCU, SuspendTimeout: d.SuspendTimeoutSeconds,
		PGSettings: or(d.PgSettings, nil), PgBouncer: len(or(d.PgbouncerSettings, nil)) > 0,
	}
}

// settingsAsSent gives back the JSON of the settings that the client named, and nil when it named none.
func settingsAsSent(s *api.ProjectSettings) (json.RawMessage, error) {
	if s == nil {
		return nil, nil
	}
	raw, err := json.Marshal(s)
	return raw, core.Wrap(err, "httpd.settings", "")
}

// projectSettings reads stored settings. What an older version stored and this one cannot read is left out.
func projectSettings(raw json.RawMessage) *api.ProjectSettings {
	var s api.ProjectSettings
	if len(raw) > 0 && json.Unmarshal(raw, &s) != nil {
		s = api.ProjectSettings{}
	}
	if s.AllowedIps == nil {
		s.AllowedIps = &api.AllowedIps{}
	}
	if s.AllowedIps.Ips == nil || *s.AllowedIps.Ips == nil {
		s.AllowedIps.Ips = &[]string{}
	}
	no := false
	for _, field := range []**bool{
		&s.AllowedIps.ProtectedBranchesOnly, &s.EnableLogicalReplication, &s.BlockPublicConnections,
		&s.BlockVpcConnections, &s.Hipaa,
	} {
		if *field == nil {
			*field = &no
		}
	}
	return &s
}

func defaultSettings(d core.EndpointDefaults) *api.DefaultEndpointSettings {
	out := &api.DefaultEndpointSettings{
		AutoscalingLimitMinCU: &d.MinCU, AutoscalingLimitMaxCU: &d.MaxCU, SuspendTimeoutSeconds: &d.SuspendTimeout,
	}
	if len(d.PGSettings) > 0 {
		out.PgSettings = &d.PGSettings
	}
	return out
}

// sizeLimit is the largest size of a branch in bytes.
func sizeLimit(s *api.ProjectSettings) int64 {
	if s.Quota != nil && or(s.Quota.LogicalSizeBytes, 0) > 0 {
		return *s.Quota.LogicalSizeBytes
	}
	return sizeLimitBytes
}

func (h *handlers) project(p control.ProjectView) api.Project {
	settings := projectSettings(p.Settings)
	limit := sizeLimit(settings)
	start, end := core.ConsumptionPeriod(h.now())
	if p.CreatedAt.After(start) {
		start = stamp(p.CreatedAt)
	}
	computed := seconds(p.Usage.Compute)
	return api.Project{
		ActiveTimeSeconds:           seconds(p.Usage.Active),
		BranchLogicalSizeLimit:      limit >> 20,
		BranchLogicalSizeLimitBytes: limit,
		ComputeLastActiveAt:         optStamp(p.ComputeLastActive),
		ComputeTimeSeconds:          computed,
		ConsumptionPeriodStart:      start,
		ConsumptionPeriodEnd:        end,
		CPUUsedSec:                  computed,
		CreatedAt:                   stamp(p.CreatedAt),
		CreationSource:              creationSource,
		DataTransferBytes:           p.Usage.Transferred,
		DataStorageBytesHour:        p.Usage.StorageHours(),
		DefaultEndpointSettings:     defaultSettings(p.Defaults),
		HistoryRetentionSeconds:     p.HistoryRetention,
		ID:                          p.ID,
		Name:                        p.Name,
		OrgID:                       opt(p.OrgID),
		OwnerID:                     p.OrgID,
		PgVersion:                   p.PGVersion,
		PlatformID:                  platform(p.RegionID),
		Provisioner:                 api.Provisioner(p.Provisioner),
		ProxyHost:                   p.ProxyHost,
		RegionID:                    p.RegionID,
		Settings:                    settings,
		StorePasswords:              p.StorePasswords,
		SyntheticStorageSize:        &p.Usage.Storage,
		UpdatedAt:                   stamp(p.UpdatedAt),
		WrittenDataBytes:            p.Usage.Written,
	}
}

func (h *handlers) projectListItem(p control.ProjectView) api.ProjectListItem {
	full := h.project(p)
	return api.ProjectListItem{
		ActiveTime:                  full.ActiveTimeSeconds,
		BranchLogicalSizeLimit:      full.BranchLogicalSizeLimit,
		BranchLogicalSizeLimitBytes: full.BranchLogicalSizeLimitBytes,
		ComputeLastActiveAt:         full.ComputeLastActiveAt,
		CPUUsedSec:                  full.CPUUsedSec,
		CreatedAt:                   full.CreatedAt,
		CreationSource:              full.CreationSource,
		DefaultEndpointSettings:     full.DefaultEndpointSettings,
		HistoryRetentionSeconds:     &full.HistoryRetentionSeconds,
		ID:                          full.ID,
		Name:                        full.Name,
		OrgID:                       full.OrgID,
		OwnerID:                     full.OwnerID,
		PgVersion:                   full.PgVersion,
		PlatformID:                  full.PlatformID,
		Provisioner:                 full.Provisioner,
		ProxyHost:                   full.ProxyHost,
		QuotaResetAt:                &full.ConsumptionPeriodEnd,
		RegionID:                    full.RegionID,
		Settings:                    full.Settings,
		StorePasswords:              full.StorePasswords,
		SyntheticStorageSize:        full.SyntheticStorageSize,
		UpdatedAt:                   full.UpdatedAt,
	}
}

func connection(u control.ConnectionURI) api.ConnectionDetails {
	return api.ConnectionDetails{
		ConnectionURI: u.URI,
		ConnectionParameters: api.ConnectionParameters{
			Database: u.Database, Password: u.Password, Role: u.Role, Host: u.Host, PoolerHost: u.PoolerHost,
		},
	}
}
