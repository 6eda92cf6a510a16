package pgtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mkfs makes the file systems that Mount knows, without questions and with no space held back.
var mkfs = map[string][]string{
	"xfs":   {"mkfs.xfs", "-q", "-f"},
	"btrfs": {"mkfs.btrfs", "-q", "-f"},
	"ext4":  {"mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0"},
}

// Mount mounts a new file system of that type (xfs, btrfs, ext4) and size in bytes, which takes no space until it is used,
// and returns its folder. XFS needs 300 MiB. It is gone with the test, which is skipped without root.
func Mount(t testing.TB, fsType string, size int64) string {
	t.Helper()
	base, err := os.MkdirTemp("", "pgm")
	if err != nil {
		t.Fatal(err)
	}
	if base, err = filepath.EvalSymlinks(base); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(base); err != nil {
			t.Errorf("pgtest: %v", err)
		}
	})
	dir := filepath.Join(base, "fs")
	if err := errors.Join(os.Chmod(base, 0o755), os.Mkdir(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	MountAt(t, fsType, size, dir)
	return dir
}

// MountAt is Mount at an empty folder of the caller's, whose mode and owner the file system takes over. The image is the
// file DIR.img.
func MountAt(t testing.TB, fsType string, size int64, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a file system")
	}
	argv, ok := mkfs[fsType]
	if !ok {
		t.Fatalf("pgtest cannot make a %s", fsType)
	}
	tool, err := adminTool(argv[0])
	if err != nil {
		t.Skipf("needs %s: run make deps", argv[0])
	}
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	image := dir + ".img"
	t.Cleanup(func() {
		if err := errors.Join(unmount(dir), os.Remove(image)); err != nil {
			t.Errorf("pgtest: %v", err)
		}
	})
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, size)); err != nil {
		t.Fatal(err)
	}
	for _, run := range [][]string{append([]string{tool}, append(argv[1:], image)...), {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.CommandContext(t.Context(), run[0], run[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", strings.Join(run, " "), err, out)
		}
	}
	owner := info.Sys().(*syscall.Stat_t)
	if err := errors.Join(os.Chmod(dir, info.Mode().Perm()), os.Chown(dir, int(owner.Uid), int(owner.Gid))); err != nil {
		t.Fatal(err)
	}
}

// adminTool also looks where Debian keeps administrators' tools, which an ordinary PATH leaves out.
func adminTool(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	return exec.LookPath(filepath.Join("/usr/sbin", name))
}

// unmount waits for the last process that ends to leave.
func unmount(dir string) error {
	for deadline := time.Now().Add(startTimeout); ; {
		err := unix.Unmount(dir, 0)
		switch {
		case err == nil, errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // not, or no longer, mounted
			return nil
		case !errors.Is(err, unix.EBUSY) || time.Now().After(deadline):
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
