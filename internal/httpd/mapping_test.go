package httpd

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/control"
	"github.com/boughdb/bough/internal/core"
)

// stage is a control plane with one thing of each kind in it, as new as right after its creation or in use for a while.
type stage struct {
	UseCases
	used bool
}

var clock = time.Date(2031, 3, 5, 6, 7, 8, 999_999_999, time.FixedZone("", 3600))

func (s stage) at() *time.Time {
	if !s.used {
		return nil
	}
	t := clock
	return &t
}

func (s stage) project() control.ProjectView {
	return control.ProjectView{
		Project: core.Project{
			ID: "calm-sea-12345678", OrgID: "org-calm-sea-12345678", Name: "orders", RegionID: "aws-us-east-1", PGVersion: 15,
			Provisioner: "k8s-neonvm", Defaults: core.EndpointDefaults{MinCU: 0.25, MaxCU: 0.25}, StorePasswords: true,
			Settings:         json.RawMessage(`{"allowed_ips":{"ips":[],"protected_branches_only":false},"enable_logical_replication":false,"maintenance_window":{"weekdays":[5],"start_time":"07:00","end_time":"08:00"},"block_public_connections":false,"block_vpc_connections":false,"hipaa":false}`),
			HistoryRetention: 86400, CreatedAt: clock, UpdatedAt: clock, ComputeLastActive: s.at(),
		},
		ProxyHost: "db.localhost", OwnerEmail: "robin@example.com", OwnerName: "Robin",
	}
}

func (s stage) branch() core.Branch {
	b := core.Branch{
		ID: "br-calm-sea-abcdefgh", ProjectID: "calm-sea-12345678", Name: "main", State: core.BranchInit,
		PendingState: core.BranchReady, StateChangedAt: clock, InitSource: "parent-data", CreationSource: "console",
		CreatedAt: clock, UpdatedAt: clock, CreatedByName: "Robin", ParentID: "br-calm-sky-abcdefgh", ParentLSN: 0x1A7F730,
	}
	if s.used {
		size := int64(1 << 24)
		b.State, b.PendingState, b.ParentTimestamp, b.LogicalSize = core.BranchReady, "", s.at(), &size
		b.Annotation, b.AnnotatedAt = map[string]string{"environment": "test"}, s.at()
	}
	return b
}

func (s stage) endpoint() control.EndpointView {
	e := control.EndpointView{
		Endpoint: core.Endpoint{
			ID: "ep-calm-sea-abcdefgh", ProjectID: "calm-sea-12345678", BranchID: "br-calm-sea-abcdefgh", RegionID: "aws-us-east-1",
			Type: core.EndpointReadWrite, MinCU: 0.25, MaxCU: 0.25, Provisioner: "k8s-neonvm", State: core.EndpointInit,
			PendingState: core.EndpointActive, CreationSource: "console", CreatedAt: clock, UpdatedAt: clock,
		},
		Host: "ep-calm-sea-abcdefgh.db.localhost", PoolerHost: "ep-calm-sea-abcdefgh-pooler.db.localhost",
		ProxyHost: "db.localhost", Version: "15.8",
	}
	if s.used {
		e.State, e.PendingState, e.LastActive, e.StartedAt = core.EndpointActive, "", s.at(), s.at()
	}
	return e
}

func (s stage) ops() []core.Operation {
	return []core.Operation{
		{
			ID: "0198a5c8-0000-7000-8000-000000000001", ProjectID: "calm-sea-12345678", BranchID: "br-calm-sea-abcdefgh",
			Action: core.ActionCreateTimeline, Status: core.OpRunning, CreatedAt: clock, UpdatedAt: clock,
		},
		{
			ID: "0198a5c8-0000-7000-8000-000000000002", ProjectID: "calm-sea-12345678", BranchID: "br-calm-sea-abcdefgh",
			EndpointID: "ep-calm-sea-abcdefgh", Action: core.ActionStartCompute, Status: core.OpScheduling,
			CreatedAt: clock, UpdatedAt: clock, TotalDuration: 87 * time.Millisecond,
		},
	}
}

func (s stage) role(password string) core.Role {
	return core.Role{
		BranchID: "br-calm-sea-abcdefgh", Name: "neondb_owner", Password: password, Verifier: "SCRAM-SHA-256$secret",
		Sealed: []byte("sealed"), CreatedAt: clock, UpdatedAt: clock,
	}
}

func (s stage) database() core.Database {
	return core.Database{ID: 7, BranchID: "br-calm-sea-abcdefgh", Name: "neondb", OwnerName: "neondb_owner", CreatedAt: clock, UpdatedAt: clock}
}

func (s stage) uris() []control.ConnectionURI {
	return []control.ConnectionURI{{URI: "postgresql://…", Database: "neondb", Password: "npg_x", Role: "neondb_owner", Host: "h", PoolerHost: "p"}}
}

func (s stage) key() core.APIKey {
	return core.APIKey{ID: 3, Name: "laptop", UserID: "0198a5c8-0000-7000-8000-00000000000a", UserName: "Robin", CreatedAt: clock, LastUsedAt: &clock, LastUsedFromAddr: "192.0.2.7", Revoked: true}
}

func (s stage) Authenticate(context.Context, string, string) (core.Caller, error) {
	return core.Caller{}, nil
}

func (s stage) ListProjects(context.Context, core.Caller, control.ListProjects) (control.ProjectPage, error) {
	return control.ProjectPage{Projects: []control.ProjectView{s.project()}, Cursor: "calm-sea-12345678"}, nil
}

func (s stage) CreateProject(context.Context, core.Caller, control.CreateProject) (control.ProjectCreated, error) {
	b := s.branch()
	b.ParentID, b.ParentLSN, b.CreatedByName = "", 0, ""
	return control.ProjectCreated{
		Project: s.project(), Branch: b, Endpoints: []control.EndpointView{s.endpoint()}, Roles: []core.Role{s.role("npg_x")},
		Databases: []core.Database{s.database()}, Operations: s.ops(), URIs: s.uris(),
	}, nil
}

func (s stage) GetProject(context.Context, core.Caller, string) (control.ProjectView, error) {
	return s.project(), nil
}

func (s stage) CreateBranch(context.Context, core.Caller, string, control.CreateBranch) (control.BranchCreated, error) {
	return control.BranchCreated{
		Branch: s.branch(), Endpoints: []control.EndpointView{s.endpoint()}, Operations: s.ops(), Roles: []core.Role{s.role("")},
		Databases: []core.Database{s.database()}, URIs: s.uris(),
	}, nil
}

func (s stage) ListBranches(context.Context, core.Caller, string, control.ListBranches) (control.BranchPage, error) {
	return control.BranchPage{Branches: []core.Branch{s.branch()}, SortBy: "created_at", SortOrder: "ASC"}, nil
}

func (s stage) GetBranch(context.Context, core.Caller, string, string) (core.Branch, error) {
	return s.branch(), nil
}

func (s stage) ListEndpoints(context.Context, core.Caller, string, string) ([]control.EndpointView, error) {
	return []control.EndpointView{s.endpoint()}, nil
}

func (s stage) ListDatabases(context.Context, core.Caller, string, string) ([]core.Database, error) {
	return []core.Database{s.database()}, nil
}

func (s stage) ListRoles(context.Context, core.Caller, string, string) ([]core.Role, error) {
	return []core.Role{s.role("")}, nil
}

func (s stage) CreateRole(context.Context, core.Caller, string, string, control.CreateRole) (control.RoleResult, error) {
	return control.RoleResult{Role: s.role("npg_x"), Operations: s.ops()[1:]}, nil
}

func (s stage) ListOperations(context.Context, core.Caller, string, int, string) (control.OperationPage, error) {
	ops := s.ops()
	slices.Reverse(ops)
	return control.OperationPage{Operations: ops, Cursor: "2031-03-05T05:07:08.999999Z"}, nil
}

func (s stage) ListKeys(context.Context, core.Caller) ([]core.APIKey, error) {
	return []core.APIKey{s.key()}, nil
}

func (s stage) CreateKey(context.Context, core.Caller, string) (control.KeyCreated, error) {
	return control.KeyCreated{Key: s.key(), Secret: "napi_x"}, nil
}

func (s stage) RevokeKey(context.Context, core.Caller, int64) (core.APIKey, error) {
	return s.key(), nil
}

func (s stage) Me(context.Context, core.Caller) (core.User, error) {
	return core.User{ID: "0198a5c8-0000-7000-8000-00000000000a", Email: "robin@example.com", Name: "Robin"}, nil
}

func (s stage) MyOrganizations(context.Context, core.Caller) ([]core.Organization, error) {
	return []core.Organization{{ID: "org-calm-sea-12345678", Handle: "org", Name: "Org", CreatedAt: clock, UpdatedAt: clock}}, nil
}

func (s stage) GetOrganization(context.Context, core.Caller, string) (core.Organization, error) {
	list, err := s.MyOrganizations(context.Background(), core.Caller{})
	return list[0], err
}

func (s stage) Regions() []control.Region {
	return []control.Region{{ID: "local", Name: "Local", Default: true}}
}

// Answers fit the contract, and have the keys of the examples that clients were written against.
func TestAnswersHaveTheDocumentedShape(t *testing.T) {
	doc, err := openapi3.NewLoader().LoadFromData(api.OpenAPI())
	if err != nil {
		t.Fatal(err)
	}
	ops := map[string]*openapi3.Operation{}
	for _, item := range doc.Paths.Map() {
		for _, op := range item.Operations() {
			ops[op.OperationID] = op
		}
	}
	const p, b = "/api/v2/projects/calm-sea-12345678", "/api/v2/projects/calm-sea-12345678/branches/br-calm-sea-abcdefgh"
	for _, tc := range []struct {
		id, method, path, body string
		used                   bool
		less, more             string // keys that the example has and we have not, and the other way round
	}{
		{id: "createProject", method: "POST", path: "/api/v2/projects", body: `{"project":{}}`, more: "project.synthetic_storage_size"},
		{id: "getProject", method: "GET", path: p, used: true},
		{id: "listProjects", method: "GET", path: "/api/v2/projects", used: true},
		{id: "createProjectBranch", method: "POST", path: p + "/branches"},
		{id: "listProjectBranches", method: "GET", path: p + "/branches", used: true},
		{id: "getProjectBranch", method: "GET", path: b, used: true},
		{id: "listProjectEndpoints", method: "GET", path: p + "/endpoints", used: true, less: "endpoints[].suspended_at"},
		{id: "listProjectBranchDatabases", method: "GET", path: b + "/databases"},
		{id: "listProjectBranchRoles", method: "GET", path: b + "/roles"},
		{id: "createProjectBranchRole", method: "POST", path: b + "/roles", body: `{"role":{"name":"r"}}`},
		{id: "listProjectOperations", method: "GET", path: p + "/operations"},
		{id: "listApiKeys", method: "GET", path: "/api/v2/api_keys"},
		{id: "createApiKey", method: "POST", path: "/api/v2/api_keys", body: `{"key_name":"k"}`},
		{id: "revokeApiKey", method: "DELETE", path: "/api/v2/api_keys/3"},
		{id: "getCurrentUserInfo", method: "GET", path: "/api/v2/users/me"},
		{id: "getCurrentUserOrganizations", method: "GET", path: "/api/v2/users/me/organizations"},
		{id: "getOrganization", method: "GET", path: "/api/v2/organizations/org-calm-sea-12345678"},
		{id: "getActiveRegions", method: "GET", path: "/api/v2/regions"},
	} {
		t.Run(tc.id, func(t *testing.T) {
			s := stage{used: tc.used}
			srv, log := newDoor(t, &desk{}, func(o *Options) { o.UseCases, o.Auth = s, s })
			resp, _, raw := do(t, srv, call{method: tc.method, path: tc.path, ctype: jsonType, body: tc.body})
			want := ops[tc.id].Responses.Value("200")
			if created := ops[tc.id].Responses.Value("201"); created != nil {
				want = created
				if resp.StatusCode != http.StatusCreated {
					t.Errorf("status %d", resp.StatusCode)
				}
			} else if resp.StatusCode != http.StatusOK {
				t.Errorf("status %d", resp.StatusCode)
			}
			var got any
			if err := json.Unmarshal([]byte(raw), &got); err != nil {
				t.Fatalf("%v in %s\n%s", err, raw, log)
			}
			if err := want.Value.Content.Get("application/json").Schema.Value.VisitJSON(got); err != nil {
				t.Errorf("does not fit the contract: %v", err)
			}
			if strings.Contains(raw, "SCRAM") || strings.Contains(raw, "sealed") {
				t.Error("shows a verifier")
			}
			if strings.Contains(raw, ".999") && tc.id != "listProjectOperations" && !strings.Contains(raw, "parent_timestamp") || strings.Contains(raw, "+01:00") {
				t.Errorf("a time is not in UTC and whole seconds: %s", raw)
			}
			file, err := os.ReadFile("../../api/testdata/examples/" + tc.id + ".json")
			if os.IsNotExist(err) {
				return // documented without an example
			}
			var example any
			if err := json.Unmarshal(file, &example); err != nil {
				t.Fatal(err)
			}
			have, need := map[string]bool{}, map[string]bool{}
			keys("", got, have)
			keys("", example, need)
			delete(need, tc.less)
			delete(have, tc.more)
			// The fields of annotations are keyed by branch.
			if g, w := sorted(have), sorted(need); !slices.Equal(g, w) {
				t.Errorf("keys differ from the example:\n ours only: %v\n theirs only: %v", minus(g, w), minus(w, g))
			}
		})
	}
}

// keys collects the paths of all keys in a JSON value; the elements of a list are one.
func keys(at string, v any, into map[string]bool) {
	switch v := v.(type) {
	case map[string]any:
		for k, sub := range v {
			if strings.HasPrefix(k, "br-") {
				k = "*"
			}
			name := joinField(at, k)
			into[name] = true
			keys(name, sub, into)
		}
	case []any:
		for _, sub := range v {
			keys(at+"[]", sub, into)
		}
	}
}

func sorted(m map[string]bool) []string { return slices.Sorted(maps.Keys(m)) }

func minus(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) })
}

func TestParentTimestampKeepsItsMicroseconds(t *testing.T) {
	if got := branch(stage{used: true}.branch()).ParentTimestamp.Format(time.RFC3339Nano); got != "2031-03-05T05:07:08.999999Z" {
		t.Errorf("%s", got)
	}
}
