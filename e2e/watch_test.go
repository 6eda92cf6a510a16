package e2e

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestDifferencesAreSeen gives answers that differ from the specification to the one who compares them.
func TestDifferencesAreSeen(t *testing.T) {
	if spec == nil {
		t.Skipf("needs the clients from npm in %s: scripts/deps.sh test installs them where npm is", clients())
	}
	example := func(id string) string {
		raw, err := os.ReadFile("../api/testdata/examples/" + id + ".json")
		must(t, err)
		return string(raw)
	}
	role, branches, endpoint := example("getProjectBranchRole"), example("listProjectBranches"), example("getProjectEndpoint")
	for _, c := range []struct {
		what, path string
		status     int
		body       string
		want       string // operation, status, place, rule; "": no difference
	}{
		{"the example", "/projects/p/branches/b/roles/r", 200, role, ""},
		{"a list", "/projects/p/branches", 200, branches, ""},
		{"a missing key", "/projects/p/branches/b/roles/r", 200, strings.Replace(role, `"created_at"`, `"made_at"`, 1), "getProjectBranchRole 200 role.created_at required"},
		{"another type", "/projects/p/branches/b/roles/r", 200, strings.Replace(role, `"protected": false`, `"protected": 0`, 1), "getProjectBranchRole 200 role.protected type"},
		{"no time", "/projects/p/branches/b/roles/r", 200, strings.Replace(role, `"updated_at": "`, `"updated_at": "on `, 1), "getProjectBranchRole 200 role.updated_at format"},
		{"an unknown state", "/projects/p/endpoints/e", 200, strings.Replace(endpoint, `"current_state": "`, `"current_state": "so `, 1), "getProjectEndpoint 200 endpoint.current_state enum"},
		{"a key of ours, in a list", "/projects/p/branches", 200, strings.Replace(branches, `"creation_source"`, `"ours": 1, "creation_source"`, 1), "listProjectBranches 200 branches[].ours unknown"},
		{"a status of ours", "/projects/p", 202, `{}`, "getProject 202 - status"},
		{"no JSON", "/projects/p", 200, `<p>`, "getProject 200 - json"},
		{"an error", "/projects/p", 409, `{"code":"X","message":"m"}`, ""},
		{"an error without a message", "/projects/p", 409, `{"code":"X"}`, "getProject 409 message required"},
		{"one that is not published", "/ours", 200, `{}`, ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			}))
			defer server.Close()
			w := &watch{published: &published{routes: spec.routes, known: map[difference]bool{}, told: map[difference]bool{}}, next: own.next, seen: map[string]bool{}}
			res, err := (&http.Client{Transport: w}).Get(server.URL + "/api/v2" + c.path)
			must(t, err)
			defer res.Body.Close()
			if body, err := io.ReadAll(res.Body); err != nil || string(body) != c.body {
				t.Errorf("the client got %s, %v", body, err)
			}
			var got []string
			for d := range w.told {
				got = append(got, strings.Join([]string{d.operation, d.status, d.at, d.rule}, " "))
			}
			if c.want == "" && len(got) > 0 || c.want != "" && !slices.Contains(got, c.want) {
				t.Errorf("told of %q, want %q", got, c.want)
			}
			if c.want == "" || len(got) == 0 {
				return
			}
			for d := range w.told {
				w.known[d] = false
			}
			w.told, w.new = map[difference]bool{}, nil
			if len(w.gone()) != len(got) {
				t.Errorf("before they occur: %q", w.gone())
			}
			if res, err = (&http.Client{Transport: w}).Get(server.URL + "/api/v2" + c.path); err == nil {
				res.Body.Close()
			}
			if len(w.take()) > 0 || len(w.gone()) > 0 {
				t.Error("a listed difference is told of, or not ticked off")
			}
		})
	}
}
