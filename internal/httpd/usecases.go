package httpd

import (
	"context"

	"github.com/boughdb/bough/internal/control"
	"github.com/boughdb/bough/internal/core"
)

// Authenticator finds the caller behind the secret of an API key; core.KindUnauthorized when there is none. addr is the
// client's address, for the record of the key's last use.
type Authenticator interface {
	Authenticate(ctx context.Context, secret, addr string) (core.Caller, error)
}

// UseCases is what the door needs from the control plane. Each method checks what the caller may see; an error that is
// not a *core.Error is shown as "internal error".
type UseCases interface {
	Projects
	Libraries
	Branches
	BranchSets
	Schemas
	Endpoints
	Computes
	Databases
	Roles
	Passwords
	Operations
	Answers
	Keys
	Accounts
	Members
	OrgKeys
	Transfers
	Sharing
	JWKS
	Invitations
	Metering
}

// Projects are the use cases of projects.
type Projects interface {
	ListProjects(ctx context.Context, c core.Caller, p control.ListProjects) (control.ProjectPage, error)
	CreateProject(ctx context.Context, c core.Caller, p control.CreateProject) (control.ProjectCreated, error)
	GetProject(ctx context.Context, c core.Caller, id string) (control.ProjectView, error)
	UpdateProject(ctx context.Context, c core.Caller, id string, p control.ProjectPatch) (control.ProjectResult, error)
	DeleteProject(ctx context.Context, c core.Caller, id string) (control.ProjectView, error)
}

// Libraries are the use cases of what is installed for a project's version of PostgreSQL.
type Libraries interface {
	PreloadLibraries(ctx context.Context, c core.Caller, projectID string) ([]control.PreloadLibrary, error)
}

// Branches are the use cases of branches.
type Branches interface {
	CreateBranch(ctx context.Context, c core.Caller, projectID string, p control.CreateBranch) (control.BranchCreated, error)
	ListBranches(ctx context.Context, c core.Caller, projectID string, p control.ListBranches) (control.BranchPage, error)
	GetBranch(ctx context.Context, c core.Caller, projectID, id string) (core.Branch, error)
	UpdateBranch(ctx context.Context, c core.Caller, projectID, id string, p control.BranchPatch) (control.BranchResult, error)
	DeleteBranch(ctx context.Context, c core.Caller, projectID, id string) (control.BranchResult, error)
}

// BranchSets are the use cases of a project's branches as a whole.
type BranchSets interface {
	CountBranches(ctx context.Context, c core.Caller, projectID, search string) (int64, error)
	SetDefaultBranch(ctx context.Context, c core.Caller, projectID, id string) (control.BranchResult, error)
}

// Schemas are the use cases of what is defined in a branch's databases.
type Schemas interface {
	BranchSchema(ctx context.Context, c core.Caller, projectID, branchID string, p control.SchemaParams) (control.Schema, error)
	CompareSchemas(ctx context.Context, c core.Caller, projectID, branchID string, p control.CompareParams) (string, error)
}

// Endpoints are the use cases of endpoints as records.
type Endpoints interface {
	ListEndpoints(ctx context.Context, c core.Caller, projectID, branchID string) ([]control.EndpointView, error)
	CreateEndpoint(ctx context.Context, c core.Caller, projectID, branchID string, p control.EndpointSpec) (control.EndpointResult, error)
	GetEndpoint(ctx context.Context, c core.Caller, projectID, id string) (control.EndpointView, error)
	UpdateEndpoint(ctx context.Context, c core.Caller, projectID, id string, p control.EndpointPatch) (control.EndpointResult, error)
	DeleteEndpoint(ctx context.Context, c core.Caller, projectID, id string) (control.EndpointResult, error)
}

// Computes are the use cases of what runs behind an endpoint.
type Computes interface {
	StartEndpoint(ctx context.Context, c core.Caller, projectID, id string) (control.EndpointResult, error)
	SuspendEndpoint(ctx context.Context, c core.Caller, projectID, id string) (control.EndpointResult, error)
	RestartEndpoint(ctx context.Context, c core.Caller, projectID, id string) (control.EndpointResult, error)
}

// Databases are the use cases of databases.
type Databases interface {
	ListDatabases(ctx context.Context, c core.Caller, projectID, branchID string) ([]core.Database, error)
	CreateDatabase(ctx context.Context, c core.Caller, projectID, branchID, name, owner string) (control.DatabaseResult, error)
	GetDatabase(ctx context.Context, c core.Caller, projectID, branchID, name string) (core.Database, error)
	UpdateDatabase(ctx context.Context, c core.Caller, projectID, branchID, name string, p control.DatabasePatch) (control.DatabaseResult, error)
	DeleteDatabase(ctx context.Context, c core.Caller, projectID, branchID, name string) (control.DatabaseResult, error)
}

// Roles are the use cases of roles.
type Roles interface {
	ListRoles(ctx context.Context, c core.Caller, projectID, branchID string) ([]core.Role, error)
	CreateRole(ctx context.Context, c core.Caller, projectID, branchID string, p control.CreateRole) (control.RoleResult, error)
	GetRole(ctx context.Context, c core.Caller, projectID, branchID, name string) (core.Role, error)
	DeleteRole(ctx context.Context, c core.Caller, projectID, branchID, name string) (control.RoleResult, error)
}

// Passwords are the use cases of role passwords and of the strings that hold them.
type Passwords interface {
	ResetPassword(ctx context.Context, c core.Caller, projectID, branchID, name string) (control.RoleResult, error)
	RevealPassword(ctx context.Context, c core.Caller, projectID, branchID, name string) (string, error)
	ConnectionURI(ctx context.Context, c core.Caller, projectID string, p control.URIParams) (string, error)
}

// Operations are the use cases of operations.
type Operations interface {
	ListOperations(ctx context.Context, c core.Caller, projectID string, limit int, cursor string) (control.OperationPage, error)
	GetOperation(ctx context.Context, c core.Caller, projectID, id string) (core.Operation, error)
}

// Answers are what creates with an Idempotency-Key were answered; see core.Once.
type Answers interface {
	Answered(ctx context.Context, c core.Caller, key string) (request, answer []byte, found bool, err error)
}

// Keys are the use cases of personal API keys.
type Keys interface {
	ListKeys(ctx context.Context, c core.Caller) ([]core.APIKey, error)
	CreateKey(ctx context.Context, c core.Caller, name string) (control.KeyCreated, error)
	RevokeKey(ctx context.Context, c core.Caller, id int64) (core.APIKey, error)
}

// Accounts are the use cases of users, organizations and regions.
type Accounts interface {
	Me(ctx context.Context, c core.Caller) (core.User, error)
	MyOrganizations(ctx context.Context, c core.Caller) ([]core.Organization, error)
	GetOrganization(ctx context.Context, c core.Caller, id string) (core.Organization, error)
	Regions() []control.Region
}

// Members are the use cases of who belongs to an organization.
type Members interface {
	ListMembers(ctx context.Context, c core.Caller, orgID string, p control.ListMembers) (control.MemberPage, error)
	GetMember(ctx context.Context, c core.Caller, orgID, id string) (core.Membership, error)
	UpdateMember(ctx context.Context, c core.Caller, orgID, id, role string) (core.Membership, error)
	RemoveMember(ctx context.Context, c core.Caller, orgID, id string) error
}

// OrgKeys are the use cases of the keys of organizations and of their projects.
type OrgKeys interface {
	ListOrgKeys(ctx context.Context, c core.Caller, orgID string) ([]core.APIKey, error)
	CreateOrgKey(ctx context.Context, c core.Caller, orgID, name, projectID string) (control.KeyCreated, error)
	RevokeOrgKey(ctx context.Context, c core.Caller, orgID string, id int64) (core.APIKey, error)
}

// Transfers are the use cases of projects that change their owner.
type Transfers interface {
	TransferProjects(ctx context.Context, c core.Caller, source, destination string, ids []string) error
	RequestTransfer(ctx context.Context, c core.Caller, projectID string, ttl *int64) (core.TransferRequest, error)
	AcceptTransfer(ctx context.Context, c core.Caller, projectID, requestID, orgID string) error
}

// Sharing are the use cases of projects that others may work on.
type Sharing interface {
	ListSharedProjects(ctx context.Context, c core.Caller, p control.ListProjects) (control.ProjectPage, error)
	ListPermissions(ctx context.Context, c core.Caller, projectID string) ([]core.ProjectPermission, error)
	GrantPermission(ctx context.Context, c core.Caller, projectID, email string) (core.ProjectPermission, error)
	RevokePermission(ctx context.Context, c core.Caller, projectID, id string) (core.ProjectPermission, error)
}

// JWKS are the use cases of where the keys of a project's tokens are published.
type JWKS interface {
	ListJWKS(ctx context.Context, c core.Caller, projectID string) ([]core.JWKS, error)
	AddJWKS(ctx context.Context, c core.Caller, j core.JWKS) (core.JWKS, error)
	DeleteJWKS(ctx context.Context, c core.Caller, projectID, id string) (core.JWKS, error)
}

// Invitations are the use cases of new members. Whoever has a link's token needs no key.
type Invitations interface {
	ListInvitations(ctx context.Context, c core.Caller, orgID string) ([]core.Invitation, error)
	CreateInvitations(ctx context.Context, c core.Caller, orgID string, list []control.Invite) ([]control.InvitationMade, error)
	Invitation(ctx context.Context, token string) (core.Invitation, error)
	AcceptInvitation(ctx context.Context, token, name string) (control.Welcome, error)
}

// Metering are the use cases of what was used.
type Metering interface {
	ProjectConsumption(ctx context.Context, c core.Caller, p control.Consumption) (control.ConsumptionPage, error)
	BranchConsumption(ctx context.Context, c core.Caller, p control.Consumption) (control.ConsumptionPage, error)
}

var (
	_ UseCases      = (*control.Service)(nil)
	_ Authenticator = (*control.Service)(nil)
)
