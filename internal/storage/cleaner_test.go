package storage

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestCleaner(t *testing.T) {
	for _, fx := range fixtures {
		t.Run(fx.name, func(t *testing.T) {
			if fx.needsRoot {
				requireRoot(t)
			}
			opts := fx.place(t, false)
			p, err := Open(t.Context(), opts)
			must(t, err)
			makeVolumes(t, p, "a", "b", "c")

			// What an earlier server had out of the way, and what it had half made.
			must(t, os.Rename(p.Path("a"), filepath.Join(p.deleting(), "a.1")))
			must(t, os.Rename(p.Path("b"), filepath.Join(p.staging(), "b.1")))
			p, err = Open(t.Context(), opts)
			must(t, err)
			waitDeleting(t, p, 2)
			p.StartCleaning(t.Context())
			p.StartCleaning(t.Context())
			defer p.StopCleaning()
			waitDeleting(t, p, 0)

			// A removal waits for the clones that are being made, and Delete for neither.
			p.StopCleaning()
			p.StopCleaning()
			p.cleaner.patience = time.Hour
			p.cleaner.clones.Add(1)
			p.StartCleaning(t.Context())
			must(t, p.Delete(t.Context(), "c"))
			if ids, err := p.List(t.Context()); err != nil || len(ids) != 0 {
				t.Errorf("volumes %v (%v) after the last was deleted", ids, err)
			}
			waitDeleting(t, p, 1)
			makeVolumes(t, p, "c") // the name is free
			p.cleaner.clones.Add(-1)
			waitDeleting(t, p, 0)

			// Stopped in the middle: the rest is there for the next one.
			p.cleaner.clones.Add(1)
			must(t, p.Delete(t.Context(), "c"))
			p.StopCleaning()
			waitDeleting(t, p, 1)
			p.cleaner.clones.Add(-1)
			p.StartCleaning(t.Context())
			waitDeleting(t, p, 0)

			// Without a cleaner Delete does it all.
			p.StopCleaning()
			makeVolumes(t, p, "d")
			must(t, p.Delete(t.Context(), "d"))
			waitDeleting(t, p, 0)
		})
	}
}

// makeVolumes makes volumes with a file in them.
func makeVolumes(t *testing.T, p *Pool, ids ...string) {
	t.Helper()
	for _, id := range ids {
		must(t, p.Create(t.Context(), id))
		must(t, os.WriteFile(filepath.Join(p.Path(id), "f"), make([]byte, 1<<20), 0o600))
	}
}

// waitDeleting waits until that many deleted volumes are not free yet.
func waitDeleting(t *testing.T, p *Pool, want int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		n, err := p.Deleting(t.Context())
		must(t, err)
		if n == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d deleted volumes wait, want %d", n, want)
		}
	}
}

// The space of a drained subvolume is free when Drain returns: the kernel has forgotten its tree.
func TestDrainWaitsForTheKernel(t *testing.T) {
	requireRoot(t)
	p, err := Open(t.Context(), imageOptions(t, t.TempDir(), false))
	must(t, err)
	makeVolumes(t, p, "a")
	must(t, p.Clone(t.Context(), "a", "b"))
	root, err := subvolumeID(p.Path("b"))
	must(t, err)
	pool, err := os.Open(p.root())
	must(t, err)
	defer pool.Close()
	if there, err := hasRoot(pool, root); err != nil || !there {
		t.Fatalf("the tree of a volume is not found: %v", err)
	}
	b := p.backend.(btrfsBackend)
	must(t, b.Drain(t.Context(), p.Path("b")))
	if there, err := hasRoot(pool, root); err != nil || there {
		t.Errorf("the tree is still there: %v", err)
	}
	must(t, os.Mkdir(p.Path("plain"), 0o700))
	must(t, b.Drain(t.Context(), p.Path("plain")))
	must(t, b.Drain(t.Context(), p.Path("plain")))
	if err := unix.Access(p.Path("plain"), unix.F_OK); !notExist(err) {
		t.Errorf("a plain folder stays: %v", err)
	}
}

func TestRest(t *testing.T) {
	for _, c := range []struct {
		took  time.Duration
		level Level
		want  time.Duration
	}{
		{0, LevelOK, 0}, {100 * time.Millisecond, LevelOK, restFactor * 100 * time.Millisecond}, {time.Hour, LevelOK, maxRest},
		{time.Second, LevelRefuse, 0}, {time.Second, LevelCritical, 0},
	} {
		if got := restAfter(c.took, c.level); got != c.want {
			t.Errorf("after %s at %s: %s, want %s", c.took, c.level, got, c.want)
		}
	}
}
