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

// statuses picks the actions and statuses of an answer's operations.
func statuses(v any) (out []string) {
	m, _ := v.(map[string]any)
	list, _ := m["operations"].([]any)
	for _, o := range list {
		op := o.(map[string]any)
		out = append(out, fmt.Sprint(op["action"], " ", op["status"]))
	}
	return out
}

// TestAnswersHaveTheDocumentedShapes makes the calls of the documentation's examples on a real server. The answers have the
// examples' keys with values of the same types, and their operations begin in the same states.
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
	var bare struct{ Branch struct{ ID string } }
	var key struct{ ID int64 }

	// check makes one call and compares; operations makes the states of operations count.
	check := func(id, method, path, body string, status int, into any, operations bool) {
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
		if g, w := statuses(got), statuses(example); operations && !slices.Equal(g, w) {
			t.Errorf("%s begins the operations %q, in the example %q", id, g, w)
		}
	}

	check("createProject", "POST", "/projects", `{"project":{"name":"orders"}}`, http.StatusCreated, &project, true)
	p := "/projects/" + project.Project.ID
	check("getProject", "GET", p, "", 200, nil, false)
	check("listProjects", "GET", "/projects", "", 200, nil, false)
	check("updateProject", "PATCH", p, `{"project":{"name":"renamed"}}`, 200, nil, true)
	check("getConnectionURI", "GET", p+"/connection_uri?database_name=neondb&role_name=neondb_owner", "", 200, nil, false)

	check("createProjectBranch", "POST", p+"/branches", `{"endpoints":[{"type":"read_write"}]}`, http.StatusCreated, &branch, true)
	b := p + "/branches/" + branch.Branch.ID
	check("getProjectBranch", "GET", b, "", 200, nil, false)
	check("listProjectBranches", "GET", p+"/branches", "", 200, nil, false)
	check("updateProjectBranch", "PATCH", b, `{"branch":{"name":"renamed"}}`, 200, nil, true)
	check("listProjectBranchEndpoints", "GET", b+"/endpoints", "", 200, nil, false)

	e := p + "/endpoints/" + branch.Endpoints[0].ID
	check("suspendProjectEndpoint", "POST", e+"/suspend", "", 200, nil, true)
	check("startProjectEndpoint", "POST", e+"/start", "", 200, nil, true)
	check("restartProjectEndpoint", "POST", e+"/restart", "", 200, nil, true)
	check("getProjectEndpoint", "GET", e, "", 200, nil, false)
	check("listProjectEndpoints", "GET", p+"/endpoints", "", 200, nil, false)
	check("updateProjectEndpoint", "PATCH", e, `{"endpoint":{"suspend_timeout_seconds":600}}`, 200, nil, false)

	if r := s.raw(t, "", "POST", p+"/branches", `{}`); r.status != http.StatusCreated || json.Unmarshal(r.body, &bare) != nil {
		t.Fatalf("%d: %s", r.status, r.body)
	}
	check("createProjectEndpoint", "POST", p+"/endpoints", `{"endpoint":{"branch_id":"`+bare.Branch.ID+`","type":"read_write"}}`, http.StatusCreated, &endpoint, true)
	var suspended struct{ Operations []sdk.Operation }
	if r := s.raw(t, "", "POST", p+"/endpoints/"+endpoint.Endpoint.ID+"/suspend", ""); r.status != 200 || json.Unmarshal(r.body, &suspended) != nil {
		t.Fatalf("%d: %s", r.status, r.body)
	}
	s.wait(t, suspended.Operations)
	check("deleteProjectEndpoint", "DELETE", p+"/endpoints/"+endpoint.Endpoint.ID, "", 200, nil, true)

	check("createProjectBranchDatabase", "POST", b+"/databases", `{"database":{"name":"shop","owner_name":"neondb_owner"}}`, http.StatusCreated, nil, true)
	check("getProjectBranchDatabase", "GET", b+"/databases/shop", "", 200, nil, false)
	check("listProjectBranchDatabases", "GET", b+"/databases", "", 200, nil, false)
	check("updateProjectBranchDatabase", "PATCH", b+"/databases/shop", `{"database":{"name":"store"}}`, 200, nil, true)
	check("deleteProjectBranchDatabase", "DELETE", b+"/databases/store", "", 200, nil, true)

	check("createProjectBranchRole", "POST", b+"/roles", `{"role":{"name":"sally"}}`, http.StatusCreated, nil, true)
	check("getProjectBranchRole", "GET", b+"/roles/sally", "", 200, nil, false)
	check("listProjectBranchRoles", "GET", b+"/roles", "", 200, nil, false)
	check("deleteProjectBranchRole", "DELETE", b+"/roles/sally", "", 200, nil, true)

	check("listProjectOperations", "GET", p+"/operations", "", 200, nil, false)
	check("getProjectOperation", "GET", p+"/operations/"+branch.Operations[0].ID, "", 200, nil, false)
	check("createApiKey", "POST", "/api_keys", `{"key_name":"mine"}`, 200, &key, false)
	check("listApiKeys", "GET", "/api_keys", "", 200, nil, false)
	check("revokeApiKey", "DELETE", fmt.Sprintf("/api_keys/%d", key.ID), "", 200, nil, false)

	check("deleteProjectBranch", "DELETE", b, "", 200, nil, true)
	check("deleteProject", "DELETE", p, "", 200, nil, false)
	s.settled(t)
}
