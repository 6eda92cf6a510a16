package core

import (
	"encoding/json"
	"time"
)

// EndpointDefaults are the settings that new endpoints of a project start with.
type EndpointDefaults struct {
	MinCU          float64           // compute units: 1 CU = 1 vCPU + 4 GiB
	MaxCU          float64           // ≥ MinCU
	SuspendTimeout int64             // seconds; -1 never, 0 the default of 300
	PGSettings     map[string]string // extra PostgreSQL settings
}

// Project owns branches; everything in it runs one major version of PostgreSQL.
type Project struct {
	ID                string
	OrgID             string
	CreatedBy         string // user id; "" when made with an organization's key
	Name              string
	RegionID          string
	PGVersion         int // major: 14 … 18
	Provisioner       string
	Defaults          EndpointDefaults
	Settings          json.RawMessage // the API's ProjectSettings, kept as sent and completed with defaults
	StorePasswords    bool
	HistoryRetention  int64 // seconds
	ComputeLastActive *time.Time
	CreatedAt         time.Time
	UpdatedAt         time.Time
	Deleting          bool
	Usage             Usage // of the consumption period; not read everywhere
}

// BranchState is what a branch is, or is becoming.
type BranchState string

// The states of a branch.
const (
	BranchInit           BranchState = "init"
	BranchReady          BranchState = "ready"
	BranchStorageDeleted BranchState = "storage_deleted"
)

// Branch is a copy-on-write copy of its parent at one LSN; a root branch has no parent.
type Branch struct {
	ID              string
	ProjectID       string
	ParentID        string // "" for a root
	ParentLSN       LSN    // where the branch forked; 0 for a root
	ParentTimestamp *time.Time
	Name            string
	State           BranchState
	PendingState    BranchState // "" when nothing is pending
	StateReason     string      // why the branch stays in init with nothing pending
	StateChangedAt  time.Time
	Default         bool
	Protected       bool
	InitSource      string // parent-data or schema-only
	ExpiresAt       *time.Time
	TTL             time.Duration // from when ExpiresAt was set until ExpiresAt; 0 without
	LogicalSize     *int64        // bytes over all databases at the last look; nil until known
	CreatedBy       string        // user id
	CreatedByName   string
	CreationSource  string
	CreatedAt       time.Time
	UpdatedAt       time.Time
	Annotation      map[string]string
	AnnotatedAt     *time.Time
	Usage           Usage // of the consumption period; not read everywhere

	// Storage, not shown to clients.
	VolumeID    string          // "" until the volume exists
	Incarnation int             // numbers the WAL directories of the branch
	Promote     bool            // the volume is a fresh fork: its next start must end recovery on a new timeline
	Setup       json.RawMessage // roles and databases that the next start still has to apply; see control
	Deleting    bool
}

// EndpointType says what an endpoint's compute may do.
type EndpointType string

// The endpoint types.
const (
	EndpointReadWrite EndpointType = "read_write"
	EndpointReadOnly  EndpointType = "read_only"
)

// EndpointState is what a compute is, or is becoming.
type EndpointState string

// The states of an endpoint.
const (
	EndpointInit   EndpointState = "init"
	EndpointActive EndpointState = "active"
	EndpointIdle   EndpointState = "idle"
)

// DefaultSuspendTimeout is what a suspend timeout of 0 means.
const DefaultSuspendTimeout = 300 * time.Second

// PreloadLibraries chooses what a compute preloads, as the API writes it.
type PreloadLibraries struct {
	UseDefaults *bool    `json:"use_defaults,omitempty"` // nil: yes
	Libraries   []string `json:"enabled_libraries,omitempty"`
}

// Endpoint is the address of a compute; it outlives the process.
type Endpoint struct {
	ID             string
	ProjectID      string
	BranchID       string
	RegionID       string
	Name           string
	Type           EndpointType
	MinCU          float64
	MaxCU          float64
	Provisioner    string
	PGSettings     map[string]string
	Preload        *PreloadLibraries // nil: as the project says
	PoolerEnabled  bool
	SuspendTimeout int64 // seconds; see EndpointDefaults
	Disabled       bool
	State          EndpointState
	PendingState   EndpointState // "" when nothing is pending
	LastActive     *time.Time
	StartedAt      *time.Time
	SuspendedAt    *time.Time
	CreationSource string
	CreatedAt      time.Time
	UpdatedAt      time.Time
	Deleting       bool
}

// IdleTimeout is how long the endpoint may be unused before it is suspended; ok is false when it never is.
func (e *Endpoint) IdleTimeout() (d time.Duration, ok bool) {
	switch {
	case e.SuspendTimeout < 0:
		return 0, false
	case e.SuspendTimeout == 0:
		return DefaultSuspendTimeout, true
	default:
		return time.Duration(e.SuspendTimeout) * time.Second, true
	}
}

// Role is a PostgreSQL role of a branch.
type Role struct {
	BranchID  string
	Name      string
	Protected bool
	NoLogin   bool
	Password  string // clear text; set only on creation, reset and reveal
	Verifier  string // SCRAM-SHA-256$…; "" when the role cannot log in with a password
	Sealed    []byte // the encrypted password; nil when it is not stored
	CreatedAt time.Time
	UpdatedAt time.Time
}

// Database is a PostgreSQL database of a branch.
type Database struct {
	ID        int64
	BranchID  string
	Name      string
	OwnerName string
	CreatedAt time.Time
	UpdatedAt time.Time
}

// OperationStatus is where an operation stands.
type OperationStatus string

// The statuses of an operation.
const (
	OpScheduling OperationStatus = "scheduling"
	OpRunning    OperationStatus = "running"
	OpFinished   OperationStatus = "finished"
	OpFailed     OperationStatus = "failed"
	OpError      OperationStatus = "error"
	OpCancelling OperationStatus = "cancelling"
	OpCancelled  OperationStatus = "cancelled"
	OpSkipped    OperationStatus = "skipped"
)

// Done tells whether nothing more will happen to the operation.
func (s OperationStatus) Done() bool {
	return s == OpFinished || s == OpFailed || s == OpCancelled || s == OpSkipped
}

// OperationAction is what an operation does.
type OperationAction string

// The actions that Bough runs.
const (
	ActionCreateTimeline OperationAction = "create_timeline"
	ActionCreateBranch   OperationAction = "create_branch"
	ActionStartCompute   OperationAction = "start_compute"
	ActionSuspendCompute OperationAction = "suspend_compute"
	ActionApplyConfig    OperationAction = "apply_config"
	ActionDeleteTimeline OperationAction = "delete_timeline"
)

// Operation is one durable step of work on a branch.
type Operation struct {
	ID            string // UUID
	Seq           int64  // order of creation
	ProjectID     string
	BranchID      string
	EndpointID    string // "" when the work is not on an endpoint
	Action        OperationAction
	Status        OperationStatus
	Error         string // safe to show; "" unless failed
	FailuresCount int
	CreatedAt     time.Time
	UpdatedAt     time.Time
	StartedAt     *time.Time // first claim
	TotalDuration time.Duration
	RequestID     string
	Params        json.RawMessage // what the action needs beyond the rows
}

// User is a person with an account.
type User struct {
	ID        string // UUID
	Email     string
	Name      string
	LastName  string
	CreatedAt time.Time
}

// Organization owns projects.
type Organization struct {
	ID        string
	Handle    string
	Name      string
	CreatedAt time.Time
	UpdatedAt time.Time
}

// APIKey is the record of a key; its secret is shown once, on creation.
type APIKey struct {
	ID               int64
	Name             string
	Hash             []byte // SHA-256 of the secret
	UserID           string // owner of a personal key; creator of an organization's
	UserName         string
	UserEmail        string // read with the key's hash only
	OrgID            string // set on organization keys
	ProjectID        string // set on project-scoped keys
	CreatedAt        time.Time
	LastUsedAt       *time.Time
	LastUsedFromAddr string
	Revoked          bool
}

// The roles of a membership.
const (
	RoleAdmin  = "admin"
	RoleMember = "member"
)

// Membership makes a user a member of an organization.
type Membership struct {
	ID       string // UUID
	OrgID    string
	UserID   string
	Email    string // of the user; not read everywhere
	Role     string // RoleAdmin or RoleMember
	JoinedAt time.Time
}

// Invitation asks someone to become a member of an organization.
type Invitation struct {
	ID         string // UUID
	OrgID      string
	OrgName    string // not read everywhere
	Email      string // lower case
	Role       string // RoleAdmin or RoleMember
	InvitedBy  string // id of the user
	InvitedAt  time.Time
	ExpiresAt  time.Time
	TokenHash  []byte // SHA-256 of what the link holds
	AcceptedAt *time.Time
	MailDueAt  *time.Time // nil: there is no letter to send
	MailTries  int
}

// ProjectPermission shares a project with whoever has an e-mail address.
type ProjectPermission struct {
	ID        string // UUID
	ProjectID string
	Email     string // lower case
	GrantedAt time.Time
}

// TransferRequest lets whoever knows its id take a project over.
type TransferRequest struct {
	ID        string // UUID; a secret
	ProjectID string
	CreatedAt time.Time
	ExpiresAt time.Time
}

// JWKS is where the keys of a project's tokens are published (RFC 7517).
type JWKS struct {
	ID           string // UUID
	ProjectID    string
	BranchID     string // "": every branch
	URL          string
	ProviderName string
	Audience     string // "": any
	RoleNames    []string
	CreatedAt    time.Time
	UpdatedAt    time.Time
}

// Caller is who makes a call, as the key says, and which call it is.
type Caller struct {
	KeyID     int64
	UserID    string // "" for organization keys
	UserName  string
	UserEmail string   // "" for organization keys
	OrgID     string   // "" for personal keys
	OrgIDs    []string // the organizations that the key reaches
	AdminOf   []string // those of them that the user is an admin of
	ProjectID string   // "" unless the key is bound to one project
	Operation string   // operationId of the call: what the rules are asked for
	RequestID string
	Once      *Once // set on a call that must make what it makes once
}

// Once is what a call with an Idempotency-Key brings to the use case, which stores the answer with what it makes.
type Once struct {
	Key     string
	Request []byte                         // hash of the call: another one under the same key is refused
	Answer  func(made any) ([]byte, error) // the use case's result as the client will see it, encrypted
}
