package auth

import (
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/core"
)

// Every operation of the contract has a row, and every row belongs to a published operation, or is a finer one of such.
func TestEveryOperationHasARule(t *testing.T) {
	doc, err := openapi3.NewLoader().LoadFromData(api.OpenAPI())
	if err != nil {
		t.Fatal(err)
	}
	published := map[string]bool{}
	for path, item := range doc.Paths.Map() {
		for _, op := range item.Operations() {
			published[op.OperationID] = true
			rule, ok := RuleOf(op.OperationID)
			if !ok {
				t.Errorf("%s: nothing says who may do it; add a row to rules", op.OperationID)
				continue
			}
			// What names a project or an organization must be about it, else strangers are not kept away. Taking an offered
			// project over is the exception: its caller is a stranger by nature.
			for part, scope := range map[string]Scope{"{project_id}": Project, "org_id}": Organization} {
				if strings.Contains(path, part) && rule.Scope != scope && op.OperationID != "acceptProjectTransferRequest" {
					t.Errorf("%s: %s has scope %d, want %d", op.OperationID, path, rule.Scope, scope)
				}
			}
		}
	}
	for _, r := range api.Unbuilt() {
		published[r.OperationID] = true
	}
	for name, rule := range rules {
		operation, finer, isFiner := strings.Cut(name, ": ")
		if !published[operation] && (!isFiner || finer == "") {
			t.Errorf("%s: the rule belongs to no published operation", name)
		}
		if rule.Allow == 0 {
			t.Errorf("%s: nobody may do it", name)
		}
		allowed := map[Scope]Standing{
			Anything: anyone, Account: Person, Organization: Admin | Member | OrgKey, Project: insiders,
		}[rule.Scope]
		if rule.Allow&^allowed != 0 {
			t.Errorf("%s: its scope does not have those callers: %s", name, (rule.Allow &^ allowed).names())
		}
	}
}

func TestStandings(t *testing.T) {
	var (
		admin   = core.Caller{UserID: "u1", OrgIDs: []string{"o1", "o2"}, AdminOf: []string{"o1"}}
		member  = core.Caller{UserID: "u2", OrgIDs: []string{"o1"}}
		alone   = core.Caller{UserID: "u3"}
		orgKey  = core.Caller{OrgID: "o1", OrgIDs: []string{"o1"}}
		project = core.Caller{OrgID: "o1", OrgIDs: []string{"o1"}, ProjectID: "p1"}
	)
	for _, tc := range []struct {
		name             string
		got, want        Standing
		operation        string
		allowed, visible bool
	}{
		{"admin", On(admin, "p1", "o1", false), Admin, "deleteProject", true, true},
		{"admin elsewhere", On(admin, "p2", "o2", false), Member, "deleteProject", false, true},
		{"member", On(member, "p1", "o1", false), Member, "deleteProject", false, true},
		{"member of another organization", On(member, "p2", "o2", false), Stranger, "getProject", false, false},
		{"member with a needless permission", On(member, "p1", "o1", true), Member, "getProject", true, true},
		{"guest", On(alone, "p1", "o1", true), Guest, "getProject", true, true},
		{"stranger", On(alone, "p1", "o1", false), Stranger, "getProject", false, false},
		{"organization key", On(orgKey, "p1", "o1", false), OrgKey, "deleteProject", true, true},
		{"organization key elsewhere", On(orgKey, "p2", "o2", true), Stranger, "getProject", false, false},
		{"project key", On(project, "p1", "o1", false), ProjectKey, "getProject", true, true},
		{"project key and its project's end", On(project, "p1", "o1", false), ProjectKey, "deleteProject", false, true},
		{"project key on another project", On(project, "p3", "o1", true), Stranger, "getProject", false, false},
		{"project key after a transfer", On(project, "p1", "o2", false), Stranger, "getProject", false, false},
		{"project key in its organization", In(project, "o1"), ProjectKey, "getOrganization", false, true},
		{"member in the organization", In(member, "o1"), Member, "updateOrganizationMember", false, true},
		{"admin of another organization", In(admin, "o2"), Member, OrgKeyForAll, false, true},
		{"organization key makes no key", In(orgKey, "o1"), OrgKey, "createOrgApiKey", false, true},
		{"a user's own", Apart(alone), Person, "listApiKeys", true, true},
		{"a user's own, with an organization key", Apart(orgKey), OrgKey, "listApiKeys", false, false},
		{"a list, with a project key", Apart(project), ProjectKey, "listProjects", true, true},
		{"nobody", Apart(core.Caller{}), Stranger, "listProjects", false, false},
	} {
		if tc.got != tc.want {
			t.Errorf("%s: standing %b, want %b", tc.name, tc.got, tc.want)
		}
		err := Permit(tc.operation, tc.got, core.NotFoundf("not here"))
		switch {
		case tc.allowed && err != nil, !tc.allowed && err == nil,
			!tc.allowed && tc.visible != core.IsKind(err, core.KindForbidden),
			!tc.allowed && !tc.visible != core.IsKind(err, core.KindNotFound):
			t.Errorf("%s: %s: %v", tc.name, tc.operation, err)
		}
	}
	if err := Permit("noSuchOperation", Admin, nil); !core.IsKind(err, core.KindInternal) {
		t.Errorf("an operation without a rule: %v", err)
	}
}
