package e2e

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/sdk"
)

// moment is a place in a branch's past, and what is in its diary then.
type moment struct {
	branch string
	lsn    string
	at     time.Time
	rows   int
}

// at makes a branch of a moment, by position or by time.
func (p *project) at(t *testing.T, parent string, lsn string, at *time.Time) (branch, *sdk.BranchCreated) {
	t.Helper()
	b := &sdk.BranchCreate{ParentID: &parent, ParentTimestamp: at}
	if lsn != "" {
		b.ParentLSN = &lsn
	}
	made, err := p.s.CreateBranch(t.Context(), p.ID, sdk.BranchCreateRequest{Branch: b, Endpoints: readWrite()})
	if err != nil {
		t.Fatalf("branch of %s at %s %v: %v", parent, lsn, at, err)
	}
	p.s.wait(t, made.Operations)
	return branch{ID: made.Branch.ID, Endpoint: made.Endpoints[0].ID, URI: (*made.ConnectionUris)[0].ConnectionURI}, made
}

// wantMoment checks that branches of a moment, by position and by time, have what was there and nothing else.
func (p *project) wantMoment(t *testing.T, of string, m moment) {
	t.Helper()
	for _, by := range []string{"lsn", "time"} {
		lsn, at := m.lsn, (*time.Time)(nil)
		if by == "time" {
			lsn, at = "", &m.at
		}
		b, _ := p.at(t, of, lsn, at)
		conn := p.s.connect(t, b.URI)
		if got := value[string](t, conn, "select count(*) || '/' || coalesce(max(n), 0) from diary"); got != fmt.Sprintf("%d/%d", m.rows, m.rows) {
			t.Errorf("branch of %s at %s (%s), by %s, has rows %s, want %d", of, m.lsn, m.at, by, got, m.rows)
		}
		_ = conn.Close(t.Context())
		p.delete(t, b.ID)
	}
}

func (p *project) delete(t *testing.T, branchID string) {
	t.Helper()
	deleted, err := p.s.DeleteBranch(t.Context(), p.ID, branchID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.s.WaitForOperations(t.Context(), deleted.Operations, nil); err != nil && !sdk.IsNotFound(err) {
		t.Error(err)
	}
}

// note writes a row and notes the moment after it.
func note(t *testing.T, conn *pgx.Conn, branchID string, n int) moment {
	t.Helper()
	sql(t, conn, "insert into diary values ($1, repeat(md5($1::int::text), 10))", n)
	return moment{branchID, value[string](t, conn, "select pg_current_wal_insert_lsn()::text"), value[time.Time](t, conn, "select clock_timestamp()"), n}
}

// TestMoments branches from moments of a branch, its child and its grandchild, while they run, sleep, and after a crash.
func TestMoments(t *testing.T) {
	for _, storage := range backends() {
		t.Run(storage, func(t *testing.T) { moments(t, startOn(t, storage)) })
	}
}

func moments(t *testing.T, s *server) {
	p := s.project(t)
	conn := s.connect(t, p.URI)
	sql(t, conn, "create table diary (n int primary key, filler text)")
	began := value[time.Time](t, conn, "select clock_timestamp()")
	var marks []moment
	write := func(conn *pgx.Conn, id string, n int) {
		for range n {
			marks = append(marks, note(t, conn, id, len(marks)+1))
		}
	}
	write(conn, p.Branch, 3)
	sql(t, s.superuser(t, p.Branch), "select pg_switch_wal()")
	write(conn, p.Branch, 2)
	for _, m := range marks {
		p.wantMoment(t, p.Branch, m)
	}
	// The head of a branch that nobody writes to, which also goes on.
	head := marks[len(marks)-1]
	p.wantMoment(t, p.Branch, head)
	_ = conn.Close(t.Context())
	p.suspend(t, p.Endpoint)
	for _, m := range marks {
		p.wantMoment(t, p.Branch, m)
	}
	conn = s.connect(t, p.URI)
	sql(t, conn, "drop role if exists nobody")
	write(conn, p.Branch, 2)

	// A child and a grandchild, and moments before they were.
	child := p.branch(t, p.Branch)
	own := s.connect(t, child.URI)
	write(own, child.ID, 2)
	grandchild := p.branch(t, child.ID)
	_ = own.Close(t.Context())
	p.suspend(t, child.Endpoint)
	own = s.connect(t, grandchild.URI)
	write(own, grandchild.ID, 2)
	sql(t, conn, "insert into diary values (1000, '')") // the root goes another way
	for _, m := range marks {
		p.wantMoment(t, grandchild.ID, m)
	}
	s.Kill9()
	s.Start()
	for _, m := range []moment{marks[1], marks[4], marks[len(marks)-3], marks[len(marks)-1]} {
		p.wantMoment(t, grandchild.ID, m)
	}
	past, _ := p.at(t, grandchild.ID, marks[6].lsn, nil)
	s.sound(t, past.ID)
	p.suspend(t, past.Endpoint)
	s.checksums(t, past.ID)

	// What cannot be reached is refused with what can.
	now := time.Now()
	before, future, early := began.Add(-time.Hour), now.Add(time.Hour), now.Add(-48*time.Hour)
	for name, b := range map[string]sdk.BranchCreate{
		"before the beginning": {ParentTimestamp: &before},
		"out of the window":    {ParentTimestamp: &early},
		"in the future":        {ParentTimestamp: &future},
		"an LSN to come":       {ParentLSN: new("FFFF/0")},
		"an LSN long ago":      {ParentLSN: new("0/1000")},
	} {
		_, err := s.CreateBranch(t.Context(), p.ID, sdk.BranchCreateRequest{Branch: &b})
		var e *sdk.Error
		if !errors.As(err, &e) || e.Status != 400 || !strings.Contains(e.Message, "reaches from 0/") {
			t.Errorf("%s: %v, want a 400 with the range that is possible", name, err)
		}
	}
	s.settled(t)
}

// snapshots are the volumes of history.
func (s *server) snapshots() int {
	n := 0
	for _, name := range folders(s.dir + "/pool/volumes") {
		if strings.HasPrefix(name, "snapshot-") {
			n++
		}
	}
	return n
}

// archived is how many segments the archive of a branch has.
func (s *server) archived(branchID string) int {
	found, _ := filepath.Glob(filepath.Join(s.dir, "wal", branchID, "1.archive", "0*[0-9A-F]"))
	return len(found)
}

// TestHistoryIsKept: snapshots follow what is written, through a kill of the server and a crash of the compute; moments
// before and after each of them are exact; and what is out of the window goes, at once when the window changes.
func TestHistoryIsKept(t *testing.T) {
	for _, storage := range backends() {
		t.Run(storage, func(t *testing.T) {
			historyIsKept(t, startOn(t, storage, "--snapshot-wal", "24MiB"), storage == "btrfs")
		})
	}
}

func historyIsKept(t *testing.T, s *server, cheap bool) {
	p := s.project(t)
	conn := s.connect(t, p.URI)
	sql(t, conn, "create table diary (n int primary key, filler text)")
	sql(t, conn, "create table bulk (n bigint, filler text)")
	var marks []moment
	bulk := func(segments int) {
		sql(t, conn, "insert into bulk select n, repeat(md5(n::text), 30) from generate_series(1, $1::int) n", segments*14000)
	}
	write := func() { marks = append(marks, note(t, conn, p.Branch, len(marks)+1)) }
	write()
	for round := range 3 {
		have := s.snapshots()
		write()
		bulk(3)
		write()
		eventually(t, opLimit, func() string {
			if n := s.snapshots(); n == have && cheap { // dearer ones are rarer
				return fmt.Sprintf("there are still %d snapshots", n)
			}
			return ""
		})
		write()
		switch round {
		case 0:
			s.Kill9()
			conn = s.superuserOf(t, p.Branch, p.Database)
			bulk(2) // while nobody archives
			write()
			s.Start()
			conn = s.connect(t, p.URI)
		case 1:
			_ = conn.Close(t.Context())
			if err := syscall.Kill(s.postmaster(t, p.Branch), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			conn = s.connect(t, p.URI)
		}
	}
	eventually(t, opLimit, func() string {
		if n := s.archived(p.Branch); n < 9 {
			return fmt.Sprintf("the archive has %d segments", n)
		}
		return ""
	})
	for _, m := range marks {
		p.wantMoment(t, p.Branch, m)
	}
	eventually(t, opLimit, func() string { // rows are in the order of the slots' names
		if got := value[[]string](t, s.superuser(t, p.Branch), "select coalesce(array_agg(slot_name::text), '{}') from pg_replication_slots"); len(got) != 1 {
			return fmt.Sprintf("slots: %v", got)
		}
		return ""
	})

	// Without a window nothing is kept, and the head is all there is.
	none := int64(0)
	if _, err := s.UpdateProject(t.Context(), p.ID, sdk.ProjectUpdate{HistoryRetentionSeconds: &none}); err != nil {
		t.Fatal(err)
	}
	eventually(t, opLimit, func() string {
		slots := value[int](t, s.superuser(t, p.Branch), "select count(*) from pg_replication_slots")
		if n, m := s.snapshots(), s.archived(p.Branch); n+m+slots > 0 {
			return fmt.Sprintf("there are %d snapshots, %d archived segments, %d slots", n, m, slots)
		}
		return ""
	})
	if _, err := s.CreateBranch(t.Context(), p.ID, sdk.BranchCreateRequest{Branch: &sdk.BranchCreate{ParentLSN: &marks[1].lsn}}); err == nil ||
		!strings.Contains(err.Error(), "there is only the branch's head") {
		t.Errorf("a moment of a branch without history: %v", err)
	}
	day := int64(86400)
	if _, err := s.UpdateProject(t.Context(), p.ID, sdk.ProjectUpdate{HistoryRetentionSeconds: &day}); err != nil {
		t.Fatal(err)
	}
	eventually(t, opLimit, func() string {
		out, err := s.bough("history", p.Branch, "--json", "--data-dir", s.dir)
		if err != nil || !strings.Contains(out, `"since_lsn"`) {
			return fmt.Sprintf("no moment can be reached yet: %s %v", out, err)
		}
		return ""
	})
	marks = append(marks, note(t, conn, p.Branch, len(marks)+1))
	m := marks[len(marks)-1]
	write()
	p.wantMoment(t, p.Branch, m)
	s.settled(t)
}
