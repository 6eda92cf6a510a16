package compute_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/compute/cgroup"
	"github.com/boughdb/bough/internal/compute/local"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/pgtest"
	"github.com/boughdb/bough/internal/postgres"
)

// BenchmarkWake is a clean start of a 0.25 CU compute until it is ready, without the persisting of its handle; the stop
// between two starts is not timed.
func BenchmarkWake(b *testing.B) {
	b.Run("unlimited", func(b *testing.B) { wake(b, nil) })
	b.Run("limited", func(b *testing.B) {
		name := "bench-" + itoa(os.Getpid())
		tree, err := cgroup.Open(name)
		if err != nil {
			b.Skip(core.UserMessage(err))
		}
		b.Cleanup(func() {
			if err := cgroup.Clean(context.WithoutCancel(b.Context()), name); err != nil {
				b.Error(err)
			}
		})
		wake(b, tree)
	})
}

func wake(b *testing.B, groups *cgroup.Tree) {
	dir := pgtest.TempDir(b)
	driver, err := local.New(pgtest.Cred(b), nil)
	if err != nil {
		b.Fatal(err)
	}
	build := pgtest.Build(b)
	m := compute.NewManager(b.Context(), compute.Options{
		Driver: driver, RunDir: filepath.Join(dir, "run"), LogDir: filepath.Join(dir, "log"), Cred: pgtest.Cred(b), Groups: groups,
	})
	b.Cleanup(m.Close)
	r := &rig{}
	spec := compute.Spec{
		EndpointID: endpoint, Build: build, DataDir: pgtest.DataDir(b, build, dir),
		Size: postgres.SizeSpec{MinCU: 0.25, MaxCU: 0.25}, IdleTimeout: -1,
	}
	var took []time.Duration
	for b.Loop() {
		began := time.Now()
		if _, err := m.Start(b.Context(), spec, r.persist); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(began))
		b.StopTimer()
		if err := m.Stop(b.Context(), endpoint, compute.StopFast); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-p50")
	b.ReportMetric(float64(took[len(took)*95/100].Microseconds())/1000, "ms-p95")
}
