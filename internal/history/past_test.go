package history

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/postgres"
)

// filenode is the number of a relation's file.
func (s *server) filenode(t *testing.T, relation string) int {
	t.Helper()
	var n int
	must(t, s.conn.QueryRow(t.Context(), "SELECT pg_relation_filenode($1::regclass)::int", relation).Scan(&n))
	return n
}

// mark is a moment of a cluster, and what is in its table then.
type mark struct {
	lsn  core.LSN
	at   time.Time
	rows int
}

// diary writes numbered rows and notes the moments between them.
type diary struct {
	s     *server
	rows  int
	marks []mark
}

func (d *diary) write(t *testing.T, n int) {
	t.Helper()
	for range n {
		d.rows++
		d.s.exec(t, fmt.Sprintf("INSERT INTO public.diary VALUES (%d, repeat(md5('%d'), 20))", d.rows, d.rows))
		var at time.Time
		must(t, d.s.conn.QueryRow(t.Context(), "SELECT clock_timestamp()").Scan(&at))
		d.marks = append(d.marks, mark{d.s.lsn(t, "pg_current_wal_insert_lsn()"), at, d.rows})
	}
}

// archive archives what a branch has finished, as the platform does all the time.
func (r *rig) archive(t *testing.T, s *server, tails map[string]Tail) {
	t.Helper()
	id := s.id
	tail, err := r.dirs.Archive(t.Context(), id, 1, tails[id])
	must(t, err)
	lost, err := postgres.HoldHistory(t.Context(), s.conn, tail.LSN())
	must(t, err)
	if known := tails[id].Timeline != 0; lost == known {
		t.Fatalf("the slot of %s was lost: %v", id, lost)
	}
	if tail.Gap {
		t.Fatalf("the archive of %s has a gap before %s", id, tail.LSN())
	}
	tails[id] = tail
}

func (r *rig) snapshot(t *testing.T, of, volume string, running *server) Snapshot {
	t.Helper()
	req := r.request(t, of, volume, running)
	s, err := TakeSnapshot(t.Context(), SnapshotRequest{Of: req.Parent, Volume: volume, Running: req.Running, Volumes: r.pool, Dirs: r.dirs, ReadControl: readControl})
	must(t, err)
	return s
}

// wantRows forks a branch at a moment from a snapshot and checks what is in it.
func (r *rig) wantRows(t *testing.T, name, snapshot string, m Moment, rows int) {
	t.Helper()
	req := r.request(t, "p", name, nil)
	req.Parent.Volume = snapshot
	req.At = &m
	res, err := Fork(t.Context(), req)
	if err != nil {
		t.Fatalf("%s at %s: %v", name, m.LSN, err)
	}
	if res.LSN > m.LSN {
		t.Errorf("%s at %s was cut at %s", name, m.LSN, res.LSN)
	}
	child := r.start(t, name)
	if got := child.text(t, "SELECT count(*) || '/' || coalesce(max(n), 0) FROM public.diary"); got != fmt.Sprintf("%d/%d", rows, rows) {
		t.Errorf("%s at %s has %s rows, want %d", name, m.LSN, got, rows)
	}
	child.stop(t)
	r.checkSums(t, name)
	must(t, r.pool.Delete(t.Context(), name))
	must(t, r.dirs.Delete(t.Context(), name))
}

// TestMoments: a fork at a moment has exactly what was committed by then, wherever the moment lies.
func TestMoments(t *testing.T) {
	eachBackend(t, func(t *testing.T, r *rig) {
		tails := map[string]Tail{}
		p := r.start(t, "p")
		p.exec(t, "CREATE TABLE public.diary (n int PRIMARY KEY, pad text)")
		r.archive(t, p, tails)
		first := r.snapshot(t, "p", "snap-1", p)
		d := &diary{s: p}
		d.write(t, 5)
		p.exec(t, "SELECT pg_switch_wal()")
		d.write(t, 3)
		r.archive(t, p, tails)
		p.exec(t, "CHECKPOINT")
		d.write(t, 2)
		second := r.snapshot(t, "p", "snap-2", p)
		d.write(t, 3)

		lines := []Line{{"p", 1}}
		for i, m := range d.marks {
			if m.lsn >= first.End {
				r.wantRows(t, fmt.Sprintf("a%d", i), "snap-1", Moment{lines, m.lsn}, m.rows)
			}
			if m.lsn >= second.End {
				r.wantRows(t, fmt.Sprintf("b%d", i), "snap-2", Moment{lines, m.lsn}, m.rows)
			}
		}
		// In the middle of a commit's record: it is not there.
		m := d.marks[len(d.marks)-1]
		r.wantRows(t, "mid", "snap-2", Moment{lines, d.marks[len(d.marks)-2].lsn + 8}, m.rows-1)
		past, err := r.dirs.OpenPast(lines...)
		must(t, err)
		for i, m := range d.marks[:len(d.marks)-1] {
			at, found, err := past.CommitAfter(t.Context(), first.Redo, p.lsn(t, "pg_current_wal_flush_lsn()"), m.at)
			must(t, err)
			if next := d.marks[i+1]; !found || at < m.lsn || at >= next.lsn {
				t.Errorf("the first commit after %s is at %s (%v), want between %s and %s", m.at, at, found, m.lsn, next.lsn)
			}
		}
		if _, found, err := past.CommitAfter(t.Context(), first.Redo, p.lsn(t, "pg_current_wal_flush_lsn()"), d.marks[len(d.marks)-1].at); err != nil || found {
			t.Errorf("there is a commit after the last one (%v)", err)
		}
		// A name in the WAL is found, one that was never there is not.
		needle := binary.NativeEndian.AppendUint32(nil, uint32(p.filenode(t, "public.diary")))
		head := p.lsn(t, "pg_current_wal_flush_lsn()")
		for _, c := range []struct {
			what []byte
			want bool
		}{{append([]byte(nil), needle...), true}, {[]byte("\x80\x06\x00\x00\x00\x00\x00\x00\xd4\x17\x00\x00"), false}} {
			if got, err := past.Mentions(t.Context(), first.Redo, head, c.what); err != nil || got != c.want {
				t.Errorf("the WAL mentions %x: %v (%v), want %v", c.what, got, err, c.want)
			}
		}
		p.exec(t, "CREATE SUBSCRIPTION s CONNECTION 'host=/nowhere' PUBLICATION p WITH (connect = false)")
		if got, err := past.Mentions(t.Context(), head, p.lsn(t, "pg_current_wal_flush_lsn()"), []byte("\x80\x06\x00\x00\x00\x00\x00\x00\xd4\x17\x00\x00")); err != nil || !got {
			t.Errorf("a new subscription is not found in the WAL (%v)", err)
		}
		// Without a segment in between the plan fails, and leaves nothing.
		lost := core.WALFileName(tails["p"].Timeline, first.Redo.Segment(tails["p"].SegmentSize), tails["p"].SegmentSize)
		for _, dir := range []string{r.dirs.Path("p", 1), r.dirs.ArchivePath("p", 1)} {
			if err := os.Rename(filepath.Join(dir, lost), filepath.Join(r.dir, "lost")); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
		}
		req := r.request(t, "p", "gap", nil)
		req.Parent.Volume, req.At = "snap-1", &Moment{lines, m.lsn}
		if _, err := Fork(t.Context(), req); !IsGap(err) {
			t.Errorf("a fork over a gap: %v", err)
		}
		r.wantNothing(t, "gap")
	})
}

// TestMomentsOfDescendants: moments before and after forks, of branches that sleep and were trimmed.
func TestMomentsOfDescendants(t *testing.T) {
	eachBackend(t, func(t *testing.T, r *rig) {
		tails := map[string]Tail{}
		var d diary
		var forks []core.LSN
		lines := []Line{}
		for i, id := range []string{"p", "c", "g"} {
			if i > 0 {
				forks = append(forks, r.fork(t, lines[0].Branch, id, nil).LSN)
			}
			lines = append([]Line{{id, 1}}, lines...)
			s := r.start(t, id)
			if i == 0 {
				s.exec(t, "CREATE TABLE public.diary (n int PRIMARY KEY, pad text)")
				s.exec(t, "CHECKPOINT")
				r.archive(t, s, tails)
				r.snapshot(t, id, "base", s)
			}
			d.s = s
			d.write(t, 2)
			if i != 1 { // the child's only segment stays the one that it forked in
				s.exec(t, "SELECT pg_switch_wal()")
				d.write(t, 2)
			}
			r.archive(t, s, tails)
			s.stop(t)
			control := r.control(t, id)
			if control.History = 1; i > 0 {
				control.History = forks[i-1]
			}
			must(t, Trim(t.Context(), r.wal(id), control))
		}
		for i, m := range d.marks {
			r.wantRows(t, fmt.Sprintf("m%d", i), "base", Moment{lines, m.lsn}, m.rows)
		}
		for i, at := range forks {
			rows := 0
			for _, m := range d.marks {
				if m.lsn <= at {
					rows = m.rows
				}
			}
			r.wantRows(t, fmt.Sprintf("f%d", i), "base", Moment{lines, at}, rows)
		}
	})
}
