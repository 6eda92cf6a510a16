package history

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/boughdb/bough/internal/core"
)

// Feed gives a standby, which may run, the WAL of its primary, which must not: what the standby could not stream before the
// primary was stopped. All segments from the one that holds replayed up to the end of the primary's WAL are put into the
// standby's folder: finished ones as links, the last one as a copy. A standby finds it when its configuration is reloaded. What the
// primary has dropped already (only a slot keeps it from that) is left out, and the standby does not get past it. Feed returns
// where the primary's WAL ends.
//
// A file that the standby has open is replaced by name, never written to.
func (d *Dirs) Feed(ctx context.Context, primary, standby Ref, control ControlInfo, replayed core.LSN) (end core.LSN, err error) {
	const op = "history.feed"
	f := &fork{ForkRequest: ForkRequest{Dirs: d}, from: d.Path(primary.Branch, primary.Incarnation), to: d.Path(standby.Branch, standby.Incarnation)}
	chain, err := readLineage(control.timeline(), control.SegmentSize, f.from)
	if err != nil {
		return 0, wrap(err, op)
	}
	if end, err = findEnd(ctx, chain, control.Redo); err != nil || end <= replayed {
		return end, wrap(err, op)
	}
	if err := f.copyHistories(); err != nil {
		return 0, wrap(err, op)
	}
	for seg := replayed.Segment(control.SegmentSize); seg <= (end - 1).Segment(control.SegmentSize); seg++ {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		name, ok := chain.file(seg)
		if !ok {
			continue // the standby has it, or never gets there
		}
		from, to := filepath.Join(f.from, name), filepath.Join(f.to, name)
		if used := uint64(end) - seg*control.SegmentSize; used < control.SegmentSize {
			err = f.copySegment(from, to, int64(used), int64(control.SegmentSize))
		} else {
			err = f.relink(from, to, int64(control.SegmentSize))
		}
		if err != nil {
			return 0, wrap(err, op)
		}
	}
	return end, wrap(syncPath(f.to), op)
}

// relink makes to another name of from, whatever it was before.
func (f *fork) relink(from, to string, size int64) error {
	have, err := os.Stat(to)
	if err == nil {
		if want, err := os.Stat(from); err == nil && os.SameFile(have, want) {
			return nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	tmp := to + ".tmp"
	if err := removeFile(tmp); err != nil {
		return err
	}
	if err := os.Link(from, tmp); isUnlinkable(err) {
		return f.copySegment(from, to, size, size)
	} else if err != nil {
		return err
	}
	return os.Rename(tmp, to)
}
