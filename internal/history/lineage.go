package history

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/boughdb/bough/internal/core"
)

// lineage is the timelines that a cluster's WAL runs through, and the folders that it is in.
type lineage struct {
	dirs        []string // where a file is looked for, in this order; the first is the cluster's own
	segmentSize uint64
	spans       []span // newest first
}

// span is the part of the WAL that a timeline wrote: from begin on.
type span struct {
	timeline uint32
	begin    core.LSN
}

// readLineage reads the history file of a timeline, as PostgreSQL's readTimeLineHistory does: lines of an ancestor's id, the
// LSN where it was left, and a reason. Timeline 1 has none; a missing one means that nothing older is needed.
func readLineage(timeline uint32, segmentSize uint64, dir string, more ...string) (*lineage, error) {
	if timeline == 0 || segmentSize == 0 || segmentSize&(segmentSize-1) != 0 {
		return nil, fmt.Errorf("control data: timeline %d, WAL segments of %d bytes", timeline, segmentSize)
	}
	l := &lineage{dirs: append([]string{dir}, more...), segmentSize: segmentSize}
	var data []byte
	if path, ok := l.find(historyName(timeline)); ok {
		var err error
		if data, err = os.ReadFile(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	begin := core.LSN(0)
	var older []span
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 2 {
			return nil, fmt.Errorf("%s: cannot read %q", historyName(timeline), line)
		}
		id, err := strconv.ParseUint(fields[0], 10, 32)
		if err != nil {
			return nil, fmt.Errorf("%s: cannot read %q", historyName(timeline), line)
		}
		end, err := core.ParseLSN(fields[1])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", historyName(timeline), err)
		}
		older = append(older, span{uint32(id), begin})
		begin = end
	}
	l.spans = append(l.spans, span{timeline, begin})
	for i := len(older) - 1; i >= 0; i-- {
		l.spans = append(l.spans, older[i])
	}
	return l, sc.Err()
}

func historyName(timeline uint32) string { return fmt.Sprintf("%08X.history", timeline) }

func isHistory(name string) bool {
	id, ok := strings.CutSuffix(name, ".history")
	if !ok || len(id) != 8 {
		return false
	}
	_, err := strconv.ParseUint(id, 16, 32)
	return err == nil
}

// find returns where a file of that name is.
func (l *lineage) find(name string) (path string, ok bool) {
	for _, dir := range l.dirs {
		path := filepath.Join(dir, name)
		if _, err := os.Lstat(path); err == nil {
			return path, true
		}
	}
	return "", false
}

// file names the file that recovery reads for a segment: of the newest timeline that had begun by then and has one.
func (l *lineage) file(seg uint64) (name string, ok bool) {
	for _, s := range l.spans {
		if s.begin.Segment(l.segmentSize) > seg {
			continue
		}
		name := core.WALFileName(s.timeline, seg, l.segmentSize)
		if _, ok := l.find(name); ok {
			return name, true
		}
	}
	return "", false
}

// span is the newest timeline that had begun before end, as an index of spans.
func (l *lineage) span(end core.LSN) int {
	for i, s := range l.spans {
		if s.begin < end {
			return i
		}
	}
	return len(l.spans) - 1
}

// page returns the file that has a part of a segment which ends at end. It is that of the timeline which wrote it, where
// it exists: what a newer one has before its own beginning may have been given back; see Trim.
func (l *lineage) page(seg uint64, end core.LSN) (path string, ok bool) {
	own := l.span(end)
	for _, s := range l.spans[own:] {
		if path, ok := l.find(core.WALFileName(s.timeline, seg, l.segmentSize)); ok {
			return path, true
		}
	}
	for i := own - 1; i >= 0; i-- {
		if l.spans[i].begin.Segment(l.segmentSize) > seg {
			break
		}
		if path, ok := l.find(core.WALFileName(l.spans[i].timeline, seg, l.segmentSize)); ok {
			return path, true
		}
	}
	return "", false
}

// missingError says that a segment which a fork needs is not there.
type missingError struct {
	dir string
	seg string
}

func (e *missingError) Error() string {
	return fmt.Sprintf("WAL segment %s is missing in %s", e.seg, e.dir)
}

// files names the segments that hold the WAL from start up to, not including, end.
func (l *lineage) files(start, end core.LSN) ([]string, error) {
	if start >= end {
		return nil, fmt.Errorf("WAL ends at %s, before the redo point %s", end, start)
	}
	var names []string
	for seg := start.Segment(l.segmentSize); seg <= (end - 1).Segment(l.segmentSize); seg++ {
		name, ok := l.file(seg)
		if !ok {
			return nil, &missingError{l.dirs[0], core.WALFileName(l.spans[0].timeline, seg, l.segmentSize)}
		}
		names = append(names, name)
	}
	return names, nil
}

// isUnlinkable tells whether a hard link is refused for a reason that a copy does not have.
func isUnlinkable(err error) bool {
	return errors.Is(err, unix.EMLINK) || errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP)
}
