package e2e

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/boughdb/bough/sdk"
)

// lsn reads a log sequence number like 0/1A2B3C4.
func lsn(t *testing.T, text *string) uint64 {
	t.Helper()
	if text == nil {
		t.Fatal("there is no LSN")
	}
	hi, lo, ok := strings.Cut(*text, "/")
	h, err1 := strconv.ParseUint(hi, 16, 32)
	l, err2 := strconv.ParseUint(lo, 16, 32)
	if !ok || err1 != nil || err2 != nil {
		t.Fatalf("%q is not an LSN", *text)
	}
	return h<<32 | l
}

// TestBranchHoldsEveryAcknowledgedCommit branches a parent that is being written to: each child has every row that was
// acknowledged before its call, without a gap, and is sound.
func TestBranchHoldsEveryAcknowledgedCommit(t *testing.T) {
	for _, storage := range backends() {
		t.Run(storage, func(t *testing.T) { branchUnderWrites(t, startOn(t, storage)) })
	}
}

func branchUnderWrites(t *testing.T, s *server) {
	const writers, branches, atOnce = 4, 20, 2
	p := s.project(t)
	sql(t, s.connect(t, p.URI), "create table journal (writer int, n int, filler text, primary key (writer, n))")

	var acked [writers]atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	var writing sync.WaitGroup
	for w := range writers {
		conn := s.connect(t, p.URI)
		writing.Go(func() {
			for n := 1; ctx.Err() == nil; n++ {
				// Not ctx: a statement in flight at the end is let through.
				_, err := conn.Exec(t.Context(), "insert into journal values ($1, $2, repeat('x', 200))", w, n)
				if err != nil {
					t.Errorf("writer %d: %v", w, err)
					return
				}
				acked[w].Store(int64(n))
			}
		})
	}
	defer writing.Wait()
	defer stop()

	check := func(t *testing.T, made *sdk.BranchCreated, before [writers]int64) {
		conn := s.connect(t, (*made.ConnectionUris)[0].ConnectionURI)
		for w, want := range before {
			var count, last int64
			if err := conn.QueryRow(t.Context(), "select count(*), coalesce(max(n), 0) from journal where writer = $1", w).Scan(&count, &last); err != nil {
				t.Fatal(err)
			}
			if last < want || count != last {
				t.Errorf("branch %s: writer %d had %d rows acknowledged before the call; the branch has %d rows up to %d", made.Branch.ID, w, want, count, last)
			}
		}
		sql(t, conn, "insert into journal values (-1, 1, 'child')") // it is writable
		_ = conn.Close(t.Context())
	}
	slots := make(chan struct{}, atOnce)
	var checking sync.WaitGroup
	defer checking.Wait()
	total := func() (sum int64) {
		for w := range acked {
			sum += acked[w].Load()
		}
		return sum
	}
	for i := range branches {
		slots <- struct{}{}
		// A moment that the writers choose: some more rows than at the last one.
		from := total()
		eventually(t, opLimit, func() string {
			if t.Failed() {
				t.FailNow()
			}
			if now := total(); now < from+int64(7*i%50) {
				return fmt.Sprintf("the writers wrote %d rows only", now-from)
			}
			return ""
		})
		var before [writers]int64
		for w := range acked {
			before[w] = acked[w].Load()
		}
		made, err := s.CreateBranch(t.Context(), p.ID, sdk.BranchCreateRequest{Endpoints: readWrite()})
		if err != nil {
			t.Fatal(err)
		}
		checking.Go(func() {
			defer func() { <-slots }()
			wait, cancel := context.WithTimeout(t.Context(), opLimit)
			defer cancel()
			if _, err := s.WaitForOperations(wait, made.Operations, nil); err != nil {
				t.Error(err)
				return
			}
			ready, err := s.Branch(t.Context(), p.ID, made.Branch.ID)
			if err != nil || lsn(t, ready.ParentLSN) < lsn(t, made.Branch.ParentLSN) {
				t.Errorf("the branch forked at %v, before the call's %v: %v", *ready.ParentLSN, *made.Branch.ParentLSN, err)
			}
			check(t, made, before)
			if i == branches/2 {
				s.sound(t, made.Branch.ID)
			}
			deleted, err := s.DeleteBranch(t.Context(), p.ID, made.Branch.ID)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := s.WaitForOperations(wait, deleted.Operations, nil); err != nil && !sdk.IsNotFound(err) {
				t.Error(err)
			}
		})
	}
	checking.Wait()
	stop()
	writing.Wait()
	conn := s.connect(t, p.URI)
	for w := range acked {
		if n := value[int64](t, conn, "select count(*) from journal where writer = $1", w); n != acked[w].Load() {
			t.Errorf("the parent has %d of writer %d's %d rows", n, w, acked[w].Load())
		}
	}
	if n := value[int](t, conn, "select count(*) from journal where writer < 0"); n != 0 {
		t.Errorf("%d rows of children are in the parent", n)
	}
	t.Logf("%d rows were written meanwhile", total())
	s.sound(t, p.Branch)
	s.settled(t)
}

// TestBranchOfBranch branches five deep, off sleeping and running parents. Each level has what was above it at the time
// and nothing of what came later anywhere.
func TestBranchOfBranch(t *testing.T) {
	for _, storage := range backends() {
		t.Run(storage, func(t *testing.T) {
			t.Parallel()
			branchOfBranch(t, startOn(t, storage))
		})
	}
}

func branchOfBranch(t *testing.T, s *server) {
	const depth = 5
	p := s.checkable(t)
	level := branch{ID: p.Branch, Endpoint: p.Endpoint, URI: p.URI}
	sql(t, s.connect(t, p.URI), "create table levels (n int, at text)")
	line := []branch{level}
	var above uint64
	for d := range depth {
		conn := s.connect(t, level.URI)
		sql(t, conn, "insert into levels values ($1, 'before')", d)
		head := value[string](t, conn, "select pg_current_wal_flush_lsn()::text")
		if d%2 == 1 {
			p.suspend(t, level.Endpoint)
		}
		called := time.Now()
		child := p.branch(t, level.ID)
		info, err := s.Branch(t.Context(), p.ID, child.ID)
		if err != nil {
			t.Fatal(err)
		}
		at := lsn(t, info.ParentLSN)
		if at < lsn(t, &head) || at < above {
			t.Errorf("level %d forked at %s, but its parent was at %s before", d+1, *info.ParentLSN, head)
		}
		above = at
		if info.ParentTimestamp == nil || info.ParentTimestamp.After(time.Now().Add(time.Second)) || info.ParentTimestamp.Before(called.Add(-time.Minute)) {
			t.Errorf("level %d: parent_timestamp %v; the call came at %v", d+1, info.ParentTimestamp, called)
		}
		if info.ParentID == nil || *info.ParentID != level.ID {
			t.Errorf("level %d: parent_id %v, want %s", d+1, info.ParentID, level.ID)
		}
		after := s.connect(t, level.URI) // wakes a sleeping one
		sql(t, after, "insert into levels values ($1, 'after')", d)
		if now := value[string](t, after, "select pg_current_wal_flush_lsn()::text"); at > lsn(t, &now) {
			t.Errorf("level %d: parent_lsn %s is ahead of its parent, which is at %s", d+1, *info.ParentLSN, now)
		}
		level = child
		line = append(line, child)
	}
	for d, b := range line {
		conn := s.connect(t, b.URI)
		rows := value[string](t, conn, "select coalesce(string_agg(n || at, ' ' order by n, at desc), '') from levels")
		var want []string
		for above := range d {
			want = append(want, fmt.Sprintf("%dbefore", above))
		}
		if d < depth {
			want = append(want, fmt.Sprintf("%dbefore", d), fmt.Sprintf("%dafter", d))
		}
		if rows != strings.Join(want, " ") {
			t.Errorf("level %d has %q, want %q", d, rows, strings.Join(want, " "))
		}
	}
	s.sound(t, level.ID)
	p.suspend(t, level.Endpoint)
	s.checksums(t, level.ID)
	s.settled(t)
	// From the leaf up, a branch can go when its children are gone.
	for d := depth; d > 0; d-- {
		if d > 1 {
			if _, err := s.DeleteBranch(t.Context(), p.ID, line[d-1].ID); !sdk.IsInvalid(err) {
				t.Errorf("delete of a parent: %v", err)
			}
		}
		gone, err := s.DeleteBranch(t.Context(), p.ID, line[d].ID)
		if err != nil {
			t.Fatal(err)
		}
		s.wait(t, gone.Operations[:len(gone.Operations)-1]) // the last one deletes its own branch
	}
	s.settled(t)
}
