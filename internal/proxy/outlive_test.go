package proxy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/pgtest"
)

// sleeper starts a cluster when it is asked for, as the control plane does.
type sleeper struct {
	*pgtest.Cluster
	t     *testing.T
	mu    sync.Mutex
	awake bool
	wakes atomic.Int32
}

func (s *sleeper) wake(context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.awake {
		s.Start(s.t)
		s.awake = true
		s.wakes.Add(1)
	}
	return socketPath(s.Cluster), nil
}

func (s *sleeper) sleep(crash bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if crash {
		s.Crash(s.t)
	} else {
		s.Stop(s.t)
	}
	s.awake = false
}

func newSleeper(t *testing.T, d *door) *sleeper {
	s := &sleeper{Cluster: pgtest.NewCluster(t, pgtest.Options{Stopped: true}), t: t}
	d.dir.setWake(s.wake)
	return s
}

// Idle clients stay through a suspension and a crash, and the next query wakes the compute.
func TestPooledClientsOutliveTheCompute(t *testing.T) {
	d := openDoor(t, nil)
	s := newSleeper(t, d)
	var conns []*pgx.Conn
	for i := range 20 {
		conn := d.pooled(t, fmt.Sprintf("application_name=c%d", i))
		if got := query[int](t, conn, "select $1::int", i); got != i { // prepared
			t.Fatal(got)
		}
		conns = append(conns, conn)
	}
	for round, crash := range []bool{false, true, false} {
		s.sleep(crash)
		wakes := s.wakes.Load()
		began := time.Now()
		var wg sync.WaitGroup
		for i, conn := range conns {
			wg.Go(func() {
				var name string
				var n int
				if err := conn.QueryRow(t.Context(), "select $1::int", i).Scan(&n); err != nil || n != i {
					t.Errorf("round %d, client %d: %d, %v", round, i, n, err)
				}
				if err := conn.QueryRow(t.Context(), "show application_name").Scan(&name); err != nil || name != fmt.Sprintf("c%d", i) {
					t.Errorf("round %d, client %d: %q, %v", round, i, name, err)
				}
			})
		}
		wg.Wait()
		t.Logf("round %d: %s", round, time.Since(began))
		if n := s.wakes.Load() - wakes; n != 1 {
			t.Errorf("%d wakes", n)
		}
	}
	if n := d.Sessions(testEndpoint); n != len(conns) {
		t.Errorf("%d clients are left", n)
	}
}

// The transaction that a client has open is lost, and what follows must not run outside of it.
func TestPooledTransactionIsLost(t *testing.T) {
	d := openDoor(t, nil)
	s := newSleeper(t, d)
	w := d.dialPool(t)
	if got := w.simple("create table t (n int)"); got != "CZ" {
		t.Fatal(got)
	}
	for _, crash := range []bool{false, true} {
		for _, end := range []struct {
			name string
			send []pgproto3.FrontendMessage
			want string
		}{
			{"rollback", []pgproto3.FrontendMessage{&pgproto3.Query{String: "rollback"}}, "CZ"},
			{"commit", []pgproto3.FrontendMessage{&pgproto3.Query{String: "commit"}}, "EZ"},
			{"rollback, extended", []pgproto3.FrontendMessage{&pgproto3.Parse{Query: "ROLLBACK"}, &pgproto3.Bind{}, &pgproto3.Describe{ObjectType: 'P'}, &pgproto3.Execute{}, &pgproto3.Sync{}}, "12nCZ"},
			{"commit, extended", []pgproto3.FrontendMessage{&pgproto3.Parse{Query: "/* x */ commit"}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{}}, "12EZ"},
		} {
			if got := w.simple("begin"); got != "CZT" {
				t.Fatal(got)
			}
			if got := w.simple("insert into t values (1)"); got != "CZT" {
				t.Fatal(got)
			}
			s.sleep(crash)
			if strings.HasPrefix(end.name, "rollback") {
				w.send(&pgproto3.Query{String: "insert into t values (2)"})
				if got, e := w.answer(); got != "EZE" || !slices.Contains([]string{"ERROR 57P01", "ERROR 57P02", "ERROR 08006"}, e) {
					t.Fatalf("crash %v, %s: %s %s", crash, end.name, got, e)
				}
				w.send(&pgproto3.Parse{Query: "insert into t values (3)"}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{})
				if got, e := w.answer(); got != "EZE" || e != "ERROR 25P02" {
					t.Fatalf("crash %v, %s: %s %s", crash, end.name, got, e)
				}
			}
			w.send(end.send...)
			if got := w.toReady(); got != end.want {
				t.Fatalf("crash %v, %s: got %s, want %s", crash, end.name, got, end.want)
			}
			w.send(&pgproto3.Query{String: "select count(*) from t"})
			if got, n := w.answer(); got != "TDCZ" || n != "0" {
				t.Fatalf("crash %v, %s: %s, %s rows", crash, end.name, got, n)
			}
		}
		// A query that runs.
		w.send(&pgproto3.Query{String: "select pg_sleep(60)"}, &pgproto3.Query{String: "select 1"})
		eventually(t, "the query runs", func() bool {
			return query[int](t, s.Conn(t, ""), "select count(*) from pg_stat_activity where wait_event='PgSleep'") == 1
		})
		s.sleep(crash)
		for range 2 {
			if got := w.toReady(); strings.TrimPrefix(got, "T") != "EZ" {
				t.Fatal(got)
			}
		}
		w.send(&pgproto3.Parse{Query: "select pg_sleep(60)"}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Flush{})
		eventually(t, "the query runs", func() bool {
			if _, err := s.wake(t.Context()); err != nil {
				t.Fatal(err)
			}
			return query[int](t, s.Conn(t, ""), "select count(*) from pg_stat_activity where wait_event='PgSleep'") == 1
		})
		s.sleep(crash)
		w.send(&pgproto3.Sync{})
		if got := w.toReady(); strings.TrimPrefix(got, "12") != "EZ" {
			t.Fatal(got)
		}
	}
}

// A compute that cannot start gives an error to each query, and the client stays.
func TestPooledWakeFails(t *testing.T) {
	d := openDoor(t, nil)
	s := newSleeper(t, d)
	conn := d.pooled(t, "")
	run(t, conn, "select 1")
	s.sleep(false)
	d.dir.setWake(func(context.Context) (string, error) {
		return "", core.Errorf(core.KindNoSpace, "", "the disk is full")
	})
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeExec, pgx.QueryExecModeCacheStatement} {
		if _, err := conn.Exec(t.Context(), "select 2", mode); sqlState(err) != "53100" || !strings.Contains(err.Error(), "the disk is full") {
			t.Errorf("%v: %v", mode, err)
		}
	}
	if e := refusal(t, d.poolConfig(t, "")); e.Code != "53100" || e.Severity != "FATAL" {
		t.Errorf("%+v", e)
	}
	d.dir.setWake(s.wake)
	run(t, conn, "select 2")
	s.sleep(false)
	d.dir.setWake(func(context.Context) (string, error) { return "", core.NotFoundf("endpoint not found") })
	if _, err := conn.Exec(t.Context(), "select 1"); sqlState(err) != "28000" || !conn.IsClosed() {
		t.Errorf("the endpoint is deleted: %v", err)
	}
}

func TestPooledQueue(t *testing.T) {
	c := small(t)
	d := openDoor(t, func(o *Options) { o.QueueTimeout = 3 * time.Second }).serves(c)
	admin := c.Conn(t, "")
	var busy []*pgx.Conn
	for range smallPool {
		conn := d.pooled(t, "")
		run(t, conn, "begin")
		busy = append(busy, conn)
	}
	conn := d.pooled(t, "")
	if _, err := conn.Exec(t.Context(), "select 1"); sqlState(err) != "08P01" || !strings.Contains(err.Error(), "query_wait_timeout") {
		t.Errorf("waited for too long: %v", err)
	}
	// Another database's pool gets the session that becomes free first.
	run(t, admin, "create database second")
	cfg := d.poolConfig(t, "")
	cfg.Database = "second"
	done := make(chan error, 1)
	go func() {
		conn, err := pgx.ConnectConfig(t.Context(), cfg)
		if err == nil {
			closeConn(conn)
		}
		done <- err
	}()
	eventually(t, "it waits", func() bool { return d.Stats().Sessions == int64(smallPool+1) })
	run(t, busy[0], "commit")
	if err := <-done; err != nil {
		t.Error(err)
	}
	// Clients that go in the middle of something leave nothing behind.
	run(t, busy[1], "select pg_advisory_xact_lock(1)")
	_ = busy[1].PgConn().Conn().Close()
	go func() { _, _ = busy[2].Exec(context.Background(), "select pg_sleep(60)") }()
	eventually(t, "the query runs", func() bool {
		return query[int](t, admin, "select count(*) from pg_stat_activity where wait_event='PgSleep'") == 1
	})
	_ = busy[2].PgConn().Conn().Close()
	eventually(t, "lock and query are gone", func() bool {
		return query[int](t, admin, "select (select count(*) from pg_locks where locktype='advisory') + (select count(*) from pg_stat_activity where wait_event='PgSleep')") == 0
	})
	conn = d.pooled(t, "")
	run(t, conn, "select 1")
}

// First come first served: nobody waits much longer than the others.
func TestPooledFairness(t *testing.T) {
	c := small(t)
	d := openDoor(t, nil).serves(c)
	const clients, each = 30, 40
	waits := make([][]time.Duration, clients)
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range clients {
		conn := d.pooled(t, "default_query_exec_mode=exec")
		wg.Go(func() {
			<-start
			for range each {
				began := time.Now()
				var err error
				if i%3 == 0 { // a pipeline must not keep its session for more than a batch
					batch := &pgx.Batch{}
					batch.Queue("select pg_sleep(0.002)")
					err = conn.SendBatch(t.Context(), batch).Close()
				} else {
					_, err = conn.Exec(t.Context(), "select pg_sleep(0.002)")
				}
				if err != nil {
					t.Error(err)
					return
				}
				waits[i] = append(waits[i], time.Since(began))
			}
		})
	}
	close(start)
	wg.Wait()
	var all, sums []time.Duration
	for _, w := range waits {
		var sum time.Duration
		for _, d := range w {
			sum += d
		}
		all, sums = append(all, w...), append(sums, sum)
	}
	slices.Sort(all)
	slices.Sort(sums)
	if most, median := sums[len(sums)-1], sums[len(sums)/2]; most > 3*median {
		t.Errorf("one client waited %s in all, the median %s", most, median)
	}
	t.Logf("single waits: median %s, p99 %s, most %s", all[len(all)/2], all[len(all)*99/100], all[len(all)-1])
}

// A client that sends without end, and one that does not read, get no more memory than others.
func TestPooledSlowClients(t *testing.T) {
	c := small(t)
	d := openDoor(t, nil).serves(c)
	w := d.dialPool(t)
	_ = w.SetDeadline(time.Now().Add(time.Minute))
	done := make(chan struct{})
	const queries = 200
	go func() {
		defer close(done)
		msg, _ := (&pgproto3.Query{String: "select repeat('x', 1000000)"}).Encode(nil)
		for range queries {
			if _, err := w.Write(msg); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	other := d.pooled(t, "")
	run(t, other, "select 1")
	var got int
	for got < queries {
		if s := w.toReady(); s != "TDCZ" {
			t.Fatal(s)
		}
		got++
	}
	<-done
}

func TestPooledStop(t *testing.T) {
	c := small(t)
	d := openDoor(t, nil).serves(c)
	idle, busy := d.pooled(t, ""), d.pooled(t, "")
	run(t, idle, "select 1")
	run(t, busy, "begin")
	d.stop(t)
	for _, conn := range []*pgx.Conn{idle, busy} {
		_, err := conn.Exec(t.Context(), "select 1")
		if code := sqlState(err); code != "57P01" {
			t.Errorf("%v", err)
		}
	}
	admin := c.Conn(t, "")
	eventually(t, "no session is left", func() bool { return backends(t, admin) == 0 })
}

func TestPooledCloseEndpoint(t *testing.T) {
	c := small(t)
	d := openDoor(t, nil).serves(c)
	conn := d.pooled(t, "")
	if n := d.CloseEndpoint(testEndpoint); n != 1 {
		t.Errorf("%d clients", n)
	}
	if _, err := conn.Exec(t.Context(), "select 1"); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	eventually(t, "it is gone", func() bool { return d.Sessions(testEndpoint) == 0 })
}

// The door's own side of the pool: SQL over HTTP takes its connections there.
func TestPooledConnectFromWithin(t *testing.T) {
	c := small(t)
	d := openDoor(t, nil).serves(c)
	ctx := t.Context()
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			conn, err := d.Connect(ctx, testEndpoint, testRole, testDatabase, map[string]string{"timezone": "asia/tokyo"})
			if err != nil {
				t.Error(err)
				return
			}
			for range 20 {
				res := conn.ExecParams(ctx, "select current_user || current_setting('timezone') || $1", [][]byte{[]byte("!")}, nil, nil, nil).Read()
				if res.Err != nil || string(res.Rows[0][0]) != testRole+"Asia/Tokyo!" {
					t.Error(res.Err, res.Rows)
				}
			}
			if conn.ParameterStatus("TimeZone") != "Asia/Tokyo" {
				t.Error("no parameters")
			}
			if err := conn.Close(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if _, err := d.Connect(ctx, testEndpoint, testRole, "absent", nil); sqlState(err) != "3D000" {
		t.Error(err)
	}
	conn, err := d.Connect(ctx, testEndpoint, testRole, testDatabase, nil)
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithCancel(ctx)
	admin := c.Conn(t, "")
	done := make(chan error, 1)
	go func() { done <- conn.ExecParams(short, "select pg_sleep(60)", nil, nil, nil, nil).Read().Err }()
	asleep := func() int {
		return query[int](t, admin, "select count(*) from pg_stat_activity where wait_event='PgSleep'")
	}
	eventually(t, "the query runs", func() bool { return asleep() == 1 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	eventually(t, "the query ends", func() bool { return asleep() == 0 })
	eventually(t, "all are gone", func() bool { return d.Sessions(testEndpoint) == 0 })
}
