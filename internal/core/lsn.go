package core

import (
	"fmt"
	"strconv"
	"strings"
)

// LSN is a byte position in the write-ahead log, as PostgreSQL's pg_lsn.
type LSN uint64

// ParseLSN reads the text form "16/B374D848": two hexadecimal halves of at most eight digits.
func ParseLSN(s string) (LSN, error) {
	hi, lo, ok := strings.Cut(s, "/")
	if !ok || hi == "" || lo == "" || len(hi) > 8 || len(lo) > 8 {
		return 0, Invalidf("%q is not an LSN; expected a value like 0/1A7F730", s)
	}
	h, err1 := strconv.ParseUint(hi, 16, 32)
	l, err2 := strconv.ParseUint(lo, 16, 32)
	if err1 != nil || err2 != nil {
		return 0, Invalidf("%q is not an LSN; expected a value like 0/1A7F730", s)
	}
	return LSN(h<<32 | l), nil
}

// String is the text form that PostgreSQL prints.
func (l LSN) String() string { return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l)) }

// Segment is the number of the WAL segment that holds the byte at l, for segments of segSize bytes.
func (l LSN) Segment(segSize uint64) uint64 { return uint64(l) / segSize }

// WALFileName is the name of segment number seg on a timeline.
func WALFileName(timeline uint32, seg, segSize uint64) string {
	perID := uint64(0x100000000) / segSize
	return fmt.Sprintf("%08X%08X%08X", timeline, uint32(seg/perID), uint32(seg%perID))
}

// ParseWALFileName splits a segment's file name; ok is false for anything else (history files, partial segments).
func ParseWALFileName(name string, segSize uint64) (timeline uint32, seg uint64, ok bool) {
	if len(name) != 24 {
		return 0, 0, false
	}
	var parts [3]uint64
	for i := range parts {
		v, err := strconv.ParseUint(name[i*8:i*8+8], 16, 32)
		if err != nil {
			return 0, 0, false
		}
		parts[i] = v
	}
	perID := uint64(0x100000000) / segSize
	if parts[2] >= perID {
		return 0, 0, false
	}
	return uint32(parts[0]), parts[1]*perID + parts[2], true
}
