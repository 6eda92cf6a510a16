package history

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/boughdb/bough/internal/core"
)

// Volumes keeps data directories without their WAL. Clone makes dst an independent copy of src that survives a crash once
// it returns, and leaves no dst on an error; Atomic tells whether the copy is of one instant. Delete of a volume that does
// not exist is not an error.
type Volumes interface {
	Path(id string) string
	Atomic() bool
	Clone(ctx context.Context, src, dst string) error
	Delete(ctx context.Context, id string) error
}

// Source is a running primary.
//
//   - FlushLSN returns a position that is durable in the primary's WAL, at or past the end of every commit acknowledged
//     before the call, and the timeline being written (of pg_walfile_name, not of the control file, which lags behind a
//     promotion). With synchronous_commit=off an acknowledged commit may not be durable yet: the source makes it so.
//   - StartBackup begins a backup with an immediate checkpoint and returns where its replay starts.
//   - StopBackup ends it and returns the content of backup_label and tablespace_map (empty without tablespaces). It is
//     called once for each StartBackup that succeeded, also when the copy failed.
type Source interface {
	FlushLSN(ctx context.Context) (lsn core.LSN, timeline uint32, err error)
	StartBackup(ctx context.Context, label string) (core.LSN, error)
	StopBackup(ctx context.Context) (label, tablespaceMap []byte, err error)
}

// Ref names the volume and the WAL directory of a branch.
type Ref struct {
	Volume      string
	Branch      string
	Incarnation int
}

// ForkRequest says which branch to fork, as what, and with which means.
type ForkRequest struct {
	Parent  Ref
	Child   Ref
	Running Source  // nil: the parent has no process, after a clean shutdown or a crash, and gets none until Fork returns
	At      *Moment // nil: the parent's head; else Parent names the volume of a snapshot, and a running cluster may own the WAL

	Volumes     Volumes
	Dirs        *Dirs
	ReadControl func(dataDir string) (ControlInfo, error)
	CleanChild  func(dataDir string) error // durably removes what ties a copied data directory to its parent
	Log         *slog.Logger
}

// ForkResult is what the child is.
type ForkResult struct {
	LSN       core.LSN  // all WAL of the parent before it is in the child, none after it
	Time      time.Time // every commit acknowledged by then is in the child
	Timeline  uint32    // the parent's, on which the child forks
	ReplayLen uint64    // bytes of WAL that the child's first start replays
}

const (
	forkAttempts = 3
	linkInterval = 20 * time.Millisecond
)

// Fork makes the child a copy of its parent's head: a volume, a WAL directory, and in the volume a standby.signal, so that
// the child's first start replays all that WAL and can be promoted to a timeline of its own. The child survives a crash of
// the machine once Fork returns; on an error nothing of it is left. What an interrupted Fork left under the child's names
// is removed first, so the call can be repeated.
func Fork(ctx context.Context, req ForkRequest) (ForkResult, error) {
	const op = "history.fork"
	if req.Log == nil {
		req.Log = slog.New(slog.DiscardHandler)
	}
	for _, id := range []string{req.Parent.Branch, req.Child.Branch} {
		if err := checkID(id); err != nil {
			return ForkResult{}, wrap(err, op)
		}
	}
	if req.Parent.Volume == req.Child.Volume ||
		req.Parent.Branch == req.Child.Branch && req.Parent.Incarnation == req.Child.Incarnation {
		return ForkResult{}, wrap(core.Invalidf("a branch cannot be its own parent"), op)
	}
	f := &fork{ForkRequest: req,
		from: req.Dirs.Path(req.Parent.Branch, req.Parent.Incarnation),
		to:   req.Dirs.Path(req.Child.Branch, req.Child.Incarnation),
		data: req.Volumes.Path(req.Child.Volume),
	}
	if err := checkTablespaces(req.Volumes.Path(req.Parent.Volume)); err != nil {
		return ForkResult{}, wrap(err, op)
	}
	for attempt := 1; ; attempt++ {
		res, err := f.try(ctx)
		if err == nil {
			return res, nil
		}
		if cleanErr := f.remove(ctx); cleanErr != nil {
			req.Log.WarnContext(ctx, "what a failed fork made could not be removed", "branch", req.Child.Branch, "error", cleanErr)
		}
		// The parent wrote, and dropped behind a checkpoint, a segment between two looks at its folder.
		var missing *missingError
		faster := req.Running != nil && errors.As(err, &missing) || req.At != nil && errors.Is(err, fs.ErrNotExist)
		if !faster || attempt == forkAttempts {
			return ForkResult{}, wrap(err, op)
		}
		req.Log.InfoContext(ctx, "forking again: the parent was faster", "branch", req.Child.Branch, "error", err)
	}
}

// fork is one call of Fork.
type fork struct {
	ForkRequest
	from, to string // WAL directories of parent and child
	data     string // the child's data directory
}

func (f *fork) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	return errors.Join(f.Volumes.Delete(ctx, f.Child.Volume), f.Dirs.deleteIncarnation(f.Child.Branch, f.Child.Incarnation))
}

func (f *fork) try(ctx context.Context) (ForkResult, error) {
	if err := f.remove(ctx); err != nil {
		return ForkResult{}, err
	}
	if err := f.Dirs.Create(ctx, f.Child.Branch, f.Child.Incarnation); err != nil {
		return ForkResult{}, err
	}
	if err := f.Dirs.mkdir(filepath.Join(f.to, "archive_status")); err != nil {
		return ForkResult{}, err
	}
	switch {
	case f.At != nil:
		return f.moment(ctx)
	case f.Running != nil:
		return f.running(ctx)
	}
	return f.sleeping(ctx)
}

// running forks from a parent that goes on writing. The order matters: see the comments.
func (f *fork) running(ctx context.Context) (ForkResult, error) {
	// Links first: a checkpoint of the parent may drop, from now on, segments that the copy's redo point still needs.
	if err := f.linkSegments(); err != nil {
		return ForkResult{}, err
	}
	c, err := f.copyRunning(ctx, f.linkSegments)
	if err != nil {
		return ForkResult{}, err
	}
	res := ForkResult{LSN: c.end, Time: c.at, Timeline: c.timeline, ReplayLen: uint64(c.end - c.start)}
	if err := f.copyHistories(); err != nil {
		return ForkResult{}, err
	}
	if err := f.takeSegments(ctx, res, c.start, c.control.SegmentSize); err != nil {
		return ForkResult{}, err
	}
	return res, f.finish(ctx, c.label, c.tablespaceMap)
}

// runningCopy is the copy of a running cluster's volume, and the WAL that it needs.
type runningCopy struct {
	start, end           core.LSN
	at                   time.Time // every commit acknowledged by then is before end
	timeline             uint32
	control              ControlInfo // the copy's
	label, tablespaceMap []byte      // of a copy in backup mode
}

// copyRunning copies the volume of a cluster that goes on writing. link is called until the WAL that the copy needs is known.
func (f *fork) copyRunning(ctx context.Context, link func() error) (c runningCopy, err error) {
	if f.Volumes.Atomic() {
		err = f.Volumes.Clone(ctx, f.Parent.Volume, f.Child.Volume)
	} else {
		c.start, c.label, c.tablespaceMap, err = f.backup(ctx, link)
	}
	if err != nil {
		return c, err
	}
	// Only now, after the copy: WAL must reach at least as far as any page in it.
	c.at = time.Now()
	if c.end, c.timeline, err = f.Running.FlushLSN(ctx); err != nil {
		return c, err
	}
	if err := link(); err != nil {
		return c, err
	}
	if c.control, err = f.readControl(ctx); err != nil {
		return c, err
	}
	c.timeline = max(c.timeline, c.control.timeline())
	if c.start == 0 {
		c.start = c.control.Redo
		if c.end <= c.control.Checkpoint {
			return c, fmt.Errorf("WAL is durable up to %s, before the copy's checkpoint at %s", c.end, c.control.Checkpoint)
		}
		// A backup by someone else may have put one here; it says nothing about an atomic copy.
		for _, name := range []string{"backup_label", "tablespace_map"} {
			if err := removeFile(filepath.Join(f.data, name)); err != nil {
				return c, err
			}
		}
	}
	return c, nil
}

// backup copies the volume in backup mode, and meanwhile goes on linking what the parent completes.
func (f *fork) backup(ctx context.Context, link func() error) (start core.LSN, label, tablespaceMap []byte, err error) {
	if start, err = f.Running.StartBackup(ctx, "bough "+f.Child.Branch); err != nil {
		return 0, nil, nil, err
	}
	copied, linked := make(chan struct{}), make(chan error, 1)
	go func() {
		tick := time.NewTicker(linkInterval)
		defer tick.Stop()
		for {
			select {
			case <-copied:
				linked <- nil
				return
			case <-tick.C:
				if err := link(); err != nil {
					linked <- err
					return
				}
			}
		}
	}()
	err = f.Volumes.Clone(ctx, f.Parent.Volume, f.Child.Volume)
	close(copied)
	err = errors.Join(err, <-linked)
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	label, tablespaceMap, stopErr := f.Running.StopBackup(stopCtx)
	if err == nil {
		err = stopErr
	}
	if err == nil && len(label) == 0 {
		err = errors.New("the backup ended without a label")
	}
	return start, label, tablespaceMap, err
}

// sleeping forks from a parent without a process: its end of WAL is found by reading it.
func (f *fork) sleeping(ctx context.Context) (ForkResult, error) {
	at := time.Now()
	if err := f.Volumes.Clone(ctx, f.Parent.Volume, f.Child.Volume); err != nil {
		return ForkResult{}, err
	}
	start, end, timeline, size, err := f.extent(ctx)
	if err != nil {
		return ForkResult{}, err
	}
	res := ForkResult{LSN: end, Time: at, Timeline: timeline, ReplayLen: uint64(end - start)}
	if err := f.copyHistories(); err != nil {
		return ForkResult{}, err
	}
	if err := f.takeSegments(ctx, res, start, size); err != nil {
		return ForkResult{}, err
	}
	return res, f.finish(ctx, nil, nil)
}

// extent says which of the parent's WAL the copy of its volume, which nobody wrote to meanwhile, needs.
func (f *fork) extent(ctx context.Context) (start, end core.LSN, timeline uint32, segmentSize uint64, err error) {
	control, start, timeline, err := f.origin()
	if err != nil {
		return 0, 0, 0, 0, err
	}
	chain, err := readLineage(timeline, control.SegmentSize, f.from)
	if err != nil {
		return 0, 0, 0, 0, err
	}
	if end, err = findEnd(ctx, chain, start); err != nil {
		return 0, 0, 0, 0, err
	}
	if end == start || start == control.Redo && end <= control.Checkpoint {
		return 0, 0, 0, 0, fmt.Errorf("WAL in %s ends at %s, before the checkpoint at %s", f.from, end, control.Checkpoint)
	}
	return start, end, timeline, control.SegmentSize, nil
}

// origin says where the replay of the copy starts, and on which timeline.
func (f *fork) origin() (control ControlInfo, start core.LSN, timeline uint32, err error) {
	if control, err = f.ReadControl(f.data); err != nil {
		return control, 0, 0, err
	}
	start, timeline = control.Redo, control.timeline()
	// A parent that was itself copied in backup mode and has not run yet replays from its label on.
	label, err := readBackupLabel(f.data)
	if err == nil && label != nil {
		start, timeline = label.start, max(timeline, label.timeline)
	}
	return control, start, timeline, err
}

// finish prepares the child's data directory, once its WAL directory holds what its recovery reads.
func (f *fork) finish(ctx context.Context, label, tablespaceMap []byte) error {
	if err := syncPath(f.to); err != nil {
		return err
	}
	if err := checkTablespaces(f.data); err != nil {
		return err
	}
	if err := f.CleanChild(f.data); err != nil {
		return err
	}
	if label != nil {
		if err := f.Dirs.writeFile(filepath.Join(f.data, "backup_label"), label); err != nil {
			return err
		}
	}
	if len(tablespaceMap) > 0 {
		if err := f.Dirs.writeFile(filepath.Join(f.data, "tablespace_map"), tablespaceMap); err != nil {
			return err
		}
	}
	if err := f.replaceWALLink(); err != nil {
		return err
	}
	if err := f.Dirs.writeFile(filepath.Join(f.data, "standby.signal"), nil); err != nil {
		return err
	}
	if err := syncPath(f.data); err != nil {
		return err
	}
	return ctx.Err()
}

// linkSegments links every segment of the parent that the child does not have, complete or not: a link keeps what the
// parent drops. takeSegments later replaces or removes those that the parent still writes.
func (f *fork) linkSegments() error {
	entries, err := os.ReadDir(f.from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if len(e.Name()) != 24 || !e.Type().IsRegular() {
			continue
		}
		err := os.Link(filepath.Join(f.from, e.Name()), filepath.Join(f.to, e.Name()))
		switch {
		case err == nil, errors.Is(err, fs.ErrExist), errors.Is(err, fs.ErrNotExist):
		case isUnlinkable(err): // takeSegments copies it
		default:
			return err
		}
	}
	return nil
}

// takeSegments leaves in the child's directory the segments from start to the fork's LSN: all but the last one linked, the
// last one, which the parent still writes, copied up to the LSN.
func (f *fork) takeSegments(ctx context.Context, res ForkResult, start core.LSN, segmentSize uint64) error {
	chain, err := readLineage(res.Timeline, segmentSize, f.to)
	if err != nil {
		return err
	}
	// What could not be linked is still in the parent's directory, or nowhere.
	source := *chain
	source.dirs = []string{f.from}
	want := map[string]bool{}
	for seg := start.Segment(segmentSize); seg <= (res.LSN - 1).Segment(segmentSize); seg++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		// The parent may have dropped its name, and some links may not have been possible: the newer timeline's file counts.
		have, _ := chain.file(seg)
		inParent, _ := source.file(seg)
		name := max(have, inParent)
		if name == "" {
			return &missingError{f.from, core.WALFileName(res.Timeline, seg, segmentSize)}
		}
		want[name] = true
		from, to := filepath.Join(f.from, name), filepath.Join(f.to, name)
		if have == name {
			from = to
		}
		var err error
		if used := uint64(res.LSN) - seg*segmentSize; used < segmentSize {
			err = f.copySegment(from, to, int64(used), int64(segmentSize))
		} else if have != name {
			if err = os.Link(from, to); isUnlinkable(err) {
				err = f.copySegment(from, to, int64(segmentSize), int64(segmentSize))
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return &missingError{f.from, name}
		}
		if err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(f.to)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if len(e.Name()) == 24 && !want[e.Name()] {
			if err := removeFile(filepath.Join(f.to, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// copySegment copies the first used bytes of a segment and makes the rest a hole: zeros end recovery there, whatever the
// parent has written behind them by now. The name to is replaced, never its old inode written.
func (f *fork) copySegment(from, to string, used, size int64) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	return f.writeSegment(to, size, func(out *os.File) error { return copyRange(in, out, 0, used) })
}

// writeSegment makes a segment of what fill writes, and holes.
func (f *fork) writeSegment(to string, size int64, fill func(out *os.File) error) (err error) {
	tmp := to + ".tmp"
	defer func() {
		if err != nil {
			err = errors.Join(err, removeFile(tmp))
		}
	}()
	out, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = fill(out)
	if err == nil {
		err = out.Truncate(size)
	}
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return fmt.Errorf("write segment %s: %w", to, err)
	}
	if err = f.Dirs.own(tmp); err != nil {
		return err
	}
	return os.Rename(tmp, to)
}

// copyRange copies the bytes [from, to) to the same place, leaving out blocks of zeros: a trimmed segment has holes.
func copyRange(in io.ReaderAt, out *os.File, from, to int64) error {
	buf, zero := make([]byte, holeAlign), make([]byte, holeAlign)
	for pos := from; pos < to; {
		n := int(min(int64(len(buf)), to-pos))
		if read, err := in.ReadAt(buf[:n], pos); read < n {
			return err
		}
		if !bytes.Equal(buf[:n], zero[:n]) {
			if _, err := out.WriteAt(buf[:n], pos); err != nil {
				return err
			}
		}
		pos += int64(n)
	}
	return nil
}

// copyHistories copies the history files of all timelines before the child's own.
func (f *fork) copyHistories() error {
	entries, err := os.ReadDir(f.from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !isHistory(e.Name()) {
			continue
		}
		data, err := os.ReadFile(filepath.Join(f.from, e.Name()))
		if err != nil {
			return err
		}
		if err := f.Dirs.writeFile(filepath.Join(f.to, e.Name()), data); err != nil {
			return err
		}
	}
	return nil
}
