package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/sdk"
)

// neonctl is the cloud's own command line against one server.
type neonctl struct {
	node, program string
	dir           string // where it runs: the home, its configuration and the .neon file
	env           []string
}

// run runs a command; what is behind "--" goes to another program.
func (c *neonctl) run(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	return runNode(t, c.dir, c.env, c.node, append([]string{c.program, "--no-analytics", "-o", "json"}, args...)...)
}

// neon runs a command that must succeed, and reads its output.
func neon[T any](t *testing.T, c *neonctl, args ...string) (out T) {
	t.Helper()
	stdout, stderr, err := c.run(t, args...)
	if err != nil {
		t.Fatalf("neonctl %s: %v\n%s%s", strings.Join(args, " "), err, stdout, stderr)
	}
	if text, ok := any(&out).(*string); ok {
		*text = strings.TrimSpace(stdout)
	} else if err := json.Unmarshal([]byte(stdout), &out); err != nil {
		t.Fatalf("neonctl %s: %v in %s", strings.Join(args, " "), err, stdout)
	}
	return out
}

// namesResolve tells whether programs of this machine find the hosts of endpoints.
func namesResolve() bool { return exec.Command("getent", "hosts", "ep-none.db.localhost").Run() == nil }

// TestNeonctl goes through every group of commands that the server's operations serve. What a command did is looked up
// with another client or in SQL.
func TestNeonctl(t *testing.T) {
	node := node(t)
	s := start(t)
	w, base := s.through(t)
	program, err := filepath.Abs(filepath.Join(clients(), "node_modules", "neonctl", "bin", "cli.js"))
	must(t, err)
	dir := t.TempDir()
	c := &neonctl{node: node, program: program, dir: dir, env: []string{
		"NEON_API_HOST=" + base, "NEON_API_KEY=" + s.admin.APIKey, "NEON_CONFIG_DIR=" + filepath.Join(dir, "config"), "CI=1",
	}}
	ctx := t.Context()
	org := s.organization(t, "")
	type named struct {
		ID   any // databases have numbers
		Name string
	}
	names := func(list []named) (out []string) {
		for _, x := range list {
			out = append(out, x.Name)
		}
		slices.Sort(out)
		return out
	}

	t.Run("account", func(t *testing.T) {
		me, err := s.Me(ctx)
		must(t, err)
		if got := neon[named](t, c, "me"); got.ID != me.ID {
			t.Errorf("me: %+v", got)
		}
		if got := neon[[]named](t, c, "orgs", "list"); len(got) != 1 || got[0].ID != org {
			t.Errorf("orgs list: %+v", got)
		}
		if got := neon[named](t, c, "api", "/users/me"); got.ID != me.ID {
			t.Errorf("api /users/me: %+v", got)
		}
	})

	var p *project
	t.Run("projects", func(t *testing.T) {
		made := neon[sdk.ProjectCreated](t, c, "projects", "create", "--name", "shop", "--database", "books", "--role", "keeper", "--cu", "0.25-1")
		p = &project{s: s, ID: made.Project.ID, URI: made.ConnectionUris[0].ConnectionURI}
		s.settled(t)
		if got := value[string](t, s.connect(t, p.URI), "select current_user || '@' || current_database()"); got != "keeper@books" {
			t.Errorf("the connection string leads to %s", got)
		}
		branches, err := sdk.All(s.Branches(ctx, p.ID, sdk.BranchFilter{}))
		must(t, err)
		p.Branch = branches[0].ID
		endpoints, err := s.Endpoints(ctx, p.ID)
		must(t, err)
		if p.Endpoint = endpoints[0].ID; endpoints[0].AutoscalingLimitMaxCU != 1 {
			t.Errorf("--cu 0.25-1 made %v", endpoints[0].AutoscalingLimitMaxCU)
		}
		if out, errs, err := c.run(t, "projects", "create", "--hipaa"); err == nil || !strings.Contains(errs, "hipaa") {
			t.Errorf("projects create --hipaa: %v\n%s%s", err, out, errs)
		}
		other := neon[sdk.ProjectCreated](t, c, "projects", "create", "--name", "other", "--org-id", org, "--pg-version", "17")
		if list := neon[struct{ Projects []named }](t, c, "projects", "list"); !slices.Equal(names(list.Projects), []string{"other", "shop"}) {
			t.Errorf("projects list: %+v", list)
		}
		if list := neon[[]named](t, c, "projects", "list", "--org-id", org); len(list) != 2 {
			t.Errorf("projects list --org-id: %+v", list)
		}
		neon[named](t, c, "projects", "update", p.ID, "--name", "store", "--block-public-connections", "--cu", "0.5-2")
		got, err := s.Project(ctx, p.ID)
		must(t, err)
		if got.Name != "store" || !*got.Settings.BlockPublicConnections || *got.DefaultEndpointSettings.AutoscalingLimitMaxCU != 2 {
			t.Errorf("projects update: %+v", got)
		}
		if shown := neon[named](t, c, "projects", "get", p.ID); shown.Name != "store" {
			t.Errorf("projects get: %+v", shown)
		}
		neon[any](t, c, "projects", "update", other.Project.ID, "--enable-logical-replication", "--yes")
		if level := value[string](t, s.connect(t, other.ConnectionUris[0].ConnectionURI), "show wal_level"); level != "logical" {
			t.Errorf("projects update --enable-logical-replication: wal_level is %s", level)
		}
		neon[named](t, c, "projects", "delete", other.Project.ID)
		if r := s.raw(t, "", "GET", "/projects/"+other.Project.ID, ""); r.status != 404 {
			t.Errorf("after projects delete: %d", r.status)
		}
	})
	if t.Failed() {
		t.FailNow() // all that follows needs the project
	}

	t.Run("context", func(t *testing.T) {
		type context struct{ OrgID, ProjectID, Branch string }
		read := func() (out context) {
			raw, err := os.ReadFile(filepath.Join(dir, ".neon"))
			must(t, err)
			must(t, json.Unmarshal(raw, &out))
			return out
		}
		neon[string](t, c, "link", "--yes", "--no-env-pull", "--no-config")
		if got := read(); got != (context{org, p.ID, "main"}) {
			t.Errorf("link: %+v", got)
		}
		neon[string](t, c, "set-context", "--project-id", p.ID) // from here on nothing names the project
		if got := read(); got != (context{ProjectID: p.ID}) {
			t.Errorf("set-context: %+v", got)
		}
	})

	var kid sdk.Branch
	branch := func(t *testing.T, name string) sdk.Branch {
		t.Helper()
		list, err := sdk.All(s.Branches(ctx, p.ID, sdk.BranchFilter{}))
		must(t, err)
		i := slices.IndexFunc(list, func(b sdk.Branch) bool { return b.Name == name })
		if i < 0 {
			t.Fatalf("there is no branch %s", name)
		}
		return list[i]
	}
	t.Run("branches", func(t *testing.T) {
		sql(t, s.connect(t, p.URI), "create table t as select 17 as n")
		made := neon[sdk.BranchCreated](t, c, "branches", "create", "--name", "kid", "--suspend-timeout", "600")
		if n := value[int](t, s.connect(t, (*made.ConnectionUris)[0].ConnectionURI), "select n from t"); n != 17 {
			t.Errorf("the branch has %d", n)
		}
		if e, err := s.Endpoint(ctx, p.ID, made.Endpoints[0].ID); err != nil || e.SuspendTimeoutSeconds != 600 {
			t.Errorf("--suspend-timeout 600: %+v, %v", e, err)
		}
		neon[any](t, c, "branches", "create", "--name", "bare", "--parent", "kid", "--no-compute")
		if b := branch(t, "bare"); *b.ParentID != made.Branch.ID {
			t.Errorf("--parent kid made %+v", b)
		}
		if list := neon[[]named](t, c, "branches", "list"); !slices.Equal(names(list), []string{"bare", "kid", "main"}) {
			t.Errorf("branches list: %+v", list)
		}
		neon[any](t, c, "branches", "add-compute", "bare", "--type", "read_write")
		neon[any](t, c, "branches", "add-compute", "kid")
		for name, want := range map[string]string{"bare": "[read_write]", "kid": "[read_write read_only]"} {
			endpoints, err := s.BranchEndpoints(ctx, p.ID, branch(t, name).ID)
			must(t, err)
			types := []api.EndpointType{}
			for _, e := range endpoints {
				types = append(types, e.Type)
			}
			slices.Sort(types)
			slices.Reverse(types)
			if fmt.Sprint(types) != want {
				t.Errorf("%s has the computes %v, want %s", name, types, want)
			}
		}
		neon[any](t, c, "branches", "create", "--name", "kept", "--no-compute", "--protected")
		if _, errs, err := c.run(t, "branches", "delete", "kept"); err == nil || !strings.Contains(errs, "protected") {
			t.Errorf("branches delete of a protected one: %v, %s", err, errs)
		}
		_, err := s.UpdateBranch(ctx, p.ID, branch(t, "kept").ID, sdk.BranchUpdate{Protected: new(false)})
		must(t, err)
		s.settled(t)
		neon[any](t, c, "branches", "delete", "kept")
		neon[any](t, c, "branches", "rename", "kid", "child")
		if kid = branch(t, "child"); kid.ID != made.Branch.ID {
			t.Errorf("branches rename: %+v", kid)
		}
		neon[any](t, c, "branches", "set-default", "child")
		if !branch(t, "child").Default || branch(t, "main").Default {
			t.Error("branches set-default changed nothing")
		}
		neon[any](t, c, "branches", "set-default", "main")
		if got := neon[named](t, c, "branches", "get", "child"); got.ID != kid.ID {
			t.Errorf("branches get: %+v", got)
		}
		for _, hours := range []time.Duration{1, 0} {
			at, args := time.Now().Add(hours*time.Hour).UTC().Truncate(time.Second), []string{"branches", "set-expiration", "bare"}
			if hours > 0 {
				args = append(args, "--expires-at", at.Format(time.RFC3339))
			}
			neon[any](t, c, args...)
			if got := branch(t, "bare").ExpiresAt; hours == 0 && got != nil || hours > 0 && (got == nil || !got.Equal(at)) {
				t.Errorf("branches set-expiration in %d hours: %v", hours, got)
			}
		}
		s.settled(t)
		neon[any](t, c, "branches", "delete", "bare")
		if list, err := sdk.All(s.Branches(ctx, p.ID, sdk.BranchFilter{})); err != nil || len(list) != 2 {
			t.Errorf("after branches delete: %+v, %v", list, err)
		}
		neon[string](t, c, "checkout", "child", "--no-env-pull")
		if raw, err := os.ReadFile(filepath.Join(dir, ".neon")); err != nil || !strings.Contains(string(raw), `"child"`) {
			t.Errorf("checkout: %s, %v", raw, err)
		}
		neon[string](t, c, "set-context", "--project-id", p.ID)
	})

	t.Run("roles and databases", func(t *testing.T) {
		role := neon[struct{ Name, Password string }](t, c, "roles", "create", "--branch", "child", "--name", "sally")
		neon[any](t, c, "databases", "create", "--branch", "child", "--name", "papers", "--owner-name", "sally")
		if list := neon[[]named](t, c, "roles", "list", "--branch", "child"); !slices.Equal(names(list), []string{"keeper", "sally"}) {
			t.Errorf("roles list: %+v", list)
		}
		if list := neon[[]named](t, c, "databases", "list", "--branch", "child"); !slices.Equal(names(list), []string{"books", "papers"}) {
			t.Errorf("databases list: %+v", list)
		}

		// A connection string for each way in; all of them are built by the client.
		for _, way := range []struct {
			args []string
			want string
		}{
			{[]string{"main"}, "keeper@books"}, // what there is one of need not be named
			{[]string{"child", "--role-name", "sally", "--database-name", "papers"}, "sally@papers"},
			{[]string{"child", "--role-name", "keeper", "--database-name", "books", "--pooled"}, "keeper@books"},
			{[]string{"child", "--role-name", "keeper", "--database-name", "books", "--endpoint-type", "read_only"}, "keeper@books"},
		} {
			uri := neon[string](t, c, append([]string{"connection-string"}, way.args...)...)
			conn := s.connect(t, uri)
			if got := value[string](t, conn, "select current_user || '@' || current_database()"); got != way.want {
				t.Errorf("connection-string %v leads to %s", way.args, got)
			}
			if replica := value[bool](t, conn, "select pg_is_in_recovery()"); replica != slices.Contains(way.args, "read_only") {
				t.Errorf("connection-string %v leads to a replica: %v", way.args, replica)
			}
			if pooled := strings.Contains(uri, "-pooler."); pooled != slices.Contains(way.args, "--pooled") {
				t.Errorf("connection-string %v: %s", way.args, uri)
			}
		}
		if got := neon[struct{ Password string }](t, c, "cs", "child", "--role-name", "sally", "--database-name", "papers", "--extended"); got.Password != role.Password {
			t.Errorf("connection-string --extended: %+v", got)
		}
		if namesResolve() {
			if out := neon[string](t, c, "psql", "child", "--role-name", "sally", "--database-name", "papers", "--", "-X", "-tAc", "select current_user || '@' || current_database()"); !strings.HasSuffix(out, "sally@papers") {
				t.Errorf("psql printed %q", out)
			}
			if out := neon[[]struct{ Table string }](t, c, "inspect", "db", "table-sizes", "--branch", "child", "--role-name", "keeper", "--database-name", "books"); len(out) != 1 {
				t.Errorf("inspect db table-sizes: %+v", out)
			}
		}
		neon[any](t, c, "databases", "delete", "papers", "--branch", "child")
		neon[any](t, c, "roles", "delete", "sally", "--branch", "child")
		s.settled(t)
		if got := p.roles(t, kid.ID); slices.Contains(got, "sally") {
			t.Errorf("after roles delete: %v", got)
		}
		if got := p.databases(t, kid.ID); slices.Contains(got, "papers") {
			t.Errorf("after databases delete: %v", got)
		}
	})

	major, canDump := dumpable(t)
	t.Run("schemas", func(t *testing.T) {
		if !canDump {
			t.Skip("needs pg_dump of an installed version of PostgreSQL")
		}
		d := s.projectWith(t, sdk.ProjectCreate{PgVersion: &major})
		kid := d.branch(t, "")
		differ := func() string {
			return neon[string](t, c, "branches", "schema-diff", d.Branch, kid.ID, "--project-id", d.ID, "--database", d.Database)
		}
		if got := differ(); strings.Contains(got, "@@") {
			t.Errorf("schema-diff of a fresh branch: %s", got)
		}
		sql(t, s.connect(t, kid.URI), "create table readers (name text)")
		if got := differ(); !strings.Contains(got, "CREATE TABLE public.readers") {
			t.Errorf("schema-diff after CREATE TABLE: %s", got)
		}
		sql(t, s.connect(t, kid.URI), "insert into readers values ('a row')")
		bare := neon[sdk.BranchCreated](t, c, "branches", "create", "--project-id", d.ID, "--name", "bare", "--parent", kid.ID, "--schema-only")
		if n := value[int](t, s.connect(t, (*bare.ConnectionUris)[0].ConnectionURI), "select count(*)::int from readers"); n != 0 || bare.Branch.ParentID != nil {
			t.Errorf("branches create --schema-only made one with %d rows: %+v", n, bare.Branch)
		}
		neon[any](t, c, "projects", "delete", d.ID)
		s.settled(t)
	})

	t.Run("side by side", func(t *testing.T) {
		t.Run("ip-allow", func(t *testing.T) {
			t.Parallel()
			allowed := func(command string, protectedOnly bool, want ...string) {
				t.Helper()
				project, err := s.Project(ctx, p.ID)
				must(t, err)
				if got := project.Settings.AllowedIps; !slices.Equal(*got.Ips, want) || *got.ProtectedBranchesOnly != protectedOnly {
					t.Errorf("after ip-allow %s: %v, protected only %v; want %v, %v", command, *got.Ips, *got.ProtectedBranchesOnly, want, protectedOnly)
				}
			}
			neon[any](t, c, "ip-allow", "add", "127.0.0.1", "10.0.0.0/8", "--protected-only")
			allowed("add", true, "127.0.0.1", "10.0.0.0/8")
			if got := neon[struct {
				IPs []string `json:"IP_addresses"`
			}](t, c, "ip-allow", "list"); len(got.IPs) != 2 {
				t.Errorf("ip-allow list: %v", got)
			}
			neon[any](t, c, "ip-allow", "remove", "10.0.0.0/8")
			allowed("remove", true, "127.0.0.1")
			neon[any](t, c, "ip-allow", "reset", "192.0.2.1")
			allowed("reset", false, "192.0.2.1")
			neon[any](t, c, "ip-allow", "reset")
			allowed("reset", false)
		})

		t.Run("operations", func(t *testing.T) {
			t.Parallel()
			want, err := sdk.All(s.Operations(ctx, p.ID, sdk.OperationFilter{}))
			must(t, err)
			got := neon[[]sdk.Operation](t, c, "operations", "list")
			if len(got) == 0 || got[0].ID != want[0].ID {
				t.Errorf("operations list begins with %+v", got[:min(1, len(got))])
			}
		})

		t.Run("api-keys", func(t *testing.T) {
			t.Parallel()
			for _, scope := range [][]string{nil, {"--org-id", org}, {"--project-id", p.ID}} {
				made := neon[madeKey](t, c, append([]string{"api-keys", "create", "--name", "k"}, scope...)...)
				ask[any](t, s, made.Key, "GET", "/projects/"+p.ID, "", 200)
				var of []string // where it is listed: a project's keys are the organization's
				if scope != nil {
					of = []string{"--org-id", org}
				}
				list := neon[[]madeKey](t, c, append([]string{"api-keys", "list"}, of...)...)
				if !slices.ContainsFunc(list, func(k madeKey) bool { return k.ID == made.ID }) {
					t.Errorf("api-keys list %v: %+v", of, list)
				}
				neon[any](t, c, append([]string{"api-keys", "revoke", fmt.Sprint(made.ID)}, of...)...)
				ask[any](t, s, made.Key, "GET", "/projects/"+p.ID, "", 401)
			}
		})

		// What is not built says so, and says which operation it is.
		t.Run("not built", func(t *testing.T) {
			t.Parallel()
			unbuilt := map[string]bool{}
			for _, r := range api.Unbuilt() {
				unbuilt[r.OperationID] = true
			}
			for operation, command := range map[string]string{
				"listOrganizationVPCEndpoints": "vpc endpoint list --org-id " + org + " --region-id aws-us-east-2",
				"assignProjectVPCEndpoint":     "vpc project restrict vpce-1234567890abcdef0",
				"recoverProject":               "projects recover " + p.ID,
				"restoreProjectBranch":         "branches reset child --parent",
				"listSnapshots":                "snapshots list",
				"getNeonAuth":                  "neon-auth status",
				"getProjectBranchDataAPI":      "data-api get --database books",
				"listProjectBranchFunctions":   "functions list",
				"listProjectBranchBuckets":     "buckets list",
				"listCredentials":              "credentials list",
			} {
				if !unbuilt[operation] {
					t.Errorf("%s is built: look at what `neonctl %s` does", operation, command)
					continue
				}
				out, errs, err := c.run(t, strings.Fields(command)...)
				if err == nil || !strings.Contains(errs, operation) || !strings.Contains(errs, "not available") {
					t.Errorf("neonctl %s: %v\n%s%s", command, err, out, errs)
				}
			}
		})
	})

	s.settled(t)
	neon[any](t, c, "projects", "delete", p.ID)
	s.settled(t)
	if r := s.raw(t, "", "GET", "/projects/"+p.ID, ""); r.status != 404 {
		t.Errorf("after projects delete: %d", r.status)
	}
	if !t.Failed() && canDump {
		proved["neonctl"] = w.operations()
	}
}
