package control

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/ops"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/internal/store"
)

// preloadSettings are a project's settings.preload_libraries.
type preloadSettings struct {
	core.PreloadLibraries
	audit bool // settings.audit_log_level asks for its library
}

// preloadOf reads them from a project's settings.
func preloadOf(settings json.RawMessage) preloadSettings {
	var p struct {
		Preload preloadSettings `json:"preload_libraries"`
	}
	_ = json.Unmarshal(settings, &p) // checked when it was stored
	p.Preload.audit = auditLevel(settings) != ""
	return p.Preload
}

// preloadFor is preloadOf for an endpoint, which may have libraries of its own.
func preloadFor(settings json.RawMessage, own *core.PreloadLibraries) preloadSettings {
	p := preloadOf(settings)
	if own != nil {
		p.PreloadLibraries = *own
	}
	return p
}

// auditLevel reads a project's settings.audit_log_level; "" logs nothing.
func auditLevel(settings json.RawMessage) string {
	var p struct {
		Level string `json:"audit_log_level"`
	}
	_ = json.Unmarshal(settings, &p)
	return p.Level
}

// audited refuses to start a compute whose audit log could not be written, because the library was removed.
func audited(spec compute.Spec) error {
	if spec.AuditLevel != "" && !slices.Contains(spec.Preload, postgres.AuditLibrary) {
		return noAudit(spec.Build.Major)
	}
	return nil
}

func noAudit(major int) error {
	return core.Errorf(core.KindUnprocessable, "AUDIT_LOG_UNAVAILABLE", "settings.audit_log_level needs the extension pgaudit for PostgreSQL %d, which is not "+
		"installed on the server; add your system's package on its machine (Debian and Ubuntu: apt-get install postgresql-%[1]d-pgaudit)", major)
}

// list is what computes of a build preload.
func (p preloadSettings) list(b postgres.Build) []string {
	names := p.Libraries
	if p.audit {
		names = append(slices.Clip(names), postgres.AuditLibrary)
	}
	return b.PreloadList(p.UseDefaults == nil || *p.UseDefaults, names)
}

// checkSettings refuses settings with which a compute of a project would not do what they say, or not start. The build's own
// program is asked; with it goes a look at the template's control file, so the template is made if there is none.
func (s *Service) checkSettings(ctx context.Context, project core.Project, own *core.PreloadLibraries, minCU, maxCU float64, settings map[string]string) error {
	if own != nil && len(own.Libraries) > 0 {
		build, err := s.build(ctx, project.PGVersion)
		if err == nil {
			err = build.CheckLibraries(own.Libraries)
		}
		if err != nil {
			return err
		}
	}
	if len(settings) == 0 {
		return nil
	}
	if err := postgres.CheckSettings(settings); err != nil {
		return err
	}
	build, err := s.build(ctx, project.PGVersion)
	if err != nil {
		return err
	}
	if err := s.ensureTemplate(ctx, build); err != nil {
		return err
	}
	return s.Inspector.Check(ctx, s.Computes.Config(compute.Spec{
		Build: build, Size: postgres.SizeSpec{MinCU: minCU, MaxCU: maxCU}, Preload: preloadFor(project.Settings, own).list(build),
		LogicalReplication: logicalReplication(project.Settings), PGSettings: settings,
	}), s.Volumes.Path(templateRef(build.Major).Volume))
}

// settingsChange is what a change of an endpoint's settings asks of its running compute.
type settingsChange struct {
	keys    []string // the settings that differ
	restart bool
}

// changeOf compares settings. What only extensions know is asked of the running compute, which refuses their wrong values,
// too; where nobody can tell, a restart is right.
func (s *Service) changeOf(ctx context.Context, project core.Project, endpointID string, before, after map[string]string) (settingsChange, error) {
	c := settingsChange{keys: postgres.ChangedSettings(before, after)}
	if len(c.keys) == 0 {
		return c, nil
	}
	build, err := s.build(ctx, project.PGVersion)
	if err != nil {
		return c, err
	}
	var unknown []string
	if c.restart, unknown, err = s.Inspector.NeedsRestart(ctx, build, c.keys); err != nil || len(unknown) == 0 {
		return c, err
	}
	if e, err := s.Store.Endpoint(ctx, endpointID); err == nil {
		_, _ = s.visit(ctx, e) // if it is not this server's
	}
	conn, err := s.Computes.Conn(ctx, endpointID, postgres.AdminDatabase)
	if err != nil {
		c.restart = true // it does not run, or its start is under way
		return c, nil
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if err := postgres.TrySettings(ctx, conn, after); err != nil {
		return c, err
	}
	restart, err := postgres.NeedsRestart(ctx, conn, unknown)
	c.restart = c.restart || restart || err != nil
	return c, nil
}

// reload is the work of an apply_config that brings new settings to a running compute.
func (s *Service) reload(ctx context.Context, b core.Branch, endpointID string) (ops.Commit, error) {
	e, err := s.Store.AnyEndpoint(ctx, endpointID)
	if core.IsKind(err, core.KindNotFound) || (err == nil && e.Deleting) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	spec, err := s.spec(ctx, b, e.ID, e)
	if err != nil {
		return nil, err
	}
	return nil, s.Computes.Reload(ctx, spec)
}

// restartProject queues a restart of every running compute of a project, whose row q has locked. The branches to kick are
// returned.
func (s *Service) restartProject(ctx context.Context, q store.Q, c core.Caller, projectID string) ([]core.Operation, []string, error) {
	return s.eachRunning(ctx, q, projectID, func(e core.Endpoint) ([]core.Operation, error) {
		_, err := q.SetEndpointPending(ctx, e.ID, core.EndpointActive)
		return restartOperations(c, e), err
	})
}

// reloadProject is restartProject for settings that need no restart.
func (s *Service) reloadProject(ctx context.Context, q store.Q, c core.Caller, projectID string) ([]core.Operation, []string, error) {
	return s.eachRunning(ctx, q, projectID, func(e core.Endpoint) ([]core.Operation, error) {
		op, err := reloadOperation(c, e)
		return []core.Operation{op}, err
	})
}

func reloadOperation(c core.Caller, e core.Endpoint) (op core.Operation, err error) {
	op = newOperation(c, e.ProjectID, e.BranchID, e.ID, core.ActionApplyConfig)
	op.Params, err = json.Marshal(applyParams{Reload: true})
	return op, err
}

// eachRunning queues operations for every running compute of a project, whose row q has locked.
func (s *Service) eachRunning(ctx context.Context, q store.Q, projectID string, work func(core.Endpoint) ([]core.Operation, error)) ([]core.Operation, []string, error) {
	branches, err := q.ProjectBranches(ctx, projectID)
	if err != nil {
		return nil, nil, err
	}
	var queued []core.Operation
	var kick []string
	for _, b := range branches {
		if b.Deleting {
			continue
		}
		if _, err := q.LockBranch(ctx, projectID, b.ID); core.IsKind(err, core.KindNotFound) {
			continue // deleted meanwhile
		} else if err != nil {
			return nil, nil, err
		}
		endpoints, err := q.BranchEndpoints(ctx, b.ID)
		if err != nil {
			return nil, nil, err
		}
		for _, e := range endpoints {
			if e.Deleting || wants(e) != core.EndpointActive {
				continue
			}
			made, err := work(e)
			if err == nil {
				made, err = s.Queue.Enqueue(ctx, q, made...)
			}
			if err != nil {
				return nil, nil, err
			}
			queued, kick = append(queued, made...), append(kick, b.ID)
		}
	}
	return queued, kick, nil
}

// PreloadLibraries lists what the computes of a project can preload.
func (s *Service) PreloadLibraries(ctx context.Context, c core.Caller, projectID string) ([]PreloadLibrary, error) {
	project, err := s.project(ctx, c, projectID)
	if err != nil {
		return nil, err
	}
	build, err := s.build(ctx, project.PGVersion)
	if err != nil {
		return nil, err
	}
	return build.Libraries(), nil
}

// checkPreload refuses libraries that sent settings name and the build does not have.
func checkPreload(sent json.RawMessage, b postgres.Build) error {
	if auditLevel(sent) != "" && !b.HasLibrary(postgres.AuditLibrary) {
		return noAudit(b.Major)
	}
	return b.CheckLibraries(preloadOf(sent).Libraries)
}

// libraryDatabase is where libraries that work in one database do: the oldest of a branch.
func (s *Service) libraryDatabase(ctx context.Context, branchID string, preload []string) (string, error) {
	if !slices.Contains(preload, "pg_cron") && !slices.Contains(preload, "pg_partman_bgw") {
		return "", nil
	}
	list, err := s.Store.Databases(ctx, branchID)
	if err != nil || len(list) == 0 {
		return "", err
	}
	oldest := list[0]
	for _, d := range list {
		if d.ID < oldest.ID {
			oldest = d
		}
	}
	return oldest.Name, nil
}
