package sdk

import (
	"context"

	"github.com/boughdb/bough/api"
)

// CreateProject makes a project with a default branch, role, database and endpoint.
func (c *Client) CreateProject(ctx context.Context, p ProjectCreate) (*ProjectCreated, error) {
	return answer[ProjectCreated](c.api.CreateProject(ctx, api.ProjectCreateRequest{Project: p}))
}

// Project shows one project.
func (c *Client) Project(ctx context.Context, projectID string) (*Project, error) {
	if err := need("project id", projectID); err != nil {
		return nil, err
	}
	out, err := answer[api.ProjectResponse](c.api.GetProject(ctx, projectID))
	if err != nil {
		return nil, err
	}
	return &out.Project, nil
}

// UpdateProject changes what is set in u.
func (c *Client) UpdateProject(ctx context.Context, projectID string, u ProjectUpdate) (*ProjectOperations, error) {
	if err := need("project id", projectID); err != nil {
		return nil, err
	}
	return answer[ProjectOperations](c.api.UpdateProject(ctx, projectID, api.ProjectUpdateRequest{Project: u}))
}

// DeleteProject deletes a project with everything in it, and returns it as it was.
func (c *Client) DeleteProject(ctx context.Context, projectID string) (*Project, error) {
	if err := need("project id", projectID); err != nil {
		return nil, err
	}
	out, err := answer[api.ProjectResponse](c.api.DeleteProject(ctx, projectID))
	if err != nil {
		return nil, err
	}
	return &out.Project, nil
}

// Branch shows one branch.
func (c *Client) Branch(ctx context.Context, projectID, branchID string) (*Branch, error) {
	if err := need("project id", projectID, "branch id", branchID); err != nil {
		return nil, err
	}
	out, err := answer[BranchWithAnnotation](c.api.GetProjectBranch(ctx, projectID, branchID))
	if err != nil {
		return nil, err
	}
	return &out.Branch, nil
}

// BranchWithAnnotation shows one branch and what is noted on it.
func (c *Client) BranchWithAnnotation(ctx context.Context, projectID, branchID string) (*BranchWithAnnotation, error) {
	if err := need("project id", projectID, "branch id", branchID); err != nil {
		return nil, err
	}
	return answer[BranchWithAnnotation](c.api.GetProjectBranch(ctx, projectID, branchID))
}

// CreateBranch branches off another branch, the default branch when none is named. Without r.Endpoints the branch has no
// compute.
func (c *Client) CreateBranch(ctx context.Context, projectID string, r BranchCreateRequest) (*BranchCreated, error) {
	if err := need("project id", projectID); err != nil {
		return nil, err
	}
	return answer[BranchCreated](c.api.CreateProjectBranch(ctx, projectID, r))
}

// UpdateBranch changes what is set in u.
func (c *Client) UpdateBranch(ctx context.Context, projectID, branchID string, u BranchUpdate) (*BranchOperations, error) {
	if err := need("project id", projectID, "branch id", branchID); err != nil {
		return nil, err
	}
	return answer[BranchOperations](c.api.UpdateProjectBranch(ctx, projectID, branchID, api.BranchUpdateRequest{Branch: u}))
}

// SetDefaultBranch makes a branch the project's default branch.
func (c *Client) SetDefaultBranch(ctx context.Context, projectID, branchID string) (*BranchOperations, error) {
	if err := need("project id", projectID, "branch id", branchID); err != nil {
		return nil, err
	}
	return answer[BranchOperations](c.api.SetDefaultProjectBranch(ctx, projectID, branchID))
}

// CountBranches counts a project's branches; with search, those whose name or id contains it.
func (c *Client) CountBranches(ctx context.Context, projectID, search string) (int, error) {
	if err := need("project id", projectID); err != nil {
		return 0, err
	}
	p := api.CountProjectBranchesParams{}
	if search != "" {
		p.Search = &search
	}
	out, err := answer[api.BranchCount](c.api.CountProjectBranches(ctx, projectID, &p))
	if err != nil {
		return 0, err
	}
	return out.Count, nil
}

// DeleteBranch deletes a branch that is neither the default nor a parent. The answer is empty when the branch is gone
// already.
func (c *Client) DeleteBranch(ctx context.Context, projectID, branchID string) (*BranchOperations, error) {
	if err := need("project id", projectID, "branch id", branchID); err != nil {
		return nil, err
	}
	return answer[BranchOperations](c.api.DeleteProjectBranch(ctx, projectID, branchID, &api.DeleteProjectBranchParams{}))
}

// Schema returns the definitions of everything in a branch's database as SQL.
func (c *Client) Schema(ctx context.Context, projectID, branchID, database string) (string, error) {
	if err := need("project id", projectID, "branch id", branchID, "database", database); err != nil {
		return "", err
	}
	out, err := answer[api.BranchSchema](c.api.GetProjectBranchSchema(ctx, projectID, branchID, &api.GetProjectBranchSchemaParams{DBName: database}))
	if err != nil || out.SQL == nil {
		return "", err
	}
	return *out.SQL, nil
}

// SchemaComparison says what to compare a branch with.
type SchemaComparison struct {
	Database     string
	BaseBranchID string // "" means the parent
}

// CompareSchemas returns a unified diff from the base's schema to the branch's, "" when they are equal.
func (c *Client) CompareSchemas(ctx context.Context, projectID, branchID string, q SchemaComparison) (string, error) {
	if err := need("project id", projectID, "branch id", branchID, "database", q.Database); err != nil {
		return "", err
	}
	p := api.GetProjectBranchSchemaComparisonParams{DBName: q.Database}
	if q.BaseBranchID != "" {
		p.BaseBranchID = &q.BaseBranchID
	}
	out, err := answer[api.BranchSchemaComparison](c.api.GetProjectBranchSchemaComparison(ctx, projectID, branchID, &p))
	if err != nil || out.Diff == nil {
		return "", err
	}
	return *out.Diff, nil
}

// BranchEndpoints lists the endpoints of a branch.
func (c *Client) BranchEndpoints(ctx context.Context, projectID, branchID string) ([]Endpoint, error) {
	if err := need("project id", projectID, "branch id", branchID); err != nil {
		return nil, err
	}
	out, err := answer[api.EndpointList](c.api.ListProjectBranchEndpoints(ctx, projectID, branchID))
	if err != nil {
		return nil, err
	}
	return out.Endpoints, nil
}

// Endpoints lists the endpoints of a project.
func (c *Client) Endpoints(ctx context.Context, projectID string) ([]Endpoint, error) {
	if err := need("project id", projectID); err != nil {
		return nil, err
	}
	out, err := answer[api.EndpointList](c.api.ListProjectEndpoints(ctx, projectID))
	if err != nil {
		return nil, err
	}
	return out.Endpoints, nil
}

// Endpoint shows one endpoint.
func (c *Client) Endpoint(ctx context.Context, projectID, endpointID string) (*Endpoint, error) {
	if err := need("project id", projectID, "endpoint id", endpointID); err != nil {
		return nil, err
	}
	out, err := answer[api.EndpointResponse](c.api.GetProjectEndpoint(ctx, projectID, endpointID))
	if err != nil {
		return nil, err
	}
	return &out.Endpoint, nil
}

// CreateEndpoint adds an endpoint to a branch and starts it.
func (c *Client) CreateEndpoint(ctx context.Context, projectID string, e EndpointCreate) (*EndpointOperations, error) {
	if err := need("project id", projectID); err != nil {
		return nil, err
	}
	return answer[EndpointOperations](c.api.CreateProjectEndpoint(ctx, projectID, api.EndpointCreateRequest{Endpoint: e}))
}

// UpdateEndpoint changes what is set in u.
func (c *Client) UpdateEndpoint(ctx context.Context, projectID, endpointID string, u EndpointUpdate) (*EndpointOperations, error) {
	if err := need("project id", projectID, "endpoint id", endpointID); err != nil {
		return nil, err
	}
	return answer[EndpointOperations](c.api.UpdateProjectEndpoint(ctx, projectID, endpointID, api.EndpointUpdateRequest{Endpoint: u}))
}

// DeleteEndpoint removes an endpoint and cuts its connections; the branch stays. The answer is empty when it is gone already.
func (c *Client) DeleteEndpoint(ctx context.Context, projectID, endpointID string) (*EndpointOperations, error) {
	if err := need("project id", projectID, "endpoint id", endpointID); err != nil {
		return nil, err
	}
	return answer[EndpointOperations](c.api.DeleteProjectEndpoint(ctx, projectID, endpointID))
}

// StartEndpoint wakes the compute of an endpoint; no operations when it is awake.
func (c *Client) StartEndpoint(ctx context.Context, projectID, endpointID string) (*EndpointOperations, error) {
	if err := need("project id", projectID, "endpoint id", endpointID); err != nil {
		return nil, err
	}
	return answer[EndpointOperations](c.api.StartProjectEndpoint(ctx, projectID, endpointID))
}

// SuspendEndpoint puts the compute of an endpoint to sleep and cuts its connections.
func (c *Client) SuspendEndpoint(ctx context.Context, projectID, endpointID string) (*EndpointOperations, error) {
	if err := need("project id", projectID, "endpoint id", endpointID); err != nil {
		return nil, err
	}
	return answer[EndpointOperations](c.api.SuspendProjectEndpoint(ctx, projectID, endpointID))
}

// RestartEndpoint stops and starts the compute of an endpoint.
func (c *Client) RestartEndpoint(ctx context.Context, projectID, endpointID string) (*EndpointOperations, error) {
	if err := need("project id", projectID, "endpoint id", endpointID); err != nil {
		return nil, err
	}
	return answer[EndpointOperations](c.api.RestartProjectEndpoint(ctx, projectID, endpointID))
}

// Databases lists the databases of a branch.
func (c *Client) Databases(ctx context.Context, projectID, branchID string) ([]Database, error) {
	if err := need("project id", projectID, "branch id", branchID); err != nil {
		return nil, err
	}
	out, err := answer[api.DatabaseList](c.api.ListProjectBranchDatabases(ctx, projectID, branchID))
	if err != nil {
		return nil, err
	}
	return out.Databases, nil
}

// Database shows one database.
func (c *Client) Database(ctx context.Context, projectID, branchID, name string) (*Database, error) {
	if err := need("project id", projectID, "branch id", branchID, "database name", name); err != nil {
		return nil, err
	}
	out, err := answer[api.DatabaseResponse](c.api.GetProjectBranchDatabase(ctx, projectID, branchID, name))
	if err != nil {
		return nil, err
	}
	return &out.Database, nil
}

// CreateDatabase makes a database.
func (c *Client) CreateDatabase(ctx context.Context, projectID, branchID string, d DatabaseCreate) (*DatabaseOperations, error) {
	if err := need("project id", projectID, "branch id", branchID); err != nil {
		return nil, err
	}
	return answer[DatabaseOperations](c.api.CreateProjectBranchDatabase(ctx, projectID, branchID, api.DatabaseCreateRequest{Database: d}))
}

// UpdateDatabase renames a database or gives it another owner.
func (c *Client) UpdateDatabase(ctx context.Context, projectID, branchID, name string, u DatabaseUpdate) (*DatabaseOperations, error) {
	if err := need("project id", projectID, "branch id", branchID, "database name", name); err != nil {
		return nil, err
	}
	return answer[DatabaseOperations](c.api.UpdateProjectBranchDatabase(ctx, projectID, branchID, name, api.DatabaseUpdateRequest{Database: u}))
}

// DeleteDatabase drops a database and ends its sessions. The answer is empty when it is gone already.
func (c *Client) DeleteDatabase(ctx context.Context, projectID, branchID, name string) (*DatabaseOperations, error) {
	if err := need("project id", projectID, "branch id", branchID, "database name", name); err != nil {
		return nil, err
	}
	return answer[DatabaseOperations](c.api.DeleteProjectBranchDatabase(ctx, projectID, branchID, name))
}

// Roles lists the roles of a branch.
func (c *Client) Roles(ctx context.Context, projectID, branchID string) ([]Role, error) {
	if err := need("project id", projectID, "branch id", branchID); err != nil {
		return nil, err
	}
	out, err := answer[api.RoleList](c.api.ListProjectBranchRoles(ctx, projectID, branchID))
	if err != nil {
		return nil, err
	}
	return out.Roles, nil
}

// Role shows one role.
func (c *Client) Role(ctx context.Context, projectID, branchID, name string) (*Role, error) {
	if err := need("project id", projectID, "branch id", branchID, "role name", name); err != nil {
		return nil, err
	}
	out, err := answer[api.RoleResponse](c.api.GetProjectBranchRole(ctx, projectID, branchID, name))
	if err != nil {
		return nil, err
	}
	return &out.Role, nil
}

// CreateRole makes a role; the answer carries its password.
func (c *Client) CreateRole(ctx context.Context, projectID, branchID string, r RoleCreate) (*RoleOperations, error) {
	if err := need("project id", projectID, "branch id", branchID); err != nil {
		return nil, err
	}
	return answer[RoleOperations](c.api.CreateProjectBranchRole(ctx, projectID, branchID, api.RoleCreateRequest{Role: r}))
}

// DeleteRole drops a role that owns no database. The answer is empty when it is gone already.
func (c *Client) DeleteRole(ctx context.Context, projectID, branchID, name string) (*RoleOperations, error) {
	if err := need("project id", projectID, "branch id", branchID, "role name", name); err != nil {
		return nil, err
	}
	return answer[RoleOperations](c.api.DeleteProjectBranchRole(ctx, projectID, branchID, name))
}

// ResetRolePassword gives a role a new password; the answer carries it.
func (c *Client) ResetRolePassword(ctx context.Context, projectID, branchID, name string) (*RoleOperations, error) {
	if err := need("project id", projectID, "branch id", branchID, "role name", name); err != nil {
		return nil, err
	}
	return answer[RoleOperations](c.api.ResetProjectBranchRolePassword(ctx, projectID, branchID, name))
}

// GetOperation shows where an operation stands.
func (c *Client) GetOperation(ctx context.Context, projectID, operationID string) (*Operation, error) {
	if err := need("project id", projectID, "operation id", operationID); err != nil {
		return nil, err
	}
	out, err := answer[api.OperationResponse](c.api.GetProjectOperation(ctx, projectID, operationID))
	if err != nil {
		return nil, err
	}
	return &out.Operation, nil
}

// APIKeys lists the caller's keys, without their secrets.
func (c *Client) APIKeys(ctx context.Context) ([]APIKey, error) {
	out, err := answer[[]APIKey](c.api.ListAPIKeys(ctx))
	if err != nil {
		return nil, err
	}
	return *out, nil
}

// CreateAPIKey makes a key; its secret is in this answer only.
func (c *Client) CreateAPIKey(ctx context.Context, name string) (*APIKeyCreated, error) {
	return answer[APIKeyCreated](c.api.CreateAPIKey(ctx, api.APIKeyCreateRequest{KeyName: name}))
}

// RevokeAPIKey makes a key stop working at once.
func (c *Client) RevokeAPIKey(ctx context.Context, id int64) (*APIKeyRevoked, error) {
	return answer[APIKeyRevoked](c.api.RevokeAPIKey(ctx, id))
}

// Me shows whom the key belongs to.
func (c *Client) Me(ctx context.Context) (*User, error) {
	return answer[User](c.api.GetCurrentUserInfo(ctx))
}

// Organizations lists the organizations of the calling user.
func (c *Client) Organizations(ctx context.Context) ([]Organization, error) {
	out, err := answer[api.OrganizationList](c.api.GetCurrentUserOrganizations(ctx))
	if err != nil {
		return nil, err
	}
	return out.Organizations, nil
}

// Organization shows one organization.
func (c *Client) Organization(ctx context.Context, orgID string) (*Organization, error) {
	if err := need("organization id", orgID); err != nil {
		return nil, err
	}
	return answer[Organization](c.api.GetOrganization(ctx, orgID))
}

// Regions lists where projects can be.
func (c *Client) Regions(ctx context.Context) ([]Region, error) {
	out, err := answer[api.RegionList](c.api.GetActiveRegions(ctx, &api.GetActiveRegionsParams{}))
	if err != nil {
		return nil, err
	}
	return out.Regions, nil
}

// RolePassword shows a role's password. IsPrecondition tells of a project that does not store passwords.
func (c *Client) RolePassword(ctx context.Context, projectID, branchID, name string) (string, error) {
	if err := need("project id", projectID, "branch id", branchID, "role name", name); err != nil {
		return "", err
	}
	out, err := answer[api.RolePasswordResponse](c.api.GetProjectBranchRolePassword(ctx, projectID, branchID, name))
	if err != nil {
		return "", err
	}
	return out.Password, nil
}

// ConnectionURI says which connection string to build. Role and Database are required.
type ConnectionURI struct {
	BranchID   string // default: the default branch
	EndpointID string // default: the branch's read_write endpoint
	Role       string
	Database   string
	Pooled     bool // use the pooled host
}

// ConnectionURI builds a connection string that holds the role's password.
func (c *Client) ConnectionURI(ctx context.Context, projectID string, q ConnectionURI) (string, error) {
	if err := need("project id", projectID); err != nil {
		return "", err
	}
	out, err := answer[api.ConnectionURIResponse](c.api.GetConnectionURI(ctx, projectID, &api.GetConnectionURIParams{
		BranchID: opt(q.BranchID), EndpointID: opt(q.EndpointID), RoleName: q.Role, DatabaseName: q.Database, Pooled: &q.Pooled,
	}))
	if err != nil {
		return "", err
	}
	return out.URI, nil
}
