package history

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/internal/storage"
)

func wait(t *testing.T, done func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for !done() {
		select {
		case <-deadline:
			t.Fatal("waited too long")
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// TestTrim: a sleeping branch's WAL is small wherever in a segment it ended, and the cluster starts from it.
func TestTrim(t *testing.T) {
	r := newRig(t, storage.BackendCopy, "")
	s := r.start(t, "p")
	s.exec(t, "CREATE TABLE public.t (n int, pad text)")
	wantKind(t, Trim(t.Context(), r.wal("p"), r.control(t, "p")), core.KindPrecondition)
	rows := 0
	for i := range 6 {
		// About 4 MB a round, so that the end moves through a segment, and once far beyond.
		n := 4000
		if i == 3 {
			n = 60000
		}
		s.exec(t, fmt.Sprintf("INSERT INTO public.t SELECT g, repeat('x', 900) FROM generate_series(1, %d) g", n))
		rows += n
		s.stop(t)
		before := diskUse(t, r.wal("p"))
		must(t, Trim(t.Context(), r.wal("p"), r.control(t, "p")))
		must(t, Trim(t.Context(), r.wal("p"), r.control(t, "p")))
		after := diskUse(t, r.wal("p"))
		t.Logf("ended at %s: %d KiB became %d KiB", r.control(t, "p").Checkpoint, before>>10, after>>10)
		if after > 2<<20 {
			t.Errorf("a sleeping branch keeps %d bytes of WAL", after)
		}
		s = r.start(t, "p")
		if got := s.text(t, "SELECT count(*)::text FROM public.t"); got != fmt.Sprint(rows) {
			t.Fatalf("%s rows after a trim, want %d", got, rows)
		}
	}
	// Crash recovery from a trimmed segment on.
	s.exec(t, "INSERT INTO public.t VALUES (1, '')")
	s.crash(t)
	s = r.start(t, "p")
	if got := s.text(t, "SELECT count(*)::text FROM public.t"); got != fmt.Sprint(rows+1) {
		t.Fatalf("%s rows after a crash, want %d", got, rows+1)
	}
	s.stop(t)
	r.checkSums(t, "p")
}

// TestTrimLeavesSharedSegments: what a child or an archive has linked keeps its past.
func TestTrimLeavesSharedSegments(t *testing.T) {
	r := newRig(t, storage.BackendCopy, "")
	s := r.start(t, "p")
	s.exec(t, "CREATE TABLE public.t AS SELECT g, repeat('x', 900) FROM generate_series(1, 8000) g")
	s.stop(t)
	archive := filepath.Join(r.dir, "archive")
	must(t, os.Mkdir(archive, 0o755))
	for name := range segments(t, r.wal("p")) {
		must(t, os.Link(filepath.Join(r.wal("p"), name), filepath.Join(archive, name)))
	}
	before := hashes(t, archive)
	must(t, Trim(t.Context(), r.wal("p"), r.control(t, "p")))
	wantSameHashes(t, "archive", before, hashes(t, archive))
	r.start(t, "p")
}

// TestTrimAcrossTimelines: a promoted child's WAL is trimmed by its own timeline.
func TestTrimAcrossTimelines(t *testing.T) {
	r := newRig(t, storage.BackendCopy, "")
	r.fork(t, "p", "c", nil)
	s := r.start(t, "c")
	s.exec(t, "CREATE TABLE public.t AS SELECT g, repeat('x', 900) FROM generate_series(1, 8000) g")
	s.stop(t)
	must(t, Trim(t.Context(), r.wal("c"), r.control(t, "c")))
	if use := diskUse(t, r.wal("c")); use > 2<<20 || len(segments(t, r.wal("c"))) != 1 {
		t.Errorf("%d bytes in %v", use, segments(t, r.wal("c")))
	}
	if s = r.start(t, "c"); s.text(t, "SELECT count(*)::text FROM public.t") != "8000" {
		t.Error("rows are missing")
	}
}

// TestFindEnd compares the end that the scanner finds with the one that pg_waldump does.
func TestFindEnd(t *testing.T) {
	r := newRig(t, storage.BackendCopy, "")
	if _, err := os.Stat(r.build.Tool("pg_waldump")); err != nil {
		t.Skip("needs pg_waldump, which no PostgreSQL on this machine has")
	}
	endOf := regexp.MustCompile(`error in WAL record at [^:]*: .* at ([0-9A-F]+/[0-9A-F]+)`)
	for round := range 4 {
		s := r.start(t, "p")
		s.exec(t, "CREATE TABLE IF NOT EXISTS public.t (n int, pad text)")
		s.exec(t, "CHECKPOINT")
		s.exec(t, fmt.Sprintf("INSERT INTO public.t SELECT g, repeat('x', g %% 2000) FROM generate_series(1, %d) g", 700*(round*7+1)))
		if round == 2 {
			s.exec(t, "SELECT pg_switch_wal()")
			s.exec(t, "INSERT INTO public.t VALUES (1, '')")
		}
		s.crash(t)
		control := r.control(t, "p")
		l, err := readLineage(control.timeline(), control.SegmentSize, r.wal("p"))
		must(t, err)
		end, err := findEnd(t.Context(), l, control.Redo)
		must(t, err)
		out, err := exec.Command(r.build.Tool("pg_waldump"), "-q", "-p", r.wal("p"), "-s", control.Redo.String()).CombinedOutput()
		if err == nil {
			t.Fatal("pg_waldump found no end")
		}
		m := endOf.FindStringSubmatch(string(out))
		if m == nil {
			t.Fatalf("cannot read pg_waldump's end: %s", out)
		}
		if m[1] != end.String() {
			t.Errorf("scanned to %s, pg_waldump to %s: %s", end, m[1], out)
		}
	}
}

func TestReadLineage(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "00000003.history"), []byte("1\t0/3000100\tno recovery target specified\n\n2\t0/5000000\tx\n"), 0o600))
	for _, name := range []string{"000000010000000000000002", "000000010000000000000003", "000000020000000000000003", "000000030000000000000005",
		"000000010000000000000005", "000000020000000000000004", "000000030000000000000001"} {
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	l, err := readLineage(3, 16<<20, dir)
	must(t, err)
	names, err := l.files(0x2000028, 0x6000000)
	must(t, err)
	if got, want := fmt.Sprint(names), "[000000010000000000000002 000000020000000000000003 000000020000000000000004 000000030000000000000005]"; got != want {
		t.Errorf("files = %s, want %s", got, want)
	}
	var missing *missingError
	if _, err := l.files(0x1000028, 0x3000000); !errors.As(err, &missing) {
		t.Errorf("error = %v, want a missing segment", err)
	}
	must(t, os.WriteFile(filepath.Join(dir, "00000004.history"), []byte("nonsense\n"), 0o600))
	if _, err := readLineage(4, 16<<20, dir); err == nil {
		t.Error("a damaged history file was accepted")
	}
}

// TestTrimKeepsWhatSlotsNeed: everything from a slot's restart_lsn on can still be read, and what is before goes.
func TestTrimKeepsWhatSlotsNeed(t *testing.T) {
	r := newRig(t, storage.BackendCopy, "")
	s := r.start(t, "p")
	s.exec(t, "CREATE TABLE public.t (n int, pad text)")
	fill := func() {
		t.Helper()
		s.exec(t, "INSERT INTO public.t SELECT g, repeat('x', 900) FROM generate_series(1, 60000) g")
		s.exec(t, "CHECKPOINT")
	}
	fill()
	s.exec(t, "SELECT pg_create_physical_replication_slot('far', true)")
	fill()
	s.exec(t, "SELECT pg_create_physical_replication_slot('near', true)")
	trim := func() ControlInfo {
		t.Helper()
		s.stop(t)
		control := r.control(t, "p")
		var err error
		control.Slots, err = postgres.OldestSlot(r.pool.Path("p"))
		must(t, err)
		for range 2 {
			must(t, Trim(t.Context(), r.wal("p"), control))
		}
		if control.Slots != 0 {
			chain, err := readLineage(control.timeline(), control.SegmentSize, r.wal("p"))
			must(t, err)
			if end, err := findEnd(t.Context(), chain, control.Slots); err != nil || end <= control.Checkpoint {
				t.Errorf("from the slot's %s WAL can be read to %s only, %v; the checkpoint is at %s", control.Slots, end, err, control.Checkpoint)
			}
		}
		return control
	}
	for _, slot := range []string{"far", "near"} {
		control := trim()
		have := segments(t, r.wal("p"))
		if want := int(control.Checkpoint.Segment(control.SegmentSize) - control.Slots.Segment(control.SegmentSize) + 1); len(have) != want {
			t.Errorf("%d segments are kept for the slot %s, want %d", len(have), slot, want)
		}
		s = r.start(t, "p")
		if lost := s.text(t, "SELECT coalesce(string_agg(slot_name, ' '), '') FROM pg_replication_slots WHERE wal_status = 'lost'"); lost != "" {
			t.Errorf("slots lost: %s", lost)
		}
		s.exec(t, "SELECT pg_drop_replication_slot('"+slot+"')")
	}
	s.exec(t, "CHECKPOINT")
	trim()
	if use := diskUse(t, r.wal("p")); use > 2<<20 {
		t.Errorf("%d bytes of WAL are kept for nobody", use)
	}
}
