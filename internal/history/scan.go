package history

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"

	"github.com/boughdb/bough/internal/core"
)

// The layout of WAL in PostgreSQL 14 to 18, from src/include/access/xlog_internal.h and xlogrecord.h.
const (
	shortPageHeader = 24
	longPageHeader  = 40 // on the first page of a segment
	recordHeader    = 24
	recordCRCOffset = 20
	recordAlign     = 8

	pageContRecord      = 0x0001 // XLP_FIRST_IS_CONTRECORD
	pageLongHeader      = 0x0002 // XLP_LONG_HEADER
	pageOverwriteRecord = 0x0008 // XLP_FIRST_IS_OVERWRITE_CONTRECORD

	rmgrXLog   = 0
	xlogSwitch = 0x40 // XLOG_SWITCH

	maxRecord = 1 << 30
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errEndOfWAL says that no valid record starts where one was looked for.
var errEndOfWAL = errors.New("end of WAL")

// scanner walks the records of a chain of segments, with the checks that PostgreSQL's own recovery makes, so that it finds
// the same end.
type scanner struct {
	chain    *lineage
	file     *os.File
	fileSeg  uint64
	fileSpan int // of chain
	page     []byte
	pageAt   core.LSN // where page starts; valid when loaded
	loaded   bool
	pageSize uint64
	buf      []byte
	end      core.LSN // of the last record read, padding included; see record for where the next one may start
}

// findEnd returns the end of the last valid record, reading from start, where a record must start. It is start itself when
// there is none.
func findEnd(ctx context.Context, chain *lineage, start core.LSN) (core.LSN, error) {
	s := &scanner{chain: chain}
	defer s.close()
	pos, prev := start, core.LSN(0)
	for n := 0; ; n++ {
		if n%1024 == 0 {
			if err := ctx.Err(); err != nil {
				return 0, err
			}
		}
		at, next, err := s.record(pos, prev)
		if errors.Is(err, errEndOfWAL) {
			return pos, nil
		}
		if err != nil {
			return 0, err
		}
		prev, pos = at, next
	}
}

func (s *scanner) close() {
	if s.file != nil {
		s.file.Close()
	}
}

// record reads the record at pos and returns where it starts, which is after a page header at pos, and where the next one
// may. prev is the start of the record before, 0 when unknown.
func (s *scanner) record(pos, prev core.LSN) (at, next core.LSN, err error) {
	hdr, err := s.load(pos)
	if err != nil {
		return 0, 0, err
	}
	if off := uint64(pos - s.pageAt); off < hdr {
		pos = s.pageAt + core.LSN(hdr)
	}
	at = pos
	off := uint64(pos - s.pageAt)
	total := binary.NativeEndian.Uint32(s.page[off:]) // alignment keeps the length on one page
	if total < recordHeader || total > maxRecord {
		return 0, 0, errEndOfWAL
	}
	s.buf = s.buf[:0]
	for {
		take := min(uint64(total)-uint64(len(s.buf)), s.pageSize-off)
		s.buf = append(s.buf, s.page[off:off+take]...)
		pos = s.pageAt + core.LSN(off+take)
		if len(s.buf) == int(total) {
			break
		}
		// The header, once complete, is checked before a wrong length is followed.
		if len(s.buf) >= recordHeader && prev != 0 && s.prev() != prev {
			return 0, 0, errEndOfWAL
		}
		hdr, err := s.load(pos)
		if err != nil {
			return 0, 0, err
		}
		info := binary.NativeEndian.Uint16(s.page[2:])
		if info&pageOverwriteRecord != 0 {
			// The server crashed in the middle of this record once, and went on here without its rest.
			return s.record(pos, prev)
		}
		if info&pageContRecord == 0 || binary.NativeEndian.Uint32(s.page[16:]) != total-uint32(len(s.buf)) {
			return 0, 0, errEndOfWAL
		}
		off = hdr
	}
	if prev != 0 && s.prev() != prev {
		return 0, 0, errEndOfWAL
	}
	crc := crc32.Checksum(s.buf[recordHeader:], castagnoli)
	crc = crc32.Update(crc, castagnoli, s.buf[:recordCRCOffset])
	if crc != binary.NativeEndian.Uint32(s.buf[recordCRCOffset:]) {
		return 0, 0, errEndOfWAL
	}
	next = (pos + recordAlign - 1) / recordAlign * recordAlign
	s.end = next
	if s.buf[17] == rmgrXLog && s.buf[16]&0xF0 == xlogSwitch {
		size := core.LSN(s.chain.segmentSize)
		next = (next + size - 1) / size * size // the rest of the segment is unused
	}
	return at, next, nil
}

// prev is the record's own idea of where the record before it starts.
func (s *scanner) prev() core.LSN { return core.LSN(binary.NativeEndian.Uint64(s.buf[8:])) }

// load reads the page that holds pos and returns the length of its header.
func (s *scanner) load(pos core.LSN) (uint64, error) {
	seg := pos.Segment(s.chain.segmentSize)
	if s.file == nil || s.fileSeg != seg || s.fileSpan != s.chain.span(s.pageEnd(pos)) {
		if err := s.open(pos); err != nil {
			return 0, err
		}
	}
	start := core.LSN(uint64(pos) / s.pageSize * s.pageSize)
	if !s.loaded || s.pageAt != start {
		s.loaded = false
		if _, err := s.file.ReadAt(s.page, int64(uint64(start)%s.chain.segmentSize)); err != nil {
			if errors.Is(err, io.EOF) {
				return 0, errEndOfWAL
			}
			return 0, err
		}
		s.pageAt, s.loaded = start, true
	}
	if binary.NativeEndian.Uint16(s.page) == 0 || core.LSN(binary.NativeEndian.Uint64(s.page[8:])) != start {
		return 0, errEndOfWAL
	}
	if binary.NativeEndian.Uint16(s.page[2:])&pageLongHeader != 0 {
		return longPageHeader, nil
	}
	return shortPageHeader, nil
}

// pageEnd is where the page ends that holds pos. Before the first file was opened it takes the size that all servers have.
func (s *scanner) pageEnd(pos core.LSN) core.LSN {
	size := core.LSN(cmp.Or(s.pageSize, 8192))
	return (pos/size + 1) * size
}

// open goes to the file that holds a position; its first page says how large pages are.
func (s *scanner) open(pos core.LSN) error {
	s.close()
	s.file, s.loaded = nil, false
	seg := pos.Segment(s.chain.segmentSize)
	var f *os.File
	var path string
	for try := 1; f == nil; try++ {
		var ok bool
		if path, ok = s.chain.page(seg, s.pageEnd(pos)); !ok {
			return errEndOfWAL
		}
		var err error
		// A server drops a name that it does not need any more; the archive has another.
		if f, err = os.Open(path); errors.Is(err, fs.ErrNotExist) && try == forkAttempts {
			return errEndOfWAL
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	s.file, s.fileSeg, s.fileSpan = f, seg, s.chain.span(s.pageEnd(pos))
	var head [longPageHeader]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		if errors.Is(err, io.EOF) {
			return errEndOfWAL
		}
		return err
	}
	if binary.NativeEndian.Uint16(head[2:])&pageLongHeader == 0 {
		return errEndOfWAL // pre-allocated, not written yet
	}
	if size := binary.NativeEndian.Uint32(head[32:]); uint64(size) != s.chain.segmentSize {
		return fmt.Errorf("segment %s is of size %d, the cluster's are %d", path, size, s.chain.segmentSize)
	}
	size := uint64(binary.NativeEndian.Uint32(head[36:]))
	if size < 1024 || size > 64<<10 || size&(size-1) != 0 {
		return errEndOfWAL
	}
	if s.pageSize != size {
		s.pageSize, s.page = size, make([]byte, size)
	}
	return nil
}
