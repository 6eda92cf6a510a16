package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/boughdb/bough/sdk"
)

// shape collects the paths of all keys in a JSON value with the types of their values. The elements of a list are one, and
// so are objects keyed by ids.
func shape(at string, v any, into map[string]string) {
	set := func(kind string) {
		if old := into[at]; old != "" && old != kind && kind != "null" && old != "null" {
			kind = old + " or " + kind
		}
		into[at] = kind
	}
	switch v := v.(type) {
	case map[string]any:
		set("object")
		for k, sub := range v {
			if strings.HasPrefix(k, "br-") {
				k = "*"
			}
			shape(at+"."+k, sub, into)
		}
	case []any:
		set("list")
		for _, sub := range v {
			shape(at+"[]", sub, into)
		}
	case string:
		set("string")
	case float64:
		set("number")
	case bool:
		set("boolean")
	case nil:
		set("null")
	}
}

// depends are keys that an answer has or has not with the state of the thing that it shows.
var depends = []string{
	"pending_state", "suspended_at", "started_at", "last_active", "last_used_at", "last_used_from_addr", "compute_last_active_at",
	"logical_size", "synthetic_storage_size", "parent_id", "parent_lsn", "parent_timestamp", "init_source", "endpoint_id", "cursor", "next",
	"name", "owner", "annotations", "annotation", "created_by", "restricted_actions", "compute_release_version",
}

// states lists the states in an answer, with their places: of branches, endpoints and operations.
func states(at string, v any) (out []string) {
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			if text, ok := v[k].(string); ok && slices.Contains([]string{"action", "status", "current_state", "pending_state"}, k) {
				out = append(out, at+"."+k+"="+text)
			}
			out = append(out, states(at+"."+k, v[k])...)
		}
	case []any:
		for _, sub := range v {
			out = append(out, states(at+"[]", sub)...)
		}
	}
	return out
}

// TestAnswersHaveTheDocumentedShapes makes the calls of the documentation's examples on a real server. The answers have the
// examples' keys with values of the same types, and those of calls that change something the same states: of operations too.
func TestAnswersHaveTheDocumentedShapes(t *testing.T) {
	s := start(t)
	var project struct {
		Project   struct{ ID string }
		Branch    struct{ ID string }
		Endpoints []struct{ ID string }
	}
	var branch struct {
		Branch     struct{ ID string }
		Endpoints  []struct{ ID string }
		Operations []struct{ ID string }
	}
	var endpoint struct{ Endpoint struct{ ID string } }
	var key struct{ ID int64 }

	// check makes one call and compares.
	tested := map[string]bool{}
	check := func(id, method, path, body string, status int, into any) {
		t.Helper()
		s.settled(t)
		r := s.raw(t, "", method, path, body)
		if r.status != status {
			t.Fatalf("%s answers %d, want %d: %s", id, r.status, status, r.body)
		}
		var got, example any
		if err := json.Unmarshal(r.body, &got); err != nil {
			t.Fatalf("%s: %v in %s", id, err, r.body)
		}
		if into != nil {
			if err := json.Unmarshal(r.body, into); err != nil {
				t.Fatalf("%s: %v", id, err)
			}
		}
		file, err := os.ReadFile("../api/testdata/examples/" + id + ".json")
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(file, &example); err != nil {
			t.Fatal(err)
		}
		have, need := map[string]string{}, map[string]string{}
		shape("", got, have)
		shape("", example, need)
		for _, at := range slices.Sorted(maps.Keys(need)) {
			leaf := at[strings.LastIndex(at, ".")+1:]
			switch h, ok := have[at]; {
			case !ok && (slices.Contains(depends, leaf) || slices.ContainsFunc(depends, func(d string) bool { return strings.Contains(at, "."+d+".") })):
			case !ok && have[at[:strings.LastIndexAny(at, ".[")]] == "":
				// Its parent is missing, which has been told, or is an empty list.
			case !ok:
				t.Errorf("%s: the answer has no %s", id, at)
			case h != need[at] && h != "null" && need[at] != "null":
				t.Errorf("%s: %s is a %s, in the example a %s", id, at, h, need[at])
			}
		}
		if g, w := states("", got), states("", example); method != "GET" && !slices.Equal(g, w) {
			t.Errorf("%s: the states are %q, in the example %q", id, g, w)
		}
		tested[id] = true
	}

	check("createProject", "POST", "/projects", `{"project":{"name":"my-new-api-project"}}`, http.StatusCreated, &project)
	p := "/projects/" + project.Project.ID
	check("getProject", "GET", p, "", 200, nil)
	check("listProjects", "GET", "/projects?limit=10", "", 200, nil)
	check("updateProject", "PATCH", p, `{"project":{"name":"updated-project-name"}}`, 200, nil)
	check("getAvailablePreloadLibraries", "GET", p+"/available_preload_libraries", "", 200, nil)
	check("getConnectionURI", "GET", p+"/connection_uri?database_name=neondb&role_name=neondb_owner", "", 200, nil)

	check("createProjectBranch", "POST", p+"/branches",
		`{"endpoints":[{"type":"read_write"}],"branch":{"parent_id":"`+project.Branch.ID+`","name":"my-new-feature-branch"}}`, http.StatusCreated, &branch)
	b := p + "/branches/" + branch.Branch.ID
	check("getProjectBranch", "GET", b, "", 200, nil)
	check("listProjectBranches", "GET", p+"/branches?sort_by=created_at&sort_order=asc", "", 200, nil)
	check("updateProjectBranch", "PATCH", b, `{"branch":{"name":"updated-branch-name"}}`, 200, nil)
	check("listProjectBranchEndpoints", "GET", b+"/endpoints", "", 200, nil)

	e := p + "/endpoints/" + branch.Endpoints[0].ID
	check("suspendProjectEndpoint", "POST", e+"/suspend", "", 200, nil)
	check("startProjectEndpoint", "POST", e+"/start", "", 200, nil)
	check("restartProjectEndpoint", "POST", e+"/restart", "", 200, nil)
	check("getProjectEndpoint", "GET", e, "", 200, nil)
	check("listProjectEndpoints", "GET", p+"/endpoints", "", 200, nil)

	check("createProjectEndpoint", "POST", p+"/endpoints", `{"endpoint":{"branch_id":"`+branch.Branch.ID+`","type":"read_only"}}`, http.StatusCreated, &endpoint)
	e = p + "/endpoints/" + endpoint.Endpoint.ID
	s.wait(t, ask[sdk.EndpointOperations](t, s, "", "POST", e+"/suspend", "", 200).Operations) // the example's is idle
	check("updateProjectEndpoint", "PATCH", e, `{"endpoint":{"autoscaling_limit_min_cu":0.5,"autoscaling_limit_max_cu":1}}`, 200, nil)
	check("deleteProjectEndpoint", "DELETE", e, "", 200, nil)

	check("createProjectBranchRole", "POST", b+"/roles", `{"role":{"name":"new_app_user"}}`, http.StatusCreated, nil)
	check("getProjectBranchRole", "GET", b+"/roles/new_app_user", "", 200, nil)
	check("listProjectBranchRoles", "GET", b+"/roles", "", 200, nil)

	db := b + "/databases/my_new_app_db"
	check("createProjectBranchDatabase", "POST", b+"/databases", `{"database":{"name":"my_new_app_db","owner_name":"new_app_user"}}`, http.StatusCreated, nil)
	check("getProjectBranchDatabase", "GET", db, "", 200, nil)
	check("listProjectBranchDatabases", "GET", b+"/databases", "", 200, nil)
	check("updateProjectBranchDatabase", "PATCH", db, `{"database":{"owner_name":"neondb_owner"}}`, 200, nil)
	check("deleteProjectBranchDatabase", "DELETE", db, "", 200, nil)
	check("deleteProjectBranchRole", "DELETE", b+"/roles/new_app_user", "", 200, nil)

	check("listProjectOperations", "GET", p+"/operations", "", 200, nil)
	check("getProjectOperation", "GET", p+"/operations/"+branch.Operations[0].ID, "", 200, nil)
	check("createApiKey", "POST", "/api_keys", `{"key_name":"my-new-key"}`, 200, &key)
	check("listApiKeys", "GET", "/api_keys", "", 200, nil)
	check("revokeApiKey", "DELETE", fmt.Sprintf("/api_keys/%d", key.ID), "", 200, nil)

	check("deleteProjectBranch", "DELETE", b, "", 200, nil)
	check("deleteProject", "DELETE", p, "", 200, nil)
	s.settled(t)

	files, err := os.ReadDir("../api/testdata/examples")
	must(t, err)
	for _, f := range files {
		if id := strings.TrimSuffix(f.Name(), ".json"); !tested[id] {
			t.Errorf("there is an example of %s that this test does not know", id)
		}
	}
}
