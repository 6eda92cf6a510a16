package storage

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/pgtest"
)

// TestAutoTakesReflink: where btrfs does not work, blocks are shared if they can be, and the log says why not btrfs.
func TestAutoTakesReflink(t *testing.T) {
	opts := reflinkOptions(t, "xfs", false)
	var log bytes.Buffer
	opts.Backend, opts.SizeBytes, opts.Log = BackendAuto, mib, slog.New(slog.NewTextHandler(&log, nil))
	p, err := Open(t.Context(), opts)
	must(t, err)
	if p.Backend() != BackendReflink || p.Atomic() {
		t.Fatalf("auto took %s", p.Backend())
	}
	if s := log.String(); !strings.Contains(s, "passed over") || !strings.Contains(s, "backend=btrfs") || strings.Contains(s, "full copies") {
		t.Errorf("log: %s", s)
	}
}

// TestReflinkWhereItCannot: an error that says what to do, also for a pool that has been moved there; copying goes on.
func TestReflinkWhereItCannot(t *testing.T) {
	dir := pgtest.Mount(t, "ext4", 128*mib)
	opts := Options{Dir: dir, Backend: BackendReflink, UID: -1, GID: -1, HostReserve: mib, PoolReserve: mib}
	_, err := Open(t.Context(), opts)
	wantKind(t, err, core.KindUnavailable)
	if left, _ := filepath.Glob(filepath.Join(poolPath(dir), ".probe*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	opts.Backend = BackendCopy
	p := open(t, opts)
	must(t, p.Create(t.Context(), "a"))
	put(t, p, "a", "f", "x")
	for _, moved := range []string{BackendCopy, BackendReflink} {
		must(t, writeMarker(dir, marker{Backend: moved}))
		opts.Backend = BackendReflink
		_, err = Open(t.Context(), opts)
		wantKind(t, err, core.KindUnavailable)
		opts.Backend = BackendCopy
		wantFile(t, open(t, opts), "a", "f", "x")
	}
}

// TestReflinkTakesOverCopies: both keep ordinary folders, so one goes on with what the other made, and back.
func TestReflinkTakesOverCopies(t *testing.T) {
	opts := reflinkOptions(t, "xfs", false)
	opts.Backend = BackendCopy
	p := open(t, opts)
	must(t, p.Create(t.Context(), "a"))
	put(t, p, "a", "f", "x")
	for _, next := range []string{BackendReflink, BackendCopy} {
		opts.Backend = next
		wantFile(t, open(t, opts), "a", "f", "x")
		opts.Backend = BackendAuto
		if p := open(t, opts); p.Backend() != next {
			t.Errorf("auto took %s after %s", p.Backend(), next)
		}
	}
}

// TestReflinkSharesBlocks: a clone costs next to nothing, whatever its size.
func TestReflinkSharesBlocks(t *testing.T) {
	for _, fsType := range []string{"xfs", "btrfs"} {
		t.Run(fsType, func(t *testing.T) {
			p := open(t, reflinkOptions(t, fsType, false))
			must(t, p.Create(t.Context(), "a"))
			data := make([]byte, 64*mib)
			rand.Read(data)
			must(t, os.WriteFile(filepath.Join(p.Path("a"), "f"), data, 0o600))
			must(t, p.Flush())
			before, err := p.Space(t.Context())
			must(t, err)
			for i := range 5 {
				must(t, p.Clone(t.Context(), "a", fmt.Sprint("b", i)))
			}
			after, err := p.Space(t.Context())
			must(t, err)
			if cost := before.Pool.Free - after.Pool.Free; cost > 16*mib {
				t.Errorf("five clones of 64 MiB took %s", formatBytes(cost))
			}
		})
	}
}

// TestReflinkCopiesWhatCannotBeShared: on btrfs a file with copy-on-write shares nothing with one without.
func TestReflinkCopiesWhatCannotBeShared(t *testing.T) {
	opts := reflinkOptions(t, "btrfs", false)
	var log bytes.Buffer
	opts.Log = slog.New(slog.NewTextHandler(&log, nil))
	p, err := Open(t.Context(), opts)
	must(t, err)
	must(t, p.Create(t.Context(), "a"))
	put(t, p, "a", "plain", "one")
	odd, err := os.Create(filepath.Join(p.Path("a"), "odd"))
	must(t, err)
	defer odd.Close()
	flags, err := unix.IoctlGetInt(int(odd.Fd()), unix.FS_IOC_GETFLAGS)
	must(t, err)
	if flags&fsNoCowFlag == 0 {
		t.Fatal("files of the pool are written copy-on-write")
	}
	must(t, unix.IoctlSetPointerInt(int(odd.Fd()), unix.FS_IOC_SETFLAGS, flags&^fsNoCowFlag))
	content := strings.Repeat("odd", 100_000)
	_, err = odd.WriteString(content)
	must(t, err)
	must(t, p.Clone(t.Context(), "a", "b"))
	wantFile(t, p, "b", "plain", "one")
	wantFile(t, p, "b", "odd", content)
	if !strings.Contains(log.String(), "files=1 bytes=300000") {
		t.Errorf("log: %s", log.String())
	}
}

// TestReflinkSurvivesPowerLoss takes the disk as it is the moment Clone returns, and mounts that.
func TestReflinkSurvivesPowerLoss(t *testing.T) {
	for _, backend := range []string{BackendReflink, BackendCopy} {
		t.Run(backend, func(t *testing.T) {
			opts := reflinkOptions(t, "xfs", false)
			opts.Backend = backend
			p := open(t, opts)
			must(t, p.Create(t.Context(), "a"))
			must(t, os.Mkdir(filepath.Join(p.Path("a"), "base"), 0o700))
			put(t, p, "a", "base/f", "written, never synced")
			must(t, p.Clone(t.Context(), "a", "b"))
			host := filepath.Dir(opts.Dir)
			frozen, there := filepath.Join(t.TempDir(), "frozen.img"), t.TempDir()
			copyImage(t, host+".img", frozen)
			if out, err := exec.Command("mount", "-o", "loop,nouuid", frozen, there).CombinedOutput(); err != nil {
				t.Fatalf("mount: %v: %s", err, out)
			}
			defer func() {
				if err := unix.Unmount(there, 0); err != nil {
					t.Error(err)
				}
			}()
			got, err := os.ReadFile(filepath.Join(there, "data", "pool", "volumes", "b", "base", "f"))
			if err != nil || string(got) != "written, never synced" {
				t.Errorf("after the crash: %q, %v", got, err)
			}
		})
	}
}

// TestCloneTreeEndsAtTheFirstError: with files in flight, the error is the file's and nothing runs on.
func TestCloneTreeEndsAtTheFirstError(t *testing.T) {
	src, dst := t.TempDir(), filepath.Join(t.TempDir(), "dst")
	for i := range 100 {
		must(t, os.WriteFile(filepath.Join(src, fmt.Sprint(i)), []byte("x"), 0o600))
	}
	broken := errors.New("broken")
	err := cloneTree(t.Context(), src, dst, 4, func(_ context.Context, in, _ *os.File, _ int64) error {
		if filepath.Base(in.Name()) == "42" {
			return broken
		}
		return nil
	})
	if !errors.Is(err, broken) {
		t.Errorf("error = %v", err)
	}
}
