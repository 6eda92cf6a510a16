// Package history owns the write-ahead logs of branches: the folder that each incarnation of a branch writes into, the
// fork of a branch at its parent's head, and what is kept of the log while a branch sleeps.
//
// A child never writes into a file that its parent may write, nor the other way round: complete segments are shared as
// hard links (a server with wal_recycle=off never touches one again), the segment being written is copied, and a child
// always ends its first recovery on a timeline of its own.
package history

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boughdb/bough/internal/core"
)

// cleanupTimeout bounds the removal of what a failed call made, after the call's own context may have ended.
const cleanupTimeout = time.Minute

// ControlInfo is what history must know from a cluster's control file.
type ControlInfo struct {
	Checkpoint       core.LSN // start of the latest checkpoint's record
	Redo             core.LSN // where the replay of that checkpoint starts; the same when Clean
	Timeline         uint32   // of that checkpoint
	RecoveryTimeline uint32   // minimum recovery timeline; ahead of Timeline just after a promotion, 0 when there is none
	SegmentSize      uint64   // bytes
	Clean            bool     // shut down as a primary, nothing to replay
	Slots            core.LSN // the oldest WAL that a replication slot needs, 0 when none needs any; only Trim asks
	History          core.LSN // the oldest WAL that history may need of what is not archived yet, 0 when none; only Trim asks
}

// timeline is the one that the cluster's own recovery would follow.
func (c ControlInfo) timeline() uint32 { return max(c.Timeline, c.RecoveryTimeline) }

// Dirs is the folder of all WAL directories: ROOT/<branch id>/<incarnation>.
type Dirs struct {
	root     string
	uid, gid int
}

// NewDirs names the folder that holds the WAL directories; it is made when first needed. New directories and files belong
// to uid and gid; -1 leaves the owner alone.
func NewDirs(root string, uid, gid int) *Dirs { return &Dirs{root: root, uid: uid, gid: gid} }

var idPattern = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)

func checkID(branchID string) error {
	if !idPattern.MatchString(branchID) {
		return core.Invalidf("%q is not a branch id; it must match [a-z0-9-]{1,64}", branchID)
	}
	return nil
}

// Path is the WAL directory of an incarnation of a branch, whether or not it exists.
func (d *Dirs) Path(branchID string, incarnation int) string {
	return filepath.Join(d.root, branchID, strconv.Itoa(incarnation))
}

// Owner tells whose WAL directory a path is.
func (d *Dirs) Owner(path string) (branchID string, incarnation int, ok bool) {
	rel, err := filepath.Rel(d.root, path)
	if err != nil {
		return "", 0, false
	}
	branchID, number, _ := strings.Cut(rel, string(filepath.Separator))
	incarnation, err = strconv.Atoi(number)
	return branchID, incarnation, err == nil && idPattern.MatchString(branchID)
}

// Create makes an empty WAL directory, mode 0700, durably. One that exists is left as it is.
func (d *Dirs) Create(ctx context.Context, branchID string, incarnation int) error {
	const op = "history.create"
	if err := checkID(branchID); err != nil {
		return wrap(err, op)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	branch, path := filepath.Join(d.root, branchID), d.Path(branchID, incarnation)
	if err := os.MkdirAll(branch, 0o755); err != nil {
		return wrap(err, op)
	}
	if err := d.mkdir(path); err != nil {
		return wrap(err, op)
	}
	for _, dir := range []string{path, branch, d.root} {
		if err := syncPath(dir); err != nil {
			return wrap(err, op)
		}
	}
	return nil
}

// Delete removes all WAL directories of a branch; none is not an error. Segments that other branches share stay with them.
func (d *Dirs) Delete(ctx context.Context, branchID string) error {
	const op = "history.delete"
	if err := checkID(branchID); err != nil {
		return wrap(err, op)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return wrap(os.RemoveAll(filepath.Join(d.root, branchID)), op)
}

// Root is the folder that holds the WAL directories, whether or not it exists.
func (d *Dirs) Root() string { return d.root }

// DeleteIncarnation removes one WAL directory of a branch; none is not an error.
func (d *Dirs) DeleteIncarnation(ctx context.Context, branchID string, incarnation int) error {
	const op = "history.delete"
	if err := checkID(branchID); err != nil {
		return wrap(err, op)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return wrap(d.deleteIncarnation(branchID, incarnation), op)
}

// deleteIncarnation removes one WAL directory, and the branch's folder when that was the last.
func (d *Dirs) deleteIncarnation(branchID string, incarnation int) error {
	if err := os.RemoveAll(d.Path(branchID, incarnation)); err != nil {
		return err
	}
	err := os.Remove(filepath.Join(d.root, branchID))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTEMPTY) {
		return nil
	}
	return err
}

// List returns the ids of the branches that have a WAL directory, sorted.
func (d *Dirs) List(ctx context.Context) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(d.root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, wrap(err, "history.list")
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() && idPattern.MatchString(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	slices.Sort(ids)
	return ids, nil
}

func (d *Dirs) mkdir(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return d.own(path)
}

func (d *Dirs) own(path string) error {
	if d.uid < 0 && d.gid < 0 {
		return nil
	}
	return os.Lchown(path, d.uid, d.gid)
}

// writeFile makes or replaces a file of the cluster durably, except for its name, which the caller makes durable with the
// folder's other changes.
func (d *Dirs) writeFile(path string, data []byte) error {
	tmp := path + ".tmp"
	err := func() error {
		f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = f.Write(data)
		return errors.Join(err, f.Sync(), f.Close())
	}()
	if err == nil {
		err = d.own(tmp)
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, removeFile(tmp))
	}
	return nil
}

// removeFile is os.Remove for a file that may be gone.
func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// syncPath makes a file, or the names in a folder, durable.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// wrap gives err an operation, and the kind NoSpace when a file system ran full.
func wrap(err error, op string) error {
	if err == nil {
		return nil
	}
	if core.KindOf(err) == core.KindInternal && (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)) {
		return &core.Error{Kind: core.KindNoSpace, Op: op, Err: err,
			Message: "the server's storage is full; delete branches or projects that are not needed, or add disk space, and try again",
			Hint:    "the file system of the WAL directories answered ENOSPC; nothing half-made was left behind"}
	}
	return core.Wrap(err, op, "")
}
