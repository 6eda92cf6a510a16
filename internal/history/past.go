package history

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/boughdb/bough/internal/core"
)

// Line names one incarnation of a branch in a line of descent.
type Line struct {
	Branch      string
	Incarnation int
}

// Past reads the WAL that leads to an incarnation's present: its own, and that of its ancestors up to where it forked.
type Past struct {
	chain *lineage
}

// OpenPast finds the WAL of lines[0], whose parent is lines[1] and so on. The clusters may run.
func (d *Dirs) OpenPast(lines ...Line) (*Past, error) {
	const op = "history.open_past"
	var dirs []string
	for _, l := range lines {
		if err := checkID(l.Branch); err != nil {
			return nil, wrap(err, op)
		}
		dirs = append(dirs, d.Path(l.Branch, l.Incarnation), d.ArchivePath(l.Branch, l.Incarnation))
	}
	if len(dirs) == 0 {
		return nil, wrap(errors.New("no lines"), op)
	}
	timeline, size, err := newestSegment(dirs[:2])
	if err != nil {
		return nil, wrap(err, op)
	}
	chain, err := readLineage(timeline, size, dirs[0], dirs[1:]...)
	return &Past{chain}, wrap(err, op)
}

// newestSegment returns the newest timeline that has a segment in the folders, and the size of segments.
func newestSegment(dirs []string) (timeline uint32, size uint64, err error) {
	newest := ""
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, 0, err
		}
		for _, e := range entries {
			if len(e.Name()) != 24 || !e.Type().IsRegular() || newest != "" && e.Name()[:8] <= newest[:8] {
				continue
			}
			n, err := segmentSize(filepath.Join(dir, e.Name()))
			if err != nil {
				return 0, 0, err
			}
			if n != 0 {
				newest, size = e.Name(), n
			}
		}
	}
	timeline, _, ok := core.ParseWALFileName(newest, max(size, 1))
	if !ok {
		return 0, 0, fmt.Errorf("there is no WAL in %s", dirs[0])
	}
	return timeline, size, nil
}

// End returns the end of the last valid record, from a place where a record starts.
func (p *Past) End(ctx context.Context, from core.LSN) (core.LSN, error) {
	end, err := findEnd(ctx, p.chain, from)
	return end, wrap(err, "history.end")
}

// GapError says that WAL between two places is not there.
type GapError struct {
	At core.LSN // where the segment begins that is missing
}

func (e *GapError) Error() string {
	return fmt.Sprintf("the WAL from %s on is missing", e.At)
}

// check makes sure that every segment from start to end is there.
func (p *Past) check(start, end core.LSN) error {
	size := core.LSN(p.chain.segmentSize)
	for at := start / size * size; at < end; at += size {
		if _, ok := p.chain.page(at.Segment(p.chain.segmentSize), min(at+size, end)); !ok {
			return &GapError{At: at}
		}
	}
	return nil
}

// Cut returns the end of the last record that ends at or before target: what is before it is all that had been written by
// then. redo is where a record starts, at or before target. The WAL in between must be there, else the error is a GapError.
func (p *Past) Cut(ctx context.Context, redo, target core.LSN) (core.LSN, error) {
	const op = "history.cut"
	if err := p.check(redo, target); err != nil {
		return 0, wrap(err, op)
	}
	start := redo
	for seg := target.Segment(p.chain.segmentSize); core.LSN(seg*p.chain.segmentSize) > redo; seg-- {
		first, ok, err := p.firstRecord(core.LSN(seg * p.chain.segmentSize))
		if err != nil {
			return 0, wrap(err, op)
		}
		if ok && first <= target && first >= redo {
			start = first
			break
		}
	}
	cut := start
	err := p.walk(ctx, start, target, func(r record) bool {
		cut = r.next
		return true
	})
	return cut, wrap(err, op)
}

// firstRecord finds where the first record starts in a segment, from the headers of its pages; ok is false when none does.
func (p *Past) firstRecord(segment core.LSN) (at core.LSN, ok bool, err error) {
	s := &scanner{chain: p.chain}
	defer s.close()
	for pos := segment; pos.Segment(p.chain.segmentSize) == segment.Segment(p.chain.segmentSize); pos = s.pageEnd(pos) {
		hdr, err := s.load(pos)
		if errors.Is(err, errEndOfWAL) {
			return 0, false, nil
		}
		if err != nil {
			return 0, false, err
		}
		rest := uint64(0)
		if binary.NativeEndian.Uint16(s.page[2:])&pageContRecord != 0 {
			rest = uint64(binary.NativeEndian.Uint32(s.page[16:]))
		}
		if rest <= s.pageSize-hdr {
			at := s.pageAt + core.LSN((hdr+rest+recordAlign-1)/recordAlign*recordAlign)
			return at, at < s.pageAt+core.LSN(s.pageSize), nil
		}
	}
	return 0, false, nil
}

// record is one record of the WAL.
type record struct {
	at, next core.LSN // where it starts, and where the next one may
	rmgr     byte
	info     byte
	data     []byte // all of it, with its header; valid during the call
}

// walk calls f for every record that starts at or after from, where a record must start, and ends at or before to, until f
// says that it has seen enough.
func (p *Past) walk(ctx context.Context, from, to core.LSN, f func(record) bool) error {
	s := &scanner{chain: p.chain}
	defer s.close()
	pos, prev := from, core.LSN(0)
	for n := 0; pos < to; n++ {
		if n%1024 == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		at, next, err := s.record(pos, prev)
		if errors.Is(err, errEndOfWAL) {
			return nil
		}
		if err != nil {
			return err
		}
		if s.end > to || !f(record{at: at, next: s.end, rmgr: s.buf[17], info: s.buf[16], data: s.buf}) {
			return nil
		}
		prev, pos = at, next
	}
	return nil
}

// Resource managers and the records of transactions, from src/include/access/rmgrlist.h, xact.h, src/include/catalog/
// pg_control.h and src/include/storage/standbydefs.h of PostgreSQL 14 to 18.
const (
	rmgrXact    = 1
	rmgrStandby = 8

	xactOpMask         = 0x70
	xactCommit         = 0x00
	xactCommitPrepared = 0x30

	xlogFPI = 0xB0
)

// CommitAfter finds the first commit in WAL order that is later than a time, among the records from from, where a record
// starts, up to to. It returns where that commit's record starts: what ends there was committed by then.
func (p *Past) CommitAfter(ctx context.Context, from, to core.LSN, t time.Time) (at core.LSN, found bool, err error) {
	const op = "history.commit_after"
	if err := p.check(from, to); err != nil {
		return 0, false, wrap(err, op)
	}
	err = p.walk(ctx, from, to, func(r record) bool {
		if when, ok := r.commitTime(); ok && when.After(t) {
			at, found = r.at, true
		}
		return !found
	})
	return at, found, wrap(err, op)
}

// postgresEpoch is what timestamps count microseconds from.
var postgresEpoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// commitTime is when a transaction was committed; ok is false for other records.
func (r record) commitTime() (at time.Time, ok bool) {
	if op := r.info & xactOpMask; r.rmgr != rmgrXact || op != xactCommit && op != xactCommitPrepared {
		return at, false
	}
	// Headers of the record's parts come before them all, that of the main data last; see xlogrecord.h. A commit refers to no
	// blocks, and its main data begin with the time.
	for pos := recordHeader; pos < len(r.data); {
		switch r.data[pos] {
		case 255: // XLR_BLOCK_ID_DATA_SHORT
			pos += 2
		case 254: // XLR_BLOCK_ID_DATA_LONG
			pos += 5
		case 253: // XLR_BLOCK_ID_ORIGIN
			pos += 3
			continue
		case 252: // XLR_BLOCK_ID_TOPLEVEL_XID
			pos += 5
			continue
		default:
			return at, false
		}
		if pos+8 > len(r.data) {
			return at, false
		}
		return postgresEpoch.Add(time.Duration(int64(binary.NativeEndian.Uint64(r.data[pos:]))) * time.Microsecond), true
	}
	return at, false
}

// Mentions tells whether bytes occur in the WAL between two places, wherever they lie in records. What it finds may be
// something else that looks the same; what it does not find is not there.
func (p *Past) Mentions(ctx context.Context, from, to core.LSN, what []byte) (bool, error) {
	const op = "history.mentions"
	if err := p.check(from, to); err != nil {
		return false, wrap(err, op)
	}
	s := &scanner{chain: p.chain}
	defer s.close()
	var seam []byte // the end of what was searched, for what lies across pages
	for pos := from; pos < to; pos = s.pageEnd(pos) {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		hdr, err := s.load(pos)
		if errors.Is(err, errEndOfWAL) {
			if s.file != nil && binary.NativeEndian.Uint16(s.page) == 0 {
				seam = seam[:0] // the rest of a segment that was switched
				continue
			}
			return true, nil // who knows
		}
		if err != nil {
			return false, wrap(err, op)
		}
		data := s.page[hdr:]
		seam = append(seam, data[:len(what)-1]...)
		if bytes.Contains(seam, what) || bytes.Contains(data, what) {
			return true, nil
		}
		seam = append(seam[:0], data[len(data)-len(what)+1:]...)
	}
	return false, nil
}

// Written tells whether anything was written before to, and after a snapshot that replays from redo and ends at end, but what
// a server notes for its own recovery. Without a snapshot, redo and end 0, it is since the timeline began.
func (p *Past) Written(ctx context.Context, redo, end, to core.LSN) (bool, error) {
	const op = "history.written"
	from := p.chain.spans[0].begin
	if end > from {
		var err error
		if from, err = p.Cut(ctx, redo, end); err != nil {
			return false, wrap(err, op)
		}
	}
	if to > from && uint64(to-from) > p.chain.segmentSize {
		return true, nil
	}
	written := false
	err := p.walk(ctx, from, to, func(r record) bool {
		own := r.rmgr == rmgrXLog && r.info&0xF0 != xlogFPI || r.rmgr == rmgrStandby
		written = !own
		return !written
	})
	return written, wrap(err, op)
}
