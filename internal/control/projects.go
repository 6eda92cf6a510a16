package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/internal/store"
)

// setup is what the first start of a project's root branch makes of the template's role and database.
type setup struct {
	Role     string `json:"role"`
	Database string `json:"database"`
}

// Builds lists the PostgreSQL builds that are installed now, oldest major first. An error may come beside builds that can be
// used all the same.
type Builds interface {
	Find(ctx context.Context) ([]postgres.Build, error)
	// Dumper finds a pg_dump for a server of a major version; see postgres.Builds.
	Dumper(ctx context.Context, server int) (postgres.Dumper, error)
}

// build finds the PostgreSQL of a major version, or of the default one for 0: KindInvalid when it is not installed.
func (s *Service) build(ctx context.Context, major int) (postgres.Build, error) {
	builds, err := s.Builds.Find(ctx)
	if err != nil && len(builds) == 0 {
		return postgres.Build{}, err
	}
	if len(builds) == 0 {
		return postgres.Build{}, core.Errorf(core.KindUnavailable, "", "no PostgreSQL is installed on the server; on its machine run: bough postgres install %d", cmp.Or(major, postgres.DefaultMajor))
	}
	if major == 0 {
		b, _ := postgres.Default(builds)
		return b, nil
	}
	var have []string
	for _, b := range builds {
		if b.Major == major {
			return b, nil
		}
		have = append(have, fmt.Sprint(b.Major))
	}
	return postgres.Build{}, core.Invalidf("PostgreSQL %d is not installed on this server; installed: %s; to add it, run on the server's machine: bough postgres install %d", major, strings.Join(have, ", "), major)
}

// installed finds the build of a project that exists; KindUnprocessable when its major version was removed from the machine.
func (s *Service) installed(ctx context.Context, major int) (postgres.Build, error) {
	b, err := s.build(ctx, major)
	if core.IsKind(err, core.KindInvalid) {
		err = core.Errorf(core.KindUnprocessable, "", "%s", core.UserMessage(err))
	}
	return b, err
}

// runnable refuses, before anything is changed, to start a compute of a branch while the storage is full, the major version
// is not there, or a quota is used up.
func (s *Service) runnable(ctx context.Context, q store.Q, projectID, branchID string) error {
	if err := s.full.check(); err != nil {
		return err
	}
	project, err := q.Project(ctx, projectID)
	if err == nil {
		_, err = s.installed(ctx, project.PGVersion)
	}
	if err == nil && quotaOf(project.Settings) != (quota{}) {
		err = s.withinQuota(ctx, q, projectID, branchID)
	}
	return err
}

// orgFor chooses the organization of a new project.
func orgFor(c core.Caller, asked string) (string, error) {
	orgID := asked
	if asked == "" && len(c.OrgIDs) > 0 {
		orgID = c.OrgIDs[0]
	}
	if err := inOrg(c, c.Operation, orgID); err != nil {
		return "", err
	}
	if asked == "" && c.OrgID != "" {
		return "", core.Invalidf("org_id is required with an organization API key; it is %s", c.OrgID)
	}
	return orgID, nil
}

// CreateProject makes a project with its default branch, role, database and endpoint.
func (s *Service) CreateProject(ctx context.Context, c core.Caller, p CreateProject) (ProjectCreated, error) {
	var none ProjectCreated
	orgID, err := orgFor(c, p.OrgID)
	if err != nil {
		return none, err
	}
	build, err := s.build(ctx, p.PGVersion)
	if err != nil {
		return none, err
	}
	project := core.Project{
		ID: core.NewProjectID(), OrgID: orgID, CreatedBy: c.UserID, PGVersion: build.Major,
		Defaults:       core.EndpointDefaults{MinCU: defaultCU, MaxCU: defaultMaxCU},
		StorePasswords: p.StorePasswords == nil || *p.StorePasswords, HistoryRetention: defaultRetention,
	}
	project.Name = cmp.Or(p.Name, project.ID)
	project.RegionID = cmp.Or(p.RegionID, s.Addressing.Region)
	if project.Provisioner, err = checkProvisioner(p.Provisioner); err != nil {
		return none, err
	}
	if project.Defaults, err = p.Defaults.apply(project.Defaults, project.Provisioner); err != nil {
		return none, err
	}
	if p.HistoryRetention != nil {
		project.HistoryRetention = *p.HistoryRetention
	}
	if project.Settings, err = mergeSettings(json.RawMessage(defaultSettings), p.Settings); err != nil {
		return none, err
	}
	if err := checkPreload(p.Settings, build); err != nil {
		return none, err
	}
	branchName := cmp.Or(p.BranchName, "main")
	database := cmp.Or(p.DatabaseName, postgres.DefaultDatabase)
	roleName := p.RoleName
	if roleName == "" {
		roleName = database + "_owner"
		if len(roleName) > 63 {
			return none, core.Invalidf("database_name is too long for the default role %q: give role_name as well", "<database_name>_owner")
		}
	}
	for _, err := range []error{
		checkName("name", project.Name, 256), checkRegion(project.RegionID), checkRetention(project.HistoryRetention),
		checkName("branch.name", branchName, 256), checkDatabaseName(database), checkRoleName(roleName), s.admit(ctx),
	} {
		if err != nil {
			return none, err
		}
	}
	if err := s.checkSettings(ctx, project, nil, project.Defaults.MinCU, project.Defaults.MaxCU, project.Defaults.PGSettings); err != nil {
		return none, err
	}
	role, err := s.newPassword(project, core.Role{Name: roleName})
	if err != nil {
		return none, err
	}
	first, err := json.Marshal(setup{Role: roleName, Database: database})
	if err != nil {
		return none, core.Wrap(err, "control.create_project", "")
	}
	branchID := core.NewBranchID()
	branch := core.Branch{
		ID: branchID, ProjectID: project.ID, Name: branchName, State: core.BranchInit, PendingState: core.BranchReady, Default: true,
		InitSource: initParentData, CreatedBy: c.UserID, CreatedByName: c.UserName, VolumeID: branchID, Setup: first, Annotation: p.Annotation,
	}
	if p.Annotation != nil {
		branch.AnnotatedAt = new(time.Now())
	}
	endpoint := core.Endpoint{
		ID: core.NewEndpointID(), ProjectID: project.ID, BranchID: branchID, RegionID: project.RegionID, Type: core.EndpointReadWrite,
		MinCU: project.Defaults.MinCU, MaxCU: project.Defaults.MaxCU, Provisioner: project.Provisioner, PGSettings: project.Defaults.PGSettings,
		SuspendTimeout: project.Defaults.SuspendTimeout, State: core.EndpointInit, PendingState: core.EndpointActive,
	}
	var out ProjectCreated
	err = s.Store.Tx(ctx, func(q store.Q) error {
		out = ProjectCreated{}
		saved, err := q.InsertProject(ctx, project)
		if err != nil {
			return err
		}
		// Whoever is asked works on it; else the first one that hears of the work would.
		if _, err := q.HoldProject(ctx, saved.ID, s.Fleet.Self()); err != nil {
			return err
		}
		out.Project = s.projectView(saved)
		if out.Branch, err = q.InsertBranch(ctx, branch); err != nil {
			return err
		}
		e, err := q.InsertEndpoint(ctx, endpoint)
		if err != nil {
			return err
		}
		out.Endpoints = []EndpointView{s.endpointView(e)}
		password := role.Password
		role.BranchID = branchID
		savedRole, err := q.InsertRole(ctx, role)
		if err != nil {
			return err
		}
		savedRole.Password = password
		out.Roles = []core.Role{savedRole}
		d, err := q.InsertDatabase(ctx, branchID, database, roleName)
		if err != nil {
			return err
		}
		out.Databases = []core.Database{d}
		out.URIs = []ConnectionURI{s.connection(e.ID, roleName, password, database)}
		out.Operations, err = s.Queue.Enqueue(ctx, q,
			newOperation(c, project.ID, branchID, "", core.ActionCreateTimeline),
			newOperation(c, project.ID, branchID, e.ID, core.ActionStartCompute))
		if err != nil {
			return err
		}
		return keep(ctx, q, c, out)
	})
	if err != nil {
		return none, err
	}
	s.Queue.Kick(branchID)
	return out, nil
}

// connection is how the owner of a database reaches it.
func (s *Service) connection(endpointID, role, password, database string) ConnectionURI {
	a := s.Addressing
	return ConnectionURI{
		URI:      a.uri(endpointID, role, password, database, false, nil),
		Database: database, Password: password, Role: role, Host: a.host(endpointID, false), PoolerHost: a.host(endpointID, true),
	}
}

// ListProjects returns a page of the projects that the caller can see.
func (s *Service) ListProjects(ctx context.Context, c core.Caller, p ListProjects) (ProjectPage, error) {
	if err := apart(c); err != nil {
		return ProjectPage{}, err
	}
	limit, err := pageSize(p.Limit)
	if err != nil {
		return ProjectPage{}, err
	}
	f := store.ProjectFilter{OrgIDs: c.OrgIDs, ProjectID: c.ProjectID, Search: p.Search, After: p.Cursor, Limit: limit}
	if p.OrgID != "" {
		if !slices.Contains(c.OrgIDs, p.OrgID) {
			return ProjectPage{}, core.NotFoundf("organization %q not found", clip(p.OrgID))
		}
		f.OrgIDs = []string{p.OrgID}
	} else if c.OrgID != "" && c.ProjectID == "" {
		return ProjectPage{}, core.Invalidf("org_id is required with an organization API key; it is %s", c.OrgID)
	}
	list, err := s.Store.ListProjects(ctx, f)
	if err != nil {
		return ProjectPage{}, err
	}
	return s.projectPage(ctx, list, p.Cursor)
}

// pageSize is the number of projects on a page; 0 asks for the default.
func pageSize(asked int) (int, error) {
	switch {
	case asked == 0:
		return 10, nil
	case asked < 1 || asked > 400:
		return 0, core.Invalidf("limit must be between 1 and 400")
	}
	return asked, nil
}

// projectPage is a page that was asked for with a cursor.
func (s *Service) projectPage(ctx context.Context, list []core.Project, cursor string) (ProjectPage, error) {
	page := ProjectPage{Projects: make([]ProjectView, len(list)), Cursor: cursor}
	views := make([]*ProjectView, len(list))
	for i, project := range list {
		page.Projects[i] = s.projectView(project)
		views[i] = &page.Projects[i]
		page.Cursor = project.ID
	}
	return page, s.addProjectUsage(ctx, views...)
}

// GetProject returns one project.
func (s *Service) GetProject(ctx context.Context, c core.Caller, id string) (ProjectView, error) {
	p, err := s.project(ctx, c, id)
	if err != nil {
		return ProjectView{}, err
	}
	v := s.projectView(p)
	if err := s.addProjectUsage(ctx, &v); err != nil {
		return v, err
	}
	org, err := s.Store.Organization(ctx, p.OrgID)
	if err != nil {
		return v, err
	}
	v.OwnerName = org.Name
	if p.CreatedBy != "" {
		if u, err := s.Store.User(ctx, p.CreatedBy); err == nil {
			v.OwnerEmail = u.Email
		}
	}
	return v, nil
}

// UpdateProject changes a project.
func (s *Service) UpdateProject(ctx context.Context, c core.Caller, id string, p ProjectPatch) (ProjectResult, error) {
	project, err := s.project(ctx, c, id)
	if err != nil {
		return ProjectResult{}, err
	}
	if p.Defaults != nil && (p.Defaults.PGSettings != nil || len(project.Defaults.PGSettings) > 0) {
		defaults, err := p.Defaults.apply(project.Defaults, project.Provisioner)
		if err == nil {
			err = s.checkSettings(ctx, project, nil, defaults.MinCU, defaults.MaxCU, defaults.PGSettings)
		}
		if err != nil {
			return ProjectResult{}, err
		}
	}
	build, buildErr := s.build(ctx, project.PGVersion)
	var (
		saved      core.Project
		operations []core.Operation
		kick       []string
	)
	err = s.Store.Tx(ctx, func(q store.Q) error {
		operations, kick = nil, nil
		project, err := q.LockProject(ctx, id)
		if err != nil {
			return err
		}
		if p.Name != nil {
			if err := checkName("name", *p.Name, 256); err != nil {
				return err
			}
			project.Name = *p.Name
		}
		if p.HistoryRetention != nil {
			if err := checkRetention(*p.HistoryRetention); err != nil {
				return err
			}
			project.HistoryRetention = *p.HistoryRetention
		}
		if p.Defaults != nil {
			if project.Defaults, err = p.Defaults.apply(project.Defaults, project.Provisioner); err != nil {
				return err
			}
		}
		if p.Settings != nil {
			before, logical, audit := preloadOf(project.Settings).list(build), logicalReplication(project.Settings), auditLevel(project.Settings)
			if project.Settings, err = mergeSettings(project.Settings, p.Settings); err != nil {
				return err
			}
			if sent := preloadOf(p.Settings); sent.audit || len(sent.Libraries) > 0 {
				if err := errors.Join(buildErr, checkPreload(p.Settings, build)); err != nil {
					return err
				}
			}
			switch {
			case logical != logicalReplication(project.Settings),
				buildErr == nil && !slices.Equal(before, preloadOf(project.Settings).list(build)):
				operations, kick, err = s.restartProject(ctx, q, c, id)
			case audit != auditLevel(project.Settings):
				operations, kick, err = s.reloadProject(ctx, q, c, id)
			}
			if err != nil {
				return err
			}
		}
		saved, err = q.UpdateProject(ctx, project)
		return err
	})
	if err != nil {
		return ProjectResult{}, err
	}
	for _, branchID := range kick {
		s.Queue.Kick(branchID)
	}
	if p.HistoryRetention != nil {
		s.history.reread()
	}
	out := ProjectResult{Project: s.projectView(saved), Operations: operations}
	return out, s.addProjectUsage(ctx, &out.Project)
}

// DeleteProject deletes a project with everything in it.
func (s *Service) DeleteProject(ctx context.Context, c core.Caller, id string) (ProjectView, error) {
	if _, err := s.project(ctx, c, id); err != nil {
		return ProjectView{}, err
	}
	var (
		project  core.Project
		branches []core.Branch
	)
	err := s.Store.Tx(ctx, func(q store.Q) error {
		var err error
		if project, err = q.LockProject(ctx, id); err != nil {
			return err
		}
		if branches, err = q.ProjectBranches(ctx, id); err != nil {
			return err
		}
		for _, b := range branches {
			if b.Protected {
				return core.Errorf(core.KindUnprocessable, "PROJECT_PROTECTED", "project %s has the protected branch %q; remove the protection first", id, b.Name)
			}
		}
		for _, b := range branches {
			if b.Deleting {
				continue
			}
			if _, _, err := s.markBranchDeleting(ctx, q, c, b.ProjectID, b.ID); err != nil {
				return err
			}
		}
		return q.MarkProjectDeleting(ctx, id)
	})
	if err != nil {
		return ProjectView{}, err
	}
	for _, b := range branches {
		s.Queue.Kick(b.ID)
	}
	v := s.projectView(project)
	return v, s.addProjectUsage(ctx, &v)
}

// ConnectionURI builds a connection string with the role's password.
func (s *Service) ConnectionURI(ctx context.Context, c core.Caller, projectID string, p URIParams) (string, error) {
	project, err := s.project(ctx, c, projectID)
	if err != nil {
		return "", err
	}
	var branch core.Branch
	if p.BranchID == "" {
		branch, err = s.Store.DefaultBranch(ctx, projectID)
	} else {
		_, branch, err = s.branch(ctx, c, projectID, p.BranchID)
	}
	if err != nil {
		return "", err
	}
	endpoints, err := s.Store.Endpoints(ctx, projectID, branch.ID)
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(endpoints, func(e core.Endpoint) bool {
		return e.ID == p.EndpointID || (p.EndpointID == "" && e.Type == core.EndpointReadWrite)
	})
	if i < 0 {
		if p.EndpointID != "" {
			return "", core.NotFoundf("endpoint %q not found on branch %s", clip(p.EndpointID), branch.ID)
		}
		return "", core.NotFoundf("branch %s has no read_write endpoint; create one first", branch.ID)
	}
	if err := s.refreshCatalog(ctx, branch); err != nil {
		return "", err
	}
	if _, err := s.Store.Database(ctx, branch.ID, p.Database); err != nil {
		return "", err
	}
	role, err := s.Store.Role(ctx, branch.ID, p.Role)
	if err != nil {
		return "", err
	}
	password := ""
	if project.StorePasswords {
		if password, err = s.openPassword(role); err != nil {
			return "", err
		}
	}
	return s.Addressing.uri(endpoints[i].ID, role.Name, password, p.Database, p.Pooled, url.Values{"channel_binding": {"require"}}), nil
}
