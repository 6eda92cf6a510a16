package storage

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// copyChunk is how much is copied between two looks at the context.
const copyChunk = 8 << 20

// copyBackend keeps a volume as a plain folder and clones it byte by byte, on any file system and without privilege.
type copyBackend struct{}

func (copyBackend) Name() string { return BackendCopy }
func (copyBackend) Atomic() bool { return false }

func (copyBackend) Create(ctx context.Context, path string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return os.Mkdir(path, 0o700)
}

func (copyBackend) Clone(ctx context.Context, src, dst string) error {
	// One at a time: a copy is bound by the disk, which the computes need too.
	if err := cloneTree(ctx, src, dst, 1, copyData); err != nil {
		return err
	}
	// One flush of the file system instead of an fsync for each of a cluster's thousand files.
	return syncFS(dst)
}

func (copyBackend) Remove(ctx context.Context, path string) error { return removeTree(ctx, path) }

// copyData copies the first size bytes, leaving holes where the source has them. A source that has become shorter is
// copied as far as it goes.
func copyData(ctx context.Context, in, out *os.File, size int64) error {
	if err := out.Truncate(size); err != nil {
		return err
	}
	for pos := int64(0); pos < size; {
		start, err := unix.Seek(int(in.Fd()), pos, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO): // no data behind pos
			return nil
		case errors.Is(err, unix.EINVAL): // the file system does not know holes
			return copyRange(ctx, in, out, pos, size)
		case err != nil:
			return err
		}
		if start >= size {
			return nil
		}
		end, err := unix.Seek(int(in.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		end = min(end, size)
		if err := copyRange(ctx, in, out, start, end); err != nil {
			return err
		}
		pos = end
	}
	return nil
}

// copyRange copies the bytes [start, end) inside the kernel where it can, through a buffer where it cannot.
func copyRange(ctx context.Context, in, out *os.File, start, end int64) error {
	for start < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		src, dst := start, start
		n, err := unix.CopyFileRange(int(in.Fd()), &src, int(out.Fd()), &dst, int(min(end-start, copyChunk)), 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EXDEV), errors.Is(err, unix.EINVAL),
			errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPERM):
			return copyBuffered(ctx, in, out, start, end)
		case err != nil:
			return err
		case n == 0:
			return nil
		}
		start += int64(n)
	}
	return nil
}

func copyBuffered(ctx context.Context, in, out *os.File, start, end int64) error {
	for start < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.Copy(io.NewOffsetWriter(out, start), io.NewSectionReader(in, start, min(end-start, copyChunk)))
		if err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		start += n
	}
	return nil
}
