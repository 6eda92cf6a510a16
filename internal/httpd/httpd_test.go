package httpd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/control"
	"github.com/boughdb/bough/internal/core"
)

// desk is a control plane that writes down what reached it. A use case that no test gives it panics (nil UseCases).
type desk struct {
	UseCases
	project  *control.CreateProject
	branch   *control.CreateBranch
	patch    *control.BranchPatch
	list     *control.ListProjects
	uri      *control.URIParams
	database string
	caller   core.Caller
	err      error
}

func (d *desk) ListProjects(_ context.Context, c core.Caller, p control.ListProjects) (control.ProjectPage, error) {
	d.caller, d.list = c, &p
	return control.ProjectPage{}, d.err
}

func (d *desk) CreateProject(_ context.Context, _ core.Caller, p control.CreateProject) (control.ProjectCreated, error) {
	d.project = &p
	return control.ProjectCreated{}, d.err
}

func (d *desk) GetProject(context.Context, core.Caller, string) (control.ProjectView, error) {
	return control.ProjectView{}, d.err
}

func (d *desk) CreateBranch(_ context.Context, _ core.Caller, _ string, p control.CreateBranch) (control.BranchCreated, error) {
	d.branch = &p
	return control.BranchCreated{}, d.err
}

func (d *desk) UpdateBranch(_ context.Context, _ core.Caller, _, _ string, p control.BranchPatch) (control.BranchResult, error) {
	d.patch = &p
	return control.BranchResult{}, d.err
}

func (d *desk) DeleteBranch(context.Context, core.Caller, string, string) (control.BranchResult, error) {
	return control.BranchResult{}, d.err
}

func (d *desk) GetDatabase(_ context.Context, _ core.Caller, _, _, name string) (core.Database, error) {
	d.database = name
	return core.Database{Name: name}, d.err
}

func (d *desk) ConnectionURI(_ context.Context, _ core.Caller, _ string, p control.URIParams) (string, error) {
	d.uri = &p
	return `postgresql://a\u0026b:c@h/d?channel_binding=require&sslmode=require`, d.err
}

func (d *desk) CreateRole(context.Context, core.Caller, string, string, control.CreateRole) (control.RoleResult, error) {
	panic("the roof is on fire")
}

const goodKey = "napi_good"

func (d *desk) Authenticate(_ context.Context, secret, _ string) (core.Caller, error) {
	if secret != goodKey {
		return core.Caller{}, core.Errorf(core.KindUnauthorized, "", "the API key is not valid")
	}
	return core.Caller{KeyID: 7, UserID: "u"}, nil
}

// logBuffer collects the log.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func newDoor(t *testing.T, d *desk, change ...func(*Options)) (*httptest.Server, *logBuffer) {
	t.Helper()
	log := &logBuffer{}
	opt := Options{UseCases: d, Auth: d, Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	for _, f := range change {
		f(&opt)
	}
	srv := httptest.NewServer(New(opt))
	t.Cleanup(srv.Close)
	return srv, log
}

type call struct {
	method, path, key, ctype, body string
	header                         http.Header
}

// do sends a call and returns its answer; an error body is decoded, and checked to carry the request id of the header.
func do(t *testing.T, srv *httptest.Server, c call) (*http.Response, api.Error, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), c.method, srv.URL+c.path, strings.NewReader(c.body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range c.header {
		req.Header[k] = v
	}
	if c.key == "" {
		c.key = goodKey
	}
	if c.key != "none" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	if c.ctype != "" {
		req.Header.Set("Content-Type", c.ctype)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var e api.Error
	if resp.StatusCode >= 400 && c.method != http.MethodHead {
		if err := json.Unmarshal(raw, &e); err != nil {
			t.Fatalf("status %d with a body that is not an error: %s", resp.StatusCode, raw)
		}
		if e.RequestID == nil || *e.RequestID == "" || *e.RequestID != resp.Header.Get("X-Request-Id") {
			t.Errorf("request id %v in the body, %q in the header", e.RequestID, resp.Header.Get("X-Request-Id"))
		}
		if e.Code == "" || e.Message == "" || resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("incomplete error: %s (%s)", raw, resp.Header.Get("Content-Type"))
		}
	}
	return resp, e, string(raw)
}

const (
	jsonType = "application/json"
	formType = "application/x-www-form-urlencoded"
	projects = "/api/v2/projects"
	branches = "/api/v2/projects/calm-sea-12345678/branches"
)

func TestBadRequestsAreRefusedWithTheReason(t *testing.T) {
	srv, _ := newDoor(t, &desk{})
	for name, tc := range map[string]struct {
		call   call
		status int
		code   string
		says   string
	}{
		"malformed JSON":        {call{method: "POST", path: projects, ctype: jsonType, body: `{"project":`}, 400, "BAD_REQUEST", "not valid JSON"},
		"wrong JSON":            {call{method: "POST", path: projects, ctype: jsonType, body: `{"project":{]}`}, 400, "BAD_REQUEST", "byte 13"},
		"trailing garbage":      {call{method: "POST", path: projects, ctype: jsonType, body: `{"project":{}} {"x":1}`}, 400, "BAD_REQUEST", "goes on"},
		"deep nesting":          {call{method: "POST", path: projects, ctype: jsonType, body: strings.Repeat("[", 500_000)}, 400, "BAD_REQUEST", "depth"},
		"not an object":         {call{method: "POST", path: projects, ctype: jsonType, body: `[1]`}, 400, "BAD_REQUEST", "must be an object"},
		"null":                  {call{method: "POST", path: projects, ctype: jsonType, body: `null`}, 400, "BAD_REQUEST", "null"},
		"missing body":          {call{method: "POST", path: projects, ctype: jsonType}, 400, "BAD_REQUEST", "the request body: is required"},
		"missing object":        {call{method: "POST", path: projects, ctype: jsonType, body: `{}`}, 400, "BAD_REQUEST", "project: is required"},
		"missing nested field":  {call{method: "POST", path: branches + "/br-a/databases", ctype: jsonType, body: `{"database":{"name":"x"}}`}, 400, "BAD_REQUEST", "database.owner_name: is required"},
		"unknown enum":          {call{method: "POST", path: branches, ctype: jsonType, body: `{"endpoints":[{"type":"write_only"}]}`}, 400, "BAD_REQUEST", `endpoints[0].type: must be one of read_only, read_write, not "write_only"`},
		"unknown provisioner":   {call{method: "POST", path: projects, ctype: jsonType, body: `{"project":{"provisioner":"k9"}}`}, 400, "BAD_REQUEST", "must be one of k8s-neonvm, k8s-pod"},
		"name too long":         {call{method: "POST", path: projects, ctype: jsonType, body: `{"project":{"name":"` + strings.Repeat("x", 257) + `"}}`}, 400, "BAD_REQUEST", "project.name: must have at most 256 characters"},
		"empty name":            {call{method: "POST", path: projects, ctype: jsonType, body: `{"project":{"name":""}}`}, 400, "BAD_REQUEST", "project.name: must not be empty"},
		"wrong type":            {call{method: "POST", path: projects, ctype: jsonType, body: `{"project":{"pg_version":"15"}}`}, 400, "BAD_REQUEST", "project.pg_version: must be a whole number"},
		"unknown version":       {call{method: "POST", path: projects, ctype: jsonType, body: `{"project":{"pg_version":13}}`}, 400, "BAD_REQUEST", "project.pg_version: must be at least 14"},
		"fraction":              {call{method: "POST", path: projects, ctype: jsonType, body: `{"project":{"pg_version":15.5}}`}, 400, "BAD_REQUEST", "whole number"},
		"huge number":           {call{method: "POST", path: projects, ctype: jsonType, body: `{"project":{"settings":{"quota":{"logical_size_bytes":1e300}}}}`}, 400, "BAD_REQUEST", ""},
		"too small":             {call{method: "POST", path: projects, ctype: jsonType, body: `{"project":{"autoscaling_limit_min_cu":0.1}}`}, 400, "BAD_REQUEST", "must be at least 0.25"},
		"suspend timeout":       {call{method: "POST", path: projects, ctype: jsonType, body: `{"project":{"default_endpoint_settings":{"suspend_timeout_seconds":604801}}}`}, 400, "BAD_REQUEST", "must be at most 604800"},
		"two complaints":        {call{method: "POST", path: projects, ctype: jsonType, body: `{"project":{"name":"","pg_version":99}}`}, 400, "BAD_REQUEST", "; "},
		"zero byte":             {call{method: "POST", path: projects, ctype: jsonType, body: `{"project":{"name":"a\u0000b"}}`}, 400, "BAD_REQUEST", "zero byte"},
		"time":                  {call{method: "POST", path: branches, ctype: jsonType, body: `{"branch":{"parent_timestamp":"yesterday"}}`}, 400, "BAD_REQUEST", "branch.parent_timestamp: must be a time"},
		"impossible time":       {call{method: "POST", path: branches, ctype: jsonType, body: `{"branch":{"parent_timestamp":"2030-02-31T00:00:00Z"}}`}, 400, "BAD_REQUEST", "is not a time"},
		"maintenance window":    {call{method: "POST", path: projects, ctype: jsonType, body: `{"project":{"settings":{"maintenance_window":{"weekdays":[8],"start_time":"25:00"}}}}`}, 400, "BAD_REQUEST", "end_time: is required"},
		"key name too long":     {call{method: "POST", path: "/api/v2/api_keys", ctype: jsonType, body: `{"key_name":"` + strings.Repeat("k", 65) + `"}`}, 400, "BAD_REQUEST", "key_name: must have at most 64 characters"},
		"limit too large":       {call{method: "GET", path: projects + "?limit=401"}, 400, "BAD_REQUEST", "limit: must be at most 400"},
		"limit zero":            {call{method: "GET", path: projects + "?limit=0"}, 400, "BAD_REQUEST", "limit: must be at least 1"},
		"limit no number":       {call{method: "GET", path: projects + "?limit=many"}, 400, "BAD_REQUEST", "limit: must be a whole number"},
		"limit twice":           {call{method: "GET", path: projects + "?limit=1&limit=2"}, 400, "BAD_REQUEST", "given 2 times"},
		"branch limit":          {call{method: "GET", path: branches + "?limit=10001"}, 400, "BAD_REQUEST", "at most 10000"},
		"sort order":            {call{method: "GET", path: branches + "?sort_order=up"}, 400, "BAD_REQUEST", "sort_order: must be one of asc, desc"},
		"missing query":         {call{method: "GET", path: projects + "/calm-sea-12345678/connection_uri?role_name=r"}, 400, "BAD_REQUEST", "database_name: is required"},
		"broken query":          {call{method: "GET", path: projects + "?search=%zz"}, 400, "BAD_REQUEST", "query string"},
		"broken bool":           {call{method: "GET", path: projects + "/p-1/connection_uri?database_name=d&role_name=r&pooled=maybe"}, 400, "BAD_REQUEST", "pooled: must be true or false"},
		"key id":                {call{method: "DELETE", path: "/api/v2/api_keys/first"}, 400, "BAD_REQUEST", "key_id: must be a whole number"},
		"content type":          {call{method: "POST", path: projects, ctype: "text/csv", body: `a,b`}, 400, "BAD_REQUEST", "send application/json"},
		"broken form":           {call{method: "POST", path: projects, ctype: formType, body: `project[name=x`}, 400, "BAD_REQUEST", "project[name]"},
		"form enum":             {call{method: "POST", path: branches, ctype: formType, body: `endpoints[0][type]=ro`}, 400, "BAD_REQUEST", "endpoints[0].type: must be one of"},
		"form number":           {call{method: "POST", path: projects, ctype: formType, body: `project[pg_version]=new`}, 400, "BAD_REQUEST", "project.pg_version: must be a whole number"},
		"oversized":             {call{method: "POST", path: projects, ctype: jsonType, body: `{"project":{"name":"` + strings.Repeat("x", MaxBody) + `"}}`}, 413, "REQUEST_TOO_LARGE", "larger than 1048576 bytes"},
		"no key":                {call{method: "GET", path: projects, key: "none"}, 401, "UNAUTHORIZED", "Authorization: Bearer"},
		"wrong key":             {call{method: "GET", path: projects, key: "napi_bad"}, 401, "UNAUTHORIZED", "not valid"},
		"endless key":           {call{method: "GET", path: projects, key: strings.Repeat("k", 600)}, 401, "UNAUTHORIZED", "not valid"},
		"key before validation": {call{method: "POST", path: projects, key: "none", ctype: jsonType, body: `{`}, 401, "UNAUTHORIZED", ""},
		"key before 501":        {call{method: "GET", path: "/api/v2/projects/p-1/advisors", key: "none"}, 401, "UNAUTHORIZED", ""},
		"unknown path":          {call{method: "GET", path: "/api/v2/nothing"}, 404, "RESOURCE_NOT_FOUND", "nothing at"},
		"unknown path, no key":  {call{method: "GET", path: "/api/v2/nothing", key: "none"}, 404, "RESOURCE_NOT_FOUND", ""},
		"outside the API":       {call{method: "GET", path: "/docs/nothing", key: "none"}, 404, "RESOURCE_NOT_FOUND", "/api/v2"},
		"trailing slash":        {call{method: "GET", path: projects + "/"}, 404, "RESOURCE_NOT_FOUND", ""},
		"doubled slash":         {call{method: "GET", path: "/api/v2//projects"}, 404, "RESOURCE_NOT_FOUND", ""},
		"impossible id":         {call{method: "GET", path: projects + "/No_Such"}, 404, "RESOURCE_NOT_FOUND", `there is no project "No_Such"`},
		"impossible operation":  {call{method: "GET", path: projects + "/p-1/operations/7"}, 404, "RESOURCE_NOT_FOUND", `there is no operation "7"`},
		"wrong method":          {call{method: "PUT", path: projects}, 405, "METHOD_NOT_ALLOWED", "GET, POST"},
		"method on 501":         {call{method: "POST", path: "/api/v2/projects/p-1/advisors"}, 405, "METHOD_NOT_ALLOWED", "GET"},
		"not built":             {call{method: "GET", path: "/api/v2/projects/p-1/advisors"}, 501, "NOT_IMPLEMENTED", "getProjectAdvisorSecurityIssues"},
		"not built, with body":  {call{method: "POST", path: branches + "/br-a/restore", ctype: jsonType, body: `{`}, 501, "NOT_IMPLEMENTED", "restoreProjectBranch"},
	} {
		t.Run(name, func(t *testing.T) {
			resp, e, raw := do(t, srv, tc.call)
			if resp.StatusCode != tc.status || e.Code != tc.code {
				t.Errorf("got %d %s, want %d %s: %s", resp.StatusCode, e.Code, tc.status, tc.code, raw)
			}
			if !strings.Contains(e.Message, tc.says) {
				t.Errorf("message %q does not say %q", e.Message, tc.says)
			}
			if len(e.Message) > 700 {
				t.Errorf("message has %d bytes", len(e.Message))
			}
		})
	}
}

func TestEveryUnbuiltOperationAnswers501(t *testing.T) {
	srv, _ := newDoor(t, &desk{})
	for _, r := range api.Unbuilt() {
		path := strings.NewReplacer("{", "", "}", "").Replace(r.Path)
		resp, e, raw := do(t, srv, call{method: r.Method, path: api.BasePath + path})
		if resp.StatusCode != 501 || !strings.Contains(e.Message, r.OperationID) {
			t.Errorf("%s %s: %d %s", r.Method, r.Path, resp.StatusCode, raw)
		}
	}
}

func TestHeadIsNoGet(t *testing.T) {
	srv, _ := newDoor(t, &desk{})
	for path, want := range map[string]int{projects: 405, "/api/v2/nothing": 404, "/healthz": 200} {
		if resp, _, _ := do(t, srv, call{method: "HEAD", path: path}); resp.StatusCode != want {
			t.Errorf("HEAD %s: %d, want %d", path, resp.StatusCode, want)
		}
	}
}

// Every spelling of the same body must reach the use case as the same value.
func TestBodiesInEverySpelling(t *testing.T) {
	for name, c := range map[string]call{
		"JSON":               {ctype: jsonType, body: `{"project":{"name":"x & y","pg_version":15,"store_passwords":false,"settings":{"allowed_ips":{"ips":["10.0.0.1","::1"]}},"default_endpoint_settings":{"autoscaling_limit_max_cu":0.5}}}`},
		"JSON with charset":  {ctype: "application/json; charset=utf-8", body: `{"project":{"name":"x & y","pg_version":15,"store_passwords":false,"settings":{"allowed_ips":{"ips":["10.0.0.1","::1"]}},"default_endpoint_settings":{"autoscaling_limit_max_cu":0.5}}}`},
		"curl's default":     {ctype: formType, body: ` {"project":{"name":"x & y","pg_version":15,"store_passwords":false,"settings":{"allowed_ips":{"ips":["10.0.0.1","::1"]}},"default_endpoint_settings":{"autoscaling_limit_max_cu":0.5}}}`},
		"no type":            {body: `{"project":{"name":"x & y","pg_version":15,"store_passwords":false,"settings":{"allowed_ips":{"ips":["10.0.0.1","::1"]}},"default_endpoint_settings":{"autoscaling_limit_max_cu":0.5}}}`},
		"form":               {ctype: formType, body: `project[name]=x+%26+y&project[pg_version]=15&project[store_passwords]=false&project[settings][allowed_ips][ips][]=10.0.0.1&project[settings][allowed_ips][ips][]=::1&project[default_endpoint_settings][autoscaling_limit_max_cu]=0.5`},
		"form, numbered":     {ctype: formType, body: `project%5Bname%5D=x+%26+y&project[pg_version]=15&project[store_passwords]=0&project[settings][allowed_ips][ips][1]=::1&project[settings][allowed_ips][ips][0]=10.0.0.1&project[default_endpoint_settings][autoscaling_limit_max_cu]=0.5`},
		"unknown fields":     {ctype: jsonType, body: `{"extra":1,"project":{"colour":"red","name":"x & y","pg_version":15,"store_passwords":false,"settings":{"allowed_ips":{"ips":["10.0.0.1","::1"]}},"default_endpoint_settings":{"autoscaling_limit_max_cu":0.5}}}`},
		"repeated keys":      {ctype: jsonType, body: `{"project":{"name":"","org_id":"org-1"},"project":{"name":"x & y","pg_version":15,"store_passwords":false,"settings":{"allowed_ips":{"ips":["10.0.0.1","::1"]}},"default_endpoint_settings":{"autoscaling_limit_max_cu":0.5}}}`},
		"other letters":      {ctype: jsonType, body: `{"PROJECT":{"name":""},"project":{"NAME":"","ORG_ID":"org-1","name":"x & y","pg_version":15,"store_passwords":false,"settings":{"allowed_ips":{"ips":["10.0.0.1","::1"]}},"default_endpoint_settings":{"autoscaling_limit_max_cu":0.5}}}`},
		"marked as UTF-8":    {ctype: jsonType, body: "\xef\xbb\xbf" + `{"project":{"name":"x & y","pg_version":15,"store_passwords":false,"settings":{"allowed_ips":{"ips":["10.0.0.1","::1"]}},"default_endpoint_settings":{"autoscaling_limit_max_cu":0.5}}}`},
		"JSON of other kind": {ctype: "application/merge-patch+json", body: `{"project":{"name":"x & y","pg_version":15,"store_passwords":false,"settings":{"allowed_ips":{"ips":["10.0.0.1","::1"]}},"default_endpoint_settings":{"autoscaling_limit_max_cu":0.5}}}`},
	} {
		t.Run(name, func(t *testing.T) {
			d := &desk{}
			srv, _ := newDoor(t, d)
			c.method, c.path = "POST", projects
			if resp, _, raw := do(t, srv, c); resp.StatusCode != 201 {
				t.Fatalf("%d %s", resp.StatusCode, raw)
			}
			p := d.project
			if p.Name != "x & y" || p.PGVersion != 15 || p.OrgID != "" || p.StorePasswords == nil || *p.StorePasswords ||
				p.Defaults.MaxCU == nil || *p.Defaults.MaxCU != 0.5 || p.Defaults.MinCU != nil ||
				string(p.Settings) != `{"allowed_ips":{"ips":["10.0.0.1","::1"]}}` {
				t.Errorf("reached the use case as %+v %s", p, p.Settings)
			}
		})
	}
}

func TestOptionalBodies(t *testing.T) {
	for name, c := range map[string]call{
		"none":       {},
		"empty JSON": {ctype: jsonType},
		"empty form": {ctype: formType},
		"blank":      {ctype: jsonType, body: " \n"},
		"object":     {ctype: jsonType, body: `{}`},
	} {
		t.Run(name, func(t *testing.T) {
			d := &desk{}
			srv, _ := newDoor(t, d)
			c.method, c.path = "POST", branches
			resp, _, raw := do(t, srv, c)
			if resp.StatusCode != 201 || d.branch == nil {
				t.Fatalf("%d %s", resp.StatusCode, raw)
			}
		})
	}
}

func TestBranchFieldsReachTheUseCase(t *testing.T) {
	d := &desk{}
	srv, _ := newDoor(t, d)
	resp, _, raw := do(t, srv, call{method: "POST", path: branches, ctype: formType, body: url.Values{
		"branch[name]": {"b"}, "branch[parent_lsn]": {"0/1A7F730"}, "branch[expires_at]": {"2031-01-01T00:00:00+02:00"},
		"endpoints[0][type]": {"read_write"}, "endpoints[0][suspend_timeout_seconds]": {"-1"},
		"endpoints[0][settings][pg_settings][work_mem]": {"64"}, "annotation_value[team]": {"7"},
	}.Encode()})
	if resp.StatusCode != 201 {
		t.Fatalf("%d %s", resp.StatusCode, raw)
	}
	b := d.branch
	if b.Name != "b" || b.ParentLSN != "0/1A7F730" || b.Annotation["team"] != "7" || len(b.Endpoints) != 1 ||
		b.ExpiresAt == nil || !b.ExpiresAt.Equal(time.Date(2030, 12, 31, 22, 0, 0, 0, time.UTC)) {
		t.Fatalf("%+v", b)
	}
	if e := b.Endpoints[0]; e.Type != core.EndpointReadWrite || *e.SuspendTimeout != -1 || e.PGSettings["work_mem"] != "64" {
		t.Errorf("%+v", e)
	}
}

func TestNullClearsAndAbsenceLeavesAlone(t *testing.T) {
	for body, want := range map[string]struct{ set, value bool }{
		`{"branch":{"name":"b"}}`:                               {false, false},
		`{"branch":{"expires_at":null}}`:                        {true, false},
		`{"branch":{"expires_at":"2031-01-01T00:00:00.5Z"}}`:    {true, true},
		`branch[expires_at]=`:                                   {true, false},
		`branch[expires_at]=2031-01-01T00%3A00%3A00Z`:           {true, true},
		`branch[name]=b`:                                        {false, false},
		`{"branch":{"EXPIRES_AT":"2031-01-01T00:00:00Z"}}`:      {false, false},
		`{"branch":{"expires_at":"2031-01-01T00:00:00+05:30"}}`: {true, true},
	} {
		d := &desk{}
		srv, _ := newDoor(t, d)
		resp, _, raw := do(t, srv, call{method: "PATCH", path: branches + "/br-a", ctype: formType, body: body})
		if resp.StatusCode != 200 || d.patch == nil {
			t.Fatalf("%s: %d %s", body, resp.StatusCode, raw)
		}
		if d.patch.ExpiresAt.Set != want.set || (d.patch.ExpiresAt.Value != nil) != want.value {
			t.Errorf("%s: %+v", body, d.patch.ExpiresAt)
		}
	}
}

func TestQueryAndPathValues(t *testing.T) {
	d := &desk{}
	srv, _ := newDoor(t, d)
	if resp, _, raw := do(t, srv, call{method: "GET", path: projects + "?limit=&search=a%20b&org_id=&cursor=x"}); resp.StatusCode != 200 {
		t.Fatalf("%d %s", resp.StatusCode, raw)
	} else if !strings.Contains(raw, `"projects":[]`) || strings.Contains(raw, "pagination") {
		t.Errorf("an empty page: %s", raw)
	}
	if d.list.Limit != 10 || d.list.Search != "a b" || d.list.Cursor != "x" || d.caller.KeyID != 7 || d.caller.RequestID == "" {
		t.Errorf("%+v %+v", d.list, d.caller)
	}
	uri := projects + "/p-1/connection_uri?database_name=d&role_name=r"
	for query, pooled := range map[string]bool{"": true, "&pooled=true": true, "&pooled=false": false} {
		resp, _, raw := do(t, srv, call{method: "GET", path: uri + query})
		if resp.StatusCode != 200 || d.uri.Pooled != pooled {
			t.Errorf("%s: %d, pooled %v", query, resp.StatusCode, d.uri.Pooled)
		}
		// "&" is readable, and a text that looks like its escape stays what it is.
		if raw != `{"uri":"postgresql://a\\u0026b:c@h/d?channel_binding=require&sslmode=require"}`+"\n" {
			t.Errorf("uri came out as %s", raw)
		}
	}
	for escaped, name := range map[string]string{"my%20db": "my db", "a%2Fb": "a/b", "50%25": "50%", "%C3%A4": "ä", "a+b": "a+b"} {
		resp, _, raw := do(t, srv, call{method: "GET", path: branches + "/br-a/databases/" + escaped})
		if resp.StatusCode != 200 || d.database != name {
			t.Errorf("%s: %d, %q reached the use case: %s", escaped, resp.StatusCode, d.database, raw)
		}
	}
}

func TestErrorsGoThroughOneMap(t *testing.T) {
	for name, tc := range map[string]struct {
		err     error
		status  int
		code    string
		message string
		retry   string
	}{
		"unknown":      {errors.New("secret detail"), 500, "INTERNAL_SERVER_ERROR", "internal error", ""},
		"wrapped":      {core.Wrap(errors.New("secret detail"), "store.get", "look at the disk"), 500, "INTERNAL_SERVER_ERROR", "internal error", ""},
		"invalid":      {core.Invalidf("no"), 400, "BAD_REQUEST", "no", ""},
		"forbidden":    {core.Errorf(core.KindForbidden, "", "no"), 403, "FORBIDDEN", "no", ""},
		"missing":      {core.NotFoundf("no"), 404, "RESOURCE_NOT_FOUND", "no", ""},
		"taken":        {core.Errorf(core.KindConflict, "BRANCH_ALREADY_EXISTS", "taken"), 409, "BRANCH_ALREADY_EXISTS", "taken", ""},
		"gone":         {core.Errorf(core.KindGone, "", "no"), 410, "GONE", "no", ""},
		"not stored":   {core.Errorf(core.KindPrecondition, "", "no"), 412, "PRECONDITION_FAILED", "no", ""},
		"refused":      {core.Errorf(core.KindUnprocessable, "", "no"), 422, "UNPROCESSABLE_ENTITY", "no", ""},
		"locked":       {&core.Error{Kind: core.KindLocked, Message: "busy", RetryAfter: 1500 * time.Millisecond}, 423, "CONFLICTING_OPERATIONS", "busy", "2"},
		"rate":         {&core.Error{Kind: core.KindRateLimited, Message: "slow", RetryAfter: time.Second}, 429, "TOO_MANY_REQUESTS", "slow", "1"},
		"not built":    {core.Errorf(core.KindNotImplemented, "", "later"), 501, "NOT_IMPLEMENTED", "later", ""},
		"locked, soon": {&core.Error{Kind: core.KindLocked, Message: "busy"}, 423, "CONFLICTING_OPERATIONS", "busy", "1"},
		"down":         {&core.Error{Kind: core.KindUnavailable, Message: "down", RetryAfter: time.Minute, Err: errors.New("secret detail")}, 503, "SERVICE_UNAVAILABLE", "down", "60"},
		"full":         {core.Errorf(core.KindNoSpace, "", "full"), 503, "INSUFFICIENT_STORAGE", "full", "60"},
		"new kind":     {core.Errorf(core.Kind(99), "X", "secret detail"), 500, "INTERNAL_SERVER_ERROR", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			srv, log := newDoor(t, &desk{err: tc.err})
			resp, e, raw := do(t, srv, call{method: "GET", path: projects + "/p-1"})
			if resp.StatusCode != tc.status || e.Code != tc.code || (tc.message != "" && e.Message != tc.message) {
				t.Errorf("got %d %s", resp.StatusCode, raw)
			}
			if got := resp.Header.Get("Retry-After"); got != tc.retry {
				t.Errorf("Retry-After %q, want %q", got, tc.retry)
			}
			if strings.Contains(raw, "secret") {
				t.Errorf("shows a secret: %s", raw)
			}
			srv.Close() // waits for the access log
			if tc.status == 500 && (strings.Count(log.String(), "secret detail") != 1 || !strings.Contains(log.String(), *e.RequestID)) {
				t.Errorf("must be logged once, with its request id:\n%s", log)
			}
		})
	}
	for kind := core.KindInternal; kind <= core.KindNoSpace; kind++ {
		if kinds[kind].status == 0 || kinds[kind].code == "" {
			t.Errorf("kind %d is not in the map", kind)
		}
	}
}

func TestDeletingWhatIsGone(t *testing.T) {
	for code, want := range map[string]int{"BRANCH_NOT_FOUND": 204, "RESOURCE_NOT_FOUND": 404} {
		srv, _ := newDoor(t, &desk{err: core.Errorf(core.KindNotFound, code, "no")})
		if resp, _, raw := do(t, srv, call{method: "DELETE", path: branches + "/br-a"}); resp.StatusCode != want {
			t.Errorf("%s: %d %s", code, resp.StatusCode, raw)
		}
	}
}

func TestPanicsAreContained(t *testing.T) {
	srv, log := newDoor(t, &desk{})
	resp, e, raw := do(t, srv, call{method: "POST", path: branches + "/br-a/roles", ctype: jsonType, body: `{"role":{"name":"r"}}`})
	if resp.StatusCode != 500 || e.Message != "internal error" || strings.Contains(raw, "fire") {
		t.Errorf("%d %s", resp.StatusCode, raw)
	}
	srv.Close()
	if !strings.Contains(log.String(), "the roof is on fire") || !strings.Contains(log.String(), *e.RequestID) {
		t.Errorf("log:\n%s", log)
	}
}

func TestRequestIDs(t *testing.T) {
	srv, log := newDoor(t, &desk{})
	for sent, adopted := range map[string]bool{
		"abc-123": true, "": false, "two words": false, "quote\"": false, strings.Repeat("x", 129): false, strings.Repeat("x", 128): true,
	} {
		h := http.Header{}
		if sent != "" {
			h.Set("X-Request-ID", sent)
		}
		resp, _, _ := do(t, srv, call{method: "GET", path: projects, header: h})
		if got := resp.Header.Get("X-Request-Id"); got == "" || (got == sent) != adopted {
			t.Errorf("sent %q, got %q", sent, got)
		}
	}
	srv.Close()
	if !strings.Contains(log.String(), "request_id=abc-123") || !strings.Contains(log.String(), "operation=listProjects") {
		t.Errorf("log:\n%s", log)
	}
	if strings.Contains(log.String(), goodKey) {
		t.Error("a key is in the log")
	}
}

func TestHealthAndMetricsNeedNoKey(t *testing.T) {
	var notReady error
	srv, _ := newDoor(t, &desk{}, func(o *Options) {
		o.Ready = func(context.Context) error { return notReady }
		o.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "bough_up 1\n") })
	})
	if resp, _, _ := do(t, srv, call{method: "GET", path: "/healthz", key: "none"}); resp.StatusCode != 200 {
		t.Errorf("healthz: %d", resp.StatusCode)
	}
	if resp, _, raw := do(t, srv, call{method: "GET", path: "/metrics", key: "none"}); resp.StatusCode != 200 || raw != "bough_up 1\n" {
		t.Errorf("metrics: %d %s", resp.StatusCode, raw)
	}
	notReady = errors.New("secret detail")
	if resp, e, _ := do(t, srv, call{method: "GET", path: "/healthz", key: "none"}); resp.StatusCode != 503 || strings.Contains(e.Message, "secret") {
		t.Errorf("healthz: %d %+v", resp.StatusCode, e)
	}
	bare, _ := newDoor(t, &desk{})
	if resp, _, _ := do(t, bare, call{method: "GET", path: "/metrics", key: "none"}); resp.StatusCode != 404 {
		t.Errorf("no metrics: %d", resp.StatusCode)
	}
}

func TestListsInTheQueryMayBeCommaJoined(t *testing.T) {
	list := openapi3.NewArraySchema().WithItems(openapi3.NewStringSchema())
	for _, explode := range []bool{true, false} {
		p := openapi3.NewQueryParameter("ids").WithSchema(list)
		p.Explode = &explode
		op := &openapi3.Operation{Parameters: openapi3.Parameters{{Value: p}}}
		for query, want := range map[string]string{"ids=a,b": "a,b", "ids=a&ids=b": "a,b", "ids=a%2C+b,": "a,b", "ids=": "", "x=1": ""} {
			r := httptest.NewRequest("GET", "/?"+query, nil)
			if err := normalizeQuery(r, op); err != nil {
				t.Fatal(err)
			}
			got := r.URL.Query()["ids"]
			if strings.Join(got, ",") != want || (explode && want != "" && len(got) != 2) || (!explode && len(got) > 1) {
				t.Errorf("explode %v, %s: %q", explode, query, got)
			}
		}
	}
}
