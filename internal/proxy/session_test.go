package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/pgtest"
)

func TestWaysIn(t *testing.T) {
	c := pgtest.NewCluster(t, pgtest.Options{})
	d := openDoor(t, nil).serves(c)
	pooled := testEndpoint + "-pooler." + testDomain
	own := testEndpoint + "." + testDomain
	for name, cfg := range map[string]*pgx.ConnConfig{
		"server name":            d.config(t, ""),
		"direct TLS":             d.config(t, "sslnegotiation=direct"),
		"protocol 3.2 asked for": d.config(t, "max_protocol_version=3.2"),
		"no channel binding":     d.configFor(t, own, testRole, testPassword, "sslmode=require channel_binding=disable"),
		"pooler host":            d.configFor(t, pooled, testRole, testPassword, "sslmode=verify-full"),
		"endpoint option":        d.configFor(t, "localhost", testRole, testPassword, "sslmode=verify-full channel_binding=require options='endpoint="+testEndpoint+"'"),
		"project option":         d.configFor(t, "localhost", testRole, testPassword, "sslmode=verify-full options='-c work_mem=5MB project="+testEndpoint+"'"),
		"pooler option":          d.configFor(t, "localhost", testRole, testPassword, "sslmode=verify-full options='endpoint="+testEndpoint+"-pooler'"),
		"both, agreeing":         d.config(t, "options='endpoint="+testEndpoint+"'"),
		"password form":          d.configFor(t, "localhost", testRole, "endpoint="+testEndpoint+";"+testPassword, "sslmode=verify-full"),
		"password form with $":   d.configFor(t, "localhost", testRole, "endpoint="+testEndpoint+"$"+testPassword, "sslmode=verify-full"),
	} {
		t.Run(name, func(t *testing.T) {
			conn := connect(t, cfg)
			if got := query[string](t, conn, "select current_user || ' ' || current_database()"); got != testRole+" "+testDatabase {
				t.Errorf("connected as %q", got)
			}
			closeConn(conn)
			<-conn.PgConn().CleanupDone()
		})
	}
	eventually(t, "all sessions are closed", func() bool { return d.Sessions(testEndpoint) == 0 })
	if st := d.Stats(); st.AuthFailures != 0 || st.Rejected != 0 || st.FromClients == 0 || st.ToClients == 0 {
		t.Errorf("counters: %+v", st)
	}
}

func TestPsql(t *testing.T) {
	c := pgtest.NewCluster(t, pgtest.Options{})
	d := openDoor(t, nil).serves(c)
	run := func(t *testing.T, password, params string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "psql", "-XAtq", "-c", "select 'it works'", fmt.Sprintf(
			"postgresql://%s@localhost:%d/%s?%s", testRole, d.port, testDatabase, params))
		cmd.Env = append(os.Environ(), "PGPASSWORD="+password, "PGSSLROOTCERT="+d.certs.CAFile())
		out, err := cmd.CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	const option = "options=endpoint%3D" + testEndpoint
	for _, params := range []string{
		"sslmode=require&channel_binding=require&" + option,
		"sslmode=verify-full&channel_binding=require&" + option,
		"sslmode=prefer&" + option,
		"sslmode=require&channel_binding=disable&ssl_max_protocol_version=TLSv1.2&" + option,
	} {
		if out, err := run(t, testPassword, params); err != nil || out != "it works" {
			t.Errorf("%s: %v: %s", params, err, out)
		}
	}
	if out, err := run(t, "endpoint="+testEndpoint+";"+testPassword, "sslmode=require"); err != nil || out != "it works" {
		t.Errorf("password form: %v: %s", err, out)
	}
	for params, want := range map[string]string{
		"sslmode=disable&" + option:                   "sslmode=require",
		"sslmode=require":                             "options=endpoint",
		"sslmode=require&options=endpoint%3Dep-other": `no endpoint "ep-other"`,
	} {
		if out, err := run(t, testPassword, params); err == nil || !strings.Contains(out, want) {
			t.Errorf("%s: got %q, want it to mention %q", params, out, want)
		}
	}
	if out, err := run(t, "wrong", "sslmode=require&"+option); err == nil || !strings.Contains(out, "password authentication failed") {
		t.Errorf("wrong password: %s", out)
	}
}

func TestParametersPassThrough(t *testing.T) {
	c := pgtest.NewCluster(t, pgtest.Options{})
	admin := c.Conn(t, "")
	if _, err := admin.Exec(t.Context(), "create role repl login replication"); err != nil {
		t.Fatal(err)
	}
	d := openDoor(t, nil).serves(c)
	d.dir.verifiers["repl"] = d.dir.verifiers[testRole]

	cfg := d.config(t, "options='-c work_mem=5MB neon_proxy:on -c neon_x=1 -c search_path=a,\\\\ b'")
	cfg.RuntimeParams["application_name"] = "door test"
	cfg.RuntimeParams["statement_timeout"] = "12345"
	cfg.RuntimeParams["neon_hint"] = "x"
	conn := connect(t, cfg)
	for sql, want := range map[string]string{
		"select current_setting('application_name')":  "door test",
		"select current_setting('statement_timeout')": "12345ms",
		"select current_setting('work_mem')":          "5MB",
		"select current_setting('search_path')":       "a, b",
	} {
		if got := query[string](t, conn, sql); got != want {
			t.Errorf("%s: %q, want %q", sql, got, want)
		}
	}

	cfg = d.configFor(t, testEndpoint+"."+testDomain, "repl", testPassword, "sslmode=verify-full")
	cfg.RuntimeParams["replication"] = "database"
	repl, err := pgconn.ConnectConfig(t.Context(), &cfg.Config)
	if err != nil {
		t.Fatal(err)
	}
	defer repl.Close(t.Context())
	rows, err := repl.Exec(t.Context(), "IDENTIFY_SYSTEM").ReadAll()
	if err != nil || len(rows) != 1 || len(rows[0].Rows) != 1 {
		t.Errorf("IDENTIFY_SYSTEM: %v, %v", rows, err)
	}
}

func TestComputeErrorsAreVerbatim(t *testing.T) {
	c := pgtest.NewCluster(t, pgtest.Options{})
	d := openDoor(t, nil).serves(c)
	cfg := d.config(t, "")
	cfg.Database = "absent"
	e := refusal(t, cfg)
	if e.Code != "3D000" || e.Message != `database "absent" does not exist` || e.Routine == "" {
		t.Errorf("got %+v", e)
	}
	if n := d.dir.wakes.Load(); n != 1 {
		t.Errorf("%d wakes for a database that does not exist", n)
	}
}

func TestConcurrentConnectionsToASleepingCompute(t *testing.T) {
	c := pgtest.NewCluster(t, pgtest.Options{Stopped: true})
	d := openDoor(t, nil)
	var starts atomic.Int32
	start := sync.OnceValue(func() string {
		starts.Add(1)
		c.Start(t)
		return socketPath(c)
	})
	d.dir.setWake(func(context.Context) (string, error) { return start(), nil })
	const clients = 20
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			conn, err := pgx.ConnectConfig(t.Context(), d.config(t, ""))
			if err != nil {
				t.Error(err)
				return
			}
			defer closeConn(conn)
			var one int
			if err := conn.QueryRow(t.Context(), "select 1").Scan(&one); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if starts.Load() != 1 || d.dir.wakes.Load() != clients {
		t.Errorf("%d starts, %d wakes", starts.Load(), d.dir.wakes.Load())
	}
}

func TestStrangersWakeNothing(t *testing.T) {
	d := openDoor(t, nil)
	wrong := refusal(t, d.configFor(t, testEndpoint+"."+testDomain, testRole, "wrong", "sslmode=verify-full"))
	unknown := refusal(t, d.configFor(t, testEndpoint+"."+testDomain, "nobody", "wrong", "sslmode=verify-full"))
	form := refusal(t, d.configFor(t, "localhost", testRole, "endpoint="+testEndpoint+";wrong", "sslmode=verify-full"))
	d.dir.mu.Lock()
	d.dir.verifiers["old"] = "md5d41d8cd98f00b204e9800998ecf8427e"
	d.dir.mu.Unlock()
	md5 := refusal(t, d.configFor(t, testEndpoint+"."+testDomain, "old", "wrong", "sslmode=verify-full"))
	for role, e := range map[string]*pgconn.PgError{testRole: wrong, "nobody": unknown, "old": md5} {
		if e.Code != "28P01" || e.Message != fmt.Sprintf("password authentication failed for user %q", role) || e.Hint != "" {
			t.Errorf("%s: %+v", role, e)
		}
	}
	if form.Code != wrong.Code || form.Message != wrong.Message {
		t.Errorf("password form: %+v", form)
	}
	if n := d.dir.wakes.Load(); n != 0 {
		t.Errorf("%d wakes", n)
	}
	if st := d.Stats(); st.AuthFailures != 4 {
		t.Errorf("counters: %+v", st)
	}
}

func TestPasswordChangedInSQL(t *testing.T) {
	c := pgtest.NewCluster(t, pgtest.Options{})
	admin := c.Conn(t, "")
	d := openDoor(t, nil).serves(c)
	d.dir.catalog = func(ctx context.Context, role string) (v string, err error) {
		err = admin.QueryRow(ctx, "select coalesce((select rolpassword from pg_authid where rolname=$1 and rolcanlogin),'')", role).Scan(&v)
		return v, err
	}
	d.dir.setTarget(func(t *Target) { t.Running = true })
	if _, err := admin.Exec(t.Context(), "alter role "+testRole+" password 'changed in SQL'"); err != nil {
		t.Fatal(err)
	}
	host := testEndpoint + "." + testDomain
	connect(t, d.configFor(t, host, testRole, "changed in SQL", "sslmode=verify-full"))
	if e := refusal(t, d.configFor(t, host, testRole, testPassword, "sslmode=verify-full")); e.Code != "28P01" {
		t.Errorf("the old password: %+v", e)
	}
	// A catalog that cannot be read must not lock everybody out.
	d.dir.mu.Lock()
	d.dir.catalog = nil
	d.dir.mu.Unlock()
	d.connect(t, "")
}

func TestCancel(t *testing.T) {
	c := pgtest.NewCluster(t, pgtest.Options{})
	admin := c.Conn(t, "")
	d := openDoor(t, nil).serves(c)
	conn := d.connect(t, "")
	other := d.connect(t, "")
	request := func(encrypted bool) {
		w := d.dial(t)
		if encrypted {
			w = d.dialTLS(t, "")
		}
		w.send(&pgproto3.CancelRequest{ProcessID: conn.PgConn().PID(), SecretKey: conn.PgConn().SecretKey()})
		w.eof()
	}
	for _, encrypted := range []bool{false, true} {
		done := make(chan error, 1)
		go func() {
			_, err := conn.Exec(context.Background(), "select pg_sleep(60)")
			done <- err
		}()
		eventually(t, "the query runs", func() bool {
			return query[int](t, admin, "select count(*) from pg_stat_activity where query like '%pg_sleep(60)' and wait_event='PgSleep'") == 1
		})
		request(encrypted)
		err := <-done
		if e, ok := errors.AsType[*pgconn.PgError](err); !ok || e.Code != "57014" {
			t.Errorf("encrypted %v: got %v", encrypted, err)
		}
		if query[int](t, conn, "select 1") != 1 || query[int](t, other, "select 2") != 2 {
			t.Error("the sessions must go on")
		}
	}
	if n := d.Stats().Cancels; n != 2 {
		t.Errorf("%d cancels were passed on", n)
	}
	w := d.dial(t)
	w.send(&pgproto3.CancelRequest{ProcessID: 1, SecretKey: []byte{1, 2, 3, 4}})
	w.eof()
	closeConn(conn)
	eventually(t, "the session is closed", func() bool { return d.Sessions(testEndpoint) == 1 })
	request(false) // a key of the past
	if n := d.Stats().Cancels; n != 2 {
		t.Errorf("%d cancels were passed on, want 2", n)
	}
}

type pattern struct {
	left  int64
	chunk []byte
	each  func()
}

func (p *pattern) Read(b []byte) (int, error) {
	if p.left <= 0 {
		return 0, io.EOF
	}
	n := copy(b[:len(b)/len(p.chunk)*len(p.chunk)], bytes.Repeat(p.chunk, len(b)/len(p.chunk)))
	p.left -= int64(n)
	p.each()
	return n, nil
}

func (p *pattern) Write(b []byte) (int, error) {
	p.left -= int64(len(b))
	p.each()
	return len(b), nil
}

func TestCopyOf100MBInFlatMemory(t *testing.T) {
	c := pgtest.NewCluster(t, pgtest.Options{})
	d := openDoor(t, nil).serves(c)
	conn := d.connect(t, "")
	const total = 100 << 20
	line := []byte(strings.Repeat("x", 1023) + "\n")
	if _, err := conn.Exec(t.Context(), "create temp table big (line text)"); err != nil {
		t.Fatal(err)
	}
	var peak uint64
	calls := 0
	sample := func() {
		if calls++; calls%100 == 0 {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapAlloc)
		}
	}
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	in := &pattern{left: total, chunk: line, each: sample}
	if _, err := conn.PgConn().CopyFrom(t.Context(), in, "copy big from stdin"); err != nil {
		t.Fatal(err)
	}
	out := &pattern{left: total - in.left, each: sample}
	if _, err := conn.PgConn().CopyTo(t.Context(), out, "copy big to stdout"); err != nil {
		t.Fatal(err)
	}
	if out.left != 0 {
		t.Errorf("%d bytes are missing", out.left)
	}
	if grown := int64(peak) - int64(before.HeapAlloc); grown > 24<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
	closeConn(conn)
	eventually(t, "the session is closed", func() bool { return d.Sessions(testEndpoint) == 0 })
	if st := d.Stats(); st.FromClients < total || st.ToClients < total {
		t.Errorf("counters: %+v", st)
	}
}

type meter struct {
	opened, closed, from, to atomic.Int64
}

func (m *meter) SessionOpened(string) { m.opened.Add(1) }
func (m *meter) SessionClosed(string) { m.closed.Add(1) }
func (m *meter) Transferred(_ string, from, to int64) {
	m.from.Add(from)
	m.to.Add(to)
}

func TestMeter(t *testing.T) {
	c := pgtest.NewCluster(t, pgtest.Options{})
	m := &meter{}
	d := openDoor(t, func(o *Options) { o.Meter = m }).serves(c)
	conn := d.connect(t, "")
	query[string](t, conn, "select repeat('x', 3000000)")
	if m.to.Load() < 1<<20 {
		t.Error("a session that goes on must be metered")
	}
	closeConn(conn)
	eventually(t, "the session is closed", func() bool { return m.closed.Load() == 1 })
	if st := d.Stats(); m.opened.Load() != 1 || m.from.Load() != st.FromClients || m.to.Load() != st.ToClients {
		t.Errorf("metered %d and %d, counted %+v", m.from.Load(), m.to.Load(), st)
	}
}

func TestClientHangsUpWhileWaking(t *testing.T) {
	for _, how := range []string{"close", "terminate", "reset"} {
		t.Run(how, func(t *testing.T) {
			d := openDoor(t, nil)
			waking, ended := make(chan struct{}), make(chan struct{})
			d.dir.setWake(func(ctx context.Context) (string, error) {
				close(waking)
				<-ctx.Done()
				close(ended)
				return "", ctx.Err()
			})
			w := d.dialTLS(t, "")
			raw := w.Conn
			w.send(startupMessage(nil), &pgproto3.PasswordMessage{Password: "endpoint=" + testEndpoint + ";" + testPassword})
			<-waking
			switch how {
			case "close":
				_ = raw.Close()
			case "terminate":
				w.send(&pgproto3.Terminate{})
			case "reset":
				tcp := raw.(interface{ NetConn() net.Conn }).NetConn().(*net.TCPConn)
				_ = tcp.SetLinger(0)
				_ = tcp.Close()
			}
			select {
			case <-ended:
			case <-time.After(15 * time.Second):
				t.Fatal("waking goes on for a client that left")
			}
			eventually(t, "the session is gone", func() bool { return d.Sessions(testEndpoint) == 0 })
		})
	}
}

// Drivers over WebSockets send startup, password and first query at once.
func TestDataSentBeforeTheComputeIsAwake(t *testing.T) {
	c := pgtest.NewCluster(t, pgtest.Options{Stopped: true})
	d := openDoor(t, nil)
	d.dir.setWake(func(context.Context) (string, error) { c.Start(t); return socketPath(c), nil })
	w := d.dialTLS(t, "")
	w.send(startupMessage(nil), &pgproto3.PasswordMessage{Password: "endpoint=" + testEndpoint + ";" + testPassword},
		&pgproto3.Query{String: "select 'early'"}, &pgproto3.Terminate{})
	front := pgproto3.NewFrontend(w, nil)
	var got string
	for {
		msg, err := front.Receive()
		if err != nil {
			break
		}
		if row, ok := msg.(*pgproto3.DataRow); ok {
			got = string(row.Values[0])
		}
	}
	if got != "early" {
		t.Errorf("got %q", got)
	}
}

func TestComputeGoesAway(t *testing.T) {
	c := pgtest.NewCluster(t, pgtest.Options{})
	d := openDoor(t, nil).serves(c)

	// Terminated: the client reads why.
	conn := d.connect(t, "")
	pid := query[int](t, conn, "select pg_backend_pid()")
	if _, err := c.Conn(t, "").Exec(t.Context(), "select pg_terminate_backend($1)", pid); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the session is closed", func() bool { return d.Sessions(testEndpoint) == 0 })
	_, err := conn.Exec(t.Context(), "select 1")
	if e, ok := errors.AsType[*pgconn.PgError](err); !ok || e.Code != "57P01" {
		t.Errorf("terminated: %v", err)
	}

	// Crashed: the stream ends.
	conn = d.connect(t, "")
	c.Crash(t)
	eventually(t, "the session is closed", func() bool { return d.Sessions(testEndpoint) == 0 })
	if _, err := conn.Exec(t.Context(), "select 1"); err == nil {
		t.Error("a query without a compute succeeded")
	}

	// The socket of a crashed compute is still there; another Wake cures that, and the client does not notice.
	stale := socketPath(c) + "-gone"
	before := d.dir.wakes.Load()
	d.dir.setWake(func(context.Context) (string, error) {
		if d.dir.wakes.Load() == before+1 {
			return stale, nil
		}
		c.Start(t)
		return socketPath(c), nil
	})
	conn = d.connect(t, "")
	if query[int](t, conn, "select 1") != 1 || d.dir.wakes.Load() != before+2 {
		t.Errorf("%d wakes", d.dir.wakes.Load()-before)
	}
}

// fakeCompute answers every session with the same bytes and closes.
func fakeCompute(t *testing.T, answer []byte) string {
	path := filepath.Join(pgtest.TempDir(t), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = readStartup(conn, nil)
			_, _ = conn.Write(answer)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-done })
	return path
}

func TestComputeThatIsGoingDownIsWokenAgain(t *testing.T) {
	c := pgtest.NewCluster(t, pgtest.Options{})
	d := openDoor(t, nil)
	down, err := (&pgproto3.ErrorResponse{Severity: "FATAL", Code: "57P03", Message: "the database system is shutting down"}).Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, answer := range map[string][]byte{
		"shutting down": down,
		"silent":        nil,
		"half a stream": {'R', 0, 0, 0, 8, 0, 0, 0, 0, 'S', 0, 0},
	} {
		path := fakeCompute(t, answer)
		before := d.dir.wakes.Load()
		d.dir.setWake(func(context.Context) (string, error) {
			if d.dir.wakes.Load() < before+3 {
				return path, nil
			}
			return socketPath(c), nil
		})
		conn := d.connect(t, "")
		if query[int](t, conn, "select 1") != 1 {
			t.Errorf("%s: no answer", name)
		}
	}
}

func TestComputeThatDoesNotStart(t *testing.T) {
	d := openDoor(t, func(o *Options) { o.ConnectTimeout = 300 * time.Millisecond })
	for _, tc := range []struct {
		err        error
		code, text string
	}{
		{core.Errorf(core.KindUnavailable, "", "the host is low on memory"), "57P03", "the host is low on memory"},
		{core.Errorf(core.KindNoSpace, "", "the pool is full"), "53100", "the pool is full"},
		{core.Wrap(errors.New("secret detail"), "compute.start", "look there"), "58000", "internal error"},
		{errors.New("secret detail"), "58000", "internal error"},
		{core.NotFoundf("gone"), "28000", testEndpoint},
	} {
		d.dir.setWake(func(context.Context) (string, error) { return "", tc.err })
		e := refusal(t, d.config(t, ""))
		if e.Code != tc.code || !strings.Contains(e.Message, tc.text) || strings.Contains(e.Message, "secret") {
			t.Errorf("%v: %+v", tc.err, e)
		}
	}
	d.dir.setWake(func(ctx context.Context) (string, error) { <-ctx.Done(); return "", ctx.Err() })
	if e := refusal(t, d.config(t, "")); e.Code != "57P03" || !strings.Contains(e.Message, "300ms") {
		t.Errorf("too slow: %+v", e)
	}
	broken := fakeCompute(t, []byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	d.dir.setWake(func(context.Context) (string, error) { return broken, nil })
	if e := refusal(t, d.config(t, "")); e.Code != "58000" {
		t.Errorf("not PostgreSQL: %+v", e)
	}
}

func TestCloseEndpoint(t *testing.T) {
	c := pgtest.NewCluster(t, pgtest.Options{})
	d := openDoor(t, nil).serves(c)
	conn := d.connect(t, "")
	if n := d.CloseEndpoint("ep-other"); n != 0 {
		t.Errorf("%d sessions of another endpoint", n)
	}
	if n := d.CloseEndpoint(testEndpoint); n != 1 {
		t.Errorf("%d sessions", n)
	}
	if _, err := conn.Exec(t.Context(), "select 1"); err == nil {
		t.Error("the session goes on")
	}
	eventually(t, "the session is gone", func() bool { return d.Sessions(testEndpoint) == 0 })
	eventually(t, "the compute has no session", func() bool {
		return query[int](t, c.Conn(t, ""), "select count(*) from pg_stat_activity where usename='"+testRole+"'") == 0
	})

	// While it waits for its compute a session is told.
	waking := make(chan struct{})
	d.dir.setWake(func(ctx context.Context) (string, error) { close(waking); <-ctx.Done(); return "", ctx.Err() })
	result := make(chan error, 1)
	go func() {
		_, err := pgx.ConnectConfig(context.Background(), d.config(t, ""))
		result <- err
	}()
	<-waking
	d.CloseEndpoint(testEndpoint)
	if e, ok := errors.AsType[*pgconn.PgError](<-result); !ok || e.Code != "57P01" {
		t.Errorf("got %+v", e)
	}
}

func TestStopEndsSessions(t *testing.T) {
	c := pgtest.NewCluster(t, pgtest.Options{})
	d := openDoor(t, nil).serves(c)
	conn := d.connect(t, "")
	busy := d.connect(t, "")
	failed := make(chan error, 1)
	go func() { _, err := busy.Exec(context.Background(), "select pg_sleep(60)"); failed <- err }()
	idle := d.dial(t) // still in the handshake
	idle.put([]byte{0, 0})
	d.stop(t)
	d.stop(t)
	if err := <-failed; err == nil {
		t.Error("the query was not ended")
	}
	if _, err := conn.Exec(t.Context(), "select 1"); err == nil {
		t.Error("the session goes on")
	}
	if _, err := net.Dial("tcp", d.Addr().String()); err == nil {
		t.Error("the door is still open")
	}
}

func TestClientThatDoesNotReadCanBeCut(t *testing.T) {
	c := pgtest.NewCluster(t, pgtest.Options{})
	d := openDoor(t, nil).serves(c)
	w := d.dialTLS(t, "")
	w.send(startupMessage(nil), &pgproto3.PasswordMessage{Password: "endpoint=" + testEndpoint + ";" + testPassword},
		&pgproto3.Query{String: "select repeat('x', 100000000)"})
	eventually(t, "the socket is full", func() bool {
		a := d.Stats().ToClients
		runtime.Gosched()
		return a > 100_000
	})
	d.CloseEndpoint(testEndpoint)
	eventually(t, "the session is gone", func() bool { return d.Sessions(testEndpoint) == 0 })
}
