package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/sdk"
)

// inSeconds is a time as a client sends it.
func inSeconds(n int) string {
	return time.Now().Add(time.Duration(n) * time.Second).UTC().Format(time.RFC3339)
}

// TestExpiry deletes branches at the time they were given, running ones and those that came due while no server ran, and
// gives none to a branch that others need.
func TestExpiry(t *testing.T) {
	s := start(t)
	p := s.project(t)
	base := "/projects/" + p.ID + "/branches"
	patch := func(id, body string) reply {
		return s.raw(t, "", "PATCH", base+"/"+id, `{"branch":`+body+`}`)
	}
	keep, child, soon := p.branch(t, ""), p.branch(t, ""), p.branch(t, "")
	grandchild := p.branch(t, child.ID)

	for _, c := range []struct {
		what, id, body string
		status         int
	}{
		{"the past", keep.ID, `{"expires_at":"2020-01-01T00:00:00Z"}`, 400},
		{"too far", keep.ID, fmt.Sprintf(`{"expires_at":%q}`, inSeconds(31*24*3600)), 400},
		{"no zone", keep.ID, `{"expires_at":"2031-01-01T00:00:00"}`, 400},
		{"no time", keep.ID, `{"expires_at":"tomorrow"}`, 400},
		{"default", p.Branch, fmt.Sprintf(`{"expires_at":%q}`, inSeconds(3600)), 422},
		{"parent", child.ID, fmt.Sprintf(`{"expires_at":%q}`, inSeconds(3600)), 422},
		{"protected", keep.ID, fmt.Sprintf(`{"protected":true,"expires_at":%q}`, inSeconds(3600)), 422},
	} {
		if r := patch(c.id, c.body); r.status != c.status || c.status == 422 && !strings.Contains(r.message, "cannot expire") {
			t.Errorf("%s: %d %s", c.what, r.status, r.message)
		}
	}
	if r := s.raw(t, "", "POST", base, fmt.Sprintf(`{"branch":{"protected":true,"expires_at":%q}}`, inSeconds(3600))); r.status != 422 {
		t.Errorf("create of a protected branch that expires: %d %s", r.status, r.message)
	}

	// What expires is not needed by anything.
	at := inSeconds(3600)
	if r := patch(keep.ID, fmt.Sprintf(`{"expires_at":%q}`, at)); r.status != 200 {
		t.Fatalf("%d %s", r.status, r.message)
	}
	b, err := s.Branch(t.Context(), p.ID, keep.ID)
	if err != nil || b.ExpiresAt == nil || b.ExpiresAt.Format(time.RFC3339) != at || b.TTLIntervalSeconds == nil ||
		*b.TTLIntervalSeconds < 3500 || *b.TTLIntervalSeconds > 3600 {
		t.Errorf("%+v, %v", b, err)
	}
	for what, r := range map[string]reply{
		"protect": patch(keep.ID, `{"protected":true}`),
		"default": s.raw(t, "", "POST", base+"/"+keep.ID+"/set_as_default", ""),
		"child":   s.raw(t, "", "POST", base, `{"branch":{"parent_id":"`+keep.ID+`"}}`),
	} {
		if r.status != 422 || !strings.Contains(r.message, "expires_at") {
			t.Errorf("%s: %d %s", what, r.status, r.message)
		}
	}
	if r := patch(keep.ID, `{"name":"kept"}`); r.status != 200 {
		t.Errorf("a new name: %d %s", r.status, r.message)
	}
	if b, err = s.Branch(t.Context(), p.ID, keep.ID); err != nil || b.ExpiresAt == nil {
		t.Errorf("a new name took the date away: %+v, %v", b, err)
	}
	if text, err := s.bough("branches", "set-expiration", "kept", "--project-id", p.ID); err != nil || strings.Contains(text, "Expires") {
		t.Errorf("%v: %s", err, text)
	}
	if b, err = s.Branch(t.Context(), p.ID, keep.ID); err != nil || b.ExpiresAt != nil || b.TTLIntervalSeconds != nil {
		t.Errorf("the date is still there: %+v, %v", b, err)
	}
	if r := patch(keep.ID, `{"protected":true,"expires_at":null}`); r.status != 200 {
		t.Errorf("protect: %d %s", r.status, r.message)
	}

	// One that runs, one that has just been made, and one that is due while no server runs.
	gone := func(id string) {
		t.Helper()
		eventually(t, opLimit, func() string {
			if _, err := s.Branch(t.Context(), p.ID, id); !sdk.IsNotFound(err) {
				return fmt.Sprintf("branch %s: %v", id, err)
			}
			return ""
		})
	}
	if r := patch(soon.ID, fmt.Sprintf(`{"expires_at":%q}`, inSeconds(2))); r.status != 200 {
		t.Fatalf("%d %s", r.status, r.message)
	}
	made, err := s.CreateBranch(t.Context(), p.ID, sdk.BranchCreateRequest{
		Branch: &sdk.BranchCreate{ExpiresAt: new(time.Now().Add(1200 * time.Millisecond))}, Endpoints: readWrite(),
	})
	if err != nil {
		t.Fatal(err)
	}
	gone(made.Branch.ID)
	gone(soon.ID)
	text, err := s.bough("branches", "create", "away", "--expires-at", "6s", "--project-id", p.ID)
	if err != nil || !strings.Contains(text, "Expires") {
		t.Fatalf("%v: %s", err, text)
	}
	s.Term()
	s.Start() // due during the stop, or right after: both are the same to it
	eventually(t, opLimit, func() string {
		list, err := sdk.All(s.Branches(t.Context(), p.ID, sdk.BranchFilter{}))
		if err != nil || len(list) != 4 {
			return fmt.Sprintf("%d branches, %v", len(list), err)
		}
		return ""
	})
	s.settled(t)
	for _, id := range []string{p.Branch, keep.ID, child.ID, grandchild.ID} {
		if _, err := s.Branch(t.Context(), p.ID, id); err != nil {
			t.Errorf("branch %s: %v", id, err)
		}
	}
	if ops := p.operations(t, api.OperationAction("delete_timeline")); len(ops) != 3 {
		t.Errorf("%d deletions", len(ops))
	}
}
