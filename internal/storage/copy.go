package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

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
	if err := copyTree(ctx, src, dst); err != nil {
		return err
	}
	// One flush of the file system instead of an fsync for each of a cluster's thousand files.
	return syncFS(dst)
}

func (copyBackend) Remove(ctx context.Context, path string) error { return removeTree(ctx, path) }

// removeTree is os.RemoveAll with a look at the context before the start.
func removeTree(ctx context.Context, path string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return os.RemoveAll(path)
}

// copyTree copies a folder of files, folders and symbolic links with owners, modes and holes. Entries that vanish while
// it runs are left out: a cluster in backup mode restores what they were from its WAL.
func copyTree(ctx context.Context, src, dst string) error {
	info, err := os.Lstat(src)
	if err != nil {
		return err
	}
	// Writable while it is being filled, whatever its mode is in the end.
	if err := os.Mkdir(dst, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(src)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		from, to := filepath.Join(src, e.Name()), filepath.Join(dst, e.Name())
		var err error
		switch {
		case e.IsDir():
			err = copyTree(ctx, from, to)
		case e.Type()&fs.ModeSymlink != 0:
			err = copySymlink(from, to)
		case e.Type().IsRegular():
			err = copyFile(ctx, from, to)
		case e.Type()&(fs.ModeSocket|fs.ModeNamedPipe) != 0:
			continue // belongs to a process, not to the data
		default:
			err = fmt.Errorf("%s is a %s; only files, folders and symbolic links can be copied", from, e.Type())
		}
		if err != nil && !vanished(err, from) {
			return err
		}
	}
	return setMeta(dst, info)
}

// vanished tells whether err says that the source is gone, and it is.
func vanished(err error, from string) bool {
	if !notExist(err) {
		return false
	}
	_, err = os.Lstat(from)
	return notExist(err)
}

func copySymlink(from, to string) error {
	info, err := os.Lstat(from)
	if err != nil {
		return err
	}
	target, err := os.Readlink(from)
	if err != nil {
		return err
	}
	if err := os.Symlink(target, to); err != nil {
		return err
	}
	return chownLike(to, info)
}

func copyFile(ctx context.Context, from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if err := copyData(ctx, in, out, info.Size()); err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return setMeta(to, info)
}

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

func setMeta(path string, like fs.FileInfo) error {
	if err := chownLike(path, like); err != nil {
		return err
	}
	return os.Chmod(path, like.Mode().Perm())
}

// chownLike copies the owner where it differs from what path has; only root may give files away.
func chownLike(path string, like fs.FileInfo) error {
	want, ok := statOf(like)
	if !ok {
		return nil
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if have, ok := statOf(info); ok && have.Uid == want.Uid && have.Gid == want.Gid {
		return nil
	}
	return os.Lchown(path, int(want.Uid), int(want.Gid))
}
