package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/sdk"
)

// replica is a read_only endpoint that a test made on a project's default branch.
type replica struct {
	p       *project
	ID, URI string
}

func (p *project) replica(t *testing.T, change func(*sdk.EndpointCreate)) replica {
	t.Helper()
	spec := sdk.EndpointCreate{BranchID: p.Branch, Type: api.ReadOnly}
	if change != nil {
		change(&spec)
	}
	made, err := p.s.CreateEndpoint(t.Context(), p.ID, spec)
	if err != nil {
		t.Fatal(err)
	}
	p.s.wait(t, made.Operations)
	uri, err := p.s.ConnectionURI(t.Context(), p.ID, sdk.ConnectionURI{
		Role: p.Role, Database: p.Database, EndpointID: made.Endpoint.ID, BranchID: spec.BranchID,
	})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(uri, made.Endpoint.ID) {
		t.Fatalf("the URI of replica %s is %s", made.Endpoint.ID, uri)
	}
	return replica{p, made.Endpoint.ID, uri}
}

// freeze stops every process of a replica until goOn is called.
func (s *server) freeze(t *testing.T, id string) (goOn func()) {
	t.Helper()
	signal := func(sig syscall.Signal) (n int) {
		for _, p := range processes(s.dir + "/pool/volumes") {
			if p.cwd == s.volume(id) && syscall.Kill(p.pid, sig) == nil {
				n++
			}
		}
		return n
	}
	if signal(syscall.SIGSTOP) == 0 {
		t.Fatalf("replica %s has no processes", id)
	}
	t.Cleanup(func() { signal(syscall.SIGCONT) })
	return func() { signal(syscall.SIGCONT) }
}

// sees waits until a session on a replica gives an answer.
func sees[T comparable](t *testing.T, conn *pgx.Conn, want T, query string) {
	t.Helper()
	eventually(t, opLimit, func() string {
		if got := value[T](t, conn, query); got != want {
			return fmt.Sprintf("%s: %v, want %v", query, got, want)
		}
		return ""
	})
}

func TestReplicas(t *testing.T) {
	for _, storage := range []string{"btrfs", "copy"} {
		t.Run(storage, func(t *testing.T) {
			if storage == "btrfs" {
				needRoot(t, "it mounts a btrfs image")
			}
			replicasOn(t, startOn(t, storage))
		})
	}
}

func replicasOn(t *testing.T, s *server) {
	p := s.project(t)
	primary := s.connect(t, p.URI)
	sql(t, primary, "create table kept (n int primary key)")
	sql(t, primary, "insert into kept select generate_series(1, 100)")
	one, two := p.replica(t, nil), p.replica(t, nil)

	t.Run("streams, and refuses writes", func(t *testing.T) {
		for _, r := range []replica{one, two} {
			conn := s.connect(t, r.URI)
			if n := value[int](t, conn, "select count(*) from kept"); n != 100 {
				t.Errorf("a new replica has %d rows", n)
			}
			if !value[bool](t, conn, "select pg_is_in_recovery()") {
				t.Error("a replica is not in recovery")
			}
			if _, err := conn.Exec(t.Context(), "insert into kept values (0)"); sqlState(err) != "25006" {
				t.Errorf("a write on a replica: %v", err)
			}
		}
		sql(t, primary, "insert into kept values (101)")
		for _, r := range []replica{one, two} {
			sees(t, s.connect(t, r.URI), 101, "select count(*)::int from kept")
		}
		s.settled(t)
	})

	t.Run("lag is shown", func(t *testing.T) {
		eventually(t, opLimit, func() string {
			e, err := s.Endpoint(t.Context(), p.ID, one.ID)
			if err != nil {
				return err.Error()
			}
			if e.Runtime == nil || e.Runtime.ReplicationLagBytes == nil || *e.Runtime.ReplicationLagBytes != 0 || *e.Runtime.ReplicationLagMs != 0 {
				return fmt.Sprintf("the runtime of a replica that has everything: %+v", e.Runtime)
			}
			return ""
		})
		if out, err := s.bough("endpoints", "get", one.ID, "--project-id", p.ID); err != nil || !strings.Contains(out, "Behind primary") {
			t.Errorf("bough endpoints get: %v\n%s", err, out)
		}
		res, err := http.Get(strings.TrimSuffix(s.admin.APIURL, "/api/v2") + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if body, err := io.ReadAll(res.Body); err != nil || !strings.Contains(string(body), `bough_replica_lag_seconds{endpoint="`+one.ID+`"}`) {
			t.Error("there is no metric of the lag")
		}
	})

	t.Run("roles and passwords", func(t *testing.T) {
		made, err := s.CreateRole(t.Context(), p.ID, p.Branch, sdk.RoleCreate{Name: "reader"})
		if err != nil {
			t.Fatal(err)
		}
		s.wait(t, made.Operations)
		as := func(password string) string {
			q := *p
			q.URI = one.URI
			return q.as(t, "reader", password, p.Database)
		}
		enters := func(password string) {
			t.Helper()
			eventually(t, opLimit, func() string { // the replica may be a moment behind
				if _, err := s.tryConnect(t, as(password)); err != nil {
					return err.Error()
				}
				return ""
			})
		}
		enters(*made.Role.Password)
		sql(t, s.superuser(t, p.Branch), "alter role reader password 'npg_changed12345'")
		enters("npg_changed12345")
		if _, err := s.tryConnect(t, as(*made.Role.Password)); sqlState(err) != "28P01" {
			t.Errorf("the old password on a replica: %v", err)
		}
		// With the primary asleep, too, and the replica running.
		p.suspend(t, p.Endpoint)
		reset, err := s.ResetRolePassword(t.Context(), p.ID, p.Branch, "reader")
		if err != nil {
			t.Fatal(err)
		}
		s.wait(t, reset.Operations)
		enters(*reset.Role.Password)
		added, err := s.CreateRole(t.Context(), p.ID, p.Branch, sdk.RoleCreate{Name: "late"})
		if err != nil {
			t.Fatal(err)
		}
		s.wait(t, added.Operations)
		sees(t, s.connect(t, one.URI), 1, "select count(*)::int from pg_roles where rolname = 'late'")
		p.awaitState(t, p.Endpoint, api.Idle)
	})

	t.Run("each sleeps and wakes on its own", func(t *testing.T) {
		state := func(id string, want api.EndpointState) {
			t.Helper()
			if e, err := s.Endpoint(t.Context(), p.ID, id); err != nil || e.CurrentState != want {
				t.Errorf("endpoint %s is %v, want %s; %v", id, e.CurrentState, want, err)
			}
		}
		conn := s.connect(t, p.URI)
		sql(t, conn, "insert into kept values (201)")
		p.suspend(t, p.Endpoint) // one sees the last commit of a primary that sleeps
		if n := value[int](t, s.connect(t, one.URI), "select count(*)::int from kept where n = 201"); n != 1 {
			t.Error("a replica misses the last commit of its primary that went to sleep")
		}
		p.suspend(t, one.ID)
		s.settled(t)
		// A replica that wakes beside a sleeping primary has everything, and lets it sleep.
		if n := value[int](t, s.connect(t, one.URI), "select count(*)::int from kept"); n != 102 {
			t.Errorf("a replica that woke beside a sleeping primary has %d rows", n)
		}
		state(p.Endpoint, api.Idle)
		// The primary wakes beside running replicas.
		replicas := s.connect(t, one.URI)
		conn = s.connect(t, p.URI)
		sql(t, conn, "insert into kept values (202)")
		sees(t, replicas, 103, "select count(*)::int from kept")
		// One replica sleeps while the primary writes.
		p.suspend(t, one.ID)
		sql(t, conn, "insert into kept values (203)")
		if n := value[int](t, s.connect(t, one.URI), "select count(*)::int from kept"); n != 104 {
			t.Errorf("a replica that woke beside a running primary has %d rows", n)
		}
		if n := value[int](t, conn, "select count(*)::int from pg_replication_slots where slot_name <> 'bough_history'"); n != 2 {
			t.Errorf("%d slots for two running replicas", n)
		}
		p.suspend(t, two.ID)
		if n := value[int](t, conn, "select count(*)::int from pg_replication_slots where slot_name <> 'bough_history'"); n != 1 {
			t.Errorf("%d slots for one running replica", n)
		}
		s.settled(t)
	})

	t.Run("crash and restart of the primary", func(t *testing.T) {
		conn, pid := s.connect(t, one.URI), s.postmaster(t, one.ID)
		primary := s.connect(t, p.URI)
		sql(t, primary, "insert into kept values (301)")
		crash(t, s.postmaster(t, p.Branch))
		s.settled(t)
		sql(t, s.connect(t, p.URI), "insert into kept values (302)")
		sees(t, conn, 2, "select count(*)::int from kept where n in (301, 302)")
		p.ops(t)(s.RestartEndpoint(t.Context(), p.ID, p.Endpoint))
		sql(t, s.connect(t, p.URI), "insert into kept values (303)")
		sees(t, conn, 3, "select count(*)::int from kept where n in (301, 302, 303)")
		if now := s.postmaster(t, one.ID); now != pid {
			t.Error("a replica was restarted with its primary")
		}
	})

	t.Run("crash of the replica, kill -9 of the server", func(t *testing.T) {
		pid := s.postmaster(t, p.Branch)
		crash(t, s.postmaster(t, one.ID))
		s.settled(t)
		s.connect(t, one.URI)
		direct, before := s.superuser(t, one.ID), s.postmaster(t, one.ID)
		s.Kill9()
		s.Start()
		if err := direct.Ping(t.Context()); err != nil || s.postmaster(t, one.ID) != before {
			t.Errorf("kill -9 of the server reached a replica: %v", err)
		}
		_ = direct.Close(t.Context())
		sql(t, s.connect(t, p.URI), "insert into kept values (401)")
		conn := s.connect(t, one.URI)
		sees(t, conn, 1, "select count(*)::int from kept where n = 401")
		if now := s.postmaster(t, p.Branch); now != pid {
			t.Error("the primary was restarted")
		}
		s.settled(t)
	})

	t.Run("larger primary", func(t *testing.T) {
		low, high := api.ComputeUnits(0.5), api.ComputeUnits(4)
		p.ops(t)(s.UpdateEndpoint(t.Context(), p.ID, p.Endpoint, sdk.EndpointUpdate{AutoscalingLimitMinCU: &low, AutoscalingLimitMaxCU: &high}))
		primary := s.connect(t, p.URI)
		sql(t, primary, "insert into kept values (501)")
		want := value[int](t, primary, "select current_setting('max_connections')::int")
		eventually(t, opLimit, func() string {
			conn, err := s.tryConnect(t, one.URI)
			if err != nil {
				return err.Error()
			}
			var n, limit int
			err = conn.QueryRow(t.Context(), "select count(*), current_setting('max_connections')::int from kept where n = 501").Scan(&n, &limit)
			if err != nil || n != 1 || limit < want {
				return fmt.Sprintf("after its primary grew a replica has %d of 1 rows, max_connections %d of %d; %v", n, limit, want, err)
			}
			return ""
		})
		s.settled(t)
	})

	t.Run("branches and bad calls", func(t *testing.T) {
		b := p.branch(t, "")
		if n := value[int](t, s.connect(t, b.URI), "select count(*)::int from pg_replication_slots where slot_name <> 'bough_history'"); n != 0 {
			t.Errorf("a branch inherited %d slots", n)
		}
		_, err := s.CreateEndpoint(t.Context(), p.ID, sdk.EndpointCreate{BranchID: p.Branch, Type: api.ReadWrite})
		if e, ok := errors.AsType[*sdk.Error](err); !ok || e.Status != http.StatusConflict || !strings.Contains(e.Message, "read_write") {
			t.Errorf("a second read_write endpoint: %v", err)
		}
		// A branch with nothing but replicas: it has never run when the first one starts.
		made, err := s.CreateBranch(t.Context(), p.ID, sdk.BranchCreateRequest{
			Endpoints: &[]sdk.BranchCreateEndpoint{{Type: api.ReadOnly}, {Type: api.ReadOnly}},
		})
		if err != nil {
			t.Fatal(err)
		}
		s.wait(t, made.Operations)
		conn := s.connect(t, (*made.ConnectionUris)[0].ConnectionURI)
		if n := value[int](t, conn, "select count(*)::int from kept where n = 501"); n != 1 {
			t.Error("the replica of a new branch misses a row")
		}
		added, err := s.CreateEndpoint(t.Context(), p.ID, sdk.EndpointCreate{BranchID: made.Branch.ID, Type: api.ReadWrite})
		if err != nil {
			t.Fatal(err)
		}
		s.wait(t, added.Operations)
		sql(t, s.superuser(t, made.Branch.ID), "create role from_primary")
		sees(t, conn, 1, "select count(*)::int from pg_roles where rolname = 'from_primary'")
		s.settled(t)
		yes := true
		for range 6 {
			if _, err := s.CreateEndpoint(t.Context(), p.ID, sdk.EndpointCreate{BranchID: made.Branch.ID, Type: api.ReadOnly, Disabled: &yes}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.CreateEndpoint(t.Context(), p.ID, sdk.EndpointCreate{BranchID: made.Branch.ID, Type: api.ReadOnly}); !sdk.IsInvalid(err) {
			t.Errorf("one replica too many: %v", err)
		}
		if _, err := s.DeleteBranch(t.Context(), p.ID, made.Branch.ID); err != nil {
			t.Fatal(err)
		}
		if _, err := s.CreateEndpoint(t.Context(), p.ID, sdk.EndpointCreate{BranchID: made.Branch.ID, Type: api.ReadOnly}); !sdk.IsNotFound(err) {
			t.Errorf("a replica of a branch that is being deleted: %v", err)
		}
		s.settled(t)
	})

	t.Run("load with checkpoints", func(t *testing.T) {
		primary, conn := s.connect(t, p.URI), s.connect(t, two.URI) // wakes it
		sql(t, primary, "create table load (n bigserial, filler text)")
		var stop atomic.Bool
		ended := make(chan error, 1)
		loader := s.connect(t, p.URI)
		go func() {
			var err error
			for !stop.Load() && err == nil {
				_, err = loader.Exec(t.Context(), "insert into load (filler) select repeat(md5(g::text), 30) from generate_series(1, 2000) g")
			}
			ended <- err
		}()
		admin := s.superuser(t, p.Branch)
		began := time.Now()
		for range 4 { // each drops WAL that only a slot can have kept
			sql(t, admin, "checkpoint")
			sql(t, admin, "select pg_switch_wal()")
		}
		late := p.replica(t, nil)
		stop.Store(true)
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		n := value[int](t, primary, "select count(*)::int from load")
		t.Logf("%d rows in %v", n, time.Since(began))
		sees(t, conn, n, "select count(*)::int from load")
		sees(t, s.connect(t, late.URI), n, "select count(*)::int from load")
		p.ops(t)(s.DeleteEndpoint(t.Context(), p.ID, late.ID))
		s.settled(t)
	})

	t.Run("a replica that lost its way is made anew", func(t *testing.T) {
		conn := s.connect(t, one.URI)
		sees(t, conn, value[int](t, s.connect(t, p.URI), "select count(*)::int from load"), "select count(*)::int from load")
		_ = conn.Close(t.Context())
		pid := s.postmaster(t, one.ID)
		// What the replica needs is gone: it looks elsewhere while the primary drops its slot and the WAL.
		admin := s.superuser(t, p.Branch)
		slot := "bough_" + strings.ReplaceAll(one.ID, "-", "_")
		standby := s.superuser(t, one.ID)
		sql(t, standby, "alter system set primary_conninfo = 'host=/nowhere'")
		sql(t, standby, "select pg_reload_conf()")
		_ = standby.Close(t.Context())
		sql(t, s.connect(t, p.URI), "create table gap (n int)")
		for range 3 {
			eventually(t, opLimit, func() string {
				_, err := admin.Exec(t.Context(), "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1", slot)
				if err != nil { // its walsender is about to end
					return err.Error()
				}
				return ""
			})
			sql(t, s.connect(t, p.URI), "insert into gap values (1)")
			sql(t, admin, "select pg_switch_wal()")
			sql(t, admin, "checkpoint")
		}
		eventually(t, opLimit, func() string {
			if now := postmasters(s.dir + "/pool")[s.volume(one.ID)]; len(now) != 1 || now[0] == pid {
				return "the replica that misses WAL was not made anew"
			}
			return ""
		})
		s.settled(t)
		sees(t, s.connect(t, one.URI), 3, "select count(*)::int from gap")
	})

	t.Run("a replica that does not answer holds up nobody", func(t *testing.T) {
		s.connect(t, one.URI)
		goOn := s.freeze(t, one.ID)
		began := time.Now()
		p.suspend(t, p.Endpoint)
		t.Logf("the primary went to sleep in %v beside a frozen replica", time.Since(began))
		began = time.Now()
		sql(t, s.connect(t, p.URI), "insert into gap values (2)")
		t.Logf("and woke in %v", time.Since(began))
		goOn()
		eventually(t, opLimit, func() string { // it is made anew meanwhile
			conn, err := s.tryConnect(t, one.URI)
			if err != nil {
				return err.Error()
			}
			var n int
			if err := conn.QueryRow(t.Context(), "select count(*) from gap").Scan(&n); err != nil || n != 4 {
				return fmt.Sprintf("the replica that was frozen sees %d of 4 rows, %v", n, err)
			}
			return ""
		})
		s.settled(t)
	})

	t.Run("sleeping, deleted", func(t *testing.T) {
		short := api.SuspendTimeout(1)
		p.ops(t)(s.UpdateEndpoint(t.Context(), p.ID, p.Endpoint, sdk.EndpointUpdate{SuspendTimeoutSeconds: &short}))
		p.awaitState(t, p.Endpoint, api.Idle) // although replicas stream from it
		p.ops(t)(s.UpdateEndpoint(t.Context(), p.ID, one.ID, sdk.EndpointUpdate{SuspendTimeoutSeconds: &short}))
		p.awaitState(t, one.ID, api.Idle)
		p.ops(t)(s.DeleteEndpoint(t.Context(), p.ID, one.ID))
		s.settled(t)
		if _, err := s.DeleteProject(t.Context(), p.ID); err != nil {
			t.Fatal(err)
		}
		s.settled(t)
	})
}
