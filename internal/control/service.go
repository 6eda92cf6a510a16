// Package control holds the use cases and the state machines: the only writer of state. A change and the operations
// that carry it out are committed in one transaction.
package control

import (
	"context"

	"github.com/boughdb/bough/internal/core"
)

// Service is the use cases. Every method checks first what the caller may see: what it may not is KindNotFound.
type Service struct {
}

var errNotYet = core.Errorf(core.KindNotImplemented, "NOT_IMPLEMENTED", "not built yet")

// ListProjects returns a page of the projects that the caller can see.
func (s *Service) ListProjects(ctx context.Context, c core.Caller, p ListProjects) (ProjectPage, error) {
	return ProjectPage{}, errNotYet
}

// CreateProject makes a project with its default branch, role, database and endpoint.
func (s *Service) CreateProject(ctx context.Context, c core.Caller, p CreateProject) (ProjectCreated, error) {
	return ProjectCreated{}, errNotYet
}

// GetProject returns one project.
func (s *Service) GetProject(ctx context.Context, c core.Caller, id string) (ProjectView, error) {
	return ProjectView{}, errNotYet
}

// UpdateProject changes a project.
func (s *Service) UpdateProject(ctx context.Context, c core.Caller, id string, p ProjectPatch) (ProjectResult, error) {
	return ProjectResult{}, errNotYet
}

// DeleteProject deletes a project with everything in it.
func (s *Service) DeleteProject(ctx context.Context, c core.Caller, id string) (ProjectView, error) {
	return ProjectView{}, errNotYet
}

// ConnectionURI builds a connection string with the role's password.
func (s *Service) ConnectionURI(ctx context.Context, c core.Caller, projectID string, p URIParams) (string, error) {
	return "", errNotYet
}

// CreateBranch makes a branch of the parent's head.
func (s *Service) CreateBranch(ctx context.Context, c core.Caller, projectID string, p CreateBranch) (BranchCreated, error) {
	return BranchCreated{}, errNotYet
}

// ListBranches returns a page of a project's branches.
func (s *Service) ListBranches(ctx context.Context, c core.Caller, projectID string, p ListBranches) (BranchPage, error) {
	return BranchPage{}, errNotYet
}

// GetBranch returns one branch.
func (s *Service) GetBranch(ctx context.Context, c core.Caller, projectID, id string) (core.Branch, error) {
	return core.Branch{}, errNotYet
}

// UpdateBranch renames or protects a branch, or sets its expiry.
func (s *Service) UpdateBranch(ctx context.Context, c core.Caller, projectID, id string, p BranchPatch) (BranchResult, error) {
	return BranchResult{}, errNotYet
}

// DeleteBranch deletes a branch without children, its endpoints and its data.
func (s *Service) DeleteBranch(ctx context.Context, c core.Caller, projectID, id string) (BranchResult, error) {
	return BranchResult{}, errNotYet
}

// ListEndpoints returns a project's endpoints; with branchID, those of that branch.
func (s *Service) ListEndpoints(ctx context.Context, c core.Caller, projectID, branchID string) ([]EndpointView, error) {
	return nil, errNotYet
}

// CreateEndpoint adds an endpoint to a branch and starts it.
func (s *Service) CreateEndpoint(ctx context.Context, c core.Caller, projectID, branchID string, p EndpointSpec) (EndpointResult, error) {
	return EndpointResult{}, errNotYet
}

// GetEndpoint returns one endpoint.
func (s *Service) GetEndpoint(ctx context.Context, c core.Caller, projectID, id string) (EndpointView, error) {
	return EndpointView{}, errNotYet
}

// UpdateEndpoint changes an endpoint.
func (s *Service) UpdateEndpoint(ctx context.Context, c core.Caller, projectID, id string, p EndpointPatch) (EndpointResult, error) {
	return EndpointResult{}, errNotYet
}

// DeleteEndpoint stops and removes an endpoint; its branch stays.
func (s *Service) DeleteEndpoint(ctx context.Context, c core.Caller, projectID, id string) (EndpointResult, error) {
	return EndpointResult{}, errNotYet
}

// StartEndpoint wakes an endpoint's compute.
func (s *Service) StartEndpoint(ctx context.Context, c core.Caller, projectID, id string) (EndpointResult, error) {
	return EndpointResult{}, errNotYet
}

// SuspendEndpoint stops an endpoint's compute.
func (s *Service) SuspendEndpoint(ctx context.Context, c core.Caller, projectID, id string) (EndpointResult, error) {
	return EndpointResult{}, errNotYet
}

// RestartEndpoint stops and starts an endpoint's compute.
func (s *Service) RestartEndpoint(ctx context.Context, c core.Caller, projectID, id string) (EndpointResult, error) {
	return EndpointResult{}, errNotYet
}

// ListDatabases returns a branch's databases, those made in SQL among them.
func (s *Service) ListDatabases(ctx context.Context, c core.Caller, projectID, branchID string) ([]core.Database, error) {
	return nil, errNotYet
}

// CreateDatabase makes a database that owner owns.
func (s *Service) CreateDatabase(ctx context.Context, c core.Caller, projectID, branchID, name, owner string) (DatabaseResult, error) {
	return DatabaseResult{}, errNotYet
}

// GetDatabase returns one database.
func (s *Service) GetDatabase(ctx context.Context, c core.Caller, projectID, branchID, name string) (core.Database, error) {
	return core.Database{}, errNotYet
}

// UpdateDatabase renames a database or changes its owner.
func (s *Service) UpdateDatabase(ctx context.Context, c core.Caller, projectID, branchID, name string, p DatabasePatch) (DatabaseResult, error) {
	return DatabaseResult{}, errNotYet
}

// DeleteDatabase drops a database and ends its sessions.
func (s *Service) DeleteDatabase(ctx context.Context, c core.Caller, projectID, branchID, name string) (DatabaseResult, error) {
	return DatabaseResult{}, errNotYet
}

// ListRoles returns a branch's roles, those made in SQL among them.
func (s *Service) ListRoles(ctx context.Context, c core.Caller, projectID, branchID string) ([]core.Role, error) {
	return nil, errNotYet
}

// CreateRole makes a role; the result carries its password.
func (s *Service) CreateRole(ctx context.Context, c core.Caller, projectID, branchID string, p CreateRole) (RoleResult, error) {
	return RoleResult{}, errNotYet
}

// GetRole returns one role.
func (s *Service) GetRole(ctx context.Context, c core.Caller, projectID, branchID, name string) (core.Role, error) {
	return core.Role{}, errNotYet
}

// DeleteRole drops a role that owns no database.
func (s *Service) DeleteRole(ctx context.Context, c core.Caller, projectID, branchID, name string) (RoleResult, error) {
	return RoleResult{}, errNotYet
}

// ResetPassword gives a role a new password; the result carries it.
func (s *Service) ResetPassword(ctx context.Context, c core.Caller, projectID, branchID, name string) (RoleResult, error) {
	return RoleResult{}, errNotYet
}

// RevealPassword returns a role's stored password; KindPrecondition when the project does not store passwords.
func (s *Service) RevealPassword(ctx context.Context, c core.Caller, projectID, branchID, name string) (string, error) {
	return "", errNotYet
}

// ListOperations returns a page of a project's operations, newest first; cursor is a time in RFC 3339.
func (s *Service) ListOperations(ctx context.Context, c core.Caller, projectID string, limit int, cursor string) (OperationPage, error) {
	return OperationPage{}, errNotYet
}

// GetOperation returns one operation.
func (s *Service) GetOperation(ctx context.Context, c core.Caller, projectID, id string) (core.Operation, error) {
	return core.Operation{}, errNotYet
}

// ListKeys returns the caller's personal keys.
func (s *Service) ListKeys(ctx context.Context, c core.Caller) ([]core.APIKey, error) {
	return nil, errNotYet
}

// CreateKey makes a personal key for the caller.
func (s *Service) CreateKey(ctx context.Context, c core.Caller, name string) (KeyCreated, error) {
	return KeyCreated{}, errNotYet
}

// RevokeKey revokes a personal key of the caller.
func (s *Service) RevokeKey(ctx context.Context, c core.Caller, id int64) (core.APIKey, error) {
	return core.APIKey{}, errNotYet
}

// Me returns the caller's user; an organization's key gets KindNotFound.
func (s *Service) Me(ctx context.Context, c core.Caller) (core.User, error) {
	return core.User{}, errNotYet
}

// MyOrganizations returns the organizations that the caller's user is a member of.
func (s *Service) MyOrganizations(ctx context.Context, c core.Caller) ([]core.Organization, error) {
	return nil, errNotYet
}

// GetOrganization returns one organization.
func (s *Service) GetOrganization(ctx context.Context, c core.Caller, id string) (core.Organization, error) {
	return core.Organization{}, errNotYet
}

// Regions returns the regions; the first is the default.
func (s *Service) Regions() []Region { return nil }

// Authenticate finds the caller behind a key's secret; KindUnauthorized when there is none. addr is the client's address.
func (s *Service) Authenticate(ctx context.Context, secret, addr string) (core.Caller, error) {
	return core.Caller{}, errNotYet
}
