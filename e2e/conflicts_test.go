package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/boughdb/bough/sdk"
)

// twoAtOnce are calls that change a project, a branch or an endpoint. %P, %B and %E stand for their ids, %N for something new
// in each call. A call may be refused by a rule when another one was faster; none but the one that branches has to wait
// for another one's operations, because those of a branch are carried out in order.
var twoAtOnce = []struct {
	method, path, body string
	refused            []int
}{
	{"PATCH", "/projects/%P", `{"project":{"name":"%N"}}`, nil},
	{"PATCH", "/projects/%P", `{"project":{"settings":{"preload_libraries":{"use_defaults":false}}}}`, nil},
	{"POST", "/projects/%P/branches", `{"branch":{"parent_id":"%B"}}`, []int{423}}, // roles and databases that change for seconds
	{"PATCH", "/projects/%P/branches/%B", `{"branch":{"name":"%N"}}`, nil},
	{"POST", "/projects/%P/branches/%B/set_as_default", ``, nil},
	{"POST", "/projects/%P/branches/%B/roles", `{"role":{"name":"%N"}}`, nil},
	{"POST", "/projects/%P/branches/%B/roles", `{"role":{"name":"same"}}`, []int{409}},
	{"POST", "/projects/%P/branches/%B/roles/neondb_owner/reset_password", ``, nil},
	{"POST", "/projects/%P/branches/%B/databases", `{"database":{"name":"%N","owner_name":"neondb_owner"}}`, nil},
	{"PATCH", "/projects/%P/branches/%B/databases/neondb", `{"database":{"owner_name":"neondb_owner"}}`, nil},
	{"POST", "/projects/%P/endpoints", `{"endpoint":{"branch_id":"%B","type":"read_only","disabled":true}}`, []int{422}}, // the ninth
	{"PATCH", "/projects/%P/endpoints/%E", `{"endpoint":{"suspend_timeout_seconds":777}}`, nil},
	{"PATCH", "/projects/%P/endpoints/%E", `{"endpoint":{"settings":{"pg_settings":{"max_connections":"120"}}}}`, nil},
	{"POST", "/projects/%P/endpoints/%E/start", ``, nil},
	{"POST", "/projects/%P/endpoints/%E/suspend", ``, nil},
	{"POST", "/projects/%P/endpoints/%E/restart", ``, nil},
}

// TestTwoCallsAtOnce makes each call together with each other one, on one branch whose queue they fill, and together with the
// deletion of the branch.
func TestTwoCallsAtOnce(t *testing.T) {
	s := start(t)
	p := s.project(t)
	var names atomic.Int64
	try := func(i int, branch, endpoint string, gone bool) {
		c := twoAtOnce[i]
		fill := strings.NewReplacer("%P", p.ID, "%B", branch, "%E", endpoint, "%N", fmt.Sprint("new-", names.Add(1))).Replace
		r := s.raw(t, "", c.method, fill(c.path), fill(c.body))
		may := r.status/100 == 2 || slices.Contains(c.refused, r.status) || gone && (r.status == 404 || r.status == 422)
		if !may {
			t.Errorf("%s %s %s: %d %s", c.method, c.path, c.body, r.status, r.message)
		}
	}
	busy := p.branch(t, "")
	for i := range twoAtOnce {
		for j := range i + 1 {
			var wg sync.WaitGroup
			wg.Go(func() { try(i, busy.ID, busy.Endpoint, false) })
			wg.Go(func() { try(j, busy.ID, busy.Endpoint, false) })
			wg.Wait()
		}
	}
	s.settled(t)
	if _, err := s.SetDefaultBranch(t.Context(), p.ID, p.Branch); err != nil {
		t.Fatal(err)
	}
	for i := range twoAtOnce {
		b := p.branch(t, "")
		var wg sync.WaitGroup
		wg.Go(func() { try(i, b.ID, b.Endpoint, true) })
		wg.Go(func() {
			// It may be the default or a parent by then.
			if r := s.raw(t, "", "DELETE", "/projects/"+p.ID+"/branches/"+b.ID, ""); r.status != 200 && r.status != 422 {
				t.Errorf("delete beside %s: %d %s", twoAtOnce[i].path, r.status, r.message)
			}
		})
		wg.Wait()
	}
	s.settled(t)
}

// TestConflict asks for a child of a branch whose own creation is under way: the one thing that cannot queue, since there is
// nothing to copy yet. The answer says when to come back, and clients do.
func TestConflict(t *testing.T) {
	s := start(t)
	p := s.project(t)
	s.mu.Lock()
	a := s.admin
	s.mu.Unlock()
	locked := 0
	for range 20 {
		made, err := s.CreateBranch(t.Context(), p.ID, sdk.BranchCreateRequest{})
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), "POST", a.APIURL+"/projects/"+p.ID+"/branches", strings.NewReader(`{"branch":{"parent_id":"`+made.Branch.ID+`"}}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+a.APIKey)
		req.Header.Set("Content-Type", "application/json")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != 423 {
			if res.StatusCode != 201 { // it was ready already
				t.Errorf("status %d", res.StatusCode)
			}
			continue
		}
		if locked++; res.Header.Get("Retry-After") != "1" {
			t.Errorf("423 with Retry-After %q", res.Header.Get("Retry-After"))
		}
		if locked == 1 {
			if text, err := s.bough("branches", "create", "--no-compute", "--parent", made.Branch.ID, "--project-id", p.ID); err != nil {
				t.Errorf("with retries: %v: %s", err, text)
			}
		}
	}
	if locked == 0 {
		t.Error("no call came before the parent was ready")
	}
	s.settled(t)
}
