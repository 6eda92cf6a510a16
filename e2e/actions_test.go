package e2e

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/sdk"
)

// project is one that a test made.
type project struct {
	s                    *server
	ID, Branch, Endpoint string // with its default branch and endpoint
	URI                  string // as the owner of the first database
	Role, Password       string
	Database             string
}

// never is a suspend timeout that keeps tests in control of sleeping.
const never = -1

func suspendAfter(seconds int32) *sdk.DefaultEndpointSettings {
	v := api.SuspendTimeout(seconds)
	return &sdk.DefaultEndpointSettings{SuspendTimeoutSeconds: &v}
}

// project makes a project whose computes sleep only when told, and waits for it.
func (s *server) project(t *testing.T) *project {
	t.Helper()
	return s.projectWith(t, sdk.ProjectCreate{DefaultEndpointSettings: suspendAfter(never)})
}

func (s *server) projectWith(t *testing.T, p sdk.ProjectCreate) *project {
	t.Helper()
	made, err := s.CreateProject(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	s.wait(t, made.Operations)
	return s.known(made)
}

func (s *server) known(made *sdk.ProjectCreated) *project {
	c := made.ConnectionUris[0]
	return &project{
		s: s, ID: made.Project.ID, Branch: made.Branch.ID, Endpoint: made.Endpoints[0].ID, URI: c.ConnectionURI,
		Role: c.ConnectionParameters.Role, Password: c.ConnectionParameters.Password, Database: c.ConnectionParameters.Database,
	}
}

// branch is one that a test made.
type branch struct {
	ID, Endpoint, URI string
}

func readWrite() *[]sdk.BranchCreateEndpoint {
	return &[]sdk.BranchCreateEndpoint{{Type: api.ReadWrite}}
}

// branch makes a branch with an endpoint; parent "" is the default branch.
func (p *project) branch(t *testing.T, parent string) branch {
	t.Helper()
	r := sdk.BranchCreateRequest{Endpoints: readWrite()}
	if parent != "" {
		r.Branch = &sdk.BranchCreate{ParentID: &parent}
	}
	made, err := p.s.CreateBranch(t.Context(), p.ID, r)
	if err != nil {
		t.Fatal(err)
	}
	p.s.wait(t, made.Operations)
	return branch{ID: made.Branch.ID, Endpoint: made.Endpoints[0].ID, URI: (*made.ConnectionUris)[0].ConnectionURI}
}

// wait waits for operations and fails the test when one fails.
func (s *server) wait(t *testing.T, ops []sdk.Operation) []sdk.Operation {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), opLimit)
	defer cancel()
	ended, err := s.WaitForOperations(ctx, ops, nil)
	if err != nil {
		t.Fatal(err)
	}
	return ended
}

// ops waits for the operations of a call that returns an endpoint.
func (p *project) ops(t *testing.T) func(*sdk.EndpointOperations, error) []sdk.Operation {
	return func(r *sdk.EndpointOperations, err error) []sdk.Operation {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return p.s.wait(t, r.Operations)
	}
}

func (p *project) suspend(t *testing.T, endpoint string) {
	t.Helper()
	p.ops(t)(p.s.SuspendEndpoint(t.Context(), p.ID, endpoint))
	p.awaitState(t, endpoint, api.Idle)
}

func (p *project) awaitState(t *testing.T, endpoint string, want api.EndpointState) {
	t.Helper()
	eventually(t, opLimit, func() string {
		e, err := p.s.Endpoint(t.Context(), p.ID, endpoint)
		if err != nil {
			return err.Error()
		}
		if e.CurrentState != want || e.PendingState != nil {
			return fmt.Sprintf("endpoint %s is %s (pending %v), want %s", endpoint, e.CurrentState, e.PendingState, want)
		}
		return ""
	})
}

// operations lists a project's operations of one action, the newest first.
func (p *project) operations(t *testing.T, action api.OperationAction) []sdk.Operation {
	t.Helper()
	all, err := sdk.All(p.s.Operations(t.Context(), p.ID, sdk.OperationFilter{}))
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(op sdk.Operation) bool { return action != "" && op.Action != action })
}

// config is how to connect to a URI that Bough gave out. Names below *.localhost do not resolve everywhere: the address
// is the proxy's, the server name of TLS stays the URI's host.
func (s *server) config(t *testing.T, uri string) *pgx.ConnConfig {
	t.Helper()
	cfg, err := pgx.ParseConfig(uri)
	if err != nil {
		t.Fatalf("Bough gave out %q: %v", uri, err)
	}
	cfg.ConnectTimeout = opLimit
	cfg.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"127.0.0.1"}, nil }
	cfg.DialFunc = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", s.pgAddr())
	}
	return cfg
}

// connect opens a session that is closed with the test.
func (s *server) connect(t *testing.T, uri string) *pgx.Conn {
	t.Helper()
	conn, err := s.tryConnect(t, uri)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func (s *server) tryConnect(t *testing.T, uri string) (*pgx.Conn, error) {
	t.Helper()
	conn, err := pgx.ConnectConfig(t.Context(), s.config(t, uri))
	if err == nil {
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 5*time.Second)
			defer cancel()
			_ = conn.Close(ctx) // a cut session is closed already
		})
	}
	return conn, err
}

func sql(t *testing.T, conn *pgx.Conn, text string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), text, args...); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

// value returns the one value of a query.
func value[T any](t *testing.T, conn *pgx.Conn, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// settled waits until nothing is under way, and checks that what is on the machine is what the API shows: every operation
// has ended, and no process, volume, WAL directory or mount is orphaned or missing.
func (s *server) settled(t *testing.T) {
	t.Helper()
	eventually(t, opLimit, func() string {
		problem, err := s.inconsistency(t)
		if err != nil {
			return err.Error()
		}
		return problem
	})
}

func (s *server) inconsistency(t *testing.T) (string, error) {
	projects, err := sdk.All(s.Projects(t.Context(), sdk.ProjectFilter{}))
	if err != nil {
		return "", err
	}
	var problems []string
	add := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	data := map[string]bool{} // branches with data, and replicas that run
	run := map[string]bool{}  // branches and replicas with a running compute
	for _, p := range projects {
		ops, err := sdk.All(s.Operations(t.Context(), p.ID, sdk.OperationFilter{}))
		if err != nil {
			return "", err
		}
		for _, op := range ops {
			if !sdk.Done(op) {
				add("operation %s %s is %s", op.Action, op.ID, op.Status)
			}
		}
		branches, err := sdk.All(s.Branches(t.Context(), p.ID, sdk.BranchFilter{}))
		if err != nil {
			return "", err
		}
		for _, b := range branches {
			if b.PendingState != nil {
				add("branch %s is %s and becomes %s", b.ID, b.CurrentState, *b.PendingState)
			}
			if b.CurrentState == "ready" {
				data[b.ID] = true
			}
		}
		endpoints, err := s.Endpoints(t.Context(), p.ID)
		if err != nil {
			return "", err
		}
		for _, e := range endpoints {
			if e.PendingState != nil {
				add("endpoint %s is %s and becomes %s", e.ID, e.CurrentState, *e.PendingState)
			}
			switch {
			case e.CurrentState != api.Active:
			case e.Type == api.ReadOnly:
				run[e.ID], data[e.ID] = true, true
			default:
				run[e.BranchID] = true
			}
		}
	}
	same := func(what string, have []string) {
		seen := map[string]bool{}
		for _, id := range have {
			if strings.HasPrefix(id, "template-") && !strings.Contains(id, "-draft") || strings.HasPrefix(id, "snapshot-") {
				continue
			}
			if seen[id] = true; !data[id] {
				add("%s %s belongs to no ready branch and no running replica", what, id)
			}
		}
		for id := range data {
			if !seen[id] {
				add("%s has no %s", id, what)
			}
		}
	}
	same("volume", folders(s.dir+"/pool/volumes"))
	same("WAL directory", folders(s.dir+"/wal"))
	for _, f := range folders(s.dir + "/pool/staging") {
		add("%s was left in staging", f)
	}
	volumes := s.dir + "/pool/volumes/"
	servers := postmasters(s.dir + "/pool")
	for dir, pids := range servers {
		if id := strings.TrimPrefix(dir, volumes); !run[id] || len(pids) != 1 {
			add("processes %v run in %s, which has no active endpoint", pids, dir)
		}
	}
	for id := range run {
		if len(servers[volumes+id]) == 0 {
			add("branch %s has an active endpoint and no process", id)
		}
	}
	if mounts := mountsBelow(s.dir); len(mounts) > 1 || (len(mounts) == 1 && mounts[0] != s.dir+"/pool") {
		add("mounts: %v", mounts)
	}
	if loops := loopsBelow(s.dir); len(loops) > 1 {
		add("loop devices: %v", loops)
	}
	return strings.Join(problems, "; "), nil
}

// postmaster is the pid of the compute of a branch.
func (s *server) postmaster(t *testing.T, branchID string) int {
	t.Helper()
	pids := postmasters(s.dir + "/pool")[s.dir+"/pool/volumes/"+branchID]
	if len(pids) != 1 {
		t.Fatalf("branch %s has the postmasters %v", branchID, pids)
	}
	return pids[0]
}

// as is the URI of another role or database on the project's first endpoint.
func (p *project) as(t *testing.T, role, password, database string) string {
	t.Helper()
	u, err := url.Parse(p.URI)
	if err != nil {
		t.Fatal(err)
	}
	u.User, u.Path = url.UserPassword(role, password), "/"+database
	return u.String()
}
