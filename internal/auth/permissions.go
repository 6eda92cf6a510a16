package auth

import (
	"errors"
	"slices"
	"strings"

	"github.com/boughdb/bough/internal/core"
)

// Standing is what a caller is to the thing that a call names.
type Standing uint8

// The standings. A caller that may not see the thing has none.
const (
	Stranger   Standing = 0
	Admin      Standing = 1 << (iota - 1) // personal key; its owner is an admin of the organization
	Member                                // personal key; its owner is a member of the organization
	Guest                                 // personal key; the project is shared with its owner
	OrgKey                                // key of the organization
	ProjectKey                            // key for this one project, or for one project of this organization
	Person                                // personal key, for calls that name neither organization nor project
)

var standingNames = []struct {
	standing Standing
	name     string
}{
	{Admin, "the personal key of an admin of the organization"},
	{Member, "of a member"},
	{Guest, "of someone the project is shared with"},
	{Person, "a personal key"},
	{OrgKey, "an organization API key"},
	{ProjectKey, "a project-scoped API key"},
}

// names lists the standings in a set.
func (s Standing) names() string {
	var out []string
	for _, n := range standingNames {
		if s&n.standing != 0 {
			out = append(out, n.name)
		}
	}
	return strings.Join(out, ", ")
}

// Scope is what a call is about.
type Scope uint8

// The scopes.
const (
	Anything     Scope = iota // nothing in particular: the answer holds what the caller may see
	Account                   // the caller's own user
	Organization              // one organization
	Project                   // one project, or something in it
)

// Rule says who may do something.
type Rule struct {
	Scope Scope
	Allow Standing
}

const (
	anyone   = Person | OrgKey | ProjectKey
	insiders = Admin | Member | Guest | OrgKey | ProjectKey
)

// What is finer than an operation: it depends on the body, or on whose thing it is.
const (
	// OrgKeyForAll is createOrgApiKey without a project.
	OrgKeyForAll = "createOrgApiKey: for the whole organization"
	// RevokeAnyOrgKey is revokeOrgApiKey for a key that is not the caller's own project-scoped one.
	RevokeAnyOrgKey = "revokeOrgApiKey: a key of someone else or of the whole organization"
	// TransferInto is what a transfer needs in the organization that gets the project.
	TransferInto = "transfer: the organization that gets the project"
)

// rules is the one table of who may do what. Keys are operationIds of the contract, and the finer ones above. Members do
// everything in projects but delete them or give them away; an organization's key does so too and cannot make more keys or
// members, so that a leaked one ends when it is revoked.
var rules = map[string]Rule{
	// the caller's own account
	"listApiKeys":                   {Account, Person},
	"createApiKey":                  {Account, Person},
	"revokeApiKey":                  {Account, Person},
	"getCurrentUserInfo":            {Account, Person},
	"getCurrentUserOrganizations":   {Account, Person},
	"transferProjectsFromUserToOrg": {Account, Person},
	"listSharedProjects":            {Account, Person},

	// whatever the caller may see
	"getAuthDetails":                    {Anything, anyone},
	"getActiveRegions":                  {Anything, anyone},
	"listProjects":                      {Anything, anyone},
	"getConsumptionHistoryPerProject":   {Anything, Person | OrgKey},
	"getConsumptionHistoryPerProjectV2": {Anything, Person | OrgKey},
	"getConsumptionHistoryPerBranchV2":  {Anything, Person | OrgKey},
	"acceptProjectTransferRequest":      {Anything, Person | OrgKey}, // the request's id is the proof

	// one organization
	"getOrganization":               {Organization, Admin | Member | OrgKey},
	"getOrganizationMembers":        {Organization, Admin | Member | OrgKey},
	"getOrganizationMember":         {Organization, Admin | Member | OrgKey},
	"updateOrganizationMember":      {Organization, Admin},
	"removeOrganizationMember":      {Organization, Admin},
	"getOrganizationInvitations":    {Organization, Admin | Member | OrgKey},
	"createOrganizationInvitations": {Organization, Admin},
	"listOrgApiKeys":                {Organization, Admin | Member | OrgKey},
	"createOrgApiKey":               {Organization, Admin | Member},
	OrgKeyForAll:                    {Organization, Admin},
	"revokeOrgApiKey":               {Organization, Admin | Member},
	RevokeAnyOrgKey:                 {Organization, Admin},
	"transferProjectsFromOrgToOrg":  {Organization, Admin | OrgKey},
	TransferInto:                    {Organization, Admin | Member | OrgKey},
	"createProject":                 {Organization, Admin | Member | OrgKey},

	// one project
	"getProject":                       {Project, insiders},
	"updateProject":                    {Project, insiders},
	"deleteProject":                    {Project, Admin | OrgKey},
	"recoverProject":                   {Project, Admin | OrgKey},
	"getConnectionURI":                 {Project, insiders},
	"getAvailablePreloadLibraries":     {Project, insiders},
	"listProjectPermissions":           {Project, insiders},
	"grantPermissionToProject":         {Project, insiders &^ ProjectKey},
	"revokePermissionFromProject":      {Project, insiders &^ ProjectKey},
	"createProjectTransferRequest":     {Project, Admin | OrgKey},
	"getProjectJWKS":                   {Project, insiders},
	"addProjectJWKS":                   {Project, insiders},
	"deleteProjectJWKS":                {Project, insiders},
	"listProjectOperations":            {Project, insiders},
	"getProjectOperation":              {Project, insiders},
	"listProjectBranches":              {Project, insiders},
	"countProjectBranches":             {Project, insiders},
	"createProjectBranch":              {Project, insiders},
	"getProjectBranch":                 {Project, insiders},
	"updateProjectBranch":              {Project, insiders},
	"deleteProjectBranch":              {Project, insiders},
	"setDefaultProjectBranch":          {Project, insiders},
	"restoreProjectBranch":             {Project, insiders},
	"finalizeRestoreBranch":            {Project, insiders},
	"recoverProjectBranch":             {Project, insiders},
	"getProjectBranchSchema":           {Project, insiders},
	"getProjectBranchSchemaComparison": {Project, insiders},
	"createSnapshot":                   {Project, insiders},
	"listSnapshots":                    {Project, insiders},
	"deleteSnapshot":                   {Project, insiders},
	"updateSnapshot":                   {Project, insiders},
	"restoreSnapshot":                  {Project, insiders},
	"getSnapshotSchedule":              {Project, insiders},
	"setSnapshotSchedule":              {Project, insiders},
	"listProjectBranchEndpoints":       {Project, insiders},
	"listProjectEndpoints":             {Project, insiders},
	"createProjectEndpoint":            {Project, insiders},
	"getProjectEndpoint":               {Project, insiders},
	"updateProjectEndpoint":            {Project, insiders},
	"deleteProjectEndpoint":            {Project, insiders},
	"startProjectEndpoint":             {Project, insiders},
	"suspendProjectEndpoint":           {Project, insiders},
	"restartProjectEndpoint":           {Project, insiders},
	"listProjectBranchDatabases":       {Project, insiders},
	"createProjectBranchDatabase":      {Project, insiders},
	"getProjectBranchDatabase":         {Project, insiders},
	"updateProjectBranchDatabase":      {Project, insiders},
	"deleteProjectBranchDatabase":      {Project, insiders},
	"listProjectBranchRoles":           {Project, insiders},
	"createProjectBranchRole":          {Project, insiders},
	"getProjectBranchRole":             {Project, insiders},
	"deleteProjectBranchRole":          {Project, insiders},
	"getProjectBranchRolePassword":     {Project, insiders},
	"resetProjectBranchRolePassword":   {Project, insiders},
}

// RuleOf returns the row of an operation.
func RuleOf(operation string) (Rule, bool) {
	r, ok := rules[operation]
	return r, ok
}

// In returns the caller's standing in an organization.
func In(c core.Caller, orgID string) Standing {
	switch {
	case !slices.Contains(c.OrgIDs, orgID):
		return Stranger
	case c.ProjectID != "":
		return ProjectKey
	case c.OrgID != "":
		return OrgKey
	case slices.Contains(c.AdminOf, orgID):
		return Admin
	default:
		return Member
	}
}

// On returns the caller's standing on a project of an organization; guest says whether it is shared with the caller's user.
func On(c core.Caller, projectID, orgID string, guest bool) Standing {
	switch s := In(c, orgID); {
	case s == ProjectKey && c.ProjectID != projectID:
		return Stranger
	case s == Stranger && guest && c.UserID != "":
		return Guest
	default:
		return s
	}
}

// Apart returns the caller's standing for a call that names neither an organization nor a project.
func Apart(c core.Caller) Standing {
	switch {
	case c.ProjectID != "":
		return ProjectKey
	case c.OrgID != "":
		return OrgKey
	case c.UserID != "":
		return Person
	default:
		return Stranger
	}
}

// Permit answers nil when who has that standing may do the operation. To a stranger it answers missing.
func Permit(operation string, s Standing, missing error) error {
	rule, ok := rules[operation]
	switch {
	case !ok:
		return core.Wrap(errors.New("no rule says who may do "+operation), "auth.permit", "")
	case s == Stranger:
		return missing
	case s&rule.Allow != 0:
		return nil
	case rule.Scope == Account:
		return core.NotFoundf("not available to organization API keys; use a personal API key")
	}
	return core.Errorf(core.KindForbidden, "", "this API key may not do that (%s); it takes %s", operation, rule.Allow.names())
}
