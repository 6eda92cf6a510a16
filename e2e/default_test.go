package e2e

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/boughdb/bough/sdk"
)

// TestDefaultBranch moves the default, also when many ask at once: there is always exactly one.
func TestDefaultBranch(t *testing.T) {
	s := start(t)
	p := s.project(t)
	ids := []string{p.Branch}
	for i := range 4 {
		made, err := s.CreateBranch(t.Context(), p.ID, sdk.BranchCreateRequest{Branch: &sdk.BranchCreate{Name: new(fmt.Sprint("b-", i))}})
		if err != nil {
			t.Fatal(err)
		}
		s.wait(t, made.Operations)
		ids = append(ids, made.Branch.ID)
	}
	defaults := func() (out []string) {
		t.Helper()
		list, err := sdk.All(s.Branches(t.Context(), p.ID, sdk.BranchFilter{}))
		if err != nil || len(list) != len(ids) {
			t.Fatal(len(list), err)
		}
		for _, b := range list {
			if b.Default {
				out = append(out, b.ID)
			}
		}
		return out
	}
	out, err := s.SetDefaultBranch(t.Context(), p.ID, ids[2])
	if err != nil || !out.Branch.Default || out.Branch.ID != ids[2] || len(out.Operations) != 0 {
		t.Fatalf("%+v, %v", out, err)
	}
	if got := defaults(); !slices.Equal(got, ids[2:3]) {
		t.Errorf("default: %v", got)
	}
	if again, err := s.SetDefaultBranch(t.Context(), p.ID, ids[2]); err != nil || !again.Branch.UpdatedAt.Equal(out.Branch.UpdatedAt) {
		t.Errorf("the second time: %+v, %v", again, err)
	}
	// What names no branch means the new one; the old one is a root still.
	made, err := s.CreateBranch(t.Context(), p.ID, sdk.BranchCreateRequest{})
	if err != nil || made.Branch.ParentID == nil || *made.Branch.ParentID != ids[2] {
		t.Fatalf("%+v, %v", made, err)
	}
	s.wait(t, made.Operations)
	ids = append(ids, made.Branch.ID)
	for id, why := range map[string]string{ids[2]: "default", p.Branch: "root"} {
		if r := s.raw(t, "", "DELETE", "/projects/"+p.ID+"/branches/"+id, ""); r.status != 422 || !strings.Contains(r.message, why) {
			t.Errorf("delete of the %s: %d %s", why, r.status, r.message)
		}
	}

	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if _, err := s.SetDefaultBranch(t.Context(), p.ID, ids[i%len(ids)]); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := defaults(); len(got) != 1 {
		t.Errorf("defaults: %v", got)
	}
	if text, err := s.bough("branches", "set-default", "b-3", "--project-id", p.ID); err != nil || !slices.Equal(defaults(), ids[4:5]) {
		t.Errorf("%v: %s", err, text)
	}

	path := "/projects/" + p.ID + "/branches"
	for _, c := range []struct {
		query string
		want  int
	}{{"", 6}, {"?search=B-", 4}, {"?search=b-1", 1}, {"?search=" + ids[1], 1}, {"?search=%25", 0}, {"?search=", 6}} {
		if r := s.raw(t, "", "GET", path+"/count"+c.query, ""); r.status != 200 || strings.TrimSpace(string(r.body)) != fmt.Sprintf(`{"count":%d}`, c.want) {
			t.Errorf("count%s: %d %s, want %d", c.query, r.status, r.body, c.want)
		}
		list, err := sdk.All(s.Branches(t.Context(), p.ID, sdk.BranchFilter{Search: strings.TrimPrefix(strings.TrimPrefix(c.query, "?search="), "%25")}))
		if err != nil || c.query != "?search=%25" && len(list) != c.want {
			t.Errorf("list%s: %d, %v", c.query, len(list), err)
		}
	}
	for _, r := range []reply{
		s.raw(t, "", "POST", path+"/br-no-such-1/set_as_default", ""), s.raw(t, "", "GET", "/projects/no-such-1/branches/count", ""),
	} {
		if r.status != 404 {
			t.Errorf("%d %s", r.status, r.message)
		}
	}
}
