package sdk

import "github.com/boughdb/bough/api"

// The contract's types that the methods take and return, so that most callers import this package only. Optional fields
// are pointers: new("main") makes one.
type (
	Project                 = api.Project
	ProjectListItem         = api.ProjectListItem
	ProjectCreate           = api.ProjectCreate
	ProjectCreateBranch     = api.ProjectCreateBranch
	ProjectCreated          = api.ProjectCreated
	ProjectUpdate           = api.ProjectUpdate
	ProjectSettings         = api.ProjectSettings
	AllowedIPs              = api.AllowedIps
	ProjectQuota            = api.ProjectQuota
	ProjectOperations       = api.ProjectOperations
	DefaultEndpointSettings = api.DefaultEndpointSettings

	Branch               = api.Branch
	BranchCreate         = api.BranchCreate
	BranchCreateEndpoint = api.BranchCreateEndpoint
	BranchCreateRequest  = api.BranchCreateRequest
	BranchCreated        = api.BranchCreated
	BranchUpdate         = api.BranchUpdate
	BranchOperations     = api.BranchOperations
	BranchWithAnnotation = api.BranchWithAnnotation

	Endpoint           = api.Endpoint
	EndpointCreate     = api.EndpointCreate
	EndpointUpdate     = api.EndpointUpdate
	EndpointOperations = api.EndpointOperations
	EndpointSettings   = api.EndpointSettings
	PreloadLibraries   = api.PreloadLibraries

	Database           = api.Database
	DatabaseCreate     = api.DatabaseCreate
	DatabaseUpdate     = api.DatabaseUpdate
	DatabaseOperations = api.DatabaseOperations

	Role           = api.Role
	RoleCreate     = api.RoleCreate
	RoleOperations = api.RoleOperations

	Operation = api.Operation

	ProjectConsumption = api.ProjectConsumption
	ConsumptionFrame   = api.ConsumptionFrame

	APIKey        = api.APIKey
	APIKeyCreated = api.APIKeyCreated
	APIKeyRevoked = api.APIKeyRevoked
	User          = api.CurrentUser
	Organization  = api.Organization
	Region        = api.Region

	Member            = api.MemberWithUser
	OrgAPIKey         = api.OrgAPIKey
	OrgAPIKeyCreated  = api.OrgAPIKeyCreated
	OrgAPIKeyRevoked  = api.OrgAPIKeyRevoked
	Invitation        = api.Invitation
	InvitationCreate  = api.InvitationCreate
	ProjectPermission = api.ProjectPermission
	TransferRequest   = api.ProjectTransferRequest
	JWKS              = api.JWKS
	JWKSCreate        = api.AddProjectJWKSRequest
)
