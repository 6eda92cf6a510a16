package history

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Usage is the disk space of WAL, in bytes.
type Usage struct {
	Referenced int64 // by the branch's files
	Exclusive  int64 // of that, what no other branch has a link to
}

// Usage measures the WAL of every branch, and of all together with each shared segment counted once.
func (d *Dirs) Usage(ctx context.Context) (branches map[string]Usage, total int64, err error) {
	const op = "history.usage"
	ids, err := d.List(ctx)
	if err != nil {
		return nil, 0, wrap(err, op)
	}
	branches = make(map[string]Usage, len(ids))
	seen := map[uint64]bool{}
	for _, id := range ids {
		var u Usage
		links := map[uint64]uint64{} // that were seen of files with several, in this branch: its WAL and its archive share most
		err := filepath.WalkDir(filepath.Join(d.root, id), func(path string, e fs.DirEntry, err error) error {
			if err == nil {
				err = ctx.Err()
			}
			var st unix.Stat_t
			if err == nil {
				err = unix.Lstat(path, &st)
			}
			if err != nil {
				if errors.Is(err, os.ErrNotExist) {
					return nil // deleted meanwhile
				}
				return err
			}
			size := st.Blocks * 512
			if !e.IsDir() {
				links[st.Ino]++
			}
			if links[st.Ino] <= 1 {
				u.Referenced += size
			}
			if e.IsDir() || links[st.Ino] == st.Nlink {
				u.Exclusive += size
			}
			if !seen[st.Ino] {
				seen[st.Ino] = true
				total += size
			}
			return nil
		})
		if err != nil {
			return nil, 0, wrap(err, op)
		}
		branches[id] = u
	}
	return branches, total, nil
}

// Kept is the disk space of a branch's WAL, in bytes. What it shares with other branches counts with its part: all branches
// together keep what there is.
func (d *Dirs) Kept(ctx context.Context, branch string) (int64, error) {
	var kept int64
	err := filepath.WalkDir(filepath.Join(d.root, branch), func(path string, e fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if errors.Is(err, os.ErrNotExist) {
			return nil // recycled meanwhile
		}
		if err != nil || e.IsDir() {
			return err
		}
		kept += st.Blocks * 512 / max(int64(st.Nlink), 1)
		return nil
	})
	return kept, wrap(err, "history.kept")
}
