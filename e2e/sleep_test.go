package e2e

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/sdk"
)

// sqlState is the SQLSTATE of an error, "" when it has none.
func sqlState(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code
	}
	return ""
}

func TestSleepAndWake(t *testing.T) {
	s := start(t)
	sleepy := func(t *testing.T) *project {
		return s.projectWith(t, sdk.ProjectCreate{DefaultEndpointSettings: suspendAfter(1)})
	}

	t.Run("timeouts", func(t *testing.T) {
		awake, asleep, busy, open := s.project(t), sleepy(t), sleepy(t), sleepy(t)
		idle := s.connect(t, awake.URI) // an idle session on a compute that never sleeps
		tx, err := s.connect(t, open.URI).Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		pid := s.postmaster(t, awake.Branch)
		ended := make(chan error, 1)
		query := s.connect(t, busy.URI)
		go func() {
			_, err := query.Exec(t.Context(), "select pg_sleep(5)")
			ended <- err
		}()
		asleep.awaitState(t, asleep.Endpoint, api.Idle)
		if ops := asleep.operations(t, api.SuspendCompute); len(ops) != 1 || ops[0].Status != api.OperationStatusFinished {
			t.Errorf("the operations of a suspension: %+v", ops)
		}
		if err := <-ended; err != nil {
			t.Errorf("a running query was cut: %v", err)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Errorf("an open transaction was cut: %v", err)
		}
		if err := idle.Ping(t.Context()); err != nil {
			t.Errorf("an endpoint that never sleeps cut an idle session: %v", err)
		}
		if now := s.postmaster(t, awake.Branch); now != pid {
			t.Error("a compute that never sleeps was restarted")
		}
		// What was kept awake sleeps when the use has ended, sessions or not.
		busy.awaitState(t, busy.Endpoint, api.Idle)
		open.awaitState(t, open.Endpoint, api.Idle)
		if n := value[int](t, s.connect(t, asleep.URI), "select 1"); n != 1 {
			t.Error(n)
		}
	})

	t.Run("many clients, one start", func(t *testing.T) {
		p := s.project(t)
		p.suspend(t, p.Endpoint)
		before := len(p.operations(t, api.StartCompute))
		const clients = 50
		var all sync.WaitGroup
		errs := make(chan error, clients)
		for range clients {
			all.Go(func() {
				conn, err := s.tryConnect(t, p.URI)
				if err == nil {
					_, err = conn.Exec(t.Context(), "select 1")
				}
				errs <- err
			})
		}
		all.Wait()
		for range clients {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if n := len(p.operations(t, api.StartCompute)) - before; n != 1 {
			t.Errorf("%d clients caused %d starts", clients, n)
		}
	})

	t.Run("strangers wake nothing", func(t *testing.T) {
		p := s.project(t)
		p.suspend(t, p.Endpoint)
		before := len(p.operations(t, ""))
		for name, uri := range map[string]string{
			"wrong password": p.as(t, p.Role, "npg_wrong1234567", p.Database),
			"unknown role":   p.as(t, "nobody_here", p.Password, p.Database),
		} {
			if _, err := s.tryConnect(t, uri); sqlState(err) != "28P01" {
				t.Errorf("%s: %v", name, err)
			}
		}
		if n := len(p.operations(t, "")); n != before {
			t.Errorf("strangers caused %d operations", n-before)
		}
		e, err := s.Endpoint(t.Context(), p.ID, p.Endpoint)
		if err != nil || e.CurrentState != api.Idle {
			t.Errorf("the endpoint is %v, %v", e.CurrentState, err)
		}
	})

	t.Run("crash", func(t *testing.T) {
		p := s.project(t)
		conn := s.connect(t, p.URI)
		sql(t, conn, "create table kept as select generate_series(1, 100) as n")
		pid := s.postmaster(t, p.Branch)
		before := len(p.operations(t, api.StartCompute))
		crash(t, pid)
		eventually(t, opLimit, func() string {
			ops := p.operations(t, api.StartCompute)
			if len(ops) != before+1 || ops[0].Status != api.OperationStatusFinished {
				return fmt.Sprintf("no operation tells of the restart after a crash: %d start_compute, before %d", len(ops), before)
			}
			return ""
		})
		if n := value[int](t, s.connect(t, p.URI), "select count(*) from kept"); n != 100 {
			t.Errorf("after the crash there are %d rows", n)
		}
		if now := s.postmaster(t, p.Branch); now == pid {
			t.Error("the postmaster is the one that was killed")
		}
	})

	t.Run("disabled", func(t *testing.T) {
		p := s.project(t)
		conn := s.connect(t, p.URI)
		off, on := true, false
		p.ops(t)(s.UpdateEndpoint(t.Context(), p.ID, p.Endpoint, sdk.EndpointUpdate{Disabled: &off}))
		p.awaitState(t, p.Endpoint, api.Idle)
		if err := conn.Ping(t.Context()); err == nil {
			t.Error("a session outlived the disabling")
		}
		if _, err := s.tryConnect(t, p.URI); err == nil || !strings.Contains(err.Error(), "disabled") {
			t.Errorf("connecting to a disabled endpoint: %v", err)
		}
		if _, err := s.StartEndpoint(t.Context(), p.ID, p.Endpoint); !sdk.IsInvalid(err) {
			t.Errorf("starting a disabled endpoint: %v", err)
		}
		p.ops(t)(s.UpdateEndpoint(t.Context(), p.ID, p.Endpoint, sdk.EndpointUpdate{Disabled: &on}))
		s.connect(t, p.URI)
	})

	t.Run("delete and add an endpoint", func(t *testing.T) {
		p := s.project(t)
		conn := s.connect(t, p.URI)
		sql(t, conn, "create table kept as select 7 as n")
		p.ops(t)(s.DeleteEndpoint(t.Context(), p.ID, p.Endpoint))
		if err := conn.Ping(t.Context()); err == nil {
			t.Error("a session outlived its endpoint")
		}
		if _, err := s.tryConnect(t, p.URI); sqlState(err) != "28000" {
			t.Errorf("connecting to a deleted endpoint: %v", err)
		}
		added, err := s.CreateEndpoint(t.Context(), p.ID, sdk.EndpointCreate{BranchID: p.Branch, Type: api.ReadWrite})
		if err != nil {
			t.Fatal(err)
		}
		s.wait(t, added.Operations)
		uri, err := s.ConnectionURI(t.Context(), p.ID, sdk.ConnectionURI{Role: p.Role, Database: p.Database})
		if err != nil {
			t.Fatal(err)
		}
		if n := value[int](t, s.connect(t, uri), "select n from kept"); n != 7 {
			t.Error(n)
		}
	})

	t.Run("restart, start and suspend again", func(t *testing.T) {
		p := s.project(t)
		pid := s.postmaster(t, p.Branch)
		ops := p.ops(t)(s.RestartEndpoint(t.Context(), p.ID, p.Endpoint))
		if len(ops) != 2 || ops[0].Action != api.SuspendCompute || ops[1].Action != api.StartCompute {
			t.Errorf("the operations of a restart: %+v", ops)
		}
		if now := s.postmaster(t, p.Branch); now == pid {
			t.Error("the restart kept the process")
		}
		if ops := p.ops(t)(s.StartEndpoint(t.Context(), p.ID, p.Endpoint)); len(ops) != 0 {
			t.Errorf("starting what runs: %+v", ops)
		}
		p.suspend(t, p.Endpoint)
		if ops := p.ops(t)(s.SuspendEndpoint(t.Context(), p.ID, p.Endpoint)); len(ops) != 0 {
			t.Errorf("suspending what sleeps: %+v", ops)
		}
	})
	s.settled(t)
}

// crash kills a postmaster; its backends notice.
func crash(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// TestServerRestarts ends the server in every way: running computes and the sessions on them do not notice, and what
// ended meanwhile is found.
func TestServerRestarts(t *testing.T) {
	s := start(t)
	p := s.projectWith(t, sdk.ProjectCreate{DefaultEndpointSettings: suspendAfter(never)})
	sql(t, s.connect(t, p.URI), "create table kept as select generate_series(1, 100) as n")
	b := p.branch(t, "")
	pid, leafPID := s.postmaster(t, p.Branch), s.postmaster(t, b.ID)

	direct := s.superuser(t, p.Branch)
	session := value[int](t, direct, "select pg_backend_pid()")
	for name, end := range map[string]func(){"kill -9": s.Kill9, "SIGTERM": s.Term} {
		end()
		s.Start()
		if now := s.postmaster(t, p.Branch); now != pid {
			t.Errorf("%s: the compute was restarted", name)
		}
		if now := s.postmaster(t, b.ID); now != leafPID {
			t.Errorf("%s: the branch's compute was restarted", name)
		}
		if now := value[int](t, direct, "select pg_backend_pid()"); now != session {
			t.Errorf("%s: a session was cut", name)
		}
		if n := value[int](t, s.connect(t, p.URI), "select count(*) from kept"); n != 100 {
			t.Errorf("%s: %d rows", name, n)
		}
	}
	_ = direct.Close(t.Context())

	// A compute that was taken over is watched like a child: it sleeps, and its crash is seen.
	before := len(p.operations(t, api.StartCompute))
	crash(t, pid)
	eventually(t, opLimit, func() string {
		if n := len(p.operations(t, api.StartCompute)); n != before+1 {
			return fmt.Sprintf("%d starts after the crash of a compute that was taken over", n-before)
		}
		return ""
	})
	s.settled(t)
	short := api.SuspendTimeout(1)
	p.ops(t)(s.UpdateEndpoint(t.Context(), p.ID, b.Endpoint, sdk.EndpointUpdate{SuspendTimeoutSeconds: &short}))
	p.awaitState(t, b.Endpoint, api.Idle)

	// Everything ends at once: the server, a compute and the control database.
	pid = s.postmaster(t, p.Branch)
	s.Kill9()
	crash(t, pid)
	for _, pids := range postmasters(s.dir) {
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // the compute may be gone
		}
	}
	s.Start()
	s.settled(t)
	for _, uri := range []string{p.URI, b.URI} {
		if n := value[int](t, s.connect(t, uri), "select count(*) from kept"); n != 100 {
			t.Errorf("after the end of everything there are %d rows", n)
		}
	}
	// bough down, and up again.
	s.Down()
	<-s.exited
	if left := s.leftovers(); len(left) > 0 {
		t.Errorf("left by bough down: %v", left)
	}
	s.Start()
	s.settled(t)
	if n := value[int](t, s.connect(t, b.URI), "select count(*) from kept"); n != 100 {
		t.Errorf("after down and up there are %d rows", n)
	}
}
