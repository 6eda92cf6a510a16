package compute_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/pgtest"
	"github.com/boughdb/bough/internal/postgres"
)

// blockingDriver is a driver whose starts wait for a word.
type blockingDriver struct {
	compute.Driver
	started chan string
	word    chan struct{}
}

func (d *blockingDriver) Start(ctx context.Context, l compute.Launch) (compute.Process, error) {
	d.started <- l.EndpointID
	<-d.word
	return d.Driver.Start(ctx, l)
}

func TestQueuedStartCanBeStopped(t *testing.T) {
	r := newRig(t)
	r.manager.Close()
	driver := &blockingDriver{r.driver, make(chan string, 2), make(chan struct{})}
	r.manager = compute.NewManager(t.Context(), compute.Options{
		Driver: driver, RunDir: filepath.Join(r.dir, "run"), LogDir: filepath.Join(r.dir, "log"), Cred: pgtest.Cred(t), MaxStarts: 1,
	})
	t.Cleanup(r.manager.Close)
	outcome := make(chan error, 2)
	start := func(spec compute.Spec) {
		_, err := r.manager.Start(t.Context(), spec, r.persist)
		outcome <- err
	}
	go start(r.spec)
	wait(t, driver.started, "start")
	other := r.spec
	other.EndpointID = "ep-test-two-00000002"
	other.DataDir = filepath.Join(r.dir, "nothing")
	go start(other)
	for deadline := time.Now().Add(30 * time.Second); r.manager.Queued() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the second start does not queue")
		}
	}
	r.manager.Hurry(other.EndpointID)
	if err := r.manager.Stop(t.Context(), other.EndpointID, compute.StopFast); err != nil {
		t.Fatal(err)
	}
	if err := wait(t, outcome, "end of the queued start"); err == nil || !strings.Contains(err.Error(), "stopped while it started") {
		t.Errorf("a start that was stopped in the queue ended with %v", err)
	}
	if _, err := os.Stat(filepath.Join(r.dir, "run", other.EndpointID)); !os.IsNotExist(err) {
		t.Errorf("it left its socket folder behind: %v", err)
	}
	close(driver.word)
	if err := wait(t, outcome, "end of the first start"); err != nil {
		t.Fatal(err)
	}
	if err := r.manager.Stop(t.Context(), r.spec.EndpointID, compute.StopFast); err != nil {
		t.Fatal(err)
	}
}

func TestKeptSessionIsOpenedAgain(t *testing.T) {
	r := newRig(t)
	r.start(t)
	pid := func() (n int) {
		t.Helper()
		err := r.manager.Do(t.Context(), endpoint, func(conn *pgx.Conn) error {
			return conn.QueryRow(t.Context(), "SELECT pg_backend_pid()").Scan(&n)
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	first := pid()
	if again := pid(); again != first {
		t.Errorf("the second use has a session of its own: %d and %d", first, again)
	}
	conn, err := r.manager.Conn(t.Context(), endpoint, postgres.AdminDatabase)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), "SELECT pg_terminate_backend($1, 10000)", first); err != nil {
		t.Fatal(err)
	}
	if second := pid(); second == first {
		t.Error("a broken session is used")
	}
	if err := r.manager.Stop(t.Context(), endpoint, compute.StopFast); err != nil {
		t.Fatal(err)
	}
	if err := r.manager.Do(t.Context(), endpoint, func(*pgx.Conn) error { return nil }); !core.IsKind(err, core.KindUnavailable) {
		t.Errorf("a stopped compute answers: %v", err)
	}
}
