package e2e

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/sdk"
)

func logicalReplication(on bool) *sdk.ProjectSettings {
	return &sdk.ProjectSettings{EnableLogicalReplication: &on}
}

// logicalProject makes a project that may publish, whose computes sleep after seconds.
func (s *server) logicalProject(t *testing.T, seconds int32) *project {
	t.Helper()
	return s.projectWith(t, sdk.ProjectCreate{DefaultEndpointSettings: suspendAfter(seconds), Settings: logicalReplication(true)})
}

// TestLogicalReplicationSetting turns it on and tries to turn it off.
func TestLogicalReplicationSetting(t *testing.T) {
	s := start(t)
	p := s.project(t)
	asleep, bare := p.branch(t, ""), p.branch(t, "")
	p.suspend(t, asleep.Endpoint)
	p.ops(t)(s.DeleteEndpoint(t.Context(), p.ID, bare.Endpoint))
	level := func(uri string) string { t.Helper(); return value[string](t, s.connect(t, uri), "show wal_level") }
	if got := level(p.URI); got != "replica" {
		t.Errorf("wal_level is %s at first", got)
	}
	set := func(on bool) (*sdk.ProjectOperations, error) {
		return s.UpdateProject(t.Context(), p.ID, sdk.ProjectUpdate{Settings: logicalReplication(on)})
	}
	if out, err := set(false); err != nil || len(out.Operations) != 0 {
		t.Errorf("false is false already: %+v, %v", out, err)
	}
	out, err := set(true)
	if err != nil {
		t.Fatal(err)
	}
	var actions []string
	for _, op := range s.wait(t, out.Operations) {
		actions = append(actions, string(op.Action))
		if *op.EndpointID != p.Endpoint {
			t.Errorf("%s of %s, which sleeps", op.Action, *op.EndpointID)
		}
	}
	if got := strings.Join(actions, " "); got != "suspend_compute start_compute" {
		t.Errorf("turning it on started %q", got)
	}
	for _, uri := range []string{p.URI, asleep.URI, p.branch(t, "").URI} {
		if got := level(uri); got != "logical" {
			t.Errorf("wal_level is %s", got)
		}
	}
	s.settled(t)
	before, pid := s.trace(t), s.postmaster(t, p.Branch)
	if r := s.raw(t, "", "PATCH", "/projects/"+p.ID, `{"project":{"name":"x","settings":{"enable_logical_replication":false}}}`); r.status != 422 ||
		!strings.Contains(r.message, "cannot be turned off") {
		t.Errorf("turning it off: %d %s", r.status, r.message)
	}
	if out, err := set(true); err != nil || len(out.Operations) != 0 {
		t.Errorf("true is true already: %+v, %v", out, err)
	}
	if after := s.trace(t); after != before || s.postmaster(t, p.Branch) != pid {
		t.Errorf("what changes nothing left a trace.\nbefore:\n%s\nafter:\n%s", before, after)
	}
	if now, err := s.Project(t.Context(), p.ID); err != nil || !*now.Settings.EnableLogicalReplication {
		t.Errorf("%+v, %v", now, err)
	}
	from := s.logicalProject(t, never)
	if got := level(from.URI); got != "logical" {
		t.Errorf("wal_level of a project that was made so is %s", got)
	}
	s.settled(t)
}

// replication opens a session for logical replication through the front door.
func (s *server) replication(t *testing.T, uri, mode string) (*pgconn.PgConn, error) {
	t.Helper()
	cfg := s.config(t, uri)
	cfg.RuntimeParams["replication"] = mode
	conn, err := pgconn.ConnectConfig(t.Context(), &cfg.Config)
	if err == nil {
		t.Cleanup(func() { hangUp(conn) })
	}
	return conn, err
}

func hangUp(conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// stream starts to receive a slot's changes, once its last receiver is gone.
func (s *server) stream(t *testing.T, uri, slot string) *pgconn.PgConn {
	t.Helper()
	var conn *pgconn.PgConn
	eventually(t, opLimit, func() string {
		var err error
		if conn, err = s.replication(t, uri, "database"); err != nil {
			t.Fatal(err)
		}
		err = pglogrepl.StartReplication(t.Context(), conn, slot, 0,
			pglogrepl.StartReplicationOptions{PluginArgs: []string{"proto_version '1'", "publication_names 'p'"}})
		if sqlState(err) == "55006" { // in use
			hangUp(conn)
			return err.Error()
		}
		if err != nil {
			t.Fatal(err)
		}
		return ""
	})
	return conn
}

// receive takes inserts off a stream until the ids up to want have come, in order and without a gap, starting at from, and
// returns the end of the last transaction. A server may send again what was not confirmed.
func receive(t *testing.T, conn *pgconn.PgConn, from, want int) pglogrepl.LSN {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), opLimit)
	defer cancel()
	var end pglogrepl.LSN
	next := from
	for next <= want || end == 0 {
		msg, err := conn.ReceiveMessage(ctx)
		if err != nil {
			t.Fatalf("after row %d of %d: %v", next-1, want, err)
		}
		if e, ok := msg.(*pgproto3.ErrorResponse); ok {
			t.Fatalf("after row %d of %d: %s", next-1, want, e.Message)
		}
		data, ok := msg.(*pgproto3.CopyData)
		if !ok || data.Data[0] != pglogrepl.XLogDataByteID {
			continue
		}
		change, err := pglogrepl.ParseXLogData(data.Data[1:])
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := pglogrepl.Parse(change.WALData)
		if err != nil {
			t.Fatal(err)
		}
		switch m := parsed.(type) {
		case *pglogrepl.InsertMessage:
			id, err := strconv.Atoi(string(m.Tuple.Columns[0].Data))
			if err != nil || id > next {
				t.Fatalf("row %q came when %d was due: %v", m.Tuple.Columns[0].Data, next, err)
			}
			if id == next {
				next++
			}
		case *pglogrepl.CommitMessage:
			if next > want {
				end = m.TransactionEndLSN
			}
		}
	}
	return end
}

func confirm(t *testing.T, conn *pgconn.PgConn, at pglogrepl.LSN) {
	t.Helper()
	if err := pglogrepl.SendStandbyStatusUpdate(t.Context(), conn, pglogrepl.StandbyStatusUpdate{WALWritePosition: at}); err != nil {
		t.Fatal(err)
	}
}

// TestReplicationSlots streams a slot through the proxy, and interrupts the stream by everything that happens to a compute:
// nothing is lost.
func TestReplicationSlots(t *testing.T) {
	s := start(t)
	p, other := s.logicalProject(t, never), s.projectWith(t, sdk.ProjectCreate{DefaultEndpointSettings: suspendAfter(1)})
	if _, err := s.UpdateProject(t.Context(), p.ID, sdk.ProjectUpdate{HistoryRetentionSeconds: new(int64(0))}); err != nil { // WAL is kept for slots only
		t.Fatal(err)
	}
	rows := 0
	// More than a few segments in all, so that what a sleeping branch does not need would go.
	insert := func(t *testing.T, n int) {
		t.Helper()
		conn := s.connect(t, p.URI)
		sql(t, conn, "insert into orders select n, repeat('x', 2000) from generate_series($1::int, $2::int) n", rows+1, rows+n)
		rows += n
		_ = conn.Close(t.Context())
	}
	conn := s.connect(t, p.URI)
	sql(t, conn, "create table orders (id int primary key, filler text)")
	sql(t, conn, "alter table orders alter filler set storage external")
	sql(t, conn, "create publication p for table orders")

	t.Run("refused", func(t *testing.T) {
		pooled := strings.Replace(p.URI, p.Endpoint, p.Endpoint+"-pooler", 1)
		if _, err := s.replication(t, pooled, "database"); sqlState(err) != "0A000" || !strings.Contains(err.Error(), "pooled") {
			t.Errorf("replication by a pooled host: %v", err)
		}
		if _, err := s.replication(t, p.URI, "true"); sqlState(err) != "0A000" || !strings.Contains(err.Error(), "physical") {
			t.Errorf("physical replication: %v", err)
		}
		if _, err := s.replication(t, p.as(t, p.Role, "npg_wrong1234567", p.Database), "database"); sqlState(err) != "28P01" {
			t.Errorf("wrong password: %v", err)
		}
	})

	repl, err := s.replication(t, p.URI, "database")
	if err != nil {
		t.Fatal(err)
	}
	if id, err := pglogrepl.IdentifySystem(t.Context(), repl); err != nil || id.DBName != p.Database {
		t.Errorf("%+v, %v", id, err)
	}
	if _, err := pglogrepl.CreateReplicationSlot(t.Context(), repl, "s", "pgoutput", pglogrepl.CreateReplicationSlotOptions{}); err != nil {
		t.Fatal(err)
	}
	hangUp(repl)
	if name := value[string](t, conn, "select slot_name::text from pg_create_logical_replication_slot('in_sql', 'pgoutput')"); name != "in_sql" {
		t.Error(name)
	}
	sql(t, conn, "select pg_drop_replication_slot('in_sql')")
	_ = conn.Close(t.Context())

	insert(t, 100)
	stream := s.stream(t, p.URI, "s")
	confirm(t, stream, receive(t, stream, 1, rows))
	confirmed := rows

	// A walsender is a use; an idle session of another project is not.
	t.Run("keeps awake", func(t *testing.T) {
		pid := s.postmaster(t, p.Branch)
		short := api.SuspendTimeout(1)
		p.ops(t)(s.UpdateEndpoint(t.Context(), p.ID, p.Endpoint, sdk.EndpointUpdate{SuspendTimeoutSeconds: &short}))
		for range 2 { // one could be a matter of who looks first
			s.connect(t, other.URI)
			other.awaitState(t, other.Endpoint, api.Idle)
		}
		if now := s.postmaster(t, p.Branch); now != pid {
			t.Fatal("the compute was suspended under a walsender")
		}
		insert(t, 10)
		confirm(t, stream, receive(t, stream, confirmed+1, rows))
		confirmed = rows
		hangUp(stream)
		p.awaitState(t, p.Endpoint, api.Idle)
		long := api.SuspendTimeout(never)
		p.ops(t)(s.UpdateEndpoint(t.Context(), p.ID, p.Endpoint, sdk.EndpointUpdate{SuspendTimeoutSeconds: &long}))
	})

	// From here on nothing is confirmed: every interruption must leave all of it.
	resume := func(t *testing.T) {
		t.Helper()
		stream := s.stream(t, p.URI, "s")
		receive(t, stream, confirmed+1, rows)
		hangUp(stream)
	}
	for name, interrupt := range map[string]func(t *testing.T){
		"sleep": func(t *testing.T) { p.suspend(t, p.Endpoint) },
		"sleep twice": func(t *testing.T) {
			p.suspend(t, p.Endpoint)
			s.connect(t, p.URI)
			p.suspend(t, p.Endpoint)
		},
		"crash":          func(t *testing.T) { crash(t, s.postmaster(t, p.Branch)) },
		"server kill -9": func(t *testing.T) { s.Restart() },
		"bough down":     func(t *testing.T) { s.Down(); <-s.exited; s.Start() },
		"sleep under a stream that confirms nothing": func(t *testing.T) {
			stream := s.stream(t, p.URI, "s")
			receive(t, stream, confirmed+1, rows)
			began := time.Now()
			p.suspend(t, p.Endpoint)
			if took := time.Since(began); took > 20*time.Second { // the compute's patience before it is stopped the hard way is 30 s
				t.Errorf("the walsender held the suspension up for %v", took)
			}
			hangUp(stream)
		},
	} {
		t.Run(name, func(t *testing.T) {
			insert(t, 3000)
			su := s.superuser(t, p.Branch)
			sql(t, su, "checkpoint")
			_ = su.Close(t.Context())
			insert(t, 1000)
			interrupt(t)
			insert(t, 10) // wakes it
			resume(t)
		})
	}

	t.Run("children have none", func(t *testing.T) {
		running := p.branch(t, "")
		p.suspend(t, p.Endpoint)
		sleeping := p.branch(t, "")
		grandchild := p.branch(t, running.ID)
		for _, b := range []branch{running, sleeping, grandchild} {
			conn := s.connect(t, b.URI)
			if n := value[int](t, conn, "select count(*) from pg_replication_slots where slot_name <> 'bough_history'"); n != 0 {
				t.Errorf("a child has %d slots", n)
			}
			if n := value[int](t, conn, "select count(*) from pg_publication"); n != 1 {
				t.Errorf("a child has %d publications", n)
			}
			p.suspend(t, b.Endpoint)
			if use := walUse(t, s, b.ID); use > 2<<20 {
				t.Errorf("a sleeping child keeps %d bytes of WAL for a slot that it does not have", use)
			}
		}
		resume(t)
	})

	// Once it is confirmed the WAL goes.
	stream = s.stream(t, p.URI, "s")
	confirm(t, stream, receive(t, stream, confirmed+1, rows))
	hangUp(stream)
	conn = s.connect(t, p.URI)
	eventually(t, opLimit, func() string {
		if _, err := conn.Exec(t.Context(), "select pg_drop_replication_slot('s')"); err != nil {
			return err.Error()
		}
		return ""
	})
	_ = conn.Close(t.Context())
	p.suspend(t, p.Endpoint)
	if use := walUse(t, s, p.Branch); use > 2<<20 {
		t.Errorf("after the slot is gone a sleeping branch keeps %d bytes of WAL", use)
	}
	s.settled(t)
}

// walUse is the disk space of a branch's WAL.
func walUse(t *testing.T, s *server, branchID string) (bytes int64) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(s.dir, "wal", branchID), func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			bytes += info.Sys().(*syscall.Stat_t).Blocks * 512 // stat(2)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}

// TestSubscription replicates from one project to another of the same server, through sleep, crashes and branches of both.
func TestSubscription(t *testing.T) {
	s := start(t)
	from, to := s.logicalProject(t, never), s.project(t)
	conn := s.connect(t, from.URI)
	sql(t, conn, "create table orders (id int primary key)")
	sql(t, conn, "create publication p for table orders")
	sql(t, conn, "insert into orders select generate_series(1, 100)")
	rows := 100
	_ = conn.Close(t.Context())
	insert := func(t *testing.T) {
		t.Helper()
		conn := s.connect(t, from.URI)
		sql(t, conn, "insert into orders select generate_series($1::int, $2::int)", rows+1, rows+10)
		rows += 10
		_ = conn.Close(t.Context())
	}

	// How a role of its own connects to the publisher: with its password, to the endpoint's host name.
	u, err := url.Parse(from.URI)
	if err != nil {
		t.Fatal(err)
	}
	host, port, err := net.SplitHostPort(s.pgAddr())
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	subscribe := fmt.Sprintf("create subscription s connection 'host=%s.db.localhost hostaddr=%s port=%s user=%s password=%s dbname=%s sslmode=require' publication p",
		from.Endpoint, host, port, u.User.Username(), password, from.Database)
	conn = s.connect(t, to.URI)
	sql(t, conn, "create table orders (id int primary key)")
	if value[int](t, conn, "select current_setting('server_version_num')::int") >= 160000 {
		sql(t, conn, subscribe)
	} else {
		// Before 16 PostgreSQL leaves this to superusers, and runs a subscription as one.
		if _, err := conn.Exec(t.Context(), subscribe); sqlState(err) != "42501" {
			t.Errorf("a subscription of a role that is no superuser: %v", err)
		}
		sql(t, s.superuserIn(t, to.Branch, to.Database), subscribe)
	}
	_ = conn.Close(t.Context())
	caughtUp := func(t *testing.T) {
		t.Helper()
		conn := s.connect(t, to.URI)
		defer conn.Close(t.Context())
		eventually(t, opLimit, func() string {
			if n := value[int](t, conn, "select count(*) from orders"); n != rows {
				return fmt.Sprintf("the subscriber has %d rows of %d", n, rows)
			}
			return ""
		})
	}
	caughtUp(t)
	insert(t)
	caughtUp(t)

	t.Run("children of the subscriber", func(t *testing.T) {
		running := to.branch(t, "")
		to.suspend(t, to.Endpoint)
		sleeping := to.branch(t, "")
		grandchild := to.branch(t, running.ID)
		for name, b := range map[string]branch{"running": running, "sleeping": sleeping, "grandchild": grandchild} {
			conn := s.superuser(t, b.ID)
			if n := value[int](t, conn, "select count(*) from pg_subscription where not subenabled and subslotname is null"); n != 1 {
				t.Errorf("child of a %s subscriber: its subscription is not detached", name)
			}
			if n := value[int](t, conn, "select current_setting('max_logical_replication_workers')::int"); n == 0 {
				t.Errorf("child of a %s subscriber: can run no subscription", name)
			}
			if log := tail(filepath.Join(s.dir, "log", b.Endpoint+".log"), 1<<20); strings.Contains(log, "apply worker for subscription") {
				t.Errorf("child of a %s subscriber: it acted on the subscription:\n%s", name, log)
			}
			child := s.connect(t, b.URI)
			if n := value[int](t, child, "select count(*) from orders"); n != rows {
				t.Errorf("child of a %s subscriber has %d rows", name, n)
			}
		}
		insert(t)
		caughtUp(t) // the parent goes on
		for name, b := range map[string]branch{"running": running, "sleeping": sleeping} {
			if n := value[int](t, s.connect(t, b.URI), "select count(*) from orders"); n != rows-10 {
				t.Errorf("child of a %s subscriber has %d rows", name, n)
			}
		}
		// It can go without its publisher being asked.
		sql(t, s.superuserIn(t, running.ID, to.Database), "drop subscription s")
	})
	t.Run("child of the publisher", func(t *testing.T) {
		b := from.branch(t, "")
		child := s.connect(t, b.URI)
		if n := value[int](t, child, "select count(*) from pg_replication_slots where slot_name <> 'bough_history'"); n != 0 {
			t.Errorf("it has %d slots", n)
		}
		sql(t, child, "insert into orders values (-1)")
		insert(t)
		caughtUp(t)
		if n := value[int](t, s.connect(t, to.URI), "select count(*) from orders where id < 0"); n != 0 {
			t.Error("the subscriber has a row of the publisher's child")
		}
	})
	t.Run("subscriber asleep", func(t *testing.T) {
		to.suspend(t, to.Endpoint)
		insert(t)
		from.suspend(t, from.Endpoint)
		insert(t) // wakes it
		from.suspend(t, from.Endpoint)
		caughtUp(t) // wakes both
	})
	t.Run("publisher suspended", func(t *testing.T) {
		from.suspend(t, from.Endpoint)
		from.awaitState(t, from.Endpoint, api.Active) // woken by its subscriber
		insert(t)
		caughtUp(t)
	})
	t.Run("crash of the publisher", func(t *testing.T) {
		crash(t, s.postmaster(t, from.Branch))
		insert(t)
		caughtUp(t)
	})
	t.Run("crash of the subscriber", func(t *testing.T) {
		crash(t, s.postmaster(t, to.Branch))
		insert(t)
		caughtUp(t)
	})
	t.Run("server kill -9", func(t *testing.T) {
		s.Kill9()
		s.args[slices.Index(s.args, "--pg-listen")+1] = s.pgAddr() // where the subscription looks for it
		s.Start()
		insert(t)
		caughtUp(t)
	})
	t.Run("keeps both awake", func(t *testing.T) {
		short := api.SuspendTimeout(1)
		other := s.projectWith(t, sdk.ProjectCreate{DefaultEndpointSettings: suspendAfter(1)})
		for _, p := range []*project{from, to} {
			p.ops(t)(s.UpdateEndpoint(t.Context(), p.ID, p.Endpoint, sdk.EndpointUpdate{SuspendTimeoutSeconds: &short}))
		}
		pids := [2]int{s.postmaster(t, from.Branch), s.postmaster(t, to.Branch)}
		for range 2 {
			s.connect(t, other.URI)
			other.awaitState(t, other.Endpoint, api.Idle)
		}
		if now := [2]int{s.postmaster(t, from.Branch), s.postmaster(t, to.Branch)}; now != pids {
			t.Error("a compute was suspended under a running subscription")
		}
		// Without the subscription both sleep.
		su := s.superuserIn(t, to.Branch, to.Database)
		sql(t, su, "alter subscription s disable")
		_ = su.Close(t.Context())
		from.awaitState(t, from.Endpoint, api.Idle)
		to.awaitState(t, to.Endpoint, api.Idle)
	})
	s.settled(t)
}

// superuserIn is superuser for another database.
func (s *server) superuserIn(t *testing.T, branchID, database string) *pgx.Conn {
	t.Helper()
	cfg := s.superuser(t, branchID).Config()
	cfg.Database = database
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}
