package history

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boughdb/bough/internal/core"
)

// A branch at a moment is a fork like any other: of a snapshot's volume instead of the parent's, with WAL from its redo point
// up to the moment, which is where the copy of the last segment ends. Its first start replays what is in pg_wal and is
// promoted. So there is no recovery target that could be missed, and nothing that a later start must not see any more.

// Moment is a place in the past of a line of descent.
type Moment struct {
	Lines []Line   // the incarnation whose past it is, then its ancestors as far as the WAL is needed
	LSN   core.LSN // everything that ends at or before it is in the child, nothing after it; at or past the snapshot's end
}

// moment forks from a snapshot, the parent of the request.
func (f *fork) moment(ctx context.Context) (ForkResult, error) {
	past, err := f.Dirs.OpenPast(f.At.Lines...)
	if err != nil {
		return ForkResult{}, err
	}
	if err := f.Volumes.Clone(ctx, f.Parent.Volume, f.Child.Volume); err != nil {
		return ForkResult{}, err
	}
	control, start, _, err := f.origin()
	if err != nil {
		return ForkResult{}, err
	}
	cut, err := past.Cut(ctx, start, f.At.LSN)
	if err != nil {
		return ForkResult{}, err
	}
	if start == control.Redo && cut <= control.Checkpoint {
		return ForkResult{}, fmt.Errorf("the moment %s is before the checkpoint at %s of the snapshot %s", f.At.LSN, control.Checkpoint, f.Parent.Volume)
	}
	if err := f.takePast(ctx, past.chain, start, cut); err != nil {
		return ForkResult{}, err
	}
	res := ForkResult{LSN: cut, Timeline: past.chain.spans[past.chain.span(cut)].timeline, ReplayLen: uint64(cut - start)}
	return res, f.finish(ctx, nil, nil)
}

// takePast puts into the child's directory the WAL from start to cut: finished segments as links, the last one as a copy, and
// the history of its timelines.
func (f *fork) takePast(ctx context.Context, chain *lineage, start, cut core.LSN) error {
	size := core.LSN(chain.segmentSize)
	newest := chain.span(cut)
	for _, s := range chain.spans[newest:] {
		path, ok := chain.find(historyName(s.timeline))
		if !ok {
			continue // the first timeline, or one so old that nothing of it is needed
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := f.Dirs.writeFile(filepath.Join(f.to, historyName(s.timeline)), data); err != nil {
			return err
		}
	}
	for at := start / size * size; at < cut; at += size {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := f.takeSegment(chain, at, min(at+size, cut)); err != nil {
			return err
		}
	}
	return nil
}

// takeSegment puts one segment into the child's directory, up to end.
func (f *fork) takeSegment(chain *lineage, at, end core.LSN) error {
	size := core.LSN(chain.segmentSize)
	seg := at.Segment(chain.segmentSize)
	own := chain.spans[chain.span(end)]
	path, ok := chain.page(seg, end)
	if !ok {
		return &GapError{At: at}
	}
	// Recovery looks for a segment on the newest timeline that had begun by its end.
	to := filepath.Join(f.to, core.WALFileName(own.timeline, seg, chain.segmentSize))
	whole := end == at+size
	if own.begin > at && whole {
		holes, err := hasHole(path, int64(own.begin-at))
		if err != nil {
			return err
		}
		whole = !holes
	}
	if whole {
		err := os.Link(path, to)
		if err == nil || !isUnlinkable(err) {
			return err
		}
	}
	// In parts, each from the file of the timeline that wrote it.
	return f.writeSegment(to, int64(size), func(out *os.File) error {
		for from := at; from < end; {
			const page = 8192 // no part is smaller
			k := chain.span(from + page)
			till := end
			if k > 0 && chain.spans[k-1].begin < end {
				till = chain.spans[k-1].begin / page * page
			}
			part, ok := chain.page(seg, min(from+page, end))
			if !ok {
				return &GapError{At: at}
			}
			in, err := os.Open(part)
			if err != nil {
				return err
			}
			err = copyRange(in, out, int64(from-at), int64(till-at))
			if err = errors.Join(err, in.Close()); err != nil {
				return err
			}
			from = till
		}
		return nil
	})
}

// hasHole tells whether a file has a hole before an offset.
func hasHole(path string, before int64) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	at, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_HOLE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return true, nil // it does not tell
	}
	return at < before, err
}

// SnapshotRequest says of what to keep a copy, and as what.
type SnapshotRequest struct {
	Of      Ref
	Volume  string // the snapshot's
	Running Source // nil: the cluster has no process and gets none until Snapshot returns

	Volumes     Volumes
	Dirs        *Dirs
	ReadControl func(dataDir string) (ControlInfo, error)
}

// Snapshot is a copy of a volume. With the WAL from Redo on it is the state of any moment at or after End.
type Snapshot struct {
	Redo, End core.LSN
	At        time.Time // every commit before End was made by then
	Timeline  uint32
	Took      time.Duration
}

// TakeSnapshot copies the volume of a branch for later forks of its past, and leaves it as it was when the server stopped or
// crashed. What an interrupted call left under the name is replaced; on an error nothing is there.
func TakeSnapshot(ctx context.Context, req SnapshotRequest) (s Snapshot, err error) {
	const op = "history.snapshot"
	f := &fork{
		ForkRequest: ForkRequest{
			Parent: req.Of, Child: Ref{Volume: req.Volume, Branch: req.Of.Branch}, Running: req.Running,
			Volumes: req.Volumes, Dirs: req.Dirs, ReadControl: req.ReadControl,
		},
		from: req.Dirs.Path(req.Of.Branch, req.Of.Incarnation),
		data: req.Volumes.Path(req.Volume),
	}
	if err := checkTablespaces(req.Volumes.Path(req.Of.Volume)); err != nil {
		return s, wrap(err, op)
	}
	if err := f.Volumes.Delete(ctx, req.Volume); err != nil {
		return s, wrap(err, op)
	}
	defer func() {
		if err != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
			defer cancel()
			err = wrap(errors.Join(err, f.Volumes.Delete(ctx, req.Volume)), op)
		}
	}()
	began := time.Now()
	if req.Running == nil {
		if err := f.Volumes.Clone(ctx, req.Of.Volume, req.Volume); err != nil {
			return s, err
		}
		if s.Redo, s.End, s.Timeline, _, err = f.extent(ctx); err != nil {
			return s, err
		}
	} else {
		c, err := f.copyRunning(ctx, func() error { return nil }) // the archive and the platform's slot keep its WAL
		if err != nil {
			return s, err
		}
		if c.label != nil {
			if err := f.Dirs.writeFile(filepath.Join(f.data, "backup_label"), c.label); err != nil {
				return s, err
			}
		}
		if len(c.tablespaceMap) > 0 {
			if err := f.Dirs.writeFile(filepath.Join(f.data, "tablespace_map"), c.tablespaceMap); err != nil {
				return s, err
			}
		}
		if err := syncPath(f.data); err != nil {
			return s, err
		}
		s.Redo, s.End, s.Timeline = c.start, c.end, c.timeline
	}
	s.At = time.Now()
	s.Took = s.At.Sub(began)
	return s, nil
}

// IsGap tells that an error is one of missing WAL.
func IsGap(err error) bool {
	var gap *GapError
	var missing *missingError
	return errors.As(err, &gap) || errors.As(err, &missing) || errors.Is(err, fs.ErrNotExist)
}
