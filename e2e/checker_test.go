package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestCommitThenBranch commits numbered rows side by side and branches at moments in between, by LSN and by time, while
// checkpoints, switches of segments and bulk writes are mixed in: a branch has every row that was acknowledged before its
// moment, none that was sent after it, and none is missing in between. BOUGH_SEED repeats a run, BOUGH_ROUNDS lengthens it.
func TestCommitThenBranch(t *testing.T) {
	seed, err := strconv.ParseUint(os.Getenv("BOUGH_SEED"), 10, 64)
	if err != nil {
		seed = rand.Uint64()
	}
	rounds, err := strconv.Atoi(os.Getenv("BOUGH_ROUNDS"))
	if err != nil {
		rounds = 12
	}
	t.Logf("BOUGH_SEED=%d BOUGH_ROUNDS=%d", seed, rounds)
	commitThenBranch(t, start(t, "--snapshot-wal", "16MiB"), rand.New(rand.NewPCG(seed, 1)), rounds)
}

func commitThenBranch(t *testing.T, s *server, random *rand.Rand, rounds int) {
	const writers = 4
	p := s.project(t)
	admin := s.superuserOf(t, p.Branch, p.Database)
	sql(t, admin, "create table journal (writer int, n bigint, filler text, primary key (writer, n))")
	sql(t, admin, "create table bulk (n bigint, filler text)")
	sql(t, admin, fmt.Sprintf("grant all on journal, bulk to %q", p.Role))

	var sent, acked [writers]atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	var writing sync.WaitGroup
	for w := range writers {
		conn := s.connect(t, p.URI)
		writing.Go(func() {
			for n := int64(1); ctx.Err() == nil; n++ {
				sent[w].Store(n)
				if _, err := conn.Exec(t.Context(), "insert into journal values ($1, $2, repeat('x', 300))", w, n); err != nil {
					t.Errorf("writer %d: %v", w, err)
					return
				}
				acked[w].Store(n)
			}
		})
	}
	defer writing.Wait()
	defer stop()

	type instant struct {
		lsn         string
		at          time.Time
		least, most [writers]int64
	}
	mark := func() (m instant) {
		for w := range writers {
			m.least[w] = acked[w].Load()
		}
		m.lsn = value[string](t, admin, "select pg_current_wal_insert_lsn()::text")
		m.at = value[time.Time](t, admin, "select clock_timestamp()")
		for w := range writers {
			m.most[w] = sent[w].Load()
		}
		return m
	}
	var marks []instant
	for range rounds {
		switch random.IntN(4) {
		case 0:
			sql(t, admin, "checkpoint")
		case 1:
			sql(t, admin, "select pg_switch_wal()")
		case 2:
			sql(t, admin, "insert into bulk select n, repeat(md5(n::text), 30) from generate_series(1, 20000) n")
		}
		from := acked[0].Load()
		more := random.Int64N(200)
		eventually(t, opLimit, func() string {
			if t.Failed() {
				t.FailNow()
			}
			if now := acked[0].Load(); now < from+more {
				return fmt.Sprintf("%d of %d rows", now-from, more)
			}
			return ""
		})
		marks = append(marks, mark())
		m := marks[len(marks)-1]
		if random.IntN(2) == 0 { // an older one
			m = marks[random.IntN(len(marks))]
		}
		lsn, at := m.lsn, (*time.Time)(nil)
		if random.IntN(2) == 0 {
			lsn, at = "", &m.at
		}
		b, _ := p.at(t, p.Branch, lsn, at)
		conn := s.connect(t, b.URI)
		for w := range writers {
			var count, last int64
			if err := conn.QueryRow(t.Context(), "select count(*), coalesce(max(n), 0) from journal where writer = $1", w).Scan(&count, &last); err != nil {
				t.Fatal(err)
			}
			if last < m.least[w] || last > m.most[w] || count != last {
				t.Errorf("branch at %s %v: writer %d had %d rows acknowledged and %d sent; the branch has %d rows up to %d", lsn, at, w, m.least[w], m.most[w], count, last)
			}
		}
		_ = conn.Close(t.Context())
		if random.IntN(rounds/2+1) == 0 {
			s.sound(t, b.ID)
		}
		p.delete(t, b.ID)
	}
	stop()
	writing.Wait()
}
