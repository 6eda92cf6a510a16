package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/boughdb/bough/api"
)

// who are the callers of the matrix, in the order of its columns.
var who = []string{"admin", "member", "guest", "stranger", "organization key", "key of another organization", "project key", "key of another project"}

// matrix says for every operation what each caller gets: y it is let through, f it is forbidden, n it is told that there is
// nothing. It is written down by hand and knows nothing of the server's own table. A path stands for the operation's; the
// body is one that a caller who is let through cannot do harm with.
var matrix = []struct{ operation, want, query, body string }{
	{"getAuthDetails", "yyyyyyyy", "", ""},
	{"getActiveRegions", "yyyyyyyy", "", ""},
	{"listProjects", "yyyyyyyy", "", ""},
	{"listApiKeys", "yyyynnnn", "", ""},
	{"createApiKey", "yyyynnnn", "", `{"key_name":"matrix"}`},
	{"revokeApiKey", "yyyynnnn", "", ""},
	{"getCurrentUserInfo", "yyyynnnn", "", ""},
	{"getCurrentUserOrganizations", "yyyynnnn", "", ""},
	{"listSharedProjects", "yyyynnnn", "", ""},
	{"transferProjectsFromUserToOrg", "yyyynnnn", "", `{"destination_org_id":"org-none","project_ids":["none"]}`},
	{"acceptProjectTransferRequest", "yyyyyyff", "", ""},

	{"getConsumptionHistoryPerProject", "yynnynff", lastDay, ""},
	{"getConsumptionHistoryPerProjectV2", "yynnynff", lastDay + "&metrics=compute_unit_seconds", ""},
	{"getConsumptionHistoryPerBranchV2", "yynnynff", lastDay + "&metrics=compute_unit_seconds&project_ids=none", ""},
	{"createProject", "yynnynff", "", `{"project":{"org_id":"ORG","region_id":"nowhere"}}`},
	{"getOrganization", "yynnynff", "", ""},
	{"getOrganizationMembers", "yynnynff", "", ""},
	{"getOrganizationMember", "yynnynff", "", ""},
	{"updateOrganizationMember", "yfnnfnff", "", `{"role":"member"}`},
	{"removeOrganizationMember", "yfnnfnff", "", ""},
	{"getOrganizationInvitations", "yynnynff", "", ""},
	{"createOrganizationInvitations", "yfnnfnff", "", `{"invitations":[{"email":"somebody@example.com","role":"member"}]}`},
	{"listOrgApiKeys", "yynnynff", "", ""},
	{"createOrgApiKey", "yfnnfnff", "", `{"key_name":"all"}`},
	{"createOrgApiKey", "yynnfnff", "", `{"key_name":"one","project_id":"none"}`},
	{"revokeOrgApiKey", "yynnfnff", "", ""},
	{"transferProjectsFromOrgToOrg", "yfnnynff", "", `{"destination_org_id":"org-none","project_ids":["none"]}`},

	{"deleteProject", "yffnynfn", "", ""}, // it has a protected branch
	{"createProjectTransferRequest", "yffnynfn", "", `{"ttl_seconds":1}`},
	{"grantPermissionToProject", "yyynynfn", "", `{"email":"nobody@example.com"}`},
	{"revokePermissionFromProject", "yyynynfn", "", ""},

	{"getProject", "yyynynyn", "", ""},
	{"updateProject", "yyynynyn", "", `{"project":{}}`},
	{"getConnectionURI", "yyynynyn", "?database_name=none&role_name=none", ""},
	{"getAvailablePreloadLibraries", "yyynynyn", "", ""},
	{"listProjectPermissions", "yyynynyn", "", ""},
	{"getProjectJWKS", "yyynynyn", "", ""},
	{"addProjectJWKS", "yyynynyn", "", `{"jwks_url":"http://example.com","provider_name":"x"}`},
	{"deleteProjectJWKS", "yyynynyn", "", ""},
	{"listProjectOperations", "yyynynyn", "", ""},
	{"getProjectOperation", "yyynynyn", "", ""},
	{"listProjectBranches", "yyynynyn", "", ""},
	{"countProjectBranches", "yyynynyn", "", ""},
	{"createProjectBranch", "yyynynyn", "", `{"branch":{"parent_id":"br-none"}}`},
	{"getProjectBranch", "yyynynyn", "", ""},
	{"updateProjectBranch", "yyynynyn", "", `{"branch":{"name":"x"}}`},
	{"deleteProjectBranch", "yyynynyn", "", ""},
	{"setDefaultProjectBranch", "yyynynyn", "", ""},
	{"listProjectBranchEndpoints", "yyynynyn", "", ""},
	{"listProjectEndpoints", "yyynynyn", "", ""},
	{"createProjectEndpoint", "yyynynyn", "", `{"endpoint":{"branch_id":"br-none","type":"read_write"}}`},
	{"getProjectEndpoint", "yyynynyn", "", ""},
	{"updateProjectEndpoint", "yyynynyn", "", `{"endpoint":{}}`},
	{"deleteProjectEndpoint", "yyynynyn", "", ""},
	{"startProjectEndpoint", "yyynynyn", "", ""},
	{"suspendProjectEndpoint", "yyynynyn", "", ""},
	{"restartProjectEndpoint", "yyynynyn", "", ""},
	{"getProjectBranchSchema", "yyynynyn", "?db_name=none", ""},
	{"getProjectBranchSchemaComparison", "yyynynyn", "?db_name=none", ""},
	{"listProjectBranchDatabases", "yyynynyn", "", ""},
	{"createProjectBranchDatabase", "yyynynyn", "", `{"database":{"name":"x","owner_name":"y"}}`},
	{"getProjectBranchDatabase", "yyynynyn", "", ""},
	{"updateProjectBranchDatabase", "yyynynyn", "", `{"database":{"name":"x"}}`},
	{"deleteProjectBranchDatabase", "yyynynyn", "", ""},
	{"listProjectBranchRoles", "yyynynyn", "", ""},
	{"createProjectBranchRole", "yyynynyn", "", `{"role":{"name":"x"}}`},
	{"getProjectBranchRole", "yyynynyn", "", ""},
	{"deleteProjectBranchRole", "yyynynyn", "", ""},
	{"getProjectBranchRolePassword", "yyynynyn", "", ""},
	{"resetProjectBranchRolePassword", "yyynynyn", "", ""},
}

// lastDay asks for the consumption of an organization.
var lastDay = fmt.Sprintf("?org_id=ORG&granularity=hourly&from=%s&to=%s",
	time.Now().UTC().Add(-24*time.Hour).Format(time.RFC3339), time.Now().UTC().Format(time.RFC3339))

// person makes a user on the server's machine and returns the key.
func (s *server) person(t *testing.T, name string) string {
	t.Helper()
	out, err := s.bough("admin", "users", "create", "--email", name+"@example.com", "--name", name)
	must(t, err)
	key := regexp.MustCompile(`napi_\w+`).FindString(out)
	if key == "" {
		t.Fatalf("no key in %q", out)
	}
	return key
}

// ask sends a request that must be answered with a status, and reads its body.
func ask[T any](t *testing.T, s *server, key, method, path, body string, status int) (out T) {
	t.Helper()
	r := s.raw(t, key, method, path, body)
	if r.status != status {
		t.Fatalf("%s %s: %d %s, want %d", method, path, r.status, r.body, status)
	}
	if len(r.body) > 0 {
		must(t, json.Unmarshal(r.body, &out))
	}
	return out
}

// organization returns the first one of a key's owner.
func (s *server) organization(t *testing.T, key string) string {
	t.Helper()
	return ask[api.OrganizationList](t, s, key, "GET", "/users/me/organizations", "", 200).Organizations[0].ID
}

type madeKey struct {
	ID        int64  `json:"id"`
	Key       string `json:"key"`
	ProjectID string `json:"project_id"`
}

func TestWhoMayDoWhat(t *testing.T) {
	s := start(t)
	p, other := s.project(t), s.project(t)
	org := s.organization(t, "")
	member, guest, stranger := s.person(t, "member"), s.person(t, "guest"), s.person(t, "stranger")
	_, err := s.bough("admin", "orgs", "set-member", "--org-id", org, "--email", "member@example.com", "--role", "member")
	must(t, err)
	ask[any](t, s, "", "POST", "/projects/"+p.ID+"/permissions", `{"email":"Guest@Example.com"}`, 200)
	_, err = s.controlDB(t).Exec(t.Context(), "UPDATE branches SET protected = true WHERE project_id = $1", p.ID)
	must(t, err)
	orgKey := func(key, org, body string) string {
		return ask[madeKey](t, s, key, "POST", "/organizations/"+org+"/api_keys", body, 200).Key
	}
	keys := []string{
		"", member, guest, stranger, orgKey("", org, `{"key_name":"org"}`),
		orgKey(stranger, s.organization(t, stranger), `{"key_name":"their org"}`),
		orgKey(member, org, `{"key_name":"one","project_id":"`+p.ID+`"}`), orgKey("", org, `{"key_name":"other","project_id":"`+other.ID+`"}`),
	}

	doc, err := openapi3.NewLoader().LoadFromData(api.OpenAPI())
	must(t, err)
	type route struct{ method, path string }
	routes := map[string]route{}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			routes[op.OperationID] = route{method, path}
		}
	}
	fill := strings.NewReplacer("{project_id}", p.ID, "{org_id}", org, "{source_org_id}", org, "{branch_id}", "br-none",
		"{endpoint_id}", "ep-none", "{key_id}", "1", "{database_name}", "none", "{role_name}", "none", "{jwks_id}", "none", "{permission_id}", "none",
		"{member_id}", "00000000-0000-4000-8000-000000000000", "{request_id}", "00000000-0000-4000-8000-000000000000",
		"{operation_id}", "00000000-0000-4000-8000-000000000000", "ORG", org)
	hidden := []string{fmt.Sprintf("project %q not found", p.ID), fmt.Sprintf("organization %q not found", org), "organization API keys"}
	tested := map[string]bool{}
	for _, row := range matrix {
		r, ok := routes[row.operation]
		if !ok {
			continue // not built yet
		}
		tested[row.operation] = true
		for i, caller := range who {
			got := s.raw(t, keys[i], r.method, fill.Replace(r.path+row.query), fill.Replace(row.body))
			answer := "y"
			switch {
			case got.status == http.StatusForbidden:
				answer = "f"
			case got.status == http.StatusNotFound && slices.ContainsFunc(hidden, func(h string) bool { return strings.Contains(got.message, h) }):
				answer = "n"
			case got.status == http.StatusUnauthorized || got.status >= 500 && got.status != http.StatusNotImplemented:
				answer = "?"
			}
			if want := row.want[i : i+1]; answer != want {
				t.Errorf("%s by %s: got %s, want %s (%d %s)", row.operation, caller, answer, want, got.status, got.body)
			}
		}
	}
	for id := range routes {
		if !tested[id] {
			t.Errorf("%s is not in the matrix: say who may do it", id)
		}
	}
}

// A personal key has its owner's rights and loses them with the membership; an organization's key outlives its creator; an
// organization keeps an admin.
func TestMembersAndKeys(t *testing.T) {
	s := start(t)
	p := s.project(t)
	org := s.organization(t, "")
	ada := s.person(t, "ada")
	role := func(email, role string) error {
		_, err := s.bough("admin", "orgs", "set-member", "--org-id", org, "--email", email, "--role", role)
		return err
	}
	must(t, role("ada@example.com", "admin"))
	type members struct {
		Members []struct {
			Member struct{ ID, Role string }
			User   struct{ Email string }
		}
		Pagination struct{ Next string }
	}
	at := "/organizations/" + org
	list := ask[members](t, s, ada, "GET", at+"/members?sort_by=email&sort_order=asc&limit=1", "", 200)
	more := ask[members](t, s, ada, "GET", at+"/members?sort_by=email&sort_order=asc&cursor="+list.Pagination.Next, "", 200)
	list.Members = append(list.Members, more.Members...)
	if len(list.Members) != 2 || list.Members[0].User.Email != "ada@example.com" || more.Pagination.Next != "" {
		t.Fatalf("members: %+v, then %+v", list, more)
	}
	second, first := list.Members[0].Member.ID, list.Members[1].Member.ID // in the order of joining

	// Two admins who demote each other at once: one of them stays.
	for range 5 {
		var wg sync.WaitGroup
		answers := make([]reply, 2)
		for i, change := range []struct{ key, member string }{{"", second}, {ada, first}} {
			wg.Go(func() { answers[i] = s.raw(t, change.key, "PATCH", at+"/members/"+change.member, `{"role":"member"}`) })
		}
		wg.Wait()
		admins := 0
		for _, m := range ask[members](t, s, ada, "GET", at+"/members", "", 200).Members {
			if m.Member.Role == "admin" {
				admins++
			}
		}
		if admins != 1 {
			t.Fatalf("%d admins are left after %d %s and %d %s", admins, answers[0].status, answers[0].body, answers[1].status, answers[1].body)
		}
		must(t, role("admin@localhost", "admin"))
		must(t, role("ada@example.com", "admin"))
	}

	key := ask[madeKey](t, s, ada, "POST", at+"/api_keys", `{"key_name":"ci"}`, 200)
	ask[any](t, s, ada, "DELETE", at+"/members/"+first, "", 200)
	if r := s.raw(t, "", "GET", "/projects/"+p.ID, ""); r.status != 404 {
		t.Errorf("a former member still sees the project: %d", r.status)
	}
	for _, change := range []struct{ method, body string }{{"PATCH", `{"role":"member"}`}, {"DELETE", ""}} {
		if r := s.raw(t, ada, change.method, at+"/members/"+second, change.body); r.status != 422 || r.code != "LAST_ADMIN" {
			t.Errorf("%s of the last admin: %d %s", change.method, r.status, r.body)
		}
	}
	if role("ada@example.com", "none") == nil {
		t.Error("bough admin removed the last admin")
	}
	must(t, role("admin@localhost", "admin"))
	must(t, role("ada@example.com", "none"))
	if r := s.raw(t, ada, "GET", at, ""); r.status != 404 {
		t.Errorf("a former admin sees the organization: %d", r.status)
	}
	ask[any](t, s, key.Key, "GET", "/projects/"+p.ID, "", 200)

	var keys []struct {
		ID               int64  `json:"id"`
		LastUsedAt       string `json:"last_used_at"`
		LastUsedFromAddr string `json:"last_used_from_addr"`
	}
	r := s.raw(t, "", "GET", at+"/api_keys", "")
	must(t, json.Unmarshal(r.body, &keys))
	if len(keys) != 1 || keys[0].ID != key.ID || keys[0].LastUsedAt == "" || keys[0].LastUsedFromAddr != "127.0.0.1" || strings.Contains(string(r.body), key.Key) {
		t.Errorf("keys: %s", r.body)
	}
	ask[any](t, s, "", "DELETE", fmt.Sprintf("%s/api_keys/%d", at, key.ID), "", 200)
	if r := s.raw(t, key.Key, "GET", "/projects/"+p.ID, ""); r.status != 401 {
		t.Errorf("a revoked key: %d", r.status)
	}
}

// Projects are shared, offered and given away.
func TestSharingAndTransfers(t *testing.T) {
	s := start(t)
	p := s.project(t)
	org := s.organization(t, "")
	at := "/projects/" + p.ID
	type projects struct{ Projects []struct{ ID string } }
	granted := ask[struct{ ID string }](t, s, "", "POST", at+"/permissions", `{"email":"bo@example.com"}`, 200)
	bo := s.person(t, "bo") // after the permission
	theirs := s.organization(t, bo)
	if l := ask[projects](t, s, bo, "GET", "/projects/shared", "", 200); len(l.Projects) != 1 || l.Projects[0].ID != p.ID {
		t.Errorf("shared: %+v", l)
	}
	ask[any](t, s, bo, "GET", at, "", 200)
	if again := ask[struct{ ID string }](t, s, "", "POST", at+"/permissions", `{"email":"BO@example.com"}`, 200); again != granted {
		t.Errorf("shared twice: %v and %v", granted, again)
	}
	if l := ask[struct {
		ProjectPermissions []any `json:"project_permissions"`
	}](t, s, "", "GET", at+"/permissions", "", 200); len(l.ProjectPermissions) != 1 {
		t.Errorf("permissions: %v", l)
	}
	ask[any](t, s, "", "DELETE", at+"/permissions/"+granted.ID, "", 200)
	ask[any](t, s, bo, "GET", at, "", 404)

	// An offer is taken once, and ends the project's own keys.
	key := ask[madeKey](t, s, "", "POST", "/organizations/"+org+"/api_keys", `{"key_name":"k","project_id":"`+p.ID+`"}`, 200)
	ask[any](t, s, key.Key, "GET", at, "", 200)
	offer := ask[struct{ ID string }](t, s, "", "POST", at+"/transfer_requests", "", 201)
	late := ask[struct{ ID string }](t, s, "", "POST", at+"/transfer_requests", `{"ttl_seconds":60}`, 201)
	_, err := s.controlDB(t).Exec(t.Context(), "UPDATE transfer_requests SET expires_at = now() WHERE id = $1", late.ID)
	must(t, err)
	ask[any](t, s, bo, "PUT", at+"/transfer_requests/"+late.ID, "", 410)
	ask[any](t, s, bo, "PUT", at+"/transfer_requests/"+offer.ID, `{"org_id":"`+org+`"}`, 404)
	ask[any](t, s, "", "PUT", at+"/transfer_requests/"+offer.ID, "", 422)
	ask[any](t, s, bo, "PUT", at+"/transfer_requests/"+offer.ID, "", 204)
	ask[any](t, s, bo, "PUT", at+"/transfer_requests/"+offer.ID, "", 404)
	ask[any](t, s, "", "GET", at, "", 404)
	ask[any](t, s, key.Key, "GET", at, "", 401)
	sql(t, s.connect(t, p.URI), "SELECT 1") // the transfer does not touch the compute

	// Back, by somebody who is an admin there and a member here; all projects or none.
	give := func(key, from, to string, status int, ids ...string) {
		t.Helper()
		body, err := json.Marshal(map[string]any{"destination_org_id": to, "project_ids": ids})
		must(t, err)
		ask[any](t, s, key, "POST", from+"/projects/transfer", string(body), status)
	}
	give(bo, "/organizations/"+theirs, org, 404, p.ID)
	_, err = s.bough("admin", "orgs", "set-member", "--org-id", org, "--email", "bo@example.com", "--role", "member")
	must(t, err)
	give(bo, "/organizations/"+theirs, org, 404, p.ID, "no-such-12345678")
	ask[any](t, s, "", "GET", at, "", 404)
	give(bo, "/organizations/"+theirs, theirs, 400, p.ID)
	give(bo, "/organizations/"+theirs, org, 200, p.ID)
	ask[any](t, s, "", "GET", at, "", 200)
	give(bo, "/users/me", theirs, 403, p.ID) // a member gives nothing away
	_, err = s.bough("admin", "orgs", "set-member", "--org-id", org, "--email", "bo@example.com", "--role", "admin")
	must(t, err)
	give(bo, "/users/me", theirs, 200, p.ID, p.ID)
	give(bo, "/users/me", org, 200, p.ID)

	added := ask[struct {
		JWKS       struct{ ID, URL string }
		Operations []any
	}](t, s, "", "POST", at+"/jwks", `{"jwks_url":"https://example.com/keys.json","provider_name":"idp","branch_id":"`+p.Branch+`","role_names":["authenticated"]}`, 201)
	ask[any](t, s, "", "POST", at+"/jwks", `{"jwks_url":"https://example.com/keys.json","provider_name":"idp","branch_id":"br-none"}`, 404)
	if r := s.raw(t, "", "GET", at+"/jwks", ""); r.status != 200 || strings.Count(string(r.body), `"jwks_url":"https://example.com/keys.json"`) != 1 {
		t.Errorf("jwks: %d %s", r.status, r.body)
	}
	ask[any](t, s, "", "DELETE", at+"/jwks/"+added.JWKS.ID, "", 200)
	ask[any](t, s, "", "DELETE", at+"/jwks/"+added.JWKS.ID, "", 404)
}
