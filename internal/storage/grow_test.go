package storage

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/pgtest"
)

// growing is an image of 512 MiB without a limit on a host of that size.
func growing(t *testing.T, host int64, preallocate bool) Options {
	t.Helper()
	opts := imageOptions(t, filepath.Join(pgtest.Mount(t, "ext4", host), "data"), false)
	opts.Preallocate, opts.LimitBytes, opts.HostReserve, opts.PoolReserve = preallocate, 0, 256*mib, 64*mib
	return opts
}

func eachImage(t *testing.T, test func(t *testing.T, preallocate bool)) {
	requireRoot(t)
	for _, preallocate := range []bool{false, true} {
		t.Run(fmt.Sprintf("preallocated=%v", preallocate), func(t *testing.T) { test(t, preallocate) })
	}
}

func image(t *testing.T, dir string) imageInfo {
	t.Helper()
	img, err := readImage(dir)
	must(t, err)
	return img
}

// wantImage checks that file, device and file system have that size, and the file all of it if preallocated.
func wantImage(t *testing.T, dir string, size int64, preallocated bool) {
	t.Helper()
	img := image(t, dir)
	fs, err := btrfsDeviceSize(poolPath(dir))
	must(t, err)
	sectors, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(img.loop), "size"))
	must(t, err)
	var device int64
	_, err = fmt.Sscan(string(sectors), &device)
	must(t, err)
	if device *= 512; img.size != size || device/mib != size/mib || fs/mib != size/mib {
		t.Errorf("file %d, device %d, file system %d; want %d", img.size, device, fs, size)
	}
	if preallocated && img.promised() > 0 {
		t.Errorf("%d bytes of the preallocated image are not allocated", img.promised())
	}
}

func take(t *testing.T, path string, size int64) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	must(t, unix.Fallocate(int(f.Fd()), 0, 0, size))
	must(t, f.Sync())
}

// TestImageGrowsByItself until the host's reserve is in sight, before anything is refused.
func TestImageGrowsByItself(t *testing.T) {
	eachImage(t, func(t *testing.T, preallocate bool) {
		opts := growing(t, 3*gib, preallocate)
		p := open(t, opts)
		must(t, p.Create(t.Context(), "a"))
		s, err := p.MakeRoom(t.Context())
		must(t, err)
		if s.Level != LevelOK {
			t.Fatalf("a new pool: %+v", s)
		}
		size := image(t, opts.Dir).size
		if size <= 512*mib {
			t.Fatalf("an image with %d bytes free did not grow", s.Pool.Free)
		}
		for i := range 16 {
			take(t, filepath.Join(p.Path("a"), fmt.Sprint(i)), 64*mib)
			must(t, p.Admit(t.Context()))
		}
		s, err = p.MakeRoom(t.Context())
		must(t, err)
		img := image(t, opts.Dir)
		wantImage(t, opts.Dir, img.size, preallocate)
		if s.Level != LevelOK || img.size < 3*gib/2 || s.Host.Free-img.promised() < 2*opts.HostReserve-mib {
			t.Errorf("with 1 GiB taken: image %d, promised %d, %+v", img.size, img.promised(), s)
		}
		wantImage(t, opts.Dir, img.size, preallocate)

		// No further: the rest of the host is for the WAL.
		if again, err := p.MakeRoom(t.Context()); err != nil || again.Pool.Total != s.Pool.Total {
			t.Errorf("grew again: %+v, %v", again, err)
		}
		must(t, Unmount(t.Context(), opts.Dir))
		open(t, opts)
		wantImage(t, opts.Dir, img.size, preallocate)
	})
}

func TestImageGrowsToItsLimit(t *testing.T) {
	requireRoot(t)
	opts := growing(t, 4*gib, false)
	opts.LimitBytes = 700 * mib
	p := open(t, opts)
	for range 3 {
		_, err := p.MakeRoom(t.Context())
		must(t, err)
	}
	wantImage(t, opts.Dir, 700*mib, false)
}

// TestImageGrowthFails: file, device and file system are what they were, and work.
func TestImageGrowthFails(t *testing.T) {
	eachImage(t, func(t *testing.T, preallocate bool) {
		opts := growing(t, 2*gib, preallocate)
		p := open(t, opts)
		opts = p.opts
		must(t, p.Create(t.Context(), "a"))
		before := image(t, opts.Dir)
		whole := func() {
			t.Helper()
			wantImage(t, opts.Dir, before.size, preallocate)
			put(t, p, "a", "f", "x")
			must(t, p.Flush())
		}
		if preallocate {
			// The host fills up in the middle.
			if err := growImage(t.Context(), opts, before, before.size+4*gib); !isNoSpace(err) {
				t.Errorf("more than the host has: %v", err)
			}
			whole()
			if after := image(t, opts.Dir); after.allocated > before.allocated+mib {
				t.Errorf("allocated %d, before %d", after.allocated, before.allocated)
			}
		}
		// The file system refuses.
		must(t, unix.Mount("", poolPath(opts.Dir), "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		if err := growImage(t.Context(), opts, before, before.size+gib/2); err == nil {
			t.Error("a read-only file system grew")
		}
		must(t, unix.Mount("", poolPath(opts.Dir), "", unix.MS_REMOUNT, ""))
		whole()
		// MakeRoom says so, and does not try again at once.
		must(t, unix.Mount("", poolPath(opts.Dir), "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		p.opts.PoolReserve = 400 * mib
		for range 2 {
			_, err := p.MakeRoom(t.Context())
			must(t, err)
		}
		if p.growAfter.IsZero() {
			t.Error("a failing step is tried again at once")
		}
		must(t, unix.Mount("", poolPath(opts.Dir), "", unix.MS_REMOUNT, ""))
		whole()
	})
}

// TestImageGrowthInterrupted: whatever kill -9 leaves between two steps, Open completes it, mounted or not.
func TestImageGrowthInterrupted(t *testing.T) {
	eachImage(t, func(t *testing.T, preallocate bool) {
		opts := growing(t, 4*gib, preallocate)
		opts.LimitBytes = gib / 2
		p := open(t, opts)
		must(t, p.Create(t.Context(), "a"))
		put(t, p, "a", "f", "x")
		size := gib / 2
		for name, crash := range map[string]func(){
			"file only": func() {},
			"device, too": func() {
				loop, err := os.Open(image(t, opts.Dir).loop)
				must(t, err)
				defer loop.Close()
				must(t, setCapacity(loop))
			},
			"not mounted": func() { must(t, Unmount(t.Context(), opts.Dir)) },
		} {
			t.Run(name, func(t *testing.T) {
				from := size
				size += 200*mib + 4096*7 // as far as fallocate had come
				must(t, extendFile(imagePath(opts.Dir), from, size, preallocate))
				crash()
				p = open(t, opts)
				wantImage(t, opts.Dir, size, preallocate)
				wantFile(t, p, "a", "f", "x")
			})
		}
	})
}

// TestGrowByHand with and without a server's mount.
func TestGrowByHand(t *testing.T) {
	eachImage(t, func(t *testing.T, preallocate bool) {
		opts := growing(t, 4*gib, preallocate)
		_, _, err := Grow(t.Context(), GrowRequest{Dir: filepath.Join(opts.Dir, "nope"), By: gib})
		wantKind(t, err, core.KindNotFound)
		must(t, os.MkdirAll(opts.Dir, 0o755))
		_, _, err = Grow(t.Context(), GrowRequest{Dir: opts.Dir, By: gib})
		wantKind(t, err, core.KindNotFound)

		p := open(t, opts)
		must(t, p.Create(t.Context(), "a"))
		put(t, p, "a", "f", "x")
		grow := func(req GrowRequest, from, to int64) {
			t.Helper()
			req.Dir = opts.Dir
			if f, to2, err := Grow(t.Context(), req); err != nil || f != from || to2 != to {
				t.Fatalf("grown from %d to %d, %v; want %d to %d", f, to2, err, from, to)
			}
		}
		grow(GrowRequest{By: 100 * mib}, 512*mib, 612*mib)
		wantImage(t, opts.Dir, 612*mib, preallocate)
		grow(GrowRequest{To: 700*mib - 1}, 612*mib, 700*mib)
		wantImage(t, opts.Dir, 700*mib, preallocate)
		for _, to := range []int64{700 * mib, 699 * mib, 1} {
			_, _, err := Grow(t.Context(), GrowRequest{Dir: opts.Dir, To: to})
			wantKind(t, err, core.KindInvalid)
		}
		_, _, err = Grow(t.Context(), GrowRequest{Dir: opts.Dir, To: 5 * gib})
		wantKind(t, err, core.KindNoSpace)
		if msg := core.UserMessage(err); !strings.Contains(msg, "can grow by") || !strings.Contains(msg, "256.0 MiB must stay free") {
			t.Errorf("message: %s", msg)
		}
		wantImage(t, opts.Dir, 700*mib, preallocate)
		must(t, Unmount(t.Context(), opts.Dir))
		grow(GrowRequest{By: 100 * mib}, 700*mib, 800*mib)
		if m, err := mountOf(poolPath(opts.Dir)); err != nil || m != nil {
			t.Errorf("left mounted: %v, %v", m, err)
		}
		wantFile(t, open(t, opts), "a", "f", "x")
		wantImage(t, opts.Dir, 800*mib, preallocate)
	})
}

func TestGrowWithoutImage(t *testing.T) {
	opts := Options{Dir: t.TempDir(), Backend: BackendCopy, UID: -1, GID: -1}
	open(t, opts)
	_, _, err := Grow(t.Context(), GrowRequest{Dir: opts.Dir, By: gib})
	wantKind(t, err, core.KindPrecondition)
}

// TestTrimLeavesPreallocated: fstrim, as a machine's timer runs it, takes nothing from a preallocated image; holes that it
// has all the same are filled at the next start.
func TestTrimLeavesPreallocated(t *testing.T) {
	requireRoot(t)
	opts := growing(t, 2*gib, true)
	opts.LimitBytes = gib / 2
	open(t, opts)
	out, err := exec.Command("fstrim", poolPath(opts.Dir)).CombinedOutput()
	t.Logf("fstrim: %v %s", err, out)
	wantImage(t, opts.Dir, gib/2, true)
	f, err := os.OpenFile(imagePath(opts.Dir), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	must(t, Unmount(t.Context(), opts.Dir))
	must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 400*mib, 8*mib))
	if image(t, opts.Dir).promised() == 0 {
		t.Fatal("no hole was made")
	}
	open(t, opts)
	wantImage(t, opts.Dir, gib/2, true)
}

// TestMetadataRoom: trees fill up while there is room for data, and new branches are refused before the file system fails.
func TestMetadataRoom(t *testing.T) {
	requireRoot(t)
	opts := imageOptions(t, t.TempDir(), true)
	p := open(t, opts)
	must(t, p.Create(t.Context(), "a"))
	s, err := p.Space(t.Context())
	must(t, err)
	if s.Level != LevelOK || s.Metadata.Free <= s.Metadata.Reserve || s.Metadata.Free > s.Metadata.Total {
		t.Fatalf("a new pool: %+v", s)
	}
	take(t, filepath.Join(p.Path("a"), "data"), 64*mib)
	for i := 0; s.Level == LevelOK; i++ {
		err := os.WriteFile(filepath.Join(p.Path("a"), fmt.Sprintf("%0200d", i)), nil, 0o600)
		if err != nil {
			t.Fatalf("file %d: %v; at level %v, %+v", i, err, s.Level, s)
		}
		if i%1000 == 0 {
			must(t, p.Flush())
			if s, err = p.Space(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if s.Metadata.Level() == LevelOK || s.Pool.Level() != LevelOK {
		t.Errorf("what is full? %+v", s)
	}
	err = p.Admit(t.Context())
	wantKind(t, err, core.KindNoSpace)
	if !strings.Contains(core.UserMessage(err), "metadata") {
		t.Errorf("message: %s", core.UserMessage(err))
	}
}

// TestMeasure: what clones share is told apart from what is their own, and deleted subvolumes are counted.
func TestMeasure(t *testing.T) {
	for _, f := range fixtures {
		t.Run(f.name, func(t *testing.T) {
			if f.needsRoot {
				requireRoot(t)
			}
			opts := f.place(t, false)
			p := open(t, opts)
			must(t, p.Create(t.Context(), "a"))
			must(t, os.WriteFile(filepath.Join(p.Path("a"), "shared"), make([]byte, 8*mib), 0o600))
			must(t, p.Clone(t.Context(), "a", "b"))
			must(t, os.WriteFile(filepath.Join(p.Path("b"), "own"), make([]byte, 2*mib), 0o600))
			must(t, p.Flush())
			quick, err := Measure(t.Context(), p.Path("b"), false)
			must(t, err)
			if quick.Referenced < 10*mib || quick.Referenced > 11*mib || quick.Exclusive != -1 || quick.Files != 2 {
				t.Errorf("unasked: %+v", quick)
			}
			full, err := Measure(t.Context(), p.Path("b"), true)
			must(t, err)
			want := 2 * mib
			if !p.Atomic() && probeReflink(t.Context(), p.root()) != nil {
				want = 10 * mib
			}
			if full.Referenced != quick.Referenced || full.Exclusive < want || full.Exclusive > want+mib {
				t.Errorf("%+v, of which %d should be its own", full, want)
			}
			if gone, err := Measure(t.Context(), p.Path("nope"), true); err != nil || gone.Files != 0 {
				t.Errorf("of nothing: %+v, %v", gone, err)
			}
			for range 3 {
				must(t, p.Clone(t.Context(), "a", "c"))
				must(t, p.Delete(t.Context(), "c"))
			}
			st, err := Look(t.Context(), opts.Dir)
			must(t, err)
			if st.Backend != p.Backend() || !st.Mounted || len(st.Volumes) != 2 || (st.Image != nil) != p.image || st.Space.Pool.Reserve != mib {
				t.Errorf("%+v", st)
			}
			// The kernel cleans up when it likes, up to half a minute later; a native one is probed with two more.
			if st.Deleted > 5 || st.Deleted > 0 && !p.Atomic() || st.Staged != 0 {
				t.Errorf("%d deleted volumes, %d staged", st.Deleted, st.Staged)
			}
		})
	}
}
