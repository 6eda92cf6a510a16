package e2e

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/boughdb/bough/sdk"
)

// reply is what the API answers to a raw request.
type reply struct {
	status        int
	code, message string
	body          []byte
	header        http.Header
}

// raw sends a request as it is; key "" is the admin's.
func (s *server) raw(t *testing.T, key, method, path, body string) reply {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.admin.APIURL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if key == "" {
		key = s.admin.APIKey
	}
	req.Header.Set("Authorization", "Bearer "+key)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	out := reply{status: res.StatusCode, header: res.Header}
	if out.body, err = io.ReadAll(res.Body); err != nil {
		t.Fatal(err)
	}
	var wire struct{ Code, Message string }
	if json.Unmarshal(out.body, &wire) == nil {
		out.code, out.message = wire.Code, wire.Message
	}
	return out
}

// trace is everything that the API shows and the disk holds of a server, to see that a refused call left none.
func (s *server) trace(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	projects, err := sdk.All(s.Projects(t.Context(), sdk.ProjectFilter{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range projects {
		fmt.Fprintln(&b, "project", p.ID, p.Name)
		branches, err := sdk.All(s.Branches(t.Context(), p.ID, sdk.BranchFilter{}))
		if err != nil {
			t.Fatal(err)
		}
		for _, br := range branches {
			roles, err1 := s.Roles(t.Context(), p.ID, br.ID)
			databases, err2 := s.Databases(t.Context(), p.ID, br.ID)
			if err1 != nil || err2 != nil {
				t.Fatal(err1, err2)
			}
			fmt.Fprintln(&b, "branch", br.ID, br.Name, br.CurrentState, len(roles), len(databases))
		}
		endpoints, err := s.Endpoints(t.Context(), p.ID)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range endpoints {
			fmt.Fprintln(&b, "endpoint", e.ID, e.CurrentState, e.Disabled)
		}
		ops, err := sdk.All(s.Operations(t.Context(), p.ID, sdk.OperationFilter{}))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&b, "operations", len(ops))
	}
	fmt.Fprintln(&b, folders(s.dir+"/pool/volumes"), folders(s.dir+"/wal"))
	return b.String()
}

func TestBadInput(t *testing.T) {
	s := start(t)
	p := s.project(t)
	child := p.branch(t, "")
	leaf := p.branch(t, child.ID)
	path := func(more string) string { return "/projects/" + p.ID + more }
	if _, err := s.CreateProject(t.Context(), sdk.ProjectCreate{Name: new("other")}); err != nil {
		t.Fatal(err)
	}
	s.settled(t)
	info, err := s.Branch(t.Context(), p.ID, child.ID)
	if err != nil {
		t.Fatal(err)
	}
	revoked, err := s.CreateAPIKey(t.Context(), "short-lived")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.RevokeAPIKey(t.Context(), revoked.ID); err != nil {
		t.Fatal(err)
	}
	before, pid := s.trace(t), s.postmaster(t, p.Branch)
	long := func(n int) string { return strings.Repeat("x", n) }

	for name, c := range map[string]struct {
		method, path, body string
		status             int
		code, says         string // the code, and a regular expression for the message
	}{
		"unknown project":             {"GET", "/projects/no-such-project-1", "", 404, "", `no-such-project-1`},
		"unknown branch":              {"GET", path("/branches/br-no-such-1"), "", 404, "", `br-no-such-1`},
		"unknown endpoint":            {"POST", path("/endpoints/ep-no-such-1/start"), "", 404, "", `ep-no-such-1`},
		"unknown operation":           {"GET", path("/operations/00000000-0000-0000-0000-000000000000"), "", 404, "", `not found`},
		"unknown role":                {"POST", path("/branches/" + child.ID + "/roles/nobody/reset_password"), "", 404, "", `nobody`},
		"unknown database":            {"PATCH", path("/branches/" + child.ID + "/databases/nothing"), `{"database":{"name":"x"}}`, 404, "", `nothing`},
		"unknown parent":              {"POST", path("/branches"), `{"branch":{"parent_id":"br-no-such-1"}}`, 404, "", `br-no-such-1`},
		"unknown organization":        {"POST", "/projects", `{"project":{"org_id":"org-no-such-1"}}`, 404, "", `org-no-such-1`},
		"unknown path":                {"GET", "/nothing/here", "", 404, "", `.`},
		"wrong method":                {"PUT", path(""), `{}`, 405, "", `.`},
		"malformed JSON":              {"POST", "/projects", `{"project":`, 400, "", `JSON`},
		"JSON of another type":        {"POST", "/projects", `{"project":{"name":7}}`, 400, "", `name`},
		"no project":                  {"POST", "/projects", `{}`, 400, "", `project`},
		"no body":                     {"POST", "/projects", "", 400, "", `.`},
		"unknown enum":                {"POST", path("/branches"), `{"endpoints":[{"type":"write_only"}]}`, 400, "", `read_write`},
		"unknown provisioner":         {"POST", "/projects", `{"project":{"provisioner":"vm"}}`, 400, "", `k8s-neonvm`},
		"project name too long":       {"POST", "/projects", `{"project":{"name":"` + long(257) + `"}}`, 400, "", `256`},
		"branch name too long":        {"POST", path("/branches"), `{"branch":{"name":"` + long(257) + `"}}`, 400, "", `256`},
		"branch name taken":           {"POST", path("/branches"), `{"branch":{"name":"main"}}`, 409, "BRANCH_ALREADY_EXISTS", `main`},
		"branch renamed to a taken":   {"PATCH", path("/branches/" + child.ID), `{"branch":{"name":"main"}}`, 409, "BRANCH_ALREADY_EXISTS", `main`},
		"role name too long":          {"POST", path("/branches/" + child.ID + "/roles"), `{"role":{"name":"` + long(64) + `"}}`, 400, "", `63`},
		"role name taken":             {"POST", path("/branches/" + child.ID + "/roles"), `{"role":{"name":"neondb_owner"}}`, 409, "ROLE_ALREADY_EXISTS", `neondb_owner`},
		"role name reserved":          {"POST", path("/branches/" + child.ID + "/roles"), `{"role":{"name":"pg_mine"}}`, 400, "", `reserved`},
		"the platform's role":         {"POST", path("/branches/" + child.ID + "/roles"), `{"role":{"name":"cloud_admin"}}`, 400, "", `reserved`},
		"database name taken":         {"POST", path("/branches/" + child.ID + "/databases"), `{"database":{"name":"neondb","owner_name":"neondb_owner"}}`, 409, "DATABASE_ALREADY_EXISTS", `neondb`},
		"database name empty":         {"POST", path("/branches/" + child.ID + "/databases"), `{"database":{"name":"","owner_name":"neondb_owner"}}`, 400, "", `name`},
		"database of nobody":          {"POST", path("/branches/" + child.ID + "/databases"), `{"database":{"name":"d","owner_name":"nobody"}}`, 400, "", `nobody`},
		"role that owns a database":   {"DELETE", path("/branches/" + child.ID + "/roles/neondb_owner"), "", 422, "", `neondb`},
		"key name too long":           {"POST", "/api_keys", `{"key_name":"` + long(65) + `"}`, 400, "", `64`},
		"second read_write endpoint":  {"POST", path("/endpoints"), `{"endpoint":{"branch_id":"` + child.ID + `","type":"read_write"}}`, 409, "ENDPOINT_ALREADY_EXISTS", `read_write`},
		"two read_write endpoints":    {"POST", path("/branches"), `{"endpoints":[{"type":"read_write"},{"type":"read_write"}]}`, 409, "ENDPOINT_ALREADY_EXISTS", `read_write`},
		"delete the default branch":   {"DELETE", path("/branches/" + p.Branch), "", 422, "", `default`},
		"delete a parent branch":      {"DELETE", path("/branches/" + child.ID), "", 422, "", `child`},
		"projects limit 0":            {"GET", "/projects?limit=0", "", 400, "", `limit`},
		"projects limit 401":          {"GET", "/projects?limit=401", "", 400, "", `limit`},
		"branches limit":              {"GET", path("/branches?limit=10001"), "", 400, "", `limit`},
		"operations limit":            {"GET", path("/operations?limit=1001"), "", 400, "", `limit`},
		"limit that is no number":     {"GET", "/projects?limit=many", "", 400, "", `limit`},
		"branches of a bad cursor":    {"GET", path("/branches?cursor=%00nonsense"), "", 400, "", `cursor`},
		"compute too small":           {"POST", "/projects", `{"project":{"autoscaling_limit_min_cu":0.1}}`, 400, "", `0\.25`},
		"min above max":               {"PATCH", path("/endpoints/" + p.Endpoint), `{"endpoint":{"autoscaling_limit_min_cu":4,"autoscaling_limit_max_cu":1}}`, 400, "", `max_cu`},
		"timeout too long":            {"PATCH", path("/endpoints/" + p.Endpoint), `{"endpoint":{"suspend_timeout_seconds":604801}}`, 400, "", `604800`},
		"timeout below never":         {"PATCH", path("/endpoints/" + p.Endpoint), `{"endpoint":{"suspend_timeout_seconds":-2}}`, 400, "", `suspend_timeout`},
		"retention too long":          {"PATCH", path(""), `{"project":{"history_retention_seconds":2592001}}`, 400, "", `2592000`},
		"version of no PostgreSQL":    {"POST", "/projects", `{"project":{"pg_version":9}}`, 400, "", `14`},
		"branch from a moment":        {"POST", path("/branches"), `{"branch":{"parent_timestamp":"2030-01-01T00:00:00Z"}}`, 400, "BAD_REQUEST", `parent_timestamp .* is in the future`},
		"not built: restore":          {"POST", path("/branches/" + child.ID + "/restore"), `{"source_branch_id":"` + p.Branch + `"}`, 501, "NOT_IMPLEMENTED", `.`},
		"not built: snapshots":        {"GET", path("/snapshots"), "", 501, "NOT_IMPLEMENTED", `.`},
		"endpoint moved":              {"PATCH", path("/endpoints/" + p.Endpoint), `{"endpoint":{"branch_id":"` + leaf.ID + `"}}`, 400, "", `branch`},
		"project of another's branch": {"GET", "/projects/no-such-1/branches/" + child.ID, "", 404, "", `no-such-1`},
	} {
		t.Run(name, func(t *testing.T) {
			r := s.raw(t, "", c.method, c.path, c.body)
			if r.status != c.status || (c.code != "" && r.code != c.code) {
				t.Errorf("answers %d %s %q, want %d %s", r.status, r.code, r.message, c.status, c.code)
			}
			if !regexp.MustCompile(c.says).MatchString(r.message) || r.code == "" || strings.Contains(r.message, "internal") {
				t.Errorf("%d says %q (%s), want something about %s", r.status, r.message, r.code, c.says)
			}
		})
	}
	for name, key := range map[string]string{"wrong key": "napi_wrong", "revoked key": revoked.Key} {
		if r := s.raw(t, key, "GET", "/projects", ""); r.status != 401 || r.message == "" {
			t.Errorf("%s: %d %s", name, r.status, r.message)
		}
	}
	if r := s.raw(t, "", "POST", "/projects", `{"project":{"name":"`+long(8<<20)+`"}}`); r.status != 413 || r.message == "" {
		t.Errorf("oversized body: %d %s", r.status, r.message)
	}
	if after := s.trace(t); after != before {
		t.Errorf("refused calls left a trace.\nbefore:\n%s\nafter:\n%s", before, after)
	}
	if now := s.postmaster(t, p.Branch); now != pid {
		t.Error("refused calls restarted a compute")
	}
	if now, err := s.Branch(t.Context(), p.ID, child.ID); err != nil || now.Name != info.Name {
		t.Errorf("branch %s is named %s, was %s: %v", child.ID, now.Name, info.Name, err)
	}
	t.Run("front door", func(t *testing.T) { badClients(t, s, p) })
	if after := s.trace(t); after != before {
		t.Errorf("refused clients left a trace.\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

// badClients knocks at the Postgres proxy the wrong way.
func badClients(t *testing.T, s *server, p *project) {
	with := func(change func(*url.URL)) string {
		u, err := url.Parse(p.URI)
		if err != nil {
			t.Fatal(err)
		}
		change(u)
		return u.String()
	}
	query := func(key, v string) string {
		return with(func(u *url.URL) { q := u.Query(); q.Set(key, v); u.RawQuery = q.Encode() })
	}
	host := func(h string) string { return with(func(u *url.URL) { u.Host = h + ":5432" }) }
	for name, c := range map[string]struct{ uri, state, says string }{
		"wrong password":     {p.as(t, p.Role, "wrong", p.Database), "28P01", "password authentication failed"},
		"unknown role":       {p.as(t, "nobody", "wrong", p.Database), "28P01", "password authentication failed"},
		"unknown database":   {p.as(t, p.Role, p.Password, "nothing"), "3D000", "nothing"},
		"unknown endpoint":   {host("ep-no-such-12345678.db.localhost"), "28000", "ep-no-such-12345678"},
		"no TLS":             {query("sslmode", "disable"), "28000", "sslmode=require"},
		"no endpoint at all": {with(func(u *url.URL) { u.Host = "localhost:5432"; u.RawQuery = "sslmode=require" }), "", "endpoint"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.tryConnect(t, c.uri)
			if err == nil || (c.state != "" && sqlState(err) != c.state) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v (%s), want %s and something about %q", err, sqlState(err), c.state, c.says)
			}
		})
	}
	// What works, so that the refusals mean something.
	endpointHost := p.Endpoint + ".db.localhost"
	for name, uri := range map[string]string{
		"SNI":             host(endpointHost),
		"pooled host":     host(p.Endpoint + "-pooler.db.localhost"),
		"channel binding": query("channel_binding", "require"),
		"direct TLS":      query("sslnegotiation", "direct"),
		"endpoint option": with(func(u *url.URL) {
			u.Host = "localhost:5432"
			u.RawQuery = "sslmode=require&options=endpoint%3D" + p.Endpoint
		}),
		"verified by the local CA": with(func(u *url.URL) {
			u.Host = endpointHost + ":5432"
			u.RawQuery = "sslmode=verify-full&sslrootcert=" + s.dir + "/certs/ca.pem"
		}),
	} {
		t.Run(name, func(t *testing.T) {
			conn := s.connect(t, uri)
			if n := value[int](t, conn, "select 1"); n != 1 {
				t.Error(n)
			}
		})
	}
	t.Run("password form", func(t *testing.T) {
		cfg := s.config(t, with(func(u *url.URL) {
			u.Host, u.RawQuery = "localhost:5432", "sslmode=require"
			u.User = url.UserPassword(p.Role, "endpoint="+p.Endpoint+";"+p.Password)
		}))
		conn, err := pgx.ConnectConfig(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close(t.Context())
	})
	t.Run("cancel", func(t *testing.T) {
		conn := s.connect(t, p.URI)
		ended := make(chan error, 1)
		go func() {
			_, err := conn.Exec(t.Context(), "select pg_sleep(600)")
			ended <- err
		}()
		watch := s.connect(t, p.URI)
		eventually(t, opLimit, func() string {
			if n := value[int](t, watch, "select count(*) from pg_stat_activity where query like 'select pg_sleep(600)%' and state = 'active'"); n != 1 {
				return "the query does not run"
			}
			return ""
		})
		if err := conn.PgConn().CancelRequest(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; sqlState(err) != "57014" {
			t.Errorf("the cancelled query ended with %v", err)
		}
	})
	t.Run("oversized startup packet", func(t *testing.T) {
		conn := s.dial(t)
		packet := binary.BigEndian.AppendUint32(nil, 20_000)
		packet = binary.BigEndian.AppendUint32(packet, 3<<16)
		answer := s.send(t, conn, packet)
		if e, ok := answer.(*pgproto3.ErrorResponse); !ok || e.Code != "08P01" {
			t.Errorf("%#v", answer)
		}
	})
	t.Run("nonsense", func(t *testing.T) {
		conn := s.dial(t)
		if _, err := conn.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(conn); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("the door keeps a nonsense client: %v", err)
		}
	})
}

// dial opens a bare connection to the proxy with a deadline.
func (s *server) dial(t *testing.T) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.pgAddr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// send writes a packet and reads one answer.
func (s *server) send(t *testing.T, conn net.Conn, packet []byte) pgproto3.BackendMessage {
	t.Helper()
	if _, err := conn.Write(packet); err != nil {
		t.Fatal(err)
	}
	msg, err := pgproto3.NewFrontend(conn, conn).Receive()
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

// TestHangingClient opens connections that say nothing, or stop in the middle: the door ends them, and serves others
// meanwhile.
func TestHangingClient(t *testing.T) {
	s := start(t, "--handshake-timeout", "1s")
	p := s.project(t)
	half := binary.BigEndian.AppendUint32(nil, 100)
	for name, bytes := range map[string][]byte{"silent": nil, "half a startup packet": half, "half a TLS record": {0x16, 0x03}} {
		conn := s.dial(t)
		if _, err := conn.Write(bytes); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		s.connect(t, p.URI) // others are served
		_, err := io.Copy(io.Discard, conn)
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			t.Errorf("%s: the door still waits after %v", name, time.Since(began))
		}
	}
	// One that stops after TLS and its startup packet: it is told why.
	cfg := s.config(t, p.URI)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cfg.AfterNetConnect = func(_ context.Context, _ *pgconn.Config, conn net.Conn) (net.Conn, error) {
		return &mute{Conn: conn}, nil
	}
	if _, err := pgx.ConnectConfig(ctx, cfg); err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "1s") {
		t.Errorf("a client that stops in SCRAM: %v", err)
	}
	s.settled(t)
}

// mute sends the first message, the startup packet, and swallows the rest.
type mute struct {
	net.Conn
	started bool
}

func (m *mute) Write(b []byte) (int, error) {
	if m.started {
		return len(b), nil
	}
	m.started = true
	return m.Conn.Write(b)
}
