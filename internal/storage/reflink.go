package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/boughdb/bough/internal/core"
)

// reflinkWorkers is how many files are cloned at a time. Measured on two processors and XFS, a cluster of 1 000 files, idle:
// 1: 91 ms, 2: 63 ms, 4: 35 ms, 8: 65 ms; under pgbench 381, 263, 307 and 391 ms.
const reflinkWorkers = 4

// reflinkBackend keeps a volume as a plain folder and clones it file by file with FICLONE (ioctl_ficlone(2)): the copy shares
// the source's blocks until one of them writes. That works without privilege on XFS, btrfs, bcachefs and ZFS from 2.2.
type reflinkBackend struct {
	log *slog.Logger
}

// openReflink finds out whether the file system of DIR/pool shares blocks.
func openReflink(ctx context.Context, opts Options) (Backend, error) {
	pool := poolPath(opts.Dir)
	if err := os.MkdirAll(pool, 0o755); err != nil {
		return nil, err
	}
	used, err := hasVolumes(opts.Dir)
	if err != nil {
		return nil, err
	}
	if native, err := isBtrfs(pool); err != nil {
		return nil, err
	} else if native && !used {
		// What is made below inherits it; files of both kinds cannot share blocks.
		if err := noCow(pool); err != nil {
			return nil, err
		}
	}
	if err := probeReflink(ctx, pool); err != nil && (!used || !isNoSpace(err)) { // a full disk must open, to be emptied
		return nil, &core.Error{Kind: core.KindUnavailable, Err: err,
			Message: "the file system of " + pool + " cannot share blocks between files, as XFS, btrfs, bcachefs and ZFS can",
			Hint:    "--storage copy works on every file system; there a branch costs as much disk as its parent"}
	}
	return reflinkBackend{opts.Log}, nil
}

// probeReflink clones a file where the volumes will be.
func probeReflink(ctx context.Context, pool string) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(pool, ".probe-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	in, err := os.Create(filepath.Join(dir, "a"))
	if err != nil {
		return err
	}
	defer in.Close()
	if _, err := in.Write(make([]byte, 64<<10)); err != nil {
		return err
	}
	// ZFS shares only what a transaction group has written.
	if err := unix.Syncfs(int(in.Fd())); err != nil {
		return err
	}
	out, err := os.Create(filepath.Join(dir, "b"))
	if err != nil {
		return err
	}
	defer out.Close()
	if err := unix.IoctlFileClone(int(out.Fd()), int(in.Fd())); err != nil {
		return fmt.Errorf("FICLONE: %w", err)
	}
	return nil
}

func (reflinkBackend) Name() string { return BackendReflink }
func (reflinkBackend) Atomic() bool { return false }

func (reflinkBackend) Create(ctx context.Context, path string) error {
	return copyBackend{}.Create(ctx, path)
}

func (b reflinkBackend) Clone(ctx context.Context, src, dst string) error {
	var copied, bytes atomic.Int64
	err := cloneTree(ctx, src, dst, reflinkWorkers, func(ctx context.Context, in, out *os.File, size int64) error {
		err := ficlone(in, out)
		if err == nil || !cannotShare(err) {
			return err
		}
		// What cannot be shared is copied: the branch is right, and costs that much more.
		if err := out.Truncate(0); err != nil {
			return err
		}
		copied.Add(1)
		bytes.Add(size)
		return copyData(ctx, in, out, size)
	})
	if err != nil {
		return err
	}
	if n := copied.Load(); n > 0 {
		b.log.WarnContext(ctx, "files were copied that could not share their blocks", "volume", filepath.Base(src), "files", n, "bytes", bytes.Load())
	}
	// FICLONE has written the source's dirty pages; the copy's names, modes and lists of blocks may be in memory still. One
	// flush of the file system: 3 ms idle and 12–137 ms beside pgbench, where an fsync of each file took 400 and 3 000.
	return syncFS(dst)
}

func (reflinkBackend) Remove(ctx context.Context, path string) error { return removeTree(ctx, path) }

func ficlone(in, out *os.File) error {
	for {
		err := unix.IoctlFileClone(int(out.Fd()), int(in.Fd()))
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// cannotShare tells whether FICLONE refuses this file where a copy works: it lies on another file system or is of another
// kind (btrfs without copy-on-write, XFS realtime), it is a swap file, or on ZFS it was written a moment ago.
func cannotShare(err error) bool {
	for _, e := range []error{unix.EXDEV, unix.EINVAL, unix.EOPNOTSUPP, unix.ENOTTY, unix.EPERM, unix.ETXTBSY, unix.EAGAIN} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
