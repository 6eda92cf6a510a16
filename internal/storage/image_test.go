package storage

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/pgtest"
)

func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

func TestAutoTakesBtrfsAndSaysWhyNot(t *testing.T) {
	requireRoot(t)
	opts := imageOptions(t, t.TempDir(), false)
	opts.Backend = BackendAuto
	if p := open(t, opts); p.Backend() != BackendBtrfs || !p.Atomic() {
		t.Fatalf("auto took %s", p.Backend())
	}

	// An image that cannot be made is a reason, and leaves nothing in the way of the next backend.
	var log bytes.Buffer
	opts = imageOptions(t, t.TempDir(), false)
	opts.Backend, opts.SizeBytes = BackendAuto, mib
	opts.Log = slog.New(slog.NewTextHandler(&log, nil))
	p, err := Open(t.Context(), opts)
	must(t, err)
	if p.Backend() != BackendCopy || p.Atomic() {
		t.Fatalf("auto took %s", p.Backend())
	}
	if s := log.String(); !strings.Contains(s, "passed over") || !strings.Contains(s, "mkfs.btrfs") || !strings.Contains(s, "full copies") {
		t.Errorf("the log does not say why: %s", s)
	}
	if left, _ := filepath.Glob(imagePath(opts.Dir) + "*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	must(t, p.Create(t.Context(), "a"))
	opts.SizeBytes = 512 * mib // would work now, but the volumes are elsewhere
	if p := open(t, opts); p.Backend() != BackendCopy {
		t.Fatalf("auto hid the volumes behind %s", p.Backend())
	}
}

func TestUnknownBackend(t *testing.T) {
	_, err := Open(t.Context(), Options{Dir: t.TempDir(), Backend: "zip"})
	wantKind(t, err, core.KindInvalid)
}

// TestImageAfterCrash starts from what kill -9 and a broken host leave behind.
func TestImageAfterCrash(t *testing.T) {
	requireRoot(t)
	opts := imageOptions(t, t.TempDir(), false)
	must(t, os.WriteFile(imagePath(opts.Dir)+".tmp", []byte("half"), 0o600))
	p := open(t, opts)
	if _, err := os.Lstat(imagePath(opts.Dir) + ".tmp"); !notExist(err) {
		t.Errorf("the half-made image is still there: %v", err)
	}
	must(t, p.Create(t.Context(), "a"))
	put(t, p, "a", "f", "x")

	t.Run("stale loop device", func(t *testing.T) {
		must(t, Unmount(t.Context(), opts.Dir))
		dev := attachWithoutAutoclear(t, imagePath(opts.Dir))
		wantFile(t, open(t, opts), "a", "f", "x")
		must(t, Unmount(t.Context(), opts.Dir))
		if devs, err := loopsOf(imagePath(opts.Dir)); err != nil || len(devs) > 0 {
			t.Errorf("still attached: %v (stale was %s), %v", devs, dev, err)
		}
		open(t, opts)
	})
	t.Run("read-only after an error", func(t *testing.T) {
		must(t, unix.Mount("", poolPath(opts.Dir), "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		p := open(t, opts)
		put(t, p, "a", "g", "y")
	})
	t.Run("busy", func(t *testing.T) {
		held, err := os.Open(p.Path("a"))
		must(t, err)
		done := make(chan error)
		go func() { done <- Unmount(t.Context(), opts.Dir) }()
		select {
		case err := <-done:
			t.Fatalf("unmounted under a user: %v", err)
		default:
		}
		held.Close()
		must(t, <-done)
		open(t, opts)
	})
}

func attachWithoutAutoclear(t *testing.T, image string) string {
	t.Helper()
	out, err := exec.Command("losetup", "--find", "--show", image).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// TestCloneSurvivesPowerLoss takes the image as the disk has it the moment Clone returns, and opens that.
func TestCloneSurvivesPowerLoss(t *testing.T) {
	requireRoot(t)
	opts := imageOptions(t, t.TempDir(), false)
	p := open(t, opts)
	must(t, p.Create(t.Context(), "a"))
	put(t, p, "a", "f", "written, never synced")
	must(t, p.Clone(t.Context(), "a", "b"))
	frozen := filepath.Join(t.TempDir(), "frozen.img")
	copyImage(t, imagePath(opts.Dir), frozen)
	must(t, Unmount(t.Context(), opts.Dir))
	must(t, os.Rename(frozen, imagePath(opts.Dir)))
	p = open(t, opts)
	wantList(t, p, "a", "b")
	wantFile(t, p, "b", "f", "written, never synced")
}

func copyImage(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	must(t, err)
	defer in.Close()
	out, err := os.Create(to)
	must(t, err)
	defer out.Close()
	info, err := in.Stat()
	must(t, err)
	must(t, copyData(t.Context(), in, out, info.Size()))
}

// TestImageIsSparseUnlessPreallocated also checks that deleting gives space back to the host, or does not.
func TestImageIsSparseUnlessPreallocated(t *testing.T) {
	requireRoot(t)
	for _, preallocate := range []bool{false, true} {
		opts := imageOptions(t, t.TempDir(), false)
		opts.Preallocate = preallocate
		open(t, opts)
		info, err := os.Stat(imagePath(opts.Dir))
		must(t, err)
		taken := info.Sys().(*syscall.Stat_t).Blocks * 512
		if full := taken >= info.Size(); full != preallocate {
			t.Errorf("preallocate %v: the image of %d takes %d", preallocate, info.Size(), taken)
		}
		// Without the flag, the pool stays what it was made as.
		must(t, Unmount(t.Context(), opts.Dir))
		opts.Preallocate = !preallocate
		open(t, opts)
		mounts, err := os.ReadFile("/proc/self/mounts")
		must(t, err)
		for line := range strings.Lines(string(mounts)) {
			if strings.Contains(line, poolPath(opts.Dir)+" ") && strings.Contains(line, "discard=async") == preallocate {
				t.Errorf("preallocate %v: mounted %s", preallocate, line)
			}
		}
	}
}

// TestHostFull: the image cannot grow, so new branches are refused long before.
func TestHostFull(t *testing.T) {
	requireRoot(t)
	host := pgtest.Mount(t, "ext4", 256*mib)
	dir := filepath.Join(host, "data")
	opts := imageOptions(t, dir, false)
	opts.HostReserve = 64 * mib
	p := open(t, opts)
	must(t, p.Admit(t.Context()))
	filler, err := os.Create(filepath.Join(host, "filler"))
	must(t, err)
	defer filler.Close()
	s, err := p.Space(t.Context())
	must(t, err)
	must(t, unix.Fallocate(int(filler.Fd()), 0, 0, s.Host.Free-20*mib))
	if s, err = p.Space(t.Context()); err != nil || s.Level != LevelCritical {
		t.Fatalf("level = %v, %v", s.Level, err)
	}
	err = p.Admit(t.Context())
	wantKind(t, err, core.KindNoSpace)
	if msg := core.UserMessage(err); !strings.Contains(msg, "disk") || !strings.Contains(msg, "64.0 MiB") {
		t.Errorf("message: %s", msg)
	}
	must(t, filler.Truncate(0))
	must(t, p.Admit(t.Context()))
}

func TestUnmountWithoutPool(t *testing.T) {
	must(t, Unmount(t.Context(), t.TempDir()))
	must(t, Unmount(t.Context(), filepath.Join(t.TempDir(), "nothing")))
}

func TestUnescapeMount(t *testing.T) {
	if got := unescapeMount(`/a\040b\134c\011\0`); got != "/a b\\c\t\\0" {
		t.Errorf("got %q", got)
	}
}

// TestDirWithBlank: paths with blanks are escaped in the mount table.
func TestDirWithBlank(t *testing.T) {
	requireRoot(t)
	dir := filepath.Join(t.TempDir(), "my data")
	opts := imageOptions(t, dir, false)
	open(t, opts)
	open(t, opts)
	must(t, Unmount(t.Context(), dir))
	if m, err := mountOf(poolPath(dir)); err != nil || m != nil {
		t.Errorf("still mounted: %v, %v", m, err)
	}
}

// TestLoopRace attaches many images at once: a device goes to one of them only.
func TestLoopRace(t *testing.T) {
	requireRoot(t)
	dir := t.TempDir()
	const n = 8
	type result struct {
		dev *os.File
		err error
	}
	results := make(chan result, n)
	for i := range n {
		image := filepath.Join(dir, string(rune('a'+i)))
		must(t, os.WriteFile(image, nil, 0o600))
		must(t, os.Truncate(image, mib))
		go func() {
			dev, err := attachLoop(testLog(t), image)
			results <- result{dev, err}
		}()
	}
	seen := map[string]bool{}
	for range n {
		r := <-results
		if r.err != nil {
			t.Error(r.err)
			continue
		}
		if seen[r.dev.Name()] {
			t.Errorf("%s was given twice", r.dev.Name())
		}
		seen[r.dev.Name()] = true
		defer r.dev.Close()
	}
}

func TestCopyBuffered(t *testing.T) {
	dir := t.TempDir()
	data := bytes.Repeat([]byte("0123456789"), 2<<20/10)
	must(t, os.WriteFile(filepath.Join(dir, "in"), data, 0o600))
	in, err := os.Open(filepath.Join(dir, "in"))
	must(t, err)
	defer in.Close()
	out, err := os.Create(filepath.Join(dir, "out"))
	must(t, err)
	defer out.Close()
	must(t, copyBuffered(t.Context(), in, out, 5, int64(len(data))))
	got, err := io.ReadAll(io.NewSectionReader(out, 5, int64(len(data))))
	must(t, err)
	if !bytes.Equal(got, data[5:]) {
		t.Error("content differs")
	}
}
