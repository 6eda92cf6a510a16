package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/sdk"
)

const (
	manyBranches = 60
	stormWakes   = 24
	clientLimit  = 30 * time.Second // what a client of a boot storm is ready to wait
)

// all runs f for 0 … n-1, some at a time, and fails the test with the first error.
func all(t *testing.T, n, atOnce int, f func(i int) error) {
	t.Helper()
	next, errs := make(chan int, n), make(chan error, n)
	for i := range n {
		next <- i
	}
	close(next)
	var group sync.WaitGroup
	for range atOnce {
		group.Go(func() {
			for i := range next {
				if err := f(i); err != nil {
					errs <- fmt.Errorf("number %d: %w", i, err)
				}
			}
		})
	}
	group.Wait()
	select {
	case err := <-errs:
		t.Fatal(err)
	default:
	}
}

// TestManyBranches makes many branches of one parent side by side, suspends them, wakes a crowd of them at once, kills the
// server while half of them are being deleted, and finds everything as it should be.
func TestManyBranches(t *testing.T) {
	s := start(t)
	p := s.project(t)
	sql(t, s.connect(t, p.URI), "create table t as select 42 as n")
	type one struct{ branch, endpoint, uri string }
	made := make([]one, manyBranches)
	wait := func(ops []sdk.Operation) error {
		ctx, cancel := context.WithTimeout(t.Context(), opLimit)
		defer cancel()
		_, err := s.WaitForOperations(ctx, ops, nil)
		return err
	}
	all(t, manyBranches, 12, func(i int) error {
		out, err := s.CreateBranch(t.Context(), p.ID, sdk.BranchCreateRequest{
			Branch:    &sdk.BranchCreate{Name: new(fmt.Sprintf("many-%02d", i))},
			Endpoints: &[]sdk.BranchCreateEndpoint{{Type: api.ReadWrite, SuspendTimeoutSeconds: new(int64(-1))}},
		})
		if err != nil {
			return err
		}
		made[i] = one{out.Branch.ID, out.Endpoints[0].ID, (*out.ConnectionUris)[0].ConnectionURI}
		if err := wait(out.Operations); err != nil {
			return err
		}
		slept, err := s.SuspendEndpoint(t.Context(), p.ID, made[i].endpoint)
		if err != nil {
			return err
		}
		return wait(slept.Operations)
	})
	names := map[string]bool{}
	for b, err := range s.Branches(t.Context(), p.ID, sdk.BranchFilter{}) {
		if err != nil {
			t.Fatal(err)
		}
		names[b.Name] = true
	}
	if len(names) != manyBranches+1 {
		t.Errorf("%d branches are listed, want %d", len(names), manyBranches+1)
	}

	// Everybody comes at once.
	all(t, stormWakes, stormWakes, func(i int) error {
		ctx, cancel := context.WithTimeout(t.Context(), clientLimit)
		defer cancel()
		conn, err := pgx.ConnectConfig(ctx, s.config(t, made[i].uri))
		if err != nil {
			return err
		}
		defer conn.Close(ctx)
		var n int
		if err := conn.QueryRow(ctx, "select n from t").Scan(&n); err != nil || n != 42 {
			return fmt.Errorf("read %d (%v)", n, err)
		}
		return nil
	})

	// Half of them go, the running ones too, and the server dies meanwhile.
	half := made[:manyBranches/2]
	for _, b := range half {
		if _, err := s.DeleteBranch(t.Context(), p.ID, b.branch); err != nil {
			t.Fatal(err)
		}
	}
	s.Kill9()
	s.Start()
	eventually(t, opLimit, func() string {
		volumes, err := os.ReadDir(filepath.Join(s.dir, "pool", "volumes"))
		if err != nil {
			return err.Error()
		}
		there := map[string]bool{}
		for _, v := range volumes {
			there[v.Name()] = true
		}
		for _, b := range half {
			if there[b.branch] {
				return "the volume of " + b.branch + " is still there"
			}
		}
		waiting, err := os.ReadDir(filepath.Join(s.dir, "pool", "deleting"))
		if err != nil || len(waiting) > 0 {
			return fmt.Sprintf("%d deleted volumes wait (%v)", len(waiting), err)
		}
		return ""
	})
	for i, b := range made {
		_, err := s.Branch(t.Context(), p.ID, b.branch)
		if gone := sdk.IsNotFound(err); gone != (i < len(half)) || (err != nil && !gone) {
			t.Errorf("branch %d of %d: %v", i, len(made), err)
		}
	}
	last := s.connect(t, made[manyBranches-1].uri)
	if n := value[int](t, last, "select n from t"); n != 42 {
		t.Errorf("a branch that was kept holds %d", n)
	}
}
