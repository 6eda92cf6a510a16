package e2e

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/sdk"
)

// patch changes the project's endpoint by a raw body and waits for what that starts.
func (p *project) patch(t *testing.T, body string) []sdk.Operation {
	t.Helper()
	r := p.s.raw(t, "", "PATCH", "/projects/"+p.ID+"/endpoints/"+p.Endpoint, `{"endpoint":`+body+`}`)
	return p.finish(t, r)
}

// patchProject changes the project likewise.
func (p *project) patchProject(t *testing.T, body string) []sdk.Operation {
	t.Helper()
	return p.finish(t, p.s.raw(t, "", "PATCH", "/projects/"+p.ID, `{"project":`+body+`}`))
}

func (p *project) finish(t *testing.T, r reply) []sdk.Operation {
	t.Helper()
	var made struct{ Operations []sdk.Operation }
	if err := json.Unmarshal(r.body, &made); err != nil || r.status != 200 {
		t.Fatalf("%d %s (%v)", r.status, r.body, err)
	}
	p.s.wait(t, made.Operations)
	return made.Operations
}

func actions(ops []sdk.Operation) string {
	var names []string
	for _, op := range ops {
		names = append(names, string(op.Action))
	}
	return strings.Join(names, " ")
}

// TestSettings follows settings through creation, reload, restart and removal.
func TestSettings(t *testing.T) {
	s := start(t)
	made := s.raw(t, "", "POST", "/projects", `{"project":{"default_endpoint_settings":{"suspend_timeout_seconds":-1,
		"pg_settings":{"work_mem":"7MB"}},"settings":{"preload_libraries":{"enabled_libraries":["auto_explain"]}}}}`)
	var created sdk.ProjectCreated
	if err := json.Unmarshal(made.body, &created); err != nil || made.status != 201 {
		t.Fatalf("%d %s", made.status, made.body)
	}
	s.wait(t, created.Operations)
	p := s.known(&created)
	settings := func() string {
		t.Helper()
		e, err := s.Endpoint(t.Context(), p.ID, p.Endpoint)
		if err != nil {
			t.Fatal(err)
		}
		raw, _ := json.Marshal(e.Settings.PgSettings)
		return string(raw)
	}
	conn := s.connect(t, p.URI)
	if got := value[string](t, conn, "show work_mem"); got != "7MB" || settings() != `{"work_mem":"7MB"}` {
		t.Errorf("made with work_mem %s, shown as %s", got, settings())
	}
	if got := value[string](t, conn, "show shared_preload_libraries"); got != "pg_stat_statements,auto_explain" {
		t.Errorf("preloaded: %s", got)
	}

	// What needs no restart reaches the open session, which stays.
	pid := s.postmaster(t, p.Branch)
	ops := p.patch(t, `{"settings":{"pg_settings":{"Work_Mem":"9MB","auto_explain.log_min_duration":"5s","statement_timeout":"1min"}}}`)
	if actions(ops) != "apply_config" {
		t.Errorf("operations: %s", actions(ops))
	}
	eventually(t, opLimit, func() string { // a session reads the configuration between two commands
		if got := value[string](t, conn, "select concat_ws(' ', current_setting('work_mem'), current_setting('auto_explain.log_min_duration'), current_setting('statement_timeout'))"); got != "9MB 5s 1min" {
			return got
		}
		return ""
	})
	if now := s.postmaster(t, p.Branch); now != pid {
		t.Errorf("the compute was restarted: %d, then %d", pid, now)
	}
	if got := settings(); !strings.Contains(got, `"Work_Mem":"9MB"`) {
		t.Errorf("shown as %s", got)
	}
	// The same again is no work; leaving it out is the default; roles and databases still change.
	if ops := p.patch(t, `{"settings":{"pg_settings":{"Work_Mem":"9MB","auto_explain.log_min_duration":"5s","statement_timeout":"1min"}}}`); len(ops) > 0 {
		t.Errorf("the same settings again: %s", actions(ops))
	}
	p.patch(t, `{"settings":{"pg_settings":{"default_transaction_read_only":"on","exit_on_error":"on","transform_null_equals":"on"}}}`)
	eventually(t, opLimit, func() string {
		if got := value[string](t, conn, "select concat_ws(' ', current_setting('work_mem'), current_setting('statement_timeout'))"); got != "4MB 0" {
			return got
		}
		return ""
	})
	role, err := s.CreateRole(t.Context(), p.ID, p.Branch, sdk.RoleCreate{Name: "other"})
	if err != nil {
		t.Fatal(err)
	}
	s.wait(t, role.Operations)

	// What needs a restart gets one, and holds after a sleep and after a restart of the server.
	ops = p.patch(t, `{"settings":{"pg_settings":{"max_connections":"150","work_mem":"8MB"}}}`)
	if actions(ops) != "suspend_compute start_compute" {
		t.Errorf("operations: %s", actions(ops))
	}
	holds := func(when string) {
		t.Helper()
		conn := s.connect(t, p.URI)
		if got := value[string](t, conn, "select concat_ws(' ', current_setting('max_connections'), current_setting('work_mem'), current_setting('fsync'))"); got != "150 8MB on" {
			t.Errorf("%s: %s", when, got)
		}
	}
	holds("after the change")
	p.suspend(t, p.Endpoint)
	holds("after a sleep")
	s.Restart()
	holds("after a restart of the server")
	if ops := p.patch(t, `{"settings":{"pg_settings":{"pg_stat_statements.max":"500"}}}`); actions(ops) != "suspend_compute start_compute" {
		t.Errorf("a library's setting that needs a restart: %s", actions(ops))
	}
	if got := value[string](t, s.connect(t, p.URI), "select concat_ws(' ', current_setting('pg_stat_statements.max'), current_setting('max_connections'))"); got != "500 839" {
		t.Errorf("settings: %s", got)
	}
	// The same by the command line, which changes what it names.
	if out, err := s.bough("endpoints", "update", "main", "--set", "jit=off", "--set", "PG_stat_statements.max="); err != nil || !strings.Contains(out, "jit = off") {
		t.Errorf("%v: %s", err, out)
	}
	if got := settings(); got != `{"jit":"off"}` {
		t.Errorf("shown as %s", got)
	}
	// A sleeping endpoint takes them at its next start; a branch's endpoint has its own.
	p.suspend(t, p.Endpoint)
	if ops := p.patch(t, `{"settings":{"pg_settings":{"work_mem":"6MB"}}}`); len(ops) > 0 {
		t.Errorf("operations on a sleeping endpoint: %s", actions(ops))
	}
	if got := value[string](t, s.connect(t, p.URI), "show work_mem"); got != "6MB" {
		t.Errorf("after the wake: %s", got)
	}
	b := p.branch(t, "")
	if got := value[string](t, s.connect(t, b.URI), "show work_mem"); got != "7MB" {
		t.Errorf("the branch's endpoint has %s, the project's default is 7MB", got)
	}

	// Libraries: running computes restart, sleeping ones stay asleep.
	p.suspend(t, b.Endpoint)
	ops = p.patchProject(t, `{"settings":{"preload_libraries":{"use_defaults":false,"enabled_libraries":[]}}}`)
	if actions(ops) != "suspend_compute start_compute" {
		t.Errorf("operations: %s", actions(ops))
	}
	if got := value[string](t, s.connect(t, p.URI), "show shared_preload_libraries"); got != "" {
		t.Errorf("preloaded: %s", got)
	}
	p.awaitState(t, b.Endpoint, api.Idle)
	if ops := p.patchProject(t, `{"settings":{"preload_libraries":{"use_defaults":false}}}`); len(ops) > 0 {
		t.Errorf("the same libraries again: %s", actions(ops))
	}
	s.settled(t)
}

// TestSettingsThatStopTheStart makes settings, and data that needs them, such that the compute cannot start without them: it
// says why, and starts once they are back.
func TestSettingsThatStopTheStart(t *testing.T) {
	s := start(t)
	p := s.project(t)
	p.patch(t, `{"settings":{"pg_settings":{"max_prepared_transactions":"5"}}}`)
	conn := s.connect(t, p.URI)
	sql(t, conn, "create table kept as select 1 as n")
	for i := range 3 {
		sql(t, conn, "begin")
		sql(t, conn, "insert into kept values (2)")
		sql(t, conn, fmt.Sprintf("prepare transaction 'p%d'", i))
	}
	p.suspend(t, p.Endpoint)
	if ops := p.patch(t, `{"settings":{"pg_settings":{"max_prepared_transactions":"2"}}}`); len(ops) > 0 {
		t.Errorf("operations: %s", actions(ops))
	}
	if _, err := s.tryConnect(t, p.URI); err == nil || !strings.Contains(err.Error(), "max_prepared_transactions") {
		t.Errorf("a compute that cannot start: %v", err)
	}
	p.patch(t, `{"settings":{"pg_settings":{"max_prepared_transactions":"5"}}}`)
	conn = s.connect(t, p.URI)
	sql(t, conn, "commit prepared 'p0'")
	if n := value[int](t, conn, "select count(*) from kept"); n != 2 {
		t.Errorf("%d rows", n)
	}
	s.settled(t)
}

// TestRefusedSettings sends what must not be accepted: each is refused with its reason, and running computes do not notice.
func TestRefusedSettings(t *testing.T) {
	s := start(t)
	p := s.project(t)
	conn := s.connect(t, p.URI)
	pid := s.postmaster(t, p.Branch)
	before := s.trace(t)
	buffers, memory := value[string](t, conn, "show shared_buffers"), value[string](t, conn, "show work_mem")
	endpoint, projectPath := "/projects/"+p.ID+"/endpoints/"+p.Endpoint, "/projects/"+p.ID
	set := func(name, value string) string {
		return fmt.Sprintf(`{"endpoint":{"settings":{"pg_settings":{%q:%q}}}}`, name, value)
	}
	for name, c := range map[string]struct {
		method, path, body string
		status             int
		says               string
	}{
		"unknown setting":        {"PATCH", endpoint, set("no_such_setting", "1"), 400, `no setting "no_such_setting"`},
		"not a number":           {"PATCH", endpoint, set("work_mem", "lots"), 400, `invalid value for parameter "work_mem"`},
		"a wrong unit":           {"PATCH", endpoint, set("statement_timeout", "5 parsecs"), 400, `Valid units`},
		"out of range":           {"PATCH", endpoint, set("work_mem", "1kB"), 400, `outside the valid range`},
		"not in the enumeration": {"PATCH", endpoint, set("default_transaction_isolation", "sometimes"), 400, `Available values`},
		"internal":               {"PATCH", endpoint, set("block_size", "4096"), 400, `cannot be set`},
		"durability":             {"PATCH", endpoint, set("fsync", "off"), 400, `no acknowledged commit may be lost`},
		"a command":              {"PATCH", endpoint, set("archive_command", "id"), 400, `branches`},
		"an address":             {"PATCH", endpoint, set("listen_addresses", "*"), 400, `proxy`},
		"libraries":              {"PATCH", endpoint, set("shared_preload_libraries", "x"), 400, `settings.preload_libraries`},
		"more than the size":     {"PATCH", endpoint, set("shared_buffers", "9000MB"), 400, `shared memory`},
		"too few connections":    {"PATCH", endpoint, set("max_connections", "1"), 400, `at least`},
		"an unknown prefix":      {"PATCH", endpoint, set("nothing.here", "1"), 400, `not installed`},
		"a library's value":      {"PATCH", endpoint, set("pg_stat_statements.track", "some"), 400, `Available values: none, top, all`},
		"a library's name":       {"PATCH", endpoint, set("pg_stat_statements.nothing", "1"), 400, `pg_stat_statements.nothing`},
		"two settings in one":    {"PATCH", endpoint, set("work_mem = 1\nfsync", "off"), 400, `not a setting's name`},
		"in a new endpoint":      {"POST", projectPath + "/branches", `{"endpoints":[{"type":"read_write","settings":{"pg_settings":{"work_mem":"x"}}}]}`, 400, `work_mem`},
		"in a new project":       {"POST", "/projects", `{"project":{"default_endpoint_settings":{"pg_settings":{"work_mem":"x"}}}}`, 400, `work_mem`},
		"in the defaults":        {"PATCH", projectPath, `{"project":{"default_endpoint_settings":{"pg_settings":{"wal_level":"minimal"}}}}`, 400, `enable_logical_replication`},
		"a library that is not installed": {"PATCH", projectPath, `{"project":{"settings":{"preload_libraries":{"enabled_libraries":["no_such_library"]}}}}`, 400,
			`no_such_library.*available: .*pg_stat_statements`},
		"a library that is not made for it": {"PATCH", projectPath, `{"project":{"settings":{"preload_libraries":{"enabled_libraries":["dblink"]}}}}`, 400, `dblink`},
		"a library of a new project":        {"POST", "/projects", `{"project":{"settings":{"preload_libraries":{"enabled_libraries":["../x"]}}}}`, 400, `available`},
		"libraries of one endpoint":         {"PATCH", endpoint, `{"endpoint":{"settings":{"preload_libraries":{"enabled_libraries":["../x"]}}}}`, 400, `available`},
		"libraries of nobody's project":     {"GET", "/projects/no-such-project-1/available_preload_libraries", "", 404, `no-such-project-1`},
	} {
		r := s.raw(t, "", c.method, c.path, c.body)
		if r.status != c.status || !regexp.MustCompile(c.says).MatchString(r.message) {
			t.Errorf("%s: %d %s, want %d and something about %q", name, r.status, r.body, c.status, c.says)
		}
	}
	if after := s.trace(t); after != before {
		t.Errorf("refused calls left something:\n%s\nbefore:\n%s", after, before)
	}
	if now := s.postmaster(t, p.Branch); now != pid {
		t.Errorf("a refused call restarted the compute: %d, then %d", pid, now)
	}
	if got := value[string](t, conn, "show work_mem"); got != memory {
		t.Errorf("the open session: %s", got)
	}
	// A compute that got smaller must still hold what was set for a larger one.
	p.patch(t, `{"autoscaling_limit_min_cu":1,"autoscaling_limit_max_cu":1,"settings":{"pg_settings":{"shared_buffers":"900MB"}}}`)
	r := s.raw(t, "", "PATCH", endpoint, `{"endpoint":{"autoscaling_limit_min_cu":0.25,"autoscaling_limit_max_cu":0.25}}`)
	if r.status != 400 || !strings.Contains(r.message, "shared memory") {
		t.Errorf("a size too small for its settings: %d %s", r.status, r.body)
	}
	p.patch(t, `{"autoscaling_limit_min_cu":0.25,"autoscaling_limit_max_cu":0.25,"settings":{"pg_settings":{}}}`)
	if got := value[string](t, s.connect(t, p.URI), "show shared_buffers"); got != buffers {
		t.Errorf("after the settings went: %s", got)
	}
	s.settled(t)
}

// TestLibrariesAndExtensions uses what is preloaded by default, and creates extensions as the owner of a database.
func TestLibrariesAndExtensions(t *testing.T) {
	s := start(t, "--extensions-allow", "default,pageinspect")
	p := s.project(t)
	r := s.raw(t, "", "GET", "/projects/"+p.ID+"/available_preload_libraries", "")
	var list api.AvailablePreloadLibraries
	if err := json.Unmarshal(r.body, &list); err != nil || r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	found := map[string]bool{}
	for _, l := range *list.Libraries {
		found[l.LibraryName] = l.IsDefault
	}
	if isDefault, ok := found["auto_explain"]; !ok || isDefault || !found["pg_stat_statements"] {
		t.Errorf("libraries: %s", r.body)
	}
	conn := s.connect(t, p.URI)
	for _, name := range []string{"pg_stat_statements", "hstore", "postgres_fdw", "dblink", "pg_buffercache", "pageinspect", "bloom", "pgcrypto"} {
		sql(t, conn, "create extension "+name)
	}
	sql(t, conn, "select 42 as findme")
	if n := value[int](t, conn, "select count(*) from pg_stat_statements where query like 'select % as findme'"); n != 1 {
		t.Errorf("pg_stat_statements shows the statement %d times", n)
	}
	sql(t, conn, "select pg_stat_statements_reset()")
	sql(t, conn, "create server elsewhere foreign data wrapper postgres_fdw options (host 'localhost')")
	if _, err := conn.Exec(t.Context(), "create extension file_fdw"); sqlState(err) != "42501" {
		t.Errorf("file_fdw: %v", err)
	}
	// A branch has the extensions of its parent, which it can drop and create.
	b := s.connect(t, p.branch(t, "").URI)
	sql(t, b, "drop extension bloom; create extension bloom")
	// The operator chooses anew: what is there stays, and nothing more comes.
	s.Kill9()
	s.args = append(s.args, "--extensions-allow", "none")
	s.Start()
	p.suspend(t, p.Endpoint)
	conn = s.connect(t, p.URI)
	sql(t, conn, "select count(*) from pg_buffercache")
	if _, err := conn.Exec(t.Context(), "create extension earthdistance cascade"); sqlState(err) != "42501" {
		t.Errorf("with none allowed: %v", err)
	}
	sql(t, conn, "create extension citext") // trusted by PostgreSQL itself
}
