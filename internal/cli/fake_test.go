package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

const (
	fakeKey = "napi_right"
	shop    = "brisk-ember-81697531"
)

var now = time.Date(2031, 3, 17, 12, 0, 0, 0, time.UTC)

type obj = map[string]any

// fakeAPI speaks the contract about one or more projects. It answers every operation as running once, then as finished.
type fakeAPI struct {
	*httptest.Server
	mu        sync.Mutex
	projects  []obj
	branches  []obj
	endpoints []obj
	databases []obj
	roles     []obj
	keys      []obj
	looks     map[string]int    // at an operation
	fail      map[string]string // action → error
	answers   map[string]any    // "METHOD path" → answer
	calls     []string          // "METHOD path body" of every call that changes something
}

func project(id, name string) obj {
	return obj{"id": id, "name": name, "pg_version": 17, "region_id": "local", "platform_id": "local", "provisioner": "k8s-neonvm",
		"store_passwords": true, "history_retention_seconds": 86400, "created_at": "2031-03-17T09:00:00Z", "updated_at": "2031-03-17T09:00:00Z"}
}

func branchObj(id, name, parent string) obj {
	b := obj{"id": id, "name": name, "project_id": shop, "current_state": "ready", "default": parent == "", "protected": false,
		"created_at": "2031-03-17T11:58:00Z", "updated_at": "2031-03-17T11:58:00Z", "state_changed_at": "2031-03-17T11:58:00Z"}
	if parent != "" {
		b["parent_id"], b["parent_lsn"] = parent, "0/1A7F730"
	} else {
		b["logical_size"] = 31457280
	}
	return b
}

func endpointObj(id, branch, state string) obj {
	return obj{"id": id, "branch_id": branch, "project_id": shop, "host": id + ".db.localhost", "type": "read_write",
		"current_state": state, "autoscaling_limit_min_cu": 0.25, "autoscaling_limit_max_cu": 2, "suspend_timeout_seconds": 0,
		"settings": obj{}, "region_id": "local", "created_at": "2031-03-16T12:00:00Z", "updated_at": "2031-03-16T12:00:00Z"}
}

func newFake(t *testing.T) *fakeAPI {
	f := &fakeAPI{
		projects: []obj{project(shop, "shop")},
		branches: []obj{branchObj("br-main-1", "main", ""), branchObj("br-try-2", "try-index", "br-main-1")},
		endpoints: []obj{endpointObj("ep-ivory-1", "br-main-1", "idle"),
			endpointObj("ep-lunar-2", "br-try-2", "active")},
		databases: []obj{{"id": 1, "branch_id": "br-main-1", "name": "neondb", "owner_name": "neondb_owner", "created_at": "2031-03-10T12:00:00Z"}},
		roles:     []obj{{"branch_id": "br-main-1", "name": "neondb_owner", "created_at": "2031-03-10T12:00:00Z"}},
		keys: []obj{{"id": 100001, "name": "ci", "created_at": "2031-03-10T12:00:00Z", "created_by": obj{}, "last_used_from_addr": "127.0.0.1",
			"last_used_at": "2031-03-17T11:59:30Z"}},
		looks: map[string]int{}, fail: map[string]string{},
	}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

func find(all []obj, key, value string) obj {
	i := slices.IndexFunc(all, func(o obj) bool { return o[key] == value })
	if i < 0 {
		return nil
	}
	return all[i]
}

func op(id, action string) obj {
	return obj{"id": id, "action": action, "status": "scheduling", "project_id": shop, "branch_id": "br-new-3", "failures_count": 0,
		"created_at": "2031-03-17T11:59:00Z", "updated_at": "2031-03-17T11:59:00Z", "total_duration_ms": 0}
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := func(status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
	missing := func(what string) {
		answer(404, obj{"code": "RESOURCE_NOT_FOUND", "message": what + " not found", "request_id": "req-404"})
	}
	if r.Header.Get("Authorization") != "Bearer "+fakeKey {
		answer(401, obj{"code": "UNAUTHORIZED", "message": "the API key is wrong", "request_id": "req-401"})
		return
	}
	body := obj{}
	if r.Body != nil {
		_ = json.NewDecoder(r.Body).Decode(&body)
	}
	path := strings.TrimPrefix(r.URL.Path, "/api/v2")
	if r.Method != http.MethodGet {
		b, _ := json.Marshal(body)
		f.calls = append(f.calls, r.Method+" "+path+" "+string(b))
	}
	part := strings.Split(strings.Trim(path, "/"), "/")
	// The shape of the path, ids replaced.
	shape := r.Method + " " + part[0]
	if len(part) > 2 && part[0] == "projects" {
		if find(f.projects, "id", part[1]) == nil {
			missing("project")
			return
		}
		shape = r.Method + " " + strings.Join(part[2:], "/")
	} else if len(part) > 1 {
		shape += "/*"
	}
	for _, all := range [][]obj{f.branches, f.endpoints} {
		for _, o := range all {
			shape = strings.Replace(shape, o["id"].(string), "*", 1)
		}
	}
	last := part[len(part)-1]
	switch shape {
	case "GET users/*":
		if last == "me" {
			answer(200, obj{"id": "u-1", "name": "Robin", "last_name": "Example", "login": "robin", "email": "robin@example.com"})
		} else {
			answer(200, obj{"organizations": []obj{{"id": "org-1", "name": "Acme", "handle": "acme", "created_at": "2030-03-17T12:00:00Z"}}})
		}
	case "GET api_keys":
		answer(200, f.keys)
	case "POST api_keys":
		answer(200, obj{"id": 100002, "key": "napi_secret", "name": body["key_name"], "created_at": "2031-03-17T12:00:00Z", "created_by": "u"})
	case "DELETE api_keys/*":
		answer(200, obj{"id": 100001, "name": "ci", "revoked": true, "created_at": "2031-03-10T12:00:00Z"})
	case "GET projects":
		list := f.projects
		if r.URL.Query().Get("cursor") != "" {
			list = []obj{}
		}
		page := obj{"projects": list}
		if len(list) > 0 {
			page["pagination"] = obj{"cursor": list[len(list)-1]["id"]}
		}
		answer(200, page)
	case "GET projects/*":
		if p := find(f.projects, "id", last); p != nil {
			answer(200, obj{"project": p})
		} else {
			missing("project " + last)
		}
	case "POST projects":
		answer(201, obj{"project": project(shop, "made"), "branch": f.branches[0], "endpoints": f.endpoints[:1],
			"operations": []obj{op("op-1", "create_timeline"), op("op-2", "start_compute")}, "roles": f.roles, "databases": f.databases,
			"connection_uris": []obj{{"connection_uri": "postgresql://neondb_owner:npg_x@ep-ivory-1.db.localhost/neondb?sslmode=require"}}})
	case "DELETE projects/*":
		answer(200, obj{"project": find(f.projects, "id", last)})
	case "GET branches":
		answer(200, obj{"branches": f.branches, "annotations": obj{}, "pagination": obj{"sort_by": "updated_at", "sort_order": "DESC"}})
	case "GET branches/*":
		answer(200, obj{"branch": find(f.branches, "id", last), "annotation": obj{}})
	case "POST branches":
		made := branchObj("br-new-3", "made", "br-main-1")
		f.branches = append(f.branches, made)
		first := branchObj("br-new-3", "made", "br-main-1")
		first["current_state"], first["pending_state"] = "init", "ready"
		answer(201, obj{"branch": first, "endpoints": []obj{}, "operations": []obj{op("op-1", "create_branch"), op("op-2", "start_compute")},
			"roles": []obj{}, "databases": []obj{}})
	case "PATCH branches/*", "DELETE branches/*":
		answer(200, obj{"branch": find(f.branches, "id", last), "operations": []obj{op("op-1", "delete_timeline")}})
	case "GET endpoints":
		answer(200, obj{"endpoints": f.endpoints})
	case "GET branches/*/endpoints":
		answer(200, obj{"endpoints": f.endpoints[1:]})
	case "GET endpoints/*":
		answer(200, obj{"endpoint": find(f.endpoints, "id", last)})
	case "POST endpoints/*/start":
		answer(200, obj{"endpoint": find(f.endpoints, "id", part[3]), "operations": []obj{op("op-1", "start_compute")}})
	case "GET branches/*/databases":
		answer(200, obj{"databases": f.databases})
	case "POST branches/*/databases":
		answer(201, obj{"database": obj{"name": "orders", "owner_name": "neondb_owner", "branch_id": "br-main-1"}, "operations": []obj{op("op-1", "apply_config")}})
	case "GET branches/*/roles":
		answer(200, obj{"roles": f.roles})
	case "GET branches/*/roles/neondb_owner/reveal_password":
		answer(200, obj{"password": "npg_7B28fcCgA7F9"})
	case "GET connection_uri":
		q := r.URL.Query()
		host := "ep-ivory-1"
		if q.Get("pooled") == "true" {
			host += "-pooler"
		}
		answer(200, obj{"uri": fmt.Sprintf("postgresql://%s:npg_7B28fcCgA7F9@%s.db.localhost:6432/%s?channel_binding=require&sslmode=require",
			q.Get("role_name"), host, q.Get("database_name"))})
	case "GET operations":
		if r.URL.Query().Get("cursor") != "" {
			answer(200, obj{"operations": []obj{}})
			return
		}
		done := op("op-9", "start_compute")
		done["status"], done["total_duration_ms"], done["endpoint_id"] = "finished", 913, "ep-ivory-1"
		bad := op("op-8", "create_branch")
		bad["status"], bad["error"] = "failed", "no space left"
		answer(200, obj{"operations": []obj{done, bad}, "pagination": obj{"cursor": "2031-03-17T11:59:00Z"}})
	case "GET operations/op-1", "GET operations/op-2":
		o := op(last, map[string]string{"op-1": "create_branch", "op-2": "start_compute"}[last])
		o["status"] = "running"
		if f.looks[last]++; f.looks[last] > 1 {
			o["status"] = "finished"
			if why := f.fail[o["action"].(string)]; why != "" {
				o["status"], o["error"] = "failed", why
			}
		}
		answer(200, obj{"operation": o})
	default:
		if v, ok := f.answers[r.Method+" "+path]; ok {
			answer(200, v)
			return
		}
		missing("what " + shape + " asks for")
	}
}

// shell runs command lines as a process would.
type shell struct {
	t    *testing.T
	env  map[string]string
	opts Options
	dir  string // the data directory
}

func newShell(t *testing.T, f *fakeAPI) *shell {
	s := &shell{t: t, dir: t.TempDir(), env: map[string]string{}}
	s.env["BOUGH_DATA_DIR"] = s.dir
	s.opts = Options{Now: func() time.Time { return now }, SystemDir: filepath.Join(s.dir, "no-system"),
		PgLib: filepath.Join(s.dir, "no-postgres"), IsTTY: func(any) bool { return false }, Getenv: func(k string) string { return s.env[k] }}
	if f != nil {
		s.admin(f.URL+"/api/v2", fakeKey)
	}
	return s
}

func (s *shell) admin(url, key string) {
	s.t.Helper()
	data, _ := json.Marshal(adminFile{APIURL: url, APIKey: key, OrgID: "org-1", UserID: "u-1", PgAddr: "127.0.0.1:5432"})
	if err := os.WriteFile(filepath.Join(s.dir, "admin.json"), data, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// lockedBuffer is written by the spinner too.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (s *shell) run(args ...string) (stdout, stderr string, code int) {
	var out, errs lockedBuffer
	opts := s.opts
	opts.Out, opts.Err = &out, &errs
	if opts.In == nil {
		opts.In = strings.NewReader("")
	}
	root := &cobra.Command{Use: "bough"}
	root.SetOut(&out)
	root.SetErr(&errs)
	root.AddCommand(Commands(opts)...)
	root.SetArgs(args)
	code = Execute(context.Background(), root, &errs)
	return out.b.String(), errs.b.String(), code
}

// expect runs a command line and compares all it does.
func (s *shell) expect(line, stdout, stderr string, code int) {
	s.t.Helper()
	gotOut, gotErr, gotCode := s.run(strings.Fields(line)...)
	if gotOut != stdout || gotErr != stderr || gotCode != code {
		s.t.Errorf("bough %s\n--- stdout\n%s--- wanted\n%s--- stderr\n%s--- wanted\n%s--- exit code %d, wanted %d", line, gotOut, stdout,
			gotErr, stderr, gotCode, code)
	}
}

// refuses runs a command line that fails with one line that holds all of the words.
func (s *shell) refuses(line string, code int, words ...string) {
	s.t.Helper()
	out, errs, got := s.run(strings.Fields(line)...)
	if got != code || out != "" || strings.Count(errs, "\n") != 1 {
		s.t.Errorf("bough %s: exit code %d (wanted %d), stdout %q, stderr %q", line, got, code, out, errs)
	}
	for _, w := range words {
		if !strings.Contains(errs, w) {
			s.t.Errorf("bough %s: stderr lacks %q: %s", line, w, errs)
		}
	}
}
