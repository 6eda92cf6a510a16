package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/api/apitest"
	"github.com/boughdb/bough/sdk"
)

// TestHostileRequests sends every operation of the contract random, careless and hostile requests, many of which succeed, and
// looks at what stays behind. BOUGH_FUZZ_REQUESTS and BOUGH_FUZZ_SEED make longer and other runs.
func TestHostileRequests(t *testing.T) {
	number := func(name string, standard uint64) uint64 {
		if text := os.Getenv(name); text != "" {
			n, err := strconv.ParseUint(text, 10, 64)
			if err != nil {
				t.Fatal(name, err)
			}
			return n
		}
		return standard
	}
	requests, seed := number("BOUGH_FUZZ_REQUESTS", 2000), number("BOUGH_FUZZ_SEED", 1)
	s := start(t)
	gen, err := apitest.New(seed)
	if err != nil {
		t.Fatal(err)
	}
	a := &arena{s: s, t: t, known: map[string]string{}, answers: map[int]int{}, worked: map[string]int{}}
	a.furnish()
	for i := range requests {
		a.shoot(gen.Next())
		if a.wrong == 20 {
			t.Fatalf("that is enough, after %d requests of seed %d", i, seed)
		}
	}
	a.check(requests)
	// Most operations must have worked at least once, or what the requests name is wrong.
	var never []string
	for _, r := range gen.Valid() {
		if a.worked[r.Operation] == 0 {
			never = append(never, r.Operation)
		}
	}
	if requests >= 1000 && len(never) > 12 {
		t.Errorf("never worked: %v", never)
	}
}

// arena is the server under fire and what the requests can name.
type arena struct {
	s     *server
	t     *testing.T
	known map[string]string // by placeholder

	projects []string // made by requests, oldest first
	branches []string // project/branch, made by requests
	answers  map[int]int
	worked   map[string]int // by operation
	trail    []string       // what changed something
	wrong    int
}

// furnish makes what is gone of the things that requests can name.
func (a *arena) furnish() {
	t, s := a.t, a.s
	t.Helper()
	ctx := t.Context()
	if _, err := s.Project(ctx, a.known["project_id"]); a.known["project_id"] == "" || err != nil {
		made, err := s.CreateProject(ctx, sdk.ProjectCreate{Name: new("arena")})
		if err != nil {
			t.Fatal(err)
		}
		a.known["project_id"], a.known["operation_id"] = made.Project.ID, made.Operations[0].ID
		a.known["role_name"], a.known["database_name"] = made.Roles[0].Name, made.Databases[0].Name
		a.known["branch_id"] = ""
		s.wait(t, made.Operations)
	}
	project := a.known["project_id"]
	if _, err := s.Branch(ctx, project, a.known["branch_id"]); a.known["branch_id"] == "" || err != nil {
		var made *sdk.BranchCreated
		eventually(t, opLimit, func() string { // the parent may be busy
			var err error
			if made, err = s.CreateBranch(ctx, project, sdk.BranchCreateRequest{Endpoints: &[]api.BranchCreateEndpoint{{Type: api.ReadWrite}}}); err != nil {
				return err.Error()
			}
			return ""
		})
		a.known["branch_id"], a.known["endpoint_id"] = made.Branch.ID, made.Endpoints[0].ID
	}
	if _, err := s.Endpoint(ctx, project, a.known["endpoint_id"]); err != nil {
		made := s.raw(t, "", "POST", "/projects/"+project+"/endpoints", `{"endpoint":{"branch_id":"`+a.known["branch_id"]+`","type":"read_only"}}`)
		a.learn("endpoint", made.body)
	}
	roles, err1 := s.Roles(ctx, project, a.known["branch_id"])
	databases, err2 := s.Databases(ctx, project, a.known["branch_id"])
	if err1 == nil && len(roles) > 0 {
		a.known["role_name"] = roles[0].Name
	}
	if err2 == nil && len(databases) > 0 {
		a.known["database_name"] = databases[len(databases)-1].Name
	}
	if a.known["org_id"] == "" {
		orgs, err := s.Organizations(ctx)
		if err != nil {
			t.Fatal(err)
		}
		me, err := s.Me(ctx)
		if err != nil {
			t.Fatal(err)
		}
		other, err := s.bough("admin", "orgs", "create", "--name", "other", "--email", me.Email)
		if err != nil {
			t.Fatal(err)
		}
		a.known["org_id"], a.known["source_org_id"], a.known["other_org_id"] = orgs[0].ID, orgs[0].ID, strings.TrimSpace(other)
	}
	members := ask[api.OrganizationMembers](t, s, "", "GET", "/organizations/"+a.known["org_id"]+"/members", "", 200).Members
	if len(members) == 1 {
		if a.known["member_id"] == "" {
			s.person(t, "other")
		}
		if _, err := s.bough("admin", "orgs", "set-member", "--org-id", a.known["org_id"], "--email", "other@example.com", "--role", "member"); err != nil {
			t.Fatal(err)
		}
		members = ask[api.OrganizationMembers](t, s, "", "GET", "/organizations/"+a.known["org_id"]+"/members", "", 200).Members
	}
	for _, m := range members {
		if m.User.Email == "other@example.com" {
			a.known["member_id"] = m.Member.ID
		}
	}
}

// learn takes the id of what an answer shows, at its top or below what.
func (a *arena) learn(what string, body []byte) {
	var answer struct {
		ID json.RawMessage `json:"id"`
	}
	var below map[string]json.RawMessage
	if json.Unmarshal(body, &below) == nil && bytes.HasPrefix(below[what], []byte("{")) {
		body = below[what]
	}
	if json.Unmarshal(body, &answer) == nil && len(answer.ID) > 0 {
		a.known[what+"_id"] = strings.Trim(string(answer.ID), `"`)
	}
}

// shoot sends a request, and complains about an answer that must not be.
func (a *arena) shoot(r apitest.Request) {
	t := a.t
	t.Helper()
	r = r.Fill(a.known)
	status, header, body, err := r.Send(t.Context(), a.s.admin.APIURL, a.s.admin.APIKey)
	if err != nil {
		a.wrong++
		t.Errorf("%s: no answer: %v", describe(r), err)
		return
	}
	if problem := apitest.Judge(r, status, header, body); problem != "" {
		a.wrong++
		t.Errorf("%s: %s\nanswer %d: %.2000s", describe(r), problem, status, body)
		return
	}
	if a.answers[status]++; status >= 300 {
		return
	}
	a.worked[r.Operation]++
	if r.Method != "GET" {
		a.trail = append(a.trail, fmt.Sprintf("%s\n\t→ %d %.1000s", describe(r), status, body))
	}
	switch r.Operation {
	case "createProject":
		var made sdk.ProjectCreated
		if err := json.Unmarshal(body, &made); err == nil {
			a.projects = append(a.projects, made.Project.ID)
		}
		if len(a.projects) > 3 {
			a.remove("/projects/" + a.projects[0])
			a.projects = a.projects[1:]
		}
	case "createProjectBranch":
		var made sdk.BranchCreated
		if err := json.Unmarshal(body, &made); err == nil {
			a.branches = append(a.branches, "/projects/"+made.Branch.ProjectID+"/branches/"+made.Branch.ID)
		}
		if made.Branch.ProjectID == a.known["project_id"] {
			a.learn("branch", body)
		}
		if len(a.branches) > 5 {
			a.remove(a.branches[0])
			a.branches = a.branches[1:]
		}
	case "createApiKey", "createOrgApiKey":
		a.learn("key", body)
	case "createProjectBranchRole":
		var made sdk.RoleOperations
		if err := json.Unmarshal(body, &made); err == nil {
			a.known["role_name"] = made.Role.Name
		}
	case "addProjectJWKS":
		a.learn("jwks", body)
	case "grantPermissionToProject":
		a.learn("permission", body)
	case "createProjectTransferRequest":
		a.learn("request", body)
	case "deleteProject", "deleteProjectBranch", "deleteProjectEndpoint", "deleteProjectBranchRole", "deleteProjectBranchDatabase", "removeOrganizationMember":
		a.furnish()
	}
}

// remove deletes what a request made. It may be gone, or not deletable by now.
func (a *arena) remove(path string) {
	if r := a.s.raw(a.t, "", "DELETE", path, ""); r.status >= 500 {
		a.t.Errorf("DELETE %s: %d %s", path, r.status, r.message)
	}
}

// check looks at what stays behind.
func (a *arena) check(requests uint64) {
	t, s := a.t, a.s
	t.Helper()
	s.settled(t)
	ctx := t.Context()
	projects, err := sdk.All(s.Projects(ctx, sdk.ProjectFilter{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range projects {
		ops, err := sdk.All(s.Operations(ctx, p.ID, sdk.OperationFilter{}))
		if err != nil {
			t.Fatal(err)
		}
		for _, op := range ops {
			if op.Status != api.OperationStatusFinished && op.Status != api.OperationStatusSkipped {
				t.Errorf("operation %s %s of branch %v ended as %s: %v", op.Action, op.ID, opt(op.BranchID), op.Status, opt(op.Error))
				shown := 0
				for _, step := range slices.Backward(a.trail) {
					if shown < 10 && op.BranchID != nil && strings.Contains(step, *op.BranchID) {
						t.Log(step)
						shown++
					}
				}
			}
		}
		branches, err := sdk.All(s.Branches(ctx, p.ID, sdk.BranchFilter{}))
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range branches {
			if b.CurrentState != "ready" {
				t.Errorf("branch %s is %s: %v", b.ID, b.CurrentState, b.StateChangedAt)
			}
			if b.Protected {
				if _, err := s.UpdateBranch(ctx, p.ID, b.ID, sdk.BranchUpdate{Protected: new(false)}); err != nil {
					t.Error(err)
				}
			}
		}
	}
	t.Logf("%d requests left %d projects; answers by status: %v", requests, len(projects), a.answers)
	for _, p := range projects {
		if _, err := s.DeleteProject(ctx, p.ID); err != nil {
			t.Errorf("project %s cannot be deleted: %v", p.ID, err)
		}
	}
	s.settled(t)
	for _, dir := range []string{"/pool/volumes", "/wal"} {
		if left := slices.DeleteFunc(folders(s.dir+dir), func(name string) bool { return strings.HasPrefix(name, "template-") }); len(left) > 0 {
			t.Errorf("left in %s: %v", dir, left)
		}
	}
	log, err := os.ReadFile(s.logFile())
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range regexp.MustCompile(`(?m)^.*level=ERROR.*$`).FindAll(log, 5) {
		t.Errorf("in the log: %.1000s", line)
	}
}

func opt[T ~string](s *T) T {
	if s == nil {
		return ""
	}
	return *s
}

func describe(r apitest.Request) string {
	body := r.Body
	if len(body) > 1000 {
		body = slices.Concat(body[:1000], []byte("…"))
	}
	path := r.Path
	if len(path) > 500 {
		path = path[:500] + "…"
	}
	var header strings.Builder
	for name, values := range r.Header {
		header.WriteString(" " + name + ": ")
		for _, v := range values {
			header.WriteString(strconv.Quote(v[:min(len(v), 60)]))
		}
	}
	return r.Operation + ": " + r.Method + " " + strconv.Quote(path) + header.String() + " " + strconv.Quote(string(body))
}
