package compute_test

import (
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/pgtest"
	"github.com/boughdb/bough/internal/postgres"
)

func itoa(n int) string { return strconv.Itoa(n) }

const idleTimeout = 600 * time.Millisecond

// noIdle watches for longer than the timeout, sample by sample, that the compute counts as used. It proves nothing by
// itself: the caller ends the use afterwards and expects idle.
func (r *rig) noIdle(t *testing.T) {
	t.Helper()
	for len(r.events.idle) > 0 { // of before the use began
		<-r.events.idle
	}
	began := time.Now()
	for time.Since(began) < 2*idleTimeout {
		select {
		case last := <-r.events.idle:
			t.Fatalf("idle while in use; last active %v ago", time.Since(last))
		case <-r.events.samples:
		case <-time.After(30 * time.Second):
			t.Fatal("no sample")
		}
	}
}

// activeSample waits until the monitor has seen a use.
func (r *rig) activeSample(t *testing.T) compute.Sample {
	t.Helper()
	for {
		if s := wait(t, r.events.samples, "sample"); s.Active {
			return s
		}
	}
}

func TestIdle(t *testing.T) {
	r := newRig(t)
	r.spec.IdleTimeout = idleTimeout
	began := time.Now()
	ready := r.start(t)
	last := wait(t, r.events.idle, "idle report")
	if time.Since(began) < idleTimeout || last.Before(began) {
		t.Fatalf("idle after %v, last active %v before the start", time.Since(began), began.Sub(last))
	}

	uses := map[string]func(t *testing.T) (end func()){
		"running query": func(t *testing.T) func() {
			conn := pgtest.UserConn(t, ready.SocketDir, postgres.DefaultOwner, "neondb")
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _ = conn.Exec(t.Context(), "SELECT pg_sleep(600)")
			}()
			return func() {
				r.exec(t, "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE usename = 'neondb_owner'")
				<-done // the session stays: an idle one does not keep a compute awake
			}
		},
		"idle in transaction": func(t *testing.T) func() {
			conn := pgtest.UserConn(t, ready.SocketDir, postgres.DefaultOwner, "neondb")
			tx, err := conn.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return func() { _ = tx.Rollback(t.Context()) }
		},
		"walsender": func(t *testing.T) func() {
			cfg, err := postgres.ConnConfig(ready.SocketDir, "neondb")
			if err != nil {
				t.Fatal(err)
			}
			cfg.User = postgres.DefaultOwner
			cfg.RuntimeParams = map[string]string{"replication": "database"}
			cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
			conn, err := pgx.ConnectConfig(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			return func() { _ = conn.Close(t.Context()) }
		},
	}
	for name, begin := range uses {
		t.Run(name, func(t *testing.T) {
			end := begin(t)
			s := r.activeSample(t)
			if s.Connections < 1 {
				t.Fatalf("sample = %+v", s)
			}
			r.noIdle(t)
			end()
			ended := time.Now()
			for last := range r.events.idle {
				if since := time.Since(ended); last.After(ended.Add(-time.Second)) && since >= idleTimeout/2 {
					break
				}
			}
		})
	}
	t.Run("sessions between two looks", func(t *testing.T) {
		for len(r.events.idle) > 0 {
			<-r.events.idle
		}
		began := time.Now()
		conn := pgtest.UserConn(t, ready.SocketDir, postgres.DefaultOwner, "neondb")
		_ = conn.Close(t.Context())
		for s := range r.events.samples {
			if s.LastActive.After(began) {
				return
			}
			if time.Since(began) > 30*time.Second {
				t.Fatal("a short session was not noticed")
			}
		}
	})
	t.Run("never", func(t *testing.T) {
		r.manager.SetIdleTimeout(endpoint, -1)
		r.manager.SetIdleTimeout("ep-unknown", -1)
		if err := r.manager.Stop(t.Context(), endpoint, compute.StopImmediate); err != nil {
			t.Fatal(err)
		}
	})
}

// What is made in SQL changes the fingerprint.
func TestSampleFingerprint(t *testing.T) {
	r := newRig(t)
	r.spec.IdleTimeout = time.Hour
	r.start(t)
	r.manager.SetIdleTimeout(endpoint, idleTimeout) // also: a shorter timeout takes effect at once
	before := wait(t, r.events.samples, "sample")
	r.exec(t, "CREATE ROLE made_in_sql")
	deadline := time.After(30 * time.Second)
	for {
		select {
		case s := <-r.events.samples:
			if s.Fingerprint != before.Fingerprint {
				return
			}
		case <-deadline:
			t.Fatal("the fingerprint stays")
		}
	}
}
