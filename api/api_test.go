package api

import (
	"bytes"
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

func loadSpec(t *testing.T) *openapi3.T {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(OpenAPI())
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return doc
}

// built returns the operations of openapi.yaml by "METHOD path".
func built(doc *openapi3.T) map[string]*openapi3.Operation {
	ops := map[string]*openapi3.Operation{}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			ops[method+" "+path] = op
		}
	}
	return ops
}

// The published API has 163 operations: each is either built or in the table, never both, under one id.
func TestEveryPublishedOperationIsKnown(t *testing.T) {
	const published = 163
	ops := built(loadSpec(t))
	ids := map[string]bool{}
	routes := map[string]bool{}
	for route, op := range ops {
		if op.OperationID == "" {
			t.Errorf("%s has no operationId", route)
		}
		ids[op.OperationID], routes[route] = true, true
	}
	for _, r := range Unbuilt() {
		if ids[r.OperationID] || routes[r.Method+" "+r.Path] {
			t.Errorf("%s %s (%s) is listed twice", r.Method, r.Path, r.OperationID)
		}
		ids[r.OperationID], routes[r.Method+" "+r.Path] = true, true
	}
	if len(ids) != published || len(routes) != published {
		t.Errorf("%d built and %d not built make %d ids and %d routes, want %d",
			len(ops), len(Unbuilt()), len(ids), len(routes), published)
	}
}

// models maps an operation to the Go type of its answer.
var models = map[string]any{
	"listApiKeys": []APIKey{}, "createApiKey": APIKeyCreated{}, "revokeApiKey": APIKeyRevoked{},
	"listProjectOperations": OperationList{}, "getProjectOperation": OperationResponse{},
	"listProjects": ProjectList{}, "createProject": ProjectCreated{}, "getProject": ProjectResponse{},
	"updateProject": ProjectOperations{}, "deleteProject": ProjectResponse{}, "getConnectionURI": ConnectionURIResponse{},
	"getAvailablePreloadLibraries": AvailablePreloadLibraries{},
	"createProjectBranch":          BranchCreated{}, "listProjectBranches": BranchList{}, "getProjectBranch": BranchWithAnnotation{},
	"updateProjectBranch": BranchOperations{}, "deleteProjectBranch": BranchOperations{},
	"listProjectBranchEndpoints": EndpointList{}, "listProjectEndpoints": EndpointList{},
	"createProjectEndpoint": EndpointOperations{}, "getProjectEndpoint": EndpointResponse{},
	"updateProjectEndpoint": EndpointOperations{}, "deleteProjectEndpoint": EndpointOperations{},
	"startProjectEndpoint": EndpointOperations{}, "suspendProjectEndpoint": EndpointOperations{},
	"restartProjectEndpoint":      EndpointOperations{},
	"createProjectBranchDatabase": DatabaseOperations{}, "listProjectBranchDatabases": DatabaseList{},
	"getProjectBranchDatabase": DatabaseResponse{}, "updateProjectBranchDatabase": DatabaseOperations{},
	"deleteProjectBranchDatabase": DatabaseOperations{},
	"createProjectBranchRole":     RoleOperations{}, "listProjectBranchRoles": RoleList{},
	"getProjectBranchRole": RoleResponse{}, "deleteProjectBranchRole": RoleOperations{},
}

// An example of every documented answer fits the schema, and passes through its Go type without losing or gaining a key.
func TestExamplesFitTheModels(t *testing.T) {
	byID := map[string]*openapi3.Operation{}
	for _, op := range built(loadSpec(t)) {
		byID[op.OperationID] = op
	}
	for id, model := range models {
		t.Run(id, func(t *testing.T) {
			raw, err := os.ReadFile("testdata/examples/" + id + ".json")
			if err != nil {
				t.Fatal(err)
			}
			var want any
			if err := json.Unmarshal(raw, &want); err != nil {
				t.Fatal(err)
			}
			status := "200"
			if byID[id].Responses.Value("201") != nil {
				status = "201"
			}
			schema := byID[id].Responses.Value(status).Value.Content.Get("application/json").Schema.Value
			if err := schema.VisitJSON(want); err != nil {
				t.Errorf("does not fit the schema: %v", err)
			}
			v := reflect.New(reflect.TypeOf(model))
			dec := json.NewDecoder(bytes.NewReader(raw))
			dec.DisallowUnknownFields()
			if err := dec.Decode(v.Interface()); err != nil {
				t.Fatalf("does not fit %T: %v", model, err)
			}
			again, err := json.Marshal(v.Interface())
			if err != nil {
				t.Fatal(err)
			}
			var got any
			if err := json.Unmarshal(again, &got); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("changed on its way through %T:\n got %s\nwant %s", model, again, raw)
			}
		})
	}
	files, err := os.ReadDir("testdata/examples")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if _, ok := models[strings.TrimSuffix(f.Name(), ".json")]; !ok {
			t.Errorf("%s belongs to no operation", f.Name())
		}
	}
}

func TestNullableTimeTellsNullFromAbsent(t *testing.T) {
	for in, want := range map[string]struct{ set, value bool }{
		`{}`:                                    {false, false},
		`{"expires_at":null}`:                   {true, false},
		`{"expires_at":"2031-03-01T00:00:00Z"}`: {true, true},
	} {
		var u BranchUpdate
		if err := json.Unmarshal([]byte(in), &u); err != nil {
			t.Fatal(err)
		}
		if u.ExpiresAt.Set != want.set || (u.ExpiresAt.Time != nil) != want.value {
			t.Errorf("%s became %+v", in, u.ExpiresAt)
		}
		if out, err := json.Marshal(u); err != nil || string(out) != in {
			t.Errorf("%s came back as %s (%v)", in, out, err)
		}
	}
}
