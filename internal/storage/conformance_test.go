package storage

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/pgtest"
)

// fixture is a backend in a place where it works. place returns an empty data directory and what to open it with; small
// asks for one on a file system that is quickly full.
type fixture struct {
	name      string
	needsRoot bool
	place     func(t *testing.T, small bool) Options
}

var fixtures = []fixture{
	{"btrfs-image", true, func(t *testing.T, small bool) Options {
		return imageOptions(t, t.TempDir(), small)
	}},
	{"btrfs-preallocated", true, func(t *testing.T, small bool) Options {
		o := imageOptions(t, t.TempDir(), small)
		o.Preallocate = true
		return o
	}},
	{"btrfs-native", true, func(t *testing.T, small bool) Options {
		outer := imageOptions(t, t.TempDir(), small)
		if _, err := Open(t.Context(), outer); err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(poolPath(outer.Dir), "host")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		return Options{Dir: dir, Backend: BackendBtrfs, UID: -1, GID: -1, HostReserve: mib, PoolReserve: mib}
	}},
	{"reflink-xfs", true, func(t *testing.T, small bool) Options { return reflinkOptions(t, "xfs", small) }},
	{"reflink-btrfs", true, func(t *testing.T, small bool) Options { return reflinkOptions(t, "btrfs", small) }},
	{"copy-xfs", true, func(t *testing.T, small bool) Options {
		o := reflinkOptions(t, "xfs", small)
		o.Backend = BackendCopy
		return o
	}},
	{"copy", false, func(t *testing.T, small bool) Options {
		dir := t.TempDir()
		if small {
			dir = pgtest.Mount(t, "ext4", 96*mib)
		}
		return Options{Dir: dir, Backend: BackendCopy, UID: -1, GID: -1, HostReserve: mib, PoolReserve: mib}
	}},
}

func imageOptions(t *testing.T, dir string, small bool) Options {
	size := 512 * mib
	if small {
		size = 160 * mib
	}
	t.Cleanup(func() { unmountForTest(t, dir) })
	return Options{Dir: dir, Backend: BackendBtrfs, SizeBytes: size, LimitBytes: size, UID: -1, GID: -1, HostReserve: mib, PoolReserve: mib}
}

func reflinkOptions(t *testing.T, fsType string, small bool) Options {
	size := gib
	if small {
		size = 320 * mib // about as small as XFS can be
	}
	dir := filepath.Join(pgtest.Mount(t, fsType, size), "data")
	return Options{Dir: dir, Backend: BackendReflink, UID: -1, GID: -1, HostReserve: mib, PoolReserve: mib}
}

func unmountForTest(t *testing.T, dir string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := Unmount(ctx, dir); err != nil {
		t.Errorf("unmount: %v", err)
	}
}

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a file system")
	}
}

func TestConformance(t *testing.T) {
	tests := []struct {
		name  string
		small bool
		run   func(t *testing.T, opts Options)
	}{
		{"Lifecycle", false, testLifecycle},
		{"Isolation", false, testIsolation},
		{"Depth", false, testDepth},
		{"Content", false, testContent},
		{"Owner", false, testOwner},
		{"BadIDs", false, testBadIDs},
		{"Sweep", false, testSweep},
		{"Reopen", false, testReopen},
		{"Space", false, testSpace},
		{"Cancelled", false, testCancelled},
		{"Concurrent", false, testConcurrent},
		{"Full", true, testFull},
	}
	for _, f := range fixtures {
		t.Run(f.name, func(t *testing.T) {
			if f.needsRoot {
				requireRoot(t)
			}
			for _, tt := range tests {
				t.Run(tt.name, func(t *testing.T) { tt.run(t, f.place(t, tt.small)) })
			}
		})
	}
}

func testLifecycle(t *testing.T, opts Options) {
	p := open(t, opts)
	ctx := t.Context()
	wantList(t, p)
	must(t, p.Create(ctx, "a"))
	wantKind(t, p.Create(ctx, "a"), core.KindConflict)
	info, err := os.Stat(p.Path("a"))
	must(t, err)
	if !info.IsDir() || info.Mode().Perm() != 0o700 {
		t.Fatalf("a new volume is %v, want a folder with mode 0700", info.Mode())
	}
	put(t, p, "a", "f", "1")
	must(t, p.Clone(ctx, "a", "b"))
	wantKind(t, p.Clone(ctx, "a", "b"), core.KindConflict)
	wantKind(t, p.Clone(ctx, "nope", "c"), core.KindNotFound)
	wantList(t, p, "a", "b")
	must(t, p.Delete(ctx, "a"))
	must(t, p.Delete(ctx, "a"))
	wantList(t, p, "b")
	wantFile(t, p, "b", "f", "1")
	must(t, p.Clone(ctx, "b", "a"))
	wantFile(t, p, "a", "f", "1")
	wantEmptyStaging(t, p)
}

func testIsolation(t *testing.T, opts Options) {
	p := open(t, opts)
	must(t, p.Create(t.Context(), "parent"))
	put(t, p, "parent", "same", "old")
	put(t, p, "parent", "gone", "old")
	must(t, p.Clone(t.Context(), "parent", "child"))
	put(t, p, "parent", "same", "parent's")
	put(t, p, "child", "new", "child's")
	must(t, os.Remove(filepath.Join(p.Path("child"), "gone")))
	wantFile(t, p, "child", "same", "old")
	wantFile(t, p, "parent", "gone", "old")
	if _, err := os.Stat(filepath.Join(p.Path("parent"), "new")); !notExist(err) {
		t.Fatalf("the child's new file shows in the parent: %v", err)
	}
	// In place, as a database writes.
	overwrite(t, filepath.Join(p.Path("child"), "same"), "CHI")
	wantFile(t, p, "parent", "same", "parent's")
}

func testDepth(t *testing.T, opts Options) {
	p := open(t, opts)
	must(t, p.Create(t.Context(), "v0"))
	for i := range 20 {
		put(t, p, fmt.Sprintf("v%d", i), fmt.Sprintf("f%d", i), "x")
		must(t, p.Clone(t.Context(), fmt.Sprintf("v%d", i), fmt.Sprintf("v%d", i+1)))
	}
	for i := range 20 {
		must(t, p.Delete(t.Context(), fmt.Sprintf("v%d", i)))
	}
	wantList(t, p, "v20")
	for i := range 20 {
		wantFile(t, p, "v20", fmt.Sprintf("f%d", i), "x")
	}
}

func testContent(t *testing.T, opts Options) {
	p := open(t, opts)
	must(t, p.Create(t.Context(), "a"))
	root := p.Path("a")
	must(t, os.MkdirAll(filepath.Join(root, "base", "1"), 0o700))
	must(t, os.Symlink("/somewhere/else", filepath.Join(root, "pg_wal")))
	big := make([]byte, 3<<20)
	rand.Read(big)
	must(t, os.WriteFile(filepath.Join(root, "base", "1", "big"), big, 0o600))
	sparse := filepath.Join(root, "sparse")
	must(t, os.WriteFile(sparse, []byte("head"), 0o640))
	must(t, os.Truncate(sparse, 64<<20))
	must(t, os.WriteFile(filepath.Join(root, "odd"), []byte("x"), 0o600))
	must(t, os.Chmod(filepath.Join(root, "odd"), 0o440))
	must(t, os.Chmod(filepath.Join(root, "base"), 0o750))

	must(t, p.Clone(t.Context(), "a", "b"))
	copied := p.Path("b")
	got, err := os.ReadFile(filepath.Join(copied, "base", "1", "big"))
	must(t, err)
	if !bytes.Equal(got, big) {
		t.Fatal("the clone's content differs")
	}
	if target, err := os.Readlink(filepath.Join(copied, "pg_wal")); err != nil || target != "/somewhere/else" {
		t.Fatalf("symbolic link = %q, %v", target, err)
	}
	info, err := os.Stat(filepath.Join(copied, "sparse"))
	must(t, err)
	if blocks := info.Sys().(*syscall.Stat_t).Blocks * 512; info.Size() != 64<<20 || blocks > mib {
		t.Fatalf("a sparse file of 64 MiB became %d bytes taking %d", info.Size(), blocks)
	}
	for path, want := range map[string]os.FileMode{"": 0o700, "odd": 0o440, "base": 0o750, "sparse": 0o640} {
		info, err := os.Stat(filepath.Join(copied, path))
		must(t, err)
		if info.Mode().Perm() != want {
			t.Errorf("mode of %q = %v, want %v", path, info.Mode().Perm(), want)
		}
	}
}

func testOwner(t *testing.T, opts Options) {
	requireRoot(t)
	opts.UID, opts.GID = 4321, 4322
	p := open(t, opts)
	must(t, p.Create(t.Context(), "a"))
	put(t, p, "a", "f", "x")
	must(t, os.Chown(filepath.Join(p.Path("a"), "f"), 77, 78))
	must(t, p.Clone(t.Context(), "a", "b"))
	for path, want := range map[string][2]uint32{"": {4321, 4322}, "f": {77, 78}} {
		info, err := os.Stat(filepath.Join(p.Path("b"), path))
		must(t, err)
		st := info.Sys().(*syscall.Stat_t)
		if st.Uid != want[0] || st.Gid != want[1] {
			t.Errorf("owner of %q = %d:%d, want %v", path, st.Uid, st.Gid, want)
		}
	}
}

func testBadIDs(t *testing.T, opts Options) {
	p := open(t, opts)
	must(t, p.Create(t.Context(), "a"))
	for _, id := range []string{"", ".", "..", "a/b", "../a", "A", "a.b", "a\x00", string(make([]byte, 65))} {
		wantKind(t, p.Create(t.Context(), id), core.KindInvalid)
		wantKind(t, p.Clone(t.Context(), "a", id), core.KindInvalid)
		wantKind(t, p.Clone(t.Context(), id, "b"), core.KindInvalid)
		wantKind(t, p.Delete(t.Context(), id), core.KindInvalid)
	}
	wantList(t, p, "a")
}

func testSweep(t *testing.T, opts Options) {
	p := open(t, opts)
	must(t, p.Create(t.Context(), "a"))
	put(t, p, "a", "f", "x")
	// What kill -9 leaves in the middle of a create, of a clone and of a delete.
	must(t, p.backend.Create(t.Context(), p.stagingPath("half")))
	must(t, p.backend.Clone(t.Context(), p.Path("a"), p.stagingPath("b")))
	must(t, p.Clone(t.Context(), "a", "c"))
	must(t, os.Rename(p.Path("c"), p.stagingPath("c")))
	must(t, os.Mkdir(filepath.Join(p.staging(), "folder.1"), 0o700))
	must(t, os.WriteFile(filepath.Join(p.staging(), "folder.1", "f"), []byte("x"), 0o600))

	p = open(t, opts)
	wantEmptyStaging(t, p)
	wantList(t, p, "a")
	wantFile(t, p, "a", "f", "x")
}

func testReopen(t *testing.T, opts Options) {
	p := open(t, opts)
	must(t, p.Create(t.Context(), "a"))
	put(t, p, "a", "f", "x")
	// The pool may be in use by computes: nothing may be taken away from them.
	held, err := os.Open(filepath.Join(p.Path("a"), "f"))
	must(t, err)
	p = open(t, opts)
	wantFile(t, p, "a", "f", "x")
	auto := opts
	auto.Backend = BackendAuto
	if q := open(t, auto); q.Backend() != p.Backend() {
		t.Fatalf("auto took %s in a pool made with %s", q.Backend(), p.Backend())
	}
	other := opts
	other.Backend = map[string]string{BackendBtrfs: BackendCopy, BackendCopy: BackendBtrfs, BackendReflink: BackendBtrfs}[p.Backend()]
	if _, err := Open(t.Context(), other); !core.IsKind(err, core.KindPrecondition) {
		t.Fatalf("opening with another backend: %v, want a refusal", err)
	}
	held.Close()

	must(t, Unmount(t.Context(), opts.Dir))
	must(t, Unmount(t.Context(), opts.Dir))
	if devs, err := loopsOf(imagePath(opts.Dir)); err != nil || len(devs) > 0 {
		t.Fatalf("loop devices after Unmount: %v, %v", devs, err)
	}
	p = open(t, opts)
	wantFile(t, p, "a", "f", "x")
}

func testSpace(t *testing.T, opts Options) {
	p := open(t, opts)
	s, err := p.Space(t.Context())
	must(t, err)
	for name, r := range map[string]Room{"host": s.Host, "pool": s.Pool} {
		if r.Total <= 0 || r.Free <= 0 || r.Free > r.Total || r.Reserve != mib || r.Critical != mib/2 {
			t.Errorf("%s = %+v", name, r)
		}
	}
	if s.Level != LevelOK {
		t.Fatalf("level = %v", s.Level)
	}
	must(t, p.Admit(t.Context()))

	for _, tt := range []struct {
		host, pool int64
		level      Level
	}{
		{s.Host.Total * 3, mib, LevelCritical},
		{mib, s.Pool.Total * 3, LevelCritical},
		{mib, s.Pool.Free + s.Pool.Free/2, LevelRefuse},
	} {
		opts.HostReserve, opts.PoolReserve = tt.host, tt.pool
		p = open(t, opts)
		if s, err := p.Space(t.Context()); err != nil || s.Level != tt.level {
			t.Errorf("reserves %d, %d: level %v, %v; want %v", tt.host, tt.pool, s.Level, err, tt.level)
		}
		wantKind(t, p.Admit(t.Context()), core.KindNoSpace)
	}
	opts.HostReserve, opts.PoolReserve = 0, 0
	s, err = open(t, opts).Space(t.Context())
	must(t, err)
	if s.Host.Reserve <= 0 || s.Host.Reserve > maxReserve || s.Pool.Reserve > s.Pool.Total/4 {
		t.Errorf("default reserves: %+v", s)
	}
}

func testCancelled(t *testing.T, opts Options) {
	p := open(t, opts)
	must(t, p.Create(t.Context(), "a"))
	put(t, p, "a", "f", "x")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range []error{p.Create(ctx, "b"), p.Clone(ctx, "a", "c")} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("error = %v, want a cancellation", err)
		}
	}
	wantList(t, p, "a")
	wantEmptyStaging(t, p)
}

func testConcurrent(t *testing.T, opts Options) {
	p := open(t, opts)
	must(t, p.Create(t.Context(), "a"))
	put(t, p, "a", "f", "x")
	const n = 8
	errs := make(chan error, 2*n)
	for i := range n {
		go func() { errs <- p.Clone(t.Context(), "a", fmt.Sprintf("c%d", i)) }()
	}
	for range n {
		must(t, <-errs)
	}
	for i := range n {
		for range 2 {
			go func() { errs <- p.Delete(t.Context(), fmt.Sprintf("c%d", i)) }()
		}
	}
	for range 2 * n {
		must(t, <-errs)
	}
	wantList(t, p, "a")
	wantEmptyStaging(t, p)
}

// testFull fills the file system and clones until there is no room: what fails leaves nothing, what succeeded is whole.
func testFull(t *testing.T, opts Options) {
	p := open(t, opts)
	ctx := t.Context()
	must(t, p.Create(ctx, "a"))
	data := make([]byte, 20<<20)
	rand.Read(data)
	must(t, os.WriteFile(filepath.Join(p.Path("a"), "data"), data, 0o600))
	must(t, p.Create(ctx, "filler"))
	shares := p.Atomic() || probeReflink(ctx, p.root()) == nil // there copy_file_range(2) shares, too
	if shares {
		fill(t, filepath.Join(p.Path("filler"), "filler"))
	}
	clones, full := []string{}, false
	for i := 0; i < 20 && !full; i++ {
		id := fmt.Sprintf("c%d", i)
		switch err := p.Clone(ctx, "a", id); {
		case err == nil:
			clones = append(clones, id)
		case core.IsKind(err, core.KindNoSpace):
			full = true
		default:
			t.Fatalf("clone on a full file system: %v, want KindNoSpace", err)
		}
		wantEmptyStaging(t, p)
	}
	if !full && !shares {
		t.Fatal("420 MiB fitted into a smaller file system")
	}
	wantList(t, p, append([]string{"a", "filler"}, clones...)...)
	opts.PoolReserve = 40 * mib
	wantKind(t, open(t, opts).Admit(ctx), core.KindNoSpace)

	must(t, p.Delete(ctx, "filler"))
	if len(clones) > 0 && !shares {
		must(t, p.Delete(ctx, clones[0]))
		clones = clones[1:]
	}
	// The space of a deleted subvolume comes back in the background.
	waitCtx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	must(t, poll(waitCtx, func() (bool, error) {
		err := p.Clone(ctx, "a", "again")
		return err == nil, nil
	}))
	for _, id := range append(clones, "a", "again") {
		got, err := os.ReadFile(filepath.Join(p.Path(id), "data"))
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s is damaged: %v", id, err)
		}
	}
}

func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	buf := make([]byte, mib)
	rand.Read(buf)
	for err == nil {
		if _, err = f.Write(buf); err == nil {
			err = f.Sync()
		}
	}
	if !isNoSpace(err) {
		t.Fatalf("filling the file system: %v", err)
	}
}

func open(t *testing.T, opts Options) *Pool {
	t.Helper()
	opts.Log = testLog(t)
	p, err := Open(t.Context(), opts)
	must(t, err)
	return p
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t *testing.T, err error, kind core.Kind) {
	t.Helper()
	if !core.IsKind(err, kind) {
		t.Fatalf("error = %v, want kind %d", err, kind)
	}
}

func wantList(t *testing.T, p *Pool, want ...string) {
	t.Helper()
	got, err := p.List(t.Context())
	must(t, err)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Fatalf("volumes = %v, want %v", got, want)
	}
}

func wantEmptyStaging(t *testing.T, p *Pool) {
	t.Helper()
	entries, err := os.ReadDir(p.staging())
	must(t, err)
	if len(entries) > 0 {
		t.Fatalf("left in staging: %v", entries)
	}
}

func put(t *testing.T, p *Pool, id, name, content string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(p.Path(id), name), []byte(content), 0o600))
}

func overwrite(t *testing.T, path, content string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte(content), 0)
	must(t, errors.Join(err, f.Close()))
}

func wantFile(t *testing.T, p *Pool, id, name, want string) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(p.Path(id), name))
	if err != nil || string(got) != want {
		t.Fatalf("%s/%s = %q, %v; want %q", id, name, got, err, want)
	}
}
