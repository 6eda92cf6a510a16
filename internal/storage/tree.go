package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"
)

// contentFunc gives the empty file out the first size bytes of in, holes included.
type contentFunc func(ctx context.Context, in, out *os.File, size int64) error

// cloneTree makes dst, which does not exist, a folder of the same files, folders and symbolic links as src, with owners and
// modes; content fills the files, so many at a time. Entries that vanish while it runs are left out: a cluster in backup
// mode restores what they were from its WAL. Nothing of it is durable yet when it returns.
func cloneTree(ctx context.Context, src, dst string, workers int, content contentFunc) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(workers)
	t := &treeClone{ctx: groupCtx, group: group, content: content}
	err := t.folder(src, dst)
	// What stopped a file is the reason, and the walk's end its consequence.
	if fileErr := group.Wait(); fileErr != nil {
		return fileErr
	}
	if err != nil {
		return err
	}
	// Only now: a folder's mode may forbid what filled it. The innermost come last in the list.
	for i := len(t.folders) - 1; i >= 0; i-- {
		if err := setMeta(t.folders[i].path, t.folders[i].like); err != nil {
			return err
		}
	}
	return nil
}

type treeClone struct {
	ctx     context.Context // of the files; ends with the first that fails
	group   *errgroup.Group
	content contentFunc
	folders []folderMeta
}

type folderMeta struct {
	path string
	like fs.FileInfo
}

func (t *treeClone) folder(src, dst string) error {
	info, err := os.Lstat(src)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dst, 0o700); err != nil {
		return err
	}
	t.folders = append(t.folders, folderMeta{dst, info})
	entries, err := os.ReadDir(src)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := t.ctx.Err(); err != nil {
			return err
		}
		from, to := filepath.Join(src, e.Name()), filepath.Join(dst, e.Name())
		var err error
		switch {
		case e.IsDir():
			err = t.folder(from, to)
		case e.Type()&fs.ModeSymlink != 0:
			err = copySymlink(from, to)
		case e.Type().IsRegular():
			t.group.Go(func() error { return unlessVanished(t.file(from, to), from) })
		case e.Type()&(fs.ModeSocket|fs.ModeNamedPipe) != 0: // belongs to a process, not to the data
		default:
			err = fmt.Errorf("%s is a %s; only files, folders and symbolic links can be copied", from, e.Type())
		}
		if err := unlessVanished(err, from); err != nil {
			return err
		}
	}
	return nil
}

func (t *treeClone) file(from, to string) (err error) {
	if err := t.ctx.Err(); err != nil {
		return err
	}
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
	if err := t.content(t.ctx, in, out, info.Size()); err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return setMeta(to, info)
}

// unlessVanished is err unless it says that the source is gone, and it is.
func unlessVanished(err error, from string) error {
	if !notExist(err) {
		return err
	}
	if _, statErr := os.Lstat(from); notExist(statErr) {
		return nil
	}
	return err
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

// removeTree is os.RemoveAll with a look at the context before the start.
func removeTree(ctx context.Context, path string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return os.RemoveAll(path)
}
