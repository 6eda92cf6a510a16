package e2e

import (
	"strings"
	"testing"

	"github.com/boughdb/bough/sdk"
)

// TestAccountVerbs uses the command line for everything around accounts, against a real server.
func TestAccountVerbs(t *testing.T) {
	s := start(t)
	p := s.project(t)
	kim := s.person(t, "kim")
	kimEmail := ask[sdk.User](t, s, kim, "GET", "/users/me", "", 200).Email
	run := func(words string, args ...string) string {
		t.Helper()
		out, err := s.bough(args...)
		if err != nil || !strings.Contains(out, words) {
			t.Errorf("bough %s: %v, wanted %q in\n%s", strings.Join(args, " "), err, words, out)
		}
		return out
	}
	field := func(text, name string) string {
		t.Helper()
		for line := range strings.Lines(text) {
			if rest, ok := strings.CutPrefix(line, name+":"); ok {
				return strings.TrimSpace(rest)
			}
		}
		t.Fatalf("no %s in\n%s", name, text)
		return ""
	}
	run("Handle:", "orgs", "get")
	run("http", "invitations", "create", "sam@example.com")
	run("sam@example.com", "invitations", "list")
	run(kimEmail, "invitations", "create", kimEmail)
	run(kimEmail, "members", "list")
	run("admin", "members", "set-role", kimEmail, "admin")
	run("Removed "+kimEmail, "members", "remove", kimEmail, "--yes")

	made := run("Project:", "keys", "create", "deploy", "--project-id", p.ID)
	if r := s.raw(t, field(made, "Key"), "GET", "/projects/"+p.ID, ""); r.status != 200 {
		t.Errorf("the key of the project: %d %s", r.status, r.message)
	}
	org := s.organization(t, "")
	run("deploy", "keys", "list", "--org-id", org)
	run("Revoked key deploy", "keys", "revoke", "deploy", "--org-id", org, "--yes")
	run("Key:", "keys", "create", "all", "--org-id", org)

	run("Shared", "projects", "share", kimEmail)
	run(kimEmail, "projects", "permissions")
	run(p.ID, "projects", "list", "--shared", "--api-key", kim)
	run("no longer shared", "projects", "unshare", kimEmail)

	made = run("accept-transfer", "projects", "request-transfer", "--ttl", "1h")
	own := s.organization(t, kim)
	run("now belongs to "+own, "projects", "accept-transfer", p.ID, field(made, "Id"), "--api-key", kim)
	p2 := s.project(t)
	run("everywhere", "ip-allow", "list", "--project-id", p2.ID)
	run("10.0.0.0/8", "ip-allow", "add", "10.0.0.0/8", "::1", "--project-id", p2.ID)
	run("Connections from:  ::1\n", "ip-allow", "remove", "10.0.0.0/8", "--project-id", p2.ID)
	run("everywhere", "ip-allow", "reset", "--project-id", p2.ID)
	made = run("Id:", "jwks", "add", "https://login.example.com/k", "--provider", "example", "--project-id", p2.ID)
	run("login.example.com", "jwks", "list", "--project-id", p2.ID)
	run("Deleted JWKS", "jwks", "delete", field(made, "Id"), "--project-id", p2.ID)
}
