package history

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/boughdb/bough/internal/core"
)

// holeAlign is a multiple of every page and block size in use.
const holeAlign = 64 << 10

// Trim gives back the disk that a sleeping branch's WAL does not need: the segments before the last checkpoint and before
// what replication slots still need, those made ahead, and inside the first segment that stays everything before that but
// its first page, but what history may need. The cluster must be stopped, and cleanly (KindPrecondition otherwise). What another branch shares is not
// touched.
func Trim(ctx context.Context, walDir string, control ControlInfo) error {
	const op = "history.trim"
	if !control.Clean {
		return wrap(core.Errorf(core.KindPrecondition, "", "the cluster was not shut down cleanly; its WAL is needed"), op)
	}
	chain, err := readLineage(control.timeline(), control.SegmentSize, walDir)
	if err != nil {
		return wrap(err, op)
	}
	end, err := findEnd(ctx, chain, control.Redo)
	if err != nil {
		return wrap(err, op)
	}
	if end <= control.Checkpoint {
		return wrap(fmt.Errorf("the checkpoint at %s is not in %s", control.Checkpoint, walDir), op)
	}
	keep, err := chain.files(control.Redo, end)
	if err != nil {
		return wrap(err, op)
	}
	entries, err := os.ReadDir(walDir)
	if err != nil {
		return wrap(err, op)
	}
	from := control.Redo
	if control.Slots != 0 {
		from = min(from, control.Slots)
	}
	for _, e := range entries {
		_, seg, ok := core.ParseWALFileName(e.Name(), control.SegmentSize)
		if !ok || slices.Contains(keep, e.Name()) {
			continue
		}
		if seg >= from.Segment(control.SegmentSize) && seg < control.Redo.Segment(control.SegmentSize) {
			continue // a slot's
		}
		if err := removeFile(filepath.Join(walDir, e.Name())); err != nil {
			return wrap(err, op)
		}
	}
	size := int64(control.SegmentSize)
	used := int64(uint64(end) % control.SegmentSize)
	if used == 0 {
		used = size
	}
	last := filepath.Join(walDir, keep[len(keep)-1])
	if err := punch(last, (used+holeAlign-1)/holeAlign*holeAlign, size); err != nil {
		return wrap(err, op)
	}
	if from.Segment(control.SegmentSize) != control.Redo.Segment(control.SegmentSize) {
		return nil
	}
	if control.History != 0 {
		from = min(from, max(control.History, core.LSN(from.Segment(control.SegmentSize)*control.SegmentSize)))
	}
	// The past of a segment that someone else shares belongs to them, too.
	first := filepath.Join(walDir, keep[0])
	if shared, err := isShared(first); err != nil || shared {
		return wrap(err, op)
	}
	return wrap(punch(first, holeAlign, int64(uint64(from)%control.SegmentSize)/holeAlign*holeAlign), op)
}

// punch makes the bytes [from, to) of a file a hole, where the file system can.
func punch(path string, from, to int64) error {
	if from >= to {
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, to-from)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("punch a hole into %s: %w", path, err)
	}
	return nil
}

func isShared(path string) (bool, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return false, fmt.Errorf("stat %s: %w", path, err)
	}
	return st.Nlink > 1, nil
}
