package proxy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/boughdb/bough/internal/pgtest"
)

const pooledHost = testEndpoint + "-pooler." + testDomain

// poolConfig is a configuration for the pooled host.
func (d *door) poolConfig(t testing.TB, params string) *pgx.ConnConfig {
	t.Helper()
	return d.configFor(t, pooledHost, testRole, testPassword, "sslmode=verify-full channel_binding=require "+params)
}

func (d *door) pooled(t testing.TB, params string) *pgx.Conn {
	t.Helper()
	return connect(t, d.poolConfig(t, params))
}

// small is a cluster of which the pools take few sessions: 7 of 12 are reserved, and 2 are the platform's.
func small(t testing.TB) *pgtest.Cluster {
	t.Helper()
	return pgtest.NewCluster(t, pgtest.Options{Settings: map[string]string{"max_connections": "12"}})
}

const smallPool = 3

func run(t testing.TB, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func sqlState(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code
	}
	return fmt.Sprint(err)
}

func backends(t testing.TB, admin *pgx.Conn) int {
	return query[int](t, admin, "select count(*) from pg_stat_activity where usename='"+testRole+"' and backend_type='client backend'")
}

func TestPooledClientsShareSessions(t *testing.T) {
	c := small(t)
	d := openDoor(t, nil).serves(c)
	admin := c.Conn(t, "")
	var wg sync.WaitGroup
	for i := range 20 {
		mode := []string{"cache_statement", "cache_describe", "describe_exec", "exec", "simple_protocol"}[i%5]
		conn := d.pooled(t, "default_query_exec_mode="+mode)
		wg.Go(func() {
			for n := range 50 {
				tx, err := conn.Begin(t.Context())
				if err != nil {
					t.Error(mode, err)
					return
				}
				var pid1, pid2, sum int
				err = errors.Join(tx.QueryRow(t.Context(), "select pg_backend_pid()").Scan(&pid1),
					tx.QueryRow(t.Context(), fmt.Sprintf("select $1::int + %d, pg_backend_pid()", n%7), n).Scan(&sum, &pid2),
					tx.Commit(t.Context()))
				if err != nil || pid1 != pid2 || sum != n+n%7 {
					t.Errorf("%s: %v: pids %d and %d, sum %d", mode, err, pid1, pid2, sum)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := backends(t, admin); n > smallPool {
		t.Errorf("%d sessions in the compute, at most %d are the pool's", n, smallPool)
	}
	if n := d.Sessions(testEndpoint); n != 20 {
		t.Errorf("%d clients", n)
	}
}

func TestPooledPreparedStatements(t *testing.T) {
	c := small(t)
	d := openDoor(t, nil).serves(c)
	const each = 1100
	var wg sync.WaitGroup
	for i := range 3 {
		conn := d.pooled(t, "")
		wg.Go(func() {
			for n := range each {
				if _, err := conn.Prepare(t.Context(), fmt.Sprintf("s%d", n), fmt.Sprintf("select %d + %d * $1::int", n, i)); err != nil {
					t.Error(err)
					return
				}
			}
			for range 500 {
				n := rand.IntN(each)
				var got int
				if err := conn.QueryRow(t.Context(), fmt.Sprintf("s%d", n), 2).Scan(&got); err != nil || got != n+2*i {
					t.Errorf("client %d, statement %d: %d, %v", i, n, got, err)
					return
				}
			}
			for n := range 20 {
				if err := conn.Deallocate(t.Context(), fmt.Sprintf("s%d", n)); err != nil {
					t.Error(err)
				}
			}
			run(t, conn, "deallocate s20") // some drivers do it in SQL
			if _, err := conn.PgConn().ExecPrepared(t.Context(), "s20", [][]byte{[]byte("1")}, nil, nil).Close(); sqlState(err) != "26000" {
				t.Errorf("a deallocated statement: %v", err)
			}
			run(t, conn, "deallocate prepare s21", pgx.QueryExecModeExec)
			if _, err := conn.PgConn().ExecPrepared(t.Context(), "s21", [][]byte{[]byte("1")}, nil, nil).Close(); sqlState(err) != "26000" {
				t.Errorf("deallocated by the extended protocol: %v", err)
			}
			if _, err := conn.PgConn().Prepare(t.Context(), "s21", fmt.Sprintf("select 21 + %d * $1::int", i), nil); err != nil {
				t.Errorf("and prepared again: %v", err)
			}
			if _, err := conn.PgConn().Prepare(t.Context(), "s30", "select 1", nil); sqlState(err) != "42P05" || !strings.Contains(err.Error(), `"s30"`) {
				t.Errorf("a name in use: %v", err)
			}
			if _, err := conn.PgConn().Prepare(t.Context(), "bad", "select nonsense", nil); sqlState(err) != "42703" {
				t.Errorf("a statement that cannot be prepared: %v", err)
			}
			if _, err := conn.PgConn().Prepare(t.Context(), "bad", "select 1", nil); err != nil {
				t.Errorf("its name is free again: %v", err)
			}
			run(t, conn, "deallocate all")
			if _, err := conn.PgConn().ExecPrepared(t.Context(), "s30", [][]byte{[]byte("1")}, nil, nil).Close(); sqlState(err) != "26000" {
				t.Errorf("after deallocate all: %v", err)
			}
		})
	}
	wg.Wait()
}

// A statement whose result changes is prepared anew, in every session.
func TestPooledStatementsAfterDDL(t *testing.T) {
	c := small(t)
	d := openDoor(t, nil).serves(c)
	a, b := d.pooled(t, ""), d.pooled(t, "")
	run(t, a, "create table t as select 1 as x")
	const sql = "select * from t"
	for _, conn := range []*pgx.Conn{a, b} {
		run(t, conn, sql)
	}
	run(t, a, "alter table t add y int default 2")
	for i, conn := range []*pgx.Conn{a, b} {
		_, err := conn.Exec(t.Context(), sql) // the driver has a description that is outdated now, and forgets it
		if err != nil && sqlState(err) != "0A000" {
			t.Error(err)
		}
		var x, y int
		if err := conn.QueryRow(t.Context(), sql).Scan(&x, &y); err != nil || y != 2 {
			t.Errorf("client %d: %d %d, %v", i, x, y, err)
		}
	}
}

func TestPooledPipelines(t *testing.T) {
	c := small(t)
	d := openDoor(t, nil).serves(c)
	admin := c.Conn(t, "")
	var wg sync.WaitGroup
	for i := range 6 {
		conn := d.pooled(t, "")
		wg.Go(func() {
			for n := range 20 {
				// Batches are one pipeline with one Sync.
				batch := &pgx.Batch{}
				for k := range 30 {
					batch.Queue(fmt.Sprintf("select %d + $1::int", k), n)
				}
				res := conn.SendBatch(t.Context(), batch)
				for k := range 30 {
					var got int
					if err := res.QueryRow().Scan(&got); err != nil || got != k+n {
						t.Errorf("client %d: %d, %v", i, got, err)
						return
					}
				}
				if err := res.Close(); err != nil {
					t.Error(err)
				}
				// And one with many, of which some fail.
				p := conn.PgConn().StartPipeline(t.Context())
				for k := range 10 {
					p.SendQueryParams("select 1/$1::int", [][]byte{[]byte(fmt.Sprint(k % 3))}, nil, nil, nil)
					p.SendQueryParams("select 2", nil, nil, nil, nil)
					if err := p.Sync(); err != nil {
						t.Error(err)
					}
				}
				bad, good, syncs := 0, 0, 0
				for syncs < 10 {
					r, err := p.GetResults()
					if err != nil {
						if sqlState(err) != "22012" {
							t.Error(err)
							return
						}
						bad++
						continue
					}
					switch r := r.(type) {
					case *pgconn.ResultReader:
						if rr := r.Read(); rr.Err == nil {
							good++
						} else if sqlState(rr.Err) == "22012" {
							bad++
						}
					case *pgconn.PipelineSync:
						syncs++
					}
				}
				if err := p.Close(); err != nil || bad != 4 || good != 12 {
					t.Errorf("client %d: %d failed, %d did not, %v", i, bad, good, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := backends(t, admin); n > smallPool {
		t.Errorf("%d sessions", n)
	}
}

func TestPooledCopy(t *testing.T) {
	c := small(t)
	d := openDoor(t, nil).serves(c)
	run(t, d.pooled(t, ""), "create table rows (client int, n int primary key, text text)")
	const each = 3000
	var wg sync.WaitGroup
	for i := range 6 {
		conn := d.pooled(t, "")
		wg.Go(func() {
			rows := pgx.CopyFromSlice(each, func(n int) ([]any, error) { return []any{i, i*each + n, strings.Repeat("x", n%500)}, nil })
			if n, err := conn.CopyFrom(t.Context(), pgx.Identifier{"rows"}, []string{"client", "n", "text"}, rows); err != nil || n != each {
				t.Errorf("copied %d: %v", n, err)
			}
			// One that fails early: what is still to come of it must not disturb anybody.
			rows = pgx.CopyFromSlice(each, func(int) ([]any, error) { return []any{i, i * each, "again"}, nil })
			if _, err := conn.CopyFrom(t.Context(), pgx.Identifier{"rows"}, []string{"client", "n", "text"}, rows); sqlState(err) != "23505" {
				t.Errorf("a copy that fails: %v", err)
			}
			var out strings.Builder
			if _, err := conn.PgConn().CopyTo(t.Context(), &out, fmt.Sprintf("copy (select n from rows where client=%d) to stdout", i)); err != nil {
				t.Error(err)
			}
			if n := strings.Count(out.String(), "\n"); n != each {
				t.Errorf("%d lines", n)
			}
		})
	}
	wg.Wait()
}

// A COPY by the extended protocol: the Sync behind Execute is ignored by the server.
func TestPooledCopyExtended(t *testing.T) {
	c := small(t)
	d := openDoor(t, nil).serves(c)
	w := d.dialPool(t)
	w.simple("create table e (n int)")
	for round := range 3 {
		w.send(&pgproto3.Parse{Query: "copy e from stdin"}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{})
		if round == 1 {
			w.send(&pgproto3.CopyData{Data: []byte("not a number\n")}, &pgproto3.CopyData{Data: []byte("2\n")})
		} else {
			w.send(&pgproto3.CopyData{Data: []byte("1\n")}, &pgproto3.CopyData{Data: []byte("2\n")})
		}
		w.send(&pgproto3.CopyDone{}, &pgproto3.Sync{})
		want := "12GC"
		if round == 1 {
			want = "12GE"
		}
		if got := w.toReady(); got != want+"Z" {
			t.Fatalf("round %d: got %s", round, got)
		}
	}
	if got := w.simple("select count(*) from e"); got != "TDCZ" {
		t.Error(got)
	}
	eventually(t, "the session is given back", func() bool {
		conn := d.pooled(t, "")
		defer closeConn(conn)
		return query[int](t, conn, "select count(*) from e") == 4
	})
}

// wirePool is a hand-written client that is logged in on the pooled host.
type wirePool struct {
	*wire
	front *pgproto3.Frontend
	pid   uint32
	key   []byte
	param map[string]string
}

func (d *door) dialPool(t testing.TB) *wirePool { return d.dialPoolAs(t, nil) }

func (d *door) dialPoolAs(t testing.TB, params map[string]string) *wirePool {
	t.Helper()
	w := &wirePool{wire: d.dialTLS(t, ""), param: map[string]string{}}
	w.front = pgproto3.NewFrontend(w.Conn, nil)
	w.send(startupMessage(params), &pgproto3.PasswordMessage{Password: "endpoint=" + testEndpoint + "-pooler;" + testPassword})
	for {
		msg, err := w.front.Receive()
		if err != nil {
			t.Fatal(err)
		}
		switch msg := msg.(type) {
		case *pgproto3.ErrorResponse:
			t.Fatalf("login: %+v", msg)
		case *pgproto3.BackendKeyData:
			w.pid, w.key = msg.ProcessID, append([]byte(nil), msg.SecretKey...)
		case *pgproto3.ParameterStatus:
			w.param[msg.Name] = msg.Value
		case *pgproto3.ReadyForQuery:
			return w
		}
	}
}

// toReady reads to the next ReadyForQuery, and returns the types of what came.
func (w *wirePool) toReady() string {
	w.t.Helper()
	s, _ := w.answer()
	return s
}

func (w *wirePool) answer() (types, detail string) {
	w.t.Helper()
	var b strings.Builder
	for {
		msg, err := w.front.Receive()
		if err != nil {
			w.t.Fatalf("after %s: %v", b.String(), err)
		}
		switch msg := msg.(type) {
		case *pgproto3.ParameterStatus, *pgproto3.NoticeResponse:
			continue
		case *pgproto3.ParseComplete:
			b.WriteByte('1')
		case *pgproto3.BindComplete:
			b.WriteByte('2')
		case *pgproto3.CloseComplete:
			b.WriteByte('3')
		case *pgproto3.RowDescription:
			b.WriteByte('T')
		case *pgproto3.ParameterDescription:
			b.WriteByte('t')
		case *pgproto3.NoData:
			b.WriteByte('n')
		case *pgproto3.DataRow:
			b.WriteByte('D')
			detail = ""
			for _, v := range msg.Values {
				detail += string(v)
			}
		case *pgproto3.CommandComplete:
			b.WriteByte('C')
		case *pgproto3.EmptyQueryResponse:
			b.WriteByte('I')
		case *pgproto3.PortalSuspended:
			b.WriteByte('s')
		case *pgproto3.CopyInResponse:
			b.WriteByte('G')
		case *pgproto3.ErrorResponse:
			b.WriteByte('E')
			detail = msg.Severity + " " + msg.Code
		case *pgproto3.ReadyForQuery:
			b.WriteByte('Z')
			if msg.TxStatus != 'I' {
				b.WriteByte(msg.TxStatus)
			}
			return b.String(), detail
		default:
			fmt.Fprintf(&b, "%T", msg)
		}
	}
}

func (w *wirePool) simple(sql string) string {
	w.t.Helper()
	w.send(&pgproto3.Query{String: sql})
	return w.toReady()
}

func TestPooledProtocol(t *testing.T) {
	c := small(t)
	d := openDoor(t, nil).serves(c)
	w, other := d.dialPool(t), d.dialPool(t)
	// Somebody else uses the session in between, so that nothing of the client's is left in it.
	disturb := func() {
		other.send(&pgproto3.Parse{Query: "select 'disturbed'"}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{})
		other.toReady()
		other.simple("select 1")
	}
	for _, step := range []struct {
		what string
		send []pgproto3.FrontendMessage
		want string
	}{
		{"empty query", []pgproto3.FrontendMessage{&pgproto3.Query{}}, "IZ"},
		{"Sync alone", []pgproto3.FrontendMessage{&pgproto3.Sync{}}, "Z"},
		{"Flush and Sync", []pgproto3.FrontendMessage{&pgproto3.Flush{}, &pgproto3.Sync{}}, "Z"},
		{"unnamed, parsed", []pgproto3.FrontendMessage{&pgproto3.Parse{Query: "select $1::int"}, &pgproto3.Describe{ObjectType: 'S'}, &pgproto3.Sync{}}, "1tTZ"},
		{"unnamed, bound in a later transaction", []pgproto3.FrontendMessage{&pgproto3.Bind{Parameters: [][]byte{[]byte("1")}}, &pgproto3.Describe{ObjectType: 'P'}, &pgproto3.Execute{}, &pgproto3.Sync{}}, "2TDCZ"},
		{"and once more", []pgproto3.FrontendMessage{&pgproto3.Bind{Parameters: [][]byte{[]byte("1")}}, &pgproto3.Execute{}, &pgproto3.Sync{}}, "2DCZ"},
		{"named", []pgproto3.FrontendMessage{&pgproto3.Parse{Name: "a", Query: "select 7"}, &pgproto3.Sync{}}, "1Z"},
		{"described later", []pgproto3.FrontendMessage{&pgproto3.Describe{ObjectType: 'S', Name: "a"}, &pgproto3.Sync{}}, "tTZ"},
		{"bound later", []pgproto3.FrontendMessage{&pgproto3.Bind{PreparedStatement: "a"}, &pgproto3.Execute{}, &pgproto3.Sync{}}, "2DCZ"},
		{"the same, by another name", []pgproto3.FrontendMessage{&pgproto3.Parse{Name: "b", Query: "select 7"}, &pgproto3.Bind{PreparedStatement: "b"}, &pgproto3.Execute{}, &pgproto3.Sync{}}, "12DCZ"},
		{"an error skips to Sync", []pgproto3.FrontendMessage{&pgproto3.Parse{Name: "c", Query: "select nonsense"}, &pgproto3.Bind{PreparedStatement: "c"}, &pgproto3.Close{ObjectType: 'S', Name: "a"}, &pgproto3.Parse{Name: "d", Query: "select 9"}, &pgproto3.Sync{}, &pgproto3.Query{String: "select 1"}}, "EZ"},
		{"what follows it", nil, "TDCZ"},
		{"what it skipped was not closed", []pgproto3.FrontendMessage{&pgproto3.Bind{PreparedStatement: "a"}, &pgproto3.Execute{}, &pgproto3.Sync{}}, "2DCZ"},
		{"nor parsed", []pgproto3.FrontendMessage{&pgproto3.Bind{PreparedStatement: "d"}, &pgproto3.Sync{}}, "EZ"},
		{"closed", []pgproto3.FrontendMessage{&pgproto3.Close{ObjectType: 'S', Name: "a"}, &pgproto3.Sync{}}, "3Z"},
		{"closed, in one with others", []pgproto3.FrontendMessage{&pgproto3.Parse{Query: "select 1"}, &pgproto3.Close{ObjectType: 'S', Name: "b"}, &pgproto3.Bind{}, &pgproto3.Close{ObjectType: 'P'}, &pgproto3.Sync{}}, "1323Z"},
		{"is gone", []pgproto3.FrontendMessage{&pgproto3.Bind{PreparedStatement: "a"}, &pgproto3.Sync{}}, "EZ"},
		{"portal in parts", []pgproto3.FrontendMessage{&pgproto3.Parse{Query: "select generate_series(1,3)"}, &pgproto3.Bind{DestinationPortal: "p"}, &pgproto3.Execute{Portal: "p", MaxRows: 2}, &pgproto3.Execute{Portal: "p"}, &pgproto3.Sync{}}, "12DDsDCZ"},
		{"several in one", []pgproto3.FrontendMessage{&pgproto3.Query{String: "select 1; select 2; select 1/0; select 3"}}, "TDCTDCEZ"},
		{"a transaction", []pgproto3.FrontendMessage{&pgproto3.Query{String: "begin"}}, "CZT"},
		{"fails", []pgproto3.FrontendMessage{&pgproto3.Query{String: "select 1/0"}}, "EZE"},
		{"ends", []pgproto3.FrontendMessage{&pgproto3.Query{String: "rollback"}}, "CZ"},
		{"stray COPY messages", []pgproto3.FrontendMessage{&pgproto3.CopyData{Data: []byte("x")}, &pgproto3.CopyDone{}, &pgproto3.CopyFail{}, &pgproto3.Sync{}}, "Z"},
	} {
		w.send(step.send...)
		if got := w.toReady(); got != step.want {
			t.Fatalf("%s: got %s, want %s", step.what, got, step.want)
		}
		disturb()
	}
	// Flush: the answers come before Sync.
	for range 2 {
		w.send(&pgproto3.Parse{Name: "f", Query: "select 4"}, &pgproto3.Flush{})
		if msg, err := w.front.Receive(); err != nil {
			t.Fatal(err)
		} else if _, ok := msg.(*pgproto3.ParseComplete); !ok {
			t.Fatalf("got %T", msg)
		}
		w.send(&pgproto3.Close{ObjectType: 'S', Name: "f"}, &pgproto3.Sync{})
		if got := w.toReady(); got != "3Z" {
			t.Fatal(got)
		}
	}
	// A violation of the protocol ends this client only.
	w.put([]byte{'?', 0, 0, 0, 4})
	if msg, err := w.front.Receive(); err != nil {
		t.Fatal(err)
	} else if e, ok := msg.(*pgproto3.ErrorResponse); !ok || e.Code != "08P01" || e.Severity != "FATAL" {
		t.Errorf("got %+v", msg)
	}
	if got := other.simple("select 1"); got != "TDCZ" {
		t.Error(got)
	}
}

func TestPooledParameters(t *testing.T) {
	c := small(t)
	d := openDoor(t, nil).serves(c)
	show := func(conn *pgx.Conn, name string) string { return query[string](t, conn, "show "+name) }
	a := d.poolConfig(t, "application_name=first")
	a.RuntimeParams["timezone"] = "asia/tokyo"
	a.RuntimeParams["datestyle"] = "german"
	b := d.poolConfig(t, "application_name='it\\'s \\\\ second'")
	first, second, third := connect(t, a), connect(t, b), d.pooled(t, "")
	third.PgConn().ParameterStatus("TimeZone")
	if got := first.PgConn().ParameterStatus("TimeZone") + first.PgConn().ParameterStatus("DateStyle"); got != "Asia/TokyoGerman, DMY" {
		t.Errorf("the client was told %q", got)
	}
	run(t, third, "set timezone='America/Lima'")
	for range 3 {
		for conn, want := range map[*pgx.Conn][3]string{
			first: {"first", "Asia/Tokyo", "German, DMY"}, second: {`it's \ second`, "", "ISO, MDY"}, third: {"", "America/Lima", "ISO, MDY"},
		} {
			if got := [3]string{show(conn, "application_name"), show(conn, "timezone"), show(conn, "datestyle")}; got[0] != want[0] || want[1] != "" && got[1] != want[1] || got[2] != want[2] {
				t.Errorf("got %q, want %q", got, want)
			}
		}
	}
	if got := third.PgConn().ParameterStatus("TimeZone"); got != "America/Lima" {
		t.Errorf("the client was told %q", got)
	}
	// A rolled back one is not kept.
	run(t, third, "begin; set timezone='Asia/Kolkata'; rollback")
	if got := show(third, "timezone") + third.PgConn().ParameterStatus("TimeZone"); got != "America/LimaAmerica/Lima" {
		t.Errorf("after a rollback: %s", got)
	}
	// What is not kept per client makes another pool.
	cfg := d.poolConfig(t, "options='-c work_mem=5MB -c statement_timeout=12345'")
	cfg.RuntimeParams["extra_float_digits"] = "3"
	if conn := connect(t, cfg); show(conn, "work_mem")+show(conn, "statement_timeout")+show(conn, "extra_float_digits") != "5MB12345ms3" {
		t.Error("startup options")
	}
	if got := show(first, "work_mem"); got == "5MB" {
		t.Error("startup options leaked")
	}
	for name, value := range map[string]string{"timezone": "Nowhere", "work_mem": "much", "datestyle": "'; drop"} {
		cfg := d.poolConfig(t, "")
		cfg.RuntimeParams[name] = value
		if e := refusal(t, cfg); e.Severity != "FATAL" || e.Code != "22023" {
			t.Errorf("%s=%s: %+v", name, value, e)
		}
	}
	cfg = d.poolConfig(t, "")
	cfg.Database = "absent"
	if e := refusal(t, cfg); e.Code != "3D000" {
		t.Errorf("%+v", e)
	}
}

// What transactions leave behind in a session does not reach the next client.
func TestPooledNothingLeaks(t *testing.T) {
	c := small(t)
	d := openDoor(t, nil).serves(c)
	admin := c.Conn(t, "")
	run(t, admin, "create role other; grant other to "+testRole)
	var mu sync.Mutex
	var notices []string
	cfg := d.poolConfig(t, "default_query_exec_mode=exec")
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		mu.Lock()
		defer mu.Unlock()
		notices = append(notices, n.Message)
	}
	dirty, clean := connect(t, cfg), d.pooled(t, "")
	for _, c := range []struct{ leave, look, want, warn string }{
		{"set work_mem='7MB'", "show work_mem", "1MB", "a parameter"},
		{"select set_config('work_mem','7MB',false)", "show work_mem", "1MB", ""},
		{"set role other", "select current_user", testRole, ""},
		{"listen something", "select count(*)::text from pg_listening_channels()", "0", "LISTEN"},
		{"prepare p as select 1", "select count(*)::text from pg_prepared_statements where not from_sql or name='p'", "", "prepared in SQL"},
		{"begin; declare c cursor with hold for select 1; commit", "select count(*)::text from pg_cursors where name='c'", "0", ""},
		{"create temp table tt (n int)", "select coalesce(to_regclass('tt')::text,'')", "", ""},
		{"select pg_advisory_lock(42)", "select count(*)::text from pg_locks where locktype='advisory' and objid=42", "0", "advisory"},
	} {
		mu.Lock()
		notices = nil
		mu.Unlock()
		if _, err := dirty.Exec(t.Context(), c.leave, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%s: %v", c.leave, err)
		}
		eventually(t, c.leave+" is undone", func() bool {
			got := query[string](t, clean, c.look)
			return got == c.want || c.want == "1MB" && got != "7MB" || strings.HasPrefix(c.leave, "prepare")
		})
		mu.Lock()
		if told := strings.Join(notices, " "); !strings.Contains(told, c.warn) || c.warn == "" && told != "" {
			t.Errorf("%s: the client was told %q", c.leave, told)
		}
		mu.Unlock()
	}
	if got := query[int](t, clean, "select count(*) from pg_prepared_statements where name='p'"); got != 0 {
		t.Error("a statement prepared in SQL is left")
	}
	mu.Lock()
	notices = nil
	mu.Unlock()
	run(t, dirty, "begin; set local work_mem='7MB'; commit", pgx.QueryExecModeSimpleProtocol)
	run(t, dirty, "set timezone='UTC'")
	if len(notices) > 0 {
		t.Errorf("warned for nothing: %q", notices)
	}
}

func TestPooledCancel(t *testing.T) {
	c := small(t)
	d := openDoor(t, nil).serves(c)
	conn, other := d.pooled(t, ""), d.pooled(t, "")
	for range 5 {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		pid := conn.PgConn()
		done := make(chan error, 1)
		go func() {
			_, err := conn.Exec(t.Context(), "select pg_sleep(60)")
			done <- err
		}()
		<-ctx.Done()
		cancel()
		if err := pid.CancelRequest(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-done; sqlState(err) != "57014" {
			t.Fatal(err)
		}
		run(t, conn, "select 1")
		run(t, other, "select 1")
	}
	// Everybody is busy: a client that waits for a session is answered at once.
	var busy []*pgx.Conn
	for range smallPool {
		conn := d.pooled(t, "")
		run(t, conn, "begin")
		busy = append(busy, conn)
	}
	for _, sql := range []string{"select 1", "select $1::int"} {
		done := make(chan error, 1)
		go func() {
			var args []any
			if strings.Contains(sql, "$1") {
				args = []any{pgx.QueryExecModeExec, 1}
			}
			_, err := conn.Exec(t.Context(), sql, args...)
			done <- err
		}()
		for waiting := true; waiting; {
			_ = conn.PgConn().CancelRequest(t.Context())
			select {
			case err := <-done:
				if waiting = false; sqlState(err) != "57014" {
					t.Fatal(err)
				}
			case <-time.After(10 * time.Millisecond): // it may not have come yet
			}
		}
	}
	for _, b := range busy {
		run(t, b, "rollback")
	}
	run(t, conn, "select 1")
}

// A cancel request that comes too late must not hit the session's next client.
func TestPooledCancelHitsNobodyElse(t *testing.T) {
	c := pgtest.NewCluster(t, pgtest.Options{Settings: map[string]string{"max_connections": "11"}})
	d := openDoor(t, nil).serves(c)
	ctx, stop := context.WithTimeout(t.Context(), 4*time.Second)
	defer stop()
	var wg sync.WaitGroup
	var hits, queries atomic.Int64
	for range 3 {
		victim := d.pooled(t, "")
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := victim.Exec(t.Context(), "select pg_sleep(0.0005)"); err != nil {
					t.Errorf("somebody else's request: %v", err)
					return
				}
				queries.Add(1)
			}
		})
		culprit := d.pooled(t, "")
		wg.Go(func() {
			for ctx.Err() == nil {
				var req sync.WaitGroup
				req.Go(func() { _ = culprit.PgConn().CancelRequest(t.Context()) })
				if _, err := culprit.Exec(t.Context(), "select pg_sleep(0.001)"); sqlState(err) == "57014" {
					hits.Add(1)
				} else if err != nil {
					t.Error(err)
				}
				req.Wait()
			}
		})
	}
	wg.Wait()
	t.Logf("%d queries, %d cancelled", queries.Load(), hits.Load())
}
