package control

import (
	"encoding/json"
	"time"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/postgres"
)

// Optional is a field of a PATCH: left alone, set, or cleared.
type Optional[T any] struct {
	Set   bool
	Value *T // nil clears
}

// ConnectionURI is one way to connect.
type ConnectionURI struct {
	URI        string
	Database   string
	Password   string
	Role       string
	Host       string // as shown to clients, with ":port" when the advertised port is not 5432
	PoolerHost string
}

// EndpointView is an endpoint with what is computed for clients.
type EndpointView struct {
	core.Endpoint
	Host       string // see ConnectionURI
	PoolerHost string
	ProxyHost  string
	Version    string // of the running PostgreSQL build; "" when unknown
	Runtime    *EndpointRuntime
}

// EndpointRuntime is how a compute is doing; nil fields are unknown or do not apply.
type EndpointRuntime struct {
	SizeCU   *float64       // size now
	SizeNote string         // what keeps the size from what was asked for
	LagBytes *int64         // WAL of the primary that a replica has not replayed
	Lag      *time.Duration // age of the oldest change that a replica has not replayed; 0 when there is none
}

// ProjectView is a project with what is computed for clients.
type ProjectView struct {
	core.Project
	ProxyHost  string
	OwnerEmail string
	OwnerName  string
}

// PreloadLibrary is a library that computes can preload.
type PreloadLibrary = postgres.Library

// EndpointSpec asks for an endpoint; nil fields take the project's defaults.
type EndpointSpec struct {
	Type           core.EndpointType
	Name           string
	RegionID       string // "" or the project's
	MinCU, MaxCU   *float64
	Provisioner    string
	PGSettings     map[string]string
	Preload        *core.PreloadLibraries // nil: as the project says
	PgBouncer      bool                   // asks for settings of a PgBouncer
	Passwordless   *bool
	PoolerEnabled  *bool
	PoolerMode     string
	SuspendTimeout *int64 // seconds
	Disabled       bool
}

// EndpointPatch changes an endpoint; nil fields stay.
type EndpointPatch struct {
	BranchID       *string // only its own branch is accepted
	Name           *string
	MinCU, MaxCU   *float64
	Provisioner    *string
	PGSettings     map[string]string // nil stays
	Preload        Optional[core.PreloadLibraries]
	PgBouncer      bool // see EndpointSpec
	Passwordless   *bool
	PoolerEnabled  *bool
	PoolerMode     *string
	SuspendTimeout *int64
	Disabled       *bool
}

// EndpointResult is an endpoint and the operations that a call started, states as committed.
type EndpointResult struct {
	Endpoint   EndpointView
	Operations []core.Operation
}

// DefaultsSpec sets the defaults of new endpoints; nil fields stay as they are.
type DefaultsSpec struct {
	MinCU, MaxCU   *float64
	SuspendTimeout *int64
	PGSettings     map[string]string
	PgBouncer      bool // see EndpointSpec
}

// CreateProject asks for a project; zero fields take the defaults.
type CreateProject struct {
	OrgID            string
	Name             string
	RegionID         string
	PGVersion        int
	Provisioner      string
	StorePasswords   *bool
	HistoryRetention *int64
	Defaults         DefaultsSpec
	Settings         json.RawMessage // ProjectSettings as sent; nil when absent
	BranchName       string
	Annotation       map[string]string // of the default branch
	RoleName         string
	DatabaseName     string
}

// ProjectCreated is everything that a project starts with.
type ProjectCreated struct {
	Project    ProjectView
	Branch     core.Branch
	Endpoints  []EndpointView
	Roles      []core.Role // with passwords
	Databases  []core.Database
	Operations []core.Operation
	URIs       []ConnectionURI
}

// ProjectPatch changes a project; nil fields stay.
type ProjectPatch struct {
	Name             *string
	HistoryRetention *int64
	Defaults         *DefaultsSpec
	Settings         json.RawMessage // merged into the settings, key by key at the top level
}

// ProjectResult is a project and the operations that a call started.
type ProjectResult struct {
	Project    ProjectView
	Operations []core.Operation
}

// ListProjects selects a page of projects, ordered by id.
type ListProjects struct {
	Limit  int    // 1 … 400
	Cursor string // the last id of the page before
	Search string // part of a name or an id
	OrgID  string
}

// ProjectPage is a page of projects.
type ProjectPage struct {
	Projects []ProjectView
	Cursor   string // last id; the cursor that was asked for when the page is empty
}

// URIParams selects what a connection string points to; zero fields take the defaults.
type URIParams struct {
	BranchID   string
	EndpointID string
	Database   string
	Role       string
	Pooled     bool
}

// CreateBranch asks for a branch.
type CreateBranch struct {
	Name            string
	ParentID        string // "" means the default branch
	ParentLSN       string
	ParentTimestamp *time.Time
	Protected       bool
	Archived        bool
	InitSource      string // "", parent-data, schema-only
	ExpiresAt       *time.Time
	Annotation      map[string]string
	Endpoints       []EndpointSpec
}

// BranchCreated is everything that a new branch starts with.
type BranchCreated struct {
	Branch     core.Branch
	Endpoints  []EndpointView
	Operations []core.Operation
	Roles      []core.Role
	Databases  []core.Database
	URIs       []ConnectionURI
}

// Moment is a point in a branch's history; the zero value is its head.
type Moment struct {
	LSN  string     // position in its WAL
	Time *time.Time // not together with LSN
}

// SchemaParams selects a schema.
type SchemaParams struct {
	Database string
	At       Moment
	Tables   bool // a description of the tables instead of SQL
}

// Schema is one of SQL and Tables.
type Schema struct {
	SQL    string
	Tables []Table
}

// What a table is described by.
type (
	Table      = postgres.Table
	Column     = postgres.Column
	Constraint = postgres.Constraint
)

// CompareParams selects what to compare.
type CompareParams struct {
	Database     string
	At           Moment // of the branch
	BaseBranchID string // "" means the parent
	BaseAt       Moment
}

// ListBranches selects a page of branches.
type ListBranches struct {
	Search    string
	SortBy    string // name, created_at, updated_at
	SortOrder string // asc, desc
	Limit     int    // 1 … 10000; 0 means all of them up to 10000
	Cursor    string
}

// BranchPage is a page of branches.
type BranchPage struct {
	Branches  []core.Branch
	SortBy    string
	SortOrder string // ASC or DESC
	Next      string // "" when the page is not full
}

// BranchPatch changes a branch; nil fields stay.
type BranchPatch struct {
	Name      *string
	Protected *bool
	ExpiresAt Optional[time.Time]
}

// BranchResult is a branch and the operations that a call started.
type BranchResult struct {
	Branch     core.Branch
	Operations []core.Operation
}

// DatabasePatch changes a database; nil fields stay.
type DatabasePatch struct {
	Name      *string
	OwnerName *string
}

// DatabaseResult is a database and the operations that a call started.
type DatabaseResult struct {
	Database   core.Database
	Operations []core.Operation
}

// CreateRole asks for a role.
type CreateRole struct {
	Name    string
	NoLogin bool
}

// RoleResult is a role, with its password on creation and reset, and the operations that a call started.
type RoleResult struct {
	Role       core.Role
	Operations []core.Operation
}

// OperationPage is a page of operations, newest first.
type OperationPage struct {
	Operations []core.Operation
	Cursor     string // created_at of the last, RFC 3339 with microseconds; "" when the page is empty
}

// KeyCreated is a new key with its secret, which cannot be read again.
type KeyCreated struct {
	Key    core.APIKey
	Secret string
}

// Region is a place where projects can be.
type Region struct {
	ID, Name string
	Default  bool
}
