package history

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/boughdb/bough/internal/core"
)

// The archive of an incarnation is a folder beside its WAL directory with another name for every segment that it has
// finished on its own timeline. What came before its fork is in its parent's archive, and the segment being written is in
// the WAL directory only.

// archiveSuffix marks the archive among an incarnation's folders.
const archiveSuffix = ".archive"

// IsArchive tells the folders below a branch's that are archives.
func IsArchive(name string) bool { return filepath.Ext(name) == archiveSuffix }

// ArchivePath is the archive of an incarnation of a branch, whether or not it exists.
func (d *Dirs) ArchivePath(branchID string, incarnation int) string {
	return d.Path(branchID, incarnation) + archiveSuffix
}

// Tail is where the archive of a cluster ends: the segment that it writes. The zero Tail is not known yet.
type Tail struct {
	Timeline    uint32
	Segment     uint64
	SegmentSize uint64
	// Gap says that a segment was gone before it could be archived, so that what is before Segment does not lead up to it.
	Gap bool
}

// LSN is where that segment begins: everything before it is in the archive.
func (t Tail) LSN() core.LSN { return core.LSN(t.Segment * t.SegmentSize) }

// Archive gives every segment that an incarnation has finished since tail another name in its archive, and returns how far
// that is durable. It may be called while the cluster runs, by one at a time. An unchanged tail means that nothing is new,
// which costs a look at one file.
func (d *Dirs) Archive(ctx context.Context, branchID string, incarnation int, tail Tail) (Tail, error) {
	const op = "history.archive"
	wal, archive := d.Path(branchID, incarnation), d.ArchivePath(branchID, incarnation)
	if tail.Timeline == 0 {
		var err error
		if tail, err = firstTail(wal); err != nil || tail.Timeline == 0 {
			return tail, wrap(err, op)
		}
		if err := d.makeArchive(wal, archive, tail.Timeline); err != nil {
			return Tail{}, wrap(err, op)
		}
		last, any, err := lastArchived(archive, tail)
		if err != nil {
			return Tail{}, wrap(err, op)
		}
		if any {
			tail.Gap = tail.Segment > last+1
			tail.Segment = max(tail.Segment, last+1)
		}
	}
	next := tail
	for {
		if err := ctx.Err(); err != nil {
			return tail, err
		}
		// The cluster begins a segment once it has made the one before durable.
		begun, err := segmentBegun(filepath.Join(wal, core.WALFileName(next.Timeline, next.Segment+1, next.SegmentSize)))
		if err != nil {
			return tail, wrap(err, op)
		}
		if !begun {
			break
		}
		name := core.WALFileName(next.Timeline, next.Segment, next.SegmentSize)
		switch err := d.linkInto(wal, archive, name, int64(next.SegmentSize)); {
		case errors.Is(err, fs.ErrNotExist):
			next.Gap = true
		case err != nil:
			return tail, wrap(err, op)
		}
		next.Segment++
	}
	if next.Segment == tail.Segment {
		return tail, nil
	}
	return next, wrap(syncPath(archive), op)
}

// firstTail finds the oldest segment of the newest timeline in a WAL directory that was written.
func firstTail(wal string) (Tail, error) {
	entries, err := os.ReadDir(wal)
	if err != nil {
		return Tail{}, err
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		if len(e.Name()) == 24 && e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	if len(names) == 0 {
		return Tail{}, nil
	}
	newest := names[len(names)-1][:8]
	for _, name := range names {
		if name[:8] != newest {
			continue
		}
		size, err := segmentSize(filepath.Join(wal, name))
		if err != nil || size == 0 {
			return Tail{}, err
		}
		timeline, seg, ok := core.ParseWALFileName(name, size)
		if !ok {
			continue
		}
		return Tail{Timeline: timeline, Segment: seg, SegmentSize: size}, nil
	}
	return Tail{}, nil
}

// lastArchived is the newest segment in an archive of a timeline.
func lastArchived(archive string, tail Tail) (last uint64, any bool, err error) {
	entries, err := os.ReadDir(archive)
	for _, e := range entries {
		if timeline, seg, ok := core.ParseWALFileName(e.Name(), tail.SegmentSize); ok && timeline == tail.Timeline {
			last, any = max(last, seg), true
		}
	}
	return last, any, err
}

// makeArchive makes an archive with the history of its timeline.
func (d *Dirs) makeArchive(wal, archive string, timeline uint32) error {
	if err := os.Mkdir(archive, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	data, err := os.ReadFile(filepath.Join(wal, historyName(timeline)))
	if err == nil {
		err = d.writeFile(filepath.Join(archive, historyName(timeline)), data)
	} else if errors.Is(err, fs.ErrNotExist) { // the first timeline has none
		err = nil
	}
	return errors.Join(err, syncPath(archive), syncPath(filepath.Dir(archive)))
}

// linkInto gives a finished segment another name, or copies it where that is refused. One that is there already is the same.
func (d *Dirs) linkInto(from, to, name string, size int64) error {
	err := os.Link(filepath.Join(from, name), filepath.Join(to, name))
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil
	case errors.Is(err, fs.ErrNotExist):
		if _, there := os.Lstat(filepath.Join(to, name)); there == nil {
			return nil // an earlier call got that far
		}
		return err
	case isUnlinkable(err):
		f := &fork{ForkRequest: ForkRequest{Dirs: d}}
		return f.copySegment(filepath.Join(from, name), filepath.Join(to, name), size, size)
	}
	return err
}

// segmentBegun tells whether a segment was written to: one that was only made ahead is all zeros.
func segmentBegun(path string) (bool, error) {
	size, err := segmentSize(path)
	return size != 0, err
}

// segmentSize reads the size of segments, in bytes, from the header of one; 0 says that nothing was written to it, or that
// there is none.
func segmentSize(path string) (uint64, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var head [longPageHeader]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		if errors.Is(err, io.EOF) {
			return 0, nil
		}
		return 0, err
	}
	if binary.NativeEndian.Uint16(head[:]) == 0 || binary.NativeEndian.Uint16(head[2:])&pageLongHeader == 0 {
		return 0, nil
	}
	size := uint64(binary.NativeEndian.Uint32(head[32:]))
	if size < 1<<20 || size > 1<<30 || size&(size-1) != 0 {
		return 0, fmt.Errorf("%s is not a WAL segment", path)
	}
	return size, nil
}

// Archived is what an archive holds.
type Archived struct {
	Segments int
	Bytes    int64
}

// DropArchived removes the archived segments that keep does not want, at most limit of them, the oldest first, and returns
// what there was before, and how many it removed. keep gets the place of a segment.
func (d *Dirs) DropArchived(ctx context.Context, branchID string, incarnation int, limit int, keep func(from, to core.LSN) bool) (had Archived, n int, err error) {
	const op = "history.drop_archived"
	archive := d.ArchivePath(branchID, incarnation)
	entries, err := os.ReadDir(archive)
	if errors.Is(err, fs.ErrNotExist) {
		return had, 0, nil
	}
	if err != nil {
		return had, 0, wrap(err, op)
	}
	size := uint64(0)
	for _, e := range entries { // sorted by name, so by age
		if err := ctx.Err(); err != nil {
			return had, n, err
		}
		if len(e.Name()) != 24 {
			continue
		}
		path := filepath.Join(archive, e.Name())
		if size == 0 {
			if size, err = segmentSize(path); err != nil || size == 0 {
				return had, n, wrap(err, op)
			}
		}
		_, seg, ok := core.ParseWALFileName(e.Name(), size)
		if !ok {
			continue
		}
		had.Segments++
		had.Bytes += int64(size)
		if n == limit || keep(core.LSN(seg*size), core.LSN((seg+1)*size)) {
			continue
		}
		if err := removeFile(path); err != nil {
			return had, n, wrap(err, op)
		}
		n++
	}
	return had, n, nil
}
